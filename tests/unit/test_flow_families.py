"""Families of rectified flow: imported as they were, their rows, schedules and prompts those of diffusers."""

import functools
import types

import numpy as np
import pytest
import torch
from diffusers import (
    AnimaModularPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2Pipeline,
    FluxPipeline,
    Lumina2Pipeline,
    QwenImagePipeline,
    ZImagePipeline,
)
from diffusers.loaders.single_file_utils import (
    convert_cosmos_transformer_checkpoint_to_diffusers,
    convert_wan_vae_to_diffusers,
)
from diffusers.modular_pipelines.anima.before_denoise import AnimaTextConditioningStep
from diffusers.modular_pipelines.anima.encoders import AnimaTextEncoderStep
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from safetensors.torch import save_file
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from axbake.checkpoints.containers import files_of, open_container
from axbake.checkpoints.conversion import convert_checkpoint
from axbake.checkpoints.finding import find_network, read_found_tensor
from axbake.checkpoints.refusals import UnknownFamily
from axbake.distance import psnr
from axbake.drawing.prompts import load_tokenizer, prompt_embedding, text_encoding
from axbake.drawing.schedule import derive_schedule, scheduler_arrays
from axbake.errors import AxbakeError
from axbake.families import FAMILIES
from axbake.families.flux2_dev import TEMPLATE as DEV_TEMPLATE
from axbake.families.qwen_image import TEMPLATE
from axbake.inspect import inspect_checkpoint
from axbake.model import Model
from axbake.networks import anima_text, cosmos, flux1, flux2, lumina, qwen_image, z_image
from axbake.networks.component import Interface
from axbake.networks.sampling import DYNAMIC, RenormalisedFlow, SpacedFlow, TerminalFlow, guided_steps
from axbake.runtime.language import LanguageFormat, LanguageTokenizer
from axbake.runtime.noise import TorchNoise
from axbake.runtime.prompt import prompt_warnings
from axbake.runtime.sampler import load_schedule, sample
from axbake.sources import MissingTokenizer
from axbake.table import check_config
from axbake.weights.files import read_description, read_sampling
from axbake.weights.networks import load
from tests import tiny_anima, tiny_flux1, tiny_flux2, tiny_lumina, tiny_qwen_image, tiny_z_image
from tests.unit.conftest import CLIP, COLUMNS, SCHEMAS, family_in, row_of
from tests.unit.jobs import draw_picture, record

CONFIG = check_config({}, schema=SCHEMAS / "config.schema.yaml", source="config.yaml", components=[])
MODULES = {"z_image": tiny_z_image, "lumina2": tiny_lumina, "anima": tiny_anima, "flux2_klein_9b": tiny_flux2}
MODULES |= {"flux1": tiny_flux1, "flux2_dev": tiny_flux2, "qwen_image": tiny_qwen_image}
every_family = pytest.mark.parametrize("name", MODULES)


@functools.cache
def made(name, dtype=torch.bfloat16):
    """Networks, which no test changes."""
    return MODULES[name].FAMILIES[name](dtype)


def assert_same(networks, checkpoint, dtype):
    family, container = family_in(checkpoint), open_container(checkpoint)
    assert family.name == networks.family
    for component in family.components:
        found = find_network(container, component, family.latents)
        tensors = {name: read_found_tensor(container, found, name) for name in found.origins}
        wanted = networks.component(component.name).state_dict()
        wanted = {name.removeprefix("text_model."): tensor for name, tensor in wanted.items()}
        wanted.pop("encoder.embed_tokens.weight", None)  # T5's token table once more
        lacking = {name for name in wanted if name not in tensors}
        last = f"layers.{found.config.get('num_hidden_layers')}."  # that no states are taken of
        assert all(component.language and name.startswith((last, "norm.")) for name in lacking), component.name
        assert [name for name, tensor in tensors.items() if tensor.dtype != dtype] == []
        assert [name for name, tensor in tensors.items() if not torch.equal(tensor.float(), wanted[name])] == []


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
@every_family
def test_every_layout_and_precision_gives_the_original(name, layout, tmp_path):
    for dtype in (torch.bfloat16, torch.float16, torch.float32)[: 3 if layout == "ldm" else 1]:
        networks = made(name, dtype)

        assert_same(networks, MODULES[name].save(networks, tmp_path / "m.safetensors", layout=layout), dtype)


