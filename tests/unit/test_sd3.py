"""Stable Diffusion 3 and 3.5: imported as they were, exported in graphs, drawing what diffusers draws."""

import functools
import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from axbake.checkpoints.containers import UnreadableCheckpoint, files_of, open_container
from axbake.checkpoints.conversion import convert_checkpoint
from axbake.checkpoints.finding import find_network, read_found_tensor
from axbake.checkpoints.refusals import TensorMismatch
from axbake.drawing.prompts import load_tokenizer, prompt_embedding, text_encoding
from axbake.drawing.schedule import build_scheduler
from axbake.errors import AxbakeError
from axbake.families import FAMILIES
from axbake.inspect import inspect_checkpoint
from axbake.model import Model
from axbake.networks import mmdit
from axbake.networks.component import SliceError
from axbake.networks.sampling import Flow, SamplingError
from axbake.table import check_config
from axbake.weights.files import read_description, read_sampling
from tests import tiny, tiny_sd3
from tests.unit.conftest import CLIP, SCHEMAS, describe, family_in, import_part, import_tiny, row_of

CONFIG = check_config({}, schema=SCHEMAS / "config.schema.yaml", source="config.yaml", components=[])
HEIGHT, WIDTH = 64, 96
MIN_PSNR = 60  # dB; float32 on both sides
SIZE = {"height": HEIGHT, "width": WIDTH, "prompt_chunks": 1}

every_family = pytest.mark.parametrize("name", tiny_sd3.FAMILIES)


@functools.cache
def made(name, dtype=torch.float16):
    """A family's networks, which no test changes."""
    return tiny_sd3.FAMILIES[name](dtype)


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    """A function that gives a family's tiny model, imported once."""
    return functools.cache(lambda name: import_tiny(made(name), tmp_path_factory.mktemp(name)))


def assert_same(networks, checkpoint, dtype):
    family, container = family_in(checkpoint), open_container(checkpoint)
    assert family.name == networks.family
    for component in family.components:
        found = find_network(container, component, family.latents)
        tensors = {name: read_found_tensor(container, found, name) for name in found.origins}
        wanted = networks.component(component.name).state_dict()
        wanted = {name.removeprefix("text_model."): tensor for name, tensor in wanted.items()}
        assert set(tensors) == set(wanted), component.name
        assert [name for name, tensor in tensors.items() if tensor.dtype != dtype] == []
        assert [name for name, tensor in tensors.items() if not torch.equal(tensor.float(), wanted[name])] == []


@pytest.mark.parametrize("layout", tiny_sd3.LAYOUTS)
@every_family
def test_every_layout_and_precision_gives_the_original(name, layout, tmp_path):
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        networks = made(name, dtype)

        assert_same(networks, tiny_sd3.save(networks, tmp_path / "model.safetensors", layout=layout), dtype)


@pytest.mark.parametrize("save", [tiny_sd3.save_folder, tiny_sd3.save_split], ids=["diffusers folder", "split files"])
@every_family
def test_a_folder_gives_the_original(name, save, tmp_path):
    folder = save(made(name), tmp_path / "model")

    convert_checkpoint(files_of(folder), checkpoint=tmp_path / "checkpoint.safetensors")

    assert_same(made(name), tmp_path / "checkpoint.safetensors", torch.float16)
    said = inspect_checkpoint(folder, hashing=False)
    assert (said["family"], said["bakeable"], said["prediction_type"]) == (name, True, "flow_prediction")


@every_family
def test_the_names_of_the_tests_are_those_that_diffusers_converts(name):
    networks = made(name)

    found = convert_sd3_transformer_checkpoint_to_diffusers(tiny_sd3.original_tensors(networks.transformer))

    wanted = networks.transformer.state_dict()
    assert found.keys() == wanted.keys()
    assert [key for key, tensor in wanted.items() if not torch.equal(found[key], tensor)] == []


