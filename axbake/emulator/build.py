"""`build`: a float32 ONNX model and calibration samples in, an emulated `.axmodel` in Pulsar2's output layout out."""

import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from axbake import __version__
from axbake.emulator import PRODUCER
from axbake.emulator.calibration import Calibration, Span, calibrate
from axbake.emulator.calibration_data import count_samples, per_channel, samples, sources
from axbake.emulator.config import (
    BuildConfig,
    build_config,
    check_input_names,
    check_input_shapes,
    entry_for,
    merged,
    read_config,
)
from axbake.emulator.dtypes import DTYPES
from axbake.emulator.fields import MESSAGES
from axbake.emulator.graph import Graph, GraphError, TensorSpec, load_graph
from axbake.emulator.precision import Precision, idle_output_types, resolve_precision, unmatched_op_types
from axbake.emulator.quantize import DOMAIN, Quantiser, Record
from axbake.emulator.smoothing import smooth
from axbake.emulator.writer import ModelWriter, written_beside

log = logging.getLogger("axbake.emulator")

VERSION = f"emulated (axbake {__version__})"
EMULATED = (
    "Emulated: made by axbake's host emulator of AXERA's Pulsar2. A QDQ graph for ONNX Runtime on a host; it has no "
    "NPU program and cannot run on a board."
)

LAYOUTS = {"NHWC": (0, 2, 3, 1), "NCHW": (0, 3, 1, 2)}  # axes of the other one, in the order of this
TYPE_NAMES = {helper.np_dtype_to_tensor_dtype(dtype): name for name, dtype in DTYPES.items()}
TYPE_NAMES |= {TensorProto.INT64: "S64", TensorProto.BOOL: "BOOL"}


