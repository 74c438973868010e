"""What differs between models and between pictures, as plain values: latents, conditioning, a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

CANVAS = ("image", "mask")  # columns with what a denoiser draws on: none, the first, or both
#: Name of a scheduler -> its name in web UIs; with more words where they have no such one
SAMPLERS = {
    "dpmpp_2m_karras": "DPM++ 2M Karras to sigma_min",
    "dpmpp_2m_karras_zero": "DPM++ 2M Karras",
    "unipc": "UniPC",
    "euler": "Euler",
    "ddim": "DDIM",
    "lcm": "LCM",
    "tcd": "TCD",
    "euler_a": "Euler a",
    "euler_trailing": "Euler trailing",
    "euler_a_trailing": "Euler a trailing",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde_karras": "DPM++ 2M SDE Karras",
    "dpmpp_sde": "DPM++ SDE",
    "dpmpp_sde_karras": "DPM++ SDE Karras",
}


@dataclass(frozen=True)
class Latents:
    """Format of a VAE's latents."""

    channels: int
    factor: int  # image pixels a side for one latent pixel
    scale: float = 1.0
    shift: float = 0.0
    mean: tuple[float, ...] = ()  # of each channel; empty: 0
    std: tuple[float, ...] = ()  # of each channel; empty: 1
    patch: int = 1  # latent pixels a side for one token of the denoiser

    def __post_init__(self) -> None:
        if {len(self.mean), len(self.std)} not in ({0}, {self.channels}):
            raise ValueError(
                f"latents of {self.channels} channels with {len(self.mean)} means and {len(self.std)} deviations; wanted"
                f" {self.channels} of both, or none."
            )

    def shape(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Of the latent of a picture of *height* × *width* pixels."""
        return 1, self.channels, height // self.factor, width // self.factor

    def beside(self, *, masked: bool) -> int:
        """Channels that a denoiser takes beside the latent, if it draws on a picture: another latent's, and with a mask one."""
        return self.channels + masked

    def for_decoder(self, latent: np.ndarray) -> np.ndarray:
        """What the VAE decoder takes of a denoised *latent*, both (1, channels, h, w) float32.

        As in diffusers: `latents / scaling_factor + shift_factor` (Stable Diffusion 3, FLUX), `latents * latents_std /
        scaling_factor + latents_mean` (Stable Diffusion XL, Wan, Qwen-Image).
        """
        if self.std:
            latent = latent * _by_channel(self.std)
        latent = latent / np.float32(self.scale)
        if self.mean:
            latent = latent + _by_channel(self.mean)
        return latent + np.float32(self.shift) if self.shift else latent

    def from_encoder(self, latent: np.ndarray) -> np.ndarray:
        """What the denoiser is trained on of the VAE encoder's *latent*: the inverse of `for_decoder`."""
        if self.shift:
            latent = latent - np.float32(self.shift)
        if self.mean:
            latent = latent - _by_channel(self.mean)
        latent = latent * np.float32(self.scale)
        return latent / _by_channel(self.std) if self.std else latent


def _by_channel(values: Sequence[float]) -> np.ndarray:
    return np.array(values, np.float32)[None, :, None, None]


@dataclass(frozen=True)
class Conditioning:
    """How the text encoders' outputs become what the denoiser takes of a prompt."""

    encoders: tuple[str, ...]  # components, in order
    #: "channels": each token's states side by side, then the tokens of language models; "language": these alone
    joined: str = "channels"
    #: Those whose pooled prompts, side by side, are added to the time embedding, with a space between; empty: none
    pooled: str = ""
    width: int | None = None  # channels up to which a token is filled with zeros; None: it has those of the encoders
    conditioner: str = ""  # the encoder that makes the tokens, of the states of the language model before it

    def __post_init__(self) -> None:
        if self.joined not in ("channels", "language"):
            raise ValueError(f"text encoders joined by {self.joined!r}; wanted 'channels' or 'language'.")
        if not self.encoders:
            raise ValueError("a conditioning without text encoders; wanted at least one.")
        if self.conditioner and self.conditioner != self.encoders[-1]:
            raise ValueError(f"the conditioner {self.conditioner!r}; wanted the last of {', '.join(self.encoders)}.")
        if not set(self.pooled.split()) <= set(self.encoders):
            raise ValueError(f"the pooled prompt of {self.pooled!r}; wanted one of {', '.join(self.encoders)}.")

    def of(self, encoders: Sequence[str]) -> Conditioning:
        """The same of some of the encoders, for their tokens."""
        return replace(self, encoders=tuple(encoders), pooled="", conditioner="")

    def join(self, states: Sequence[np.ndarray]) -> np.ndarray:
        """(1, T, W_i) of each encoder -> (1, T, sum of W_i, or `width`); of one encoder, its array as it is."""
        if len(states) != len(self.encoders):
            raise ValueError(f"states of {len(states)} text encoders; wanted those of {', '.join(self.encoders)}.")
        joined = states[0] if len(states) == 1 else np.concatenate(states, axis=-1)
        missing = (self.width or joined.shape[-1]) - joined.shape[-1]
        return np.pad(joined, ((0, 0), (0, 0), (0, missing))) if missing else joined


@dataclass(frozen=True)
class Picture:
    """All that a picture is drawn with, besides the model's files."""

    model: str
    prompt: str  # as in AUTOMATIC1111's web UI
    negative_prompt: str
    height: int  # pixels
    width: int
    scheduler: str  # of `SAMPLERS`
    steps: int  # of the whole schedule
    guidance_scale: float  # 1 is without guidance
    seed: int
    prompt_chunks: int = 1  # that the denoiser takes
    clip_skip: int = 1  # of the text encoder; 1: its last layer counts
    strength: float | None = None  # 0 to 1, of image to image
    #: Original height and width, crop's top and left, target height and width, in pixels, for SDXL; empty: those of web UIs
    sizes: tuple[int, ...] = ()
    image_guidance_scale: float | None = (
        None  # of a denoiser that follows instructions (InstructPix2Pix); None: of others
    )
    cfg_trunc_ratio: float | None = None  # share of the steps, from the first on, that guidance is for; None: all

    @property
    def size_conditioning(self) -> tuple[int, ...]:
        """The six numbers."""
        return self.sizes or web_ui_sizes(self.height, self.width)

    def parameters(self) -> str:
        """How the picture was made, as AUTOMATIC1111's web UI and those after it read it back."""
        lines = [self.prompt]
        if self.negative_prompt:
            lines.append(f"Negative prompt: {self.negative_prompt}")
        # A value with one of these marks is quoted, else it would end where the mark is (`infotext_utils.quote` there).
        model = json.dumps(self.model, ensure_ascii=False) if set(self.model) & set(",:\n") else self.model
        lines.append(
            f"Steps: {self.steps}, Sampler: {SAMPLERS[self.scheduler]}, CFG scale: {self.guidance_scale:g}"
            + (f", Image CFG scale: {self.image_guidance_scale:g}" if self.image_guidance_scale is not None else "")
            + f", Seed: {self.seed}, Size: {self.width}x{self.height}, Model: {model}"
            + (f", Denoising strength: {self.strength:g}" if self.strength is not None else "")
            + (f", Clip skip: {self.clip_skip}" if self.clip_skip > 1 else "")
            + (f", CFG trunc ratio: {self.cfg_trunc_ratio:g}" if self.cfg_trunc_ratio is not None else "")
        )
        return "\n".join(lines)


def web_ui_sizes(height: int, width: int) -> tuple[int, ...]:
    """Original size, crop and target size that web UIs tell SDXL: the original is as large as the picture, and not cropped."""
    return height, width, 0, 0, height, width
