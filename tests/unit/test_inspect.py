"""A file is called by its name, from its header alone, and what can be done with it is said in a sentence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from axbake.digest import file_sha256
from axbake.inspect import inspect_checkpoint, lines
from tests import tiny

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "resources" / "demo" / "emoji-sd.safetensors"
UNET = "model.diffusion_model."
#: Kind of file -> tensors that a file of it has, with their shapes
KINDS = {
    "a LoRA": {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 320)},
    "a LyCORIS": {"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": (4, 4)},
    "a ControlNet": {
        "control_model.input_blocks.0.0.weight": (320, 4, 3, 3),
        "control_model.time_embed.0.weight": (1, 1),
    },
    "an AnimateDiff motion module": {"down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": (320,)},
    "a textual-inversion embedding": {"emb_params": (4, 768)},
    "a VAE": {
        "first_stage_model.encoder.conv_in.weight": (1, 3, 3, 3),
        "first_stage_model.decoder.conv_in.weight": (1, 4, 3, 3),
    },
    "a TAESD (AutoencoderTiny)": {"decoder.layers.0.weight": (64, 4, 3, 3)},
    "a text encoder": {"text_model.embeddings.token_embedding.weight": (49408, 2)},
    "a Stable Diffusion XL checkpoint": {
        UNET + "input_blocks.0.0.weight": (320, 4, 3, 3),
        UNET + "label_emb.0.0.weight": (1280, 2816),
        UNET + "middle_block.1.transformer_blocks.9.norm1.bias": (1280,),
    },
    "a Stable Diffusion XL refiner checkpoint": {
        UNET + "input_blocks.0.0.weight": (384, 4, 3, 3),
        UNET + "label_emb.0.0.weight": (1536, 2560),
        UNET + "middle_block.1.transformer_blocks.3.norm1.bias": (1536,),
    },
    "an SSD-1B, Segmind Vega or KOALA checkpoint (distilled Stable Diffusion XL)": {
        UNET + "input_blocks.0.0.weight": (320, 4, 3, 3),
        UNET + "label_emb.0.0.weight": (1280, 2816),
    },
    "a Stable Diffusion 3 checkpoint": {UNET + "joint_blocks.0.context_block.attn.qkv.weight": (4, 4)},
    "a Stable Diffusion 3.5 large checkpoint": {UNET + "joint_blocks.37.context_block.attn.qkv.weight": (4, 4)},
    "a Stable Diffusion 3.5 medium checkpoint": {UNET + "joint_blocks.0.x_block.attn2.qkv.weight": (4, 4)},
    "a FLUX checkpoint": {"double_blocks.0.img_attn.norm.key_norm.scale": (128,)},
    "a FLUX.2 checkpoint": {
        "double_blocks.0.img_attn.norm.key_norm.scale": (128,),
        "double_stream_modulation_img.lin.weight": (4, 4),
    },
    "a Chroma checkpoint": {
        "distilled_guidance_layer.norms.0.scale": (4,),
        "double_blocks.0.img_attn.qkv.weight": (4, 4),
    },
    "a Z-Image checkpoint": {"cap_embedder.1.weight": (3840, 2560)},
    "a Lumina-Image 2 checkpoint (NetaYume is one)": {"model.cap_embedder.1.weight": (2304, 2304)},
    "a Qwen-Image checkpoint": {"transformer_blocks.0.img_mod.1.weight": (4, 4)},
    "an Anima checkpoint": {
        "net.llm_adapter.blocks.0.cross_attn.q_proj.weight": (4, 4),
        "net.blocks.0.mlp.layer1.weight": (4, 4),
    },
    "a PixArt checkpoint": {"t_block.1.weight": (4, 4)},
    "a PixArt-α checkpoint": {"t_block.1.weight": (4, 4), "ar_embedder.mlp.0.weight": (4, 4)},
    "a Sana checkpoint": {"blocks.0.cross_attn.q_linear.weight": (4, 4)},
    "a Hunyuan-DiT checkpoint": {"mlp_t5.0.weight": (4, 4)},
    "an AuraFlow checkpoint": {"double_layers.0.attn.w1q.weight": (4, 4)},
    "a Stable Cascade checkpoint": {"clf.1.weight": (4, 4, 1, 1)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_files_are_called_by_name(kind, tmp_path):
    path = tmp_path / "file.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in KINDS[kind].items()}, path)

    said = inspect_checkpoint(path)

    assert said["kind"] == kind
    assert said["bakeable"] is False
    assert len(said["why"]) > 40 and said["why"].endswith(".")


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_a_checkpoint_is_described(variant, tmp_path):
    networks = tiny.VARIANTS[variant]()
    path = tiny.save(networks, tmp_path / "model.safetensors", layout="converted", extra=tiny.leftovers())

    said = inspect_checkpoint(path, hashing=True)

    assert said["bakeable"] is True
    assert said["family"] == networks.family
    assert said["prediction_type"] == networks.prediction_type
    assert said["steps"] == networks.steps
    assert said["ema"] == "inside; not used"
    assert said["sha256"] == file_sha256(path)
    assert said["autov2"] == said["sha256"][:10]
    for component, part in said["components"].items():
        assert part["parameters"] == sum(p.numel() for p in networks.component(component).parameters())
        assert list(part["stored"]) == ["F16"]
    assert said["components"]["text_encoder"]["layers"] == networks.text_encoder.config.num_hidden_layers
    assert lines(said)[-1].startswith("bake          yes.")


def test_pickles_and_folders_are_described_alike(tmp_path):
    networks = tiny.sd2()
    single = inspect_checkpoint(tiny.save(networks, tmp_path / "model.safetensors"))
    folder = inspect_checkpoint(tiny.save_folder(networks, tmp_path / "model", shard="1MB"))
    pickled = inspect_checkpoint(tiny.save_pickle(networks, tmp_path / "model.ckpt"))

    for said in (folder, pickled):
        assert said["bakeable"] is True
        for name in ("family", "variant", "prediction_type", "steps"):
            assert said[name] == single[name], name
        parameters = {component: part["parameters"] for component, part in said["components"].items()}
        assert parameters == {component: part["parameters"] for component, part in single["components"].items()}


@pytest.mark.parametrize(
    ("channels", "kind"),
    [(9, "an inpainting checkpoint"), (8, "an instruct-pix2pix checkpoint"), (5, "a depth-to-image")],
)
def test_unets_of_other_inputs_are_called_by_name(channels, kind, tmp_path):
    tensors = tiny.single_file_tensors(tiny.sd1())
    tensors[UNET + "input_blocks.0.0.weight"] = torch.zeros(tiny.WIDTH, channels, 3, 3)
    save_file(tensors, tmp_path / "model.safetensors")

    said = inspect_checkpoint(tmp_path / "model.safetensors")

    assert said["bakeable"] is False
    assert f"this is {kind}" in said["why"]


def test_a_unet_with_guidance_inside_is_called_by_name(tmp_path):
    said = inspect_checkpoint(tiny.save(tiny.lcm(), tmp_path / "model.safetensors"))

    assert said["variant"] == "BK-SDM-tiny or tiny-sd, distilled for LCM"
    assert said["guidance_embedded"] and said["bakeable"]


def test_a_checkpoint_without_vae_can_be_baked_with_one_of_its_own(tmp_path):
    tensors = {n: t for n, t in tiny.single_file_tensors(tiny.sdxs()).items() if not n.startswith("first_stage_model.")}
    save_file(tensors, tmp_path / "model.safetensors")

    said = inspect_checkpoint(tmp_path / "model.safetensors")

    assert said["variant"] == "SDXS-512"
    assert said["bakeable"] and "a VAE, which this file has not, in the column vae" in said["why"]
    assert set(said["components"]) == {"text_encoder", "unet"}


def test_a_file_of_the_moving_average_alone_is_baked_from_it(tmp_path):
    save_file(tiny.averaged(tiny.single_file_tensors(tiny.sd1())), tmp_path / "model.safetensors")

    said = inspect_checkpoint(tmp_path / "model.safetensors")

    assert said["bakeable"] and said["ema"] == "is the UNet, since there is no other"


def test_gguf_is_called_by_name(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\0\0\0" + bytes(100))

    assert "a GGUF file" in inspect_checkpoint(tmp_path / "model.gguf")["why"]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "axbake.inspect", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )


def test_the_command_prints_lines_or_json():
    text, as_json = run(DEMO), run(DEMO, "--json")

    assert text.returncode == as_json.returncode == 0
    assert "Stable Diffusion 1.x" in text.stdout
    assert json.loads(as_json.stdout)["family"] == "sd1"


def test_the_command_says_no_without_a_traceback(tmp_path):
    (tmp_path / "page.safetensors").write_text("<html>")

    done = run(tmp_path / "page.safetensors")

    assert done.returncode == 1
    assert "a web page" in done.stdout
    assert done.stderr == ""


def test_a_look_at_a_header_does_not_wait_for_torch():
    command = f"import sys; from axbake.inspect import inspect_checkpoint; from pathlib import Path\n\
assert inspect_checkpoint(Path({str(DEMO)!r}))['bakeable']; assert 'torch' not in sys.modules"

    subprocess.run([sys.executable, "-c", command], cwd=ROOT, check=True)
