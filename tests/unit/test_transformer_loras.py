"""LoRAs of transformers, under the names of their authors' files and diffusers', as trainers write them."""

import functools

import pytest
import torch
from safetensors.torch import load_file, save_file

from axbake.errors import AxbakeError
from axbake.families import FAMILIES
from axbake.loras.files import LoraError, lora_facts, read_lora
from axbake.model import Model
from axbake.table import check_config
from tests import tiny_anima, tiny_flux1, tiny_flux2, tiny_lumina, tiny_qwen_image, tiny_sd3, tiny_z_image
from tests.unit.conftest import SCHEMAS, import_part, row_of

MODULES = {"sd35_medium": tiny_sd3, "flux2_klein": tiny_flux2, "z_image": tiny_z_image, "lumina2": tiny_lumina}
MODULES |= {"anima": tiny_anima, "flux1": tiny_flux1, "qwen_image": tiny_qwen_image}
#: Authors' modules that a LoRA of each changes, of which the first stands for several of diffusers'
CHANGED = {
    "sd35_medium": ("joint_blocks.0.x_block.attn.qkv", "joint_blocks.1.context_block.attn.proj"),
    "flux2_klein": ("double_blocks.0.txt_attn.qkv", "single_blocks.1.linear1", "double_blocks.1.img_mlp.0"),
    "flux1": ("double_blocks.0.img_attn.qkv", "single_blocks.1.linear1", "vector_in.in_layer", "txt_in"),
    "z_image": (
        "layers.0.attention.qkv",
        "layers.1.feed_forward.w2",
        "context_refiner.0.attention.qkv",
        "cap_embedder.1",
    ),
    "lumina2": (
        *("layers.0.attention.qkv", "noise_refiner.1.feed_forward.w1", "layers.2.adaLN_modulation.1"),
        *("context_refiner.0.attention.qkv", "context_refiner.1.feed_forward.w2", "cap_embedder.1"),
    ),
    "qwen_image": ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.txt_mlp.net.0.proj", "img_in"),
    "anima": (
        *("blocks.0.self_attn.q_proj", "blocks.1.cross_attn.k_proj", "blocks.2.mlp.layer1", "x_embedder.proj.1"),
        *("llm_adapter.blocks.0.self_attn.q_proj", "llm_adapter.blocks.1.cross_attn.k_proj", "llm_adapter.out_proj"),
    ),
}
STRENGTH, ALPHA, RANK = 0.8, 2.0, 4
CONFIG = check_config({}, schema=SCHEMAS / "config.schema.yaml", source="config.yaml", components=[])
every_family = pytest.mark.parametrize("name", MODULES)


@functools.cache
def made(name):
    """Networks, which no test changes."""
    return MODULES[name].FAMILIES[name](torch.float32)


def factors(shape, number):
    """Down and up of a weight of *shape*."""
    generator = torch.Generator().manual_seed(number)
    rows, columns = shape
    return (torch.randn(size, generator=generator) for size in ((RANK, columns), (rows, RANK)))


#: What writes one -> (authors' name, down, up) -> tensors
WRITERS = {
    "ComfyUI and ai-toolkit": lambda name, down, up: {
        f"diffusion_model.{name}.lora_A.weight": down,
        f"diffusion_model.{name}.lora_B.weight": up * ALPHA / RANK,
    },
    "sd-scripts and musubi-tuner": lambda name, down, up: {
        f"lora_unet_{name.replace('.', '_')}.lora_down.weight": down,
        f"lora_unet_{name.replace('.', '_')}.lora_up.weight": up,
        f"lora_unet_{name.replace('.', '_')}.alpha": torch.tensor(ALPHA),
    },
    "LyCORIS": lambda name, down, up: {
        f"lycoris_{name.replace('.', '_')}.lora_down.weight": down,
        f"lycoris_{name.replace('.', '_')}.lora_up.weight": up,
        f"lycoris_{name.replace('.', '_')}.alpha": torch.tensor(ALPHA),
    },
}


def imported(name, checkpoint, weights, loras=(), component="transformer"):
    strengths = [STRENGTH] * len(loras)
    import_part(checkpoint, loras, component=component, weights=weights, family=FAMILIES[name], strengths=strengths)
    return load_file(weights)


@pytest.mark.parametrize(
    ("name", "writer"),
    [*((name, "ComfyUI and ai-toolkit") for name in MODULES), *(("z_image", writer) for writer in list(WRITERS)[1:])],
)
def test_under_the_authors_names_it_is_what_the_same_change_of_their_file_is(name, writer, tmp_path):
    tensors = MODULES[name].single_file_tensors(made(name))
    start, lora = "model.diffusion_model.", {}
    for number, module in enumerate(CHANGED[name]):
        weight = tensors[f"{start}{module}.weight"]
        down, up = factors(weight.shape, number)
        lora |= WRITERS[writer](module, down, up)
        tensors[f"{start}{module}.weight"] = weight + STRENGTH * ALPHA / RANK * up @ down
    plain = MODULES[name].save(made(name), tmp_path / "plain.safetensors")
    save_file(tensors, tmp_path / "changed.safetensors")
    save_file(lora, tmp_path / "lora.safetensors")

    parts = [one.name for one in FAMILIES[name].components if one.files.lora_within]
    assert len(parts) == (name in ("z_image", "lumina2", "anima"))
    for component in ("transformer", *parts):
        how = {"component": component}
        found = imported(name, plain, tmp_path / "found.safetensors", [tmp_path / "lora.safetensors"], **how)
        wanted = imported(name, tmp_path / "changed.safetensors", tmp_path / "wanted.safetensors", **how)
        before = imported(name, plain, tmp_path / "before.safetensors", **how)
        assert found.keys() == wanted.keys()
        assert any(not torch.equal(before[key], tensor) for key, tensor in found.items())
        for key, tensor in wanted.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-5, msg=key)


