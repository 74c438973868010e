"""Distances are what their formulas say, and never infinite or not a number."""

import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from axbake.distance import IDENTICAL, cosine, psnr, sqnr, ssim

RANDOM = np.random.default_rng(0)


def test_psnr_is_the_formula():
    reference = np.array([0.0, 1.0, 2.0, 4.0])

    # Mean square error 0.25, span 4.
    assert psnr(reference, reference + 0.5) == pytest.approx(10 * math.log10(4**2 / 0.25))
    assert psnr(reference, reference + 0.5, peak=255) == pytest.approx(10 * math.log10(255**2 / 0.25))


def test_psnr_of_pictures_is_that_of_scikit_image_without_wrapping_round():
    one, other = RANDOM.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)

    assert psnr(one, other, peak=255) == pytest.approx(peak_signal_noise_ratio(one, other, data_range=255))


def test_psnr_does_not_depend_on_scale_or_offset():
    reference, noise = RANDOM.standard_normal((2, 1000))
    decibels = psnr(reference, reference + 0.01 * noise)

    assert psnr(50 * reference + 7, 50 * (reference + 0.01 * noise) + 7) == pytest.approx(decibels)


def test_equal_tensors_have_a_number_that_json_can_hold():
    assert psnr(np.ones(3), np.ones(3)) == IDENTICAL
    assert psnr(np.zeros(3), np.zeros(3)) == IDENTICAL
    assert psnr(np.array([0, 1e20]), np.array([0, 1e20]) + 1e-300) == IDENTICAL


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_as_far_as_can_be(bad):
    fine, spoilt = np.array([0.0, 1.0]), np.array([0.0, bad])

    assert psnr(fine, spoilt) == 0
    assert psnr(spoilt, fine) == 0


def test_a_constant_reference_has_no_span_to_compare_with():
    assert psnr(np.ones(4), np.array([1, 1, 1, 1.1])) == 0


def test_ssim_is_1_for_equal_pictures_and_falls_with_noise():
    picture = RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    near, far = (np.clip(picture + RANDOM.normal(0, s, picture.shape), 0, 255).astype(np.uint8) for s in (5, 60))

    assert ssim(picture, picture) == 1
    assert 1 > ssim(picture, near) > ssim(picture, far) > 0


def test_sqnr_is_the_formula_and_counts_an_offset_as_error():
    reference = np.array([3.0, -4.0])

    # Power of the signal 12.5, of the error 0.25.
    assert sqnr(reference, reference + 0.5) == pytest.approx(10 * math.log10(12.5 / 0.25))
    assert sqnr(10 * reference, 10 * reference + 5) == pytest.approx(sqnr(reference, reference + 0.5))


def test_sqnr_of_equal_silent_and_broken_tensors_is_a_number():
    silent, signal = np.zeros(3), np.array([1.0, 2.0, 3.0])

    assert sqnr(signal, signal) == sqnr(silent, silent) == IDENTICAL
    assert sqnr(silent, signal) == -IDENTICAL
    assert sqnr(signal, np.array([1.0, np.nan, 3.0])) == -IDENTICAL
    assert sqnr(signal, np.array([1.0, np.inf, 3.0])) == -IDENTICAL


def test_the_cosine_is_of_directions_alone():
    assert cosine(np.array([1.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(math.sqrt(0.5))
    assert cosine(np.array([[1.0], [2.0]]), np.array([[10.0], [20.0]])) == pytest.approx(1)
    assert cosine(np.ones(2), -np.ones(2)) == pytest.approx(-1)
    assert cosine(np.zeros(2), np.ones(2)) == cosine(np.ones(2), np.array([np.inf, 1])) == 0
