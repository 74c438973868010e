"""The documented fields of a Pulsar2 build configuration, and the check of a configuration against them.

Source: AXERA-TECH/pulsar2-docs-en, `source/user_guides_config/config.md` and
`source/user_guides_advanced/advanced_build_guides.md`, of Pulsar2 7.0 (2026-07-10); `input_processors.scale`,
`.zeropoint` and `debug.dump_frontend_graph` stand in the text of the latter only. The tables say what Pulsar2 takes;
which of it the emulator does stands in `config.py`.
"""

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema

TEXT, INTEGER, NUMBER, SWITCH, ENUM, STRUCT = "text", "integer", "number", "switch", "enum", "object"
# JSON Schema's name of each kind, and what a message calls it.
TYPES = {
    TEXT: ("string", "a text"),
    INTEGER: ("integer", "an integer"),
    NUMBER: ("number", "a number"),
    SWITCH: ("boolean", "true or false"),
    STRUCT: ("object", "an object"),
}


@dataclass(frozen=True)
class Field:
    """One documented field; *kind* is one of the six kinds above, or the name of the message that it holds."""

    kind: str
    options: tuple[str, ...] = ()
    default: object = None  # None: the documentation names no value, or one that is taken from another field
    repeated: bool = False
    required: bool = False

    @property
    def resting(self) -> object:
        """The value that stands for «not set»."""
        return [] if self.repeated else self.default


DATA_TYPES = ("U8", "S8", "U16", "S16", "FP32")
ROOT = "BuildConfig"

