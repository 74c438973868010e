"""A family that no one uses: two text encoders whose tokens are joined, and a UNet that becomes three graphs.

Its networks are diffusers' and transformers' at tiny sizes. Files name their tensors as no other family's do, so FAMILY alone
fits them. A copy of this file among `axbake/families` is all that the workflow needs to bake one.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from axbake.families.family import Family, Process
from axbake.networks import architecture, clip, unet
from axbake.networks.autoencoder import LATENTS, VAE_DECODER, VAE_ENCODER, autoencoder
from axbake.networks.component import (
    DENOISER,
    TEXT,
    Component,
    Files,
    Graph,
    Interface,
    Module,
    Naming,
    Rename,
    Shapes,
    Tensor,
)
from axbake.networks.pipelines import stable_diffusion
from axbake.runtime.tokenizer import TOKENS
from axbake.runtime.values import Conditioning

SEED = 0
WIDTHS = {"text_encoder": 32, "text_encoder_2": 64}  # channels of a token, side by side in the UNet's context
CONTEXT = sum(WIDTHS.values())
HEADS = 8
END = 49407  # <|endoftext|>, with which prompts are filled up
LEVELS = (32, 64)  # channels; the UNet's 32 norm groups allow no fewer
#: Component -> starts of its tensors' names in a file -> what diffusers has in their place
NAMES = {
    "text_encoder": {"poet.words.": "embeddings.token_embedding.", "poet.": ""},
    "text_encoder_2": {"critic.words.": "embeddings.token_embedding.", "critic.": ""},
    "unet": {"clock.": "time_embedding.", "canvas.": ""},
    "vae_encoder": {"eye.out.": "quant_conv.", "eye.": "encoder."},
    "vae_decoder": {"hand.in.": "post_quant_conv.", "hand.": "decoder."},
}
# Tensors between the graphs. The way down leaves four: the first convolution's, and one behind each resnet and the downsampler
# between. The last is where the middle begins, and all of them are joined to the way up.
SKIPS = ("skip_0", "skip_1", "skip_2", "skip_3")
MIDDLE = "middle"
DTYPE = "float32"


def fits(denoiser: Shapes) -> bool:
    """By the width of the context."""
    return architecture.context_width(denoiser) == CONTEXT


# Names in files -------------------------------------------------------------------------------------------------------


def _renamer(component: str) -> Rename:
    def rename(name: str) -> str | None:
        found = (new + name[len(old) :] for old, new in NAMES[component].items() if name.startswith(old))
        return next(found, None)

    return rename


def text_encoder_renamer(shapes: Shapes) -> Rename:
    """Names of the first text encoder."""
    return _renamer("text_encoder")


def text_encoder_2_renamer(shapes: Shapes) -> Rename:
    """Names of the second one."""
    return _renamer("text_encoder_2")


def unet_renamer(shapes: Shapes) -> Rename:
    """Names of the UNet."""
    return _renamer("unet")


def vae_encoder_renamer(shapes: Shapes) -> Rename:
    """Names of the VAE's encoder."""
    return _renamer("vae_encoder")


def vae_decoder_renamer(shapes: Shapes) -> Rename:
    """Names of its decoder."""
    return _renamer("vae_decoder")


def text_config(shapes: Shapes) -> dict:
    """Config of the first text encoder."""
    return architecture.text_architecture(shapes, hidden_act="quick_gelu", pad_token_id=END)


def text_config_2(shapes: Shapes) -> dict:
    """Config of the second one."""
    return architecture.text_architecture(shapes, hidden_act="gelu", pad_token_id=END)


def unet_config(shapes: Shapes) -> dict:
    """Config of the UNet."""
    return architecture.unet_architecture(shapes, heads=unet_heads)


def unet_heads(channels: int) -> int:
    """Attention heads of a level."""
    return HEADS


# The UNet's graphs ----------------------------------------------------------------------------------------------------


def down_inputs(**size: int) -> dict[str, str]:
    """Sample, tokens, row."""
    return dict.fromkeys(("sample", "encoder_hidden_states", unet.TIME_INPUT), DTYPE)


def mid_inputs(**size: int) -> dict[str, str]:
    """The last skip, tokens, row."""
    return dict.fromkeys((SKIPS[-1], "encoder_hidden_states", unet.TIME_INPUT), DTYPE)


