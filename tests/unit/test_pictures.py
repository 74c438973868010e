"""Calibration pictures are always the same, of all kinds, and encoded as diffusers encodes them."""

import numpy as np
import pytest
import torch

from axbake.calibration.pictures import LEAVES, NOISE, draw_pictures, encode_pictures
from axbake.distance import psnr
from axbake.networks.component import ENCODER


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "pictures.npy"
    draw_pictures(height=64, width=96, pictures=path)
    return path


def test_pictures_have_the_size_that_was_asked_for_and_are_all_different(pictures):
    drawn = np.load(pictures)

    assert drawn.shape[1:] == (64, 96, 3)
    assert drawn.dtype == np.uint8
    assert len({picture.tobytes() for picture in drawn}) == len(drawn) > LEAVES


def test_the_same_size_gives_the_same_bytes(pictures, tmp_path):
    draw_pictures(height=64, width=96, pictures=tmp_path / "again.npy")

    assert (tmp_path / "again.npy").read_bytes() == pictures.read_bytes()


def test_the_extremes_are_there_and_leaves_are_neither_flat_nor_noise(pictures):
    drawn = np.load(pictures)
    flat = {tuple(picture[0, 0]) for picture in drawn if np.ptp(picture.reshape(-1, 3), axis=0).max() == 0}
    edges = [np.mean(np.any(picture[:, 1:] != picture[:, :-1], axis=-1)) for picture in drawn[:LEAVES]]

    assert {(0, 0, 0), (255, 255, 255), (255, 0, 0)} <= flat
    assert all(0 < share < 0.7 for share in edges)


def test_latents_are_the_means_that_diffusers_gives(model, pictures, tmp_path):
    encoder = model.family.of_role(ENCODER)
    of = {"build": encoder.build, "channels": model.family.latents.channels}
    encode_pictures(pictures, model.weights[encoder.name], **of, latents=tmp_path / "latents.npy")

    found = np.load(tmp_path / "latents.npy")
    assert found.shape == (len(np.load(pictures)) + len(NOISE), 1, 4, 8, 12)
    assert np.std(found[-len(NOISE) :] * 0.18215, axis=(1, 2, 3, 4)) == pytest.approx(NOISE, rel=0.15)
    for number, picture in enumerate(np.load(pictures)[:3]):
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.inference_mode():
            wanted = model.networks.vae.encode(pixels).latent_dist.mode()
        # torch normalises groups of a channels-last tensor less exactly: a picture of little contrast loses 70 dB by it.
        assert psnr(wanted.numpy(), found[number]) > 55
