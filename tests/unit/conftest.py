"""The tiny models of all families, imported once: checkpoint, weights, schedule."""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer

from axbake.checkpoints.finding import averaged_namings, find_family, open_checkpoint
from axbake.digest import file_sha256
from axbake.drawing.parts import Drawn, Part
from axbake.drawing.schedule import build_scheduler, derive_schedule
from axbake.families import FAMILIES
from axbake.families.family import Family
from axbake.graphs.export import export_onnx
from axbake.networks.component import DECODER, DENOISER, ENCODER, TEXT, as_files
from axbake.networks.sampling import Sampling
from axbake.runtime.values import Picture
from axbake.table import read_models
from axbake.weights.description import describe_checkpoint
from axbake.weights.embeddings import list_embeddings
from axbake.weights.files import read_description
from axbake.weights.importing import import_component, import_denoiser, import_text_encoder
from axbake.weights.networks import Build
from tests import (
    tiny,
    tiny_anima,
    tiny_flux1,
    tiny_flux2,
    tiny_lumina,
    tiny_qwen_image,
    tiny_sd3,
    tiny_xl,
    tiny_z_image,
)

CLIP = Path(__file__).parents[2] / "resources" / "clip"
SCHEMAS = Path(__file__).parents[2] / "workflow" / "schemas"
SD1 = FAMILIES["sd1"]
#: The row's cells that graphs depend on, where a test says nothing else
COLUMNS = {"height": 64, "width": 64, "prompt_chunks": 1, "program": "axera"}
torch.set_num_threads(1)  # tiny tensors are done sooner by one, above all on busy machines
logging.getLogger("torch.__trace").propagate = False  # thousands of lines an export, beside a failing test's own


