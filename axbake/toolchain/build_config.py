"""Pulsar2's config of a component: what axbake sets, what the user's own file says, and what config.yaml says of it.

The fields are those of AXERA-TECH/pulsar2-docs-en (`user_guides_config/config.md`); `axbake.emulator.fields` has their table.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from axbake.emulator.config import ALL, Pulsar2ConfigError, read_config
from axbake.emulator.fields import LAYER_SELECTORS, MESSAGES, ROOT, combination_problems, problems, undocumented
from axbake.networks.component import DECODER, DENOISER, ENCODER, TEXT

BASE = "base"  # the one entry of config.yaml's pulsar2/{component} that is no field of Pulsar2's: path of the user's own file

#: By role: the calibration archive's format, and what else of the entry of an input; None: the one entry is for all inputs
CALIBRATION: dict[str, dict[str, Any]] = {
    TEXT: {"calibration_format": "Numpy"},
    DENOISER: {"tensor_name": ALL, "calibration_format": "NumpyObject"},
    DECODER: {"tensor_name": ALL, "calibration_format": "NumpyObject"},
    ENCODER: {
        "calibration_format": "Image",
        "calibration_mean": [127.5, 127.5, 127.5],
        "calibration_std": [127.5, 127.5, 127.5],
    },
}
# Programs bring pixels to -1..1 themselves; by default Pulsar2 would put calibration's mean and std into the model.
PIXELS = {"tensor_format": "RGB", "src_format": "RGB", "mean": [0, 0, 0], "std": [1, 1, 1]}
# Pulsar2 takes inputs for floats where it is not told. Published programs hand int32 ids to the text encoder
# (AXERA-TECH/sd1.5-lcm.axera), and an int32 timestep (Mojo24x7/SD1.5_AXM1-AX8850_Euler); pyaxengine refuses them where the model
# says uint32.
INTEGER = "S32"

# Fields that axbake sets itself, and where config.yaml says what it sets them to.
OWN = {
    "input": "the graph that was exported",
    "output_dir": "the job's own directory",
    "output_name": "{graph}.axmodel",
    "work_dir": "the job's own directory",
    "model_type": "ONNX",
    "target_hardware": "that of the entry target_hardware, which all components share",
}
OWN_CALIBRATION = ("calibration_dataset", "calibration_format")

# Lists whose entries have a key: one of their fields, or the layers that they select. List -> fields of the key
KEYS = {
    "input_configs": ("tensor_name",),
    "input_processors": ("tensor_name",),
    "output_processors": ("tensor_name",),
    "const_processors": ("name",),
    "op_processors": ("op_name",),
    "quant_op_processors": ("op_name",),
    "layer_configs": (*LAYER_SELECTORS, "start_tensor_names", "end_tensor_names"),
}

# Operators that Pulsar2's documentation calls tried with FP32 (`advanced_build_guides.md`).
FLOAT_OPERATORS = {"LeakyRelu", "Sigmoid", "Relu", "Add", "Mul", "Div", "Sub", "Concat", "Softmax"}


@dataclass(frozen=True)
class Build:
    """One graph that is compiled: what its config says besides what the user sets."""

    name: str  # of the graph, as its files are called
    component: str  # as config.yaml calls it: by its name, or by its role's
    role: str  # of `axbake.networks.component.ROLES`
    inputs: Mapping[str, str]  # name -> NumPy's type
    precision: str  # of activations: U8, U16 or S16; weights are S8
    target_hardware: str
    npu_mode: str

    @property
    def calibration(self) -> dict[str, Any]:
        """The entry of its calibration archive.

        The archive is named without a folder, since Pulsar2 runs in one that holds all it needs; so the same build for another
        model has the same config. All its members are used.
        """
        entry = CALIBRATION[self.role]
        name = entry.get("tensor_name") or next(iter(self.inputs))
        return {"tensor_name": name} | entry | {"calibration_dataset": f"{self.name}.tar", "calibration_size": -1}

    @property
    def processors(self) -> list[dict[str, Any]]:
        """What the compiled model takes, where that is not what its graph takes."""
        if self.role == ENCODER:
            return [{"tensor_name": name, **PIXELS} for name in self.inputs]
        whole = [name for name, dtype in self.inputs.items() if dtype in ("int64", "int32")]
        return [{"tensor_name": name, "src_dtype": INTEGER} for name in whole]


def read_own_fields(build: Build, said: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the user sets for *build*: those of his file, if there is one, and over them those of config.yaml.

    Comments and layout of the file do not count. What axbake sets itself is left out of the file, which others may use as it
    is, and refused in config.yaml.

    Args:
        said: config.yaml's `pulsar2/{component}`.

    Raises:
        Pulsar2ConfigError: lists every field that is unknown, misplaced, of a wrong value, axbake's own, or known not to work.
    """
    place = f"pulsar2/{build.component}"
    fields = {name: value for name, value in said.items() if name != BASE}
    faults = _documented_faults(place, fields) or _twice(place, fields)
    faults += _own_faults(place, build.name, fields)
    base = _read_base(place, said)
    if base:
        faults += _documented_faults(said[BASE], base) or (
            _other_build(said[BASE], base, build.target_hardware) + _twice(said[BASE], base)
        )
    if faults:
        raise Pulsar2ConfigError("\n".join(faults))
    merged = _laid_over(_as_named(build, _without_own(base)), _as_named(build, fields))
    whole = build_config(build, merged)
    faults = [f"{place}: {fault}" for fault in combination_problems(whole)]
    faults += _calibration_faults(place, build, merged)
    faults += [f"{place}/{fault}" for fault in _useless(merged)]
    if faults:
        raise Pulsar2ConfigError("\n".join(faults))
    return merged


