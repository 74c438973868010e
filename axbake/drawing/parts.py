"""Which files a model draws with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from axbake.networks.component import DECODER, DENOISER
from axbake.runtime.added import AddedEmbedding
from axbake.runtime.session import open_models
from axbake.runtime.txt2img import Models
from axbake.runtime.values import Conditioning


@dataclass(frozen=True)
class Part:
    """One component."""

    name: str
    role: str
    graphs: int  # how many it has


@dataclass(frozen=True)
class Drawn:
    """What a model draws with."""

    parts: tuple[Part, ...]  # in the order of the files
    conditioning: Conditioning

    def files(self, paths: Sequence[Path]) -> dict[str, list[Path]]:
        """*paths* of all graphs, one component after the other, by component."""
        left, found = list(paths), {}
        for part in self.parts:
            found[part.name], left = left[: part.graphs], left[part.graphs :]
        return found

    def of_role(self, role: str) -> str:
        """The one component of *role*."""
        (component,) = (part.name for part in self.parts if part.role == role)
        return component

    def open(self, files: Mapping[str, Sequence[Path]], added: AddedEmbedding | None = None) -> Models:
        """The models that text to image needs, of the files of each component, and what prompts add to the time embedding."""
        texts = tuple(open_models(files[name]) for name in self.conditioning.encoders)
        denoiser, decoder = (open_models(files[self.of_role(role)]) for role in (DENOISER, DECODER))
        return Models(texts, denoiser, decoder, added=added)


def added_of(added: Callable[[Path], AddedEmbedding] | None, weights: Sequence[Path]) -> AddedEmbedding | None:
    """What prompts add to the time embedding of the denoiser of *weights*.

    Args:
        added: the denoiser's; None: prompts add nothing, and there are no *weights*.
    """
    return added(*weights) if added else None
