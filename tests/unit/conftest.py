"""The tiny model of each family, imported once: checkpoint, weights, schedule."""

import functools
from dataclasses import dataclass
from pathlib import Path

import pytest

from axbake.checkpoint import import_checkpoint
from axbake.export import export_onnx
from axbake.families import COMPONENTS, FAMILIES
from axbake.schedule import derive_schedule
from tests import tiny


@dataclass(frozen=True)
class TinyModel:
    """A tiny model's networks, its checkpoint, and what axbake imported of it."""

    family: str
    networks: tiny.Networks
    checkpoint: Path
    weights: dict[str, Path]  # by component

    def schedule(self, path: Path, *, scheduler: str = "euler", steps: int = 4) -> Path:
        """A schedule for its UNet, written to *path*."""
        derive_schedule(
            scheduler=scheduler,
            steps=steps,
            prediction_type=FAMILIES[self.family].prediction_type,
            weights=self.weights["unet"],
            schedule=path,
        )
        return path


@pytest.fixture(scope="session", params=tiny.FAMILIES)
def model(request, tmp_path_factory) -> TinyModel:
    directory = tmp_path_factory.mktemp(request.param)
    networks = tiny.FAMILIES[request.param]()
    checkpoint = tiny.save(networks, directory / "tiny.safetensors", extra=tiny.leftovers())
    weights = {component: directory / f"{component}.safetensors" for component in COMPONENTS}
    for component, path in weights.items():
        import_checkpoint(checkpoint, component=component, weights=path)
    return TinyModel(request.param, networks, checkpoint, weights)


@pytest.fixture(scope="session")
def graph_of(model, tmp_path_factory):
    """A function that gives the ONNX graph of a component, exported once a size."""

    @functools.cache
    def export(component: str, height: int = 64, width: int = 64) -> Path:
        size = {} if component == "text_encoder" else {"height": height, "width": width}
        graph = tmp_path_factory.mktemp(f"{component}-{height}x{width}") / f"{component}.onnx"
        export_onnx(model.weights[component], graph=graph, **size)
        return graph

    return export
