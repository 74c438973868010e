"""AUTOMATIC1111's interface, `/sdapi/v1/…`: github AUTOMATIC1111/stable-diffusion-webui, `modules/api/`.

Its clients send every value, and defaults that no compiled model has (512 × 512, Euler a). So what a compiled model fixes is
rounded to what it has: answers say the values that were used, and `info` has a note for each that was changed. What would give
another kind of picture is refused.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from dataclasses import replace
from typing import Any

from PIL import ImageOps
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..bundle import Bundle
from ..errors import BundleError
from ..resizing import MODES, Over, grey_mask, over, resized
from ..values import SAMPLERS
from .asking import check_drawable, drawn, image_scale_of, seeds, strength_of, told
from .engine import Engine, Job
from .errors import Refused
from .loaded import Order
from .values import MOST_COUNT, MOST_SCALE, Given, Words, picture, wrong

MOST_SIDE = 1 << 20  # pixels, of what is only rounded
#: `inpainting_fill`, by number: what the masked part begins with
FILLS = ("colours", "original", "noise", "nothing")
#: Values that give another kind of picture -> those that ask for nothing
REFUSED: dict[str, tuple[Any, ...]] = {
    "enable_hr": (False,),
    "restore_faces": (False,),
    "tiling": (False,),
    "subseed_strength": (0,),
    "seed_resize_from_h": (0, -1),
    "seed_resize_from_w": (0, -1),
    "styles": ([],),
    "script_name": ("",),
    "alwayson_scripts": ({},),
    "refiner_checkpoint": ("",),
    "save_images": (False,),
    "s_churn": (0,),
    "s_tmin": (0,),
    "initial_noise_multiplier": (1,),
    "include_init_images": (False,),
}
#: Values that have no effect here, and none in the web UI where those above ask for nothing
IDLE = (
    *("hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y", "hr_checkpoint_name"),
    *("hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt", "firstphase_width", "firstphase_height"),
    *("subseed", "script_args", "do_not_save_samples", "do_not_save_grid", "override_settings_restore_afterwards"),
    *("refiner_switch_at", "force_task_id", "infotext", "comments", "disable_extra_networks", "s_tmax", "latent_mask"),
    *("mask_round", "resize_mode", "mask_blur", "mask_blur_x", "mask_blur_y", "image_cfg_scale"),
)


class A1111:
    """The handlers."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._chosen = engine.names.first.manifest["model"]  # the option `sd_model_checkpoint`

    async def txt2img(self, request: Request) -> Response:
        """`POST /sdapi/v1/txt2img`."""
        values = await _object(request)
        given = Given(values)
        given.get("denoising_strength")  # of the second pass, which is refused
        return await self._draw(request, values, given, self._bundle(given), None, [])

    async def img2img(self, request: Request) -> Response:
        """`POST /sdapi/v1/img2img`."""
        values = await _object(request)
        given, notes = Given(values), list[str]()
        bundle = self._bundle(given)
        pictures = given.get("init_images")
        if not isinstance(pictures, list) or len(pictures) != 1:
            found = Words(f"{len(pictures)} pictures") if isinstance(pictures, list) else pictures
            raise wrong("init_images", found, "a list of one picture in base64")
        drawn_over = await asyncio.to_thread(_over, pictures[0], given, bundle, notes)
        return await self._draw(request, values, given, bundle, drawn_over, notes)

    async def progress(self, request: Request) -> Response:
        """`GET /sdapi/v1/progress`, of the first picture that is drawn."""
        now = self.engine.drawing()
        job = now[0] if now else None
        state: dict[str, Any] = dict.fromkeys(("skipped", "interrupted", "stopping_generation"), False)
        state |= {"job": "", "job_count": 0, "job_timestamp": "0", "job_no": 0, "sampling_step": 0, "sampling_steps": 0}
        content = {"progress": 0.0, "eta_relative": 0.0, "state": state, "current_image": None, "textinfo": None}
        if job is None:
            return JSONResponse(content)
        state["interrupted"] = job.stop.is_set()
        state |= {"job": f"{job.order.bundle}, picture {job.number + 1} of {job.order.count}"}
        state |= {"job_count": job.order.count + self.engine.waiting, "job_no": job.number}
        state |= {"job_timestamp": _stamp(job), "sampling_step": job.step, "sampling_steps": job.steps}
        content["progress"] = share = job.progress
        spent = time.monotonic() - job.started
        content["eta_relative"] = spent * (1 - share) / share if share else 0.0
        content["textinfo"] = "Loading the models" if job.loading else None
        if job.preview and request.query_params.get("skip_current_image", "false").lower() != "true":
            content["current_image"] = base64.b64encode(job.preview).decode()
        return JSONResponse(content)

    async def interrupt(self, request: Request) -> Response:
        """`POST /sdapi/v1/interrupt`: of what is drawn, not of what waits."""
        for job in self.engine.drawing():
            self.engine.interrupt(job)
        return JSONResponse({})

    async def models(self, request: Request) -> Response:
        """`GET /sdapi/v1/sd-models`."""
        return JSONResponse([_model(bundle) for bundle in self.engine.names.all.values()])

    async def samplers(self, request: Request) -> Response:
        """`GET /sdapi/v1/samplers`: those that the bundles' schedules have."""
        schedulers = dict.fromkeys(bundle.picture.scheduler for bundle in self.engine.names.all.values())
        return JSONResponse([{"name": SAMPLERS[one], "aliases": [one], "options": {}} for one in schedulers])

    async def schedulers(self, request: Request) -> Response:
        """`GET /sdapi/v1/schedulers`: a bundle's sampler has its own."""
        name = {
            "name": "automatic",
            "label": "Automatic",
            "aliases": None,
            "default_rho": -1.0,
            "need_inner_model": False,
        }
        return JSONResponse([name])

    async def options(self, request: Request) -> Response:
        """`GET /sdapi/v1/options`: the one that can be set, and those that clients read."""
        bundle = self.engine.names.all[self._chosen]
        options = {
            "sd_model_checkpoint": _model(bundle)["title"],
            "sd_checkpoint_hash": _digest(bundle),
            "CLIP_stop_at_last_layers": bundle.picture.clip_skip,
            "samples_format": "png",
            "live_previews_enable": bool(self.engine.preview_every),
            "show_progress_every_n_steps": self.engine.preview_every,
        }
        return JSONResponse(options)

    async def set_options(self, request: Request) -> Response:
        """`POST /sdapi/v1/options`."""
        values = await _object(request)
        if others := sorted(set(values) - {"sd_model_checkpoint"}):
            raise Refused(
                400, f"options {', '.join(others)[:300]}; wanted sd_model_checkpoint alone.", code="unknown_option"
            )
        if "sd_model_checkpoint" in values:
            self._chosen = self._named(values["sd_model_checkpoint"]).manifest["model"]
        return JSONResponse(None)

    async def nothing(self, request: Request) -> Response:
        """Lists of what this server has none of."""
        return JSONResponse({"txt2img": [], "img2img": []} if request.url.path.endswith("/scripts") else [])

    async def _draw(
        self,
        request: Request,
        values: dict[str, Any],
        given: Given,
        bundle: Bundle,
        drawn_over: Over | None,
        notes: list[str],
    ) -> Response:
        order = self._order(given, bundle, drawn_over, notes)
        send = given.flag("send_images", True)
        job = await drawn(self.engine, order, request)
        used = _used(order)
        left_out = dict.fromkeys(name for name in ("init_images", "mask") if name in values)
        return JSONResponse(
            {
                "images": [base64.b64encode(result.png).decode() for result in job.results] if send else [],
                "parameters": {**values, **left_out, **used},
                "info": json.dumps(self._info(job, used), ensure_ascii=False),
            }
        )

    def _order(self, given: Given, bundle: Bundle, drawn_over: Over | None, notes: list[str]) -> Order:
        names, own = self.engine.names, bundle.picture
        name = bundle.manifest["model"]
        for parameter, known in REFUSED.items():
            if (value := given.get(parameter)) is not None and value not in known:
                raise wrong(parameter, value, f"{known[0]!r}: this server has no such feature")
        for parameter in IDLE:
            given.get(parameter)

        def rounded(parameter: str, found: Any, used: Any) -> None:
            if found is not None and found != used:
                notes.append(f"{parameter}: {str(found)[:100]} became {used}, which {name} was compiled for")

        for parameter, used in (("width", own.width), ("height", own.height)):
            rounded(parameter, given.whole(parameter, used, least=1, most=MOST_SIDE), used)
        sampler = SAMPLERS[own.scheduler]
        asked_for = given.get("sampler_name"), given.get("sampler_index")
        asked = next((one for one in asked_for if one not in (None, own.scheduler)), None)
        rounded("sampler_name", asked, sampler)
        if (scheduler := given.get("scheduler")) not in (None, "automatic", "Automatic"):
            notes.append(f"scheduler: {str(scheduler)[:100]} had no effect; the sampler has its own")
        steps = given.whole("steps", own.steps, least=1, most=10_000)
        nearest = min(names.steps[name], key=lambda known: (abs(known - steps), -known))
        if steps != nearest:
            notes.append(f"steps: {steps} became {nearest}, the nearest that {name} has a schedule for")
        scale = given.number("cfg_scale", own.guidance_scale, least=1, most=MOST_SCALE)
        if names.guidance_fixed[name]:
            rounded("cfg_scale", scale, own.guidance_scale)
            scale = own.guidance_scale
        for parameter, idle in (("eta", (0, 1)), ("s_noise", (1,))):
            if (value := given.get(parameter)) not in (None, *idle):
                notes.append(f"{parameter}: {str(value)[:100]} had no effect; the bundle's schedule has it written in")
        count = given.whole("batch_size", 1, least=1, most=MOST_COUNT) * given.whole(
            "n_iter", 1, least=1, most=MOST_COUNT
        )
        if count > MOST_COUNT:
            raise wrong("batch_size × n_iter", count, f"{MOST_COUNT} at most")
        usual = strength_of(bundle, drawn_over)
        strength = None if usual is None else given.number("denoising_strength", usual, least=0, most=1)
        picture = replace(
            own,
            prompt=given.text("prompt"),
            negative_prompt=given.text("negative_prompt"),
            steps=nearest,
            guidance_scale=scale,
            seed=given.seed(),
            strength=strength,
            image_guidance_scale=image_scale_of(bundle, given, "image_cfg_scale"),
        )
        check_drawable(bundle, picture, drawn_over)
        given.get("send_images")
        notes += [f"{parameter[:100]}: had no effect; this server does not know it" for parameter in given.rest()]
        return Order(name, picture, count, drawn_over, tuple(notes))

    def _bundle(self, given: Given) -> Bundle:
        settings = given.get("override_settings") or {}
        if not isinstance(settings, dict) or set(settings) - {"sd_model_checkpoint"}:
            raise wrong("override_settings", settings, "sd_model_checkpoint alone")
        name = settings.get("sd_model_checkpoint") or given.get("sd_model_checkpoint") or self._chosen
        return self._named(name)

    def _named(self, name: Any) -> Bundle:
        """The bundle of a name, with the checkpoint's hash behind it or not."""
        for bundle in self.engine.names.all.values():
            if name in (bundle.manifest["model"], _model(bundle)["title"]):
                return bundle
        known = ", ".join(self.engine.names.all)
        raise Refused(400, f"sd_model_checkpoint: {str(name)[:100]!r}; wanted one of {known}.", code="unknown_model")

    def _info(self, job: Job, used: dict[str, Any]) -> dict[str, Any]:
        bundle, count = self.engine.names.all[job.order.bundle], len(job.results)
        texts = [result.picture.parameters() for result in job.results]
        return {
            **used,
            "all_prompts": [used["prompt"]] * count,
            "all_negative_prompts": [used["negative_prompt"]] * count,
            "all_seeds": seeds(job.results),
            "subseed": -1,
            "all_subseeds": [-1] * count,
            "subseed_strength": 0,
            "seed_resize_from_w": -1,
            "seed_resize_from_h": -1,
            "restore_faces": False,
            "face_restoration_model": None,
            "sd_model_name": job.order.bundle,
            "sd_model_hash": _digest(bundle)[:10],
            "sd_vae_name": None,
            "sd_vae_hash": None,
            "extra_generation_params": {},
            "index_of_first_image": 0,
            "infotexts": texts,
            "styles": [],
            "job_timestamp": _stamp(job),
            "clip_skip": bundle.picture.clip_skip,
            "is_using_inpainting_conditioning": bool(bundle.canvas),
            "version": f"axbake {bundle.manifest.get('axbake', '')}",
            "axbake": told(self.engine, job),
        }


