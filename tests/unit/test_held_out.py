"""The check of a calibration finds what leaves its ranges, and says whether its prompt was held out."""

import tempfile
from pathlib import Path

import numpy as np
import pytest

from axbake.calibration.held_out import compare
from axbake.emulator.ranges import Ranges
from tests.unit import jobs
from tests.unit.jobs import calibrate, draw_picture, record

PROMPTS = ["slice of pizza", "penguin"]
DRAWING = {"negative_prompt": "blurry", "guidance_scale": 5, "seed": 9}


def ranges(low, high):
    return Ranges(("a", "b"), np.array(low, np.float32), np.array(high, np.float32))


def test_excess_is_what_lies_beyond_the_chosen_ranges_as_a_share_of_their_width():
    whole = ranges([[-1, 2], [-9, 2]], [[3, 4], [1, 8]])
    first = ranges([[-1, 2]], [[3, 4]])  # extended: -1 to 3, and 0 to 4
    found = ranges([[-2, 1], [-1, -1]], [[4, 4], [3, 4]])

    said = compare(found, first)

    assert said["samples"] == 1
    assert said["clip_rate"] == 0.5  # a of the first sample, b of the second
    assert said["largest_excess"] == {"a": 0.5, "b": 0.25}
    assert said["mean_excess_of_the_clipped"] == pytest.approx((0.5 + 0.25) / 2)
    assert compare(found, whole)["largest_excess"] == {"b": 0.125, "a": pytest.approx(1 / 12, abs=1e-4)}


def test_what_was_calibrated_with_leaves_nothing():
    calibrated = ranges([[-1, 2], [-9, 2]], [[3, 4], [1, 8]])

    assert compare(calibrated, calibrated)["clip_rate"] == 0
    assert compare(calibrated, calibrated)["largest_excess"] == {}


def test_a_tensor_that_calibration_saw_only_as_0_is_clipped_wholly():
    silent = ranges([[0, 0]], [[0, 1]])

    assert compare(ranges([[0, 0]], [[2, 1]]), silent)["largest_excess"] == {"a": 1}
    assert compare(silent, silent)["clip_rate"] == 0


def test_a_module_that_hands_on_what_its_last_one_gave_counts_once():
    apart, same = ranges([[-1, 2]], [[3, 4]]), ranges([[-1, -1]], [[3, 3]])

    assert compare(ranges([[-2, 1]], [[4, 4]]), apart)["clip_rate"] == 0.5
    assert compare(ranges([[-2, -2]], [[4, 4]]), same) == {
        "samples": 1,
        "clip_rate": 1.0,
        "mean_excess_of_the_clipped": 0.5,
        "largest_excess": {"a": 0.5},
    }


@pytest.fixture(scope="module")
def recorded(model, tmp_path_factory):
    """Schedule and trajectories of the tiny model, which give 20 samples."""
    directory = tmp_path_factory.mktemp("recorded")
    schedule = model.schedule(directory / "schedule.npz", scheduler="euler", steps=4)
    record(model, schedule, directory / "trajectories.npz", prompts=PROMPTS, **DRAWING)
    return directory


@pytest.fixture
def check(model, graph_of, recorded, tmp_path):
    """A function that calibrates the tiny model with so many samples, draws a picture, and checks the one by the other."""

    def check(samples, *, prompt, **changed):
        place = Path(tempfile.mkdtemp(dir=tmp_path))
        how = {"samples": samples, "guidance_scale": 5}
        said = calibrate(model.family.denoiser, [graph_of("unet")], recorded, [place / "unet.tar"], **how)
        picture = model.picture(prompt=prompt, scheduler="euler", steps=4, **DRAWING | changed)
        draw_picture(model, picture, place)
        graphs = [graph_of("text_encoder")]
        return jobs.ranges_hold(
            model, graphs, recorded, said, trajectory=place / "trajectory.npy", picture=picture, prompts=PROMPTS
        )

    return check


def test_a_drawing_that_was_calibrated_with_clips_next_to_nothing_and_is_not_called_held_out(check):
    """The first calibration prompt, with its seed: only float32 rounding is between the reference and what was recorded."""
    said = check(20, prompt=PROMPTS[0])

    assert said["held_out"] is False
    assert said["steps"] == [1, 2, 3, 4]
    assert said["texts"] == ["prompt", "negative prompt"]
    assert said["chosen"]["samples"] == 20
    assert max(said["chosen"]["largest_excess"].values(), default=0) < 1e-3


def test_ranges_are_those_of_the_denoisers_modules(check, recorded):
    said = check(8, prompt="a rocket, in the night", seed=10)

    modules = set(np.load(recorded / "trajectories.npz")["module_names"])
    assert len(said["chosen"]["largest_excess"]) == 10
    assert said["chosen"]["largest_excess"].keys() < modules


def test_another_drawing_clips_more_the_fewer_samples_there_are(check):
    few, all_there_are = (check(samples, prompt="a rocket, in the night", seed=10) for samples in (8, 20))

    assert few["held_out"] is True
    assert 0 < all_there_are["chosen"]["clip_rate"] < few["chosen"]["clip_rate"] < 1


def test_without_guidance_the_negative_prompt_is_not_looked_at(check):
    assert check(8, prompt="rocket", guidance_scale=1)["texts"] == ["prompt"]
