"""Which files a model draws with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from axbake.networks.component import DECODER, DENOISER, ENCODER
from axbake.runtime.added import AddedEmbedding
from axbake.runtime.canvas import Canvas, beside_latent
from axbake.runtime.img2img import encoding
from axbake.runtime.layers import open_component_of
from axbake.runtime.sampler import Schedule, initial_latent
from axbake.runtime.session import open_models
from axbake.runtime.tokenizer import ClipTokenizer
from axbake.runtime.txt2img import decode_latent, draw_latent, embed_prompts, prompts_of
from axbake.runtime.values import Conditioning, Latents, Picture


@dataclass(frozen=True)
class Part:
    """One component."""

    name: str
    role: str
    graphs: int  # how many it has
    models: int = 0  # how many files it runs from, where not one a graph


@dataclass(frozen=True)
class Drawn:
    """What a model draws with."""

    parts: tuple[Part, ...]  # in the order of the files
    conditioning: Conditioning

    def files(self, paths: Sequence[Path]) -> dict[str, list[Path]]:
        """*paths* of all graphs, one component after the other, by component."""
        return _by_name(paths, {part.name: part.graphs for part in self.parts})

    def models(self, paths: Sequence[Path], names: Sequence[str] | None = None) -> dict[str, list[Path]]:
        """The same of all models that were made of them, or of those of the components *names*."""
        parts = [part for part in self.parts if names is None or part.name in names]
        return _by_name(paths, {part.name: part.models or part.graphs for part in parts})

    def of_role(self, role: str) -> str:
        """The one component of *role*."""
        (component,) = (part.name for part in self.parts if part.role == role)
        return component

    def before_denoiser(self, *, canvas: bool) -> list[str]:
        """Names of the components whose results the denoiser takes: text encoders; on a *canvas* also the VAE encoder."""
        encoders = [self.of_role(ENCODER)] if canvas else []
        return [part.name for part in self.parts if part.name in (*self.conditioning.encoders, *encoders)]

    def draw(
        self,
        files: Mapping[str, Sequence[Path]],
        tokenizer: ClipTokenizer,
        schedule: Schedule,
        picture: Picture,
        *,
        latents: Latents,
        added: AddedEmbedding | None,
        canvas: Canvas | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw *picture* as `axbake.runtime.txt2img.draw` does, one component in memory at a time.

        Args:
            files: of each component, its graphs in order.
            added: what prompts add to the time embedding; None: nothing.
            canvas: what the denoiser draws on; None: nothing.

        Returns:
            The picture, (height, width, 3) uint8 RGB, and the latents after each of N steps, (N, 1, C, h, w) float32.
        """
        drawn = self.draw_latents(files, tokenizer, schedule, picture, latents=latents, added=added, canvas=canvas)
        decoder = open_models(files[self.of_role(DECODER)])
        return decode_latent(decoder, drawn[-1], latents=latents), drawn

    def draw_latents(
        self,
        files: Mapping[str, Sequence[Path]],
        tokenizer: ClipTokenizer,
        schedule: Schedule,
        picture: Picture,
        *,
        latents: Latents,
        added: AddedEmbedding | None,
        canvas: Canvas | None = None,
    ) -> np.ndarray:
        """The latents of `draw` after each of N steps, (N, 1, C, h, w) float32; of a shortened *schedule* its steps'."""
        texts = [open_component_of(files[name]) for name in self.conditioning.encoders]
        embeds = embed_prompts(
            texts,
            tokenizer,
            prompts_of(picture, schedule),
            chunks=picture.prompt_chunks,
            conditioning=self.conditioning,
        )
        del texts
        shape = latents.shape(picture.height, picture.width)
        network = open_models(files[self.of_role(DENOISER)])
        encode = encoding(open_models(files[self.of_role(ENCODER)])) if canvas else None
        return draw_latent(
            lambda noise: initial_latent(schedule, noise, shape),
            network,
            schedule,
            picture,
            embeds,
            added=added,
            beside=(lambda noise: beside_latent(canvas, encode, noise, latents=latents)) if canvas and encode else None,
        ).latents


def _by_name(paths: Sequence[Path], counts: Mapping[str, int]) -> dict[str, list[Path]]:
    left, found = list(paths), {}
    for name, count in counts.items():
        found[name], left = left[:count], left[count:]
    return found


def added_of(added: Callable[[Path], AddedEmbedding] | None, weights: Sequence[Path]) -> AddedEmbedding | None:
    """What prompts add to the time embedding of the denoiser of *weights*.

    Args:
        added: the denoiser's; None: prompts add nothing, and there are no *weights*.
    """
    return added(*weights) if added else None
