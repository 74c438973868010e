"""Plots have their points where the figures say."""

import pytest

from axbake.pages.plots import HEIGHT, WIDTH, coverage_plot, decibel_plot


def test_coverage_is_drawn_by_octaves_of_samples_up_to_the_whole():
    plot = coverage_plot([0.82, 0.91, 0.95, 1.0])

    assert plot.x_ticks == [("1", 0), ("2", 150), ("4", 300)]
    assert plot.y_ticks == [("80 %", 150), ("90 %", 75), ("100 %", 0)]
    assert plot.points == [(0, 135), (150, 67.5), (pytest.approx(237.7), 37.5), (300, 0)]


def test_decibels_are_drawn_by_step_in_a_frame_of_multiples_of_five():
    plot = decibel_plot([41, 44, 47.5])

    assert plot.y_ticks == [("40 dB", 150), ("45 dB", 75), ("50 dB", 0)]
    assert plot.x_ticks == [("1", 0), ("2", 150), ("3", 300)]
    assert plot.points == [(0, 135), (150, 90), (300, 37.5)]


@pytest.mark.parametrize("curve", [[1.0], [0.3], [0.0, 1.0], [0.999, 1.0]])
def test_every_coverage_has_a_place_in_the_plot(curve):
    assert inside(coverage_plot(curve), len(curve))


@pytest.mark.parametrize("curve", [[200.0], [0.0, 200.0], [40.0, 40.0], [-3.2, 12.0, 200.0]])
def test_every_psnr_has_a_place_in_the_plot(curve):
    assert inside(decibel_plot(curve), len(curve))


def inside(plot, count):
    places = [*plot.points, *((x, 0) for _, x in plot.x_ticks), *((0, y) for _, y in plot.y_ticks)]
    return len(plot.points) == count and all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)
