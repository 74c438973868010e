"""The build configuration as the emulator takes it: read, checked against the documentation, made into data classes.

Each documented field is emulated, or cannot change what the emulator computes, or is refused with a reason. Of the second
kind, those that are set are listed in `BuildConfig.notes`, for the log.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import json5

from axbake.emulator.fields import MESSAGES, ROOT, Setting, combination_problems, nearest, problems, settings
from axbake.errors import AxbakeError
from axbake.users_files import MOST_JSON_BYTES, UnreadableFile, read_text

ALL = "DEFAULT"  # as a tensor name: every input without an entry of its own; as start and end tensor: the whole graph

EMULATED = {
    "input",
    "output_dir",
    "output_name",
    "work_dir",
    "target_hardware",
    "npu_mode",
    "input_shapes",  # that are the graph's own: `check_input_shapes`
    "onnx_opt.enable_onnxsim",
    "quant.calibration_method",  # but KL
    "quant.conv_bias_data_type",
    "quant.enable_smooth_quant",
    "quant.smooth_quant_threshold",
    "quant.smooth_quant_strength",
    "input_processors.tensor_name",
    "input_processors.tensor_format",
    "input_processors.tensor_layout",
    "input_processors.src_layout",
    "input_processors.src_dtype",
    "input_processors.mean",
    "input_processors.std",
    *(f"quant.input_configs.{name}" for name in MESSAGES["InputQuantConfig"]),
    *(f"quant.layer_configs.{name}" for name in MESSAGES["LayerConfig"]),
}

_OF_THE_COMPILER = {
    name for name in MESSAGES["CompilerConfig"] if MESSAGES["CompilerConfig"][name].kind not in MESSAGES
}
_OF_BATCHES = {"static_batch_sizes", "max_dynamic_batch_size"}
_OF_SUBGRAPHS = {"start_tensor_names", "end_tensor_names"}

# Checks, reports, schedules, devices: they decide how long a compile takes or what it says, not what a model computes.
WITHOUT_EFFECT = {
    *(f"onnx_opt.{name}" for name in MESSAGES["OnnxOptimizeOption"] if name != "enable_onnxsim"),
    "quant.precision_analysis",
    "quant.precision_analysis_method",
    "quant.precision_analysis_mode",
    "quant.input_sample_dir",
    "quant.check",
    "quant.device",
    # The emulator refines no scales, except where a bias would overflow (`axbake.emulator.encoding.widened_scales`).
    "quant.disable_auto_refine_scale",
    # 32 bits are finer than the float32 in which the emulator computes a LayerNormalization's scale.
    "quant.ln_scale_data_type",
    # Parameters of methods that are refused themselves:
    "quant.finetune_epochs",
    "quant.finetune_block_size",
    "quant.finetune_batch_size",
    "quant.finetune_lr",
    # Of a source in YUV alone, which is refused itself:
    "input_processors.csc_mode",
    "input_processors.csc_mat",
    # Of a padding, which is refused itself:
    "input_processors.padding_mode",
    "input_processors.padding_constant_value",
    # Of an output that keeps its dtype and order of axes, which are what is refused:
    "output_processors.tensor_name",
    "output_processors.tensor_layout",
    *(f"compiler.{name}" for name in _OF_THE_COMPILER - _OF_BATCHES - _OF_SUBGRAPHS),
    *(f"compiler.sub_configs.{name}" for name in _OF_THE_COMPILER - _OF_BATCHES),
    *(f"compiler.compiler_group_patterns.{name}" for name in ("type", "match_mode")),
    *(f"compiler.compiler_group_patterns.nodes.{name}" for name in MESSAGES["Node"]),
    "debug.dump_frontend_graph",
}

_PATCH = "it changes the graph; change it where it is exported"
_BATCH = "its models have the graph's own batch size"
REFUSED = {
    "model_type": "it takes float32 ONNX models only",
    "quant.highest_mix_precision": "which layers it makes finer is not documented",
    "quant.refine_weight_threshold": "what becomes of weights below it is not documented; -1 turns it off",
    "quant.transformer_opt_level": "what its levels change is not documented",
    "quant.enable_easy_quant": "how it searches for scales is not documented",
    "quant.disable_quant_optimization": "which operators are merged without it is not documented",
    **{f"quant.enable_{method}": "it trains no weights" for method in ("brecq", "lsq", "adaround")},
    "input_processors.src_format": "it does not convert from YUV or raw data",
    "input_processors.src_extra_shapes.shape": "its models have one size",
    "input_processors.padding": "its models take inputs of the graph's own size",
    "input_processors.slicing": "its models take inputs of the graph's own size",
    "input_processors.scale": "its models take an integer as the number that it is",
    "input_processors.zeropoint": "its models take an integer as the number that it is",
    "output_processors.dst_perm": "its models give outputs in the graph's own order of axes",
    "output_processors.output_dtype": "its models give outputs of the graph's own type",
    **{f"const_processors.{name}": _PATCH for name in MESSAGES["ConstProcessor"]},
    **{f"{place}op_processors.{name}": _PATCH for place in ("", "quant_") for name in MESSAGES["OpProcessor"]},
    **{f"compiler.{name}": "Pulsar2 takes it in compiler.sub_configs alone" for name in _OF_SUBGRAPHS},
    **{f"compiler.{place}{name}": _BATCH for place in ("", "sub_configs.") for name in _OF_BATCHES},
}

# Values of emulated fields that are refused.
REFUSED_VALUES = {
    ("quant.calibration_method", "KL"): "it is for symmetric encodings, and activations are not encoded so",
}

# Values of refused fields that change nothing, so that they are accepted.
HARMLESS: dict[str, Callable[[Setting], bool]] = {
    "quant.refine_weight_threshold": lambda setting: setting.value in (-1, 0),
    "input_processors.src_format": lambda setting: setting.value in ("BGR", "RGB", "GRAY"),
    "input_processors.padding": lambda setting: not any(setting.value),
    "input_processors.slicing": lambda setting: not any(setting.value),
    "input_processors.scale": lambda setting: setting.value == 1 and not setting.siblings.get("zeropoint"),
    "input_processors.zeropoint": lambda setting: not setting.siblings.get("scale"),
    "output_processors.dst_perm": lambda setting: setting.value == sorted(setting.value),
    **{
        f"compiler.{place}{name}": lambda setting: setting.value in (1, [1])
        for place in ("", "sub_configs.")
        for name in _OF_BATCHES
    },
}

HASH_COMMENT = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|//[^\n]*|/\*.*?\*/)|\#""", re.DOTALL)


