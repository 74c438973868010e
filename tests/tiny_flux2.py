"""FLUX.2: real networks at tiny sizes, seeded, in the files that users have."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import Mistral3Config, Mistral3ForConditionalGeneration, Qwen3Config, Qwen3ForCausalLM

from axbake.networks.flux2_vae_modules import Flux2Decoder, Flux2Encoder, Statistics
from tests.tiny import SEED, WIDTH, _unsettle, vae_name

STATES = (9, 18, 27)
LAYERS = 28  # of the language model, one more than the states ask for
DEV_LAYERS = 31
LANGUAGE_WIDTH, HEAD, DEV_HEAD = 32, 32, 128
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
MISTRAL_SPECIAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<pad>")


@dataclass(frozen=True)
class Networks:
    """The networks of one model, float32, their values rounded to the precision that the checkpoint stores."""

    text_encoder: Qwen3ForCausalLM | Mistral3ForConditionalGeneration
    transformer: Flux2Transformer2DModel
    vae: AutoencoderKLFlux2
    dtype: torch.dtype
    family: str
    prediction_type: str = "flow_prediction"

    def component(self, name: str) -> Any:
        """The network that axbake calls *name*."""
        if name == "text_encoder":
            return getattr(self.text_encoder.model, "language_model", self.text_encoder.model)
        halves = {"vae_encoder": Flux2Encoder, "vae_decoder": Flux2Decoder}
        if name not in halves:
            return getattr(self, name)
        vae = copy.copy(self.vae)
        vae._modules = self.vae._modules | {"bn": Statistics(self.vae.bn)}
        return halves[name](vae)

    @property
    def tokenizer(self) -> Tokenizer:
        """Of its text encoder."""
        return mistral_tokenizer() if self.family == "flux2_dev" else tokenizer()


def mistral_tokenizer() -> Tokenizer:
    """The same with Mistral's special tokens, which puts one of them before each text."""
    made = tokenizer(MISTRAL_SPECIAL)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    return made


def tokenizer(special: tuple[str, ...] = SPECIAL) -> Tokenizer:
    """A byte-level tokenizer with Qwen's special tokens: every byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return made


def language_model(layers: int) -> Qwen3ForCausalLM:
    """A Qwen3 of so many layers."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=tokenizer().get_vocab_size(),
            hidden_size=LANGUAGE_WIDTH,
            intermediate_size=2 * LANGUAGE_WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=HEAD,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            attn_implementation="eager",
            tie_word_embeddings=True,
        )
    )


def mistral() -> Mistral3ForConditionalGeneration:
    """Mistral Small 3 with its vision part."""
    text = {
        "vocab_size": mistral_tokenizer().get_vocab_size(),
        "hidden_size": LANGUAGE_WIDTH,
        "intermediate_size": 2 * LANGUAGE_WIDTH,
        "num_hidden_layers": DEV_LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": DEV_HEAD,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e9},
        "sliding_window": None,
        "model_type": "mistral",
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "model_type": "pixtral",
    }
    return Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision))


def dev(dtype: torch.dtype = torch.bfloat16) -> Networks:
    """FLUX.2 [dev], by its guidance."""
    return klein(dtype, family="flux2_dev", blocks=(8, 24), guidance=True)


def klein_9b(dtype: torch.dtype = torch.bfloat16) -> Networks:
    """FLUX.2 [klein] 9B, by its number of blocks."""
    return klein(dtype, family="flux2_klein_9b", blocks=(8, 4))


