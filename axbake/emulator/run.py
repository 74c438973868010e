"""`run`: a float ONNX model or an emulated `.axmodel` on raw input files, as `pulsar2 run` does.

Source: AXERA-TECH/pulsar2-docs-en, `user_guides_advanced/advanced_run_guides.md`.
"""

import logging
import re
from pathlib import Path

import numpy as np
import onnxruntime

from axbake import __version__
from axbake.emulator import PRODUCER
from axbake.emulator.graph import GraphError, TensorSpec, read_model, runtime_errors, session_options, tensor_spec
from axbake.emulator.writer import written_beside
from axbake.errors import AxbakeError
from axbake.users_files import MOST_JSON_BYTES, UnreadableFile, lines_of, read_text

log = logging.getLogger("axbake.emulator")

RANDOM_IDS = 100  # random integers stay below this, to be an index of any embedding table


class RunError(AxbakeError):
    """The files passed to `run` do not fit the model."""


def bin_name(tensor: str) -> str:
    """Name of the raw file of *tensor*, as documented."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", tensor) + ".bin"


def run(model: Path, input_dir: Path, output_dir: Path, listing: Path | None, random_input: bool) -> None:
    """Run *model* once for each line of *listing* (None: once), each in the subdirectory that the line names."""
    log.info("axbake emulator %s of Pulsar2: emulated run on the host", __version__)
    session, inputs, outputs = load_model(model)
    for line in _lines(listing):
        source, target = input_dir / (line or "."), output_dir / (line or ".")
        if random_input:
            _write_random(source, inputs)
        log.info(">>> [%s] start", line or "0")
        feed = {spec.name: _read(source / bin_name(spec.name), spec) for spec in inputs}
        with runtime_errors(str(model)):
            results = session.run([spec.name for spec in outputs], feed)
        target.mkdir(parents=True, exist_ok=True)
        for spec, result in zip(outputs, results, strict=True):
            path = target / bin_name(spec.name)
            with written_beside(path) as file:
                file.write(np.ascontiguousarray(result).tobytes())
            log.info("write [%s] to [%s] successfully", spec.name, path)
        log.info(">>> [%s] finish", line or "0")
    log.info("emulated run finished")


def load_model(path: Path) -> tuple[onnxruntime.InferenceSession, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """A session of the float ONNX model or emulated `.axmodel` in *path*, with its inputs and outputs."""
    model = read_model(path)
    if any(node.op_type == "neu mode" for node in model.graph.node):
        raise GraphError(
            f"{path}: is compiled for a board ({model.doc_string.splitlines()[0] if model.doc_string else 'Pulsar2'}); "
            "the emulator runs float ONNX models and its own; use the real `pulsar2 run`, or a board"
        )
    if path.suffix == ".axmodel" and model.producer_name != PRODUCER:
        raise GraphError(f"{path}: producer is `{model.producer_name}`, wanted `{PRODUCER}` of an emulated .axmodel")
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(tensor_spec(value) for value in model.graph.input if value.name not in constants)
    outputs = tuple(tensor_spec(value) for value in model.graph.output)
    del model  # a gigabyte, which the session reads anew
    # Higher levels replace 8-bit nodes by integer kernels that round differently: 38 dB against the graph as written.
    options = session_options(onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC)
    with runtime_errors(str(path)):
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]), inputs, outputs


def _lines(listing: Path | None) -> list[str]:
    """The names in *listing*; one empty name if there is no list."""
    if listing is None:
        return [""]
    try:
        lines = [line.strip() for line in lines_of(read_text(listing, most_bytes=MOST_JSON_BYTES))]
    except UnreadableFile as error:
        raise RunError(f"{error} `--list` takes a text file, one name per line.") from error
    outside = [line for line in lines if Path(line).is_absolute() or ".." in Path(line).parts]
    if outside:
        raise RunError(f"{listing}: {outside[0]}: wanted names of subdirectories of input_dir")
    return [line for line in lines if line]


def _read(path: Path, spec: TensorSpec) -> np.ndarray:
    wanted = int(np.prod(spec.shape)) * spec.dtype.itemsize
    if not path.is_file() or path.stat().st_size != wanted:
        found = f"{path.stat().st_size} bytes" if path.is_file() else "no such file"
        raise RunError(f"{path}: {found}, wanted {wanted} bytes of {spec.dtype} {list(spec.shape)} for {spec.name}")
    return np.fromfile(path, spec.dtype).reshape(spec.shape)


def _write_random(directory: Path, inputs: tuple[TensorSpec, ...]) -> None:
    """Random inputs, the same ones every time: normally distributed, or small integers."""
    generator = np.random.default_rng(0)
    directory.mkdir(parents=True, exist_ok=True)
    for spec in inputs:
        floats = spec.dtype.kind == "f"
        values = generator.standard_normal(spec.shape) if floats else generator.integers(0, RANDOM_IDS, spec.shape)
        values.astype(spec.dtype).tofile(directory / bin_name(spec.name))