class Pulsar2ConfigError(AxbakeError):
    """The configuration does not match Pulsar2's documentation; the text lists every mistake."""


class NotEmulatedError(Pulsar2ConfigError):
    """The configuration needs something that Pulsar2 supports but the emulator does not."""


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
    tensor_layout: str  # NCHW, NHWC: of the ONNX model's input
    src_layout: str  # the same at run time
    src_dtype: str | None  # None: not said
    mean: tuple[float, ...] | None  # None: not said, hence as in the calibration
    std: tuple[float, ...] | None


@dataclass(frozen=True)
class Smoothing:
    """How SmoothQuant moves outliers: `quant.smooth_quant_*`, or else the values of the documentation's complete example."""

    threshold: float = 0.2  # 0 to 1; the larger, the more operators
    strength: float = 0.6  # 0 to 1; the larger, the more of an outlier goes into the weights


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
    calibration_method: str  # MinMax, Percentile, MSE
    conv_bias_data_type: str  # S32, FP32
    smoothing: Smoothing | None
    inputs: tuple[InputCalibration, ...]
    layers: tuple[LayerRule, ...]
    processors: tuple[InputProcessor, ...]
    input_shapes: Mapping[str, tuple[int, ...]]  # that the graph's inputs are to have; those not named: any
    notes: tuple[str, ...]  # what is set and changes nothing: a sentence each
    values: Mapping[str, Any]  # as read, with the command line's flags merged in