def build_config(build: Build, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Pulsar2's whole config of *build*.

    Args:
        fields: the user's own, as `read_own_fields` gives them.
    """
    return _laid_over(_ours(build), fields)


def _ours(build: Build) -> dict[str, Any]:
    # A layer's name or type goes before a subgraph, so the precision of the rest stands beside the user's entries.
    everything = {"start_tensor_names": [ALL], "end_tensor_names": [ALL], "data_type": build.precision}
    ours: dict[str, Any] = {
        "model_type": "ONNX",
        "target_hardware": build.target_hardware,
        "npu_mode": build.npu_mode,
        "quant": {
            "input_configs": [build.calibration],
            "layer_configs": [everything],
            "calibration_method": "MinMax",
            "precision_analysis": False,
        },
        "compiler": {"check": 0},
    }
    return ours | ({"input_processors": build.processors} if build.processors else {})


def overridden(build: Build, said: Mapping[str, Any]) -> list[str]:
    """What the user's own file sets to something else than axbake would, a sentence each.

    Of config.yaml's fields, only those that decide how programs feed the model.

    Args:
        said: config.yaml's `pulsar2/{component}`, which `read_own_fields` has found usable.
    """
    place = f"pulsar2/{build.component}"
    processors = {name: value for name, value in said.items() if name == "input_processors"}
    ours, sentences = _flat(_ours(build)), []
    given = [(place, processors)]
    if said.get(BASE):
        given.insert(0, (said[BASE], _without_own(_read_base(place, said))))
    for source, fields in given:
        for path, value in _flat(_as_named(build, fields)).items():
            if path in ours and ours[path] != value:
                sentences.append(f"{source}: {path}: {value}, where axbake would set {ours[path]}")
    return sentences


def _flat(fields: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Each value of *fields* by its path: `quant/input_configs/DEFAULT/calibration_size`."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        path = f"{above}{name}"
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{path}/")
        elif _is_keyed(name, value):
            for entry in value:
                key = _key(name, entry)
                flat |= {
                    f"{path}/{' '.join(key)}/{field}": one for field, one in entry.items() if field not in KEYS[name]
                }
        else:
            flat[path] = value
    return flat


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """*above*'s fields over *below*'s: objects field by field, entries of the lists in `KEYS` by what they are of, all else as a
    whole."""
    laid = dict(below)
    for name, value in above.items():
        if isinstance(value, Mapping) and isinstance(below.get(name), Mapping):
            laid[name] = _laid_over(below[name], value)
        elif _is_keyed(name, value) and _is_keyed(name, below.get(name)):
            entries = {_key(name, entry): entry for entry in below[name]}
            for entry in value:
                under = entries.get(_key(name, entry), {})
                entries[_key(name, entry)] = {n: v for n, v in under.items() if n not in KEYS[name]} | entry
            laid[name] = list(entries.values())
        else:
            laid[name] = value
    return laid


def _is_keyed(name: str, value: Any) -> bool:
    return name in KEYS and isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value)


def _key(name: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    """What an entry of the list *name* is of; one name given as `op_type` or in `op_types` is the same."""
    given = {field: entry.get(field) or [] for field in KEYS[name]}
    return tuple(
        f"{field.removesuffix('s')}: {', '.join(sorted([value] if isinstance(value, str) else value))}"
        if name == "layer_configs"
        else str(value)
        for field, value in given.items()
        if value
    )


def _as_named(build: Build, fields: Mapping[str, Any]) -> dict[str, Any]:
    """*fields* with the inputs' entries under the names that axbake has for them: `DEFAULT` and the name of an only input are the
    same, and so are `DEFAULT` and the names of all inputs with the same fields."""
    named = dict(fields)
    if len(build.inputs) == 1:
        (only,) = build.inputs
        named |= (
            {"input_processors": _renamed(fields["input_processors"], ALL, only)}
            if "input_processors" in fields
            else {}
        )
    quant = fields.get("quant")
    if isinstance(quant, Mapping) and "input_configs" in quant:
        wanted, entries = build.calibration["tensor_name"], quant["input_configs"]
        names = [entry["tensor_name"] for entry in entries]
        alike = all({**entry, "tensor_name": ""} == {**entries[0], "tensor_name": ""} for entry in entries)
        if (len(build.inputs) == 1 and names in ([ALL], [*build.inputs])) or (
            sorted(names) == sorted(build.inputs) and alike
        ):
            entries = [entries[0] | {"tensor_name": wanted}]
        named["quant"] = {**quant, "input_configs": entries}
    return named


def _renamed(entries: list[dict[str, Any]], old: str, new: str) -> list[dict[str, Any]]:
    return [entry | {"tensor_name": new} if entry["tensor_name"] == old else entry for entry in entries]


def _read_base(place: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """The user's own file; nothing if there is none."""
    try:
        return read_config(Path(said[BASE])) if said.get(BASE) else {}
    except Pulsar2ConfigError as error:
        raise Pulsar2ConfigError(f"{place}/{BASE}: {error}") from error


def _documented_faults(place: str, fields: Mapping[str, Any]) -> list[str]:
    """What of *fields* is not as documented. The fields that axbake adds are not missed."""
    own: dict[str, Any] = {"input": "graph.onnx", "output_dir": "out"}
    checked = _laid_over(own, fields)
    quant = checked.get("quant")
    if isinstance(quant, dict) and isinstance(quant.get("input_configs"), list):
        given = {"calibration_dataset": "samples.tar"}
        entries = [given | entry if isinstance(entry, dict) else entry for entry in quant["input_configs"]]
        checked["quant"] = quant | {"input_configs": entries}
    return [f"{place}: {fault}" for fault in problems(checked)]


def _twice(place: str, fields: Mapping[str, Any], above: str = "") -> list[str]:
    """Entries of one list that are of the same thing: which of them Pulsar2 takes is not documented."""
    faults = []
    for name, value in fields.items():
        if isinstance(value, Mapping):
            faults += _twice(place, value, f"{above}{name}/")
        elif _is_keyed(name, value):
            count = Counter(_key(name, entry) for entry in value)
            faults += [
                f"{place}: {above}{name}: {number} entries for {' '.join(key)}. Merge them into one."
                for key, number in count.items()
                if number > 1
            ]
    return faults


def _own_faults(place: str, graph: str, fields: Mapping[str, Any]) -> list[str]:
    faults = [
        f"{place}/{name}: axbake sets it: {what.format(graph=graph)}. Leave it out."
        for name, what in OWN.items()
        if name in fields
    ]
    for entry in _entries(fields):
        faults += [
            f"{place}/quant/input_configs: {name}: axbake sets it when it packs the samples. Leave it out."
            for name in OWN_CALIBRATION
            if name in entry
        ]
    return faults


def _other_build(file: str, base: Mapping[str, Any], target_hardware: str) -> list[str]:
    """What a user's file is meant for, where that is another build than this."""
    wanted = {"target_hardware": target_hardware, "model_type": "ONNX"}
    return [
        f"{file}: {name}: {base[name]}, but this build has {value}. Use another file, or correct one of them."
        for name, value in wanted.items()
        if base.get(name, value) != value
    ]


def _without_own(base: Mapping[str, Any]) -> dict[str, Any]:
    """*base* without what axbake sets itself."""
    left = {name: value for name, value in base.items() if name not in OWN}
    if isinstance(left.get("quant"), dict) and "input_configs" in left["quant"]:
        entries = [{n: v for n, v in entry.items() if n not in OWN_CALIBRATION} for entry in _entries(left)]
        # What is left of an entry that only said where samples lie, and how many, is no news.
        entries = [entry for entry in entries if set(entry) > {"tensor_name"}]
        quant = {name: value for name, value in left["quant"].items() if name != "input_configs"}
        left["quant"] = quant | ({"input_configs": entries} if entries else {})
    return left


def _entries(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    quant = fields.get("quant")
    entries = quant.get("input_configs", []) if isinstance(quant, Mapping) else []
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _calibration_faults(place: str, build: Build, fields: Mapping[str, Any]) -> list[str]:
    """Faults of entries that belong to no archive: a graph has one, under one name."""
    wanted = build.calibration["tensor_name"]
    names = [entry["tensor_name"] for entry in _entries(fields)]
    if not names or names == [wanted]:
        return []
    inputs = ", ".join(build.inputs)
    return [
        f"{place}/quant/input_configs: entries for {', '.join(names)}; wanted one, with tensor_name {wanted}: one archive has the"
        f" samples of all inputs ({inputs})"
    ]


def _useless(fields: Mapping[str, Any]) -> list[str]:
    """Fields that are documented and known to do nothing, or nothing good, in real builds."""
    faults = []
    layers = fields.get("quant", {}).get("layer_configs", [])
    for index, layer in enumerate(layers):
        kinds = [*filter(None, [layer.get("op_type")]), *layer.get("op_types", [])]
        place = f"quant/layer_configs[{index}]"
        unknown = [kind for kind in kinds if not onnx.defs.has(kind)]
        if unknown:
            faults.append(
                f"{place}: {', '.join(unknown)}: not an ONNX operator. Pulsar2 silently ignores the names of its own "
                "fused operators; name the graph's operators, such as Sigmoid and Mul for Silu"
            )
        if "FP32" in (layer.get("data_type"), layer.get("output_data_type")) and {"Conv", "ConvTranspose"} & set(kinds):
            faults.append(f"{place}: Conv in FP32: the NPU's convolution takes only integers; use at most U16 or S16")
    return faults


def doubts(content: Mapping[str, Any]) -> list[str]:
    """What a config may fail of or be misled by, though Pulsar2 takes it: a sentence each."""
    quant, said = content["quant"], undocumented(content)
    floats = {
        kind
        for layer in quant["layer_configs"]
        if "FP32" in (layer.get("data_type"), layer.get("output_data_type"))
        for kind in [*filter(None, [layer.get("op_type")]), *layer.get("op_types", [])]
    }
    if floats - FLOAT_OPERATORS:
        said.append(
            f"FP32 on {', '.join(sorted(floats - FLOAT_OPERATORS))}: the documentation calls only "
            f"{', '.join(sorted(FLOAT_OPERATORS))} tested; others may end in a TileFailException"
        )
    if quant.get("highest_mix_precision"):
        said.append("highest_mix_precision makes norms FP32, which has ended in a TileFailException on large tensors")
    if quant.get("device", "cpu") != "cpu":
        said.append(
            f"quant/device {quant['device']}: a container sees a GPU only with container/options: [--gpus, all]"
        )
    for name in ("enable_brecq", "enable_lsq", "enable_adaround"):
        if quant.get(name) and quant.get("device", "cpu") == "cpu":
            said.append(
                f"{name} tunes weights by training, for which the documentation requires a GPU: quant/device: cuda:0"
            )
    return said


def documented_fields() -> list[tuple[str, str, str, str]]:
    """Every documented field a user can set: path below `pulsar2/{component}`, kind, values, default; for the docs."""
    rows: list[tuple[str, str, str, str]] = []

    def walk(message: str, above: str, within: tuple[str, ...]) -> None:
        for name, field in MESSAGES[message].items():
            path = f"{above}{name}{'[]' if field.repeated else ''}"
            if message == ROOT and name in OWN:
                continue
            if field.kind in MESSAGES:
                if field.kind not in within:
                    walk(field.kind, f"{path}/", (*within, field.kind))
                continue
            default = "" if field.default is None else str(field.default)
            rows.append((path, field.kind, ", ".join(field.options), default))

    walk(ROOT, "", (ROOT,))
    return rows