@every_family
def test_under_diffusers_names_it_changes_these_modules(name, tmp_path):
    network = made(name).transformer
    module = next(one for one, _ in network.named_modules() if one.endswith((".to_q", "attn.to_qkv_mlp_proj")))
    weight = network.get_submodule(module).weight
    down, up = factors(weight.shape, 0)
    lora = {f"transformer.{module}.lora_A.weight": down, f"transformer.{module}.lora_B.weight": up}
    save_file(lora, tmp_path / "lora.safetensors")
    plain = MODULES[name].save(made(name), tmp_path / "plain.safetensors")

    found = imported(name, plain, tmp_path / "found.safetensors", [tmp_path / "lora.safetensors"])

    for key, tensor in network.state_dict().items():
        change = STRENGTH * up @ down if key == f"{module}.weight" else 0
        torch.testing.assert_close(found[key], tensor + change, rtol=1e-5, atol=1e-5, msg=key)


@pytest.mark.parametrize(
    ("name", "module", "stored"),
    [
        ("anima", "blocks.0.cross_attn.v_proj", "text_conditioner.blocks.0.cross_attn.v_proj"),
        ("z_image", "context_refiner.0.attention.to_v", "transformer.context_refiner.0.attention.to_v"),
        ("lumina2", "caption_embedder.1", "transformer.time_caption_embed.caption_embedder.1"),
    ],
)
def test_under_diffusers_names_it_changes_the_part_for_prompts(name, module, stored, tmp_path):
    plain = MODULES[name].save(made(name), tmp_path / "plain.safetensors")
    how = {"component": "text_conditioner"}
    before = imported(name, plain, tmp_path / "before.safetensors", **how)
    down, up = factors(before[f"{module}.weight"].shape, 0)
    path = tmp_path / "lora.safetensors"
    save_file({f"{stored}.lora_A.weight": down, f"{stored}.lora_B.weight": up}, path)

    found = imported(name, plain, tmp_path / "found.safetensors", [path], **how)

    for key, tensor in before.items():
        change = STRENGTH * up @ down if key == f"{module}.weight" else 0
        torch.testing.assert_close(found[key], tensor + change, rtol=1e-5, atol=1e-5, msg=key)
    if name == "anima":  # whose transformer has no such module, which is no fault of the file
        imported(name, plain, tmp_path / "transformer.safetensors", [path])


def test_a_module_of_several_takes_no_kind_that_needs_their_weights(tmp_path):
    plain = tiny_z_image.save(made("z_image"), tmp_path / "plain.safetensors")
    name = "diffusion_model.layers.0.attention.qkv"
    down, up = factors((192, 64), 0)
    lora = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up, f"{name}.dora_scale": torch.ones(192, 1)}
    save_file(lora, tmp_path / "lora.safetensors")

    with pytest.raises(LoraError, match="it needs the weights of several modules together"):
        imported("z_image", plain, tmp_path / "found.safetensors", [tmp_path / "lora.safetensors"])


def test_a_file_is_of_the_network_that_the_checkpoint_has(tmp_path):
    path = tmp_path / "lora.safetensors"
    tensors = dict(WRITERS["ComfyUI and ai-toolkit"]("double_blocks.0.img_attn.qkv", *factors((8, 8), 0)))
    save_file(tensors, path)

    assert (
        list(read_lora(path, "transformer").modules)
        == list(lora_facts(path, "transformer").components)
        == ["transformer"]
    )
    with pytest.raises(LoraError, match="a LoRA for FLUX; the checkpoint has a UNet"):
        read_lora(path)


def test_a_row_with_a_lora_of_another_family_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_z_image.save(made("z_image"), tmp_path / "tiny.safetensors")
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    down, up = factors((32, 768), 0)
    save_file({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, tmp_path / "sd1.safetensors")

    usual = {"scheduler": "euler", "tokenizer": ".", "width": "128", "loras": "sd1.safetensors"}
    with pytest.raises(AxbakeError, match=r"sd1\.safetensors: made for Stable Diffusion 1\.x"):
        Model(row_of(**usual), CONFIG).check_fit()


def test_what_it_changes_of_a_language_model_has_no_effect_and_that_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_anima.save(made("anima"), tmp_path / "tiny.safetensors")
    names = ("lora_unet_blocks_0_self_attn_q_proj", "lora_te_layers_0_self_attn_q_proj")
    names += ("lora_unet_llm_adapter_blocks_0_self_attn_q_proj",)
    tensors = {}
    for number, name in enumerate(names):
        down, up = factors((64, 64), number)
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    save_file(tensors, tmp_path / "style.safetensors")
    loras = "style.safetensors:te=0.2:unet=0.5"
    model = Model(row_of(scheduler="euler", tokenizer=".", width="128", loras=loras), CONFIG)

    said = [sentence for sentence in model.advice if sentence.startswith("style.safetensors")]

    assert len(said) == 1 and "modules of the text_encoder" in said[0]
    assert not model.loras_of(model.family.component("text_encoder"))
    assert model.loras_of(model.family.component("text_conditioner"))
    assert model.strengths_of(model.family.component("text_conditioner")) == [0.5]
    assert model.loras_of(model.family.denoiser)
