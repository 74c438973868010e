"""Names of tensors: those that checkpoints have, to those of diffusers and transformers, and back.

LDM names as in CompVis' `ldm` (`openaimodel.py`, `model.py` of the autoencoder), diffusers names as in its
`UNet2DConditionModel` and `AutoencoderKL`; transformers' `CLIPTextModel` (version 5) and open_clip's `transformer.py`.
"""

import re
from collections.abc import Iterable

from axbake.networks.component import Rename, Shapes

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "time_embed.cond_proj": "time_embedding.cond_proj",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
#: Ends of names in LDM's UNet behind the numbers of their place
TRANSFORMER = (
    *(f"attn{n}.to_{part}" for n in (1, 2) for part in ("q", "k", "v", "out.0")),
    *("ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3"),
)
DEPTH = 10  # blocks of a transformer at most, those of SDXL
EMA_TAILS = {
    tail.replace(".", ""): tail
    for tail in (
        *(*RESNET, "op", "conv", "norm", "proj_in", "proj_out"),
        *(f"transformer_blocks.{block}.{tail}" for block in range(DEPTH) for tail in TRANSFORMER),
    )
}
EMA_ENDS = {end.replace(".", ""): end for end in UNET_ENDS}
DIFFUSERS_UNET = r"(down_blocks|up_blocks|mid_block|time_embedding|add_embedding|conv_in|conv_norm_out|conv_out)\."
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # diffusers before 0.17
OPEN_CLIP = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
OPEN_CLIP_ENDS = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
    "text_projection": "text_projection.weight",
}
# Stable Diffusion 2.x takes what the last but one of ViT-H's 24 layers gives; files hold the last one or do not.
OPEN_CLIP_UNUSED_LAYER = 23
LDM_UNET_MARKER, DIFFUSERS_UNET_MARKER = "input_blocks.0.0.weight", "time_embedding.linear_1.weight"
# Numbers of each level in LDM's names that are written, whatever it holds: diffusers' converter numbers so, and
# stable-diffusion.cpp's narrow UNets expect its gaps.
STRIDE = 3


def _renamed_start(name: str, table: dict[str, str]) -> str | None:
    """*name* with its start replaced as in *table*; None if no entry is its start."""
    for old, new in table.items():
        if name.startswith(old + "."):
            return new + name[len(old) :]
    return None


def unet_renamer(shapes: Shapes) -> Rename:
    """LDM names of the UNet to diffusers names; those that are diffusers' already stay.

    A level of L resnets takes L + 1 of LDM's `input_blocks` (the last one downsamples) and L + 1 of its `output_blocks`. But
    diffusers' own converter (`convert_diffusers_to_original_stable_diffusion.py`) gives every level three, so files of distilled
    UNets with one resnet a level have gaps, and keep diffusers' names where that script knows no other. Where the first
    downsampler stands is how many numbers a level has.
    """
    downsamplers = [
        int(m[1]) for name in shapes if (m := re.fullmatch(r"input_blocks\.(\d{1,4})\.0\.op\.weight", name))
    ]
    stride = min(downsamplers, default=3) or 3

    def block(side: str, number: int, part: str, rest: str) -> str | None:
        level, index = divmod(number - 1, stride) if side == "input" else divmod(number, stride)
        place = f"{'down' if side == 'input' else 'up'}_blocks.{level}"
        if rest.startswith("op."):
            return f"{place}.downsamplers.0.conv.{rest.removeprefix('op.')}"
        if rest.startswith("conv."):
            return f"{place}.upsamplers.0.{rest}"
        if part == "0":
            known = _renamed_start(rest, RESNET)
            return known and f"{place}.resnets.{index}.{known}"
        return f"{place}.attentions.{index}.{rest}"

    def rename(name: str) -> str | None:
        if end := _renamed_start(name, UNET_ENDS):
            return end
        if re.match(DIFFUSERS_UNET, name):
            return name
        if m := re.fullmatch(r"(input|output)_blocks\.(\d{1,4})\.(\d)\.(.+)", name):
            return block(m[1], int(m[2]), m[3], m[4])
        if m := re.fullmatch(r"middle_block\.([02])\.(.+)", name):
            known = _renamed_start(m[2], RESNET)
            return known and f"mid_block.resnets.{int(m[1]) // 2}.{known}"
        if name.startswith("middle_block.1."):
            return "mid_block.attentions.0." + name.removeprefix("middle_block.1.")
        return None

    return rename


def ema_renamer(name: str) -> str | None:
    """LDM's name of the UNet's tensor whose moving average is called *name*; None if it is no tensor's.

    CompVis' `ema.py` keeps the averages under the tensors' names without dots. They come back, since of all numbers in them only
    the first of `input_blocks` and `output_blocks` may have two digits.
    """
    m = re.fullmatch(r"model_ema\.diffusion_model(.+?)(weight|bias)", name)
    if m is None:
        return None
    new = EMA_ENDS.get(m[1])
    if place := re.fullmatch(r"(?:(middle_block)|(input_blocks|output_blocks)(\d{1,2}))(\d)(\D.*)", m[1]):
        *parts, tail = (part for part in place.groups() if part)
        new = ".".join([*parts, EMA_TAILS[tail]]) if tail in EMA_TAILS else None
    return new and f"model.diffusion_model.{new}.{m[2]}"