def build(config_file: Path | None, flags: Mapping[str, Any]) -> None:
    """Build what *config_file* and the command line's *flags* (dotted paths) say.

    `build_context.json` is written also when it fails, as Pulsar2 does, if only the output directory is known.
    """
    context: dict[str, Any] = {
        "toolchain_version": VERSION,
        "toolchain_commit": "",
        "emulated": True,
        "build_start": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": "UnknownError",
        "error_msg": "",
        "output_dir": flags.get("output_dir", ""),
    }
    begun = time.monotonic()
    log.info("axbake emulator of Pulsar2, %s: its models run on hosts only", VERSION)
    try:
        values = merged(read_config(config_file) if config_file else {}, flags)
        context |= {"cfg": values, "output_dir": values.get("output_dir", "")}
        config = build_config(values)
        config.output_dir.mkdir(parents=True, exist_ok=True)
        config.work_dir.mkdir(parents=True, exist_ok=True)
        context |= _build(config)
        context["code"] = "Success"
    except Exception as error:
        context["error_msg"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        context["build_time"] = round(time.monotonic() - begun, 1)  # seconds
        if isinstance(context["output_dir"], str) and context["output_dir"]:
            _write_json(Path(context["output_dir"]) / "build_context.json", context)
    log.info(
        "built %s in %.0f s: emulated, not for a board", config.output_dir / config.output_name, context["build_time"]
    )


def _build(config: BuildConfig) -> dict[str, Any]:
    """Build, and give what `build_context.json` says of it."""
    for note in config.notes:
        log.info("%s", note)
    log.info("Building onnx")
    graph = load_graph(config.input, config.simplify)
    check_input_names(config, tuple(spec.name for spec in graph.inputs))
    check_input_shapes(config, {spec.name: spec.shape for spec in graph.inputs})
    precision = resolve_precision(graph, config.layers)
    for kind in unmatched_op_types(graph, config.layers):
        log.info("quant.layer_configs: op_type %s matches no node of this model", kind)
    for path in idle_output_types(graph, config.layers):
        log.info("%s: without effect, since Pulsar2 takes it for Conv alone", path)
    graph, smoothed, found = _calibrate(config, graph, precision)
    output = config.output_dir / config.output_name
    outer, record = quantise_model(config, graph, found.observed, precision, output, found.clipped)
    log.info("Network Quantization Finished.")
    quant_dir = config.work_dir / "quant"
    _write_json(quant_dir / "quant_axmodel.json", asdict(record) | ({"smoothed": smoothed} if smoothed else {}))
    _report(record)
    log.info("quant.axmodel export success: %s", output)
    log.info("fuse 1 subgraph(s)")
    return {
        "target_platform": config.target_hardware,
        "input_model_size": config.input.stat().st_size,
        "compiled_model_size": output.stat().st_size,
        "input_model": str(config.input),
        "work_dir": str(config.work_dir),
        "output_model": str(output),
        "npu_mode": MESSAGES["BuildConfig"]["npu_mode"].options.index(config.npu_mode),
        "npu_mode_str": config.npu_mode,
        "model_type": "ONNX",
        "quant_dir": str(quant_dir),
        "io_info": ";".join(map(_io_info, [*outer.input, *outer.output])),
    }


def _calibrate(
    config: BuildConfig, graph: Graph, precision: tuple[Precision, ...]
) -> tuple[Graph, Mapping[str, Any], Calibration]:
    """The graph to quantise, which of its activations were smoothed, and the ranges of all."""
    found = sources(config, graph.inputs)
    total = count_samples(found)
    log.info("%d File(s) Loaded.", total)
    log.info("Quantization calibration will be executed on cpu")
    show, before = _progress(total), 0
    smoothed: Mapping[str, Any] = {}
    if config.smoothing:
        result = smooth(graph, samples(found), precision, config.smoothing, lambda done: show(1, done))
        graph, smoothed, before = result.graph, result.tensors, 1
        log.info("SmoothQuant: moved outliers of %d activations into the weights that read them", len(smoothed))
    calibration = calibrate(
        graph,
        config.calibration_method,
        lambda: samples(found),
        precision,
        lambda phase, done: show(before + phase, done),
    )
    return graph, smoothed, calibration


def _progress(total: int) -> Callable[[int, int], None]:
    """Logs lines of the form that Pulsar2's progress bar has, for the number of a pass and of its samples that are done."""
    current, begun = 1, time.monotonic()
    last = begun

    def show(phase: int, done: int) -> None:
        nonlocal current, begun, last
        if phase != current:
            current, begun = phase, last
        last = time.monotonic()
        spent = last - begun
        left, bar = spent / done * (total - done), "█" * (10 * done // total)
        clock = f"{spent // 60:02.0f}:{spent % 60:02.0f}<{left // 60:02.0f}:{left % 60:02.0f}, {spent / done:5.2f}s/it"
        share = 100 * done // total
        log.info("Calibration Progress(Phase %d): %3d%%|%-10s| %d/%d [%s]", phase, share, bar, done, total, clock)

    return show


def _report(record: Record) -> None:
    widened = {name: entry["widened_channels"] for name, entry in record.weights.items() if entry["widened_channels"]}
    log.info(
        "Quantized %d activations, %d weights, %d biases, %d other constants; kept %d tensors float",
        *(len(record.activations), len(record.weights), len(record.biases), len(record.constants)),
        len(record.float_tensors),
    )
    if widened:
        channels = sum(widened.values())
        log.info("Widened the scale of %d channels of %d weights, whose bias overflows S32", channels, len(widened))


def quantise_model(
    config: BuildConfig,
    graph: Graph,
    ranges: Mapping[str, Span],
    precision: tuple[Precision, ...],
    output: Path,
    clipped: Mapping[tuple[str, int], Span] | None = None,
) -> tuple[onnx.GraphProto, Record]:
    """Write the quantised *graph* to *output*; gives the written graph without its constants, and what was done.

    Args:
        ranges: of each float activation, as observed.
        clipped: what a calibration method made narrower (`Calibration`).
    """
    with tempfile.TemporaryFile(dir=config.work_dir) as spool, written_beside(output) as file:
        writer = ModelWriter(output, spool)
        quantiser = Quantiser(graph, Calibration(ranges, clipped or {}), precision, config.conv_bias_data_type, writer)
        inputs = [_run_time_input(config, spec, quantiser) for spec in graph.inputs]
        quantiser.run()
        inner = helper.make_graph(quantiser.nodes, graph.model.graph.name, inputs, list(graph.model.graph.output))
        model = helper.make_model(
            inner,
            producer_name=PRODUCER,
            producer_version=__version__,
            doc_string=EMULATED,
            ir_version=max(graph.model.ir_version, 8),
            opset_imports=_opsets(graph),
        )
        properties = {
            "emulated": EMULATED,
            "npu_mode": config.npu_mode,
            "target_hardware": config.target_hardware,
            "toolchain_version": VERSION,
        }
        for key in sorted(properties):
            model.metadata_props.add(key=key, value=properties[key])
        writer.finish(model, file)
    return inner, quantiser.record


def _opsets(graph: Graph) -> list[onnx.OperatorSetIdProto]:
    versions = {entry.domain: entry.version for entry in graph.model.opset_import} | {DOMAIN: 1}
    return [helper.make_opsetid(domain, versions[domain]) for domain in sorted(versions)]


def _run_time_input(config: BuildConfig, spec: TensorSpec, quantiser: Quantiser) -> onnx.ValueInfoProto:
    """The compiled model's input *spec*, and inside the nodes that make of it what the ONNX model takes.

    An integer input without `src_dtype` becomes S32: compiled models have no 64-bit inputs.
    """
    processor, calibration = entry_for(config.processors, spec.name), entry_for(config.inputs, spec.name)
    own = helper.np_dtype_to_tensor_dtype(spec.dtype)
    said = processor.src_dtype if processor else None
    source = (
        helper.np_dtype_to_tensor_dtype(DTYPES[said]) if said else {TensorProto.INT64: TensorProto.INT32}.get(own, own)
    )
    name = spec.name
    if source != own:
        inner = quantiser.fresh(f"{spec.name}/cast")
        quantiser.nodes.append(helper.make_node("Cast", [name], [inner], to=own))
        name = inner
    shape = spec.shape
    if processor and processor.src_layout != processor.tensor_layout and len(shape) == 4:
        # Only NCHW and NHWC are emulated, so each is made of the other.
        order = LAYOUTS[processor.src_layout]
        shape = tuple(shape[axis] for axis in order)
        inner = quantiser.fresh(f"{spec.name}/transposed")
        back = [order.index(axis) for axis in range(4)]
        quantiser.nodes.append(helper.make_node("Transpose", [name], [inner], perm=back))
        name = inner
    mean = (processor.mean if processor else None) or (calibration.mean if calibration else ())
    std = (processor.std if processor else None) or (calibration.std if calibration else ())
    if own == TensorProto.FLOAT:
        axis = 3 if processor and processor.tensor_layout == "NHWC" and len(spec.shape) == 4 else 1
        name = _normalised(spec, name, mean, std, axis, quantiser)
    elif any(mean) or any(value != 1 for value in std):
        raise GraphError(f"{spec.name}: mean {list(mean)}, std {list(std)}: wanted none for an input of {spec.dtype}")
    if name != spec.name:
        quantiser.rename_input(spec.name, name)
    return helper.make_tensor_value_info(spec.name, source, shape)


def _normalised(
    spec: TensorSpec, name: str, mean: tuple[float, ...], std: tuple[float, ...], axis: int, quantiser: Quantiser
) -> str:
    """Add (x - mean) / std for each channel, along *axis*; the result's name."""
    for kind, values, resting in (("Sub", mean, 0.0), ("Div", std, 1.0)):
        if all(value == resting for value in values):
            continue
        if len(spec.shape) < 2:
            raise GraphError(
                f"{spec.name}: shape {list(spec.shape)} has no channels for mean {list(mean)}, std {list(std)}"
            )
        constant, inner = quantiser.fresh(f"{spec.name}/{kind.lower()}"), quantiser.fresh(f"{spec.name}/{kind}")
        channels = per_channel(values, spec.shape[axis], resting).reshape(1, -1, *(1 for _ in spec.shape[axis + 1 :]))
        quantiser.writer.add(constant, channels.astype(np.float32))
        quantiser.nodes.append(helper.make_node(kind, [name, constant], [inner]))
        name = inner
    return name


def _io_info(value: onnx.ValueInfoProto) -> str:
    shape = ",".join(str(dim.dim_value) for dim in value.type.tensor_type.shape.dim)
    return f"{value.name}:[{shape}],{TYPE_NAMES.get(value.type.tensor_type.elem_type, '?')}"


def _write_json(path: Path, values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(path) as file:
        file.write((json.dumps(values, indent=1, default=str) + "\n").encode())
