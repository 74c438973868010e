"""Every UNet that people bake, in every form that people have it: imported without a tensor changed, and drawing the same."""

import functools
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from axbake.checkpoint import (
    convert_checkpoint,
    describe_checkpoint,
    find_family,
    find_part,
    import_checkpoint,
    read_part_tensor,
)
from axbake.containers import files_of, open_container
from axbake.distance import psnr
from axbake.embeddings import list_embeddings
from axbake.export import export_onnx
from axbake.families import COMPONENTS
from axbake.prompts import load_tokenizer
from axbake.runtime.noise import TorchNoise
from axbake.runtime.prompt import embed_prompt, encoder
from axbake.runtime.sampler import denoiser, load_schedule, sample
from axbake.runtime.session import open_model
from axbake.schedule import derive_schedule
from axbake.weights import read_sampling
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


#: Containers of a variant; what pickles hold is the same for all of them once they are converted
CASES = [(variant, container) for variant in tiny.VARIANTS for container in CONTAINERS]
CASES = [case for case in CASES if case[0] in tiny.FAMILIES or case[1] in ("zip pickle", "folder of fp16 shards")]


@functools.cache
def made(variant, dtype=torch.float16):
    """A variant's networks, which no test changes."""
    return tiny.VARIANTS[variant](dtype)


@pytest.fixture(scope="module")
def graph_of_text_encoder(tmp_path_factory):
    """A function that imports and exports the text encoder of a family, once: its tokenizer and its graph."""

    @functools.cache
    def export(family):
        place = tmp_path_factory.mktemp(family)
        checkpoint = tiny.save(made(family), place / "model.safetensors")
        weights, graph = place / "text_encoder.safetensors", place / "text_encoder.onnx"
        import_checkpoint(checkpoint, component="text_encoder", weights=weights)
        export_onnx(weights, graph=graph, tensors=tensors_of(graph))
        list_embeddings(weights, [], names=[], listing=place / "embeddings.json")
        return load_tokenizer(place / "embeddings.json"), graph

    return export


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
    told = "epsilon" if variant == "bk_sdm_v2_tiny" and "pickle" in container else ""
    describe_checkpoint(tmp_path / "checkpoint.safetensors", sha256="0" * 64, description=description, prediction=told)

    assert family.name == networks.family
    assert_same(networks, tensors, torch.float16)
    said = json.loads(description.read_text())
    assert said["prediction_type"] == networks.prediction_type
    assert said["container"] == ("diffusers folder" if "folder" in container else "pickle")
    assert said["bytes"] == sum(path.stat().st_size for path in files_of(place))


@pytest.mark.parametrize("scaled", [True, False], ids=["scaled", "plain"])
@pytest.mark.parametrize("kind", tiny.EIGHT_BITS)
@every_variant
def test_eight_bits_become_fp16(variant, kind, scaled, tmp_path):
    networks = made(variant)
    stored, wanted = tiny.eight_bit_tensors(tiny.single_file_tensors(networks), kind, scaled=scaled)
    path = tmp_path / "model.safetensors"
    save_file(stored, path, metadata=tiny.metadata(networks))

    import_checkpoint(path, component="unet", weights=tmp_path / "unet.safetensors")
    describe_checkpoint(path, sha256="0" * 64, description=tmp_path / "checkpoint.json")

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
def test_what_is_exported_draws_what_diffusers_draws(variant, graph_of_text_encoder, tmp_path):
    networks = made(variant)
    checkpoint = tiny.save(networks, tmp_path / "model.safetensors", layout="converted")
    height, width = SIZE
    weights, graph = tmp_path / "unet.safetensors", tmp_path / "unet.onnx"
    import_checkpoint(checkpoint, component="unet", weights=weights)
    export_onnx(weights, graph=graph, tensors=tensors_of(graph), height=height, width=width)
    steps = read_sampling(weights).steps or 3
    guidance = 1 if networks.steps else 5.0
    derive_schedule(scheduler="euler", steps=steps, unet=weights, schedule=tmp_path / "schedule.npz")

    # Of one seed, so the text encoders of a family's variants are the same.
    tokenizer, text_graph = graph_of_text_encoder(networks.family)
    encode = encoder(open_model(text_graph))
    prompt, negative = (embed_prompt(encode, tokenizer, text, chunks=1) for text in (PROMPT, ""))
    found, _ = sample(
        denoiser(open_model(graph)),
        load_schedule(tmp_path / "schedule.npz"),
        TorchNoise(7),
        shape=(1, 4, height // 8, width // 8),
        prompt_embeds=prompt,
        negative_embeds=negative,
        guidance_scale=guidance,
    )
    wanted = pipeline_of(networks, "euler")(
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
