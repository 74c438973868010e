"""The check of a calibration finds what leaves its ranges, and says whether its prompt was held out."""

import json

import numpy as np
import pytest

from axbake.calibration.held_out import check_calibration, compare
from axbake.emulator.ranges import Ranges
from tests.unit.conftest import tensors_of
from tests.unit.jobs import calibrate, draw_picture, observe, record

PROMPTS = ["slice of pizza", "penguin"]
DRAWING = {"negative_prompt": "blurry", "guidance_scale": 5, "seed": 9}


def ranges(low, high):
    return Ranges(("a", "b"), np.array(low, np.float32), np.array(high, np.float32))


def test_excess_is_what_lies_beyond_the_chosen_ranges_as_a_share_of_their_width():
    calibrated = ranges([[-1, 2], [-9, 2]], [[3, 4], [1, 8]])  # the first alone: -1 to 3, and 0 to 4
    found = ranges([[-2, 1], [-1, -1]], [[4, 4], [3, 4]])

    said = compare(found, calibrated, [0])

    assert said["samples"] == 1
    assert said["clip_rate"] == 0.5  # a of the first sample, b of the second
    assert said["largest_excess"] == {"a": 0.5, "b": 0.25}
    assert said["mean_excess_of_the_clipped"] == pytest.approx((0.5 + 0.25) / 2)
    assert compare(found, calibrated, [0, 1])["largest_excess"] == {"b": 0.125, "a": pytest.approx(1 / 12, abs=1e-4)}


def test_what_was_calibrated_with_leaves_nothing():
    calibrated = ranges([[-1, 2], [-9, 2]], [[3, 4], [1, 8]])

    assert compare(calibrated, calibrated, [0, 1])["clip_rate"] == 0
    assert compare(calibrated, calibrated, [0, 1])["largest_excess"] == {}


def test_a_tensor_that_calibration_saw_only_as_0_is_clipped_wholly():
    silent = ranges([[0, 0]], [[0, 1]])

    assert compare(ranges([[0, 0]], [[2, 1]]), silent, [0])["largest_excess"] == {"a": 1}
    assert compare(silent, silent, [0])["clip_rate"] == 0


@pytest.fixture(scope="module")
def calibrated(model, graph_of, tmp_path_factory):
    """Everything that the check takes but the reference, for 8 samples of the tiny model."""
    directory = tmp_path_factory.mktemp("calibrated")
    schedule = model.schedule(directory / "schedule.npz", scheduler="euler", steps=4)
    record(model, schedule, directory / "trajectories.npz", prompts=PROMPTS, **DRAWING)
    graphs = [graph_of("unet")]
    observe(graphs, directory, guidance_scale=5)
    calibrate(model.family.denoiser, graphs, directory, [directory / "unet.tar"], samples=8)
    return directory


def check(model, graph_of, calibrated, directory, *, prompt, **changed):
    picture = model.picture(prompt=prompt, scheduler="euler", steps=4, **DRAWING | changed)
    draw_picture(model, picture, directory)
    graphs = [graph_of(name) for name in model.family.names]
    check_calibration(
        graphs=graphs,
        tensors=[tensors_of(graph) for graph in graphs],
        schedule=calibrated / "schedule.npz",
        embeddings=model.embeddings,
        trajectory=directory / "trajectory.npy",
        ranges=calibrated / "ranges.npz",
        calibration=calibrated / "unet.json",
        picture=picture,
        prompts=PROMPTS,
        drawn=model.drawn,
        held_out=directory / "check.json",
    )
    return json.loads((directory / "check.json").read_text())


def test_a_drawing_that_was_calibrated_with_clips_next_to_nothing_and_is_not_called_held_out(
    model, graph_of, calibrated, tmp_path
):
    """The first calibration prompt, with its seed: only float32 rounding is between the reference and what was recorded."""
    said = check(model, graph_of, calibrated, tmp_path, prompt=PROMPTS[0])

    assert said["held_out"] is False
    assert said["steps"] == [1, 2, 3, 4]
    assert said["texts"] == ["prompt", "negative prompt"]
    assert said["all_recorded"]["samples"] == 20
    assert max(said["all_recorded"]["largest_excess"].values(), default=0) < 1e-3
    assert said["chosen"]["samples"] == 8
    assert max(said["chosen"]["largest_excess"].values()) > 1e-3


def test_another_drawing_clips_more_the_fewer_samples_there_are(model, graph_of, calibrated, tmp_path):
    said = check(model, graph_of, calibrated, tmp_path, prompt="a rocket, in the night", seed=10)

    assert said["held_out"] is True
    assert 0 < said["all_recorded"]["clip_rate"] < said["chosen"]["clip_rate"] < 1


def test_without_guidance_the_negative_prompt_is_not_looked_at(model, graph_of, calibrated, tmp_path):
    assert check(model, graph_of, calibrated, tmp_path, prompt="rocket", guidance_scale=1)["texts"] == ["prompt"]
