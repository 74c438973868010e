"""What all interfaces share: checks, waiting while the client is there, and what answers say besides pictures."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request

from ..bundle import Bundle
from ..command import STRENGTH
from ..resizing import Over
from ..values import Picture
from .engine import DONE, FAILED, Engine, Job, QueueFull
from .errors import Refused
from .loaded import Order, Result, drawn_steps
from .values import MOST_SCALE, Given, Words, wrong


def check_drawable(bundle: Bundle, picture: Picture, over: Over | None) -> None:
    """Raise Refused unless *bundle* draws *picture* over that, or over nothing."""
    masked = len(bundle.canvas) == 2
    if bundle.canvas and (over is None or masked != (over.mask is not None)):
        wanted = "a picture and a mask" if masked else "a picture without a mask"
        raise Refused(
            400, f"{picture.model} draws on a picture: wanted {wanted}.", code="picture_wanted", parameter="image"
        )
    if not drawn_steps(picture.steps, picture.strength):
        raise wrong(
            "strength",
            Words(f"{picture.strength:g}"),
            f"at least {1 / picture.steps:g}, which is one of {picture.steps} steps",
        )


def strength_of(bundle: Bundle, over: Over | None) -> float | None:
    """The strength where a client gives none, as the bundle's programs have it."""
    if over is None or len(bundle.canvas) == 1:
        return None
    return 1.0 if bundle.canvas else STRENGTH


def image_scale_of(bundle: Bundle, given: Given, name: str) -> float | None:
    """How closely to follow the picture, as the value called *name* says; None where the model has no such scale."""
    own = bundle.picture.image_guidance_scale
    return None if own is None else given.number(name, own, least=1, most=MOST_SCALE)


async def drawn(engine: Engine, order: Order, request: Request) -> Job:
    """The job of *order* when it is over; it ends at once when the client goes away.

    Raises:
        Refused: there is no room, or it failed.
    """
    job = submitted(engine, order)
    watching: asyncio.Future[Any] = asyncio.ensure_future(_gone(request))
    over: asyncio.Future[Any] = asyncio.wrap_future(job.over)
    try:
        await asyncio.wait([watching, over], return_when=asyncio.FIRST_COMPLETED)
        if not over.done():
            raise Refused(499, "the client closed the connection.", code="client_gone")  # which nobody reads
    finally:
        watching.cancel()
        if not job.over.done():
            engine.interrupt(job)
    if job.state == FAILED:
        raise Refused(500, job.error, code="drawing_failed")
    return job


async def _gone(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def submitted(engine: Engine, order: Order, *, leased: bool = False) -> Job:
    """The job of *order*, in the queue."""
    try:
        return engine.submit(order, leased=leased)
    except QueueFull as full:
        raise Refused(429, str(full), code="queue_full") from None


def told(engine: Engine, job: Job) -> dict[str, Any]:
    """What every interface's answer says of a job besides its pictures."""
    return {
        "model": job.order.bundle,
        "emulated": engine.names.all[job.order.bundle].manifest["emulated"],
        "interrupted": job.state != DONE,
        "notes": list(job.order.notes),
        "warnings": list(dict.fromkeys(said for result in job.results for said in result.warnings)),
        "timings": [result.timings for result in job.results],
    }


def seeds(results: list[Result]) -> list[int]:
    """Of each picture."""
    return [result.picture.seed for result in results]


def size_of(bundle: Bundle) -> str:
    """Width × height, as interfaces write it."""
    return f"{bundle.picture.width}x{bundle.picture.height}"
