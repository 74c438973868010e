"""The report's plot has its points where the coverage says."""

import pytest

from axbake.report import _plot


def test_coverage_is_drawn_by_octaves_of_samples_up_to_the_whole():
    plot = _plot([0.82, 0.91, 0.95, 1.0])

    assert plot["samples"] == [(1, 0), (2, 280), (4, 560)]
    assert plot["shares"] == [(0.8, 200), (0.9, 100), (1.0, 0)]
    assert plot["points"] == [(0, 180), (280, 90), (pytest.approx(443.8), 50), (560, 0)]


@pytest.mark.parametrize("curve", [[1.0], [0.3], [0.0, 1.0], [0.999, 1.0]])
def test_every_curve_has_a_place_in_the_plot(curve):
    plot = _plot(curve)

    assert len(plot["points"]) == len(curve)
    assert all(0 <= x <= 560 and 0 <= y <= 200 for x, y in plot["points"])
