"""Stable Diffusion XL and what was distilled from it: imported as it was, exported in graphs, drawing what diffusers draws."""

import copy
import functools
import json

import numpy as np
import pytest
import torch
import yaml
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from axbake.checkpoints.containers import UnreadableCheckpoint, files_of, open_container, place_of
from axbake.checkpoints.conversion import convert_checkpoint
from axbake.checkpoints.embeddings import EmbeddingError
from axbake.checkpoints.finding import find_network, read_found_tensor
from axbake.checkpoints.refusals import TensorMismatch
from axbake.digest import file_sha256
from axbake.distance import psnr
from axbake.drawing.prompts import load_tokenizer, prompt_embedding, text_encoding
from axbake.drawing.schedule import build_scheduler
from axbake.families import FAMILIES
from axbake.inspect import inspect_checkpoint
from axbake.loras.files import LoraError
from axbake.model import Model, family_of
from axbake.networks import unet, xl_unet
from axbake.networks.clip_xl import TOKEN_TABLE
from axbake.networks.component import GRAPH_WEIGHTS, Interface, SliceError, as_files
from axbake.networks.sampling import Sampling
from axbake.networks.unet_slices import parts_of
from axbake.table import check_config
from axbake.weights.embeddings import list_embeddings
from axbake.weights.files import read_description, read_sampling
from axbake.weights.single_file import write_single_file
from tests import tiny, tiny_xl
from tests.unit.conftest import CLIP, COLUMNS, SCHEMAS, TinyModel, describe, family_in, import_part, row_of

FAMILY = FAMILIES["sdxl"]
CONFIG = check_config({}, schema=SCHEMAS / "config.schema.yaml", source="config.yaml", components=[])
MIN_PSNR = 60  # dB; float32 on both sides
PROMPT, NEGATIVE = "a (red:1.3) rocket!", "blurry"
HEIGHT, WIDTH = 64, 96

every_variant = pytest.mark.parametrize("variant", tiny_xl.VARIANTS)
every_family = pytest.mark.parametrize("variant", tiny_xl.FAMILIES)


@functools.cache
def made(variant, dtype=torch.float16):
    """A variant's networks, which no test changes."""
    return tiny_xl.VARIANTS[variant](dtype)


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    """A function that gives a variant's tiny model, imported once."""

    @functools.cache
    def imported(variant):
        directory, networks = tmp_path_factory.mktemp(variant), made(variant)
        checkpoint = tiny_xl.save(networks, directory / "model.safetensors")
        family = family_in(checkpoint)
        weights = {name: directory / f"{name}.safetensors" for name in family.names}
        for name, path in weights.items():
            import_part(checkpoint, component=name, weights=path, family=family)
        encoders = [weights[one.name] for one in family.text_encoders]
        list_embeddings(encoders, [], names=[], encoders=["clip_l", "clip_g"], listing=directory / "embeddings.json")
        return TinyModel(family, networks, checkpoint, weights, directory / "embeddings.json")

    return imported


def assert_same(networks, checkpoint, dtype):
    container_family = family_in(checkpoint)
    assert container_family.name == networks.family
    container = open_container(checkpoint)
    for component in container_family.components:
        found = find_network(container, component, container_family.latents)
        tensors = {name: read_found_tensor(container, found, name) for name in found.origins}
        wanted = networks.component(component.name).state_dict()
        wanted = {name.removeprefix("text_model."): tensor for name, tensor in wanted.items()}
        assert set(tensors) == set(wanted), component.name
        assert [name for name, tensor in tensors.items() if tensor.dtype != dtype] == []
        assert [name for name, tensor in tensors.items() if not torch.equal(tensor.float(), wanted[name])] == []


# Import ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", tiny_xl.LAYOUTS)
@every_family
def test_every_layout_and_precision_gives_the_original(variant, layout, tmp_path):
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        networks = made(variant, dtype)

        assert_same(networks, tiny_xl.save(networks, tmp_path / "model.safetensors", layout=layout), dtype)


@every_family
def test_a_diffusers_folder_gives_the_original(variant, tmp_path):
    networks = made(variant)
    folder = tiny_xl.save_folder(networks, tmp_path / "model")

    convert_checkpoint(files_of(folder), checkpoint=tmp_path / "checkpoint.safetensors")

    assert_same(networks, tmp_path / "checkpoint.safetensors", torch.float16)


