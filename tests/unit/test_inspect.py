"""A file is called by its name, from its header alone, and one sentence says what can be done with it."""

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import diffusers
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from axbake.checkpoints.containers import files_of
from axbake.checkpoints.conversion import convert_checkpoint
from axbake.digest import file_sha256
from axbake.families import FAMILIES
from axbake.families.others import recognise
from axbake.inspect import inspect_checkpoint, lines
from tests import tiny

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "resources" / "demo" / "emoji-sd.safetensors"
UNET = "model.diffusion_model."
#: Tensors by which a UNet of Stable Diffusion XL is known as a whole one
XL_UNET = {
    UNET + "input_blocks.0.0.weight": (320, 4, 3, 3),
    UNET + "label_emb.0.0.weight": (1280, 2816),
    UNET + "output_blocks.0.0.in_layers.2.weight": (4, 4, 3, 3),
    UNET + "output_blocks.8.0.in_layers.2.weight": (4, 4, 3, 3),
}
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
    "a part of a Stable Diffusion XL checkpoint": {
        UNET + "input_blocks.0.0.weight": (320, 4, 3, 3),
        UNET + "label_emb.0.0.weight": (1280, 2816),
        UNET + "middle_block.1.transformer_blocks.9.norm1.bias": (1280,),
    },
    "a Stable Diffusion XL refiner checkpoint": XL_UNET
    | {UNET + "input_blocks.0.0.weight": (384, 4, 3, 3), UNET + "label_emb.0.0.weight": (1536, 2560)},
    "a Playground v2.5 checkpoint": XL_UNET | {"edm_mean": (1, 4, 1, 1), "edm_std": (1, 4, 1, 1)},
    "a CosXL checkpoint": XL_UNET | {"edm_vpred.sigma_max": (1,), "edm_vpred.sigma_min": (1,)},
    "a FLUX checkpoint": {"double_blocks.0.img_attn.norm.key_norm.scale": (128,)},
    "a FLUX.2 checkpoint": {
        "double_blocks.0.img_attn.norm.key_norm.scale": (128,),
        "single_stream_modulation.lin.weight": (4, 4),
    },
    "a Chroma checkpoint": {
        "distilled_guidance_layer.norms.0.scale": (4,),
        "double_blocks.0.img_attn.qkv.weight": (4, 4),
    },
    "a Z-Image Omni checkpoint": {"siglip_embedder.0.weight": (4,), "cap_pad_token": (1, 4)},
    "a Z-Image checkpoint that draws in pixels": {"dec_net.cond_embed.weight": (4, 4), "cap_pad_token": (1, 4)},
    "a part of a Qwen-Image checkpoint": {"transformer_blocks.0.img_mod.1.weight": (4, 4)},
    "a part of an Anima checkpoint": {
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
    [(7, "an upscaler"), (5, "a depth-to-image")],
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
    assert said["bakeable"] and "a VAE, which this file lacks, in the column vae" in said["why"]
    assert set(said["components"]) == {"text_encoder", "unet"}


def test_a_file_of_the_moving_average_alone_is_baked_from_it(tmp_path):
    save_file(tiny.averaged(tiny.single_file_tensors(tiny.sd1())), tmp_path / "model.safetensors")

    said = inspect_checkpoint(tmp_path / "model.safetensors")

    assert said["bakeable"] and said["ema"] == "used as the UNet, since there is no other"


def test_gguf_is_called_by_name(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\0\0\0" + bytes(100))

    assert "a GGUF file" in inspect_checkpoint(tmp_path / "model.gguf")["why"]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "axbake", "inspect", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
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


def shapes_of(class_name, **config):
    """Names and shapes of a network of diffusers', which takes no memory."""
    with torch.device("meta"):
        network = getattr(diffusers, class_name)(**config)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


KLEIN = {"num_attention_heads": 24, "joint_attention_dim": 7680, "num_layers": 5, "num_single_layers": 20}
KLEIN |= {"guidance_embeds": False}
KLEIN_9B = KLEIN | {"num_attention_heads": 32, "joint_attention_dim": 12288, "num_layers": 8, "num_single_layers": 24}
SD3 = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192}
SD35_MEDIUM = SD3 | {"qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13)), "pos_embed_max_size": 384}
SD35_LARGE = {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192}
SD35_LARGE["qk_norm"] = "rms_norm"


#: Name of a family -> its transformer's class, and what it is built with in full size
TRANSFORMERS = {
    "sd3": ("SD3Transformer2DModel", SD3),
    "sd35_medium": ("SD3Transformer2DModel", SD35_MEDIUM),
    "sd35_large": ("SD3Transformer2DModel", SD35_LARGE),
    "flux2_klein": ("Flux2Transformer2DModel", KLEIN),
    "flux2_klein_9b": ("Flux2Transformer2DModel", KLEIN_9B),
    "flux1": ("FluxTransformer2DModel", {"guidance_embeds": True}),
    "z_image": ("ZImageTransformer2DModel", {}),
    "lumina2": ("Lumina2Transformer2DModel", {"num_attention_heads": 24, "cap_feat_dim": 2304}),
    "flux2_dev": ("Flux2Transformer2DModel", {}),
    "qwen_image": ("QwenImageTransformer2DModel", {}),
}


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_a_transformer_of_full_size_is_of_its_family_alone_and_of_no_other_kind(family):
    name, config = TRANSFORMERS[family]
    shapes = shapes_of(name, **config)

    assert recognise(shapes) is None
    transformers = [name for name, one in FAMILIES.items() if one.denoiser.name == "transformer"]
    assert {name.removesuffix("_t5") for name in transformers if FAMILIES[name].fits(shapes)} == {family}


#: Kind -> a class of diffusers', and what it is built with
DIFFUSERS = {
    "a Chroma checkpoint": ("ChromaTransformer2DModel", {"num_layers": 1, "num_single_layers": 1}),
    "a Qwen-Image-Layered checkpoint": (
        "QwenImageTransformer2DModel",
        {"num_layers": 2, "use_additional_t_cond": True, "use_layer3d_rope": True},
    ),
    "a Qwen-Image 2.1 checkpoint": ("QwenImage21Transformer2DModel", {"num_layers": 2}),
    "a Cosmos-Predict2 checkpoint (Anima's transformer is one)": ("CosmosTransformer3DModel", {"num_layers": 2}),
    "Anima's text adapter": ("AnimaTextConditioner", {}),
    "an AuraFlow checkpoint": ("AuraFlowTransformer2DModel", {"num_mmdit_layers": 1, "num_single_dit_layers": 1}),
    "a PixArt-α checkpoint": ("PixArtTransformer2DModel", {"num_layers": 2}),
    "a Sana checkpoint": ("SanaTransformer2DModel", {"num_layers": 2}),
    "a HunyuanVideo or HunyuanImage checkpoint": (
        "HunyuanImageTransformer2DModel",
        {"num_layers": 1, "num_single_layers": 1},
    ),
    "a Wan checkpoint": ("WanTransformer3DModel", {"num_layers": 2}),
    "a Stable Cascade checkpoint": ("StableCascadeUNet", {}),
    "a Stable Video Diffusion checkpoint": ("UNetSpatioTemporalConditionModel", {}),
    "a ControlNet": ("ControlNetModel", {}),
    "an AnimateDiff motion module": ("MotionAdapter", {}),
    "a VAE of Qwen-Image, Anima or Wan": ("AutoencoderKLQwenImage", {}),
    "a VAE of 32 channels (FLUX.2, Sana)": ("AutoencoderKLFlux2", {}),
    "a VAE of 16 channels (Stable Diffusion 3, FLUX, Z-Image, Lumina-Image 2)": (
        "AutoencoderKL",
        {"latent_channels": 16},
    ),
    "a VAE": ("AutoencoderKL", {}),
    "a TAESD (AutoencoderTiny)": ("AutoencoderTiny", {}),
}


@pytest.mark.parametrize("kind", DIFFUSERS)
def test_a_network_of_diffusers_is_called_by_its_name_behind_any_prefix(kind):
    name, config = DIFFUSERS[kind]
    shapes = shapes_of(name, **config)

    for prefix in ("", "transformer.", "model.diffusion_model."):
        found = recognise({f"{prefix}{tensor}": shape for tensor, shape in shapes.items()})
        assert found and found.kind == kind, prefix


#: Marks of networks under the names of their authors' files, with the sizes that tell them apart
ORIGINALS = {
    "a FLUX.1 checkpoint for inpainting, edges or depth": {
        "img_in.weight": (3072, 384),
        "double_blocks.0.img_attn.qkv.weight": (9216, 3072),
        "single_blocks.0.linear1.weight": (21504, 3072),
        "vector_in.in_layer.weight": (3072, 768),
    },
    "an OmniGen2 checkpoint": {"time_caption_embed.caption_embedder.1.weight": (2520, 2048)},
    "a NewBie checkpoint": {"cap_embedder.1.weight": (2304, 2560), "clip_text_pooled_proj.0.weight": (1024,)},
    "a Ming-Image checkpoint": {"cap_embedder.1.weight": (3840, 2560), "layers.0.attention.qkv.weight": (11520, 3840)},
    "a Mage-Flow checkpoint": {"txt_norm.weight": (2560,), "transformer_blocks.0.img_mod.1.weight": (4, 4)},
    "a Qwen-Image-Edit checkpoint": {
        "__index_timestep_zero__": (1,),
        "txt_norm.weight": (3584,),
        "transformer_blocks.0.img_mod.1.weight": (18432, 3072),
    },
    "a Lens checkpoint": {"txt_norm.weight": (3584,), "transformer_blocks.0.img_mlp.w1.weight": (4, 4)},
    "an Ovis-Image checkpoint": {
        "double_blocks.0.img_mlp.gate_proj.weight": (4, 4),
        "double_blocks.0.img_attn.norm.key_norm.scale": (128,),
    },
    "a Cosmos-Predict2 checkpoint": {"net.blocks.0.mlp.layer1.weight": (8192, 2048)},
    "a VAE of Qwen-Image, Anima or Wan": {"decoder.middle.0.residual.0.gamma": (384, 1, 1, 1)},
    "a text encoder (T5)": {
        "encoder.block.0.layer.0.SelfAttention.q.weight": (4096, 4096),
        "shared.weight": (32128, 4096),
    },
    "a text encoder (Qwen 3)": {
        "model.layers.0.self_attn.q_norm.weight": (128,),
        "model.embed_tokens.weight": (151936, 2560),
    },
    "a text encoder (Gemma 2)": {"model.layers.0.post_feedforward_layernorm.weight": (2304,)},
    "a Stable unCLIP checkpoint": {
        UNET + "input_blocks.0.0.weight": (320, 4, 3, 3),
        UNET + "output_blocks.0.0.in_layers.2.weight": (1280, 2560, 3, 3),
        UNET + "label_emb.0.0.weight": (1280, 2048),
    },
    "a Kolors checkpoint": {
        "time_embedding.linear_1.weight": (1280, 320),
        "up_blocks.0.resnets.0.conv1.weight": (1280, 2560, 3, 3),
        "add_embedding.linear_1.weight": (1280, 5632),
        "encoder_hid_proj.weight": (2048, 4096),
    },
    "a checkpoint in bitsandbytes' 4 or 8 bits": {
        UNET + "input_blocks.0.0.weight": (320, 4, 3, 3),
        UNET + "output_blocks.0.0.in_layers.2.weight": (1280, 2560, 3, 3),
        UNET + "middle_block.1.proj_in.weight": (819200, 1),
        UNET + "middle_block.1.proj_in.weight.absmax": (25600,),
    },
    "a checkpoint whose weights are quantised to integers": {"transformer_blocks.0.attn.to_qkv.qweight": (4, 4)},
    "an upscaler (ESRGAN)": {"model.1.sub.0.RDB1.conv1.0.weight": (32, 64, 3, 3)},
    "an IP-Adapter": {"image_proj.proj.weight": (4, 4), "ip_adapter.1.to_k_ip.weight": (4, 4)},
}


@pytest.mark.parametrize("kind", ORIGINALS)
def test_a_network_of_its_authors_names_is_called_by_its_name(kind):
    found = recognise(ORIGINALS[kind])

    assert found and found.kind == kind


#: Tensors that merges, trainers and other programs leave in files, and that say nothing of the network
STRAY = {
    "a LoRA's": "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight",
    "PEFT's": "unet.mid_block.attentions.0.proj_in.lora_A.default.weight",
    "LyCORIS'": "lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a",
    "a ControlNet's": "control_model.input_blocks.0.0.weight",
    "an adapter's": "adapter.body.0.in_conv.weight",
    "an IP-Adapter's": "ip_adapter.1.to_k_ip.weight",
    "an embedding's": "emb_params",
    "an old embedding's": "string_to_param.*",
    "a motion module's": "motion_modules.0.norm.weight",
    "bitsandbytes'": "some.weight.absmax",
    "a quantised tensor's scale": "other.comfy_quant",
    "Stable Cascade's": "clf.1.weight",
    "PixArt's": "t_block.1.weight",
    "FLUX'": "double_blocks.0.img_attn.qkv.weight",
    "SDXL's": "conditioner.embedders.1.model.ln_final.weight",
    "T5's": "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight",
}


@pytest.mark.parametrize("stray", sorted(set(STRAY) - {"a ControlNet's"}))
@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_a_stray_tensor_does_not_decide_what_a_whole_checkpoint_is(stray, layout, tmp_path):
    path = tiny.save(tiny.sd1(), tmp_path / "model.safetensors", layout=layout, extra={STRAY[stray]: torch.ones(4, 4)})

    said = inspect_checkpoint(path)

    assert said["kind"] == "a checkpoint" and said["family"] == "sd1" and said["bakeable"] is True


@pytest.mark.parametrize("stray", ["a LoRA's", "a ControlNet's", "an embedding's", "an IP-Adapter's"])
@pytest.mark.parametrize("kind", ["a VAE", "a Chroma checkpoint", "a Sana checkpoint"])
def test_a_stray_tensor_does_not_decide_what_another_network_is(stray, kind):
    name, config = DIFFUSERS[kind]

    found = recognise(shapes_of(name, **config) | {STRAY[stray]: (4, 4)})

    assert found and found.kind == kind


def test_a_tensor_of_a_network_does_not_make_one_of_a_lora():
    shapes = {f"transformer.transformer_blocks.{n}.attn.to_q.lora_A.weight": (4, 4) for n in range(9)}

    found = recognise(shapes | {"double_blocks.0.img_attn.qkv.weight": (4, 4)})

    assert found and found.kind == "a LoRA"


def test_a_controlnet_with_its_checkpoint_in_one_file_is_that_checkpoint():
    shapes = {name: tuple(t.shape) for name, t in tiny.single_file_tensors(tiny.sd1()).items()}
    control = {name.replace(UNET, "control_model."): s for name, s in shapes.items() if "output_blocks" not in name}

    assert recognise(shapes | control) is None
    alone = recognise({name: shape for name, shape in control.items() if name.startswith("control_model.")})
    assert alone and alone.kind == "a ControlNet"


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 4265146304\n"
#: Content of a file -> what it is called
FORMS = {
    POINTER: "a Git LFS pointer of a file of 4,265 MB, not the file itself. Fetch it with `git lfs pull`",
    "/annex/objects/MD5E-s1--x\n": "a git-annex pointer",
    "# xet version 0\nfilesize = 3\n": "a Xet pointer",
    '{"error":"Unauthorized","message":"Log in for it"}': "an answer from the site, not the file: «Log in for it»",
    '{"error":{"message":"Repository not found","code":404}}': "an answer from the site, not the file: «Repository not found»",
    '{"weight_map": {"a": "b"}}': "a list of the files that hold a model's weights",
    '{"_class_name": "UNet2DConditionModel"}': "the config of a network, without its weights",
    '{"some": "json"}': "a JSON text",
    "{ not json": "a text that begins like JSON",
    "<!doctype html><title> Sign\n in </title>": "a web page («Sign in»), which a download needs a login for",
    "<?xml version='1.0'?><Error><Code>x</Code><Message>Access Denied</Message></Error>": "«Access Denied»",
    "Entry not found": "a text: «Entry not found»",
    b"GGUF\x03\0\0\0" + bytes(99): "a GGUF file",
    b"\x1f\x8b\x08" + bytes(99): "a compressed archive (gzip)",
    b"7z\xbc\xaf\x27\x1c" + bytes(99): "a compressed archive (7-Zip)",
    b"\x89PNG\r\n\x1a\n" + bytes(99): "a picture (PNG)",
    b"\xff\xd8\xff\xe0" + bytes(99): "a picture (JPEG)",
    b"RIFF\x10\0\0\0WEBPVP8 " + bytes(99): "a picture (WebP)",
    b"%PDF-1.4 " + bytes(99): "a PDF document",
    b"\x93NUMPY\x01\0" + bytes(99): "a NumPy array",
    b"\x89HDF\r\n\x1a\n" + bytes(99): "an HDF5 file",
    b"MZ\x90\0" + bytes(99): "a program for Windows",
    b"": "it is empty",
    bytes(5000): "it begins with zeros",
}


@pytest.mark.parametrize("ending", ["safetensors", "ckpt", "pt", "bin", "pth", "vae.pt"])
@pytest.mark.parametrize("content", FORMS, ids=FORMS.values())
def test_a_file_is_named_by_its_content_whatever_its_name(content, ending, tmp_path):
    path = tmp_path / f"model.{ending}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())

    said = inspect_checkpoint(path)

    assert FORMS[content] in said["why"]
    assert str(path) in said["why"] and said["bakeable"] is False


def zipped(**files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"model.safetensors": "x"}, "a zip archive (model.safetensors …). Unpack it"),
        ({"weight.npy": "x"}, "an archive of NumPy arrays"),
        ({"\x1b[2J": "x"}, "a zip archive (\\x1b[2J …)"),
        ({"archive/data.pkl": "x"}, "not a complete pickle"),
        ({"first": "x", "archive/data.pkl": "x"}, "not a complete pickle"),
    ],
)
def test_an_archive_is_named_by_what_is_in_it(files, said, tmp_path):
    for name in ("model.safetensors", "model.ckpt"):
        (tmp_path / name).write_bytes(zipped(**files))
        assert said in inspect_checkpoint(tmp_path / name)["why"]


