"""FLUX.2 [klein]: imported as it was, its rows, schedule and prompts those of diffusers."""

import functools

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from axbake.checkpoints.containers import files_of, open_container
from axbake.checkpoints.conversion import convert_checkpoint
from axbake.checkpoints.finding import find_network, read_found_tensor
from axbake.drawing.prompts import load_tokenizer, prompt_embedding, text_encoding
from axbake.drawing.schedule import build_scheduler, scheduler_arrays
from axbake.errors import AxbakeError
from axbake.families import FAMILIES
from axbake.inspect import inspect_checkpoint
from axbake.model import Model
from axbake.networks import flux2, language
from axbake.networks.component import SliceError
from axbake.networks.sampling import DYNAMIC, SpacedFlow
from axbake.runtime.prompt import prompt_warnings
from axbake.sources import MissingTokenizer
from axbake.table import check_config
from axbake.weights.embeddings import TokenizerError, list_embeddings
from axbake.weights.files import read_sampling
from tests import tiny_flux2
from tests.unit.conftest import SCHEMAS, family_in, row_of

CONFIG = check_config({}, schema=SCHEMAS / "config.schema.yaml", source="config.yaml", components=[])
FAMILY = FAMILIES["flux2_klein"]


@functools.cache
def made(dtype=torch.bfloat16):
    """Networks, which no test changes."""
    return tiny_flux2.klein(dtype)


def assert_same(networks, checkpoint, dtype):
    family, container = family_in(checkpoint), open_container(checkpoint)
    assert family.name == networks.family
    for component in family.components:
        found = find_network(container, component, family.latents)
        tensors = {name: read_found_tensor(container, found, name) for name in found.origins}
        wanted = networks.component(component.name).state_dict()
        lacking = {name for name in wanted if name not in tensors}
        assert all(name.startswith(("layers.27.", "norm.")) for name in lacking), component.name
        assert [name for name, tensor in tensors.items() if tensor.dtype != dtype] == []
        assert [name for name, tensor in tensors.items() if not torch.equal(tensor.float(), wanted[name])] == []


@pytest.mark.parametrize("layout", tiny_flux2.LAYOUTS)
def test_every_layout_and_precision_gives_the_original(layout, tmp_path):
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        networks = made(dtype)

        assert_same(networks, tiny_flux2.save(networks, tmp_path / "model.safetensors", layout=layout), dtype)


@pytest.mark.parametrize("save", [tiny_flux2.save_folder, tiny_flux2.save_split], ids=["diffusers folder", "split"])
def test_a_folder_gives_the_original(save, tmp_path):
    folder = save(made(), tmp_path / "model")

    convert_checkpoint(files_of(folder), checkpoint=tmp_path / "checkpoint.safetensors")

    assert_same(made(), tmp_path / "checkpoint.safetensors", torch.bfloat16)
    said = inspect_checkpoint(folder, hashing=False)
    assert (said["family"], said["bakeable"], said["prediction_type"]) == ("flux2_klein", True, "flow_prediction")


def test_the_names_of_the_tests_are_those_that_diffusers_converts():
    found = convert_flux2_transformer_checkpoint_to_diffusers(tiny_flux2.original_tensors(made().transformer))

    wanted = made().transformer.state_dict()
    assert found.keys() == wanted.keys()
    assert [key for key, tensor in wanted.items() if not torch.equal(found[key], tensor)] == []


def test_weights_of_the_norms_may_be_called_weight_as_comfyui_saves_them(tmp_path):
    tensors = tiny_flux2.single_file_tensors(made())
    save_file(
        {name.replace("_norm.scale", "_norm.weight"): t for name, t in tensors.items()}, tmp_path / "m.safetensors"
    )

    assert_same(made(), tmp_path / "m.safetensors", torch.bfloat16)