@every_family
def test_a_folder_with_a_file_for_each_network_gives_the_original(variant, tmp_path):
    networks = made(variant)
    split = tiny_xl.save_split(networks, tmp_path / "split")
    folder = tmp_path / "linked"
    folder.mkdir()
    for file in split.iterdir():
        (folder / file.name).symlink_to(file)

    convert_checkpoint(files_of(folder), checkpoint=tmp_path / "checkpoint.safetensors")

    assert_same(networks, tmp_path / "checkpoint.safetensors", torch.float16)
    said = inspect_checkpoint(folder, hashing=False)
    assert (said["container"], said["family"], said["bakeable"]) == ("folder of networks", networks.family, True)


def test_a_file_of_a_network_that_lacks_is_named_and_one_of_such_a_name_alone_is_a_file(tmp_path):
    folder = tiny_xl.save_split(made("sdxl"), tmp_path / "split")
    (folder / "vae.safetensors").unlink()

    with pytest.raises(
        UnreadableCheckpoint, match=r"split: no vae\.safetensors, but text_encoder\.safetensors, .*Wanted"
    ):
        files_of(folder)
    with pytest.raises(UnreadableCheckpoint, match=r"no vae\.safetensors"):
        family_of(folder)
    assert files_of(folder / "unet.safetensors") == [folder / "unet.safetensors"]
    assert place_of(files_of(folder / "unet.safetensors")) == folder / "unet.safetensors"


@pytest.mark.parametrize(("kind", "scaled"), [("F8_E4M3", True), ("F8_E5M2", False)])
def test_eight_bits_become_fp16(kind, scaled, tmp_path):
    networks = made("sdxl")
    stored, wanted = tiny.eight_bit_tensors(tiny_xl.single_file_tensors(networks), kind, scaled=scaled)
    path = tmp_path / "model.safetensors"
    save_file(stored, path)

    import_part(path, component="unet", weights=tmp_path / "unet.safetensors")

    origins = find_network(open_container(path), FAMILY.denoiser, FAMILY.latents).origins
    for name, tensor in load_file(tmp_path / "unet.safetensors").items():
        assert tensor.dtype == torch.float16
        assert torch.equal(tensor, wanted[origins[name].name]), name


def test_a_moving_average_stands_for_the_unet_where_it_is_alone(tmp_path):
    networks = made("sdxl")
    path = tmp_path / "model.safetensors"
    save_file(tiny.averaged(tiny_xl.single_file_tensors(networks)), path)

    import_part(path, component="unet", weights=tmp_path / "unet.safetensors")

    found, wanted = load_file(tmp_path / "unet.safetensors"), networks.unet.state_dict()
    assert found.keys() == wanted.keys()
    assert [name for name, tensor in found.items() if not torch.equal(tensor.float(), wanted[name])] == []


def test_a_recipe_merges_all_networks_with_the_shares_of_their_blocks(tmp_path):
    networks = {"a": made("sdxl", torch.float32), "b": copy.deepcopy(made("sdxl", torch.float32))}
    for component in CHANGED:
        for parameter in networks["b"].component(component).parameters():
            parameter.data = parameter.data + 0.1
    paths = {name: tiny_xl.save(one, tmp_path / f"{name}.safetensors") for name, one in networks.items()}
    step = {"method": "weighted_sum", "a": "a", "b": "b", "alpha": 0.25, "blocks": {"M00": 0.75, "text_encoder": 0.5}}
    entries = {name: {"path": str(path), "sha256": file_sha256(path)} for name, path in paths.items()}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"checkpoints": entries, "steps": [step]}))
    components = [as_files(one) for one in FAMILY.components]

    merged = tmp_path / "merged.safetensors"
    convert_checkpoint(files_of(recipe), checkpoint=merged, components=components, latents=FAMILY.latents)

    for component in CHANGED:
        import_part(merged, component=component, weights=tmp_path / "part.safetensors")
        found, plain = load_file(tmp_path / "part.safetensors"), networks["a"].component(component).state_dict()
        for name, tensor in plain.items():
            share = 0.5 if component != "unet" else 0.75 if name.startswith("mid_block") else 0.25
            torch.testing.assert_close(found[name.removeprefix("text_model.")], tensor + 0.1 * share)


