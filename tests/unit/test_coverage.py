"""The choice of samples by coverage is greed's, keeps what is required, and is as good as greed is known to be."""

import itertools
import math

import numpy as np
import pytest

from axbake.calibration.coverage import CoverageError, choose, shares
from axbake.emulator.ranges import Ranges


def random_ranges(seed, samples=9, tensors=5):
    """Ranges of *samples* on *tensors*, of several sizes, some of them on one side of 0."""
    random = np.random.RandomState(seed)
    centre = random.normal(size=(samples, tensors))
    reach = np.abs(random.normal(size=(samples, tensors)))
    sizes = 10.0 ** random.randint(-3, 4, tensors)
    low, high = (centre - reach) * sizes, (centre + reach) * sizes
    return Ranges(tuple("abcdefgh"[:tensors]), low.astype(np.float32), high.astype(np.float32))


def coverage(ranges, chosen, output="a"):
    """The objective, computed as its definition says."""
    low, high = np.minimum(ranges.low.astype(float), 0), np.maximum(ranges.high.astype(float), 0)
    rows = list(chosen)
    covered = (high[rows].max(0) - low[rows].min(0)) / (high.max(0) - low.min(0))
    weights = np.array([len(ranges.names) - 1 if name == output else 1 for name in ranges.names])
    return float(covered @ weights / weights.sum())


@pytest.mark.parametrize("seed", range(20))
def test_each_sample_is_the_one_that_adds_most(seed):
    ranges = random_ranges(seed)
    order = choose(shares(ranges, {"a"}), 9)

    assert sorted(order) == list(range(9))
    for count in range(1, 5):
        reached = {
            one: coverage(ranges, [*order[: count - 1], one]) for one in range(9) if one not in order[: count - 1]
        }
        assert reached[order[count - 1]] == pytest.approx(max(reached.values()), abs=1e-8)


@pytest.mark.parametrize("seed", range(10))
def test_greed_reaches_the_share_of_the_best_choice_that_is_proven(seed):
    ranges = random_ranges(seed)
    order = choose(shares(ranges, {"a"}), 9)

    for count in (1, 2, 3, 4):
        best = max(coverage(ranges, chosen) for chosen in itertools.combinations(range(9), count))
        assert coverage(ranges, order[:count]) >= (1 - 1 / math.e) * best


def test_the_curve_never_falls_gains_never_grow_and_all_samples_cover_everything():
    ranges = random_ranges(3, samples=40, tensors=8)
    covering = shares(ranges, {"a"})
    order = choose(covering, 40)
    curve = covering.curve(order)

    assert curve == sorted(curve)
    assert curve[-1] == 1
    gains = np.diff([0, *curve])
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(gains))
    assert curve == pytest.approx([coverage(ranges, order[: n + 1]) for n in range(40)], abs=1e-6)


def test_a_larger_choice_begins_with_the_smaller_one():
    covering = shares(random_ranges(4, samples=40, tensors=8), {"a"})
    whole = choose(covering, 40)

    assert all(choose(covering, count)[:count] == whole[:count] for count in (1, 4, 8, 32))


def test_the_choice_goes_on_to_the_sample_that_completes_the_coverage_and_no_further():
    covering = shares(random_ranges(5, samples=60, tensors=3), {"a"})
    order = choose(covering, 2)
    curve = covering.curve(order)

    assert 2 < len(order) <= 6  # three tensors have six ends
    assert curve[-1] == 1 > curve[-2]
    assert len(choose(covering, 50)) == 50


def test_of_equal_samples_the_first_is_taken():
    low = np.array([[-1.0], [-2.0], [-2.0], [0.0]], np.float32)

    assert choose(shares(Ranges(("a",), low, low + 2), {"a"}), 4) == [0, 1, 3, 2]


def required_by(texts, times, samples=40):
    """Every sample has one of *times* steps and one of *texts* texts, all pairs occur."""
    return [
        [{n for n in range(samples) if n % texts == text} for text in range(texts)],
        [{n for n in range(samples) if n // texts % times == step} for step in range(times)],
    ]


@pytest.mark.parametrize("count", [5, 6, 7, 12, 40])
def test_the_choice_has_one_of_each_required_set(count):
    covering, required = shares(random_ranges(6, samples=40, tensors=8), {"a"}), required_by(2, 5)
    chosen = choose(covering, count, required)[:count]

    assert len(set(chosen)) == count
    assert all(wish & set(chosen) for group in required for wish in group)


def test_what_is_required_is_put_off_until_there_is_no_room_for_anything_else():
    covering, required = shares(random_ranges(6, samples=40, tensors=8), {"a"}), required_by(2, 10)
    free, bound = choose(covering, 12), choose(covering, 12, required)

    same = next(n for n in range(12) if free[n] != bound[n])
    missing = [[wish for wish in group if not wish & set(free[:same])] for group in required]
    assert max(map(len, missing)) == 12 - same


def test_fewer_samples_than_required_are_greeds_alone():
    covering = shares(random_ranges(6, samples=40, tensors=8), {"a"})

    assert choose(covering, 4, required_by(2, 5))[:4] == choose(covering, 4)[:4]


def test_a_tensor_counts_as_far_as_0_as_the_quantiser_does():
    low, high = np.array([[2.0], [3.0]], np.float32), np.array([[4.0], [8.0]], np.float32)

    assert shares(Ranges(("a",), low, high), {"a"}).by_tensor([0]) == {"a": 0.5}


def test_tensors_that_tell_nothing_do_not_count_and_equal_ones_count_once():
    low, high = np.full((3, 6), -1.0, np.float32), np.ones((3, 6), np.float32)
    high[:, 0] = [1, 2, 4]
    high[:, 1] = high[:, 0] * 8 + 7  # reaches 1/8 … of its span, as the one before does not
    low[:, 2] = high[:, 2] = 0  # always 0
    low[:, 3] = -3.4e38  # a mask
    high[:, 4] = low[:, 4] = 5
    high[:, 5] = high[:, 0]  # the output is a Reshape of the first

    found = shares(Ranges(tuple("abcdef"), low, high), {"f"})

    assert found.names == ("f", "b", "e")
    assert list(found.weights) == [2, 1, 1]


def test_nan_and_a_network_of_zeros_are_errors_that_say_so():
    good, zeros = np.ones((2, 2), np.float32), np.zeros((2, 2), np.float32)
    nan = np.array([[0, np.nan], [0, 1]], np.float32)

    with pytest.raises(CoverageError, match="b: NaN on recorded samples"):
        shares(Ranges(("a", "b"), nan, good), {"a"})
    with pytest.raises(CoverageError, match="every activation is 0"):
        shares(Ranges(("a", "b"), zeros, zeros), {"a"})