MESSAGES: dict[str, dict[str, Field]] = {
    "BuildConfig": {
        "input": Field(TEXT, required=True),
        "output_dir": Field(TEXT, required=True),
        "output_name": Field(TEXT, default="compiled.axmodel"),
        "work_dir": Field(TEXT),
        "model_type": Field(ENUM, options=("ONNX", "QuantAxModel", "QuantONNX"), default="ONNX"),
        "target_hardware": Field(
            ENUM, options=("AX650", "AX620E", "AX615", "AX637", "AX8860", "M76H", "M57"), default="AX650"
        ),
        "npu_mode": Field(ENUM, options=("NPU1", "NPU2", "NPU3", "NPU4"), default="NPU1"),
        "input_shapes": Field(TEXT, default=""),
        "onnx_opt": Field("OnnxOptimizeOption"),
        "quant": Field("QuantConfig"),
        "input_processors": Field("InputProcessor", repeated=True),
        "output_processors": Field("OutputProcessor", repeated=True),
        "const_processors": Field("ConstProcessor", repeated=True),
        "op_processors": Field("OpProcessor", repeated=True),
        "quant_op_processors": Field("OpProcessor", repeated=True),
        "compiler": Field("CompilerConfig"),
        "debug": Field("DebugConfig"),
    },
    "OnnxOptimizeOption": {
        "disable_onnx_optimization": Field(SWITCH, default=False),
        "enable_onnxsim": Field(SWITCH, default=False),
        "model_check": Field(SWITCH, default=False),
        "disable_transformation_check": Field(SWITCH, default=False),
        "save_tensors_data": Field(SWITCH, default=False),
    },
    "QuantConfig": {
        "input_configs": Field("InputQuantConfig", repeated=True),
        "layer_configs": Field("LayerConfig", repeated=True),
        "calibration_method": Field(ENUM, options=("MinMax", "Percentile", "MSE", "KL"), default="MinMax"),
        "precision_analysis": Field(SWITCH, default=False),
        "precision_analysis_method": Field(ENUM, options=("PerLayer", "EndToEnd"), default="PerLayer"),
        "precision_analysis_mode": Field(ENUM, options=("Reference", "NPUBackend"), default="Reference"),
        "highest_mix_precision": Field(SWITCH, default=False),
        "conv_bias_data_type": Field(ENUM, options=("S32", "FP32"), default="S32"),
        "refine_weight_threshold": Field(NUMBER, default=1e-06),
        "enable_smooth_quant": Field(SWITCH, default=False),
        "smooth_quant_threshold": Field(NUMBER),
        "smooth_quant_strength": Field(NUMBER),
        "transformer_opt_level": Field(INTEGER, default=0),
        "input_sample_dir": Field(TEXT, default=""),
        "ln_scale_data_type": Field(ENUM, options=("FP32", "S32", "U32"), default="FP32"),
        "check": Field(INTEGER, default=0),
        "disable_auto_refine_scale": Field(SWITCH, default=False),
        "enable_easy_quant": Field(SWITCH, default=False),
        "disable_quant_optimization": Field(SWITCH, default=False),
        "enable_brecq": Field(SWITCH, default=False),
        "enable_lsq": Field(SWITCH, default=False),
        "enable_adaround": Field(SWITCH, default=False),
        "finetune_epochs": Field(INTEGER, default=500),
        "finetune_block_size": Field(INTEGER, default=4),
        "finetune_batch_size": Field(INTEGER, default=1),
        "finetune_lr": Field(NUMBER, default=0.001),
        "device": Field(TEXT, default="cpu"),
    },
    "InputQuantConfig": {
        "tensor_name": Field(TEXT, required=True),
        "calibration_dataset": Field(TEXT, required=True),
        "calibration_format": Field(ENUM, options=("Image", "Numpy", "Binary", "NumpyObject"), default="Image"),
        "calibration_size": Field(INTEGER, default=32),
        "calibration_mean": Field(NUMBER, repeated=True),
        "calibration_std": Field(NUMBER, repeated=True),
    },
    "LayerConfig": {
        "layer_name": Field(TEXT, default=""),
        "op_type": Field(TEXT, default=""),
        "start_tensor_names": Field(TEXT, repeated=True),
        "end_tensor_names": Field(TEXT, repeated=True),
        "data_type": Field(ENUM, options=DATA_TYPES, default="U8"),
        "weight_data_type": Field(ENUM, options=("S8", "FP32"), default="S8"),
        "layer_names": Field(TEXT, repeated=True),
        "op_types": Field(TEXT, repeated=True),
        "output_data_type": Field(ENUM, options=DATA_TYPES, default="U8"),
    },
    "InputProcessor": {
        "tensor_name": Field(TEXT, required=True),
        "tensor_format": Field(ENUM, options=("AutoColorSpace", "BGR", "RGB", "GRAY"), default="AutoColorSpace"),
        "tensor_layout": Field(ENUM, options=("NHWC", "NCHW"), default="NCHW"),
        "src_format": Field(
            ENUM,
            options=("AutoColorSpace", "GRAY", "BGR", "RGB", "YUYV422", "UYVY422", "YUV420SP", "YVU420SP", "RAW"),
            default="AutoColorSpace",
        ),
        "src_layout": Field(ENUM, options=("NHWC", "NCHW"), default="NCHW"),
        "src_dtype": Field(ENUM, options=("U8", "S8", "U16", "S16", "U32", "S32", "FP16", "FP32"), default="FP32"),
        "src_extra_shapes": Field("Shape", repeated=True),
        "csc_mode": Field(ENUM, options=("NoCSC", "Matrix", "FullRange", "LimitedRange"), default="NoCSC"),
        "csc_mat": Field(NUMBER, repeated=True),
        "mean": Field(NUMBER, repeated=True),
        "std": Field(NUMBER, repeated=True),
        "padding": Field(INTEGER, repeated=True),
        "padding_mode": Field(TEXT, default="constant"),
        "padding_constant_value": Field(INTEGER, default=0),
        "slicing": Field(INTEGER, repeated=True),
        "scale": Field(NUMBER, default=0.0),
        "zeropoint": Field(INTEGER, default=0),
    },
    "Shape": {
        "shape": Field(INTEGER, repeated=True, required=True),
    },
    "OutputProcessor": {
        "tensor_name": Field(TEXT, required=True),
        "tensor_layout": Field(ENUM, options=("NHWC", "NCHW")),
        "dst_perm": Field(INTEGER, repeated=True),
        "output_dtype": Field(ENUM, options=("FP32", "U8"), default="FP32"),
    },
    "ConstProcessor": {
        "name": Field(TEXT, required=True),
        "data": Field(NUMBER, repeated=True),
        "data_path": Field(TEXT),
    },
    "OpProcessor": {
        "op_name": Field(TEXT, required=True),
        "attrs": Field(STRUCT, required=True),
    },
    "CompilerConfig": {
        "static_batch_sizes": Field(INTEGER, repeated=True),
        "max_dynamic_batch_size": Field(INTEGER, default=0),
        "ddr_bw_limit": Field(NUMBER, default=0.0),
        "disable_ir_fix": Field(SWITCH, default=False),
        "check": Field(INTEGER, default=0),
        "npu_perf": Field(SWITCH, default=False),
        "check_mode": Field(ENUM, options=("CheckOutput", "CheckPerLayer"), default="CheckOutput"),
        "check_rtol": Field(NUMBER, default=1e-05),
        "check_atol": Field(NUMBER, default=0.0),
        "check_cosine_simularity": Field(NUMBER, default=0.999),
        "check_tensor_black_list": Field(TEXT, repeated=True),
        "enable_slice_mode": Field(SWITCH, default=False),
        "enable_tile_mode": Field(SWITCH, default=False),
        "enable_data_soft_compression": Field(SWITCH, default=False),
        "input_sample_dir": Field(TEXT, default=""),
        "compiler_group_patterns": Field("Graph", repeated=True),
        "sub_configs": Field("CompilerConfig", repeated=True),
        "start_tensor_names": Field(TEXT, repeated=True),
        "end_tensor_names": Field(TEXT, repeated=True),
    },
    "Graph": {
        "nodes": Field("Node", repeated=True),
        "type": Field(ENUM, options=("Tile", "Slice")),
        "match_mode": Field(ENUM, options=("Op", "Tensor")),
    },
    "Node": {
        "types": Field(TEXT, repeated=True),
        "inputs": Field(TEXT, repeated=True),
        "outputs": Field(TEXT, repeated=True),
        "properties": Field(STRUCT),
    },
    "DebugConfig": {
        "dump_frontend_graph": Field(SWITCH, default=False),
    },
}