Entry = TypeVar("Entry", InputCalibration, InputProcessor)


def read_config(path: Path) -> dict[str, Any]:
    """The values of the JSON file *path*, which may hold `//`, `/* */` and `#` comments and trailing commas."""
    if path.suffix.lower() in (".yaml", ".yml", ".toml", ".prototxt"):
        raise NotEmulatedError(
            f"{path}: the emulator reads JSON configurations only; give a .json file or use the real Pulsar2"
        )
    try:
        text = read_text(path, most_bytes=MOST_JSON_BYTES)
    except UnreadableFile as error:
        raise Pulsar2ConfigError(f"{error} `--config` takes a JSON file.") from error
    try:
        values = json5.loads(HASH_COMMENT.sub(lambda match: match[1] or "//", text), allow_duplicate_keys=False)
    except ValueError as error:
        raise Pulsar2ConfigError(f"{path}: is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise Pulsar2ConfigError(f"{path}: holds a {type(values).__name__}, wanted an object of {ROOT}")
    if "cfg" in values and "toolchain_version" in values:
        raise Pulsar2ConfigError(
            f"{path}: is the record of a build (`build_context.json`), wanted a configuration; the build's "
            "configuration is the object `cfg` in it: save that as a separate file"
        )
    return values


def merged(values: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """*values* with the command line's *flags* (dotted paths) in place of them."""
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
    refused = [fault for setting in settings(values) if (fault := _refusal(setting))]
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
        calibration_method=quant.get("calibration_method", "MinMax"),
        conv_bias_data_type=quant.get("conv_bias_data_type", "S32"),
        smoothing=_smoothing(quant) if quant.get("enable_smooth_quant") else None,
        inputs=tuple(_input_calibration(entry) for entry in quant["input_configs"]),
        layers=tuple(_layer_rule(index, entry) for index, entry in enumerate(quant.get("layer_configs", []))),
        processors=tuple(_processor(entry) for entry in values.get("input_processors", [])),
        input_shapes=_shapes(values.get("input_shapes", "")) or {},
        notes=tuple(note for setting in settings(values) if (note := _note(setting))),
        values=values,
    )


def _refusal(setting: Setting) -> str | None:
    """Why the emulator does not do *setting*; None if it does, or if it changes nothing."""
    path, said = _plain(setting.path), f"{setting.path}: the emulator does not do {setting.value!r}"
    if not setting.is_set or path in WITHOUT_EFFECT:
        return None
    if setting.is_undocumented:
        return f"{said}, which Pulsar2's documentation does not have; leave it out or use the real Pulsar2"
    if path in EMULATED and not setting.field.repeated and (path, setting.value) in REFUSED_VALUES:
        return f"{said}: {REFUSED_VALUES[path, setting.value]}; leave it out or use the real Pulsar2"
    if path in EMULATED or (path in HARMLESS and HARMLESS[path](setting)):
        return None
    return f"{said}: {REFUSED[path]}; leave it out or use the real Pulsar2"


def _note(setting: Setting) -> str | None:
    """What to say once of a *setting* that is accepted and changes nothing."""
    path, value, siblings = _plain(setting.path), setting.value, setting.siblings
    if not setting.is_set:
        return None
    if path == "input_processors.src_format":
        own = _tensor_format(siblings)
        return f"{setting.path}: {value} is not made {own}: Pulsar2 swaps no channels" if value != own else None
    if path in ("quant.input_configs.calibration_mean", "quant.input_configs.calibration_std"):
        if siblings.get("calibration_format", "Image") == "Image" or set(value) <= {0 if path.endswith("mean") else 1}:
            return None
        return f"{setting.path}: samples are used unchanged; the compiled model's input is normalised by it"
    if path.startswith("quant.smooth_quant_") and not siblings.get("enable_smooth_quant"):
        return f"{setting.path}: accepted, without effect, since quant.enable_smooth_quant is not set"
    if path in WITHOUT_EFFECT or path in HARMLESS:
        return f"{setting.path}: accepted, without effect on an emulated model"
    return None


def _plain(path: str) -> str:
    """*path* without indices; a compiler's sub_configs within sub_configs, and their patterns, count as its own."""
    plain = re.sub(r"\[\d+\]", "", path)
    plain = re.sub(r"(sub_configs\.)+", "sub_configs.", plain)
    return plain.replace("sub_configs.compiler_group_patterns.", "compiler_group_patterns.")


def _shapes(text: str) -> dict[str, tuple[int, ...]] | None:
    """The shapes that `input_shapes` gives, by input; None if *text* is not of its form."""
    found = {}
    for part in filter(None, text.split(";")):
        name, _, sizes = part.strip().rpartition(":")
        if not name or not re.fullmatch(r"\d+(x\d+)*", sizes):
            return None
        found[name] = tuple(map(int, sizes.split("x")))
    return found


def _value_faults(values: Mapping[str, Any]) -> list[str]:
    """Faults of values whose type is right."""
    faults = []
    configs = values.get("quant", {}).get("input_configs", [])
    if not configs:
        faults.append("quant.input_configs: missing; a build needs calibration data for every input")
    for name in ("smooth_quant_threshold", "smooth_quant_strength"):
        value = values.get("quant", {}).get(name, 0)
        if not 0 <= value <= 1:
            faults.append(f"quant.{name}: found {value}, wanted 0 to 1")
    for index, entry in enumerate(configs):
        path, size = f"quant.input_configs[{index}]", entry.get("calibration_size", 32)
        if size != -1 and size < 1:
            faults.append(f"{path}.calibration_size: found {size}, wanted at least 1, or -1 for all samples")
        faults += _norm_faults(path, entry.get("calibration_mean"), entry.get("calibration_std"), "calibration_")
    for index, entry in enumerate(values.get("input_processors", [])):
        faults += _norm_faults(f"input_processors[{index}]", entry.get("mean"), entry.get("std"), "")
    for path, entries in (("quant.input_configs", configs), ("input_processors", values.get("input_processors", []))):
        names = [entry["tensor_name"] for entry in entries]
        twice = sorted({name for name in names if names.count(name) > 1})
        faults += [f"{path}: two entries for `{name}`; keep one" for name in twice]
    if _shapes(values.get("input_shapes", "")) is None:
        found = values["input_shapes"]
        faults.append(f"input_shapes: found {found!r}, wanted `name:1x3x224x224`, several joined by `;`")
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


def _tensor_format(entry: Mapping[str, Any]) -> str:
    """AutoColorSpace is BGR, as in the examples of Pulsar2's documentation."""
    found = entry.get("tensor_format", "AutoColorSpace")
    return "BGR" if found == "AutoColorSpace" else found


def _smoothing(quant: Mapping[str, Any]) -> Smoothing:
    said = {name: quant.get(f"smooth_quant_{name}") for name in ("threshold", "strength")}
    return Smoothing(**{name: float(value) for name, value in said.items() if value is not None})


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
        tensor_layout=entry.get("tensor_layout", "NCHW"),
        src_layout=entry.get("src_layout", "NCHW"),
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


def check_input_shapes(config: BuildConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise an error unless `input_shapes` says what the graph's inputs have, *shapes*: the emulator resizes no graph."""
    unknown = [name for name in config.input_shapes if name not in shapes]
    if unknown:
        raise Pulsar2ConfigError(
            "\n".join(f"input_shapes: the model has no input `{name}`{nearest(name, shapes)}" for name in unknown)
        )
    differing = [
        f"input_shapes: {name} is {_sizes(shapes[name])} in the graph, and is to be {_sizes(wanted)}: the emulator resizes "
        "no graph; export it at that size, or leave input_shapes out"
        for name, wanted in config.input_shapes.items()
        if wanted != shapes[name]
    ]
    if differing:
        raise NotEmulatedError("\n".join(differing))


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
