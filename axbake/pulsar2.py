"""Pulsar2, AXERA's compiler: its config of a component, and a build by the real one or by the emulator.

Config and command line are those of AXERA-TECH/pulsar2-docs-en (`user_guides_config/config.md`,
`user_guides_advanced/advanced_build_guides.md`).
"""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from axbake.errors import AxbakeError
from axbake.interface import TIMESTEP_INPUT
from axbake.preflight.verdict import check_build
from axbake.runtime.progress import progress
from axbake.runtime.session import EMULATOR, producer

logger = logging.getLogger(__name__)
ROOT = Path(__file__).parents[1]
TOOLCHAINS = {"emulator": [sys.executable, "-m", "axbake.emulator"], "native": ["pulsar2"]}
CALIBRATED = re.compile(r"Calibration Progress.* (\d+)/(\d+) ")  # Pulsar2's bar: samples done, and all
PRODUCERS = {"emulator": EMULATOR, "native": "Pulsar2"}

# What differs between the components: the calibration archive's format, and what the compiled model takes.
CALIBRATION_FORMATS: dict[str, dict[str, Any]] = {
    "text_encoder": {"tensor_name": "input_ids", "calibration_format": "Numpy"},
    "unet": {"tensor_name": "DEFAULT", "calibration_format": "NumpyObject"},
    "vae_decoder": {"tensor_name": "DEFAULT", "calibration_format": "NumpyObject"},
    "vae_encoder": {
        "tensor_name": "image_sample",
        "calibration_format": "Image",
        "calibration_mean": [127.5, 127.5, 127.5],
        "calibration_std": [127.5, 127.5, 127.5],
    },
}
INPUT_PROCESSORS = {
    # Published programs hand 32-bit ids to the text encoder (AXERA-TECH/sd1.5-lcm.axera).
    "text_encoder": [{"tensor_name": "input_ids", "src_dtype": "U32"}],
    # They also bring pixels to -1..1 themselves; by default Pulsar2 would put calibration's mean and std into the model.
    "vae_encoder": [
        {
            "tensor_name": "image_sample",
            "tensor_format": "RGB",
            "src_format": "RGB",
            "mean": [0, 0, 0],
            "std": [1, 1, 1],
        }
    ],
}


# A timestep is whole, and Pulsar2 takes inputs for floats where it is not told. Mojo24x7/SD1.5_AXM1-AX8850_Euler gives int32.
TIMESTEP_PROCESSORS = [{"tensor_name": TIMESTEP_INPUT, "src_dtype": "S32"}]


class CompileError(AxbakeError):
    """The compiler failed, or made something else than it was asked for."""


class WrongToolchain(AxbakeError):
    """The compiler is not there, or of another version than config says."""


def configure_build(
    *, component: str, precision: str, target_hardware: str, npu_mode: str, config: Path, program: str = "axera"
) -> None:
    """Write Pulsar2's config of *component*.

    Args:
        precision: of activations: U8, U16 or S16; weights are S8.
        program: whose inputs the graph has (`axbake.interface`); asked of the UNet alone.

    The archive is named without a folder, since `compile_model` runs Pulsar2 in one that holds all it needs; so the same build
    for another model has the same config. All members of the archive are used.
    """
    whole_graph = {"start_tensor_names": ["DEFAULT"], "end_tensor_names": ["DEFAULT"], "data_type": precision}
    content: dict[str, Any] = {
        "model_type": "ONNX",
        "target_hardware": target_hardware,
        "npu_mode": npu_mode,
        "quant": {
            "input_configs": [
                {**CALIBRATION_FORMATS[component], "calibration_dataset": f"{component}.tar", "calibration_size": -1}
            ],
            "layer_configs": [whole_graph],
            "calibration_method": "MinMax",
            "precision_analysis": False,
        },
        "compiler": {"check": 0},
    }
    if component in INPUT_PROCESSORS:
        content["input_processors"] = INPUT_PROCESSORS[component]
    if component == "unet" and program == "euler":
        content["input_processors"] = TIMESTEP_PROCESSORS
    config.write_text(json.dumps(content, indent=2) + "\n")


