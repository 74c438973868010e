"""Networks of Stable Diffusion 3 under the names of Stability's single files, such as `sd3_medium_incl_clips.safetensors`."""

from collections.abc import Mapping

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from transformers import PreTrainedModel

from resources.demo.to_single_file import vae_name


def original_tensors(transformer: SD3Transformer2DModel) -> dict[str, torch.Tensor]:
    """The transformer's tensors under its authors' names (github Stability-AI/sd3-ref, `mmdit.py`)."""
    found = transformer.state_dict()
    ends = {"pos_embed.pos_embed": "pos_embed"}
    for kind in ("weight", "bias"):
        ends |= {
            f"pos_embed.proj.{kind}": f"x_embedder.proj.{kind}",
            f"context_embedder.{kind}": f"context_embedder.{kind}",
        }
        ends[f"proj_out.{kind}"] = f"final_layer.linear.{kind}"
        for part, name in (("timestep", "t"), ("text", "y")):
            for number in (1, 2):
                place = f"time_text_embed.{part}_embedder.linear_{number}.{kind}"
                ends[place] = f"{name}_embedder.mlp.{2 * (number - 1)}.{kind}"
    tensors = {new: found[old] for old, new in ends.items()}

    def swapped(tensor: torch.Tensor) -> torch.Tensor:
        scale, shift = tensor.chunk(2)
        return torch.cat([shift, scale])

    last = transformer.config.num_layers - 1
    sides = {
        "x_block": ("attn.to_{}", "attn.to_out.0", "attn.norm_{}", "norm1.linear", "ff"),
        "context_block": (
            "attn.add_{}_proj",
            "attn.to_add_out",
            "attn.norm_added_{}",
            "norm1_context.linear",
            "ff_context",
        ),
    }
    for number in range(last + 1):
        old, new = f"transformer_blocks.{number}", f"joint_blocks.{number}"
        for side, (parts, out, norm, modulation, feed) in sides.items():
            named = {"attn.proj": out, "mlp.fc1": f"{feed}.net.0.proj", "mlp.fc2": f"{feed}.net.2"}
            if side == "x_block" and f"{old}.attn2.to_q.weight" in found:
                named["attn2.proj"] = "attn2.to_out.0"
            for kind in ("weight", "bias"):
                joined = [found[f"{old}.{parts.format(part)}.{kind}"] for part in "qkv"]
                tensors[f"{new}.{side}.attn.qkv.{kind}"] = torch.cat(joined)
                if "attn2.proj" in named:
                    joined = [found[f"{old}.attn2.to_{part}.{kind}"] for part in "qkv"]
                    tensors[f"{new}.{side}.attn2.qkv.{kind}"] = torch.cat(joined)
                rows = found[f"{old}.{modulation}.{kind}"]
                rows = swapped(rows) if side == "context_block" and number == last else rows
                tensors[f"{new}.{side}.adaLN_modulation.1.{kind}"] = rows
                for theirs, ours in named.items():
                    if f"{old}.{ours}.{kind}" in found:
                        tensors[f"{new}.{side}.{theirs}.{kind}"] = found[f"{old}.{ours}.{kind}"]
            for part in "qk":
                for attention in ("attn", "attn2") if side == "x_block" else ("attn",):
                    name = f"{old}.{norm.format(part).replace('attn.', f'{attention}.')}.weight"
                    if name in found:
                        tensors[f"{new}.{side}.{attention}.ln_{part}.weight"] = found[name]
    for kind in ("weight", "bias"):
        tensors[f"final_layer.adaLN_modulation.1.{kind}"] = swapped(found[f"norm_out.linear.{kind}"])
    return tensors


def tensors(
    transformer: SD3Transformer2DModel, vae: AutoencoderKL, texts: Mapping[str, PreTrainedModel]
) -> dict[str, torch.Tensor]:
    """All tensors of one file.

    Args:
        texts: the text encoders by their names there: `clip_l`, `clip_g`, and `t5xxl` if it has that.
    """
    found = {f"model.diffusion_model.{name}": tensor for name, tensor in original_tensors(transformer).items()}
    for name, tensor in vae.state_dict().items():
        new = vae_name(name)
        convolution = ".attn_1." in new and new.endswith(".weight") and ".norm." not in new
        found[f"first_stage_model.{new}"] = tensor[..., None, None] if convolution else tensor
    for part, network in texts.items():
        found |= {f"text_encoders.{part}.transformer.{name}": t for name, t in network.state_dict().items()}
    return found