@pytest.mark.parametrize(("kind", "scaled"), [("F8_E4M3", True), ("F8_E5M2", False)])
def test_eight_bits_become_fp16(kind, scaled, tmp_path):
    stored, wanted = tiny.eight_bit_tensors(tiny_sd3.single_file_tensors(made("sd35_medium")), kind, scaled=scaled)
    save_file(stored, tmp_path / "model.safetensors")
    family, container = FAMILIES["sd35_medium"], open_container(tmp_path / "model.safetensors")

    found = find_network(container, family.denoiser, family.latents)

    name = "transformer_blocks.1.attn.to_k.weight"
    rows = wanted[found.origins[name].name]
    assert torch.equal(read_found_tensor(container, found, name), rows.chunk(3)[1])


@every_family
def test_the_config_is_the_networks_own(name, model_of):
    found, wanted = read_description(model_of(name).weights["transformer"]).config, made(name).transformer.config

    for entry in found.keys() - {"_class_name", "sample_size"}:
        own = wanted[entry]
        assert found[entry] == (list(own) if isinstance(own, tuple) else own), entry
    assert read_sampling(model_of(name).weights["transformer"]) == Flow(shift=3.0)


def test_a_file_is_described_with_what_it_draws_by(model_of, tmp_path):
    describe(model_of("sd35_medium").checkpoint, tmp_path / "said.json")

    said = json.loads((tmp_path / "said.json").read_text())
    assert (said["title"], said["prediction_type"]) == ("Stable Diffusion 3.5 medium", "flow_prediction")
    assert (
        said["prediction_why"][0]
        == "Stable Diffusion 3.5 medium predicts flow_prediction, and the file says nothing else"
    )
    assert said["scaling_factor"] == tiny_sd3.SCALE


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("text_encoders.clip_g.", "no text_encoder_2 found"),
        ("model.diffusion_model.joint_blocks.1.x_block.attn.qkv.bias", "transformer_blocks.1.attn.to_q.bias: missing"),
        ("first_stage_model.decoder.conv_in", "no vae_decoder found"),
    ],
)
def test_a_file_that_lacks_something_is_refused_with_what_lacks(lost, message, tmp_path):
    tensors = tiny_sd3.single_file_tensors(made("sd3"))
    save_file({name: t for name, t in tensors.items() if not name.startswith(lost)}, tmp_path / "model.safetensors")

    with pytest.raises(TensorMismatch, match=message):
        for component in FAMILIES["sd3"].names:
            weights = tmp_path / "weights.safetensors"
            import_part(tmp_path / "model.safetensors", component=component, weights=weights, family=FAMILIES["sd3"])


def test_a_folder_of_files_without_a_vae_is_refused(tmp_path):
    folder = tiny_sd3.save_split(made("sd3"), tmp_path / "split")
    (folder / "vae.safetensors").unlink()

    with pytest.raises(UnreadableCheckpoint, match=r"no vae\.safetensors.*transformer\.safetensors"):
        files_of(folder)


def test_a_prediction_of_another_kind_is_refused(tmp_path):
    checkpoint = tiny_sd3.save(made("sd3"), tmp_path / "model.safetensors")

    with pytest.raises(
        SamplingError, match=r"prediction: epsilon, but .* predicts a flow\. Leave the column prediction empty"
    ):
        import_part(checkpoint, component="transformer", weights=tmp_path / "weights.safetensors", prediction="epsilon")


# Graphs ---------------------------------------------------------------------------------------------------------------


FULL_SIZE = {"attention_head_dim": 64, "sample_size": 128, "pooled_projection_dim": 2048, "pos_embed_max_size": 192}


