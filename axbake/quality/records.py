"""`calibration/{component}.sensitivity.json`: what was measured of each layer, for people and for the search."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from axbake.quality.assignment import FLOAT, NARROW, WIDE, Layer, Model, Tensor
from axbake.quality.network import Network
from axbake.quality.sensitivity import Sensitivity

DIGITS = 4  # of a noise

MEANINGS = {
    "steps": "steps of the drawing that were measured, by what an error in them does to the last latent; each stands for so many",
    "db": "PSNR of the reference's last latent, in dB: this layer alone computes in the type, its weights S8, all else in float",
    "noise": "expected sum of squares of the last latent's error; of a tensor for its readers, one row and column each",
    "clipped": "share of a tensor's values on the reference's drawing that leave the calibrated range; no noise includes them",
    "peak": "largest absolute value of a tensor over the median one",
}


def model_of(network: Network, addresses: list[str], found: Sensitivity, signal: float) -> Model:
    """What was *found* of a *network*.

    Args:
        addresses: of its graphs.
        signal: power that noises are compared with.
    """
    layers = []
    for number, nodes in enumerate(network.layers):
        first = network.nodes[nodes[0]]
        layers.append(
            Layer(
                graph=addresses[first.graph],
                names=tuple(network.nodes[node].name for node in nodes),
                operator=first.proto.op_type,
                multiplications=sum(map(network.multiplications, nodes)),
                weights=found.weights.get(number, {}),
            )
        )
    tensors = [
        Tensor(one.name, one.maker, one.is_constant, one.elements, tuple(one.readers), one.noise, one.clipped, one.peak)
        for one in found.tensors
    ]
    return Model(signal, layers, tensors)


def write_model(path: Path, model: Model, facts: Mapping[str, Any]) -> None:
    """Write *model* to *path*, with *facts* before it: layers by what they cost in 8 bits, kinds of layers, tensors."""
    alone = [model.alone(number) for number in range(len(model.layers))]
    layers = [
        {
            "graph": layer.graph,
            "names": list(layer.names),
            "operator": layer.operator,
            "multiplications": layer.multiplications,
            "db": {kind: round(value, 2) for kind, value in by_type.items()},
            "weights": {kind: _digits(value) for kind, value in layer.weights.items()},
        }
        for layer, by_type in zip(model.layers, alone, strict=True)
    ]
    tensors = [
        {
            "name": one.name,
            "maker": one.maker,
            "constant": one.is_constant,
            "elements": one.elements,
            "readers": list(one.readers),
            "noise": {kind: [[_digits(v) for v in row] for row in one.noise[kind]] for kind in (NARROW, WIDE)},
            "clipped": _digits(one.clipped),
            "peak": _digits(one.peak),
        }
        for one in model.tensors
    ]
    content = dict(facts) | {
        "meanings": MEANINGS,
        "signal": _digits(model.signal),
        "kinds": dict(_kinds(model)),
        "layers": layers,
        "tensors": tensors,
    }
    # One line for each layer and each tensor: readable, and files of a thousand layers stay small.
    lines = [f" {json.dumps(name)}: {_lines(value)}" for name, value in content.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def read_model(path: Path) -> Model:
    """The model in *path*, and nothing of the rest."""
    content = json.loads(path.read_text(encoding="utf-8"))
    layers = [
        Layer(one["graph"], tuple(one["names"]), one["operator"], one["multiplications"], one["weights"])
        for one in content["layers"]
    ]
    tensors = [
        Tensor(
            one["name"],
            one["maker"],
            one["constant"],
            one["elements"],
            tuple(one["readers"]),
            {kind: np.array(rows) for kind, rows in one["noise"].items()},
            one["clipped"],
            one["peak"],
        )
        for one in content["tensors"]
    ]
    return Model(content["signal"], layers, tensors)


def _kinds(model: Model) -> Iterable[tuple[str, Any]]:
    """By operator: how many layers there are, their multiplications, and what all of them together cost in each type."""
    for operator in sorted({layer.operator for layer in model.layers}):
        which = [number for number, layer in enumerate(model.layers) if layer.operator == operator]
        noise = {kind: sum(model.noise_alone(number, kind) for number in which) for kind in (NARROW, WIDE, FLOAT)}
        yield (
            operator,
            {
                "layers": len(which),
                "multiplications": sum(model.layers[number].multiplications for number in which),
                "db": {kind: round(model.sqnr(value), 2) for kind, value in noise.items()},
            },
        )


def _digits(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _lines(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n  " + ",\n  ".join(json.dumps(one, ensure_ascii=False) for one in value) + "\n ]"
    if isinstance(value, dict):
        inside = ",\n  ".join(
            f"{json.dumps(name)}: {json.dumps(one, ensure_ascii=False)}" for name, one in value.items()
        )
        return "{\n  " + inside + "\n }"
    return json.dumps(value, ensure_ascii=False)
