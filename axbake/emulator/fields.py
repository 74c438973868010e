"""The documented fields of a Pulsar2 build configuration, and the check of a configuration against them.

Source: AXERA-TECH/pulsar2-docs-en, `source/user_guides_config/config.md` and
`source/user_guides_advanced/advanced_build_guides.md`, of Pulsar2 7.0 (2026-07-10); `input_processors.scale`,
`.zeropoint` and `debug.dump_frontend_graph` stand in the text of the latter only. The tables say what Pulsar2 takes;
which of it the emulator does stands in `config.py`.

AXERA publishes more values, and fields, than that text: in the proto definitions of AXERA-TECH/pulsar2-docs
(`config.rst`), in AXERA-TECH/Magnetar, which reads them out of Pulsar2's own image, and in the `cfg` of each
`build_context.json` that Pulsar2 writes (for one, of Mojo24x7/SD1.5_AXM1-AX8850_Euler). What they do is not said, so they
are no fault of a configuration, and `undocumented` names them.
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
    published: tuple[str, ...] = ()  # more values of an enum, which AXERA publishes and the documentation does not list
    default: object = None  # None: the documentation names no value, or one that is taken from another field
    repeated: bool = False
    required: bool = False

    @property
    def resting(self) -> object:
        """The value that stands for «not set»."""
        return [] if self.repeated else self.default


DATA_TYPES = ("U8", "S8", "U16", "S16", "FP32")
ROOT = "BuildConfig"

# The enums as they are published. Where the documentation lists a few of their values for a field, the rest is `published`.
ALL_TYPES = ("DefaultDataType", "U8", "S8", "U16", "S16", "U32", "S32", "U64", "S64", "FP16", "FP32", "BF16", "NVFP4")
ALL_COLOURS = (
    *("AutoColorSpace", "GRAY", "BGR", "RGB", "RGBA", "RAW"),
    *("YUV420SP", "YVU420SP", "YUYV422", "UYVY422"),
)
ALL_LAYOUTS = ("DefaultLayout", "NHWC", "NCHW")


def _enum(every: tuple[str, ...], *listed: str, default: str | None = None) -> Field:
    """An enum of *every* value, of which the documentation lists *listed*."""
    return Field(
        ENUM, options=listed, published=tuple(value for value in every if value not in listed), default=default
    )


MESSAGES: dict[str, dict[str, Field]] = {
    "BuildConfig": {
        "input": Field(TEXT, required=True),
        "output_dir": Field(TEXT, required=True),
        "output_name": Field(TEXT, default="compiled.axmodel"),
        "work_dir": Field(TEXT),
        "model_type": Field(
            ENUM,
            options=("ONNX", "QuantAxModel", "QuantONNX"),
            published=("ISP", "OptimizedQuantAxModel"),
            default="ONNX",
        ),
        "target_hardware": Field(
            ENUM,
            options=("AX650", "AX620E", "AX615", "AX637", "AX8860", "M76H", "M57"),
            published=("AX620L", "LAMBERT", "LAGUNA"),
            default="AX650",
        ),
        "npu_mode": Field(
            ENUM,
            options=("NPU1", "NPU2", "NPU3", "NPU4"),
            published=("NPU5", "ISP1", "ISP2", "ISP3"),
            default="NPU1",
        ),
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
        "conv_bias_data_type": _enum(ALL_TYPES, "S32", "FP32", default="S32"),
        "refine_weight_threshold": Field(NUMBER, default=1e-06),
        "enable_smooth_quant": Field(SWITCH, default=False),
        "smooth_quant_threshold": Field(NUMBER),
        "smooth_quant_strength": Field(NUMBER),
        "transformer_opt_level": Field(INTEGER, default=0),
        "input_sample_dir": Field(TEXT, default=""),
        "ln_scale_data_type": _enum(ALL_TYPES, "FP32", "S32", "U32", default="FP32"),
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
        "data_type": _enum(ALL_TYPES, *DATA_TYPES, default="U8"),
        "weight_data_type": _enum(ALL_TYPES, "S8", "FP32", default="S8"),
        "layer_names": Field(TEXT, repeated=True),
        "op_types": Field(TEXT, repeated=True),
        "output_data_type": _enum(ALL_TYPES, *DATA_TYPES, default="U8"),
    },
    "InputProcessor": {
        "tensor_name": Field(TEXT, required=True),
        "tensor_format": _enum(ALL_COLOURS, "AutoColorSpace", "BGR", "RGB", "GRAY", default="AutoColorSpace"),
        "tensor_layout": _enum(ALL_LAYOUTS, "NHWC", "NCHW", default="NCHW"),
        "src_format": _enum(
            ALL_COLOURS,
            *("AutoColorSpace", "GRAY", "BGR", "RGB", "YUYV422", "UYVY422", "YUV420SP", "YVU420SP", "RAW"),
            default="AutoColorSpace",
        ),
        "src_layout": _enum(ALL_LAYOUTS, "NHWC", "NCHW", default="NCHW"),
        "src_dtype": _enum(ALL_TYPES, "U8", "S8", "U16", "S16", "U32", "S32", "FP16", "FP32", default="FP32"),
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
        "tensor_layout": _enum(ALL_LAYOUTS, "NHWC", "NCHW"),
        "dst_perm": Field(INTEGER, repeated=True),
        "output_dtype": _enum(ALL_TYPES, "FP32", "U8", default="FP32"),
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

# Fields that Pulsar2 writes into its own record of a configuration, and no documentation has.
PUBLISHED_FIELDS = {
    "BuildConfig": ("custom_ops",),
    "DebugConfig": (
        *("stride_ios", "pre_post_process_test", "axe_test", "ignore_onnx_opt_check", "disable_check_reference"),
        *("save_debug_field", "dump_symbol_table", "quant_static_reshape_pass", "quant_axmodel_check"),
        *("quant_axmodel_output_simularity_thres", "default_quant_dataset", "precision_analysis_start_tensors"),
        *("precision_analysis_end_tensors", "disable_compiler", "compiler_enable_inplace", "compiler_enable_slice"),
        *("compiler_enable_tile", "compiler_dump_debug_data", "compiler_regen_batch_gt", "compiler_no_batch"),
        *("dump_op_groups", "disable_auto_set_extremum_op_fp32", "ocm_size", "single_eu_io", "dump_op_groups_tag"),
    ),
}
UNDOCUMENTED = Field("undocumented")  # stands for all of them

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


@dataclass(frozen=True)
class Setting:
    """One value of a checked configuration that is no message."""

    path: str  # with indices: `quant.layer_configs[0].data_type`
    field: Field
    value: Any
    siblings: Mapping[str, Any]  # the message that it stands in

    @property
    def is_set(self) -> bool:
        """Whether it says something else than the default."""
        return bool(self.value) if self.field is UNDOCUMENTED else self.value != self.field.resting

    @property
    def is_undocumented(self) -> bool:
        """Whether the field, or its value, is published but not documented."""
        values = self.value if self.field.repeated else [self.value]
        return self.field is UNDOCUMENTED or any(value in self.field.published for value in values)


def settings(values: Mapping[str, Any], message: str = ROOT, path: str = "") -> Iterator[Setting]:
    """Each value of a checked configuration that is no message."""
    for name, value in values.items():
        field, here = MESSAGES[message].get(name, UNDOCUMENTED), f"{path}{name}"
        if field.kind not in MESSAGES:
            yield Setting(here, field, value, values)
        elif field.repeated:
            for index, item in enumerate(value):
                yield from settings(item, field.kind, f"{here}[{index}].")
        else:
            yield from settings(value, field.kind, f"{here}.")


def undocumented(values: Mapping[str, Any]) -> list[str]:
    """What of a checked configuration AXERA publishes and does not document: a sentence each, to warn with."""
    return [
        f"{setting.path}: {setting.value}: not in Pulsar2's documentation. AXERA publishes it elsewhere, without "
        "saying what it does, so a build may fail because of it or ignore it"
        for setting in settings(values)
        if setting.is_undocumented and setting.is_set
    ]


def problems(values: object) -> list[str]:
    """What of *values* does not fit the documentation: a sentence a fault, with its path in the configuration."""
    found = (fault for error in _CHECKER.iter_errors(values) for fault in _sentences(error))
    return list(dict.fromkeys(found))  # jsonschema has one error for each missing field, and each names all of them


def combination_problems(values: Mapping[str, object]) -> list[str]:
    """Faults between fields of a configuration that `problems` has nothing to say about."""
    hardware = str(values.get("target_hardware", MESSAGES[ROOT]["target_hardware"].default))
    mode = str(values.get("npu_mode", MESSAGES[ROOT]["npu_mode"].default))
    found = []
    if mode not in NPU_MODES.get(hardware, (mode,)) and mode in MESSAGES[ROOT]["npu_mode"].options:
        found.append(f"npu_mode: found {mode}, wanted one of {', '.join(NPU_MODES[hardware])} for {hardware}")
    active = {setting.path for setting in settings(values) if setting.is_set}
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
        "properties": {name: _field_schema(field) for name, field in fields.items()}
        | dict.fromkeys(PUBLISHED_FIELDS.get(message, ()), True),
        "required": [name for name, field in fields.items() if field.required],
        "oneSelector": message == "LayerConfig",
    }


def _field_schema(field: Field) -> dict[str, Any]:
    one: dict[str, Any] = {"$ref": f"#/$defs/{field.kind}"}
    if field.kind == ENUM:
        one = {"enum": [*field.options, *field.published], "options": field.options}
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
            for name in value:
                if name not in error.schema["properties"]:
                    places = homes(name)
                    hint = f"; it belongs in {' or '.join(places)}" if places else nearest(name, MESSAGES[title])
                    yield f"{path}.{name}: {title} has no such field{hint}".lstrip(".")
        case "required":
            yield from (f"{path}.{name}: missing, and required".lstrip(".") for name in wanted if name not in value)
        case "enum":
            listed = error.schema["options"]
            yield f"{path}: found {value!r}, wanted one of {', '.join(listed)}{_meant(str(value), listed)}"
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
