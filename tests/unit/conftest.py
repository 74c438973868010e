"""The tiny models of all families, imported once: checkpoint, weights, schedule."""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer

from axbake.checkpoints.embeddings import list_embeddings
from axbake.checkpoints.importing import import_checkpoint
from axbake.checkpoints.weights import Sampling
from axbake.drawing.schedule import build_scheduler, derive_schedule
from axbake.families import COMPONENTS
from axbake.graphs.export import export_onnx
from tests import tiny

CLIP = Path(__file__).parents[2] / "resources" / "clip"
torch.set_num_threads(1)  # tiny tensors are done sooner by one, above all on busy machines
logging.getLogger("torch.__trace").propagate = False  # thousands of lines an export, beside a failing test's own


@dataclass(frozen=True)
class TinyModel:
    """A tiny model's networks, its checkpoint, and what axbake imported of it."""

    family: str
    networks: tiny.Networks
    checkpoint: Path
    weights: dict[str, Path]  # by component
    embeddings: Path  # embeddings.json; it has none

    def schedule(self, path: Path, *, scheduler: str = "euler", steps: int = 4, guidance_scale: float = 5) -> Path:
        """A schedule for its UNet, written to *path*."""
        derive_schedule(
            scheduler=scheduler,
            steps=steps,
            guidance_scale=guidance_scale,
            unet=self.weights["unet"],
            schedule=path,
        )
        return path

    def pipeline(self, scheduler: str) -> StableDiffusionPipeline:
        """diffusers' own pipeline of the original networks."""
        return pipeline_of(self.networks, scheduler)


def pipeline_of(networks: tiny.Networks, scheduler: str) -> StableDiffusionPipeline:
    """diffusers' pipeline of *networks*."""
    tokenizer = CLIPTokenizer.from_pretrained(CLIP, local_files_only=True)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(networks.pad_token_id)
    pipeline = StableDiffusionPipeline(
        vae=networks.vae,
        text_encoder=networks.text_encoder,
        tokenizer=tokenizer,
        unet=networks.unet,
        scheduler=build_scheduler(scheduler, Sampling(networks.prediction_type)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


every_family = pytest.mark.parametrize("family", tiny.FAMILIES)


@pytest.fixture(scope="session")
def model_of(tmp_path_factory) -> Callable[[str], TinyModel]:
    """A function that gives the tiny model of a family, imported once."""

    @functools.cache
    def imported(family: str) -> TinyModel:
        directory = tmp_path_factory.mktemp(family)
        networks = tiny.FAMILIES[family]()
        checkpoint = tiny.save(networks, directory / "tiny.safetensors", extra=tiny.leftovers())
        weights = {component: directory / f"{component}.safetensors" for component in COMPONENTS}
        for component, path in weights.items():
            import_checkpoint(checkpoint, component=component, weights=path)
        list_embeddings(weights["text_encoder"], [], names=[], listing=directory / "embeddings.json")
        return TinyModel(family, networks, checkpoint, weights, directory / "embeddings.json")

    return imported


@pytest.fixture(scope="session")
def model(model_of) -> TinyModel:
    """Of Stable Diffusion 1.x, for what does not depend on the family."""
    return model_of("sd1")


def tensors_of(graph: Path) -> Path:
    """The file of a graph's tensors."""
    return graph.with_name(f"{graph.name}.data")


@pytest.fixture(scope="session")
def graph_of(model, tmp_path_factory):
    """A function that gives the ONNX graph of a component, exported once a size."""

    @functools.cache
    def export(component: str, height: int = 64, width: int = 64) -> Path:
        size = {} if component == "text_encoder" else {"height": height, "width": width}
        graph = tmp_path_factory.mktemp(f"{component}-{height}x{width}") / f"{component}.onnx"
        export_onnx(model.weights[component], graph=graph, tensors=tensors_of(graph), **size)
        return graph

    return export