@every_variant
def test_the_config_is_the_networks_own(variant, model_of):
    found = read_description(model_of(variant).weights["unet"]).config
    wanted = made(variant).unet.config

    for name in (
        "block_out_channels",
        "mid_block_type",
        "cross_attention_dim",
        "use_linear_projection",
        "addition_embed_type",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
        "time_cond_proj_dim",
    ):
        own = wanted[name]
        assert found.get(name) == (list(own) if isinstance(own, tuple) else own), name


def test_inspect_says_what_it_is(tmp_path):
    said = inspect_checkpoint(tiny_xl.save(made("sdxl"), tmp_path / "model.safetensors"), hashing=False)

    assert said["family"] == "sdxl"
    assert said["variant"] == "Stable Diffusion XL"
    assert list(said["components"]) == [*FAMILIES["sdxl"].names]
    assert said["bakeable"] is True


def test_a_checkpoint_without_its_second_text_encoder_is_refused(tmp_path):
    tensors = tiny_xl.single_file_tensors(made("sdxl"))
    tensors = {name: tensor for name, tensor in tensors.items() if "embedders.1." not in name}
    save_file(tensors, tmp_path / "model.safetensors")

    with pytest.raises(TensorMismatch, match="text_encoder_2"):
        import_part(
            tmp_path / "model.safetensors",
            component="text_encoder_2",
            weights=tmp_path / "weights.safetensors",
            family=FAMILIES["sdxl"],
        )


def test_a_model_that_predicts_the_velocity_says_so_by_its_tensors(tmp_path):
    marks = {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}
    checkpoint = tiny_xl.save(made("sdxl"), tmp_path / "model.safetensors", extra=marks)

    import_part(checkpoint, component="unet", weights=tmp_path / "unet.safetensors")

    assert read_sampling(tmp_path / "unet.safetensors") == Sampling("v_prediction", zero_terminal_snr=True)


@every_family
def test_a_model_is_written_back_under_the_names_of_stabilitys_own_files(variant, model_of, tmp_path):
    model = model_of(variant)

    write_single_file(
        list(model.weights.values()),
        components=[as_files(one) for one in model.family.components],
        title=model.family.title,
        specification=model.family.specification,
        single_file=tmp_path / "model.safetensors",
    )

    found, wanted = load_file(tmp_path / "model.safetensors"), tiny_xl.single_file_tensors(made(variant))
    del wanted["conditioner.embedders.1.model.logit_scale"]  # only CLIP's training uses it
    assert found.keys() == wanted.keys()
    assert [name for name, tensor in wanted.items() if not torch.equal(found[name], tensor)] == []


# LoRAs ----------------------------------------------------------------------------------------------------------------

#: Component -> modules that a LoRA changes
CHANGED = {
    "unet": (
        "down_blocks.2.attentions.0.transformer_blocks.1.attn2.to_k",
        "mid_block.attentions.0.transformer_blocks.1.ff.net.2",
        "up_blocks.0.upsamplers.0.conv",
        "add_embedding.linear_1",
    ),
    "text_encoder": ("encoder.layers.1.self_attn.q_proj",),
    "text_encoder_2": ("encoder.layers.2.mlp.fc1",),
}
STARTS = {"unet": "lora_unet_", "text_encoder": "lora_te1_text_model_", "text_encoder_2": "lora_te2_text_model_"}


def lora_of(networks, path, rename):
    """A LoRA as sd-scripts writes it, for all of `CHANGED`; what it adds to each weight at strength 1."""
    generator, tensors, added = torch.Generator().manual_seed(5), {}, {}
    for component, modules in CHANGED.items():
        network = getattr(networks, component)
        network = getattr(network, "text_model", network)
        for module in modules:
            rows, columns, *kernel = network.get_submodule(module).weight.shape
            down = 0.1 * torch.randn((4, columns, *kernel), generator=generator)
            up = 0.1 * torch.randn((rows, 4, *[1] * len(kernel)), generator=generator)
            name = STARTS[component] + (rename(module) if component == "unet" else module).replace(".", "_")
            tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            tensors[f"{name}.alpha"] = torch.tensor(2.0)
            flat = up.flatten(1) @ down.flatten(1)
            added[component, module] = 0.5 * flat.reshape(rows, columns, *kernel)
    save_file(tensors, path)
    return added