def compile_model(
    graph: Path,
    tensors: Path,
    archive: Path,
    config: Path,
    *,
    toolchain: str,
    compiler: dict[str, str],
    axmodel: Path,
    record: Path,
) -> None:
    """Compile *graph* into *axmodel*, in a directory of links to what Pulsar2 needs and nothing else.

    Args:
        tensors, archive: of the graph, and its calibration; linked under their own names.
        toolchain: `emulator` or `native`.
        compiler: what decides the build besides the inputs; `pulsar2` in it is the version that `native` must be.
        record: JSON to write: by what the model was made, whether it is emulated, and Pulsar2's own figures.

    Raises:
        PreflightError: what is known of Pulsar2 says that it would fail.
        WrongToolchain: no such program, or another version.
        CompileError: Pulsar2 failed; its own words.
    """
    check_build(axmodel.stem, graph, archive, config, toolchain=toolchain, place=axmodel.parent)
    version = check_toolchain(toolchain, compiler)
    place = axmodel.parent / "pulsar2"
    place.mkdir()
    for path in (graph, tensors, archive, config):
        link_or_copy(path, place / path.name)
    command = ["build", "--input", graph.name, "--config", config.name, "--output_dir", "out"]
    status = _run([*TOOLCHAINS[toolchain], *command, "--output_name", axmodel.name], place)
    context = _read_context(place / "out" / "build_context.json")
    made = place / "out" / axmodel.name
    _check_build(toolchain, status, made, context)
    made.rename(axmodel)
    content = {
        "component": axmodel.stem,
        "toolchain": toolchain,
        "emulated": toolchain == "emulator",
        "version": version,
        "bytes": axmodel.stat().st_size,
        "pulsar2_config": json.loads(config.read_text()),
        "macs": context.get("macs"),
        "io_info": context.get("io_info"),
    }
    record.write_text(json.dumps(content, indent=1) + "\n")
    shutil.rmtree(place)


def link_or_copy(source: Path, place: Path) -> None:
    """A second name of *source*'s bytes at *place*: a hard link, or a copy on another file system (ONNX refuses symlinks)."""
    try:
        os.link(source.resolve(), place)
    except OSError:
        shutil.copyfile(source, place)


def _check_build(toolchain: str, status: int, made: Path, context: dict) -> None:
    """Raise CompileError unless the build ended well and made a model of the toolchain's own."""
    if status or not made.is_file():
        said = context.get("error_msg") or "no word of why"
        raise CompileError(
            f"{made.stem}: {toolchain} ended with status {status}: {said}. Its whole output is in this job's log."
        )
    if producer(made) != PRODUCERS[toolchain]:
        raise CompileError(
            f"{made.stem}: {toolchain} made a model of producer {producer(made)!r}, wanted {PRODUCERS[toolchain]!r}."
        )


def check_toolchain(toolchain: str, compiler: dict[str, str]) -> str:
    """What `pulsar2 version` says.

    Raises:
        WrongToolchain: no such program, or `native` is not the version that *compiler* says.
    """
    command = [*TOOLCHAINS[toolchain], "version"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, env=_environment()).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise WrongToolchain(
            f"toolchain {toolchain}: `{' '.join(command)}` does not run ({error}). Install Pulsar2 and put it on the PATH,"
            " or set toolchain: emulator in config/config.yaml."
        ) from error
    version = compiler.get("pulsar2", "")
    if toolchain == "native" and not re.search(rf"(?<![\d.]){re.escape(version)}(?![\d])", said):
        raise WrongToolchain(
            f"toolchain native: `pulsar2 version` says {said!r}, config/config.yaml says {version}. Correct"
            " pulsar2_version there: it is part of every model's identity."
        )
    return said


def _environment() -> dict[str, str]:
    """The environment in which the emulator finds this package, wherever the work directory is."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


def _run(command: list[str], place: Path) -> int:
    """Exit status of *command*, run in *place*; its output goes to the log, line by line, as it comes."""
    logger.info("running: %s", " ".join(command))
    tell = progress("calibrating:")
    with subprocess.Popen(
        command,
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=_environment(),
    ) as process:
        assert process.stdout
        try:
            for line in process.stdout:  # a progress bar's carriage returns come as lines too
                logger.log(logging.INFO if "emulated" in line else logging.DEBUG, "%s", line.rstrip())
                if counted := CALIBRATED.search(line):
                    tell(int(counted[1]), int(counted[2]))
        except BaseException:
            process.terminate()
            raise
    return process.returncode


def _read_context(path: Path) -> dict:
    """What Pulsar2 says of a build; empty if it died before it had said it."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
