"""Which files a model draws with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from axbake.networks.component import DECODER, DENOISER
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

    def open(self, files: Mapping[str, Sequence[Path]]) -> Models:
        """The models that text to image needs, of the files of each component."""
        texts = tuple(open_models(files[name]) for name in self.conditioning.encoders)
        return Models(texts, open_models(files[self.of_role(DENOISER)]), open_models(files[self.of_role(DECODER)]))