def _vae_renamer(shapes: Shapes, half: str, convolution: str) -> Rename:
    levels = 1 + max(
        (int(m[1]) for name in shapes if (m := re.match(rf"{half}\.(?:down|up)\.(\d{{1,4}})\.", name))), default=0
    )

    def rename(name: str) -> str | None:
        if name.startswith(convolution + "."):
            return name
        if not name.startswith(half + "."):
            return None
        name = re.sub(r"\.down\.(\d{1,4})\.block\.", r".down_blocks.\1.resnets.", name)
        name = re.sub(r"\.down\.(\d{1,4})\.downsample\.", r".down_blocks.\1.downsamplers.0.", name)
        # LDM counts the decoder's levels from the fine one, diffusers from the coarse one.
        name = re.sub(r"\.up\.(\d{1,4})\.block\.", lambda m: f".up_blocks.{levels - 1 - int(m[1])}.resnets.", name)
        name = re.sub(
            r"\.up\.(\d{1,4})\.upsample\.", lambda m: f".up_blocks.{levels - 1 - int(m[1])}.upsamplers.0.", name
        )
        name = re.sub(r"\.mid\.block_(\d)\.", lambda m: f".mid_block.resnets.{int(m[1]) - 1}.", name)
        name = re.sub(
            r"\.mid\.attn_1\.(\w+)\.", lambda m: f".mid_block.attentions.0.{VAE_ATTENTION.get(m[1], m[1])}.", name
        )
        name = re.sub(
            r"\.mid_block\.attentions\.0\.(\w+)\.",
            lambda m: f".mid_block.attentions.0.{OLD_VAE_ATTENTION.get(m[1], m[1])}.",
            name,
        )
        return name.replace("nin_shortcut", "conv_shortcut").replace(".norm_out.", ".conv_norm_out.")

    return rename


def vae_encoder_renamer(shapes: Shapes) -> Rename:
    """Names of the autoencoder's encoder half, LDM's or diffusers', to diffusers names."""
    return _vae_renamer(shapes, "encoder", "quant_conv")


def vae_decoder_renamer(shapes: Shapes) -> Rename:
    """Names of the autoencoder's decoder half, LDM's or diffusers', to diffusers names."""
    return _vae_renamer(shapes, "decoder", "post_quant_conv")


def tiny_vae_encoder_renamer(shapes: Shapes) -> Rename:
    """Names of an AutoencoderTiny's encoder, which are diffusers' in every file that has both halves."""
    return lambda name: name if name.startswith("encoder.layers.") else None


def tiny_vae_decoder_renamer(shapes: Shapes) -> Rename:
    """The same of its decoder."""
    return lambda name: name if name.startswith("decoder.layers.") else None


def projected_clip_renamer(shapes: Shapes) -> Rename:
    """Names of a `CLIPTextModelWithProjection`, whose projection of the pooled prompt stands beside `text_model`."""
    rename = clip_renamer(shapes)
    return lambda name: name if name == "text_projection.weight" else rename(name.removeprefix("text_model."))


def clip_renamer(shapes: Shapes) -> Rename:
    """Names of CLIP's text encoder: as transformers 5 has them, without `position_ids`, which is a constant."""

    def rename(name: str) -> str | None:
        known = name.startswith(("embeddings.", "encoder.", "final_layer_norm."))
        return name if known and name != "embeddings.position_ids" else None

    return rename


def open_clip_renamer(shapes: Shapes) -> Rename:
    """open_clip's names of Stable Diffusion 2.x to those of transformers, without the layer that it does not use."""
    rename = whole_open_clip_renamer(shapes)
    unused = f"transformer.resblocks.{OPEN_CLIP_UNUSED_LAYER}."
    return lambda name: None if name.startswith(unused) or name == "text_projection" else rename(name)


def whole_open_clip_renamer(shapes: Shapes) -> Rename:
    """open_clip's names to those of transformers; its query, key and value come in one tensor, one after the other."""

    def rename(name: str) -> str | tuple[str, ...] | None:
        if name in OPEN_CLIP_ENDS:
            return OPEN_CLIP_ENDS[name]
        m = re.fullmatch(r"transformer\.resblocks\.(\d{1,4})\.(.+)", name)
        if m is None:
            return None
        place = f"encoder.layers.{int(m[1])}"
        if m[2] in ("attn.in_proj_weight", "attn.in_proj_bias"):
            return tuple(f"{place}.self_attn.{part}_proj.{m[2].rpartition('_')[2]}" for part in "qkv")
        return f"{place}.{_renamed_start(m[2], OPEN_CLIP) or m[2]}"

    return rename


