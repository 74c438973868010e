"""Every UNet that people bake, in every form that people have it: imported without a tensor changed, and drawing the same."""

import functools
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from axbake.checkpoints.containers import files_of, open_container
from axbake.checkpoints.conversion import convert_checkpoint
from axbake.checkpoints.finding import find_family, find_network, read_found_tensor
from axbake.distance import psnr
from axbake.drawing.prompts import load_tokenizer, text_encoding
from axbake.drawing.schedule import derive_schedule
from axbake.families import FAMILIES
from axbake.runtime.noise import TorchNoise
from axbake.runtime.prompt import embed_prompt
from axbake.runtime.sampler import denoiser, initial_latent, load_schedule, sample
from axbake.runtime.session import open_model
from axbake.weights.embeddings import list_embeddings
from axbake.weights.files import read_sampling
from tests import tiny
from tests.unit.conftest import describe, export_part, import_part, pipeline_of

MIN_PSNR = 60  # dB; float32 on both sides
PROMPT, SIZE = "a rocket!", (64, 96)  # height × width

every_variant = pytest.mark.parametrize("variant", tiny.VARIANTS)
CONTAINERS = {
    "zip pickle": lambda networks, place: tiny.save_pickle(networks, place / "model.ckpt"),
    "legacy pickle": lambda networks, place: tiny.save_pickle(networks, place / "model.ckpt", zipped=False),
    "folder": lambda networks, place: tiny.save_folder(networks, place / "model"),
    "folder of fp16 shards": lambda networks, place: tiny.save_folder(
        networks, place / "model", variant="fp16", shard="1MB"
    ),
    "folder of pickles": lambda networks, place: tiny.save_folder(networks, place / "model", pickled=True),
}


#: A pickle is a table of tensors, whatever they mean, and is converted in a process of its own, which takes seconds: few of them.
CASES = [(variant, "folder of fp16 shards") for variant in tiny.VARIANTS]
CASES += [(variant, "zip pickle") for variant in ("sd1", "sd2", "sdxs")]
CASES += [("bk_sdm_tiny", "legacy pickle"), ("bk_sdm_v2_tiny", "folder of pickles")]


@functools.cache
def made(variant, dtype=torch.float16):
    """A variant's networks, which no test changes."""
    return tiny.VARIANTS[variant](dtype)


@pytest.fixture(scope="module")
def reading_of(tmp_path_factory):
    """A function that gives a prompt's embedding by a family's text encoder and tokenizer, imported once."""

    @functools.cache
    def imported(family):
        place, (encoder,) = tmp_path_factory.mktemp(family), FAMILIES[family].text_encoders
        checkpoint = tiny.save(made(family), place / "model.safetensors")
        import_part(checkpoint, component=encoder.name, weights=place / "text_encoder.safetensors")
        list_embeddings(
            [place / "text_encoder.safetensors"], [], names=[], encoders=[""], listing=place / "embeddings.json"
        )
        encode = text_encoding(place / "text_encoder.safetensors", encoder.build, encoder.states)
        tokenizer = load_tokenizer(place / "embeddings.json")
        return lambda prompt: embed_prompt([encode], tokenizer, prompt, chunks=1).tokens

    return imported


def taken_apart(checkpoint):
    """Family and networks of a checkpoint, and its tensors by component, in memory."""
    container = open_container(checkpoint)
    family = find_family(container, FAMILIES)
    found = {component.name: find_network(container, component, family.latents) for component in family.components}
    tensors = {
        component: {name: read_found_tensor(container, network, name) for name in network.origins}
        for component, network in found.items()
    }
    return family, found, tensors


def assert_same(networks, tensors, dtype):
    assert set(tensors) == set(FAMILIES[networks.family].names)
    for component in tensors:
        wanted = networks.component(component).state_dict()
        found = tensors[component]
        assert set(found) == {name.removeprefix("text_model.") for name in wanted}
        assert [name for name, tensor in found.items() if tensor.dtype != dtype] == []
        assert [name for name, tensor in found.items() if not torch.equal(tensor.float(), wanted[name])] == []


@pytest.mark.parametrize("layout", tiny.LAYOUTS)
@every_variant
def test_every_layout_and_precision_gives_the_original(variant, layout, tmp_path):
    for dtype in tiny.PRECISIONS.values():
        networks = made(variant, dtype)

        family, found, tensors = taken_apart(tiny.save(networks, tmp_path / "model.safetensors", layout=layout))

        assert family.name == networks.family
        assert_same(networks, tensors, dtype)
        assert found["vae_decoder"].config["scaling_factor"] == networks.vae.config.scaling_factor
        unet = found["unet"].config
        for name in ("block_out_channels", "attention_head_dim", "mid_block_type", "use_linear_projection"):
            own = networks.unet.config[name]
            own = list(own) if isinstance(own, tuple) else own
            assert unet[name] in (own, own[0] if isinstance(own, list) and len(set(own)) == 1 else own), name
        assert found["text_encoder"].config["hidden_act"] == networks.text_encoder.config.hidden_act