@pytest.mark.parametrize("zipped", [True, False], ids=["an archive", "before torch 1.6"])
def test_a_checkpoint_is_read_by_its_content_whatever_its_name(zipped, tmp_path):
    networks = tiny.bk_sdm_tiny()
    pickled = tiny.save_pickle(networks, tmp_path / "pickle.safetensors", zipped=zipped)
    plain = tiny.save(networks, tmp_path / "plain.ckpt")

    assert inspect_checkpoint(pickled)["container"] == "pickle"
    assert inspect_checkpoint(plain)["container"] == "safetensors"
    assert inspect_checkpoint(pickled)["bakeable"] and inspect_checkpoint(plain)["bakeable"]
    convert_checkpoint(files_of(pickled), checkpoint=tmp_path / "made.safetensors")
    found, wanted = load_file(tmp_path / "made.safetensors"), load_file(plain)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_a_compiled_model_says_what_it_is_for(tmp_path):
    for path in (ROOT / "tests/data/silero_vad_ax650.excerpt.axmodel", tmp_path / "called.safetensors"):
        if path.parent == tmp_path:
            path.write_bytes((ROOT / "tests/data/silero_vad_ax650.excerpt.axmodel").read_bytes())
        said = inspect_checkpoint(path)

        assert (said["kind"], said["made_by"]) == ("a compiled model", "Pulsar2 7.0 6b1bcdf8")
        assert (said["hardware"], said["npu_mode"]) == ("AX650", "NPU3")
        assert said["inputs"] == {"data": "float32 [1, 640]", "state": "float32 [2, 1, 128]"}
        assert said["outputs"] == {"output": "float32 [1, 1]", "next_state": "float32 [2, 1, 128]"}
        assert said["bakeable"] is False
        assert "inputs        data: float32 [1, 640]; state: float32 [2, 1, 128]" in lines(said)


