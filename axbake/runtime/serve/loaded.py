"""A bundle whose models are in memory, and how it draws an order."""

from __future__ import annotations

import gc
import io
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..axcl import find_library, open_card
from ..bundle import Bundle
from ..canvas import WHITE, Canvas, paint
from ..card_chain import CardSession
from ..errors import BundleError
from ..img2img import redraw
from ..masking import redraw_masked
from ..model import Postponed, Session
from ..predictions import Predictions, predictions_of
from ..resizing import Over
from ..sampler import LATENT, Schedule
from ..session import EMULATOR, producer
from ..timings import DIGITS, picture_timings
from ..tokenizer import ClipTokenizer
from ..txt2img import Drawing, Models, draw, save_png
from ..values import Picture
from .preview import Preview

HOST_SHARE = 2  # times its file's size that ONNX Runtime takes for a model

#: (latent that is being drawn, as it will be when it is finished) -> nothing; raises to end the drawing
Watch = Callable[["np.ndarray | None"], None]


@dataclass(frozen=True)
class Order:
    """What a client wants drawn."""

    bundle: str  # name
    picture: Picture  # with the first picture's seed
    count: int = 1  # each has the seed after the one before it
    over: Over | None = None  # image to image
    notes: tuple[str, ...] = ()  # what of the request was changed or had no effect


@dataclass(frozen=True)
class Result:
    """A picture that was drawn."""

    png: bytes = field(repr=False)
    picture: Picture
    timings: dict[str, Any]
    warnings: tuple[str, ...]
    name: str = field(default_factory=lambda: secrets.token_urlsafe(24))  # which nobody can guess