def klein(
    dtype: torch.dtype = torch.bfloat16,
    *,
    family: str = "flux2_klein",
    blocks: tuple[int, int] = (2, 3),
    guidance: bool = False,
) -> Networks:
    """FLUX.2 [klein] 4B; *blocks*: of both kinds; *guidance*: whether it takes the guidance scale, as dev does."""
    torch.manual_seed(SEED)
    made = {
        "text_encoder": mistral() if guidance else language_model(LAYERS),
        "vae": AutoencoderKLFlux2(
            block_out_channels=(WIDTH,) * 4, layers_per_block=1, latent_channels=32, norm_num_groups=32, sample_size=64
        ),
        "transformer": Flux2Transformer2DModel(
            num_layers=blocks[0],
            num_single_layers=blocks[1],
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=len(STATES) * LANGUAGE_WIDTH,
            axes_dims_rope=(8, 8, 8, 8),
            guidance_embeds=guidance,
        ),
    }
    for network in made.values():
        _unsettle(network)
        for parameter in network.parameters():
            parameter.data = parameter.data.to(dtype).float()
        network.eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(SEED)
    norm = made["vae"].bn
    norm.running_mean = (torch.randn(norm.running_mean.shape, generator=generator) / 10).to(dtype).float()
    norm.running_var = (torch.rand(norm.running_var.shape, generator=generator) + 0.5).to(dtype).float()
    return Networks(**made, dtype=dtype, family=family)


#: Name of a family -> a function that makes networks of it
FAMILIES: dict[str, Callable[..., Networks]] = {
    "flux2_klein": klein,
    "flux2_klein_9b": klein_9b,
    "flux2_dev": dev,
}


def original_tensors(transformer: Flux2Transformer2DModel) -> dict[str, torch.Tensor]:
    """The transformer's tensors under its authors' names (github black-forest-labs/flux2, `model.py`)."""
    found = transformer.state_dict()
    tensors = {}
    ends = {"x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear"}
    ends |= {
        f"time_guidance_embed.{kind}_embedder.linear_{n}": f"{theirs}_in.{p}_layer"
        for n, p in ((1, "in"), (2, "out"))
        for kind, theirs in (("timestep", "time"), ("guidance", "guidance"))
        if kind == "timestep" or transformer.config.guidance_embeds
    }
    kinds = ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")
    ends |= {f"{kind}.linear": f"{kind}.lin" for kind in kinds}
    for ours, theirs in ends.items():
        tensors[f"{theirs}.weight"] = found[f"{ours}.weight"]
    scale, shift = found["norm_out.linear.weight"].chunk(2)
    tensors["final_layer.adaLN_modulation.1.weight"] = torch.cat([shift, scale])
    for number in range(transformer.config.num_layers):
        old, new = f"transformer_blocks.{number}", f"double_blocks.{number}"
        sides = {
            "img": ("to_{}", "to_out.0", "norm_{}", "ff"),
            "txt": ("add_{}_proj", "to_add_out", "norm_added_{}", "ff_context"),
        }
        for side, (part, out, norm, feed) in sides.items():
            joined = [found[f"{old}.attn.{part.format(letter)}.weight"] for letter in "qkv"]
            tensors[f"{new}.{side}_attn.qkv.weight"] = torch.cat(joined)
            tensors[f"{new}.{side}_attn.proj.weight"] = found[f"{old}.attn.{out}.weight"]
            tensors[f"{new}.{side}_attn.norm.query_norm.scale"] = found[f"{old}.attn.{norm.format('q')}.weight"]
            tensors[f"{new}.{side}_attn.norm.key_norm.scale"] = found[f"{old}.attn.{norm.format('k')}.weight"]
            tensors[f"{new}.{side}_mlp.0.weight"] = found[f"{old}.{feed}.linear_in.weight"]
            tensors[f"{new}.{side}_mlp.2.weight"] = found[f"{old}.{feed}.linear_out.weight"]
    for number in range(transformer.config.num_single_layers):
        old, new = f"single_transformer_blocks.{number}.attn", f"single_blocks.{number}"
        tensors[f"{new}.linear1.weight"] = found[f"{old}.to_qkv_mlp_proj.weight"]
        tensors[f"{new}.linear2.weight"] = found[f"{old}.to_out.weight"]
        tensors[f"{new}.norm.query_norm.scale"] = found[f"{old}.norm_q.weight"]
        tensors[f"{new}.norm.key_norm.scale"] = found[f"{old}.norm_k.weight"]
    return tensors


