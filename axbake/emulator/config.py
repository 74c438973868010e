"""The build configuration as the emulator takes it: read, checked against the documentation, made into data classes.

What is documented but not emulated is refused by name as soon as it is set to anything but its default, except hints
that cannot change the emulated result: those are listed in `BuildConfig.without_effect`, for the log.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import json5

from axbake.emulator.fields import MESSAGES, ROOT, Field, combination_problems, nearest, problems, settings
from axbake.errors import AxbakeError

ALL = "DEFAULT"  # as a tensor name: every input without an entry of its own; as start and end tensor: the whole graph

EMULATED = {
    "input",
    "output_dir",
    "output_name",
    "work_dir",
    "target_hardware",
    "npu_mode",
    "onnx_opt.enable_onnxsim",
    "quant.conv_bias_data_type",
    "input_processors.tensor_name",
    "input_processors.tensor_format",
    "input_processors.src_format",
    "input_processors.src_dtype",
    "input_processors.mean",
    "input_processors.std",
    *(f"quant.input_configs.{name}" for name in MESSAGES["InputQuantConfig"]),
    *(f"quant.layer_configs.{name}" for name in MESSAGES["LayerConfig"]),
}

# Checks, reports, schedules, devices: they decide how long a compile takes or what it tells, not what a model computes.
WITHOUT_EFFECT = {
    *(f"onnx_opt.{name}" for name in MESSAGES["OnnxOptimizeOption"] if name != "enable_onnxsim"),
    "quant.precision_analysis",
    "quant.precision_analysis_method",
    "quant.precision_analysis_mode",
    "quant.input_sample_dir",
    "quant.check",
    "quant.device",
    # Parameters of methods that are refused themselves:
    "quant.smooth_quant_threshold",
    "quant.smooth_quant_strength",
    "quant.finetune_epochs",
    "quant.finetune_block_size",
    "quant.finetune_batch_size",
    "quant.finetune_lr",
    *(
        f"compiler.{name}"
        for name in MESSAGES["CompilerConfig"]
        if name not in ("static_batch_sizes", "start_tensor_names", "end_tensor_names")
    ),
    "debug.dump_frontend_graph",
    # Belong to an output that keeps its dtype and layout, which are what is refused:
    "output_processors.tensor_name",
}

HASH_COMMENT = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|//[^\n]*|/\*.*?\*/)|\#""", re.DOTALL)


class Pulsar2ConfigError(AxbakeError):
    """The configuration does not fit Pulsar2's documentation; the text lists every fault."""


class NotEmulatedError(Pulsar2ConfigError):
    """The configuration asks for something that Pulsar2 does and the emulator does not."""


ConfigError = Pulsar2ConfigError  # until `axbake.toolchain.build_config` says it by its name


@dataclass(frozen=True)
class InputCalibration:
    """Where the calibration samples of one input lie (`quant.input_configs`)."""

    tensor_name: str  # or `DEFAULT`
    dataset: Path
    format: str  # Image, Numpy, Binary, NumpyObject
    size: int  # samples; -1: all
    mean: tuple[float, ...]  # one a channel, in units of the picture's 0 to 255; () for none
    std: tuple[float, ...]


@dataclass(frozen=True)
class LayerRule:
    """One entry of `quant.layer_configs`; a data type that is None is left to the entries of lower priority."""

    path: str  # in the configuration, for messages
    layer_names: tuple[str, ...]
    op_types: tuple[str, ...]
    start_tensors: tuple[str, ...]
    end_tensors: tuple[str, ...]
    data_type: str | None
    output_data_type: str | None
    weight_data_type: str | None


@dataclass(frozen=True)
class InputProcessor:
    """What the compiled model takes at run time for one input (`input_processors`)."""

    tensor_name: str  # or `DEFAULT`
    tensor_format: str  # BGR, RGB, GRAY
    src_dtype: str | None  # None: not said
    mean: tuple[float, ...] | None  # None: not said, hence as in the calibration
    std: tuple[float, ...] | None


@dataclass(frozen=True)
class BuildConfig:
    """A checked configuration of one build."""

    input: Path
    output_dir: Path
    output_name: str
    work_dir: Path
    target_hardware: str
    npu_mode: str
    simplify: bool
    conv_bias_data_type: str  # S32, FP32
    inputs: tuple[InputCalibration, ...]
    layers: tuple[LayerRule, ...]
    processors: tuple[InputProcessor, ...]
    without_effect: tuple[str, ...]  # paths of set hints
    values: Mapping[str, Any]  # as read, with the command line's flags merged in


