"""Which files a model draws with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from axbake.networks.component import DECODER, DENOISER
from axbake.runtime.session import open_models
from axbake.runtime.txt2img import Models
from axbake.runtime.values import Conditioning


@dataclass(frozen=True)
class Drawn:
    """Which files a model draws with."""

    graphs: Mapping[str, int]  # component -> how many, in the order of the files
    roles: Mapping[str, str]  # component -> its role
    conditioning: Conditioning

    def files(self, paths: Sequence[Path]) -> dict[str, list[Path]]:
        """*paths* of all graphs, one component after the other, by component."""
        left, found = list(paths), {}
        for component, count in self.graphs.items():
            found[component], left = left[:count], left[count:]
        return found

    def of_role(self, role: str) -> str:
        """The one component of *role*."""
        (component,) = (name for name, its in self.roles.items() if its == role)
        return component

    def open(self, files: Mapping[str, Sequence[Path]]) -> Models:
        """The models that text to image needs, of the files of each component."""
        texts = tuple(open_models(files[name]) for name in self.conditioning.encoders)
        return Models(texts, open_models(files[self.of_role(DENOISER)]), open_models(files[self.of_role(DECODER)]))
