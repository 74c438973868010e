"""Stable Diffusion 3 and 3.5: real networks at tiny sizes, seeded, in the files that users have."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel

from axbake.networks.modules import VaeDecoder, VaeEncoder
from resources.demo_flow import to_single_file
from tests.tiny import ROOT, SEED, WIDTH, _unsettle
from tests.tiny_xl import text_config

POOLED = {"text_encoder": 24, "text_encoder_2": 48}  # channels of their pooled prompts, side by side in the transformer
CONTEXT = 4096  # that tokens are filled up to
BLOCKS = 3
SIDE = 16  # positions a side in the table, of which pictures take the middle
SCALE, SHIFT = 1.5305, 0.0609


@dataclass(frozen=True)
class Networks:
    """The networks of one model, float32, their values rounded to the precision that the checkpoint stores."""

    text_encoder: CLIPTextModelWithProjection
    text_encoder_2: CLIPTextModelWithProjection
    transformer: SD3Transformer2DModel
    vae: AutoencoderKL
    dtype: torch.dtype
    family: str
    prediction_type: str = "flow_prediction"
    text_encoder_3: T5EncoderModel | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of its text encoders."""
        return ("text_encoder", "text_encoder_2", *(["text_encoder_3"] if self.text_encoder_3 else []))

    def component(self, name: str) -> Any:
        """The network that axbake calls *name*."""
        halves = {"vae_encoder": VaeEncoder, "vae_decoder": VaeDecoder}
        return halves[name](self.vae) if name in halves else getattr(self, name)


