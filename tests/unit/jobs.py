"""Work of the workflow's jobs on a tiny model, called as its rules call it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from axbake.calibration.held_out import check_calibration
from axbake.calibration.observation import Observed, observe_denoiser, read_observed
from axbake.calibration.tars import calibrate_denoiser
from axbake.calibration.trajectories import record_trajectories
from axbake.drawing.attribution import attribute_error, draw_parts
from axbake.drawing.reference import draw_reference
from axbake.networks.component import DECODER, ENCODER, TEXT, Component
from axbake.runtime.values import CANVAS, Picture
from axbake.toolchain.pulsar2 import compile_model
from tests.builds import config_of
from tests.decoder import LAUNCH, compiler
from tests.unit.conftest import TinyModel, tensors_of

GUIDANCE = 5


def text_encoders_of(model: TinyModel) -> list[Path]:
    """Weights of its text encoders, in the order in which their tokens are joined."""
    return [model.weights[name] for name in model.family.conditioning.encoders]


def record(model: TinyModel, schedule: Path, trajectories: Path, *, prompts: list[str], **how: Any) -> Path:
    """Record what *model* sees with *prompts*: 64 × 64 pixels, float32, guided, but for what *how* says; *trajectories*."""
    usual: dict[str, Any] = {"negative_prompt": "", "guidance_scale": GUIDANCE, "height": 64, "width": 64, "seed": 9}
    usual |= {"precision": "float32", "device": "cpu", "prompt_chunks": 1}
    denoiser = model.family.denoiser
    assert denoiser.with_rows
    record_trajectories(
        text_encoders=text_encoders_of(model),
        denoiser=model.weights[denoiser.name],
        schedule=schedule,
        embeddings=model.embeddings,
        builds=model.builds,
        states=model.states,
        added=denoiser.added,
        with_rows=denoiser.with_rows,
        conditioning=model.family.conditioning,
        latents=model.family.latents,
        prompts=prompts,
        trajectories=trajectories,
        **usual | how,
    )
    return trajectories


def draw_picture(model: TinyModel, picture: Picture, directory: Path, *, canvas: Sequence[Path] = ()) -> Path:
    """Draw the reference: `image.png`, `trajectory.npy`, `settings.json` and `activations.json` in *directory*."""
    family = model.family
    encoder, _ = family.autoencoder
    draw_reference(
        text_encoders=text_encoders_of(model),
        denoiser=model.weights[family.denoiser.name],
        decoder=model.weights[family.of_role(DECODER).name],
        embeddings=model.embeddings,
        picture=picture,
        builds=model.builds,
        states=model.states,
        pipeline=family.process.pipelines[" ".join(CANVAS[: len(canvas)])],
        conditioning=family.conditioning,
        image=directory / "image.png",
        trajectory=directory / "trajectory.npy",
        settings=directory / "settings.json",
        activations=directory / "activations.json",
        canvas=canvas,
        encoder=[model.weights[encoder.name]] if canvas else [],
    )
    return directory


def calibrate(
    component: Component,
    graphs: Sequence[Path],
    directory: Path,
    archives: Sequence[Path],
    *,
    samples: int = 8,
    selection: str = "coverage",
    guidance_scale: float = GUIDANCE,
) -> Path:
    """Pack samples of `trajectories.npz` in *directory* into *archives*; the record, which it gives, beside the first."""
    said = archives[0].with_name(f"{component.name}.json")
    calibrate_denoiser(
        graphs,
        [tensors_of(graph) for graph in graphs],
        directory / "trajectories.npz",
        directory / "schedule.npz",
        component=component.name,
        guidance_scale=guidance_scale,
        samples=samples,
        selection=selection,
        archives=archives,
        record=said,
    )
    return said


def observe(graphs: Sequence[Path], directory: Path, record: Path, *, guidance_scale: float = GUIDANCE) -> Observed:
    """Ranges of *graphs* on the samples of *record*, which `calibrate` gave; `ranges.npz` beside it."""
    ranges = record.with_name("ranges.npz")
    observe_denoiser(
        graphs,
        [tensors_of(graph) for graph in graphs],
        directory / "trajectories.npz",
        directory / "schedule.npz",
        record,
        guidance_scale=guidance_scale,
        ranges=ranges,
    )
    return read_observed(ranges)


def ranges_hold(
    model: TinyModel,
    graphs: Sequence[Path],
    directory: Path,
    record: Path,
    *,
    trajectory: Path,
    picture: Picture,
    prompts: list[str],
    canvas: Sequence[Path] = (),
) -> dict[str, Any]:
    """How the ranges of *record*'s samples hold for *picture*, as `held_out.json` beside it says.

    Args:
        graphs: of text encoders.
        directory: has `schedule.npz` and `trajectories.npz`.
        trajectory: the reference's.
    """
    denoiser, encoder = model.family.denoiser, model.family.of_role(ENCODER)
    assert denoiser.with_rows
    texts = tuple(part for part in model.drawn.parts if part.role == TEXT)
    of_canvas: dict[str, Any] = {
        "canvas": canvas,
        "encoder_weights": [model.weights[encoder.name]],
        "encoder_build": encoder.build,
        "latents": model.family.latents,
    }
    held_out = record.with_name("held_out.json")
    check_calibration(
        graphs=graphs,
        tensors=[tensors_of(graph) for graph in graphs],
        denoiser=model.weights[denoiser.name],
        component=denoiser.name,
        schedule=directory / "schedule.npz",
        embeddings=model.embeddings,
        trajectory=trajectory,
        trajectories=directory / "trajectories.npz",
        record=record,
        picture=picture,
        prompts=prompts,
        drawn=replace(model.drawn, parts=texts),
        build=denoiser.build,
        with_rows=denoiser.with_rows,
        precision="float32",
        device="cpu",
        held_out=held_out,
        added=denoiser.added,
        added_weights=[model.weights[denoiser.name]] if denoiser.added else [],
        **of_canvas if canvas else {},
    )
    return json.loads(held_out.read_text())


def emulate(
    component: Component, graph: Path, archive: Path, directory: Path, *, number: int = 0, precision: str = "U16"
) -> Path:
    """Compile a component's graph *number* with the emulator; the model, in *directory*, with its record beside it."""
    made = {"axmodel": directory / f"{graph.stem}.axmodel", "record": directory / f"{graph.stem}.json"}
    compile_model(
        graph,
        tensors_of(graph),
        archive,
        component=graph.stem,
        role=component.role,
        config=config_of(component, number, precision=precision),
        compiler=compiler("emulator"),
        launch=LAUNCH | {"toolchain": "emulator"},
        **made,
    )
    return made["axmodel"]


