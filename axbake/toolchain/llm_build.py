"""A language model's layers by Pulsar2's `llm_build`, or by its emulator: started, read, accepted if they are what was asked for.

Command line, log and outputs are those of AXERA-TECH/pulsar2-docs-en, `source/appendix/build_llm.md`, for Pulsar2 5.2.
"""

import json
import logging
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from axbake.networks.card_layers import CardLayers
from axbake.runtime.language import LanguageFormat
from axbake.runtime.language_card import Described
from axbake.runtime.producer import EMULATOR
from axbake.toolchain.axmodel import CHIPS, PULSAR2, Axmodel, AxmodelError, read_axmodel
from axbake.toolchain.failures import FAILURES, OF_LANGUAGE_MODELS, explain
from axbake.toolchain.launch import WRITABLE, Launch, says_version
from axbake.toolchain.process import TimeLimit
from axbake.toolchain.pulsar2 import CompileError
from axbake.toolchain.reading import BuildLog
from axbake.weights.language_folder import last_norm, write_folder, write_table

logger = logging.getLogger(__name__)
FOLDER = "model"  # that is given to it
BUILT = "build llm model done!"
#: A line of the log -> the stage that it begins
STAGES = (
    (re.compile(r"prepare llm model"), "read the model"),
    (re.compile(r"building llm decode layers"), "building layers"),
    (re.compile(r"building llm post layer"), "building the last layer, which is not used"),
    (re.compile(re.escape(BUILT)), "built"),
    (re.compile(r"check llm model"), "checked"),
)
SIMILAR = re.compile(r"(decode|prefill) layer0_gt layer0_got cos_sim is: ([-\d.]+)")


