"""Stable Diffusion 3 and 3.5: imported as they were, exported in graphs, drawing what diffusers draws."""

import functools
import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from safetensors.torch import save_file
from transformers import CLIPTokenizer, PreTrainedTokenizerFast
from transformers.models.t5.modeling_t5 import T5Attention

from axbake.checkpoints.containers import UnreadableCheckpoint, files_of, open_container
from axbake.checkpoints.conversion import convert_checkpoint
from axbake.checkpoints.finding import find_network, read_found_tensor
from axbake.checkpoints.refusals import TensorMismatch
from axbake.drawing.prompts import load_tokenizer, prompt_embedding, text_encoding
from axbake.drawing.schedule import build_scheduler
from axbake.errors import AxbakeError
from axbake.families import FAMILIES
from axbake.inspect import inspect_checkpoint
from axbake.model import Model, WrongFamily
from axbake.networks import mmdit, t5
from axbake.networks.component import SliceError
from axbake.networks.sampling import Flow, SamplingError
from axbake.networks.t5_modules import buckets
from axbake.runtime.prompt import language_text
from axbake.sources import MissingTokenizer
from axbake.table import check_config
from axbake.weights.files import read_description, read_sampling
from resources.demo_flow.to_single_file import original_tensors
from tests import tiny, tiny_sd3
from tests.unit.conftest import CLIP, SCHEMAS, describe, family_in, import_part, import_tiny, row_of

CONFIG = check_config({}, schema=SCHEMAS / "config.schema.yaml", source="config.yaml", components=[])
HEIGHT, WIDTH = 64, 96
MIN_PSNR = 60  # dB; float32 on both sides
SIZE = {"height": HEIGHT, "width": WIDTH, "prompt_chunks": 1}

every_family = pytest.mark.parametrize("name", ["sd3", "sd35_medium", "sd35_large", "sd3_t5"])


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
        wanted.pop("encoder.embed_tokens.weight", None)  # T5's token table once more
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
def test_the_authors_names_are_those_that_diffusers_converts(name):
    networks = made(name)

    found = convert_sd3_transformer_checkpoint_to_diffusers(original_tensors(networks.transformer))

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


class T5Words(PreTrainedTokenizerFast):
    """The tests' tokenizer in T5's place."""


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
        text_encoder_3=networks.text_encoder_3,
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        tokenizer_3=T5Words(tokenizer_object=tiny_sd3.t5_tokenizer(), pad_token="<pad>")
        if networks.text_encoder_3
        else None,
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


def test_with_t5_its_tokens_stand_behind_those_of_the_clips_as_in_diffusers(model_of):
    model = model_of("sd3_t5")
    encoders = model.family.text_encoders
    encodes = [text_encoding(model.weights[one.name], one.build, one.states) for one in encoders]
    tokenizer = load_tokenizer(model.embeddings)
    embed = prompt_embedding(encodes, tokenizer, chunks=1, conditioning=model.family.conditioning)

    for prompt in ("a rocket!", "a rocket " * 40):  # cut off, T5's last token kept
        wanted, _, pooled, _ = pipeline_of(model.networks, "euler").encode_prompt(
            prompt.strip(), None, None, do_classifier_free_guidance=False, max_sequence_length=256
        )
        found = embed(prompt)

        assert found.tokens.shape == (1, 77 + 256, tiny_sd3.CONTEXT)
        np.testing.assert_allclose(found.tokens[:, 77:], wanted[:, 77:].numpy(), atol=2e-4)
        if len(prompt) < 77:  # a longer one is split at its last comma for CLIPs, as web UIs do
            np.testing.assert_allclose(found.tokens[:, :77], wanted[:, :77].numpy(), atol=1e-5)
            np.testing.assert_allclose(found.pooled, pooled.numpy(), atol=1e-5)


def test_weights_in_brackets_are_for_the_clips_alone(model_of):
    tokenizer = load_tokenizer(model_of("sd3_t5").embeddings)

    assert language_text("a (red:1.3) [small] rocket <lora:x:1>", tokenizer) == "a red small rocket"


def test_the_buckets_of_positions_are_transformers():
    for tokens in (8, 256, 512):
        distance = torch.arange(tokens)[None] - torch.arange(tokens)[:, None]
        wanted = T5Attention._relative_position_bucket(distance, num_buckets=32, max_distance=128)
        assert np.array_equal(buckets(tokens, 32, 128), wanted.numpy())


def test_t5_of_full_size_is_spread_over_graphs_that_can_be_loaded():
    (piece, *_) = pieces = FAMILIES["sd3_t5"].component("text_encoder_3").graphs
    config = {"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    config |= {"relative_attention_num_buckets": 32, "feed_forward_proj": "gated-gelu"}
    with torch.device("meta"):
        network = t5.build(config)
    sizes = t5.weights(config)

    assert sum(sizes) == sum(parameter.numel() for parameter in network.parameters())
    parts = [sum(sizes[slice(*one.bounds(config))]) for one in pieces]
    assert sum(parts) == sum(sizes) and max(parts) < 1e9  # in two bytes, less than protobuf's limit
    with pytest.raises(SliceError, match="a T5 of 5 blocks; wanted 6 or more"):
        piece.interface(config | {"num_layers": 5})


def test_t5_is_left_out_if_the_row_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_sd3.save(made("sd3_t5"), tmp_path / "tiny.safetensors")

    def model(**cells):
        return Model(row_of(scheduler="euler", **cells), CONFIG)

    assert model().family.name == "sd3_t5" and model(family="sd3").family.name == "sd3"
    model(family="sd3").check_fit()
    model(tokenizer=".").check_fit()
    with pytest.raises(MissingTokenizer, match=r"no tokenizer\.json of the text_encoder_3"):
        model().check_fit()
    with pytest.raises(WrongFamily, match="column family: sd35_medium, but"):
        model(family="sd35_medium").check_fit()


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
