"""A decoder of tiles draws what diffusers' tiling draws, the same on host and board, and the simulation measures its cost."""

import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from axbake.bundles.layouts import LAYOUTS, LayoutError
from axbake.calibration.tars import calibrate_decoder
from axbake.distance import psnr
from axbake.drawing.prompts import load_tokenizer
from axbake.drawing.seams import seams
from axbake.drawing.simulation import latents_of, simulate
from axbake.networks.component import columns_of
from axbake.runtime.errors import BundleError
from axbake.runtime.sampler import load_schedule
from axbake.runtime.session import Session, open_models
from axbake.runtime.tiles import decode_tiles, starts, tiles_of
from axbake.runtime.txt2img import Models, decode_latent, draw, latent_shape
from axbake.runtime.values import Latents
from axbake.table import TableError
from tests import tiny
from tests.decoder import all_of
from tests.unit.conftest import COLUMNS, SD1, row_of
from tests.unit.jobs import draw_picture

FACTOR = 8
DRAWING = {"prompt": "a rocket", "height": 64, "width": 96, "seed": 9}


def decoding(vae):
    """A VAE's decoder as a function of NumPy arrays."""

    def decode(latent):
        with torch.inference_mode():
            return vae.decode(torch.from_numpy(np.ascontiguousarray(latent))).sample.numpy()

    return decode


@pytest.fixture(scope="module")
def vae():
    """Four levels of four channels, as deep as those of published models, and tiles of 8 latent pixels."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4,) * 4, norm_num_groups=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).eval()  # fmt: skip
    vae.tile_latent_min_size, vae.tile_sample_min_size = 8, 64
    return vae


def latent_of(height, width, seed=0):
    return np.random.default_rng(seed).standard_normal((1, 4, height, width)).astype(np.float32)


def weights_of(begins, tile):
    """The share that each tile of a side has in each pixel, (tiles, pixels): by a formula, not by joining."""
    pixels = np.arange((begins[-1] + tile) * FACTOR)
    shares = np.zeros((len(begins), len(pixels)))
    shares[0, : tile * FACTOR] = 1
    for number, begin in enumerate(begins[1:], start=1):
        first, end = begin * FACTOR, (begins[number - 1] + tile) * FACTOR
        share = np.clip((pixels - first) / (end - first), 0, 1)
        shares[:number] *= 1 - share
        shares[number] = share
    return shares


@pytest.mark.parametrize(
    ("length", "begins"),
    [(8, [0]), (9, [0, 1]), (14, [0, 6]), (15, [0, 6, 7]), (20, [0, 6, 12]), (21, [0, 6, 12, 13])],
)
def test_the_last_tile_ends_with_the_picture(length, begins):
    assert starts(length, 8) == begins


@pytest.mark.parametrize(("height", "width"), [(14, 20), (8, 13), (15, 8), (9, 17)])
def test_each_pixel_is_the_mean_of_its_tiles_weighted_by_a_ramp_over_their_overlap(vae, height, width):
    latent, decode = latent_of(height, width), decoding(vae)
    rows, columns = weights_of(starts(height, 8), 8), weights_of(starts(width, 8), 8)
    wanted = np.zeros((1, 3, height * FACTOR, width * FACTOR))
    for i, top in enumerate(starts(height, 8)):
        for j, left in enumerate(starts(width, 8)):
            place = np.s_[..., top * FACTOR : (top + 8) * FACTOR, left * FACTOR : (left + 8) * FACTOR]
            wanted[place] += decode(latent[:, :, top : top + 8, left : left + 8]) * np.outer(rows[i], columns[j])[place]

    found = decode_tiles(decode, latent, 8, factor=FACTOR)

    assert np.allclose(rows.sum(axis=0), 1) and np.allclose(columns.sum(axis=0), 1)
    assert found.shape == wanted.shape and found.dtype == np.float32
    assert np.abs(found - wanted).max() < 1e-6


def test_what_diffusers_cuts_into_the_same_tiles_is_the_same_but_for_its_corners(vae):
    latent = latent_of(14, 20)  # tiles begin at 0, 6 and 0, 6, 12; diffusers adds a short one at 12 and at 18

    with torch.inference_mode():
        theirs = vae.tiled_decode(torch.from_numpy(latent)).sample.numpy()
    ours = decode_tiles(decoding(vae), latent, 8, factor=FACTOR)

    apart = np.abs(ours - theirs)[0].max(axis=0)[: 12 * FACTOR, : 18 * FACTOR]
    corners = np.zeros(apart.shape, bool)
    for left in (6, 12):
        corners[6 * FACTOR : 8 * FACTOR, left * FACTOR : (left + 2) * FACTOR] = True
    assert apart[~corners].max() < 1e-6
    assert apart[corners].max() > 1e-6  # where diffusers blends twice from left to right


def test_blending_a_corner_twice_leaves_an_edge_that_this_does_not():
    def decode(latent):  # pixels that are the latent's, of tiles that differ by their first value
        return np.full((1, 3, 64, 64), latent[0, 0, 0, 0], np.float32)

    latent = np.zeros((1, 4, 14, 14), np.float32)
    latent[..., 0, 6] = 1  # of the tile on the upper right alone

    pixels = decode_tiles(decode, latent, 8, factor=FACTOR)[0, 0]

    assert pixels[0, -1] == 1 and pixels[-1, -1] == 0
    # A ramp over 16 pixels down times one over 16 across; no step is larger than one of theirs.
    assert np.abs(np.diff(pixels, axis=0)).max() <= 1 / 16 + 1e-6
    assert np.abs(np.diff(pixels, axis=1)).max() <= 1 / 16 + 1e-6


def test_tiles_that_agree_give_the_whole_to_the_last_bit():
    def decode(latent):  # each pixel depends on its latent pixel alone
        return np.repeat(np.repeat(latent[:, :3], FACTOR, axis=2), FACTOR, axis=3) * np.float32(0.1)

    latent = latent_of(15, 21)

    assert (decode_tiles(decode, latent, 8, factor=FACTOR) == decode(latent)).all()


def test_an_autoencoder_tiny_is_near_its_whole_since_it_looks_only_around_each_pixel():
    vae, latent = tiny.sdxs().vae, latent_of(32, 40)
    whole = decoding(vae)(latent)

    tiled = decode_tiles(decoding(vae), latent, 24, factor=FACTOR)

    # Of a tile's border each layer spoils one more pixel, and a tile's share of its outermost pixels is small.
    assert tiled.shape == whole.shape
    assert psnr(whole, tiled) > 30
    assert np.abs(tiled - whole)[..., : 4 * FACTOR, : 4 * FACTOR].max() < 1e-5  # far from all seams


def test_seams_are_measured_against_the_whole(vae):
    latent, decode = latent_of(8, 14), decoding(vae)

    said = seams(decode, latent, tile=8, factor=FACTOR)

    whole, tiled = (
        np.clip((pixels + 1) / 2, 0, 1) * 255
        for pixels in (decode(latent), decode_tiles(decode, latent, 8, factor=FACTOR))
    )
    assert said["tile"] == 64 and said["tiles"] == 2
    assert said["psnr_db"] == pytest.approx(20 * np.log10(255) - 10 * np.log10(np.mean((whole - tiled) ** 2)), abs=0.01)
    assert said["largest_in_overlaps"] == pytest.approx(np.abs(whole - tiled)[..., 48:64].max(), abs=0.01)
    assert seams(decode, latent_of(8, 8), tile=8, factor=FACTOR) == {
        "tile": 64, "tiles": 1, "psnr_db": 200, "largest_in_overlaps": 0,
    }  # fmt: skip


@pytest.fixture(scope="module")
def graphs(model, graph_of):
    """Graphs of a picture of 64 × 96 pixels, its decoder's for tiles of 64 × 64."""
    graphs = {name: graph_of(name, 64, 96) for name in ("unet", "vae_encoder")}
    return {name: graphs.get(name) or graph_of(name) for name in model.family.names}