def build_layers(
    weights: Path,
    embeddings: Path,
    *,
    component: str,
    card: CardLayers,
    format: LanguageFormat,
    chip: str,
    compiler: Mapping[str, str],
    launch: dict[str, Any],
    parallel: int,
    described: Path,
    table: Path,
    axmodels: Sequence[Path],
    record: Path,
) -> None:
    """Build the layers of a language model whose states a denoiser takes, and write what the card's host needs beside them.

    Args:
        weights: `weights/{component}.safetensors`.
        embeddings: `embeddings.json`, which has the model's tokenizer.
        card: which layers, and as what.
        format: how the model is given prompts: all tokens of one are read at once.
        chip: config's `target_hardware`.
        compiler: what decides the build besides the inputs, as of `axbake.toolchain.pulsar2.compile_model`.
        launch: how it is started; *parallel*: how many layers at once. Neither decides what it makes.
        described, table: `language.json` and `embed_tokens.bin` to write (`axbake.runtime.language_card`).
        axmodels: to write, one a layer.
        record: JSON to write: by what the layers were made, and whether they are emulated.

    Raises:
        WrongToolchain, EngineError: no such program, or another version.
        CompileError: it failed: what of, its own words and what to try; or its models are not what was asked for.
    """
    how = Launch(**launch)
    if chip not in CHIPS.values():
        raise CompileError(
            f"{component}: target_hardware {chip}: `llm_build` is known for {', '.join(CHIPS.values())} alone. Set"
            " text_encoder_place: host."
        )
    version = how.check()
    place = record.parent / "pulsar2"
    place.mkdir()
    tokenizer = json.loads(embeddings.read_text(encoding="utf-8"))["language"][component]["tokenizer"]
    config = write_folder(weights, place / FOLDER, card=card, tokenizer=tokenizer)
    flags = {
        "--input_path": FOLDER,
        "--output_path": WRITABLE,
        "--hidden_state_type": "bf16",
        "--weight_type": "s8",
        "--prefill_len": format.tokens,
        # Positions that a layer knows. Published commands pair 128 with 255, and 512 with 1023.
        "--kv_cache_len": 2 * format.tokens - 1,
        "--chip": chip,
        "--check_level": 1,
        "--parallel": parallel,
    }
    log = BuildLog(STAGES)
    try:
        command = ["llm_build", *(str(word) for pair in flags.items() for word in pair)]
        status = how.call(command, place, log.hear)
    except TimeLimit as error:
        raise CompileError(
            f"{component}: {how.toolchain} reached its time limit of {how.minutes:g} minutes, while {log.stage or 'starting'}."
            " Raise time_limit in config/config.yaml."
        ) from error
    name = f"{config['model_type']}_p{format.tokens}_l{{}}_together.axmodel"
    made = [place / WRITABLE / name.format(number) for number in range(card.count)]
    missing = [path.name for path in made if not path.is_file()]
    built = any(BUILT in line for line in log.last)
    if missing or not built:
        lines = list(log.last)
        said = f"no {', '.join(missing[:3])}" if missing and not status else ""
        failures = (*OF_LANGUAGE_MODELS, *FAILURES)
        raise CompileError(
            explain(
                component,
                toolchain=f"{how.toolchain} llm_build",
                status=status,
                code="",
                said=said,
                lines=lines,
                failures=failures,
            )
        )
    if status:
        # AXERA-TECH/SmolLM3-3B.axera tells to overlook errors after this line: they are of the check.
        logger.warning("%s: llm_build ended with status %d after “%s”; its layers are kept", component, status, BUILT)
    faults = [
        fault
        for path in made
        for fault in layer_faults(
            path,
            tokens=format.tokens,
            width=config["hidden_size"],
            chip=chip,
            emulated=how.toolchain == "emulator",
            version=compiler.get("pulsar2", ""),
        )
    ]
    if faults:
        raise CompileError(f"{component}: the layers are not what was requested: {'; '.join(faults[:10])}.")
    for path, target in zip(made, axmodels, strict=True):
        path.rename(target)
    write_table(weights, table)
    norm = last_norm(weights)
    said_of = Described(
        tokens=format.tokens,
        drop=format.drop,
        width=config["hidden_size"],
        vocabulary=config["vocab_size"],
        layers=card.count,
        states=card.states,
        epsilon=config["rms_norm_eps"],
        norm=norm,
    )
    described.write_text(json.dumps(asdict(said_of)) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in (table, *axmodels))
    content = {
        "component": component,
        "toolchain": how.toolchain,
        "emulated": how.toolchain == "emulator",
        "version": version,
        "bytes": size,
        "layers": card.count,
        "llm_build": {name.removeprefix("--"): value for name, value in flags.items() if name != "--parallel"},
        "layer_check": dict(_similarities(log.last)),  # Pulsar2's own, of its first layer: cosines
    }
    record.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(place)
    logger.info("%s: %d layers, %.0f MB", component, card.count, size / 1e6)


def layer_faults(path: Path, *, tokens: int, width: int, chip: str, emulated: bool, version: str) -> Iterator[str]:
    """What of the layer *path* is not what was asked for.

    Args:
        version: of Pulsar2 that it must be made by; empty: of an emulated one.
    """
    try:
        found = read_axmodel(path)
    except AxmodelError as error:
        yield str(error)
        return
    producer = EMULATOR if emulated else PULSAR2
    if found.producer != producer:
        yield f"{path.name}: producer {found.producer!r}, wanted {producer!r}"
    if version and not says_version(found.version, version):
        yield f"{path.name}: Pulsar2 {found.version or 'without a version'}, wanted {version}"
    if found.hardware and found.hardware != chip:  # first versions' models do not say
        yield f"{path.name}: for {found.hardware}, wanted {chip}"
    if not _reads_at_once(found, tokens, width):
        taken = ", ".join(f"{name} {value}" for name, value in found.inputs.items())
        yield f"{path.name}: takes {taken[:300]}; wanted among them the states of a whole prompt, [1, {tokens}, {width}]"


def _reads_at_once(found: Axmodel, tokens: int, width: int) -> bool:
    """Whether a group of shapes of *found* takes a whole prompt."""
    return any(
        name.startswith("input") and value.shape == (1, tokens, width) and value.dtype.itemsize == 2
        for name, value in found.inputs.items()
    )


def _similarities(lines: Sequence[str]) -> Iterator[tuple[str, float]]:
    for line in lines:
        if (known := SIMILAR.search(line)) and math.isfinite(float(known[2])):
            yield known[1], float(known[2])