def up_inputs(**size: int) -> dict[str, str]:
    """What the middle made, all skips, tokens, row."""
    return dict.fromkeys((MIDDLE, *SKIPS, "encoder_hidden_states", unet.TIME_INPUT), DTYPE)


def down_interface(config: Mapping, **size: int) -> Interface:
    """The way down: it leaves the skips."""
    return _interface(down_inputs(**size), SKIPS, config, **size)


def mid_interface(config: Mapping, **size: int) -> Interface:
    """The middle."""
    return _interface(mid_inputs(**size), (MIDDLE,), config, **size)


def up_interface(config: Mapping, **size: int) -> Interface:
    """The way up: it gives the prediction."""
    return _interface(up_inputs(**size), ("out_sample",), config, **size)


def _interface(
    inputs: Mapping[str, str],
    outputs: tuple[str, ...],
    config: Mapping,
    *,
    height: int,
    width: int,
    prompt_chunks: int,
) -> Interface:
    latent = LATENTS.shape(height, width)
    (fine, coarse), (_, _, rows, columns) = config["block_out_channels"], latent
    whole, half = (rows, columns), (rows // 2, columns // 2)
    skips = ((1, fine, *whole), (1, fine, *whole), (1, fine, *half), (1, coarse, *half))
    shapes = dict(zip(SKIPS, skips, strict=True)) | {
        "sample": latent,
        "encoder_hidden_states": (1, prompt_chunks * TOKENS, config["cross_attention_dim"]),
        unet.TIME_INPUT: (1, unet.row_width(config)),
        MIDDLE: (1, coarse, *half),
    }
    return Interface({name: Tensor(shapes[name], dtype) for name, dtype in inputs.items()}, outputs)


def cut_down(network: Module, face: Interface) -> Module:
    """The first convolution and the blocks down."""
    return _slice(network, _down)


def cut_mid(network: Module, face: Interface) -> Module:
    """The block in the middle."""
    return _slice(network, _mid)


def cut_up(network: Module, face: Interface) -> Module:
    """The blocks up and the last convolution."""
    return _slice(network, _up)


def _slice(network: Module, run: Callable[..., Any]) -> Module:
    """A module that does *run* of the network, its time row from outside."""
    import torch

    from axbake.networks.modules import CutUnet

    class Slice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = CutUnet(network).model

        def forward(self, *tensors: Any) -> Any:
            return run(self.model, *tensors)

    return Slice()


def _down(model: Module, sample: Any, context: Any, row: Any) -> tuple:
    hidden = model.conv_in(sample)
    skips = (hidden,)
    for block in model.down_blocks:
        hidden, made = block(hidden_states=hidden, temb=row, **_crossed(block, context))
        skips += made
    return skips


def _mid(model: Module, deepest: Any, context: Any, row: Any) -> Any:
    return model.mid_block(deepest, row, encoder_hidden_states=context)


def _up(model: Module, hidden: Any, *others: Any) -> Any:
    *skips, context, row = others
    for block in model.up_blocks:
        first = len(skips) - len(block.resnets)
        taken, skips = tuple(skips[first:]), skips[:first]
        hidden = block(hidden_states=hidden, temb=row, res_hidden_states_tuple=taken, **_crossed(block, context))
    return model.conv_out(model.conv_act(model.conv_norm_out(hidden)))


def _crossed(block: Module, context: Any) -> dict[str, Any]:
    """The context, for a block that attends to it."""
    return {"encoder_hidden_states": context} if getattr(block, "has_cross_attention", False) else {}


FAMILY = Family(
    name="chain",
    title="Chain",
    fits=fits,
    components=(
        Component(
            name="text_encoder",
            role=TEXT,
            files=Files(
                (Naming("poet.words.weight", text_encoder_renamer),), text_config, clip.FOLDER, clip.PREFIX, clip.TOLD
            ),
            build=clip.build,
            graphs=(Graph("text_encoder", clip.inputs, clip.interface, clip.cut),),
            columns=(),
            width=clip.width,
            states=clip.states,
            example=clip.example,
        ),
        Component(
            name="text_encoder_2",
            role=TEXT,
            files=Files(
                (Naming("critic.words.weight", text_encoder_2_renamer),),
                text_config_2,
                "text_encoder_2",
                "text_encoder_2.text_model.",
                clip.TOLD,
            ),
            build=clip.build,
            graphs=(Graph("text_encoder_2", clip.inputs, clip.interface, clip.cut),),
            columns=(),
            width=clip.width,
            states=clip.states,
            example=clip.example,
        ),
        Component(
            name="unet",
            role=DENOISER,
            files=Files(
                (Naming("clock.linear_1.weight", unet_renamer),),
                unet_config,
                unet.FOLDER,
                unet.PREFIX,
                unet.TOLD,
                unet.WITHOUT,
            ),
            build=unet.build,
            graphs=(
                Graph("down", down_inputs, down_interface, cut_down),
                Graph("mid", mid_inputs, mid_interface, cut_mid),
                Graph("up", up_inputs, up_interface, cut_up),
            ),
            columns=("height", "width", "prompt_chunks"),
            width=unet.width,
            with_rows=unet.with_rows,
            rows=unet.time_rows,
            example=unet.example,
        ),
        replace(
            VAE_ENCODER,
            files=replace(
                VAE_ENCODER.files, namings=(Naming("eye.conv_in.weight", vae_encoder_renamer),), ldm_name=None
            ),
        ),
        replace(
            VAE_DECODER,
            files=replace(
                VAE_DECODER.files, namings=(Naming("hand.conv_in.weight", vae_decoder_renamer),), ldm_name=None
            ),
        ),
    ),
    latents=LATENTS,
    conditioning=Conditioning(("text_encoder", "text_encoder_2")),
    process=Process("epsilon", ("euler", "ddim", "dpmpp_2m_karras"), unet.sampling, {"": stable_diffusion}),
    resources=("resources/sd1",),
)


# A tiny model of it ---------------------------------------------------------------------------------------------------


def build_networks() -> dict[str, Any]:
    """Seeded networks, float32, of values that fp16 holds: `text_encoder`, `text_encoder_2`, `unet`, `vae`."""
    import torch

    torch.manual_seed(SEED)
    made = {name: clip.build(_text_sizes(name)) for name in WIDTHS}
    made |= {"unet": unet.build(_unet_sizes()), "vae": autoencoder(_vae_sizes())}
    for network in made.values():
        for parameter in network.parameters():
            # Fresh norms and biases are 1 and 0: two that changed places would pass.
            moved = parameter.data + 0.1 * torch.randn(parameter.shape) if parameter.ndim == 1 else parameter.data
            parameter.data = moved.half().float()
        network.eval().requires_grad_(False)
    return made


def _text_sizes(name: str) -> dict[str, Any]:
    width, second = WIDTHS[name], name == "text_encoder_2"
    return {
        "vocab_size": END + 1,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 3 if second else 2,
        "num_attention_heads": 1,
        "projection_dim": width,
        "hidden_act": "gelu" if second else "quick_gelu",
        "bos_token_id": END - 1,
        "eos_token_id": END,
        "pad_token_id": END,
    }


def _unet_sizes() -> dict[str, Any]:
    return {
        "sample_size": 8,
        "block_out_channels": LEVELS,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": CONTEXT,
        "attention_head_dim": HEADS,
    }


def _vae_sizes() -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": (32,) * 4,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "latent_channels": LATENTS.channels,
        "norm_num_groups": 32,
        "sample_size": 64,
        "scaling_factor": 0.18215,
    }


def checkpoint_tensors(networks: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors of *networks* in fp16, by the names that a file has for them."""
    found = {}
    for component in FAMILY.names:
        network = networks["vae" if component.startswith("vae") else component]
        for name, tensor in network.state_dict().items():
            name = name.removeprefix("text_model.")
            starts = [(old, new) for old, new in NAMES[component].items() if name.startswith(new)]
            if starts and not name.endswith("position_ids"):
                old, new = starts[0]
                found[old + name[len(new) :]] = tensor.half().contiguous()
    return found


def save_checkpoint(networks: Mapping[str, Any], path: Path) -> Path:
    """*networks* as one safetensors file at *path*."""
    from safetensors.torch import save_file

    save_file(checkpoint_tensors(networks), path)
    return path