@pytest.fixture(scope="module")
def simulated(model, graphs, tmp_path_factory):
    """A directory with the reference, and the simulation of graphs that are not quantised."""
    directory, (encoder, decoder) = tmp_path_factory.mktemp("simulated"), model.family.autoencoder
    (directory / "reference").mkdir()
    draw_picture(model, model.picture(**DRAWING), directory / "reference")
    model.schedule(directory / "schedule.npz")
    simulate(
        models=list(graphs.values()),
        encoder_weights=model.weights[encoder.name],
        decoder_weights=[model.weights[decoder.name]],
        decoder_build=decoder.build,
        tile=8,
        schedule=directory / "schedule.npz",
        embeddings=model.embeddings,
        reference=directory / "reference" / "image.png",
        trajectory=directory / "reference" / "trajectory.npy",
        picture=model.picture(**DRAWING),
        drawn=model.drawn,
        latents=model.family.latents,
        build=encoder.build,
        image=directory / "image.png",
        simulated=directory / "simulated.npy",
        distance=directory / "distance.json",
    )
    return directory


def loaded(model, graphs):
    text, denoiser, decoder = (open_models([graphs[name]]) for name in ("text_encoder", "unet", "vae_decoder"))
    return Models((text,), denoiser, decoder), latents_of(model.family.latents, model.weights["vae_encoder"])


def test_the_runtime_draws_the_simulations_picture_tile_by_tile(model, graphs, simulated, caplog):
    models, latents = loaded(model, graphs)

    with caplog.at_level("INFO", "axbake.runtime.progress"):
        drawing = draw(
            models,
            load_tokenizer(model.embeddings),
            load_schedule(simulated / "schedule.npz"),
            model.picture(**DRAWING),
            latents=latents,
        )

    assert drawing.image.shape == (64, 96, 3)
    assert (drawing.image == np.asarray(Image.open(simulated / "image.png").convert("RGB"))).all()
    assert len(drawing.seconds["vae_decoder"]) == 2
    assert "decoding: tile 2 of 2" in caplog.messages