@pytest.fixture(autouse=True)
def _logging_as_before():
    """A program that a test calls in this process may log to where the test ends; the next test's words would go there."""
    loggers = [logging.getLogger(name) for name in (None, "axbake", "axbake.emulator")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@dataclass(frozen=True)
class TinyModel:
    """A tiny model's networks, its checkpoint, and what axbake imported of it."""

    family: Family
    networks: tiny.Networks
    checkpoint: Path
    weights: dict[str, Path]  # by component
    embeddings: Path  # embeddings.json; it has none

    @property
    def builds(self) -> dict[str, Build]:
        """Function that builds each component's network."""
        return {component.name: component.build for component in self.family.components}

    @property
    def states(self) -> dict[str, Callable[..., Any]]:
        """Function that gives each text encoder's states."""
        return {one.name: one.states for one in self.family.text_encoders if one.states}

    @property
    def drawn(self) -> Drawn:
        """Which graphs it draws with."""
        parts = tuple(Part(one.name, one.role, len(one.graphs)) for one in self.family.components)
        return Drawn(parts, self.family.conditioning)

    def picture(self, **changed: Any) -> Picture:
        """A picture of it: 64 × 64 pixels in 4 steps, but for what is *changed*."""
        usual = {"model": "tiny", "prompt": "a rocket", "negative_prompt": "", "height": 64, "width": 64}
        usual |= {"scheduler": "euler", "steps": 4, "guidance_scale": 5, "seed": 9}
        return Picture(**usual | changed)

    def schedule(
        self, path: Path, *, scheduler: str = "euler", steps: int = 4, guidance_scale: float = 5, **truncation: float
    ) -> Path:
        """A schedule for its denoiser, written to *path*."""
        denoiser = self.family.denoiser
        assert denoiser.rows
        derive_schedule(
            scheduler=scheduler,
            steps=steps,
            guidance_scale=guidance_scale,
            rows=denoiser.rows,
            denoiser=self.weights[denoiser.name],
            height=COLUMNS["height"],
            width=COLUMNS["width"],
            schedule=path,
            **truncation,
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


def family_in(checkpoint: Path) -> Family:
    """The family of a safetensors file or folder; as `axbake.model.family_of`, which remembers it."""
    denoisers = [family.denoiser for family in FAMILIES.values()]
    return find_family(open_checkpoint(checkpoint, averaged_namings(denoisers)), FAMILIES)


def import_part(
    checkpoint: Path,
    loras: Sequence[Path] = (),
    embeddings: Sequence[Path] = (),
    *,
    component: str,
    weights: Path,
    family: Family | None = None,
    strengths: Sequence[float] = (),
    prediction: str = "",
    sidecar: str = "",
    clip_skip: int = 1,
) -> None:
    """Import one component of any file, as the workflow does (`import_step` in workflow/rules/import.smk).

    Args:
        family: the row's; None: that of the file's denoiser, and for an autoencoder, whose file may hold no other network,
            Stable Diffusion 1.x.
    """
    family = family or (SD1 if component in halves(SD1) else family_in(checkpoint))
    part = family.component(component)
    of = {"component": as_files(part), "latents": family.latents, "weights": weights}
    if part.role in (ENCODER, DECODER):
        import_component(checkpoint, family="", **of)
        return
    of |= {"family": family.name, "title": family.title, "strengths": strengths}
    if part.role == TEXT:
        import_text_encoder(checkpoint, loras, embeddings, **of, clip_skip=clip_skip, shortened=family.clip_skip)
        return
    assert part.role == DENOISER
    process = {"prediction_type": family.process.prediction_type, "sampling": family.process.sampling}
    import_denoiser(checkpoint, loras, **of, **process, prediction=prediction, sidecar=sidecar)


def halves(family: Family) -> tuple[str, ...]:
    """Names of the components of its autoencoder."""
    return tuple(component.name for component in family.autoencoder)


def describe(
    checkpoint: Path,
    description: Path,
    *,
    vae: Path | None = None,
    family: Family | None = None,
    sha256: str = "0" * 64,
    vae_sha256: str = "",
    **options: Any,
) -> None:
    """Write what *checkpoint* is, as the workflow does.

    Args:
        vae: a VAE of the row's own, with its *vae_sha256*.
        options: records, prediction, sidecar.
    """
    family = family or family_in(checkpoint)
    describe_checkpoint(
        checkpoint,
        vae or checkpoint,
        family=family.name,
        title=family.title,
        components=[as_files(component) for component in family.components],
        latents=family.latents,
        conditioning=family.conditioning,
        fits=family.fits,
        prediction_type=family.process.prediction_type,
        sampling=family.process.sampling,
        sha256=sha256,
        vae_sha256=vae_sha256,
        description=description,
        **options,
    )


def export_part(weights: Path, graph: Path, *, family: Family = SD1, **columns: Any) -> Path:
    """Export the network of *weights*, a component of one graph, with its tensors beside it; the graph.

    Args:
        columns: of the row, that differ from `COLUMNS`; those that the component's graph does not depend on say nothing.
    """
    component = family.component(read_description(weights).component)
    (piece,) = component.graphs
    given = {name: value for name, value in (COLUMNS | columns).items() if name in component.columns}
    export_onnx(weights, build=component.build, piece=piece, columns=given, graph=graph, tensors=tensors_of(graph))
    return graph


def row_of(**cells: str) -> dict[str, Any]:
    """A row of the table, read as the workflow reads it; the table, and what it names, are in the working directory.

    Args:
        cells: that are not as usual: model tiny, checkpoint tiny.safetensors, 64 × 64 pixels.
    """
    Path("prompts.txt").write_text("slice of pizza\n", encoding="utf-8")
    usual = {"model": "tiny", "checkpoint": "tiny.safetensors", "height": "64", "width": "64", "prompt": "a rocket"}
    row = usual | {"calibration_prompts": "prompts.txt"} | cells
    table = Path("models.tsv")
    table.write_text("\t".join(row) + "\n" + "\t".join(row.values()) + "\n", encoding="utf-8")
    (found,) = read_models(table, schema=SCHEMAS / "models.schema.yaml", families=list(FAMILIES)).values()
    return found


#: Name of a family -> a function that makes tiny networks of it
MODULES = (tiny, tiny_xl, tiny_sd3, tiny_flux2, tiny_z_image, tiny_anima, tiny_lumina, tiny_flux1, tiny_qwen_image)
TINY = {name: make for module in MODULES for name, make in module.FAMILIES.items()}
every_family = pytest.mark.parametrize("family", TINY)


def import_tiny(networks: Any, directory: Path) -> TinyModel:
    """Tiny *networks*, saved to *directory* and imported there."""
    family = FAMILIES[networks.family]
    (module,) = (one for one in MODULES if networks.family in one.FAMILIES)
    checkpoint = module.save(networks, directory / "tiny.safetensors", extra=tiny.leftovers())
    weights = {component: directory / f"{component}.safetensors" for component in family.names}
    for component, path in weights.items():
        import_part(checkpoint, component=component, weights=path, family=family)
    encoders = [weights[one.name] for one in family.text_encoders]
    keys = [one.files.embedding for one in family.text_encoders if not one.language]
    formats = {one.name: one.language for one in family.text_encoders if one.language}
    places = [directory / form.folder / "tokenizer.json" for _, form in sorted(formats.items())]
    tokenizers = [place if place.exists() else directory / "tokenizer.json" for place in places]
    how = {"names": [], "encoders": keys, "formats": formats, "listing": directory / "embeddings.json"}
    list_embeddings(encoders, [], tokenizers, **how)
    return TinyModel(family, networks, checkpoint, weights, directory / "embeddings.json")


@pytest.fixture(scope="session")
def model_of(tmp_path_factory) -> Callable[[str], TinyModel]:
    """A function that gives the tiny model of a family, imported once."""

    @functools.cache
    def imported(name: str) -> TinyModel:
        return import_tiny(TINY[name](), tmp_path_factory.mktemp(name))

    return imported


@pytest.fixture(scope="session")
def model(model_of) -> TinyModel:
    """Of Stable Diffusion 1.x, for what does not depend on the family."""
    return model_of("sd1")


def tensors_of(graph: Path) -> Path:
    """The file of a graph's tensors."""
    return graph.with_name(f"{graph.name}.data")


@pytest.fixture(scope="session")
def export_once(once) -> Callable[..., Path]:
    """A function that gives the graph of a component of one graph, exported once for all models of the same weights.

    As `export_part`, for reading alone.
    """

    def export(weights: Path, *, family: Family = SD1, **columns: Any) -> Path:
        name = read_description(weights).component
        key = [file_sha256(weights)[:16], *(f"{column}-{value}" for column, value in sorted(columns.items()))]
        made = once(
            "-".join([name, *key]), lambda place: export_part(weights, place / f"{name}.onnx", family=family, **columns)
        )
        return made / f"{name}.onnx"

    return export


@pytest.fixture(scope="session")
def graph_of(model, export_once) -> Callable[..., Path]:
    """A function that gives the ONNX graph of a component of `model`, exported once a size; for reading alone."""
    return lambda component, height=64, width=64: export_once(model.weights[component], height=height, width=width)


@pytest.fixture(scope="session")
def graphs_of(export_once) -> Callable[[TinyModel], dict[str, list[Path]]]:
    """A function that gives the graphs of a model by component, each of which has one; for reading alone."""

    def export(model: TinyModel) -> dict[str, list[Path]]:
        of = {"family": model.family, "height": 64, "width": 64}
        return {name: [export_once(weights, **of)] for name, weights in model.weights.items()}

    return export