NPU_MODES = {
    "AX650": ("NPU1", "NPU2", "NPU3"),
    "M76H": ("NPU1", "NPU2", "NPU3"),
    "AX620E": ("NPU1", "NPU2"),
    "AX615": ("NPU1", "NPU2"),
    "M57": ("NPU1",),
    "AX637": ("NPU1",),
    "AX8860": ("NPU1", "NPU2", "NPU4"),
}

LAYER_SELECTORS = ("layer_name", "layer_names", "op_type", "op_types")

# Of each group at most one may be set.
EXCLUSIVE = (
    ("quant.enable_smooth_quant", "quant.enable_brecq", "quant.enable_lsq"),
    ("compiler.static_batch_sizes", "compiler.max_dynamic_batch_size"),
)


def nearest(name: str, known: Mapping[str, object] | tuple[str, ...]) -> str:
    """`; did you mean …?` with the known name most like *name*, or else the list of all known names."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    if close:
        return f"; did you mean `{close[0]}`?"
    return f"; known: {', '.join(sorted(known))}"


def homes(name: str) -> list[str]:
    """The places that have a field called *name*, for one that stands in the wrong place: `quant.layer_configs[]`."""
    return [place for message, place in _places(ROOT, "", ()).items() if name in MESSAGES[message]]


def _places(message: str, path: str, within: tuple[str, ...]) -> dict[str, str]:
    """Where each message is first met in a configuration."""
    found = {message: path or "the top"}
    for name, field in MESSAGES[message].items():
        if field.kind in MESSAGES and field.kind not in (message, *within):
            here = f"{path}.{name}".lstrip(".") + ("[]" if field.repeated else "")
            found = _places(field.kind, here, (message, *within)) | found
    return found


def settings(values: Mapping[str, object], message: str = ROOT, path: str = "") -> Iterator[tuple[str, Field, object]]:
    """Each value of a checked configuration that is no message: its path with indices, its field, the value."""
    for name, value in values.items():
        field, here = MESSAGES[message][name], f"{path}{name}"
        if field.kind not in MESSAGES:
            yield here, field, value
        elif field.repeated:
            for index, item in enumerate(value):  # type: ignore[arg-type, var-annotated]
                yield from settings(item, field.kind, f"{here}[{index}].")
        else:
            yield from settings(value, field.kind, f"{here}.")  # type: ignore[arg-type]


def problems(values: object) -> list[str]:
    """What of *values* does not fit the documentation: a sentence a fault, with its path in the configuration."""
    found = (fault for error in _CHECKER.iter_errors(values) for fault in _sentences(error))
    return list(dict.fromkeys(found))  # jsonschema has one error for each missing field, and each names all of them


def combination_problems(values: Mapping[str, object]) -> list[str]:
    """Faults between fields of a configuration that `problems` has nothing to say about."""
    hardware = str(values.get("target_hardware", MESSAGES[ROOT]["target_hardware"].default))
    mode = str(values.get("npu_mode", MESSAGES[ROOT]["npu_mode"].default))
    found = []
    if mode not in NPU_MODES[hardware]:
        found.append(f"npu_mode: found {mode}, wanted one of {', '.join(NPU_MODES[hardware])} for {hardware}")
    active = {path for path, field, value in settings(values) if value != field.resting}
    for group in EXCLUSIVE:
        both = [path for path in group if path in active]
        if len(both) > 1:
            found.append(f"{' and '.join(both)}: set at most one of {', '.join(group)}")
    return found


def _message_schema(message: str) -> dict[str, Any]:
    fields = MESSAGES[message]
    return {
        "title": message,
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _field_schema(field) for name, field in fields.items()},
        "required": [name for name, field in fields.items() if field.required],
        "oneSelector": message == "LayerConfig",
    }


def _field_schema(field: Field) -> dict[str, Any]:
    one: dict[str, Any] = {"$ref": f"#/$defs/{field.kind}"}
    if field.kind == ENUM:
        one = {"enum": list(field.options)}
    elif field.kind in TYPES:
        one = {"type": TYPES[field.kind][0]}
    return {"type": "array", "items": one} if field.repeated else one


def _one_selector(
    _: object, applies: bool, values: object, schema: Mapping[str, Any]
) -> Iterator[jsonschema.ValidationError]:
    """A layer_configs entry names its layers in exactly one way."""
    if not applies or not isinstance(values, dict):
        return
    named = [name for name in LAYER_SELECTORS if values.get(name)]
    start, end = (bool(values.get(name)) for name in ("start_tensor_names", "end_tensor_names"))
    if start != end:
        yield jsonschema.ValidationError(
            "start_tensor_names and end_tensor_names: one is set without the other; set both (`DEFAULT`)"
        )
    elif len(named) + start != 1:
        found = ", ".join(named + ["start_tensor_names/end_tensor_names"] * start) or "none"
        wanted = f"exactly one of {', '.join(LAYER_SELECTORS)} and start_tensor_names/end_tensor_names"
        yield jsonschema.ValidationError(f"found {found}, wanted {wanted}")


_DRAFT = jsonschema.Draft202012Validator
_CHECKER = jsonschema.validators.extend(
    _DRAFT,
    {"oneSelector": _one_selector},
    type_checker=_DRAFT.TYPE_CHECKER.redefine_many(
        {
            "integer": lambda _, value: isinstance(value, int) and not isinstance(value, bool),  # 32.0 is none
            "number": lambda _, value: type(value) in (int, float) and math.isfinite(value),
            "boolean": lambda _, value: isinstance(value, int) and value in (0, 1),
        }
    ),
)({"$ref": f"#/$defs/{ROOT}", "$defs": {message: _message_schema(message) for message in MESSAGES}})


def _sentences(error: jsonschema.ValidationError) -> Iterator[str]:
    """A violation of the schema: the value, what was expected, what to do."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(".")
    value, wanted, title = error.instance, error.validator_value, error.schema.get("title", "")
    match error.validator:
        case "additionalProperties":
            fields = MESSAGES[title]
            for name in value:
                if name not in fields:
                    places = homes(name)
                    hint = f"; it belongs into {' or '.join(places)}" if places else nearest(name, fields)
                    yield f"{path}.{name}: {title} has no such field{hint}".lstrip(".")
        case "required":
            yield from (f"{path}.{name}: missing, and required".lstrip(".") for name in wanted if name not in value)
        case "enum":
            yield f"{path}: found {value!r}, wanted one of {', '.join(wanted)}{_meant(str(value), tuple(wanted))}"
        case "type" if wanted == "array":
            hint = f"; write {[value]!r}" if isinstance(value, str | float | int) else ""
            yield f"{path}: found {value!r}, wanted a list{hint}"
        case "type":
            sentence = next(text for name, text in TYPES.values() if name == wanted)
            yield (
                f"{path or 'the configuration'}: found {value!r}, wanted {sentence}{f' of {title}' if title else ''}"
            )
        case _:
            yield f"{path}: {error.message}"


def _meant(value: str, options: tuple[str, ...]) -> str:
    folded = {option.lower(): option for option in options}
    close = difflib.get_close_matches(value.lower(), list(folded), n=1)
    return f"; did you mean `{folded[close[0]]}`?" if close else ""