def test_the_config_is_the_networks_own(model_of):
    container = open_container(model_of("flux2_klein").checkpoint)
    found, wanted = find_network(container, FAMILY.denoiser, FAMILY.latents).config, made().transformer.config

    for entry in found.keys() - {"_class_name"}:
        own = wanted[entry] if entry != "out_channels" else wanted["in_channels"]
        assert found[entry] == (list(own) if isinstance(own, tuple) else own), entry
    assert read_sampling(model_of("flux2_klein").weights["transformer"]) == SpacedFlow(dynamic="flux2")


# Graphs ---------------------------------------------------------------------------------------------------------------


def test_the_weights_of_full_size_are_spread_over_five_graphs():
    config = dict(FAMILY.structure.config) | {"_class_name": "Flux2Transformer2DModel", "guidance_embeds": False}
    with torch.device("meta"):
        network = flux2.build(config)

    def count(*modules):
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    wanted = [count(block) for block in [*network.transformer_blocks, *network.single_transformer_blocks]]
    wanted[0] += count(network.x_embedder, network.context_embedder)
    wanted[-1] += count(network.proj_out)
    assert flux2.weights(config) == wanted
    rows = [network.time_guidance_embed, *(getattr(network, name).linear for name in flux2.MODULATIONS)]
    assert sum(wanted) == count(network) - count(*rows)
    assert len(FAMILY.denoiser.graphs) == 5
    with pytest.raises(SliceError, match=r"graph_weights: 50 million, but block 0 of the transformer alone has"):
        FAMILY.divided(50_000_000)


def test_the_text_encoder_of_full_size_is_spread_over_graphs_that_can_be_loaded():
    config = {"vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 27}
    config |= {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    (encoder,) = FAMILY.text_encoders
    sizes = language.weights(config)

    parts = [sum(sizes[slice(*piece.bounds(config))]) for piece in encoder.graphs]

    assert sum(parts) == sum(sizes) and max(parts) < 1e9  # in two bytes, less than protobuf's limit


def test_fewer_layers_than_states_are_refused():
    (encoder,) = FAMILY.text_encoders
    config = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 20, "head_dim": 8}

    with pytest.raises(SliceError, match="a language model of 20 layers; wanted 27 or more"):
        encoder.graphs[0].interface(config | {"num_attention_heads": 1, "num_key_value_heads": 1})


# Schedules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "steps"), [(16, 4), (1024, 4), (4096, 50), (4400, 20)])
def test_the_shift_is_diffusers(tokens, steps):
    assert DYNAMIC["flux2"](tokens, steps) == pytest.approx(compute_empirical_mu(tokens, steps))


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "unipc"])
def test_a_schedule_is_that_of_the_pipeline(name):
    """Its loop is run with an output that a step makes up."""
    steps, height, width = 5, 512, 768
    sampling = SpacedFlow(dynamic="flux2")
    scheduler = build_scheduler(name, sampling)
    mu = compute_empirical_mu(32 * 48, steps)
    given = {"sigmas": np.linspace(1.0, 1 / steps, steps)} if name == "euler" else {"num_inference_steps": steps}
    scheduler.set_timesteps(**given, mu=mu)
    arrays = scheduler_arrays(name, steps, sampling.for_picture(height=height, width=width, steps=steps))
    latent = start = torch.randn((1, 4), generator=torch.Generator().manual_seed(0))
    outputs = []

    np.testing.assert_allclose(arrays["timesteps"], scheduler.timesteps.numpy(), rtol=1e-5)
    for step, timestep in enumerate(scheduler.timesteps):
        outputs.append(torch.sin(latent * (step + 1)))
        latent = scheduler.step(outputs[-1], timestep, latent, return_dict=False)[0]
        terms = np.stack([start, *outputs, *[torch.zeros_like(start)] * (2 * steps - len(outputs))])
        ours = np.tensordot(arrays["coefficients"][step], terms, axes=1)
        np.testing.assert_allclose(ours, latent.numpy(), atol=1e-4)


# Prompts --------------------------------------------------------------------------------------------------------------