def _swapped_start(name: str, table: dict[str, str]) -> str | None:
    """*name* with its start replaced as in *table*, from right to left; None if no entry is its start."""
    for new, old in table.items():
        if name.startswith(old + "."):
            return new + name[len(old) :]
    return None


def ldm_unet_name(name: str, *, crossed: bool = False) -> str:
    """LDM's name of a UNet's tensor; what LDM lacks keeps its own, as diffusers' converter leaves it.

    Args:
        crossed: whether the first level up has cross-attention, as in Stable Diffusion XL: its upsampler stands behind that.
    """
    if name == "time_embedding.cond_proj.weight":
        return name
    if end := _swapped_start(name, UNET_ENDS):
        return end
    if m := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        place = f"middle_block.{2 * int(m[2]) if m[1] == 'resnets' else 1}"
        return f"{place}.{_swapped_start(m[3], RESNET) if m[1] == 'resnets' else m[3]}"
    m = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
    assert m, f"{name}: no tensor of a UNet"
    side, level, kind, index, rest = m[1], int(m[2]), m[3], int(m[4]), m[5]
    if kind == "downsamplers":
        return f"input_blocks.{STRIDE * (level + 1)}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{STRIDE * level + 2}.{2 if level or crossed else 1}.{rest}"
    place = (
        f"input_blocks.{STRIDE * level + index + 1}" if side == "down" else f"output_blocks.{STRIDE * level + index}"
    )
    return f"{place}.0.{_swapped_start(rest, RESNET)}" if kind == "resnets" else f"{place}.1.{rest}"


def unet_block(name: str) -> str:
    """Block of a UNet's tensor as merges count them; BASE for the time embedding (SuperMerger's `mergers.py`)."""
    ldm = ldm_unet_name(name)
    if ldm.startswith(("time_embed", "label_emb")):
        return "BASE"
    if m := re.match(r"(input|output)_blocks\.(\d+)\.", ldm):
        return f"{'IN' if m[1] == 'input' else 'OUT'}{int(m[2]):02}"
    return "M00" if ldm.startswith("middle_block.") else "OUT11"


def own_name(module: str) -> list[str]:
    """Names that LoRAs give a transformer's module besides its authors': diffusers'."""
    return [module]


def renamed_modules(rename: Rename, modules: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The authors' *modules* -> diffusers' modules that they become."""
    found = {}
    for module in modules:
        new = rename(f"{module}.weight")
        news = (new,) if isinstance(new, str) else new or ()
        found[module] = tuple(name.removesuffix(".weight") for name in news)
    return found


def unet_lora_names(module: str) -> list[str]:
    """Names that LoRAs give a UNet's module: diffusers', LDM's, and those of diffusers' former attention processors."""
    return [module, ldm_unet_name(f"{module}.weight").removesuffix(".weight"), _of_processor(module, "to_out.0")]


def clip_lora_names(module: str) -> list[str]:
    """Names that LoRAs give a module of a CLIP text encoder, with `text_model` and, as transformers 5 has them, without."""
    # diffusers' former attention processors called its projections as diffusers' own.
    processor = _of_processor(re.sub(r"self_attn\.([qkv])_proj", r"self_attn.to_\1", module), "out_proj")
    return [f"{start}{name}" for start in ("text_model.", "") for name in (module, processor)]


def _of_processor(module: str, last: str) -> str:
    return f"{module.removesuffix(last)}to_out" if module.endswith(f".{last}") else module


def ldm_vae_name(name: str, levels: int) -> str:
    """LDM's name of a tensor of an autoencoder of so many levels."""
    name = re.sub(r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block.", name)
    name = re.sub(r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample.", name)
    name = re.sub(r"\.up_blocks\.(\d+)\.resnets\.", lambda m: f".up.{levels - 1 - int(m[1])}.block.", name)
    name = re.sub(r"\.up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f".up.{levels - 1 - int(m[1])}.upsample.", name)
    name = re.sub(r"\.mid_block\.resnets\.(\d)\.", lambda m: f".mid.block_{int(m[1]) + 1}.", name)
    if m := re.fullmatch(r"(\w+)\.mid_block\.attentions\.0\.(.+)", name):
        name = f"{m[1]}.mid.attn_1.{_swapped_start(m[2], VAE_ATTENTION)}"
    return name.replace("conv_shortcut", "nin_shortcut").replace(".conv_norm_out.", ".norm_out.")


def open_clip_name(name: str) -> str:
    """open_clip's name of a text encoder's tensor; query, key and value get one name."""
    for new, old in OPEN_CLIP_ENDS.items():
        if name == old:
            return new
    m = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", name)
    assert m, f"{name}: no tensor of a text encoder"
    place = f"transformer.resblocks.{m[1]}"
    if fused := re.fullmatch(r"self_attn\.[qkv]_proj\.(weight|bias)", m[2]):
        return f"{place}.attn.in_proj_{fused[1]}"
    return f"{place}.{_swapped_start(m[2], OPEN_CLIP)}"