def attribute(
    model: TinyModel,
    models: Mapping[str, Sequence[Path]],
    graphs: Mapping[str, Sequence[Path]],
    place: Path,
    *,
    picture: Picture,
    schedule: Path,
    reference: Path,
    trajectory: Path,
    simulated: Path,
    distance: Path,
    canvas: Sequence[Path] = (),
) -> dict[str, Any]:
    """What each of *models* costs; `parts.json`, `float.png` and `attribution.json` in *place*, the last of which it gives.

    Args:
        models, graphs: by component.
        schedule, reference, trajectory, simulated, distance, canvas: as the steps have them.
    """
    before, names = model.drawn.before_denoiser(canvas=bool(canvas)), model.family.names
    floats = [path for name in names for path in graphs[name]]
    of: dict[str, Any] = {
        "graphs": floats,
        "tensors": [tensors_of(graph) for graph in floats],
        "encoder_weights": model.weights[model.family.of_role(ENCODER).name],
        "trajectory": trajectory,
        "drawn": model.drawn,
        "latents": model.family.latents,
        "canvas": canvas,
        "parts": place / "parts.json",
        "float_image": place / "float.png",
    }
    draw_parts(
        models=[path for name in names if name in before for path in models[name]],
        schedule=schedule,
        embeddings=model.embeddings,
        picture=picture,
        **of,
    )
    attribute_error(
        models=[path for name in names for path in models[name]],
        reference=reference,
        simulated=simulated,
        distance=distance,
        attribution=place / "attribution.json",
        **of,
    )
    return json.loads((place / "attribution.json").read_text())