@pytest.mark.parametrize("save", ["save_folder", "save_split"])
@every_family
def test_a_folder_gives_the_original(name, save, tmp_path):
    if not hasattr(MODULES[name], save):
        save = "save_folder"
    folder = getattr(MODULES[name], save)(made(name), tmp_path / "model")

    convert_checkpoint(files_of(folder), checkpoint=tmp_path / "checkpoint.safetensors")

    assert_same(made(name), tmp_path / "checkpoint.safetensors", torch.bfloat16)
    said = inspect_checkpoint(folder, hashing=False)
    assert (said["family"], said["bakeable"], said["prediction_type"]) == (name, True, "flow_prediction")


def test_the_names_of_animas_transformer_are_those_that_diffusers_converts():
    tensors = tiny_anima.original_tensors(made("anima").transformer)

    found = convert_cosmos_transformer_checkpoint_to_diffusers({f"net.{name}": t for name, t in tensors.items()})

    wanted = made("anima").transformer.state_dict()
    assert found.keys() == wanted.keys()
    assert [key for key, tensor in wanted.items() if not torch.equal(found[key], tensor)] == []


def test_the_names_of_qwen_images_autoencoder_are_those_that_diffusers_converts():
    vae = type(tiny_anima.qwen_image_vae())(base_dim=4, dim_mult=[1, 2, 4, 4], num_res_blocks=2)

    found = convert_wan_vae_to_diffusers(tiny_anima.original_vae_tensors(vae))

    assert found.keys() == vae.state_dict().keys()
    assert [key for key, tensor in vae.state_dict().items() if not torch.equal(found[key], tensor)] == []


def test_lacking_its_conditioner_a_transformer_is_cosmos(tmp_path):
    tensors = {
        name: t for name, t in tiny_anima.single_file_tensors(made("anima")).items() if "llm_adapter" not in name
    }
    save_file(tensors, tmp_path / "cosmos.safetensors")

    with pytest.raises(UnknownFamily, match="this is a Cosmos-Predict2 checkpoint"):
        family_in(tmp_path / "cosmos.safetensors")


@every_family
def test_the_config_is_the_networks_own(name, model_of):
    model = model_of(name)
    family, container = model.family, open_container(model.checkpoint)
    found, wanted = find_network(container, family.denoiser, family.latents).config, made(name).transformer.config

    for entry in found.keys() - {"_class_name", "out_channels"}:
        own = wanted[entry]
        assert found[entry] == (list(own) if isinstance(own, tuple) else own), entry
    kinds = {"lumina2": RenormalisedFlow(shift=6.0, sign=-1), "anima": SpacedFlow(shift=3.0)}
    kinds |= {"flux1": SpacedFlow(guidance_embedded=True, dynamic="flux1", factor=16)}
    kinds |= {"z_image": SpacedFlow(shift=3.0, sign=-1), "flux2_klein_9b": SpacedFlow(dynamic="flux2")}
    kinds |= {"flux2_dev": SpacedFlow(guidance_embedded=True, dynamic="flux2")}
    kinds |= {"qwen_image": TerminalFlow(dynamic="qwen_image")}
    assert read_sampling(model.weights["transformer"]) == kinds[name]


# Graphs ---------------------------------------------------------------------------------------------------------------