def original_vae_tensors(vae: AutoencoderKLFlux2) -> dict[str, torch.Tensor]:
    """The autoencoder's tensors under its authors' names (`autoencoder.py` there), the statistics among them."""
    tensors = {}
    for name, tensor in vae.state_dict().items():
        new = name
        if name.startswith(("encoder.", "decoder.")):
            new = vae_name(name)
            convolution = ".attn_1." in new and new.endswith(".weight") and ".norm." not in new
            tensor = tensor[..., None, None] if convolution else tensor
        elif "quant_conv" in name:
            new = f"decoder.{name}" if name.startswith("post") else f"encoder.{name}"
        tensors[new] = tensor
    return tensors


TEXT_PREFIX = "text_encoders.qwen3_4b.transformer."  # of the larger ones, another name for qwen3_4b


def ldm_tensors(networks: Networks) -> dict[str, torch.Tensor]:
    """Tensors as ComfyUI saves a whole model."""
    tensors = {f"model.diffusion_model.{n}": t for n, t in original_tensors(networks.transformer).items()}
    tensors |= {f"vae.{name}": tensor for name, tensor in original_vae_tensors(networks.vae).items()}
    texts = networks.text_encoder.state_dict()
    return tensors | {
        f"{TEXT_PREFIX}{name.replace('.language_model', '')}": t
        for name, t in texts.items()
        if name != "lm_head.weight"
    }


def diffusers_tensors(networks: Networks) -> dict[str, torch.Tensor]:
    """Tensors under diffusers' names, each network's with a prefix."""
    parts = ("transformer", "vae", "text_encoder")
    return {f"{part}.{name}": t for part in parts for name, t in getattr(networks, part).state_dict().items()}


#: Names that single files have
LAYOUTS: dict[str, Callable[[Networks], dict[str, torch.Tensor]]] = {"ldm": ldm_tensors, "diffusers": diffusers_tensors}


def single_file_tensors(networks: Networks, layout: str = "ldm") -> dict[str, torch.Tensor]:
    """Tensors of *networks* as a single file of *layout* has them, in its precision."""
    found = LAYOUTS[layout](networks)
    return {
        name: (tensor.to(networks.dtype) if tensor.is_floating_point() else tensor).clone().contiguous()
        for name, tensor in found.items()
    }


def save(networks: Networks, path: Path, *, layout: str = "ldm", extra: dict[str, torch.Tensor] | None = None) -> Path:
    """*networks* as one safetensors file at *path*, with *extra* tensors beside theirs, and their tokenizer beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(single_file_tensors(networks, layout) | (extra or {}), path, metadata={"format": "pt"})
    networks.tokenizer.save(str(path.parent / "tokenizer.json"))
    return path


def save_split(networks: Networks, folder: Path) -> Path:
    """*networks* as ComfyUI's files of one network each, and their tokenizer."""
    whole = single_file_tensors(networks)
    starts = {
        "transformer": "model.diffusion_model.",
        "vae": "vae.",
        "text_encoder": TEXT_PREFIX,
    }
    folder.mkdir()
    for name, start in starts.items():
        own = {key.removeprefix(start): tensor for key, tensor in whole.items() if key.startswith(start)}
        save_file(own, folder / f"{name}.safetensors")
    (folder / "tokenizer").mkdir()
    networks.tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    return folder


def save_folder(networks: Networks, folder: Path) -> Path:
    """*networks* as a diffusers folder, as `save_pretrained` writes its parts."""
    for name in ("transformer", "vae", "text_encoder"):
        network = getattr(networks, name)
        plain = type(network)(network.config) if "text" in name else type(network).from_config(network.config)
        plain.load_state_dict(network.state_dict())
        plain.to(networks.dtype).save_pretrained(folder / name)
    (folder / "tokenizer").mkdir()
    networks.tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {
        "_class_name": "Flux2Pipeline" if networks.family == "flux2_dev" else "Flux2KleinPipeline",
        **({} if networks.family == "flux2_dev" else {"is_distilled": True}),
        "transformer": ["diffusers", "Flux2Transformer2DModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