@pytest.mark.parametrize(
    "rename",
    [lambda module: module, lambda module: tiny_xl.unet_name(f"{module}.weight").removesuffix(".weight")],
    ids=["diffusers' names", "LDM's names"],
)
def test_a_lora_changes_all_three_networks_under_either_kind_of_names(rename, tmp_path):
    networks = made("sdxl", torch.float32)
    checkpoint = tiny_xl.save(networks, tmp_path / "model.safetensors")
    added = lora_of(networks, tmp_path / "lora.safetensors", rename)

    for component in CHANGED:
        weights = tmp_path / f"{component}.safetensors"
        import_part(checkpoint, [tmp_path / "lora.safetensors"], component=component, weights=weights, strengths=[0.8])

        found, plain = load_file(weights), getattr(networks, component).state_dict()
        plain = {name.removeprefix("text_model."): tensor for name, tensor in plain.items()}
        wanted = {f"{module}.weight": 0.8 * added[component, module] for module in CHANGED[component]}
        for name, tensor in plain.items():
            torch.testing.assert_close(found[name], tensor + wanted.get(name, 0), rtol=1e-5, atol=1e-6)
        assert {name for name in found if not torch.equal(found[name], plain[name])} == set(wanted)


def test_lycoris_and_dora_change_its_modules_by_their_formulas(tmp_path):
    networks = made("sdxl", torch.float32)
    checkpoint = tiny_xl.save(networks, tmp_path / "model.safetensors")
    modules = networks.unet.get_submodule
    hadamard, decomposed = CHANGED["unet"][0], CHANGED["unet"][1]
    generator, tensors = torch.Generator().manual_seed(5), {}
    rows, columns = modules(hadamard).weight.shape
    w1, w2 = ([0.3 * torch.randn(shape, generator=generator) for shape in ((rows, 4), (4, columns))] for _ in range(2))
    name = f"lora_unet_{hadamard.replace('.', '_')}"
    tensors |= {f"{name}.hada_w1_a": w1[0], f"{name}.hada_w1_b": w1[1]}
    tensors |= {f"{name}.hada_w2_a": w2[0], f"{name}.hada_w2_b": w2[1], f"{name}.alpha": torch.tensor(4.0)}
    weight = modules(decomposed).weight
    down, up = (0.1 * torch.randn(shape, generator=generator) for shape in ((4, weight.shape[1]), (weight.shape[0], 4)))
    magnitude = 1 + torch.rand((weight.shape[0], 1), generator=generator)
    name = f"lora_unet_{decomposed.replace('.', '_')}"
    tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(4.0)}
    save_file(tensors | {f"{name}.dora_scale": magnitude}, tmp_path / "lora.safetensors")

    weights = tmp_path / "unet.safetensors"
    import_part(checkpoint, [tmp_path / "lora.safetensors"], component="unet", weights=weights, strengths=[1.0])

    found = load_file(weights)
    loha = modules(hadamard).weight + (w1[0] @ w1[1]) * (w2[0] @ w2[1])  # Hyeon-Woo et al. 2022; alpha is the rank
    moved = weight + up @ down
    dora = magnitude * moved / moved.norm(dim=1, keepdim=True)  # Liu et al. 2024; a magnitude for each output
    torch.testing.assert_close(found[f"{hadamard}.weight"], loha, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[f"{decomposed}.weight"], dora, rtol=1e-4, atol=1e-5)