def model(producer, **properties):
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [value])
    made = onnx.helper.make_model(graph, producer_name=producer, producer_version="1.2")
    onnx.helper.set_model_props(made, properties)
    return made.SerializeToString()


def test_the_emulators_models_and_graphs_are_named(tmp_path):
    emulated, graph = tmp_path / "unet.axmodel", tmp_path / "unet.onnx"
    emulated.write_bytes(model("axbake-emulator", target_hardware="AX650", npu_mode="NPU1"))
    graph.write_bytes(model("axbake"))

    said = inspect_checkpoint(emulated)
    assert (said["made_by"], said["hardware"], said["npu_mode"]) == ("axbake-emulator 1.2", "AX650", "NPU1")
    assert "an ONNX graph (made by axbake). Give the checkpoint" in inspect_checkpoint(graph)["why"]


def test_a_compiled_model_that_is_not_whole_is_refused(tmp_path):
    whole = (ROOT / "tests/data/silero_vad_ax650.excerpt.axmodel").read_bytes()
    for size in range(32, len(whole), 101):
        (tmp_path / "cut.axmodel").write_bytes(whole[:size])

        assert "cut.axmodel: not a complete .axmodel" in inspect_checkpoint(tmp_path / "cut.axmodel")["why"]


def test_what_is_not_there_or_no_file_is_said(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    assert "nowhere: no such file or folder" in inspect_checkpoint(tmp_path / "nowhere")["why"]
    assert "pipe: a pipe. Wanted a file" in inspect_checkpoint(tmp_path / "pipe")["why"]
    assert "/dev/zero: a device. Wanted a file" in inspect_checkpoint(Path("/dev/zero"))["why"]


def test_a_name_in_no_encoding_is_printed_without_harm(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff\x1b[31m.safetensors"
    Path(os.fsdecode(path)).write_text("<html>", encoding="utf-8")
    command = [sys.executable.encode(), b"-m", b"axbake", b"inspect", path]

    for more in ([], [b"--json"]):
        done = subprocess.run([*command, *more], cwd=ROOT, capture_output=True)
        assert done.returncode == 1 and done.stderr == b""
        assert b"a web page" in done.stdout and b"\x1b" not in done.stdout


def test_words_that_a_folders_tokenizer_adds_are_told(tmp_path):
    folder = tiny.save_folder(tiny.sd1(), tmp_path / "model")
    (folder / "tokenizer" / "added_tokens.json").write_text(json.dumps({"<cat-toy>": 49408, "<|endoftext|>": 49407}))
    decoder = {"49407": {"content": "<|endoftext|>"}, "49409": {"content": "<dog>"}}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))

    said = inspect_checkpoint(folder)

    assert said["words_not_read"] == ["<cat-toy>", "<dog>"]
    assert any("not read" in line and "<cat-toy>, <dog>" in line for line in lines(said))


def test_a_reader_who_leaves_early_sees_no_traceback():
    program = [sys.executable, "-m", "axbake", "inspect", DEMO]
    reading, writing = os.pipe()
    os.close(reading)  # nobody reads

    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(program, stdout=pipe, stderr=subprocess.PIPE, text=True, cwd=ROOT)

    assert (done.returncode, done.stderr) == (141, "")