@pytest.mark.parametrize(("variant", "container"), CASES)
def test_every_container_gives_the_original(variant, container, tmp_path):
    networks = made(variant)
    place = CONTAINERS[container](networks, tmp_path)

    convert_checkpoint(files_of(place), checkpoint=tmp_path / "checkpoint.safetensors")
    family, _, tensors = taken_apart(tmp_path / "checkpoint.safetensors")
    description = tmp_path / "checkpoint.json"
    describe(tmp_path / "checkpoint.safetensors", description, family=family)

    assert family.name == networks.family
    assert_same(networks, tensors, torch.float16)
    said = json.loads(description.read_text())
    assert said["prediction_type"] == networks.prediction_type
    assert said["container"] == ("diffusers folder" if "folder" in container else "pickle")
    assert said["bytes"] == sum(path.stat().st_size for path in files_of(place))


@pytest.mark.parametrize(
    ("variant", "kind", "scaled"),
    [
        ("sd1", "F8_E4M3", True),
        ("sd1", "F8_E5M2", True),
        ("sd2", "F8_E4M3", False),
        *((variant, "F8_E5M2", False) for variant in tiny.VARIANTS if variant not in tiny.FAMILIES),
    ],
)
def test_eight_bits_become_fp16(variant, kind, scaled, tmp_path):
    networks = made(variant)
    stored, wanted = tiny.eight_bit_tensors(tiny.single_file_tensors(networks), kind, scaled=scaled)
    path = tmp_path / "model.safetensors"
    save_file(stored, path, metadata=tiny.metadata(networks))

    family = FAMILIES[networks.family]
    import_part(path, component="unet", weights=tmp_path / "unet.safetensors")
    describe(path, tmp_path / "checkpoint.json")

    origins = find_network(open_container(path), family.denoiser, family.latents).origins
    for name, tensor in load_file(tmp_path / "unet.safetensors").items():
        assert tensor.dtype == torch.float16
        assert torch.equal(tensor, wanted[origins[name].name]), name
    said = json.loads((tmp_path / "checkpoint.json").read_text())
    assert kind in said["components"]["unet"]["stored"]
    assert said["components"]["unet"]["precision"] == ["F16"]
    assert (said["components"]["unet"]["scaled"] > 0) == scaled
    assert "unknown to this family" not in [entry["why"] for entry in said["unused_tensors"]]


# Of BK-SDM, whose UNets differ in how much they lack, the one that lacks most. The baked project is of Stable Diffusion 1.x.
DRAWN_ELSEWHERE = ("sd1", "bk_sdm_base", "bk_sdm_small", "bk_sdm_v2_tiny")


@pytest.mark.parametrize("variant", [name for name in tiny.VARIANTS if name not in DRAWN_ELSEWHERE])
def test_what_is_exported_draws_what_diffusers_draws(variant, reading_of, tmp_path):
    networks = made(variant)
    checkpoint = tiny.save(networks, tmp_path / "model.safetensors", layout="converted")
    height, width = SIZE
    weights, graph = tmp_path / "unet.safetensors", tmp_path / "unet.onnx"
    import_part(checkpoint, component="unet", weights=weights)
    family = FAMILIES[networks.family]
    export_part(weights, graph, family=family, height=height, width=width)
    steps = read_sampling(weights).steps or 3
    guidance = 1 if networks.steps else 5.0
    scheduler = "lcm" if variant == "lcm" else "euler"
    derive_schedule(
        scheduler=scheduler,
        steps=steps,
        guidance_scale=guidance,
        rows=family.denoiser.rows,
        denoiser=weights,
        schedule=tmp_path / "schedule.npz",
    )

    # Of one seed, so the text encoders of a family's variants are the same.
    prompt, negative = map(reading_of(networks.family), (PROMPT, ""))
    schedule, noise = load_schedule(tmp_path / "schedule.npz"), TorchNoise(7)
    found = sample(
        denoiser(open_model(graph)),
        schedule,
        noise,
        initial_latent(schedule, noise, (1, 4, height // 8, width // 8)),
        prompt_embeds=prompt,
        negative_embeds=negative,
        guidance_scale=guidance,
    ).latent
    wanted = pipeline_of(networks, scheduler)(
        PROMPT,
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(7),
        output_type="latent",
    ).images

    assert networks.steps == read_sampling(weights).steps
    assert np.isfinite(found).all()
    assert psnr(wanted.numpy(), found) > MIN_PSNR
