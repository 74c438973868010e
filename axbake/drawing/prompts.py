"""Prompts on the host: read as on the board (`axbake.runtime.prompt`), with the model's embeddings."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from axbake.runtime import tokenizer as clip_tokenizer
from axbake.runtime.prompt import Encode, embed_prompt, prompt_warnings, without_lora_marks
from axbake.runtime.tokenizer import ClipTokenizer

logger = logging.getLogger(__name__)
CLIP = Path(__file__).parents[2] / "resources" / "clip"


def load_tokenizer(embeddings: Path) -> ClipTokenizer:
    """CLIP's tokenizer with the names and the padding of an `embeddings.json` (`axbake.checkpoints.embeddings`)."""
    return clip_tokenizer.load_tokenizer(CLIP, embeddings)


def text_encoding(text_encoder: Path) -> Encode:
    """torch's text encoder of a `weights/text_encoder.safetensors`, as prompts are embedded with."""
    import torch  # here, since a job that only needs tokens does without

    from axbake.checkpoints import components

    network = components.load(text_encoder)

    def encode(ids: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(ids)).last_hidden_state.numpy()

    return encode


def prompt_embedding(encode: Encode, tokenizer: ClipTokenizer, *, chunks: int) -> Callable[[str], np.ndarray]:
    """A function that gives a prompt's (1, 77 × chunks, W) float32, and warns of what of the prompt does not count.

    Of LoRAs' marks the workflow has told already (`axbake.loras.rows.unknown_marks`).
    """

    def embed(prompt: str) -> np.ndarray:
        for warning in prompt_warnings(without_lora_marks(prompt), tokenizer, chunks=chunks):
            logger.warning("prompt «%s»: %s", prompt, warning)
        return embed_prompt(encode, tokenizer, prompt, chunks=chunks)

    return embed
