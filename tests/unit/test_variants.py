"""Every UNet that people bake, in every form that people have it: imported without a tensor changed, and drawing the same."""

import functools
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from axbake.checkpoints.containers import files_of, open_container
from axbake.checkpoints.description import describe_checkpoint
from axbake.checkpoints.embeddings import list_embeddings
from axbake.checkpoints.importing import convert_checkpoint, import_checkpoint
from axbake.checkpoints.parts import find_family, find_part, read_part_tensor
from axbake.checkpoints.weights import read_sampling
from axbake.drawing.distance import psnr
from axbake.drawing.prompts import load_tokenizer, text_encoding
from axbake.drawing.schedule import derive_schedule
from axbake.families import COMPONENTS
from axbake.graphs.export import export_onnx
from axbake.runtime.noise import TorchNoise
from axbake.runtime.prompt import embed_prompt
from axbake.runtime.sampler import denoiser, initial_latent, load_schedule, sample
from axbake.runtime.session import open_model
from tests import tiny
from tests.unit.conftest import pipeline_of, tensors_of

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
        place = tmp_path_factory.mktemp(family)
        checkpoint = tiny.save(made(family), place / "model.safetensors")
        import_checkpoint(checkpoint, component="text_encoder", weights=place / "text_encoder.safetensors")
        list_embeddings(place / "text_encoder.safetensors", [], names=[], listing=place / "embeddings.json")
        encode, tokenizer = text_encoding(place / "text_encoder.safetensors"), load_tokenizer(place / "embeddings.json")
        return lambda prompt: embed_prompt(encode, tokenizer, prompt, chunks=1)

    return imported


def taken_apart(checkpoint):
    """Family and config of a checkpoint, and its tensors by component, in memory."""
    container = open_container(checkpoint)
    family = find_family(container)
    parts = {component: find_part(container, family, component) for component in COMPONENTS}
    tensors = {
        component: {name: read_part_tensor(container, part, name) for name in part.sources}
        for component, part in parts.items()
    }
    return family, parts, tensors


def assert_same(networks, tensors, dtype):
    for component in COMPONENTS:
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

        family, parts, tensors = taken_apart(tiny.save(networks, tmp_path / "model.safetensors", layout=layout))

        assert family.name == networks.family
        assert_same(networks, tensors, dtype)
        assert parts["vae_decoder"].config["scaling_factor"] == networks.vae.config.scaling_factor
        unet = parts["unet"].config
        for name in ("block_out_channels", "attention_head_dim", "mid_block_type", "use_linear_projection"):
            own = networks.unet.config[name]
            own = list(own) if isinstance(own, tuple) else own
            assert unet[name] in (own, own[0] if isinstance(own, list) and len(set(own)) == 1 else own), name
        assert parts["text_encoder"].config["hidden_act"] == networks.text_encoder.config.hidden_act


@pytest.mark.parametrize(("variant", "container"), CASES)
def test_every_container_gives_the_original(variant, container, tmp_path):
    networks = made(variant)
    place = CONTAINERS[container](networks, tmp_path)

    convert_checkpoint(files_of(place), checkpoint=tmp_path / "checkpoint.safetensors")
    family, _, tensors = taken_apart(tmp_path / "checkpoint.safetensors")
    description = tmp_path / "checkpoint.json"
    describe_checkpoint(
        tmp_path / "checkpoint.safetensors",
        tmp_path / "checkpoint.safetensors",
        sha256="0" * 64,
        vae_sha256="",
        description=description,
    )

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

    import_checkpoint(path, component="unet", weights=tmp_path / "unet.safetensors")
    describe_checkpoint(path, path, sha256="0" * 64, vae_sha256="", description=tmp_path / "checkpoint.json")

    sources = find_part(open_container(path), find_family(open_container(path)), "unet").sources
    for name, tensor in load_file(tmp_path / "unet.safetensors").items():
        assert tensor.dtype == torch.float16
        assert torch.equal(tensor, wanted[sources[name].name]), name
    said = json.loads((tmp_path / "checkpoint.json").read_text())
    assert kind in said["components"]["unet"]["stored"]
    assert said["components"]["unet"]["precision"] == ["F16"]
    assert (said["components"]["unet"]["scaled"] > 0) == scaled
    assert "unknown to this family" not in [entry["why"] for entry in said["unused_tensors"]]


@every_variant
def test_what_is_exported_draws_what_diffusers_draws(variant, reading_of, tmp_path):
    networks = made(variant)
    checkpoint = tiny.save(networks, tmp_path / "model.safetensors", layout="converted")
    height, width = SIZE
    weights, graph = tmp_path / "unet.safetensors", tmp_path / "unet.onnx"
    import_checkpoint(checkpoint, component="unet", weights=weights)
    export_onnx(weights, graph=graph, tensors=tensors_of(graph), height=height, width=width)
    steps = read_sampling(weights).steps or 3
    guidance = 1 if networks.steps else 5.0
    scheduler = "lcm" if variant == "lcm" else "euler"
    derive_schedule(
        scheduler=scheduler, steps=steps, guidance_scale=guidance, unet=weights, schedule=tmp_path / "schedule.npz"
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