class Watched(Session):
    """A denoiser that says before each run, and after it, how far the drawing is."""

    def __init__(self, denoiser: Session, watch: Watch, predictions: Predictions, guidance_scale: float) -> None:
        super().__init__(
            denoiser.name, denoiser.inputs, denoiser.outputs, None, denoiser.provider, component=denoiser.component
        )
        self.seconds = denoiser.seconds
        self._denoiser, self._watch = denoiser, watch
        self._predictions, self._guidance_scale, self._run = predictions, guidance_scale, 0

    def run_all(self, feeds: Sequence[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """The outputs for each of *feeds*, which are the branches of guidance of one step."""
        made = self._denoiser.run_all(feeds)
        first, *others = (next(iter(outputs.values())) for outputs in made)
        guided = others[0] + np.float32(self._guidance_scale) * (first - others[0]) if others else first
        taken = feeds[0][LATENT][:, : guided.shape[1]]  # without what a denoiser takes beside the latent
        self._watch(self._predictions.finished(taken, guided, self._run))
        self._run += 1
        return made


class LoadedBundle:
    """A bundle's models, loaded; of its VAE encoder only once somebody draws over a picture."""

    def __init__(self, bundle: Bundle, *, runtime: str, device: int, threads: int) -> None:
        started = time.perf_counter()
        self.bundle = bundle
        self._how = {"runtime": runtime, "device": device, "threads": threads}
        texts = tuple(self._open(name) for name in bundle.of_role("text"))
        denoiser, decoder = (self._open(*bundle.of_role(role)) for role in ("denoiser", "decoder"))
        encoder = self._open(*bundle.of_role("encoder")) if bundle.canvas else None
        self.models = Models(texts, denoiser, decoder, encoder, bundle.added(), bundle.remembered())
        self.tokenizer: ClipTokenizer = bundle.tokenizer()
        self.preview = Preview(bundle.latents.channels, bundle.latents.factor)
        self.load_seconds = time.perf_counter() - started
        self._schedules: dict[int, Schedule] = {}

    def _open(self, component: str) -> Session:
        session, _ = self.bundle.open(component, **self._how)  # type: ignore[arg-type]
        return session

    def schedule(self, steps: int) -> Schedule:
        """The bundle's schedule of *steps* steps."""
        if steps not in self._schedules:
            self._schedules[steps] = self.bundle.schedule(steps)
        return self._schedules[steps]

    def leave(self) -> None:
        """Give the memory of all its models back."""
        for session in self.models.sessions:
            if isinstance(session, Postponed):
                session.release()
            elif isinstance(session, CardSession):
                session.leave()
        del self.models
        gc.collect()

    def draw(self, order: Order, number: int, watch: Watch) -> Result:
        """Picture *number* of *order*, from 0.

        Raises:
            BundleError: the bundle cannot draw it.
        """
        picture = replace(order.picture, seed=order.picture.seed + number)
        if order.over is not None and self.models.encoder is None:
            self.models = replace(self.models, encoder=self._open(*self.bundle.of_role("encoder")))
        schedule = self.schedule(picture.steps)
        drawn = _late(schedule, picture)
        predictions = predictions_of(drawn, self.bundle.manifest["settings"]["prediction_type"])
        scale = picture.guidance_scale
        watch(None)
        models = replace(self.models, denoiser=Watched(self.models.denoiser, watch, predictions, scale))
        drawing = self._drawing(models, schedule, picture, order.over)
        self.preview.learn(drawing.latents[-1], drawing.image)
        image = order.over.paste.apply(drawing.image) if order.over and order.over.paste else drawing.image
        said = replace(picture, height=image.shape[0], width=image.shape[1]).parameters()
        started = time.perf_counter()
        file = io.BytesIO()
        save_png(file, image, said, emulated=self.bundle.manifest["emulated"])
        png = file.getvalue()
        timings = {**picture_timings(drawing), "png_seconds": round(time.perf_counter() - started, DIGITS)}
        return Result(png, picture, timings, drawing.warnings)

    def _drawing(self, models: Models, schedule: Schedule, picture: Picture, over: Over | None) -> Drawing:
        bundle = self.bundle
        how: dict[str, Any] = {"latents": bundle.latents, "conditioning": bundle.conditioning}
        if over is None:
            return draw(models, self.tokenizer, schedule, picture, **how)
        if bundle.canvas:
            canvas = Canvas(over.pixels, None if over.mask is None else over.mask >= WHITE)
            return paint(canvas, models, self.tokenizer, schedule, picture, **how)
        if over.mask is None:
            return redraw(over.pixels, models, self.tokenizer, schedule, picture, **how)
        kind = bundle.manifest["settings"]["prediction_type"]
        return redraw_masked(
            over.pixels,
            over.mask,
            models,
            self.tokenizer,
            schedule,
            picture,
            **how,
            prediction_type=kind,
            fill=over.fill,
        )


def _late(schedule: Schedule, picture: Picture) -> Schedule:
    """The steps of *schedule* that are drawn."""
    steps = len(schedule.timesteps)
    return schedule.beginning_at(steps - drawn_steps(steps, picture.strength))


def drawn_steps(steps: int, strength: float | None) -> int:
    """How many of *steps* steps image to image of that strength draws, as `beginning_late` counts them; all without one."""
    return steps if strength is None else min(int(steps * strength), steps)


def needed_bytes(bundle: Bundle, *, runtime: str, device: int) -> tuple[int, int | None]:
    """What a bundle's models take of the memory that they go into, and how much of it there is; None: it is not known.

    Text encoders that are loaded for a new prompt alone do not count. Of a card, this is its own memory; of models that the host
    runs, its own, of which they may have half.
    """
    stay = [one for one in bundle.components.values() if not one.host and not one.in_layers]
    files = [bundle.folder / file for one in stay for file in one.files]
    emulated = any(producer(file) == EMULATOR or file.suffix != ".axmodel" for file in files)
    if not emulated and runtime in ("auto", "axcl") and find_library():
        card = open_card(device)
        return sum(card.usage(file) for file in files), card.total
    size = sum(file.stat().st_size for file in files)
    if not emulated:
        return size, None
    return HOST_SHARE * size, _host_memory() // 2


def _host_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Names:
    """The bundles of a server, by name."""

    def __init__(self, bundles: Sequence[Bundle]) -> None:
        """
        Raises:
            BundleError: two have the same name.
        """
        self.all = {bundle.manifest["model"]: bundle for bundle in bundles}
        if len(self.all) < len(bundles):
            names = [bundle.manifest["model"] for bundle in bundles]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise BundleError(f"two bundles are called {', '.join(twice)}; wanted names that differ. Leave one out.")
        self.steps = {name: _steps(bundle) for name, bundle in self.all.items()}
        self.guidance_fixed = {
            name: bundle.schedule(bundle.picture.steps).guidance_embedded for name, bundle in self.all.items()
        }
        self.emulated = any(bundle.manifest["emulated"] for bundle in self.all.values())

    @property
    def first(self) -> Bundle:
        """The one that counts where a client names none."""
        return next(iter(self.all.values()))


def _steps(bundle: Bundle) -> list[int]:
    """Numbers of steps that *bundle* has schedules for."""
    found = (bundle.folder / "schedules").glob(f"{bundle.picture.scheduler}-*.npz")
    others = (path.stem.rpartition("-")[2] for path in found)
    return sorted({bundle.picture.steps, *(int(steps) for steps in others if steps.isdecimal())})
