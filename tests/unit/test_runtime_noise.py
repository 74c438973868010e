"""`TorchNoise` draws what PyTorch draws."""

import numpy as np
import pytest
import torch

from axbake.runtime.noise import TorchNoise

MAX_ERROR = 2e-6  # PyTorch's AVX code approximates log, sin and cos


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31, 2**32 - 1, 2**32, 2**32 + 5, 2**63 - 1, 2**64 - 1, -1, -7])
@pytest.mark.parametrize("shape", [(1, 4, 60, 40), (1, 4, 8, 8), (16,), (17,), (31,), (5, 7, 3), (15,), (1,), ()])
def test_a_seed_gives_the_numbers_of_torch(seed, shape):
    expected = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).numpy()

    noise = TorchNoise(seed).normal(shape)

    assert noise.dtype == np.float32 and noise.shape == expected.shape
    np.testing.assert_allclose(noise, expected, rtol=0, atol=MAX_ERROR)


def test_later_calls_go_on_where_the_one_before_ended():
    generator, noise = torch.Generator().manual_seed(3), TorchNoise(3)

    # 3 leaves a second normal value over, which waits until the next call of fewer than 16
    for shape in [(1, 4, 8, 8), (3,), (1, 4, 8, 8), (33,), (2,), (5,), (1, 4, 60, 40), (15,), (4, 4)]:
        expected = torch.randn(shape, generator=generator).numpy()
        np.testing.assert_allclose(noise.normal(shape), expected, rtol=0, atol=MAX_ERROR)


def test_the_numbers_are_normal():
    noise = TorchNoise(0).normal((1000, 1000))

    assert abs(noise.mean()) < 0.005 and abs(noise.std() - 1) < 0.005
    assert np.isfinite(noise).all()