@pytest.mark.parametrize(("name", "heads", "graphs"), [("sd3", 24, 3), ("sd35_medium", 24, 3), ("sd35_large", 38, 10)])
def test_the_weights_of_full_size_are_spread_over_graphs(name, heads, graphs):
    family = FAMILIES[name]
    config = dict(family.structure.config) | FULL_SIZE | {"num_attention_heads": heads}
    with torch.device("meta"):
        network = mmdit.build(config)

    def count(*modules):
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    wanted = [count(block) for block in network.transformer_blocks]
    wanted[0] += count(network.pos_embed, network.context_embedder)
    wanted[-1] += count(network.norm_out, network.proj_out)
    assert mmdit.weights(config) == wanted
    assert sum(wanted) == count(network) - count(network.time_text_embed)
    slices = family.denoiser.graphs
    sizes = [sum(wanted[slice(*piece._bounds(config))]) for piece in slices]
    assert len(slices) == graphs and sum(sizes) == sum(wanted) and max(sizes) < 880e6
    assert len(family.divided(9_000_000_000).denoiser.graphs) == 1
    with pytest.raises(SliceError, match=r"graph_weights: 50 million, but block 0 of the transformer alone has"):
        family.divided(50_000_000)


@every_family
def test_more_graphs_than_blocks_are_refused(name, model_of):
    denoiser = FAMILIES[name].divided(300_000_000).denoiser
    config = read_description(model_of(name).weights["transformer"]).config

    with pytest.raises(SliceError, match=r"a transformer of (3|10) blocks; wanted \d+ or more"):
        denoiser.graphs[0].interface(config, **SIZE)


def pipeline_of(networks, scheduler):
    tokenizers = []
    for pad in ("<|endoftext|>", "!"):
        tokenizers.append(CLIPTokenizer.from_pretrained(CLIP, local_files_only=True))
        tokenizers[-1].pad_token = pad
    pipeline = StableDiffusion3Pipeline(
        transformer=networks.transformer,
        vae=networks.vae,
        text_encoder=networks.text_encoder,
        text_encoder_2=networks.text_encoder_2,
        text_encoder_3=None,
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        tokenizer_3=None,
        scheduler=build_scheduler(scheduler, Flow(shift=3.0)),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_prompt_is_what_diffusers_own_text_stage_makes_of_it_without_the_zeros_of_t5(model_of):
    """What is drawn with it is compared in `tests/workflow/test_sd3.py`."""
    model = model_of("sd3")
    encoders = model.family.text_encoders
    encodes = [text_encoding(model.weights[one.name], one.build, one.states) for one in encoders]
    tokenizer = load_tokenizer(model.embeddings)
    embed = prompt_embedding(encodes, tokenizer, chunks=1, conditioning=model.family.conditioning)

    wanted = pipeline_of(model.networks, "euler").encode_prompt(
        "a rocket!", None, None, negative_prompt="blurry", do_classifier_free_guidance=True, max_sequence_length=77
    )

    found = [embed("a rocket!"), embed("blurry")]
    for ours, theirs in zip([one.tokens for one in found], wanted[:2], strict=True):
        assert ours.shape == (1, 77, tiny_sd3.CONTEXT) and not theirs[:, 77:].any()
        np.testing.assert_allclose(ours, theirs[:, :77].numpy(), atol=1e-5)
    for ours, theirs in zip([one.pooled for one in found], wanted[2:], strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"scheduler": "dpmpp_2m_karras"}, "column scheduler: dpmpp_2m_karras, wanted euler, dpmpp_2m or unipc"),
        ({"clip_skip": "2", "scheduler": "euler"}, "clip_skip"),
        (
            {"height": "72", "scheduler": "euler"},
            "column height: 72; this transformer draws pictures of a multiple of 16",
        ),
        ({"width": "320", "scheduler": "euler"}, "column width: 320; .* at most 256"),
    ],
)
def test_a_row_that_it_cannot_draw_is_refused(cells, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_sd3.save(made("sd3"), tmp_path / "tiny.safetensors")

    with pytest.raises(AxbakeError, match=message):
        Model(row_of(**cells), CONFIG).check_fit()