def t5_tokenizer() -> Tokenizer:
    """A tokenizer that ends each text with a token, as T5's does; every letter is a token."""
    letters = [chr(code) for code in range(32, 127)]
    made = Tokenizer(models.WordLevel({"<unk>": 0} | {letter: n for n, letter in enumerate(letters, 1)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<pad>", "</s>")])
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", made.token_to_id("</s>"))]
    )
    return made


def t5() -> T5EncoderModel:
    """T5 with a block for each of its six graphs."""
    return T5EncoderModel(
        T5Config(
            vocab_size=t5_tokenizer().get_vocab_size(),
            d_model=CONTEXT,
            d_kv=8,
            d_ff=16,
            num_layers=6,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            attn_implementation="eager",
        )
    )


def _model(family: str, dtype: torch.dtype, *, blocks: int = BLOCKS, with_t5: bool = False, **options: Any) -> Networks:
    torch.manual_seed(SEED)
    made = {
        "text_encoder": CLIPTextModelWithProjection(text_config("text_encoder", POOLED["text_encoder"])),
        "text_encoder_2": CLIPTextModelWithProjection(text_config("text_encoder_2", POOLED["text_encoder_2"])),
        "vae": AutoencoderKL(
            block_out_channels=(WIDTH,) * 4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=16,
            norm_num_groups=32,
            sample_size=64,
            scaling_factor=SCALE,
            shift_factor=SHIFT,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        "transformer": SD3Transformer2DModel(
            sample_size=8,
            num_layers=blocks,
            attention_head_dim=64,
            num_attention_heads=2,
            joint_attention_dim=CONTEXT,
            caption_projection_dim=128,
            pooled_projection_dim=sum(POOLED.values()),
            pos_embed_max_size=SIDE,
            **options,
        ),
    } | ({"text_encoder_3": t5()} if with_t5 else {})
    for network in made.values():
        _unsettle(network)
        for parameter in [*network.parameters(), *(b for b in network.buffers() if b.is_floating_point())]:
            parameter.data = parameter.data.to(dtype).float()
        network.eval().requires_grad_(False)
    return Networks(**made, dtype=dtype, family=family)


def sd3(dtype: torch.dtype = torch.float16) -> Networks:
    """Stable Diffusion 3 medium."""
    return _model("sd3", dtype)


def sd35_medium(dtype: torch.dtype = torch.float16) -> Networks:
    """Stable Diffusion 3.5 medium: normalised queries and keys, and the first block attends twice."""
    return _model("sd35_medium", dtype, qk_norm="rms_norm", dual_attention_layers=(0,))


def sd35_large(dtype: torch.dtype = torch.float16) -> Networks:
    """Stable Diffusion 3.5 large: normalised queries and keys, and a block for each of its ten graphs."""
    return _model("sd35_large", dtype, blocks=10, qk_norm="rms_norm")


def sd3_t5(dtype: torch.dtype = torch.float16) -> Networks:
    """Stable Diffusion 3 medium with T5."""
    return _model("sd3_t5", dtype, with_t5=True)


def sd35_medium_t5(dtype: torch.dtype = torch.float16) -> Networks:
    """Stable Diffusion 3.5 medium with T5."""
    return _model("sd35_medium_t5", dtype, with_t5=True, qk_norm="rms_norm", dual_attention_layers=(0,))


def sd35_large_t5(dtype: torch.dtype = torch.float16) -> Networks:
    """Stable Diffusion 3.5 large with T5."""
    return _model("sd35_large_t5", dtype, blocks=10, with_t5=True, qk_norm="rms_norm")


#: Name of a family -> a function that makes networks of it
FAMILIES: dict[str, Callable[..., Networks]] = {
    "sd3": sd3,
    "sd35_medium": sd35_medium,
    "sd35_large": sd35_large,
    "sd3_t5": sd3_t5,
    "sd35_medium_t5": sd35_medium_t5,
    "sd35_large_t5": sd35_large_t5,
}


def ldm_tensors(networks: Networks) -> dict[str, torch.Tensor]:
    """Tensors under the names of Stability's own files with both CLIPs."""
    texts = {"clip_l": networks.text_encoder, "clip_g": networks.text_encoder_2}
    texts |= {"t5xxl": networks.text_encoder_3} if networks.text_encoder_3 else {}
    return to_single_file.tensors(networks.transformer, networks.vae, texts)


def diffusers_tensors(networks: Networks) -> dict[str, torch.Tensor]:
    """Tensors under diffusers' names, each network's with a prefix."""
    parts = ("transformer", "vae", *networks.texts)
    return {f"{part}.{name}": t for part in parts for name, t in getattr(networks, part).state_dict().items()}


#: Names that single files have
LAYOUTS: dict[str, Callable[[Networks], dict[str, torch.Tensor]]] = {"ldm": ldm_tensors, "diffusers": diffusers_tensors}


def single_file_tensors(networks: Networks, layout: str = "ldm") -> dict[str, torch.Tensor]:
    """Tensors of *networks* as a single file of *layout* has them, in its precision."""
    return {name: tensor.to(networks.dtype).clone().contiguous() for name, tensor in LAYOUTS[layout](networks).items()}


def save(networks: Networks, path: Path, *, layout: str = "ldm", extra: dict[str, torch.Tensor] | None = None) -> Path:
    """*networks* as one safetensors file at *path*, with *extra* tensors beside theirs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(single_file_tensors(networks, layout) | (extra or {}), path, metadata={"format": "pt"})
    save_tokenizer(networks, path.parent)
    return path


def save_tokenizer(networks: Networks, folder: Path) -> None:
    """T5's tokenizer, in the folder that diffusers has for it, if they have T5."""
    if networks.text_encoder_3:
        (folder / "tokenizer_3").mkdir(exist_ok=True)
        t5_tokenizer().save(str(folder / "tokenizer_3" / "tokenizer.json"))


def save_split(networks: Networks, folder: Path) -> Path:
    """*networks* as ComfyUI's files of one network each."""
    whole = ldm_tensors(networks)
    starts = {"transformer": "model.diffusion_model.", "vae": "first_stage_model."}
    starts |= {
        "text_encoder": "text_encoders.clip_l.transformer.",
        "text_encoder_2": "text_encoders.clip_g.transformer.",
    }
    starts |= {"text_encoder_3": "text_encoders.t5xxl.transformer."} if networks.text_encoder_3 else {}
    folder.mkdir()
    save_tokenizer(networks, folder)
    for name, start in starts.items():
        own = {key.removeprefix(start): t.to(networks.dtype) for key, t in whole.items() if key.startswith(start)}
        save_file({key: tensor.clone().contiguous() for key, tensor in own.items()}, folder / f"{name}.safetensors")
    return folder


def save_folder(networks: Networks, folder: Path) -> Path:
    """*networks* as a diffusers folder, as `save_pretrained` writes its parts."""
    for name in ("transformer", "vae", *networks.texts):
        network = getattr(networks, name)
        plain = type(network)(network.config) if "text" in name else type(network).from_config(network.config)
        plain.load_state_dict(network.state_dict())
        plain.to(networks.dtype).save_pretrained(folder / name)
    shutil.copytree(ROOT / "resources" / "clip", folder / "tokenizer")
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {
        "_class_name": "StableDiffusion3Pipeline",
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    }
    index["transformer"] = ["diffusers", "SD3Transformer2DModel"]
    index["text_encoder_3"] = ["transformers", "T5EncoderModel"] if networks.text_encoder_3 else [None, None]
    save_tokenizer(networks, folder)
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