def _used(order: Order) -> dict[str, Any]:
    """The values that a picture was drawn with, under the web UI's names."""
    picture = order.picture
    return {
        "prompt": picture.prompt,
        "negative_prompt": picture.negative_prompt,
        "seed": picture.seed,
        "width": picture.width,
        "height": picture.height,
        "sampler_name": SAMPLERS[picture.scheduler],
        "cfg_scale": picture.guidance_scale,
        "steps": picture.steps,
        "batch_size": order.count,
        "denoising_strength": picture.strength,
    }


async def _object(request: Request) -> dict[str, Any]:
    """The body's JSON, which is an object."""
    try:
        values = await request.json()
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise Refused(400, "the body is not an object in JSON.", code="invalid_json")
    return values


def _over(content: Any, given: Given, bundle: Bundle, notes: list[str]) -> Over:
    """What is drawn over, with what the web UI's fields say of it."""
    number = given.whole("resize_mode", 0, least=0, most=3)
    if number >= len(MODES):
        raise wrong("resize_mode", number, "0, 1 or 2: this server does not scale latents")
    found = picture("init_images", content)
    given.get("mask")
    cover = given.get("mask")
    width, height = bundle.picture.width, bundle.picture.height
    if cover in (None, ""):
        for name in ("inpainting_fill", "inpaint_full_res", "inpaint_full_res_padding", "inpainting_mask_invert"):
            given.get(name)
        return over(found, mode=MODES[number], width=width, height=height)
    mask = grey_mask(picture("mask", cover))
    if mask.size != found.size:
        notes.append(
            f"mask: stretched from {mask.width}x{mask.height} to the picture's {found.width}x{found.height} pixels"
        )
        mask = resized(mask, "stretch", width=found.width, height=found.height)
    if given.whole("inpainting_mask_invert", 0, least=0, most=1):
        mask = ImageOps.invert(mask)
    fill = FILLS[given.whole("inpainting_fill", 0, least=0, most=len(FILLS) - 1)]
    try:
        return over(
            found,
            mask,
            mode=MODES[number],
            blur=0 if bundle.canvas else given.whole("mask_blur", 4, least=0, most=64),
            fill=fill,
            part=given.flag("inpaint_full_res", True),
            padding=given.whole("inpaint_full_res_padding", 0, least=0, most=10_000),
            width=width,
            height=height,
        )
    except BundleError as error:
        raise Refused(400, f"mask: {error}", code="invalid_mask", parameter="mask") from None


def _model(bundle: Bundle) -> dict[str, Any]:
    name, digest = bundle.manifest["model"], _digest(bundle)
    return {
        "title": f"{name} [{digest[:10]}]",
        "model_name": name,
        "hash": digest[:10],
        "sha256": digest,
        "filename": name,  # no path of this machine
        "config": None,
    }


def _digest(bundle: Bundle) -> str:
    """SHA-256 of the checkpoint."""
    return str(bundle.manifest.get("checkpoint", {}).get("sha256", ""))


def _stamp(job: Job) -> str:
    return time.strftime("%Y%m%d%H%M%S", time.localtime(job.created))
