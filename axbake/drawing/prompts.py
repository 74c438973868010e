"""Prompts on the host: read as on the board (`axbake.runtime.prompt`), with the model's embeddings."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from axbake.root import shipped
from axbake.runtime import tokenizer as clip_tokenizer
from axbake.runtime.prompt import Embedded, Encode, States, embed_prompt, prompt_warnings, without_lora_marks
from axbake.runtime.tokenizer import ClipTokenizer
from axbake.runtime.values import Conditioning

logger = logging.getLogger(__name__)
CLIP = shipped("resources/clip")


def load_tokenizer(embeddings: Path) -> ClipTokenizer:
    """CLIP's tokenizer with the names and the padding of an `embeddings.json` (`axbake.weights.embeddings`)."""
    return clip_tokenizer.load_tokenizer(CLIP, embeddings)


def text_encoding(text_encoder: Path, build: Callable[[dict], Any], states: Callable[..., Any]) -> Encode:
    """torch's text encoder of a `weights/{component}.safetensors`, as prompts are embedded with.

    Args:
        build, states: the component's.
    """
    import torch  # here, since a job that only needs tokens does without

    from axbake.weights import networks

    network = networks.load(text_encoder, build)

    def encode(*arrays: np.ndarray) -> States:
        with torch.inference_mode():
            return States(*(tensor.numpy() for tensor in states(network, *map(torch.from_numpy, arrays))))

    return encode


def prompt_embedding(
    encodes: Sequence[Encode], tokenizer: ClipTokenizer, *, chunks: int, conditioning: Conditioning
) -> Callable[..., Embedded]:
    """A function that gives what the denoiser takes of a prompt, or with `negative` of a negative one.

    It writes to the log what of the prompt does not count.

    The screen has it from the workflow (`axbake.advice`).

    Args:
        encodes: the text encoders, in the order of *conditioning*.
    """

    def embed(prompt: str, *, negative: bool = False) -> Embedded:
        for warning in prompt_warnings(without_lora_marks(prompt), tokenizer, chunks=chunks):
            logger.info("prompt “%s”: %s", prompt, warning)
        how: dict[str, Any] = {"chunks": chunks, "conditioning": conditioning, "negative": negative}
        return embed_prompt(encodes, tokenizer, prompt, **how)

    return embed