def count(*modules):
    """Number of weights."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_the_weights_of_animas_full_size_are_spread_over_three_graphs():
    family = FAMILIES["anima"]
    config = dict(family.structure.config) | {"_class_name": "CosmosTransformer3DModel", "out_channels": 16}
    config |= {"patch_size": [1, 2, 2], "rope_scale": [1.0, 4.0, 4.0], "extra_pos_embed_type": None}
    with torch.device("meta"):
        network = cosmos.build(config)

    wanted = [count(block) for block in network.transformer_blocks]
    wanted[0] += count(network.patch_embed) * 16 // 17  # without the mask's channel
    wanted[-1] += count(network.norm_out, network.proj_out)
    assert cosmos.weights(config) == wanted
    assert sum(wanted) == count(network) - count(network.time_embed) - count(network.patch_embed) // 17
    assert len(family.denoiser.graphs) == 3


@pytest.mark.parametrize(("name", "network", "graphs"), [("lumina2", lumina, 3), ("z_image", z_image, 8)])
def test_the_weights_of_full_size_are_spread_over_graphs(name, network, graphs):
    family = FAMILIES[name]
    config = dict(family.structure.config)
    full = {"lumina2": {"_class_name": "Lumina2Transformer2DModel", "cap_feat_dim": 2304, "multiple_of": 256}}
    full["lumina2"] |= {"axes_dim_rope": [32] * 3, "axes_lens": lumina.PLACES}
    full |= {"z_image": {"_class_name": "ZImageTransformer2DModel", "cap_feat_dim": 2560}}
    with torch.device("meta"):
        built = network.build(config | full[name])

    wanted = [count(block) for block in [*built.noise_refiner, *built.layers]]
    ends = {"lumina2": ("x_embedder", "norm_out"), "z_image": ("all_x_embedder", "all_final_layer")}[name]
    wanted[0] += count(getattr(built, ends[0]))
    wanted[-1] += count(getattr(built, ends[1]))
    assert network.weights(config) == wanted
    assert len(family.denoiser.graphs) == graphs


def test_the_weights_of_flux_1_in_full_size_are_spread_over_sixteen_graphs():
    family = FAMILIES["flux1"]
    config = dict(family.structure.config) | {"_class_name": "FluxTransformer2DModel", "guidance_embeds": True}
    with torch.device("meta"):
        network = flux1.build(config)

    wanted = [count(block) for block in [*network.transformer_blocks, *network.single_transformer_blocks]]
    wanted[0] += count(network.x_embedder, network.context_embedder)
    wanted[-1] += count(network.norm_out, network.proj_out)
    assert flux1.weights(config) == wanted
    assert len(family.denoiser.graphs) == 16


def test_klein_9b_has_eleven_graphs_and_a_text_encoder_in_parts_that_can_be_loaded():
    family = FAMILIES["flux2_klein_9b"]

    assert len(family.denoiser.graphs) == 11
    assert sum(family.structure.blocks.weights(family.structure.config)) == pytest.approx(8.8e9, rel=0.01)


def test_the_weights_of_qwen_image_in_full_size_are_spread_over_thirty_graphs():
    family = FAMILIES["qwen_image"]
    config = dict(family.structure.config) | {"_class_name": "QwenImageTransformer2DModel", "out_channels": 16}
    config |= {"axes_dims_rope": [16, 56, 56]}
    with torch.device("meta"):
        network = qwen_image.build(config)

    wanted = [count(block) for block in network.transformer_blocks]
    wanted[0] += count(network.img_in, network.txt_in, network.txt_norm)
    wanted[-1] += count(network.norm_out, network.proj_out)
    assert qwen_image.weights(config) == wanted
    assert sum(wanted) == count(network) - count(network.time_text_embed)
    assert len(family.denoiser.graphs) == 30


def test_the_weights_of_flux_2_dev_in_full_size_are_spread_over_graphs_as_large_as_its_blocks():
    family = FAMILIES["flux2_dev"]
    config = dict(family.structure.config) | {"_class_name": "Flux2Transformer2DModel", "guidance_embeds": True}
    with torch.device("meta"):
        network = flux2.build(config)

    wanted = [count(block) for block in [*network.transformer_blocks, *network.single_transformer_blocks]]
    wanted[0] += count(network.x_embedder, network.context_embedder)
    wanted[-1] += count(network.proj_out)
    assert flux2.weights(config) == wanted
    assert len(family.denoiser.graphs) == 32
    assert family.divided(880_000_000) == family  # config's own number is less than one block
    assert len(family.divided(2_000_000_000).denoiser.graphs) == 17


# Schedules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["z_image", "lumina2", "anima", "flux1", "qwen_image", "flux2_dev"])
def test_rows_are_those_of_the_networks_own_time_embedding(name, model_of):
    model, timesteps = model_of(name), np.array([1000.0, 752.0, 250.5], np.float32)
    network, time = made(name).transformer, torch.from_numpy(timesteps) / 1000
    silu = torch.nn.functional.silu

    found = model.family.denoiser.rows(model.weights["transformer"], timesteps, guidance_scale=1)

    if name == "anima":
        embedded, normed = network.time_embed(torch.zeros(1), time)
        wanted = torch.cat([silu(normed), embedded], dim=1)
    elif name == "flux1":  # with what a prompt adds
        pooled = torch.randn((1, 32), generator=torch.Generator().manual_seed(0))
        wanted = network.time_text_embed(time * 1000, torch.full((3,), 1000.0), pooled.expand(3, -1))
        found = found + model.family.denoiser.added(model.weights["transformer"]).row(pooled.numpy(), ())
    elif name == "qwen_image":
        wanted = silu(network.time_text_embed(time, torch.zeros(1)))
    elif name == "flux2_dev":
        embedded = silu(network.time_guidance_embed(time * 1000, torch.full((3,), 1000.0)))
        wanted = torch.cat([getattr(network, part).linear(embedded) for part in flux2.MODULATIONS], dim=1)
    elif name == "lumina2":
        wanted = silu(network.time_caption_embed(torch.zeros(1), 1 - time, torch.zeros(1, 1, 32))[0])
    else:
        wanted = network.t_embedder((1 - time) * 1000)
    np.testing.assert_allclose(found, wanted.numpy(), atol=2e-5)


@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_the_shift_of_flux_1_dev_is_diffusers(tokens):
    assert DYNAMIC["flux1"](tokens, 20) == pytest.approx(calculate_shift(tokens))


def test_schnell_takes_no_guidance_scale_and_has_a_constant_shift(tmp_path):
    tiny_flux1.save(tiny_flux1.schnell(), tmp_path / "tiny.safetensors")
    family = FAMILIES["flux1"]
    config = find_network(open_container(tmp_path / "tiny.safetensors"), family.denoiser, family.latents).config

    assert family.process.sampling(config, "flow_prediction", zero_terminal_snr=False) == SpacedFlow()


@pytest.mark.parametrize(("side", "steps"), [(512, 4), (1024, 4), (1664, 7)])
def test_the_noise_levels_of_qwen_image_are_those_of_its_pipeline(side, steps):
    published = {"base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 8192, "max_shift": 0.9}
    published |= {"shift_terminal": 0.02, "use_dynamic_shifting": True}
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(published)
    tokens = (side // 16) ** 2
    mu = calculate_shift(tokens, 256, 8192, 0.5, 0.9)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)

    sampling = TerminalFlow(dynamic="qwen_image").for_picture(height=side, width=side, steps=steps)

    np.testing.assert_allclose(scheduler_arrays("euler", steps, sampling)["timesteps"], scheduler.timesteps, rtol=1e-6)
    assert scheduler.timesteps[-1] == pytest.approx(20, rel=1e-4)


def norms_of_lines(output):
    """As `Lumina2Pipeline` has them."""
    return torch.norm(output, dim=-1, keepdim=True)


def norms_of_patches(output):
    """As `QwenImagePipeline` has them, of packed latents."""
    batch, channels, height, width = output.shape
    packed = QwenImagePipeline._pack_latents(output, batch, channels, height, width)
    spread = torch.norm(packed, dim=-1, keepdim=True).expand(-1, -1, 4 * channels)
    return QwenImagePipeline._unpack_latents(spread, 8 * height, 8 * width, 8)[:, :, 0]


@pytest.mark.parametrize(("name", "norms"), [("lumina2", norms_of_lines), ("qwen_image", norms_of_patches)])
def test_guidance_is_renormalised_as_in_diffusers_pipeline(name, norms, model_of, tmp_path):
    model, steps, scale = model_of(name), 3, 4.0
    path = tmp_path / "schedule.npz"
    how = {"guidance_scale": scale, "rows": model.family.denoiser.rows, "denoiser": model.weights["transformer"]}
    how |= {"height": 64, "width": 64}
    derive_schedule(scheduler="euler", steps=steps, schedule=path, **how)
    schedule = load_schedule(path)
    prompts = np.stack([np.full((1, 2), 1.0), np.full((1, 2), -0.5)]).astype(np.float32)
    initial = np.random.default_rng(0).standard_normal((1, 4, 6, 8)).astype(np.float32)

    def predict(latent, prompt):
        return torch.sin(3 * latent + float(prompt[0, 0]))

    def denoise(latent, time, given):
        return np.concatenate([predict(torch.from_numpy(latent), prompt).numpy() for prompt in given])

    found = sample(
        denoise,
        schedule,
        TorchNoise(0),
        initial,
        prompt_embeds=prompts[:1],
        negative_embeds=prompts[1:],
        guidance_scale=scale,
    )

    latent = torch.from_numpy(initial)
    sigmas = [*(schedule.timesteps / 1000), 0]
    sign = 1 if name == "qwen_image" else -1
    for step in range(steps):  # the loop of the pipeline
        cond, uncond = (predict(latent, prompt) for prompt in prompts)
        made = uncond + scale * (cond - uncond)
        made = made * (norms(cond) / norms(made))
        latent = latent + sign * (sigmas[step + 1] - sigmas[step]) * made
        np.testing.assert_allclose(found.latents[step], latent.numpy(), atol=1e-5)
    assert "renormalised" not in scheduler_arrays("euler", steps, SpacedFlow(shift=6.0))


@every_family
def test_the_slices_of_each_network_give_together_what_the_whole_gives(name, model_of):
    model, columns = model_of(name), COLUMNS | {"width": 128}
    for component in model.family.components:
        config = read_description(model.weights[component.name]).config
        given = {column: value for column, value in columns.items() if column in component.columns}
        faces = [piece.interface(config, **given) for piece in component.graphs]
        made = {output for face in faces for output in face.outputs}
        inputs = {key: tensor for face in faces for key, tensor in face.inputs.items() if key not in made}
        network = load(model.weights[component.name], component.build)
        with torch.inference_mode():
            whole = Interface(inputs, faces[-1].outputs)
            known, wanted = component.example(network, whole, config, torch.Generator().manual_seed(3))
            for piece, face in zip(component.graphs, faces, strict=True):
                found = piece.cut(network, face)(*(known[key] for key in face.inputs))
                found = found if isinstance(found, tuple) else (found,)
                known |= dict(zip(face.outputs, found, strict=True))
        for one, other in zip(found, wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
            assert psnr(other.numpy(), one.numpy()) > 100, component.name


@pytest.mark.parametrize("name", ["lumina2", "z_image"])
def test_guidance_is_left_out_from_the_step_on_from_which_diffusers_pipeline_leaves_it_out(name, model_of, tmp_path):
    model = model_of(name)
    drawn = {}
    for ratio in (1.0, 0.5, 0.0):
        directory = tmp_path / str(ratio)
        directory.mkdir()
        schedule = model.schedule(directory / "schedule.npz", cfg_trunc_ratio=ratio)
        recorded = np.load(record(model, schedule, directory / "trajectories.npz", prompts=["a rocket"], width=128))
        picture = model.picture(cfg_trunc_ratio=ratio if ratio < 1 else None, width=128)
        draw_picture(model, picture, directory)
        drawn[ratio] = np.load(directory / "trajectory.npy")
        np.testing.assert_allclose(recorded["latents"][0, 1:], drawn[ratio], atol=2e-3)
    assert np.array_equal(drawn[0.5][:2], drawn[1.0][:2])
    assert np.abs(drawn[0.5][2] - drawn[1.0][2]).max() > 0.02
    assert np.abs(drawn[0.5][0] - drawn[0.0][0]).max() > 0.02

    schedule = load_schedule(tmp_path / "0.5" / "schedule.npz")
    assert [schedule.branches(step, 2) for step in range(4)] == [2, 2, 1, 1]
    assert [schedule.beginning_at(1).branches(step, 2) for step in range(3)] == [2, 1, 1]
    assert guided_steps(20, 0.25) == 5 and guided_steps(3, 0.3) == 0 and guided_steps(3, None) == 3


# Prompts --------------------------------------------------------------------------------------------------------------


class Chat(PreTrainedTokenizerFast):
    """The tests' tokenizer with Qwen3's chat for one message."""

    def apply_chat_template(self, messages, **options):
        (message,) = messages
        assert (message["role"], options["enable_thinking"], options["add_generation_prompt"]) == ("user", True, True)
        return f"<|im_start|>user\n{message['content']}<|im_end|>\n<|im_start|>assistant\n"


def embedding_of(model, chunks=1):
    """A function that embeds prompts as the reference picture does."""
    encodes = [text_encoding(model.weights[one.name], one.build, one.states) for one in model.family.text_encoders]
    tokenizer = load_tokenizer(model.embeddings)
    return prompt_embedding(encodes, tokenizer, chunks=chunks, conditioning=model.family.conditioning)


PROMPTS = ("a (red:1.3) rocket", "", "long " * 200)


def test_a_prompt_of_z_image_is_what_diffusers_own_text_stage_makes_of_it(model_of):
    embed = embedding_of(model_of("z_image"))
    pipeline = types.SimpleNamespace(
        tokenizer=Chat(tokenizer_object=tiny_flux2.tokenizer(), pad_token="<|endoftext|>"),
        text_encoder=made("z_image").text_encoder.model,
    )

    for prompt in PROMPTS:
        (wanted,) = ZImagePipeline._encode_prompt(pipeline, prompt, "cpu", max_sequence_length=128)
        found = embed(prompt)

        np.testing.assert_allclose(found.states[0], wanted.detach().numpy(), atol=2e-5)
        assert found.tokens.shape == (1, 128, 64)


def test_a_prompt_of_qwen_image_is_what_diffusers_own_text_stage_makes_of_it(model_of):
    embed = embedding_of(model_of("qwen_image"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_flux2.tokenizer(), pad_token="<|endoftext|>")
    pipeline = types.SimpleNamespace(
        tokenizer=tokenizer,
        text_encoder=made("qwen_image").text_encoder,
        tokenizer_max_length=qwen_image.CHUNK,
        prompt_template_encode=TEMPLATE.replace("{prompt}", "{}"),
        prompt_template_encode_start_idx=34,
        _extract_masked_hidden=functools.partial(QwenImagePipeline._extract_masked_hidden, None),
    )
    own = QwenImagePipeline.__init__.__code__.co_consts
    assert TEMPLATE.replace("{prompt}", "{}") in own

    for prompt in PROMPTS:
        wanted, mask = QwenImagePipeline._get_qwen_prompt_embeds(pipeline, prompt, "cpu", torch.float32)
        found = embed(prompt)

        assert mask.all() and int(found.mask.sum()) == wanted.shape[1]
        np.testing.assert_allclose(found.tokens[:, found.mask[0] > 0], wanted.detach().numpy(), atol=3e-5)
        assert found.tokens.shape == (1, 256, 256)


class Instructions(PreTrainedTokenizerFast):
    """The tests' tokenizer with Mistral's chat for one message behind a system message."""

    def apply_chat_template(self, conversations, **options):
        (((system, user),),) = [conversations]
        text = (
            f"<s>[SYSTEM_PROMPT]{system['content'][0]['text']}[/SYSTEM_PROMPT][INST]{user['content'][0]['text']}[/INST]"
        )
        how = {name: options[name] for name in ("padding", "truncation", "max_length", "return_tensors")}
        return self([text], add_special_tokens=False, **how)


def test_a_prompt_of_flux_2_dev_is_what_diffusers_own_text_stage_makes_of_it(model_of):
    embed = embedding_of(model_of("flux2_dev"))
    tokenizer = Instructions(tokenizer_object=tiny_flux2.mistral_tokenizer(), pad_token="<pad>", padding_side="left")
    assert SYSTEM_MESSAGE in DEV_TEMPLATE

    for prompt in PROMPTS:
        wanted = Flux2Pipeline._get_mistral_3_small_prompt_embeds(made("flux2_dev").text_encoder, tokenizer, prompt)

        np.testing.assert_allclose(embed(prompt).tokens, wanted.detach().numpy(), atol=5e-5)


def test_a_prompt_of_lumina_is_what_diffusers_own_text_stage_makes_of_it(model_of):
    embed = embedding_of(model_of("lumina2"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_lumina.tokenizer(), pad_token="<pad>")
    tokenizer.padding_side = "right"
    networks = made("lumina2")
    pipeline = Lumina2Pipeline(networks.transformer, None, networks.vae, networks.text_encoder, tokenizer)

    for prompt, negative in zip(PROMPTS, ("blurry", "", "long " * 200), strict=True):
        states, mask, negatives, negative_mask = pipeline.encode_prompt(prompt, negative_prompt=negative)
        for found, wanted, counts in (
            (embed(prompt), states, mask),
            (embed(negative, negative=True), negatives, negative_mask),
        ):
            own = counts[0] == 1
            np.testing.assert_allclose(found.states[0], wanted[0, own].detach().numpy(), atol=2e-5)
            assert found.mask.sum() == own.sum() and found.mask[0, -int(own.sum()) :].all()


def test_a_prompt_of_flux_1_is_what_diffusers_own_text_stage_makes_of_it(model_of):
    embed, networks = embedding_of(model_of("flux1")), made("flux1")
    pipeline = FluxPipeline(
        None,
        networks.vae,
        networks.text_encoder,
        CLIPTokenizer.from_pretrained(CLIP, local_files_only=True),
        networks.text_encoder_2,
        PreTrainedTokenizerFast(tokenizer_object=tiny_anima.t5_tokenizer(), pad_token="<pad>"),
        networks.transformer,
    )

    for prompt in ("a rocket", "a rocket " * 80):
        tokens, pooled, _ = pipeline.encode_prompt(prompt.strip(), None)
        found = embed(prompt)

        assert found.tokens.shape == (1, 512, tiny_flux1.CONTEXT)
        np.testing.assert_allclose(found.tokens, tokens.numpy(), atol=2e-4)
        if len(prompt) < 77:  # a longer one is split at a comma for CLIP, as web UIs do
            np.testing.assert_allclose(found.pooled, pooled.numpy(), atol=1e-5)


def test_a_prompt_that_brings_a_system_prompt_is_taken_as_it_is():
    form = LanguageFormat("Draw! <Go> {prompt}", tokens=64, pad="<pad>", mark="<Go>", negative="{prompt}")
    tokenizer = LanguageTokenizer(tiny_lumina.tokenizer().to_str(), form)

    assert (
        tokenizer.count("a") == len("Draw! <Go> a") + 1 and tokenizer.count("Paint! <Go> a") == len("Paint! <Go> a") + 1
    )
    assert (tokenizer.arrays("a", negative=True)[1] == 1).sum() == 2


def test_a_prompt_of_anima_is_what_diffusers_own_text_stage_makes_of_it(model_of):
    embed, networks = embedding_of(model_of("anima")), made("anima")
    components = types.SimpleNamespace(
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=tiny_flux2.tokenizer(), pad_token="<|endoftext|>"),
        t5_tokenizer=PreTrainedTokenizerFast(tokenizer_object=tiny_anima.t5_tokenizer(), pad_token="<pad>"),
        text_encoder=networks.text_encoder.model,
    )

    for prompt in ("a (red:1.3) rocket", "", "long " * 300):
        given = AnimaTextEncoderStep.encode_prompt(
            components, prompt.strip(), prepare_unconditional_embeds=False, device="cpu", dtype=torch.float32
        )
        wanted = networks.text_conditioner(
            given["qwen_prompt_embeds"],
            given["t5_input_ids"],
            target_attention_mask=given["t5_attention_mask"],
            source_attention_mask=given["qwen_attention_mask"],
        )
        found = embed(prompt)

        assert found.mask is None and found.tokens.shape == (1, cosmos.TOKENS, tiny_anima.TOKENS_WIDTH)
        np.testing.assert_allclose(found.tokens, wanted.numpy(), atol=2e-5)
    assert (
        AnimaModularPipeline.default_blocks_name and AnimaTextConditioningStep
    )  # what the reference is put together of


def test_what_of_a_prompt_does_not_count_for_either_tokenizer_is_said(model_of):
    tokenizer = load_tokenizer(model_of("anima").embeddings)

    said = prompt_warnings("word" + " more" * 110, tokenizer, chunks=1)

    cut = ("longer than 512 tokens; its end is cut off for text_", "ore more more more more more more more more more")
    assert len(said) == 2 and all(one.startswith(cut[0]) for one in said)
    assert said[1].endswith(cut[1][-8:]) and len(said[0]) != len(said[1])  # T5 ends with a token of its own


def test_the_end_that_is_cut_off_begins_where_the_tokens_end():
    form = LanguageFormat("{prompt}", tokens=5, pad="<pad>")
    ended, begun = (
        LanguageTokenizer(one.to_str(), form) for one in (tiny_anima.t5_tokenizer(), tiny_lumina.tokenizer())
    )

    assert (ended.cut_off("abcd"), ended.cut_off("abcde")) == ("", "e")
    assert (begun.cut_off("abcd"), begun.cut_off("abcdef")) == ("", "ef")
    ids, kinds = ended.arrays("abcdefgh")
    assert ids[0, -1] == tiny_anima.t5_tokenizer().token_to_id("</s>") and kinds.all()


# Rows -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cells", "message"),
    [
        ("z_image", {"scheduler": "dpmpp_2m"}, "column scheduler: dpmpp_2m, wanted euler"),
        ("z_image", {"width": "192"}, "column height, width: 64, 192; .* has 48 tokens; wanted a multiple of 32"),
        ("lumina2", {"scheduler": "unipc"}, "column scheduler: unipc, wanted euler"),
        ("lumina2", {"height": "72"}, "column height: 72; this transformer draws pictures of a multiple of 16"),
        ("anima", {"height": "72"}, "column height: 72; this transformer draws pictures of a multiple of 16"),
    ],
)
def test_a_row_that_it_cannot_draw_is_refused(name, cells, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    MODULES[name].save(made(name), tmp_path / "tiny.safetensors")
    usual = {"scheduler": "euler", "tokenizer": ".", "width": "128"}

    with pytest.raises(AxbakeError, match=message):
        Model(row_of(**usual | cells), CONFIG).check_fit()


def test_both_tokenizers_of_anima_are_found_in_their_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_anima.save_split(made("anima"), tmp_path / "anima")
    model = Model(row_of(checkpoint="anima", scheduler="euler"), CONFIG)

    # In the order of the encoders' names, as they are listed by.
    assert model.tokenizers == ["anima/t5_tokenizer/tokenizer.json", "anima/tokenizer/tokenizer.json"]
    (tmp_path / "anima" / "t5_tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(MissingTokenizer, match=r"no tokenizer\.json of the text_conditioner.*anima/t5_tokenizer"):
        model.check_fit()


def test_the_autoencoder_of_another_family_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_anima.save(made("anima"), tmp_path / "tiny.safetensors")
    other = {f"vae.{name}": t for name, t in tiny_z_image.flux_vae().state_dict().items()}
    save_file(other, tmp_path / "other.safetensors")

    with pytest.raises(AxbakeError, match=r"other\.safetensors"):
        Model(row_of(vae="other.safetensors", scheduler="euler", tokenizer="."), CONFIG).check_fit()


def test_an_empty_prompt_gives_finite_tokens_from_the_exported_conditioner(model_of, tmp_path):
    """All of the language model's tokens are masked then."""
    from axbake.graphs.export import export_onnx
    from axbake.runtime.session import open_models

    model = model_of("anima")
    weights = model.weights["text_conditioner"]
    component = model.family.component("text_conditioner")
    graph, tensors = tmp_path / "c.onnx", tmp_path / "c.onnx.data"
    (piece,) = component.graphs
    export_onnx(weights, build=anima_text.build, piece=piece, columns={}, graph=graph, tensors=tensors)
    width = read_description(weights).config["source_dim"]
    nothing = np.zeros((1, cosmos.TOKENS), np.int64)
    ids = np.full_like(nothing, 5)
    own = (np.arange(cosmos.TOKENS)[None] == 0).astype(np.int64)
    states = np.ones((1, cosmos.TOKENS, width), np.float32)

    session = open_models([graph])
    (found,) = session.run(dict(zip(session.inputs, (states, nothing, ids, own), strict=True))).values()

    tensors = [torch.from_numpy(one) for one in (states, nothing, ids, own)]
    wanted = anima_text.states(made("anima").text_conditioner, *tensors)[0]
    np.testing.assert_allclose(found, wanted.numpy(), atol=2e-5)
    assert np.isfinite(found).all() and not found[0, 1:].any()
