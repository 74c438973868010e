"""A language model on the card against its float graphs: what the emulated layers give of prompts."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from axbake.distance import cosine, psnr, sqnr
from axbake.drawing.prompts import load_tokenizer
from axbake.runtime.layers import open_component_of
from axbake.runtime.prompt import language_text

logger = logging.getLogger(__name__)


def check_layers(
    graphs: Sequence[Path],
    tensors: Sequence[Path],
    models: Sequence[Path],
    embeddings: Path,
    *,
    component: str,
    prompts: Sequence[str],
    samples: int,
    check: Path,
) -> None:
    """Run a language model's emulated layers and its float graphs on prompts, and compare the states that are taken.

    No host runs layers that the real Pulsar2 built, so whatever built the model's own, emulated ones are compared. Of a denoiser
    that masks tokens, those that it never sees do not count.

    Args:
        graphs, tensors: float graphs in the order in which they run, and the files of their weights beside them.
        models: `language.json`, token table and layers, emulated.
        embeddings: `embeddings.json`.
        prompts: of which *samples*, evenly spread, are taken; 0: nothing is run, and *check* says so.
        check: JSON to write, as `axbake.toolchain.compiled` writes it.
    """
    content: dict[str, Any] = {"component": component, "emulated": True, "samples": samples}
    if samples:
        tokenizer = load_tokenizer(embeddings)
        language, count = tokenizer.language[component], min(samples, len(prompts))
        texts = [language_text(prompts[number * len(prompts) // count], tokenizer) for number in range(count)]
        feeds = [language.arrays(text) for text in texts]
        counted = [(kinds[0] > 0) | (not language.format.masked) for _, kinds in feeds]
        states = (_states(paths, feeds, counted, language.format.drop) for paths in (graphs, models))
        (name, pairs) = "prompt_embeds", list(zip(*states, strict=True))
        distance = {
            "sqnr_db": round(min(sqnr(*pair) for pair in pairs), 2),
            "psnr_db": round(min(psnr(*pair) for pair in pairs), 2),
            "cosine": round(min(cosine(*pair) for pair in pairs), 6),
            "largest_error": float(max(np.abs(one - other).max() for one, other in pairs)),
        }
        content |= {"samples": count, "outputs": {name: distance}}
        logger.info("%s: %s is %.1f dB (SQNR) from the float graph's", component, name, distance["sqnr_db"])
    check.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _states(
    paths: Sequence[Path], feeds: Sequence[Sequence[np.ndarray]], counted: Sequence[np.ndarray], drop: int
) -> list[np.ndarray]:
    """Of each prompt the states that are taken, (tokens that count, W)."""
    session = open_component_of(paths)
    made = session.run_all([dict(zip(session.inputs, arrays, strict=True)) for arrays in feeds])
    return [next(iter(one.values()))[0][own[drop:]] for one, own in zip(made, counted, strict=True)]
