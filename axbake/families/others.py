"""Files that are something else than a checkpoint axbake bakes, told by names and shapes of their tensors.

The marks are those by which the loaders of diffusers (`single_file_utils.py`), ComfyUI (`model_detection.py`), InvokeAI
(`model_on_disk.py`, `configs/main.py`) and stable-diffusion.cpp (`model_loader.cpp`, `get_sd_version`) tell them apart.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from axbake.networks.component import Shapes

NOT_YET = "axbake bakes Stable Diffusion 1.x and 2.x, and this not yet."
NO_UNET = "It is a transformer of rectified flow and no UNet: axbake has no export for it yet."


@dataclass(frozen=True)
class Other:
    """A kind of file."""

    kind: str  # with its article
    sentence: str  # what can be done with it


@dataclass(frozen=True)
class Mark:
    """What only files of one kind have."""

    other: Other
    parts: tuple[str, ...]  # of names of tensors; any of them
    shape: Callable[[tuple[int, ...]], bool] = lambda shape: True  # of that tensor


def _with(*parts: str, kind: str, sentence: str, shape: Callable[[tuple[int, ...]], bool] = lambda shape: True) -> Mark:
    return Mark(Other(kind, sentence), parts, shape)


LORA = "It changes a checkpoint but is none: it goes into the column loras, beside the checkpoint that it was made for."
#: The first that fits counts, so the narrower stand before the wider.
MARKS = (
    _with(
        *("lora_up.weight", "lora_down.weight", "lora_A.weight", "lora_B.weight", "lora.up.weight", "lora.down.weight"),
        kind="a LoRA",
        sentence=LORA,
    ),
    _with("hada_w1_a", "lokr_w1", "oft_blocks", "oft_diag", ".boft", kind="a LyCORIS", sentence=LORA),
    _with(
        *("control_model.", "controlnet_cond_embedding.", "controlnet_mid_block.", "adapter.body.0."),
        kind="a ControlNet",
        sentence="It guides a checkpoint's UNet through further inputs, which axbake's graphs have not.",
    ),
    _with(
        "ip_adapter.", "image_proj.", kind="an IP-Adapter", sentence="It needs inputs that axbake's graphs have not."
    ),
    _with(
        "motion_modules.",
        kind="an AnimateDiff motion module",
        sentence="It draws films with a checkpoint, and axbake's graphs draw pictures.",
    ),
    _with(
        *("emb_params", "string_to_param"),
        kind="a textual-inversion embedding",
        sentence="It is a word for prompts; give the checkpoint that it was trained with.",
    ),
    _with(
        *("quant_state.bitsandbytes", ".absmax"),
        kind="a checkpoint in bitsandbytes' 4 or 8 bits",
        sentence="Pulsar2 quantises itself, from fp16 or more; give the checkpoint that it was made from.",
    ),
    _with(
        *(".qweight", ".comfy_quant", ".smooth_factor"),
        kind="a checkpoint whose weights are quantised to integers",
        sentence="Pulsar2 quantises itself, from fp16 or more; give the checkpoint that it was made from.",
    ),
    _with("double_stream_modulation_img.lin.weight", kind="a FLUX.2 checkpoint", sentence=NO_UNET),
    _with("single_stream_modulation.lin.weight", kind="a FLUX.2 checkpoint", sentence=NO_UNET),
    _with("distilled_guidance_layer.", kind="a Chroma checkpoint", sentence=NO_UNET),
    _with(
        "double_blocks.0.img_attn.norm.key_norm.",
        "single_blocks.0.linear1.",
        kind="a FLUX checkpoint",
        sentence=NO_UNET,
    ),
    _with("double_blocks.0.", "single_blocks.0.", kind="a FLUX checkpoint", sentence=NO_UNET),
    _with("single_transformer_blocks.0.", kind="a FLUX checkpoint in diffusers' names", sentence=NO_UNET),
    _with("joint_blocks.37.", kind="a Stable Diffusion 3.5 large checkpoint", sentence=NO_UNET),
    _with(
        "joint_blocks.0.x_block.attn2.",
        kind="a Stable Diffusion 3.5 medium checkpoint",
        sentence=NO_UNET,
    ),
    _with("joint_blocks.0.", kind="a Stable Diffusion 3 checkpoint", sentence=NO_UNET),
    _with(
        "cap_embedder.1.weight",
        kind="a Z-Image checkpoint",
        sentence=NO_UNET,
        shape=lambda shape: shape[:1] == (3840,),
    ),
    _with(
        "cap_embedder.1.weight",
        kind="a Lumina-Image 2 checkpoint (NetaYume is one)",
        sentence=NO_UNET,
        shape=lambda shape: shape[:1] == (2304,),
    ),
    _with("cap_embedder.", kind="a checkpoint of Lumina-Image 2 or Z-Image", sentence=NO_UNET),
    _with("transformer_blocks.0.img_mod.1.weight", "txt_norm.weight", kind="a Qwen-Image checkpoint", sentence=NO_UNET),
    _with("llm_adapter.blocks.0.", kind="an Anima checkpoint", sentence=NO_UNET),
    _with("blocks.0.mlp.layer1.weight", kind="a Cosmos-Predict2 checkpoint", sentence=NO_UNET),
    _with("ar_embedder.mlp.0.weight", kind="a PixArt-α checkpoint", sentence=NO_UNET),
    _with("t_block.1.weight", "adaln_single.", kind="a PixArt checkpoint", sentence=NO_UNET),
    _with("mlp_t5.0.weight", kind="a Hunyuan-DiT checkpoint", sentence=NO_UNET),
    _with("double_layers.0.attn.w1q.weight", kind="an AuraFlow checkpoint", sentence=NO_UNET),
    _with("blocks.0.cross_attn.q_linear.weight", kind="a Sana checkpoint", sentence=NO_UNET),
    _with(
        *("caption_projection.0.linear.weight", "double_stream_blocks.0."),
        kind="a HiDream checkpoint",
        sentence=NO_UNET,
    ),
    _with("individual_token_refiner.", kind="a HunyuanVideo or HunyuanImage checkpoint", sentence=NO_UNET),
    _with("head.modulation", kind="a Wan checkpoint", sentence="It draws films, and axbake's graphs draw pictures."),
    _with("txtfusion.projector.weight", "text_fusion.projector.weight", kind="a Krea 2 checkpoint", sentence=NO_UNET),
    _with("clf.1.weight", kind="a Stable Cascade checkpoint", sentence=NOT_YET),
    _with("time_caption_embed.", kind="an OmniGen2 checkpoint", sentence=NO_UNET),
    _with("time_stack.", "time_mixer", kind="a Stable Video Diffusion checkpoint", sentence=NOT_YET),
)
A_VAE = Other("a VAE", "It decodes what a checkpoint draws; give that checkpoint, and this in the column vae.")
A_TAESD = Other("a TAESD (AutoencoderTiny)", "It is a small VAE; give a checkpoint, and this in the column vae.")
AUTOENCODERS = (A_VAE, A_TAESD)
SDXL = ("conditioner.embedders.1.", "add_embedding.linear_1.weight", "label_emb.0.0.weight", "text_encoder_2.")
UNET_MARKS = ("input_blocks.0.0.weight", "time_embedding.linear_1.weight")
CLIP_MARKS = ("token_embedding.weight",)


def recognise(shapes: Shapes) -> Other | None:
    """What a file of these tensors is, if it is no checkpoint that axbake bakes; None if it may be one."""
    for mark in MARKS:
        if any(part in name and mark.shape(shape) for name, shape in shapes.items() for part in mark.parts):
            return mark.other
    if any(mark in name for name in shapes for mark in SDXL):
        return Other(_xl(shapes), f"{NOT_YET} Its UNet has another conditioning, and one or two wider text encoders.")
    if _has(shapes, UNET_MARKS):
        return None
    if _has(shapes, ("encoder.layers.0.weight", "decoder.layers.0.weight", "decoder.layers.1.weight")):
        return A_TAESD
    if _has(shapes, ("decoder.conv_in.weight", "encoder.conv_in.weight")):
        return A_VAE
    if _has(shapes, CLIP_MARKS):
        return Other("a text encoder", "Give the whole checkpoint that it is a part of.")
    if 0 < len(shapes) <= 8 and all(len(shape) == 2 for shape in shapes.values()):
        return Other(
            "a textual-inversion embedding", "It is a word for prompts; give the checkpoint that it was trained with."
        )
    return None


def _has(shapes: Shapes, endings: tuple[str, ...]) -> bool:
    """Whether a tensor has one of these names, with whatever prefix."""
    return any(name == end or name.endswith(f".{end}") for name in shapes for end in endings)


def _xl(shapes: Shapes) -> str:
    """Which of the SDXL family a UNet is, by what its middle holds and how deep its transformers are."""
    middle = any("middle_block.1." in name or "mid_block.attentions." in name for name in shapes)
    depths = {int(m[1]) for name in shapes if (m := re.search(r"transformer_blocks\.(\d{1,3})\.", name))}
    if not _has(shapes, UNET_MARKS):
        return "a part of a Stable Diffusion XL checkpoint"
    if not middle:
        return "an SSD-1B, Segmind Vega or KOALA checkpoint (distilled Stable Diffusion XL)"
    if depths and max(depths) == 3:
        return "a Stable Diffusion XL refiner checkpoint"
    return "a Stable Diffusion XL checkpoint"
