"""OpenAI's image interface: https://platform.openai.com/docs/api-reference/images."""

from __future__ import annotations

import asyncio
import base64
import functools
import time
from dataclasses import replace
from typing import Any

from PIL import ImageChops
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..bundle import Bundle
from ..errors import BundleError
from ..resizing import Over, over
from .asking import check_drawable, drawn, image_scale_of, seeds, size_of, strength_of, told
from .engine import DONE, Engine
from .errors import Refused
from .guards import PICTURES
from .loaded import Order
from .values import MOST_COUNT, MOST_SCALE, Given, Words, picture, wrong

#: Parameters of OpenAI's own models -> the values that ask for nothing, or for what all pictures here are
FIXED = {
    "quality": ("auto", "standard"),
    "style": (),
    "background": ("auto", "opaque"),
    "moderation": ("auto", "low"),
    "output_format": ("png",),
    "stream": (False, "false"),
    "input_fidelity": ("low",),
}
IGNORED = ("user", "safety_identifier")  # which say who asks
MOST_PICTURES = 1


class OpenAI:
    """The handlers."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`."""
        entries = [self._model(bundle) for bundle in self.engine.names.all.values()]
        return JSONResponse({"object": "list", "data": entries})

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/{name}`."""
        return JSONResponse(self._model(self._named(request.path_params["name"])))

    async def generations(self, request: Request) -> Response:
        """`POST /v1/images/generations`."""
        try:
            values = await request.json()
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise Refused(400, "the body is not an object in JSON.", code="invalid_json")
        return await self._draw(request, Given(values), None)

    async def edits(self, request: Request) -> Response:
        """`POST /v1/images/edits`."""
        async with request.form(max_files=4, max_fields=40) as form:
            pictures = [value for name in ("image", "image[]") for value in form.getlist(name)]
            values: dict[str, Any] = {name: value for name, value in form.items() if not isinstance(value, UploadFile)}
            if len(pictures) != MOST_PICTURES or not isinstance(pictures[0], UploadFile):
                raise wrong("image", Words(f"{len(pictures)} pictures"), "one file")
            content, mask = await pictures[0].read(), form.get("mask")
            cover = await mask.read() if isinstance(mask, UploadFile) else None
        given = Given({name: value for name, value in values.items() if name not in ("image", "image[]", "mask")})
        bundle = self._asked_for(given)
        return await self._draw(request, given, await asyncio.to_thread(_over, content, cover, bundle))

    async def _draw(self, request: Request, given: Given, drawn_over: Over | None) -> Response:
        order = self._order(given, drawn_over)
        form = given.one_of("response_format", ("b64_json", "url"), "b64_json")
        if rest := given.rest():
            raise Refused(
                400, f"unknown parameters: {', '.join(rest)[:300]}.", code="unknown_parameter", parameter=rest[0][:100]
            )
        job = await drawn(self.engine, order, request)
        if job.state != DONE:  # 400, since clients repeat what fails with others
            raise Refused(400, "the drawing was interrupted on this server.", code="interrupted")
        entries = []
        for result, seed in zip(job.results, seeds(job.results)):
            where = {"url": f"{request.base_url}{PICTURES.lstrip('/')}{result.name}.png"}
            text = {"b64_json": base64.b64encode(result.png).decode()}
            entries.append({**(where if form == "url" else text), "seed": seed})
        bundle = self.engine.names.all[order.bundle]
        content = {"created": int(time.time()), "output_format": "png", "size": size_of(bundle), "data": entries}
        return JSONResponse({**content, "axbake": told(self.engine, job)})

    def _order(self, given: Given, drawn_over: Over | None) -> Order:
        names = self.engine.names
        bundle = self._asked_for(given)
        name, own = bundle.manifest["model"], bundle.picture
        prompt = given.text("prompt")
        if not prompt:
            raise Refused(400, "prompt: nothing; wanted a text.", code="missing_parameter", parameter="prompt")
        for parameter, known in FIXED.items():
            if (value := given.get(parameter)) is not None and value not in known:
                wanted = " or ".join(map(str, known)) or "none"
                raise wrong(parameter, value, f"{wanted}: the models of this server have no other")
        if given.get("partial_images") not in (None, 0, "0"):
            raise wrong("partial_images", given.get("partial_images"), "none: this server does not stream")
        if given.get("output_compression") not in (None, 100, "100"):
            raise wrong("output_compression", given.get("output_compression"), "none: PNG loses nothing")
        for parameter in IGNORED:
            given.get(parameter)
        steps = given.whole("steps", own.steps, least=1, most=10_000)
        if steps not in names.steps[name]:
            raise wrong(
                "steps", steps, f"one of {', '.join(map(str, names.steps[name]))}, for which {name} has schedules"
            )
        scale = given.number("guidance_scale", own.guidance_scale, least=1, most=MOST_SCALE)
        if names.guidance_fixed[name] and scale != own.guidance_scale:
            raise wrong("guidance_scale", Words(f"{scale:g}"), f"{own.guidance_scale:g}, with which {name} was baked")
        usual = strength_of(bundle, drawn_over)
        strength = None if usual is None else given.number("strength", usual, least=0, most=1)
        asked = replace(
            own,
            prompt=prompt,
            negative_prompt=given.text("negative_prompt", own.negative_prompt),
            steps=steps,
            guidance_scale=scale,
            seed=given.seed(),
            strength=strength,
            image_guidance_scale=image_scale_of(bundle, given, "image_guidance_scale"),
        )
        check_drawable(bundle, asked, drawn_over)
        return Order(name, asked, given.whole("n", 1, least=1, most=MOST_COUNT), drawn_over)

    def _asked_for(self, given: Given) -> Bundle:
        """The model of that name, or the first of that size."""
        name, size = given.get("model"), given.get("size")
        bundles = self.engine.names.all
        if name not in (None, ""):
            bundle = self._named(name)
            if size not in (None, "auto", size_of(bundle)):
                raise wrong(
                    "size", size, f"{size_of(bundle)}, for which {name} was compiled; others: {_sizes(bundles)}"
                )
            return bundle
        if size in (None, "auto"):
            return self.engine.names.first
        for bundle in bundles.values():
            if size_of(bundle) == size:
                return bundle
        raise wrong("size", size, f"one that a model was compiled for: {_sizes(bundles)}")

    def _named(self, name: Any) -> Bundle:
        bundle = self.engine.names.all.get(name) if isinstance(name, str) else None
        if bundle is None:
            known = ", ".join(self.engine.names.all)
            raise Refused(
                404, f"model {str(name)[:100]!r}; wanted one of {known}.", code="model_not_found", parameter="model"
            )
        return bundle

    def _model(self, bundle: Bundle) -> dict[str, Any]:
        name = bundle.manifest["model"]
        return {
            "id": name,
            "object": "model",
            "created": int((bundle.folder / "manifest.json").stat().st_mtime),
            "owned_by": "axbake",
            "axbake": {
                "size": size_of(bundle),
                "steps": self.engine.names.steps[name],
                "emulated": bundle.manifest["emulated"],
            },
        }


def _sizes(bundles: dict[str, Bundle]) -> str:
    return ", ".join(f"{size_of(bundle)} ({name})" for name, bundle in bundles.items())


def _over(content: bytes, cover: bytes | None, bundle: Bundle) -> Over:
    """A picture and its mask, which is to be painted where it is transparent."""
    place = functools.partial(over, picture("image", content), width=bundle.picture.width, height=bundle.picture.height)
    if cover is None:
        return place()
    mask = ImageChops.invert(picture("mask", cover).getchannel("A"))
    try:
        return place(mask=mask)
    except BundleError as error:
        raise Refused(400, f"mask: {error}", code="invalid_mask", parameter="mask") from None
