"""Whether a compiled model computes what its float graph does: `pulsar2 run` on the host, on samples of its calibration.

The cosine that Pulsar2 prints while it quantises is of single layers and has misled people; this is the whole model, as it was
compiled, by the compiler's own simulation of the NPU (AXERA-TECH/pulsar2-docs-en, `advanced_run_guides.md`).
"""

import json
import logging
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from axbake.distance import cosine, psnr, sqnr
from axbake.emulator.calibration_data import Source, open_archive, per_channel, read_sample
from axbake.emulator.config import InputCalibration
from axbake.emulator.graph import TensorSpec, tensor_spec
from axbake.emulator.run import bin_name
from axbake.errors import AxbakeError
from axbake.runtime.progress import progress
from axbake.toolchain.axmodel import Value
from axbake.toolchain.compiled_interface import processor_of, wanted_interface
from axbake.toolchain.failures import explain
from axbake.toolchain.launch import WRITABLE, Launch, own_copy

logger = logging.getLogger(__name__)
FORMATS = {"AutoColorSpace": "BGR"}  # as Pulsar2 reads pictures by default
Feed = dict[str, np.ndarray]


class CompiledError(AxbakeError):
    """A compiled model cannot be run to measure how far it is from its graph."""


def check_compiled(
    axmodels: Sequence[Path],
    graphs: Sequence[Path],
    tensors: Sequence[Path],
    archives: Sequence[Path],
    *,
    component: str,
    configs: Sequence[dict[str, Any]],
    samples: int,
    compiler: dict[str, str],
    launch: dict[str, Any],
    check: Path,
) -> None:
    """Run compiled models by `pulsar2 run`, or the emulator's, and graphs by ONNX Runtime on the same samples, and compare.

    Where a component has several graphs, each is run on the samples that it was calibrated with, and all one after the other.

    Args:
        axmodels, graphs: in the order in which they run.
        tensors: of the graphs, beside them under the names by which they refer to them.
        archives: the samples that each was calibrated with; *samples* of them, evenly spread, are taken.
        configs: Pulsar2's of the builds, by which the samples are brought into the form that the compiled models take.
        samples: 0: nothing is run, and *check* says so.
        compiler, launch: as of `axbake.toolchain.pulsar2.compile_model`.
        check: JSON to write: per output the worst sample's SQNR, PSNR, cosine and largest error. What must be reached is
            compared by `axbake.judging`.

    Raises:
        CompiledError: `run` fails. Nothing is written then.
    """
    content: dict[str, Any] = {"component": component, "emulated": "emulator" in compiler, "samples": samples}
    if samples:
        how = Launch(**launch)
        how.check()
        each: dict[str, Any] = {}
        known: list[Feed] = []  # what the compiled models before made, sample by sample
        for axmodel, graph, archive, config in zip(axmodels, graphs, archives, configs, strict=True):
            wanted = list(_floats(graph, archive, config, samples))
            feeds, results = [feed for feed, _ in wanted], [result for _, result in wanted]
            found = _run(axmodel, graph, config, feeds, how, check.parent)
            each[graph.stem] = _distances(results, found)
            known = known or [{} for _ in feeds]
            passed = [
                feed | {n: v for n, v in made.items() if n in feed} for feed, made in zip(feeds, known, strict=True)
            ]
            if any(made.keys() & feed.keys() for feed, made in zip(feeds, known, strict=True)):
                found = _run(axmodel, graph, config, passed, how, check.parent)
            known = [made | result for made, result in zip(known, found, strict=True)]
        whole = _distances(results, found)
        content |= {"samples": len(results), "outputs": whole} | ({"graphs": each} if len(each) > 1 else {})
        for name, distance in whole.items():
            logger.info("%s: %s is %.1f dB (SQNR) from the float graph's", component, name, distance["sqnr_db"])
    check.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _floats(graph: Path, archive: Path, settings: dict[str, Any], count: int):
    """*count* samples in the form of the float graph's inputs, each with the graph's outputs."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    specs, names = _specs(graph), [output.name for output in session.get_outputs()]
    entry = settings["quant"]["input_configs"][0]
    calibration = InputCalibration(
        tensor_name=entry["tensor_name"],
        dataset=archive,
        format=entry["calibration_format"],
        size=-1,
        mean=tuple(entry.get("calibration_mean", ())),
        std=tuple(entry.get("calibration_std", ())),
    )
    order = _order(processor_of(settings.get("input_processors", []), specs[0].name), "tensor_format")
    source = Source(calibration, specs, order)
    with open_archive(archive) as opened:
        members = list(opened.sizes)
        count = min(count, len(members))
        for number in range(count):
            feed = read_sample(opened, members[number * len(members) // count], source)
            yield feed, dict(zip(names, session.run(names, feed), strict=True))


def _specs(graph: Path) -> tuple[TensorSpec, ...]:
    content = onnx.load(graph, load_external_data=False).graph
    constants = {tensor.name for tensor in content.initializer}
    return tuple(tensor_spec(value) for value in content.input if value.name not in constants)


def _order(processor: dict[str, Any], field: str) -> str:
    said = processor.get(field, "AutoColorSpace")
    return FORMATS.get(said, said)


def _run(
    axmodel: Path, graph: Path, settings: dict[str, Any], feeds: list[Feed], launch: Launch, beside: Path
) -> list[Feed]:
    """Outputs of *axmodel* for each of *feeds*, which are in the form of the float graph's inputs; works in *beside*."""
    with tempfile.TemporaryDirectory(dir=beside) as directory:
        return _run_in(Path(directory), axmodel, graph, settings, feeds, launch)