def test_the_simulation_says_what_the_tiles_cost(model, simulated):
    said = json.loads((simulated / "distance.json").read_text())
    latent = np.load(simulated / "reference" / "trajectory.npy")[-1]
    scaled = latents_of(model.family.latents, model.weights["vae_encoder"]).for_decoder(latent)

    found = seams(decoding(model.networks.vae), scaled, tile=8, factor=FACTOR)

    assert said["seams"] == {
        name: pytest.approx(value, abs=0.05) if isinstance(value, float) else value for name, value in found.items()
    }
    assert said["latent_psnr_db"] > 60  # tiles have no part in it


def decoder_of(side, pixels):
    return Session(
        "vae_decoder.axmodel",
        {"x": ((1, 4, side, side), np.dtype(np.float32))},
        {"sample": ((1, 3, pixels, pixels), np.dtype(np.float32))},
        lambda feed: [np.zeros((1, 3, pixels, pixels), np.float32)],
    )


@pytest.mark.parametrize(
    ("side", "pixels", "said"),
    [
        (12, 96, r"vae_decoder\.axmodel takes latents of shape \(1, 4, 12, 12\), but .* makes \(1, 4, 8, 12\)"),
        (1, 8, r"takes latents of shape \(1, 4, 1, 1\)"),
        (6, 24, r"makes 24x24 pixels of a tile of 6x6 latent pixels; wanted 8 times as many a side"),
    ],
    ids=["larger than a side", "of one pixel", "of another factor"],
)
def test_a_decoder_whose_tiles_do_not_fit_is_refused(model, graphs, simulated, side, pixels, said):
    models, latents = loaded(model, graphs)
    schedule = load_schedule(simulated / "schedule.npz")
    picture = model.picture(**DRAWING)
    assert latent_shape(models, schedule, picture, latents=latents, chunks=1) == (1, 4, 8, 12)

    with pytest.raises(BundleError, match=said):
        latent_shape(replace(models, decoder=decoder_of(side, pixels)), schedule, picture, latents=latents, chunks=1)


def test_a_whole_latent_is_decoded_in_one_run():
    decoder = decoder_of(8, 64)

    assert decode_latent(decoder, latent_of(8, 8), latents=Latents(4, FACTOR)).shape == (64, 64, 3)
    assert len(decoder.seconds) == 1
    assert decode_latent(decoder, latent_of(8, 9), latents=Latents(4, FACTOR)).shape == (64, 72, 3)
    assert len(decoder.seconds) == 3


def test_the_decoder_is_calibrated_with_one_tile_of_each_latent_in_turn(tmp_path):
    latents = np.stack([latent_of(8, 20, seed) for seed in range(5)])
    np.save(tmp_path / "latents.npy", latents)
    (piece,) = SD1.component("vae_decoder").graphs
    columns = {name: COLUMNS[name] for name in SD1.component("vae_decoder").columns}

    chosen = all_of(tmp_path / "latents.npy")
    calibrate_decoder(
        tmp_path / "latents.npy", chosen, piece=piece, columns=columns, archive=tmp_path / "vae_decoder.tar", tile=8
    )

    with tarfile.open(tmp_path / "vae_decoder.tar") as archive:
        found = [np.load(archive.extractfile(member), allow_pickle=True).item()["x"] for member in archive]
    assert len(found) == 5
    for number, sample in enumerate(found):
        assert (sample == tiles_of(latents[number], 8)[number % 3]).all()


def test_the_graph_of_a_tile_is_that_of_a_picture_of_its_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = row_of(height="128", width="192", vae_tile="64")
    encoder, decoder = SD1.autoencoder

    assert columns_of(decoder, row) == {"height": 64, "width": 64, "program": "axera"}
    assert columns_of(encoder, row) == {"height": 128, "width": 192}
    assert columns_of(decoder, row_of(height="128", width="192")) == {"height": 128, "width": 192, "program": "axera"}


@pytest.mark.parametrize(
    ("tile", "said"),
    [
        ("100", "column vae_tile: 100 is not a multiple of 64; take 64 or 128"),
        ("-64", "column vae_tile: -64 is less than the minimum of 0"),
        ("large", "column vae_tile: 'large' is not of type integer"),
        ("256", "column vae_tile: 256 is larger than the picture, which is 200 high and 320 wide; take at most 192"),
    ],
)
def test_a_tile_that_cannot_be_drawn_is_refused_while_the_table_is_read(tile, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(TableError) as refused:
        row_of(height="200", width="320", vae_tile=tile)

    assert f"line 2 (tiny), {said}" in str(refused.value)


@pytest.mark.parametrize("layout", [name for name, layout in LAYOUTS.items() if layout.models])
def test_published_programs_decode_whole_pictures(layout):
    plan = LAYOUTS[layout]
    roles = {role: role for role in plan.models}

    with pytest.raises(LayoutError, match="vae_tile: 64, wanted 0"):
        plan.check(layout, plan.demands | {"vae_tile": 64, "model": "tiny"}, roles)
