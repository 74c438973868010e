"""Rotary positions (Su et al. 2021) as graphs have them: tables of cosines and sines, and halves that are rotated.

Networks that rotate neighbours, x₀ with x₁, x₂ with x₃ …, get the rows of their queries and keys sorted once, in each head first
the even ones, then the odd ones. Their products, all that attention takes of them, stay what they are, and no graph needs
an axis of two.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch


def tables(
    positions: np.ndarray, *, widths: Sequence[int], theta: float | Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of the angles by which each pair of channels is rotated.

    Args:
        positions: (N, A): of each token on A axes.
        widths: channels of a head that turn with each axis.
        theta: of all axes, or of each.

    Returns:
        Two arrays, (N, sum of widths / 2) float32.
    """
    bases = np.broadcast_to(theta, len(widths))
    angles = [
        np.outer(positions[:, axis].astype(np.float64), base ** -(np.arange(0, width, 2) / width))
        for axis, (width, base) in enumerate(zip(widths, bases, strict=True))
    ]
    joined = np.concatenate(angles, axis=1)
    return np.cos(joined).astype(np.float32), np.sin(joined).astype(np.float32)


def grid(rows: int, columns: int) -> np.ndarray:
    """(rows × columns, 2): row and column of each token of a picture, line by line."""
    return np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1).reshape(-1, 2)


def rotate(states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """*states*, (B, N, heads, D), whose first half of channels pairs with the second, rotated.

    Args:
        cosines, sines: (N, D / 2).
    """
    first, second = states.chunk(2, dim=-1)
    cosines, sines = (table[None, :, None].to(states.dtype) for table in (cosines, sines))
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)


def rotate_pairs(states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """The same of *states* whose neighbours pair, as files have them; for hosts, which have an axis of two."""
    even, odd = states[..., 0::2], states[..., 1::2]
    cosines, sines = cosines[None, :, None], sines[None, :, None]
    return torch.stack([even * cosines - odd * sines, odd * cosines + even * sines], dim=-1).flatten(-2)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention of (B, N, heads, D) states -> (B, N, heads × D).

    Args:
        mask: what is added to the scores, (1, 1, 1 or N, M).
    """
    if (groups := query.shape[2] // key.shape[2]) > 1:  # each head of the keys is for several of the queries
        key, value = (states.unsqueeze(3).expand(-1, -1, -1, groups, -1).flatten(2, 3) for states in (key, value))
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))
    made = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return made.transpose(1, 2).flatten(2)


def sort_pairs(tensor: torch.Tensor, *, width: int, rows: int) -> torch.Tensor:
    """*tensor* with its first *rows* sorted in heads of *width* channels each: the even ones first."""
    order = torch.cat([torch.arange(0, width, 2), torch.arange(1, width, 2)])
    heads = tensor[:rows].unflatten(0, (-1, width))[:, order].flatten(0, 1)
    return torch.cat([heads, tensor[rows:]]) if rows < len(tensor) else heads


def sort_parameters(
    model: torch.nn.Module, names: Sequence[str], *, width: int, rows: int | None = None
) -> dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]]:
    """Sort the weights and biases called *names* of *model*, once; what they are made of (`axbake.graphs.export`).

    Args:
        rows: of each that are sorted; None: all.
    """
    made: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {}
    for name in names:
        place, _, attribute = name.rpartition(".")
        module = model.get_submodule(place)
        weight = getattr(module, attribute)
        change = functools.partial(sort_pairs, width=width, rows=len(weight) if rows is None else rows)
        done: frozenset[str] = getattr(module, "sorted", frozenset())
        if attribute not in done:
            setattr(module, attribute, torch.nn.Parameter(change(weight), requires_grad=False))
            module.sorted = done | {attribute}  # type: ignore[assignment]
        made[f"model.{name}"] = (name, change)
    return made


class Tables(torch.nn.Module):
    """Arrays that a graph has besides its network's weights.

    Attributes:
        arrays: by name.
    """

    def __init__(self, **arrays: np.ndarray):
        super().__init__()
        self.arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        for name, array in self.arrays.items():
            self.register_parameter(name, torch.nn.Parameter(torch.from_numpy(array.copy()), requires_grad=False))

    def sources(self, prefix: str) -> dict[str, tuple[str, Callable[..., torch.Tensor]]]:
        """The arrays by their names in a graph, where this module is called *prefix*; they are made of no weight."""
        return {f"{prefix}.{name}": ("", functools.partial(_given, array)) for name, array in self.arrays.items()}


class WithTables(torch.nn.Module):
    """A conditioner, which makes rotary tables of so many tokens, with those of one length.

    Attributes:
        derived: parameters that the file does not have (`axbake.graphs.export`).
    """

    def __init__(self, model: Any, tokens: int):
        super().__init__()
        self.model, self.tables = model, model.tables(tokens)
        self.derived = self.tables.sources("tables")

    def forward(self, states: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        return self.model(states, kinds, self.tables)


def _given(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)