Entry = TypeVar("Entry", InputCalibration, InputProcessor)


def read_config(path: Path) -> dict[str, Any]:
    """The values of the JSON file *path*, which may hold `//`, `/* */` and `#` comments and trailing commas."""
    if path.suffix.lower() in (".yaml", ".yml", ".toml", ".prototxt"):
        raise NotEmulatedError(
            f"{path}: the emulator reads JSON configurations only; give a .json file or use the real Pulsar2"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Pulsar2ConfigError(f"{path}: cannot be read ({error}); `--config` wants a JSON file") from error
    try:
        values = json5.loads(HASH_COMMENT.sub(lambda match: match[1] or "//", text), allow_duplicate_keys=False)
    except ValueError as error:
        raise Pulsar2ConfigError(f"{path}: is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise Pulsar2ConfigError(f"{path}: holds a {type(values).__name__}, wanted an object of {ROOT}")
    return values


def merged(values: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """*values* with the command line's *flags* (dotted paths) laid over them."""
    result = dict(values)
    for path, value in flags.items():
        *sections, name = path.split(".")
        if not sections:
            result[name] = value
            continue
        section = result.get(sections[0], {})
        if isinstance(section, dict):  # otherwise `build_config` names the fault
            result[sections[0]] = {**section, name: value}
    return result


def build_config(values: Mapping[str, Any]) -> BuildConfig:
    """The configuration that *values* describe.

    Raises:
        Pulsar2ConfigError: with all faults at once, if anything does not fit the documentation.
        NotEmulatedError: with all of them at once, if something is set that the emulator does not do.
    """
    faults = problems(values) or combination_problems(values) + _value_faults(values)
    if faults:
        raise Pulsar2ConfigError("\n".join(faults))
    refused = [
        f"{path}: the emulator does not do {value!r}; leave it out or use the real Pulsar2"
        for path, field, value in settings(values)
        if not _is_emulated(path, field, value)
    ]
    refused += _colour_refusals(values)
    if refused:
        raise NotEmulatedError("\n".join(refused))
    quant = values.get("quant", {})
    output_dir = Path(values["output_dir"])
    return BuildConfig(
        input=Path(values["input"]),
        output_dir=output_dir,
        output_name=values.get("output_name") or "compiled.axmodel",
        work_dir=Path(values.get("work_dir") or output_dir),
        target_hardware=values.get("target_hardware", "AX650"),
        npu_mode=values.get("npu_mode", "NPU1"),
        simplify=bool(values.get("onnx_opt", {}).get("enable_onnxsim", False)),
        conv_bias_data_type=quant.get("conv_bias_data_type", "S32"),
        inputs=tuple(_input_calibration(entry) for entry in quant["input_configs"]),
        layers=tuple(_layer_rule(index, entry) for index, entry in enumerate(quant.get("layer_configs", []))),
        processors=tuple(_processor(entry) for entry in values.get("input_processors", [])),
        without_effect=tuple(
            path for path, field, value in settings(values) if _is_hint(path) and value != field.resting
        ),
        values=values,
    )


def _plain(path: str) -> str:
    return re.sub(r"\[\d+\]", "", path)


def _is_hint(path: str) -> bool:
    plain = _plain(path)
    return plain in WITHOUT_EFFECT or plain.startswith(("compiler.sub_configs.", "compiler.compiler_group_patterns."))


def _is_emulated(path: str, field: Field, value: object) -> bool:
    if _plain(path) == "compiler.max_dynamic_batch_size":
        return value in (0, 1)
    return _plain(path) in EMULATED or _is_hint(path) or value == field.resting


def _value_faults(values: Mapping[str, Any]) -> list[str]:
    """Faults of values whose type is right."""
    faults = []
    configs = values.get("quant", {}).get("input_configs", [])
    if not configs:
        faults.append("quant.input_configs: missing; a build wants calibration data for every input")
    for index, entry in enumerate(configs):
        path, size = f"quant.input_configs[{index}]", entry.get("calibration_size", 32)
        if size != -1 and size < 1:
            faults.append(f"{path}.calibration_size: found {size}, wanted at least 1, or -1 for all samples")
        normed = entry.get("calibration_mean") or entry.get("calibration_std")
        if normed and entry.get("calibration_format", "Image") != "Image":
            faults.append(
                f"{path}: calibration_mean and calibration_std are documented for pictures; store arrays as the ONNX "
                "input takes them, and set `input_processors.mean` and `.std` if the run time is to normalise"
            )
        faults += _norm_faults(path, entry.get("calibration_mean"), entry.get("calibration_std"), "calibration_")
    for index, entry in enumerate(values.get("input_processors", [])):
        faults += _norm_faults(f"input_processors[{index}]", entry.get("mean"), entry.get("std"), "")
    for path, entries in (("quant.input_configs", configs), ("input_processors", values.get("input_processors", []))):
        names = [entry["tensor_name"] for entry in entries]
        twice = sorted({name for name in names if names.count(name) > 1})
        faults += [f"{path}: two entries for `{name}`; keep one" for name in twice]
    if "/" in values.get("output_name", "") or values.get("output_name") in (".", ".."):
        faults.append(
            f"output_name: found {values['output_name']!r}, wanted a file name; the directory is `output_dir`"
        )
    return faults


def _norm_faults(path: str, mean: list[float] | None, std: list[float] | None, prefix: str) -> list[str]:
    faults = []
    if mean and std and len(mean) != len(std):
        faults.append(
            f"{path}: {len(mean)} values in {prefix}mean, {len(std)} in {prefix}std; wanted as many of either"
        )
    if any(value == 0 or math.isnan(value) for value in std or ()):
        faults.append(f"{path}.{prefix}std: found {std}, wanted no zero in it: it divides")
    return faults


def _colour_refusals(values: Mapping[str, Any]) -> list[str]:
    """A run-time colour order other than the model's own would want a conversion inside the compiled model."""
    refused = []
    for index, entry in enumerate(values.get("input_processors", [])):
        source, own = entry.get("src_format", "AutoColorSpace"), _tensor_format(entry)
        if source not in ("AutoColorSpace", own):
            refused.append(
                f"input_processors[{index}].src_format: the emulator does not convert {source} to the model's {own}; "
                "set src_format as tensor_format or use the real Pulsar2"
            )
    return refused


def _tensor_format(entry: Mapping[str, Any]) -> str:
    """AutoColorSpace is BGR, as in the examples of Pulsar2's documentation."""
    found = entry.get("tensor_format", "AutoColorSpace")
    return "BGR" if found == "AutoColorSpace" else found


def _input_calibration(entry: Mapping[str, Any]) -> InputCalibration:
    return InputCalibration(
        tensor_name=entry["tensor_name"],
        dataset=Path(entry["calibration_dataset"]),
        format=entry.get("calibration_format", "Image"),
        size=entry.get("calibration_size", 32),
        mean=tuple(map(float, entry.get("calibration_mean", []))),
        std=tuple(map(float, entry.get("calibration_std", []))),
    )


def _layer_rule(index: int, entry: Mapping[str, Any]) -> LayerRule:
    def names(single: str, several: str) -> tuple[str, ...]:
        return (entry[single],) if entry.get(single) else tuple(entry.get(several, []))

    return LayerRule(
        path=f"quant.layer_configs[{index}]",
        layer_names=names("layer_name", "layer_names"),
        op_types=names("op_type", "op_types"),
        start_tensors=tuple(entry.get("start_tensor_names", [])),
        end_tensors=tuple(entry.get("end_tensor_names", [])),
        data_type=entry.get("data_type"),
        output_data_type=entry.get("output_data_type"),
        weight_data_type=entry.get("weight_data_type"),
    )


def _processor(entry: Mapping[str, Any]) -> InputProcessor:
    return InputProcessor(
        tensor_name=entry["tensor_name"],
        tensor_format=_tensor_format(entry),
        src_dtype=entry.get("src_dtype"),
        mean=tuple(map(float, entry["mean"])) if entry.get("mean") else None,
        std=tuple(map(float, entry["std"])) if entry.get("std") else None,
    )


def entry_for(entries: tuple[Entry, ...], name: str) -> Entry | None:
    """The entry of input *name*, or else the one called `DEFAULT`."""
    by_name = {entry.tensor_name: entry for entry in entries}
    return by_name.get(name, by_name.get(ALL))


def check_input_names(config: BuildConfig, inputs: tuple[str, ...]) -> None:
    """Raise Pulsar2ConfigError unless every entry names an input of the model, and every input has calibration data."""
    entries = [("quant.input_configs", entry.tensor_name) for entry in config.inputs]
    entries += [("input_processors", entry.tensor_name) for entry in config.processors]
    faults = [
        f"{path}: the model has no input `{name}`{nearest(name, inputs)}"
        for path, name in entries
        if name != ALL and name not in inputs
    ]
    faults += [
        f"quant.input_configs: no entry for the model's input `{name}`, and none called `{ALL}`"
        for name in inputs
        if entry_for(config.inputs, name) is None
    ]
    if faults:
        raise Pulsar2ConfigError("\n".join(faults))