def test_a_lora_for_it_does_not_fit_stable_diffusion_1(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lora_of(made("sdxl"), tmp_path / "lora.safetensors", lambda module: module)
    tiny.save(tiny.small_sd1(), tmp_path / "tiny.safetensors")
    row = row_of(loras="lora.safetensors:1")

    with pytest.raises(LoraError, match=r"changes text_encoder_2, which Stable Diffusion 1\.x does not have"):
        Model(row, CONFIG).check_fit()


@pytest.mark.parametrize("name", tiny_xl.FAMILIES)
def test_whatever_was_left_out_of_its_unet_it_draws_in_several_steps_with_guidance(name, model_of):
    said = read_sampling(model_of(name).weights["unet"])

    said.check(scheduler="euler", steps=20, guidance_scale=5)
    assert (said.steps, said.guided) == (None, True)


# Embeddings -----------------------------------------------------------------------------------------------------------


def test_an_embedding_has_its_vectors_in_both_text_encoders_under_one_name(tmp_path):
    checkpoint = tiny_xl.save(made("sdxl"), tmp_path / "model.safetensors")
    vectors = {"clip_l": torch.randn(2, 32).half(), "clip_g": torch.randn(2, 64).half()}
    save_file(vectors, tmp_path / "word.safetensors")
    encoders = {one.name: one.files.embedding for one in FAMILIES["sdxl"].text_encoders}

    for name, key in encoders.items():
        weights = tmp_path / f"{name}.safetensors"
        import_part(checkpoint, embeddings=[tmp_path / "word.safetensors"], component=name, weights=weights)
        assert torch.equal(load_file(weights)[TOKEN_TABLE][49408:], vectors[key])
    list_embeddings(
        [tmp_path / f"{name}.safetensors" for name in encoders],
        [tmp_path / "word.safetensors"],
        names=["word"],
        encoders=list(encoders.values()),
        listing=tmp_path / "embeddings.json",
    )

    said = json.loads((tmp_path / "embeddings.json").read_text())
    assert said["embeddings"] == {"word": [49408, 49409]}
    assert said["pad_token_ids"] == {"text_encoder": 49407, "text_encoder_2": 0}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"emb_params": torch.zeros(1, 32)}, "holds emb_params; wanted clip_l and clip_g"),
        ({"clip_l": torch.zeros(1, 32)}, "holds clip_l; wanted clip_l and clip_g"),
        ({"clip_l": torch.zeros(1, 48), "clip_g": torch.zeros(1, 64)}, "vectors of 48 numbers"),
    ],
)
def test_an_embedding_without_vectors_for_both_is_refused(tensors, message, tmp_path):
    checkpoint = tiny_xl.save(made("sdxl"), tmp_path / "model.safetensors")
    save_file(tensors, tmp_path / "word.safetensors")

    with pytest.raises(EmbeddingError, match=message):
        import_part(
            checkpoint,
            embeddings=[tmp_path / "word.safetensors"],
            component="text_encoder",
            weights=tmp_path / "weights.safetensors",
        )


# Graphs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "graphs"), [("sdxl", 3), ("ssd1b", 2), ("vega", 1), ("koala", 2), ("koala_700m", 1)]
)
def test_slices_pass_on_what_later_ones_take_and_nothing_else(variant, graphs, model_of):
    model = model_of(variant)
    config = read_description(model.weights["unet"]).config
    columns = {name: COLUMNS[name] for name in xl_unet.COLUMNS}

    faces = [piece.interface(config, **columns) for piece in model.family.denoiser.graphs]

    assert len(faces) == graphs
    made_before = set()
    for face in faces:
        own = {"sample", "encoder_hidden_states", unet.TIME_INPUT}
        assert set(face.inputs) - own <= made_before
        made_before |= set(face.outputs)
    taken = {name for face in faces for name in face.inputs}
    assert made_before - taken == {"out_sample"}
    assert faces[-1].outputs == ("out_sample",)


