"""A VAE of the row's own, in every form that people have it, is imported and drawn with, at its own scale."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from axbake.checkpoints.containers import UnreadableCheckpoint, files_of, needs_conversion
from axbake.checkpoints.conversion import convert_checkpoint
from axbake.checkpoints.refusals import TensorMismatch, UnknownFamily
from axbake.distance import psnr
from axbake.drawing.reference import draw_reference
from axbake.runtime.session import open_model
from axbake.runtime.txt2img import decode_latent
from axbake.sources import check_vae
from axbake.weights.files import read_description
from tests import tiny
from tests.unit.conftest import SD1, describe, export_part, halves, import_part

LDM = "first_stage_model."
SETTINGS = {"height": 64, "width": 64, "guidance_scale": 5}


def ldm_tensors(networks):
    """Of the VAE alone, as web UIs have it."""
    tensors = tiny.single_file_tensors(networks)
    return {name.removeprefix(LDM): tensor for name, tensor in tensors.items() if name.startswith(LDM)}


def folder(networks, place):
    networks.vae.to(networks.dtype).save_pretrained(place / "vae")
    networks.vae.float()
    return place / "vae"


def pickled(networks, place):
    torch.save({"state_dict": ldm_tensors(networks)}, place / "kl.vae.pt")
    return place / "kl.vae.pt"


def saved(tensors, place):
    save_file(tensors, place / "vae.safetensors")
    return place / "vae.safetensors"


FORMS = {
    "LDM's names": lambda networks, place: saved(ldm_tensors(networks), place),
    "diffusers' names": lambda networks, place: saved(
        {name: tensor.to(networks.dtype).contiguous() for name, tensor in networks.vae.state_dict().items()}, place
    ),
    "a checkpoint": lambda networks, place: tiny.save(networks, place / "model.safetensors"),
    "a folder": folder,
    "a pickle": pickled,
}


def as_safetensors(path, place):
    """As the workflow gives it to the import."""
    if not needs_conversion(path):
        return path
    convert_checkpoint(files_of(path), checkpoint=place / "converted.safetensors")
    return place / "converted.safetensors"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("build", [tiny.sd1, tiny.sdxs], ids=["AutoencoderKL", "AutoencoderTiny"])
def test_every_form_gives_the_original(build, form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what headers say is remembered in the working directory
    networks = build()
    brought = FORMS[form](networks, tmp_path)
    check_vae(brought)  # while the workflow is read
    vae = as_safetensors(brought, tmp_path)

    for component in halves(SD1):
        import_part(vae, component=component, weights=tmp_path / "weights.safetensors")
        found, wanted = load_file(tmp_path / "weights.safetensors"), networks.component(component).state_dict()
        assert set(found) == set(wanted)
        assert [name for name, tensor in found.items() if not torch.equal(tensor.float(), wanted[name])] == []
        config = read_description(tmp_path / "weights.safetensors").config
        assert config["scaling_factor"] == networks.vae.config.scaling_factor


def test_a_folders_scaling_factor_goes_with_its_vae(tmp_path):
    place = folder(tiny.sd1(), tmp_path)
    config = json.loads((place / "config.json").read_text()) | {"scaling_factor": 0.5}
    (place / "config.json").write_text(json.dumps(config))

    import_part(as_safetensors(place, tmp_path), component="vae_decoder", weights=tmp_path / "weights.safetensors")

    assert read_description(tmp_path / "weights.safetensors").config["scaling_factor"] == 0.5


def test_the_description_says_whose_vae_it_is_and_that_the_checkpoints_is_not_used(tmp_path):
    checkpoint = tiny.save(tiny.sd1(), tmp_path / "model.safetensors")
    vae = saved(ldm_tensors(tiny.sdxs()), tmp_path)

    describe(checkpoint, tmp_path / "checkpoint.json", vae=vae, vae_sha256="1" * 64)

    said = json.loads((tmp_path / "checkpoint.json").read_text())
    assert said["vae_sha256"] == "1" * 64 and said["scaling_factor"] == 1
    (unused,) = said["unused_tensors"]
    assert unused["why"] == "the row's column vae names another VAE"
    assert unused["count"] == len(tiny.sd1().vae.state_dict())


def test_a_checkpoint_without_vae_asks_for_one(tmp_path):
    tensors = {name: tensor for name, tensor in tiny.single_file_tensors(tiny.sd1()).items() if LDM not in name}

    with pytest.raises(TensorMismatch, match=r"no vae_decoder found.*or another VAE in the column vae"):
        import_part(saved(tensors, tmp_path), component="vae_decoder", weights=tmp_path / "weights.safetensors")


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        (
            "conditioner.embedders.1.model.ln_final.weight",
            (4,),
            "Stable Diffusion XL checkpoint, wanted a VAE or a checkpoint of Stable Diffusion",
        ),
        ("decoder.layers.0.weight", (8, 16, 3, 3), "latent_channels: 16, wanted 4"),
        (
            "decoder.layers.13.weight",
            (6, 8, 3, 3),
            r"decoder\.layers\.13\.weight: found \(6, 8, 3, 3\), wanted \(3, 8, 3, 3\)",
        ),
    ],
    ids=["SDXL's", "of 16 channels", "of other pictures"],
)
def test_a_vae_of_something_else_is_refused(name, shape, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what headers say is remembered in the working directory
    vae = saved(ldm_tensors(tiny.sdxs()) | {name: torch.zeros(shape)}, tmp_path)

    with pytest.raises((UnknownFamily, TensorMismatch), match=said):
        check_vae(vae)  # while the workflow is read
        import_part(vae, component="vae_decoder", weights=tmp_path / "weights.safetensors")


def test_a_folder_of_another_network_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))

    with pytest.raises(UnreadableCheckpoint, match=r"is of UNet2DConditionModel\. Wanted"):
        files_of(tmp_path)


def test_a_tiny_vae_draws_what_diffusers_draws_with_it(model, tmp_path):
    networks = tiny.sdxs()
    decoder, graph = tmp_path / "vae_decoder.safetensors", tmp_path / "vae_decoder.onnx"
    import_part(saved(ldm_tensors(networks), tmp_path), component="vae_decoder", weights=decoder)
    export_part(decoder, graph)
    draw_reference(
        text_encoders=[model.weights["text_encoder"]],
        denoiser=model.weights["unet"],
        decoder=decoder,
        embeddings=model.embeddings,
        picture=model.picture(steps=2, seed=9, **SETTINGS),
        builds=model.builds,
        states=model.states,
        pipeline=model.family.process.pipelines[""],
        conditioning=model.family.conditioning,
        image=tmp_path / "image.png",
        trajectory=tmp_path / "trajectory.npy",
        settings=tmp_path / "settings.json",
        activations=tmp_path / "activations.json",
    )
    pipeline = model.pipeline("euler")
    pipeline.vae = networks.vae

    (wanted,) = pipeline(
        "a rocket", num_inference_steps=2, generator=torch.Generator().manual_seed(9), **SETTINGS
    ).images

    drawn = np.asarray(Image.open(tmp_path / "image.png"))
    latents = replace(SD1.latents, scale=read_description(decoder).config["scaling_factor"])
    decoded = decode_latent(open_model(graph), np.load(tmp_path / "trajectory.npy")[-1], latents=latents)
    assert drawn.std() > 5  # a picture, and not one colour
    assert psnr(np.asarray(wanted), drawn, peak=255) > 50
    assert psnr(drawn, decoded, peak=255) > 50
