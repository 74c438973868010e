"""The page, its own interface, and the health address."""

from __future__ import annotations

import asyncio
import base64
import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..bundle import Bundle
from ..errors import BundleError
from ..resizing import MODES, Over, grey_mask, over
from ..values import SAMPLERS
from .asking import check_drawable, size_of, strength_of, submitted
from .engine import OVER, WAITING, Engine, Job
from .errors import Refused
from .loaded import Order
from .values import MOST_COUNT, MOST_SCALE, Given, Words, picture, wrong

PAGE = Path(__file__).parent / "page"
TYPES = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
FILLS = ("original", "colours", "noise", "nothing")
PNG = "image/png"


class Own:
    """The handlers."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._files = {name: (PAGE / name).read_bytes() for name in TYPES}

    async def page(self, request: Request) -> Response:
        """`GET /` and what the page is made of; its files are read once, and no name of a request is a path."""
        name = request.url.path.lstrip("/") or "index.html"
        return Response(self._files[name], media_type=TYPES[name])

    async def health(self, request: Request) -> Response:
        """`GET /health`: 200 when pictures can be drawn, 503 while the models are loaded."""
        ready = self.engine.ready
        return JSONResponse({"status": "ok" if ready else "loading"}, status_code=200 if ready else 503)

    async def state(self, request: Request) -> Response:
        """`GET /api/state`: models, cards and the queue."""
        engine = self.engine
        cards = []
        for card in engine.cards:
            job = card.job
            what = "drawing" if job else "ready" if card.ready else "loading"
            cards.append(
                {
                    "number": card.number,
                    "provider": card.provider,
                    "what": "loading" if job and job.loading else what,
                    "bundle": job.order.bundle if job else None,
                    "loaded": list(card.loaded),
                    "told": card.told,
                }
            )
        return JSONResponse(
            {
                "emulated": engine.names.emulated,
                "models": [self._model(bundle) for bundle in engine.names.all.values()],
                "cards": cards,
                "waiting": engine.waiting,
                "most_waiting": engine.most_waiting,
            }
        )

    async def draw(self, request: Request) -> Response:
        """`POST /api/draw`: the id of a job, which ends when nobody asks for it for half a minute."""
        try:
            values = await request.json()
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise Refused(400, "the body is not an object in JSON.", code="invalid_json")
        given = Given(values)
        name = given.one_of("model", self.engine.names.all, self.engine.names.first.manifest["model"])
        bundle = self.engine.names.all[name]
        drawn_over = await asyncio.to_thread(_over, given, bundle)
        own = bundle.picture
        steps = given.whole("steps", own.steps, least=1, most=10_000)
        if steps not in self.engine.names.steps[name]:
            raise wrong("steps", steps, f"one of {', '.join(map(str, self.engine.names.steps[name]))}")
        scale = given.number("guidance_scale", own.guidance_scale, least=1, most=MOST_SCALE)
        if self.engine.names.guidance_fixed[name] and scale != own.guidance_scale:
            raise wrong("guidance_scale", Words(f"{scale:g}"), f"{own.guidance_scale:g}, with which {name} was baked")
        usual = strength_of(bundle, drawn_over)
        asked = replace(
            own,
            prompt=given.text("prompt"),
            negative_prompt=given.text("negative_prompt"),
            steps=steps,
            guidance_scale=scale,
            seed=given.seed(),
            strength=None if usual is None else given.number("strength", usual, least=0, most=1),
        )
        check_drawable(bundle, asked, drawn_over)
        count = given.whole("count", 1, least=1, most=MOST_COUNT)
        if rest := given.rest():
            raise Refused(400, f"unknown values: {', '.join(rest)[:300]}.", code="unknown_value")
        job = submitted(self.engine, Order(name, asked, count, drawn_over), leased=True)
        return JSONResponse(self._told(job), status_code=202)

    async def job(self, request: Request) -> Response:
        """`GET /api/jobs/{id}`: how far it is."""
        return JSONResponse(self._told(self._known(request)))

    async def interrupt(self, request: Request) -> Response:
        """`POST /api/jobs/{id}/interrupt`."""
        job = self._known(request)
        self.engine.interrupt(job)
        return JSONResponse(self._told(job))

    async def picture(self, request: Request) -> Response:
        """`GET /pictures/{name}.png`, by a name that the answer to its request gave."""
        result = self.engine.result(request.path_params["name"])
        if result is None:
            raise Refused(404, "no such picture; the server keeps the last ones only.", code="no_such_picture")
        return Response(result.png, media_type=PNG)

    def _known(self, request: Request) -> Job:
        job = self.engine.job(request.path_params["id"])
        if job is None:
            raise Refused(404, "no such drawing; the server has been started again, or forgot it.", code="no_such_job")
        return job

    def _model(self, bundle: Bundle) -> dict[str, Any]:
        own, names = bundle.picture, self.engine.names
        name = bundle.manifest["model"]
        return {
            "name": name,
            "title": bundle.manifest.get("checkpoint", {}).get("title", ""),
            "size": size_of(bundle),
            "width": own.width,
            "height": own.height,
            "sampler": SAMPLERS[own.scheduler],
            "steps": names.steps[name],
            "own_steps": own.steps,
            "guidance_scale": own.guidance_scale,
            "guidance_fixed": names.guidance_fixed[name],
            "prompt": own.prompt,
            "negative_prompt": own.negative_prompt,
            "emulated": bundle.manifest["emulated"],
            "draws_on": len(bundle.canvas),
        }

    def _told(self, job: Job) -> dict[str, Any]:
        waits = job.state == WAITING
        return {
            "id": job.id,
            "state": "loading" if job.loading and not waits else job.state,
            "over": job.state in OVER,
            "ahead": self.engine.ahead(job) if waits else 0,
            "number": job.number,
            "count": job.order.count,
            "step": job.step,
            "steps": job.steps,
            "progress": job.progress,
            "preview": base64.b64encode(job.preview).decode() if job.preview else None,
            "error": job.error,
            "emulated": self.engine.names.all[job.order.bundle].manifest["emulated"],
            "pictures": [
                {
                    "url": f"/pictures/{result.name}.png",
                    "seed": result.picture.seed,
                    "parameters": result.picture.parameters(),
                    "seconds": result.timings["total_seconds"],
                    "step_seconds": result.timings["step_seconds"],
                    "warnings": list(result.warnings),
                }
                for result in job.results
            ],
        }


def _over(given: Given, bundle: Bundle) -> Over | None:
    content, cover = given.get("image"), given.get("mask")
    mode = given.one_of("resize_mode", MODES, "crop")
    fill = given.one_of("fill", FILLS, "original")
    blur = given.whole("blur", 0 if bundle.canvas else 4, least=0, most=64)
    if content in (None, ""):
        return None
    size = bundle.picture
    place = functools.partial(over, picture("image", content), mode=mode, width=size.width, height=size.height)
    if cover in (None, ""):
        return place()
    try:
        return place(mask=grey_mask(picture("mask", cover)), fill=fill, blur=blur)
    except BundleError as error:
        raise Refused(400, f"mask: {error}", code="invalid_mask", parameter="mask") from None