def test_the_weights_of_full_size_are_spread_over_the_graphs_of_each_family():
    def build(config):
        with torch.device("meta"):
            return unet.build(config)

    full = {"block_out_channels": [320, 640, 1280], "layers_per_block": 2, "cross_attention_dim": 2048}
    full |= {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"]}
    full |= {"up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]}
    full |= {"attention_head_dim": [5, 10, 20], "use_linear_projection": True, "addition_embed_type": "text_time"}
    full |= {"addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816, "out_channels": 4}
    distilled = full | {"mid_block_type": "UNetMidBlock2D"}
    cases = {
        "sdxl": full | {"mid_block_type": "UNetMidBlock2DCrossAttn", "transformer_layers_per_block": [1, 2, 10]},
        "ssd1b": distilled
        | {
            "transformer_layers_per_block": [1, [2, 2], [4, 4]],
            "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
        },
        "vega": distilled
        | {
            "transformer_layers_per_block": [1, [1, 1], [2, 2]],
            "reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 1],
        },
    }
    fewer = full | {"layers_per_block": 1, "transformer_layers_per_block": [1, 2, 6]}
    cases["koala"] = fewer | {"mid_block_type": "UNetMidBlock2DCrossAttn"}
    cases["koala_700m"] = fewer | {"mid_block_type": None, "transformer_layers_per_block": [1, 2, 5]}
    for name, config in cases.items():
        network, parts = build(config), parts_of(config)
        paths = [part.path for part in parts]
        of_parts = [sum(p.numel() for p in network.get_submodule(path).parameters()) for path in paths]
        assert FAMILIES[name].structure.weights() == of_parts
        sizes = [
            sum(of_parts[paths.index(piece.begin) : paths.index(piece.end) if piece.end else None])
            for piece in FAMILIES[name].denoiser.graphs
        ]
        whole = sum(parameter.numel() for parameter in network.parameters())
        embeddings = sum(parameter.numel() for name, parameter in network.named_parameters() if "_embedding." in name)
        assert sum(sizes) == whole - embeddings - sum(p.numel() for p in network.conv_norm_out.parameters())
        assert max(sizes) <= GRAPH_WEIGHTS, name


@pytest.mark.parametrize(
    ("family", "most", "names"),
    [
        ("sdxl", 3e9, ["unet"]),
        ("sdxl", 1.4e9, ["down", "up"]),
        ("sdxl", 874926084, ["down", "mid", "up"]),
        ("sdxl", 874926083, [f"part_{number:02d}" for number in range(4)]),
        ("ssd1b", 880e6, ["down", "up"]),
        ("vega", 880e6, ["unet"]),
        ("vega", 500e6, ["down", "up"]),
        ("koala", 880e6, ["down", "up"]),
        ("koala_700m", 880e6, ["unet"]),
        ("koala_700m", 500e6, ["down", "up"]),
        ("sd1", 1e6, ["unet"]),
    ],
)
def test_a_unet_has_as_few_graphs_as_its_weights_allow(family, most, names):
    divided = FAMILIES[family].divided(most)

    assert [piece.name for piece in divided.denoiser.graphs] == names
    assert divided.names == FAMILIES[family].names


def test_a_graph_of_fewer_weights_than_one_module_has_is_refused():
    with pytest.raises(
        SliceError, match=r"graph_weights: 300 million, but down_blocks.2.attentions.0 of the UNet alone has 351"
    ):
        FAMILIES["sdxl"].divided(300_000_000)


def test_a_unet_of_other_modules_is_not_cut(model_of):
    config = read_description(model_of("ssd1b").weights["unet"]).config
    (first, *_) = FAMILIES["ssd1b"].denoiser.graphs

    with pytest.raises(SliceError, match="the graph down is cut for"):
        first.interface(config | {"layers_per_block": 1}, **{name: COLUMNS[name] for name in xl_unet.COLUMNS})


def test_what_a_prompt_adds_is_what_diffusers_adds(model_of):
    model = model_of("sdxl")
    pooled = torch.randn((1, tiny_xl.POOLED), generator=torch.Generator().manual_seed(3))
    sizes = (832, 1216, 16, 0, 1024, 1024)

    found = xl_unet.added_embedding(model.weights["unet"]).row(pooled.numpy(), sizes)

    given = {"text_embeds": pooled, "time_ids": torch.tensor([sizes], dtype=torch.float32)}
    wanted = model.networks.unet.get_aug_embed(torch.zeros(1, 1), None, given)
    assert found.dtype == np.float32
    assert psnr(wanted.numpy(), found) > 110


def columns_of(component, **changed):
    given = COLUMNS | {"height": HEIGHT, "width": WIDTH} | changed
    return {name: given[name] for name in component.columns}


@pytest.mark.parametrize(("most", "graphs", "channels"), [(880e6, 3, 4), (880e6, 3, 9), (400e6, 10, 4)])
def test_sides_that_cannot_be_halved_twice_are_cut_as_the_whole_network_has_them(most, graphs, channels, model_of):
    model = model_of("sdxl")
    denoiser = model.family.divided(most).denoiser
    assert len(denoiser.graphs) == graphs
    config = read_description(model.weights["unet"]).config | {"in_channels": channels}
    torch.manual_seed(0)
    network = denoiser.build(config).eval()
    columns = columns_of(denoiser, height=72, width=104)  # 9 × 13 in the latent
    faces = [piece.interface(config, **columns) for piece in denoiser.graphs]
    inputs = {name: tensor for face in faces for name, tensor in face.inputs.items()}
    whole = Interface({name: inputs[name] for name in ("sample", "encoder_hidden_states", unet.TIME_INPUT)}, ())
    with torch.inference_mode():
        known, wanted = xl_unet.example(network, whole, config, torch.Generator().manual_seed(0))
        for piece, face in zip(denoiser.graphs, faces, strict=True):
            given = piece.cut(network, face)(*(known[name] for name in face.inputs))
            known |= dict(zip(face.outputs, given if isinstance(given, tuple) else (given,), strict=True))

    assert {name: tuple(known[name].shape) for name in inputs} == {name: t.shape for name, t in inputs.items()}
    assert torch.equal(known["out_sample"], wanted)


# Drawing --------------------------------------------------------------------------------------------------------------


def pipeline_of(networks, scheduler):
    tokenizers = []
    for pad in ("<|endoftext|>", "!"):
        tokenizers.append(CLIPTokenizer.from_pretrained(CLIP, local_files_only=True))
        tokenizers[-1].pad_token = pad
    pipeline = StableDiffusionXLPipeline(
        vae=networks.vae,
        text_encoder=networks.text_encoder,
        text_encoder_2=networks.text_encoder_2,
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=networks.unet,
        scheduler=build_scheduler(scheduler, Sampling(networks.prediction_type)),
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_prompt_is_what_diffusers_own_text_stage_makes_of_it(model_of):
    """What is drawn with it is compared in `tests/workflow/test_sdxl.py`."""
    model = model_of("sdxl")
    encoders = model.family.text_encoders
    encodes = [text_encoding(model.weights[one.name], one.build, one.states) for one in encoders]
    tokenizer = load_tokenizer(model.embeddings)
    embed = prompt_embedding(encodes, tokenizer, chunks=1, conditioning=model.family.conditioning)

    wanted = pipeline_of(model.networks, "euler").encode_prompt("a rocket!", negative_prompt=NEGATIVE)

    found = [embed("a rocket!"), embed(NEGATIVE)]
    for ours, theirs in zip([one.tokens for one in found] + [one.pooled for one in found], wanted, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def test_prompts_are_filled_up_as_each_text_encoder_was_trained_and_pooled_at_the_first_end(model_of):
    model = model_of("sdxl")
    encoders = model.family.text_encoders
    encodes = [text_encoding(model.weights[one.name], one.build, one.states) for one in encoders]
    tokenizer = load_tokenizer(model.embeddings)
    embed = prompt_embedding(encodes, tokenizer, chunks=2, conditioning=model.family.conditioning)

    found = embed("a cat BREAK a (dog:1.5)")

    def ids(words, pad):
        start = [tokenizer.start, *(one for these, _ in tokenizer.words(words) for one in these), tokenizer.end]
        return torch.tensor([start + [pad] * (77 - len(start))])

    with torch.inference_mode():
        first = model.networks.text_encoder(ids("a cat", 49407), output_hidden_states=True).hidden_states[-2]
        second = model.networks.text_encoder_2(ids("a cat", 0), output_hidden_states=True)
    assert np.array_equal(found.tokens[:, :77, :32], first.numpy())
    assert np.array_equal(found.tokens[:, :77, 32:], second.hidden_states[-2].numpy())
    assert np.allclose(found.pooled, second.text_embeds.numpy(), atol=1e-6)
    weightless = embed("a cat BREAK a dog")
    assert np.array_equal(weightless.pooled, found.pooled)
    assert not np.array_equal(weightless.tokens, found.tokens)


def test_text_encoders_and_unet_of_other_pooled_widths_are_refused(tmp_path):
    tensors = tiny_xl.single_file_tensors(made("sdxl"))
    name = "conditioner.embedders.1.model.text_projection"
    tensors[name] = tensors[name][:, :40].contiguous()
    save_file(tensors, tmp_path / "model.safetensors")

    with pytest.raises(TensorMismatch, match="pooled prompts of different widths: text_encoder_2 40, unet 48 channels"):
        describe(tmp_path / "model.safetensors", tmp_path / "checkpoint.json")