def _run_in(
    place: Path, axmodel: Path, graph: Path, settings: dict[str, Any], feeds: list[Feed], launch: Launch
) -> list[Feed]:
    inputs, outputs = wanted_interface(graph, settings)
    own_copy(axmodel, place / axmodel.name)
    for number, feed in enumerate(feeds):
        (place / "in" / str(number)).mkdir(parents=True)
        for name, value in feed.items():
            given = _as_run_time(name, value, inputs[name], settings)
            given.tofile(place / "in" / str(number) / bin_name(name))
    (place / "list.txt").write_text("".join(f"{number}\n" for number in range(len(feeds))), encoding="utf-8")
    told, finished, lines = progress("running sample"), 0, []

    def hear(line: str) -> None:
        nonlocal finished
        logger.debug("%s", line)
        lines.append(line)
        if re.search(r">>> \[.*\] finish", line):
            finished += 1
            told(finished, len(feeds))

    command = ["run", "--model", axmodel.name, "--input_dir", "in", "--output_dir", WRITABLE, "--list", "list.txt"]
    status = launch.call(command, place, hear)
    if status:
        toolchain = f"{launch.toolchain} run"
        raise CompiledError(
            explain(axmodel.stem, toolchain=toolchain, status=status, code="", said="", lines=lines[-100:])
        )
    return [_read(place / WRITABLE / str(number), outputs, settings) for number in range(len(feeds))]


def _as_run_time(name: str, value: np.ndarray, wanted: Value, settings: dict[str, Any]) -> np.ndarray:
    """*value* of the float graph's input *name* as the compiled model takes it: not yet normalised, its colours and axes in
    the run time's order, of its type."""
    processor = processor_of(settings.get("input_processors", []), name)
    entry = settings["quant"]["input_configs"][0]
    own, given = _order(processor, "tensor_format"), _order(processor, "src_format")
    if value.dtype.kind == "f" and value.ndim == 4:
        mean = processor.get("mean") or entry.get("calibration_mean") or ()
        std = processor.get("std") or entry.get("calibration_std") or ()
        value = value * per_channel(tuple(std), value.shape[1], 1.0) + per_channel(tuple(mean), value.shape[1], 0.0)
        if processor.get("src_format", "AutoColorSpace") != "AutoColorSpace" and own != given:
            if {own, given} != {"BGR", "RGB"}:
                raise CompiledError(
                    f"{name}: axbake cannot make {given} pictures from {own} samples here; set compiled/samples: 0 and "
                    "check on a board."
                )
            value = value[:, ::-1]
    if wanted.shape != value.shape:
        value = value.transpose(0, 2, 3, 1) if processor.get("src_layout") == "NHWC" else value.transpose(0, 3, 1, 2)
    if wanted.dtype.kind in "iu":
        limits = np.iinfo(wanted.dtype)
        value = np.clip(np.rint(value), limits.min, limits.max)
    return np.ascontiguousarray(value.astype(wanted.dtype))


def _read(directory: Path, outputs: dict[str, Value], settings: dict[str, Any]) -> Feed:
    found = {}
    for name, wanted in outputs.items():
        path = directory / bin_name(name)
        size = int(np.prod(wanted.shape)) * wanted.dtype.itemsize
        if not path.is_file() or path.stat().st_size != size:
            has = f"{path.stat().st_size} bytes" if path.is_file() else "no file"
            raise CompiledError(f"{name}: `pulsar2 run` left {has} in {path.name}, wanted {size} bytes of {wanted}")
        order = processor_of(settings.get("output_processors", []), name).get("dst_perm")
        value = np.fromfile(path, wanted.dtype).reshape(wanted.shape)
        found[name] = value.transpose(np.argsort(order)) if order else value
    return found


def _distances(wanted: list[Feed], found: list[Feed]) -> dict[str, dict[str, float]]:
    """Per output the worst of each figure over all samples."""
    distances = {}
    for name in wanted[0]:
        pairs = [(one[name], other[name]) for one, other in zip(wanted, found, strict=True)]
        distances[name] = {
            "sqnr_db": round(min(sqnr(*pair) for pair in pairs), 2),
            "psnr_db": round(min(psnr(*pair) for pair in pairs), 2),
            "cosine": round(min(cosine(*pair) for pair in pairs), 6),
            "largest_error": float(max(np.abs(one - other).max() for one, other in pairs)),
        }
    return distances
