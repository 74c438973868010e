"""Calibration pictures are always the same, of all kinds, and encoded as diffusers encodes them; few of them cover all."""

import json

import numpy as np
import pytest
import torch

from axbake.calibration.coverage import shares
from axbake.calibration.pictures import (
    ENOUGH,
    LEAVES,
    NOISE,
    decode_latents,
    decoded_of,
    draw_pictures,
    encode_pictures,
)
from axbake.distance import psnr
from axbake.emulator.graph import load_graph
from axbake.emulator.ranges import record_ranges
from axbake.networks.component import DECODER, ENCODER


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


def encode(model, pictures, directory):
    """`latents.npy` and `encoder.json` in *directory*."""
    encoder = model.family.of_role(ENCODER)
    encode_pictures(
        pictures,
        model.weights[encoder.name],
        build=encoder.build,
        channels=model.family.latents.channels,
        precision="float32",
        device="cpu",
        latents=directory / "latents.npy",
        chosen=directory / "encoder.json",
    )


def test_latents_are_the_means_that_diffusers_gives(model, pictures, tmp_path):
    encode(model, pictures, tmp_path)

    found = np.load(tmp_path / "latents.npy")
    assert found.shape == (len(np.load(pictures)) + len(NOISE), 1, 4, 8, 12)
    assert np.std(found[-len(NOISE) :] * 0.18215, axis=(1, 2, 3, 4)) == pytest.approx(NOISE, rel=0.15)
    for number, picture in enumerate(np.load(pictures)[:3]):
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.inference_mode():
            wanted = model.networks.vae.encode(pixels).latent_dist.mode()
        # torch normalises groups of a channels-last tensor less exactly: a picture of little contrast loses 70 dB by it.
        assert psnr(wanted.numpy(), found[number]) > 55


@pytest.mark.parametrize("tile", [None, 8])
def test_few_samples_cover_what_all_cover_in_the_graphs_that_are_compiled(model, graph_of, tile, tmp_path):
    """By the ranges of ONNX graphs, of which the choice in torch knows nothing."""
    decoder, pictures = model.family.of_role(DECODER), tmp_path / "pictures.npy"
    draw_pictures(height=64, width=64, pictures=pictures)  # as the graphs are
    encode(model, pictures, tmp_path)
    how = {"build": decoder.build, "precision": "float32", "device": "cpu", "chosen": tmp_path / "decoder.json"}
    decode_latents(tmp_path / "latents.npy", model.weights[decoder.name], **how, tile=tile)

    scaled = np.load(pictures).transpose(0, 3, 1, 2)[:, None] / np.float32(127.5) - 1
    latents = decoded_of(np.load(tmp_path / "latents.npy"), tile)
    for component, samples in (("encoder", scaled), ("decoder", latents)):
        said = json.loads((tmp_path / f"{component}.json").read_text())
        assert (said["component"], said["recorded"]) == (f"vae_{component}", len(samples))
        assert said["coverage"] == said["coverage_by_samples"][len(said["samples"]) - 1] >= ENOUGH
        assert len(said["samples"]) < 0.6 * len(samples)
        if component == "decoder" and tile:
            continue  # the graph at hand is of a whole picture
        graph = load_graph(graph_of(f"vae_{component}"))
        (name,) = (spec.name for spec in graph.inputs)
        found = shares(record_ranges(graph, ({name: one} for one in samples)), {spec.name for spec in graph.outputs})
        assert found.curve(said["samples"])[-1] > 0.99
