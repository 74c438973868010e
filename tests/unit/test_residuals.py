"""Residual sums: found in a graph, and how wide they are."""

import numpy as np
import pytest
import torch

from axbake.calibration.residuals import residual_sums, widths_of_sums
from axbake.emulator.graph import load_graph

CHANNELS, PEAK = 8, 4


class Block(torch.nn.Module):
    """A residual block whose scale and shift are inputs, as in a transformer."""

    def __init__(self, channels=CHANNELS):
        super().__init__()
        self.norm, self.linear = (
            torch.nn.LayerNorm(channels, elementwise_affine=False),
            torch.nn.Linear(channels, channels),
        )

    def forward(self, hidden, row):
        return hidden + self.linear(self.norm(hidden) * (1 + row) + row)


class Blocks(torch.nn.Module):
    """Some of them; behind the last, in a graph that ends the chain, a projection."""

    def __init__(self, count, *, last=False):
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block() for _ in range(count))
        self.out = torch.nn.Linear(CHANNELS, 2) if last else None

    def forward(self, hidden, row):
        for block in self.blocks:
            left, right = block(hidden, row).split(2, dim=1)
            hidden = torch.cat([left, right], dim=1)
        return hidden if self.out is None else self.out(hidden)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Two graphs, of two and of three blocks."""
    place = tmp_path_factory.mktemp("chain")
    torch.manual_seed(0)
    given = (torch.zeros(1, 4, CHANNELS), torch.zeros(1, 1, CHANNELS))
    for name, network, takes, gives in (
        ("first", Blocks(2), "sample", "hidden_1"),
        ("second", Blocks(3, last=True), "hidden_1", "out"),
    ):
        program = torch.onnx.export(
            network, given, dynamo=True, verbose=False, input_names=[takes, "row"], output_names=[gives]
        )
        assert program
        program.save(place / f"{name}.onnx", external_data=True)
    return [place / "first.onnx", place / "second.onnx"]


def sample(peak):
    """What the chain takes, one channel of one token *peak* times as large as the others."""
    generator = np.random.default_rng(0)
    hidden = generator.standard_normal((1, 4, CHANNELS)).astype(np.float32)
    hidden[0, 1, PEAK] = peak
    return {"sample": hidden, "row": generator.standard_normal((1, 1, CHANNELS)).astype(np.float32)}


def test_each_block_has_one_sum_and_modulation_is_none(chain):
    assert [len(residual_sums(load_graph(path))) for path in chain] == [2, 3]


def test_a_peak_is_found_in_every_sum_that_it_passes(chain):
    found = widths_of_sums(chain, [sample(1.0), sample(10000.0)])

    assert len(found) == 5 and all(name.startswith(("first/", "second/")) for name in found)
    for one in found.values():
        assert one["high"] == pytest.approx(10000, rel=0.01)
        assert one["peak_over_median"] == pytest.approx(one["high"] / one["median"])
        assert one["u16_db"] < 40


def test_what_u16_keeps_is_what_its_rounding_leaves(chain):
    (name, one), *_ = widths_of_sums(chain[:1], [sample(300.0)]).items()

    values = np.linspace(0.5, 1.5, 100001) * one["median"]
    step = (max(one["high"], 0) - min(one["low"], 0)) / 65535
    error = np.round(values / step) * step - values
    assert one["u16_db"] == pytest.approx(20 * np.log10(one["median"] / error.std()), abs=0.2)
    assert name.startswith("first/") and one["u16_db"] > 40
