"""The cheapest assignment of types to layers within a budget of noise.

Layers begin in 16 bits. Where that alone costs more than the budget, the tensors that cost most are made and read in float32 as
far as that is possible. Then layers with multiplications go to 8 bits, one after the other: the one next that saves most for the
noise that it adds.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from axbake.quality.assignment import FLOAT, NARROW, OUTPUT, WIDE, Model

#: A rounded element weighs as much as so many multiplications in 8 bits that a layer saves. An assumption: no board was measured.
CONVERSION = 16
WORTH = 0.02  # of the noise: what a tensor in float32 has to take away


@dataclass(frozen=True)
class Point:
    """An assignment, and what is forecast of it."""

    types: tuple[str, ...]
    noise: float
    sqnr_db: float
    narrow_share: float
    conversions: int


def point(model: Model, types: list[str]) -> Point:
    """The point of *types*."""
    noise = model.noise(types)
    return Point(tuple(types), noise, model.sqnr(noise), model.narrow_share(types), model.conversions(types))


def cured(model: Model, limit: float) -> list[str]:
    """All layers in 16 bits, but for those in float32 without which the noise would be above *limit*.

    As few tensors as it takes; and no more, once what is left is not worth it.
    """
    types = [WIDE] * len(model.layers)
    noise = model.noise(types)
    while noise > limit:
        best, most = [], WORTH * noise
        for place, tensor in enumerate(model.tensors):
            if model.noise_of(place, types) <= most:
                continue
            ends = {one for one in (*tensor.readers, tensor.maker) if one is not None and one != OUTPUT}
            moved = [one for one in ends if types[one] != FLOAT and model.layers[one].may_be_float]
            saved = -_change(model, types, moved, FLOAT)
            if saved > most:
                best, most = moved, saved
        if not best:
            break
        for layer in best:
            types[layer] = FLOAT
        noise = model.noise(types)
    return types


def path(model: Model, types: list[str]) -> Iterator[tuple[int, float]]:
    """The layers of *types* in 16 bits that multiply, in the order in which they go to 8 bits, and the noise after each.

    *types* changes on the way.
    """
    left = {n for n, layer in enumerate(model.layers) if layer.multiplications and types[n] == WIDE}
    noise = model.noise(types)
    worth = {layer: _worth(model, types, layer) for layer in left}
    while left:
        layer = max(left, key=lambda one: (worth[one], -one))
        noise += _change(model, types, [layer], NARROW)
        types[layer] = NARROW
        left.discard(layer)
        yield layer, noise
        near = {
            one
            for place in model.around([layer])
            for one in (*model.tensors[place].readers, model.tensors[place].maker)
        }
        for one in left & near:
            worth[one] = _worth(model, types, one)


def within(model: Model, types: list[str], limit: float) -> list[str]:
    """*types* with as many layers in 8 bits as the noise *limit* allows, in the order of `path`."""
    found, walked = list(types), list(types)
    for layer, noise in path(model, walked):
        if noise > limit:
            break
        found[layer] = NARROW
    return found


def _worth(model: Model, types: list[str], layer: int) -> float:
    """What a layer saves in 8 bits for the noise that it adds."""
    places = model.around([layer])
    before = sum(model.conversions_of(place, types) for place in places)
    added = _change(model, types, [layer], NARROW)
    own, types[layer] = types[layer], NARROW
    after = sum(model.conversions_of(place, types) for place in places)
    types[layer] = own
    saved = model.layers[layer].multiplications - CONVERSION * (after - before)
    if saved <= 0:
        return saved
    return saved / max(added, 1e-12 * model.signal)


def _change(model: Model, types: list[str], layers: list[int], kind: str) -> float:
    """What the noise grows by where *layers* become *kind*."""
    places = model.around(layers)

    def of_these() -> float:
        return sum(model.noise_of(place, types) for place in places) + sum(
            model.weight_noise(layer, types) for layer in layers
        )

    before, own = of_these(), [types[layer] for layer in layers]
    for layer in layers:
        types[layer] = kind
    after = of_these()
    for layer, one in zip(layers, own, strict=True):
        types[layer] = one
    return after - before