class Chat(PreTrainedTokenizerFast):
    """The tests' tokenizer with Qwen3's chat for one message without thoughts."""

    def apply_chat_template(self, messages, **options):
        (message,) = messages
        assert (message["role"], options["enable_thinking"], options["add_generation_prompt"]) == ("user", False, True)
        return f"<|im_start|>user\n{message['content']}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def test_a_prompt_is_what_diffusers_own_text_stage_makes_of_it(model_of):
    model = model_of("flux2_klein")
    (encoder,) = model.family.text_encoders
    encode = text_encoding(model.weights["text_encoder"], encoder.build, encoder.states)
    tokenizer = load_tokenizer(model.embeddings)
    embed = prompt_embedding([encode], tokenizer, chunks=1, conditioning=model.family.conditioning)
    chat = Chat(tokenizer_object=tiny_flux2.tokenizer(), pad_token="<|endoftext|>")

    for prompt in ("a (red:1.3) rocket", "", "long " * 200):
        wanted = Flux2KleinPipeline._get_qwen3_prompt_embeds(made().text_encoder, chat, prompt)
        found = embed(prompt)

        assert found.pooled is None and found.tokens.shape == (1, 512, 96)
        np.testing.assert_allclose(found.tokens, wanted.numpy(), atol=2e-5)


def test_what_of_a_prompt_does_not_count_is_said(model_of):
    tokenizer = load_tokenizer(model_of("flux2_klein").embeddings)

    said = prompt_warnings("a <lora:x:1>rocket" + " word" * 150 + " at the end", tokenizer, chunks=1)

    assert said[0] == "<lora:x:1> is not applied and is removed from the prompt"
    assert said[1].startswith("longer than 512 tokens; its end is cut off for text_encoder: ")
    assert said[1].endswith("at the end") and len(said) == 2
    assert prompt_warnings("a (red:1.3) rocket [a|b]", tokenizer, chunks=1) == []


def test_a_tokenizer_of_another_model_is_refused(model_of, tmp_path):
    weights = [model_of("flux2_klein").weights["text_encoder"]]
    formats = {"text_encoder": FAMILY.text_encoders[0].language}
    path = tmp_path / "tokenizer.json"
    how = {"names": [], "encoders": [], "formats": formats, "listing": tmp_path / "embeddings.json"}

    for content, message in (
        (tiny_flux2.tokenizer().to_str().replace("<|endoftext|>", "<eos>"), r"no token '<\|endoftext\|>'"),
        ("{}", "wanted one of Hugging Face's tokenizers"),
        ("\0", "wanted one of Hugging Face's tokenizers"),
    ):
        path.write_text(content)
        with pytest.raises(TokenizerError, match=message):
            list_embeddings(weights, [], [path], **how)
    assert not (tmp_path / "embeddings.json").exists()


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"scheduler": "ddim"}, "column scheduler: ddim, wanted euler, dpmpp_2m or unipc"),
        ({"clip_skip": "2"}, "clip_skip"),
        ({"height": "72"}, "column height: 72; this transformer draws pictures of a multiple of 16"),
        ({"tokenizer": "nowhere"}, r"no tokenizer\.json of the text_encoder: looked for nowhere, .* column tokenizer"),
        ({"embeddings": "word.safetensors"}, "column embeddings: word.safetensors, but the text_encoder"),
    ],
)
def test_a_row_that_it_cannot_draw_is_refused(cells, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_flux2.save(made(), tmp_path / "tiny.safetensors")
    save_file({"emb_params": torch.zeros(1, 32)}, tmp_path / "word.safetensors")
    usual = {"scheduler": "euler", "tokenizer": "tokenizer.json"}

    with pytest.raises(AxbakeError, match=message):
        Model(row_of(**usual | cells), CONFIG).check_fit()


def test_a_tokenizer_is_found_in_the_checkpoints_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_flux2.save_split(made(), tmp_path / "klein")
    model = Model(row_of(checkpoint="klein", scheduler="euler"), CONFIG)

    assert model.tokenizers == ["klein/tokenizer/tokenizer.json"]
    (tmp_path / "klein" / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(MissingTokenizer, match=r"klein/tokenizer/tokenizer\.json"):
        model.check_fit()
