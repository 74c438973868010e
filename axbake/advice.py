"""What of a row has no effect, or another one than its writer expects: a sentence each, on the screen and in the report."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from axbake.checkpoints.containers import Container, added_words, form_of, scan_folder
from axbake.checkpoints.embeddings import embedding_sizes
from axbake.checkpoints.prediction import EPSILON, gather_evidence
from axbake.drawing.prompts import CLIP
from axbake.families.family import Family
from axbake.fit import Configs, modules_of
from axbake.loras.files import listed, lora_facts
from axbake.loras.names import own_names, spellings
from axbake.loras.rows import lcm_advice, unknown_marks
from axbake.printable import shown
from axbake.runtime.prompt import embeddings_in, prompt_warnings, without_lora_marks
from axbake.runtime.tokenizer import VOCABULARY, ClipTokenizer
from axbake.sources import CHECKPOINT, Sources, read_header

MOST = 8  # sentences about calibration prompts
COLUMNS = ("prompt", "negative_prompt")
SIZES = ("original_size", "crop", "target_size")
VELOCITY_NAME = re.compile(
    r"v[-_ .]?pred(iction)?(?![a-z])", re.IGNORECASE
)  # as files of NoobAI and its merges are called


def advise(row: dict[str, Any], family: Family, sources: Sources, configs: Configs) -> Iterator[str]:
    """Sentences without full stops about a row whose files are there and fit (`axbake.fit`).

    Args:
        configs: as `axbake.fit.configs_of` gives them.

    Raises:
        Errors of who reads the headers of its files.
    """
    yield from unknown_marks(row)
    if not family.denoiser.added and (given := [name for name in SIZES if row[name]]):
        yield f"column {', '.join(given)}: {family.title} takes no sizes, so this has no effect"
    for lora in row["loras"]:
        yield from _of_lora(row, Path(lora.path), family, sources)
    names = {
        own or Path(path).stem: count
        for path in row["embeddings"]
        for own, (count, _) in embedding_sizes(Path(path), encoder=family.text_encoders[0].files.embedding).items()
    }
    if family.clips:
        yield from _of_prompts(row, names)
    if not sources.is_remote(CHECKPOINT):
        yield from _of_words(Path(row[CHECKPOINT]), family, configs)
        yield from _of_name(Path(row[CHECKPOINT]), row["prediction"] or sources.sidecar, family)


def _of_lora(row: dict[str, Any], path: Path, family: Family, sources: Sources) -> Iterator[str]:
    facts = lora_facts(path, family.denoiser.name)
    if facts.lcm:
        yield from lcm_advice(row, path)
    if facts.embeddings and str(path) not in row["embeddings"]:
        yield (
            f"{path} also contains the embeddings {listed(facts.embeddings)}. To use them in prompts, name this file "
            "in the column embeddings too"
        )
    if sources.is_remote(CHECKPOINT):
        return
    for component in family.components:
        changed = own_names(component.files, component.name, facts.components)
        if changed and not component.files.lora_names:
            yield (
                f"{path} also changes {len(changed)} modules of the {component.name}, into which axbake fuses no LoRAs, so this"
                " part of it has no effect"
            )
        if changed and component.files.lora_names:
            known = spellings(component.files, modules_of(Path(row[CHECKPOINT]), family, component))
            if lacking := [name for name in changed if name not in known]:
                yield (
                    f"{path}: {len(lacking)} of the {len(changed)} modules that it changes are not in the checkpoint's"
                    f" {component.name}, so this part of it has no effect: {listed(lacking)}"
                )


def _of_prompts(row: dict[str, Any], names: Mapping[str, int]) -> Iterator[str]:
    """Of what is read as words, or not at all; and of embeddings that no prompt names.

    Args:
        names: of the embeddings, with their numbers of vectors.
    """
    sizes, chunks = tuple(names.items()), row["prompt_chunks"]
    calibration = list(dict.fromkeys(row["calibration_prompts"]))
    for column in COLUMNS:
        yield from (f"column {column}: {said}" for said in _read(row[column], sizes, chunks)[0])
    told = [(prompt, said) for prompt in calibration for said in _read(prompt, sizes, chunks)[0]]
    yield from (f"calibration prompt “{shown(prompt, 80)}”: {said}" for prompt, said in told[:MOST])
    if len(told) > MOST:
        yield f"calibration prompts: {len(told) - MOST} more such findings; see the jobs' logs"
    used = {
        name
        for prompt in [row["prompt"], row["negative_prompt"], *calibration]
        for name in _read(prompt, sizes, chunks)[1]
    }
    if unused := [name for name in names if name not in used]:
        yield f"column embeddings: no prompt names {listed(unused)}, so they have no effect"


@cache
def _read(prompt: str, embeddings: tuple[tuple[str, int], ...], chunks: int) -> tuple[list[str], set[str]]:
    """Warnings of a prompt, and the embeddings that it names."""
    tokenizer = _tokenizer(embeddings)
    return prompt_warnings(without_lora_marks(prompt), tokenizer, chunks=chunks), embeddings_in(prompt, tokenizer)


@cache
def _tokenizer(embeddings: tuple[tuple[str, int], ...]) -> ClipTokenizer:
    """CLIP's, with ids for each embedding's vectors as `axbake.weights.embeddings` gives them."""
    ids, first = {}, VOCABULARY
    for name, count in embeddings:
        ids[name] = range(first, first + count)
        first += count
    return ClipTokenizer(CLIP, ids)


def _of_words(path: Path, family: Family, configs: Configs) -> Iterator[str]:
    """Of rows in token tables that no word can select."""
    help_ = "Save their vectors as textual-inversion embeddings, and name the files in the column embeddings"
    if form_of(path) == "diffusers folder" and (words := added_words(scan_folder(path))):
        yield (
            f"{path} adds words to CLIP's vocabulary: {shown(', '.join(words), 200)}. axbake does not know them in "
            f"prompts and reads them as ordinary text. {help_}"
        )
        return
    for encoder in family.clips:
        if (rows := configs[encoder.name]["vocab_size"]) > VOCABULARY:
            yield (
                f"{path}: its {encoder.name} has {rows - VOCABULARY} more words than CLIP's vocabulary; prompts cannot "
                f"use them. {help_}"
            )


def _of_name(path: Path, stated: str, family: Family) -> Iterator[str]:
    """Of a name that contradicts what axbake will assume; *stated*: what table and sidecar say."""
    if stated or family.process.prediction_type != EPSILON or not VELOCITY_NAME.search(path.name):
        return
    if not read_header(path, "prediction", _said, f"{__name__}._said"):
        yield (
            f"the name of {path} suggests a model that predicts the velocity, but the file does not say so, and is drawn as one "
            "that predicts the noise. If the model's page says v-prediction, set the column prediction to v_prediction"
        )


def _said(container: Container) -> list[str]:
    """What a checkpoint says that its UNet predicts, of each place that says it."""
    return list(gather_evidence(container, sidecar="").types.values())
