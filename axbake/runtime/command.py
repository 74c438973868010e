"""The programs `txt2img.py` and `img2img.py` of a bundle."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .bundle import Bundle, read_bundle
from .canvas import paint, read_canvas
from .card_chain import card_counts
from .errors import BundleError
from .img2img import read_picture, redraw, upright_picture
from .masking import redraw_masked
from .model import Session
from .prompt import MOST
from .reading import shown
from .resizing import grey_mask
from .resizing import over as over_part
from .session import RUNTIMES
from .timings import picture_timings, timings
from .txt2img import Drawing, Models, draw, embed_prompts, prompts_of, save_png
from .values import CANVAS, Picture

logger = logging.getLogger(__name__)
STRENGTH = 0.75  # what AUTOMATIC1111's web UI comes with
HELP = {
    "image": "picture to draw on; its middle part is scaled to the models' size",
    "mask": "PNG of the picture's size, white where to paint",
}
ROLES = {"txt2img": ("text", "denoiser", "decoder"), "img2img": ("text", "denoiser", "encoder", "decoder")}


def run(program: str, folder: Path, arguments: Sequence[str] | None = None) -> int:
    """Run *program*, txt2img or img2img, with the bundle in *folder*; its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    started = time.perf_counter()
    try:
        bundle = read_bundle(folder)
        if program == "img2img" and bundle.canvas:
            raise BundleError(
                "img2img.py: the models of this bundle draw on a picture in their own way. Use txt2img.py with "
                f"{' and '.join(f'--{name}' for name, _ in zip(CANVAS, bundle.canvas))}."
            )
        _draw_all(program, bundle, _parse(program, bundle, arguments), started)
    except (BundleError, OSError) as error:
        logger.error("%s: %s", type(error).__name__, shown(error, 4000))
        return 1
    return 0


def _parse(program: str, bundle: Bundle, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options; what it leaves out is the bundle's."""
    picture = bundle.picture
    parser = argparse.ArgumentParser(
        f"{program}.py",
        description="Draw pictures with the models of this bundle.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    if program == "img2img":
        add("picture", type=Path, help="input picture; its middle part is scaled to the models' size")
        add("--mask", type=Path, help="picture of the input's size, white where to draw; the rest stays as it is")
        add("--strength", type=float, default=STRENGTH, help="share of the steps to draw, 0 to 1")
    for name, file in zip(CANVAS, bundle.canvas):
        add(f"--{name}", type=Path, default=bundle.folder / file, help=HELP[name])
    if len(bundle.canvas) == len(CANVAS):
        add("--strength", type=float, default=1.0, help="share of the steps to draw, 0 to 1; 1 begins with noise alone")
    add("--prompt", default=picture.prompt, help="as in AUTOMATIC1111's web UI")
    add("--negative-prompt", default=picture.negative_prompt, help="the same")
    add("--seed", type=int, default=picture.seed, help="seed of the first picture")
    add("--count", type=int, default=1, help="number of pictures; each has the next seed")
    add("--guidance-scale", type=float, default=picture.guidance_scale, help="1 means no guidance")
    if picture.image_guidance_scale is not None:
        usual = picture.image_guidance_scale
        add("--image-guidance-scale", type=float, default=usual, help="how closely to follow the input picture, from 1")
    add("--steps", type=int, default=picture.steps, help="steps of the scheduler")
    add(
        "--output",
        type=Path,
        default=Path("image.png"),
        help="PNG file; with several pictures, the seed is added before the extension",
    )
    add("--runtime", choices=RUNTIMES, default="auto", help="program that runs the models")
    add("--device", type=int, default=0, help="number of the card, for axcl")
    add("--threads", type=int, default=0, help="threads of onnxruntime; 0 means one per core")
    add("--timings", type=Path, help="JSON file for all measured times")
    given = parser.parse_args(arguments)
    least = [given.count, given.guidance_scale, vars(given).get("image_guidance_scale", 1)]
    if min(least) < 1 or given.output.suffix.lower() != ".png":
        parser.error("wanted --count and guidance scales of 1 or more, and an --output that ends in .png")
    if max(len(given.prompt), len(given.negative_prompt)) > MOST:
        parser.error(f"wanted prompts of {MOST} characters at most")
    return given


def _draw_all(program: str, bundle: Bundle, given: argparse.Namespace, started: float) -> None:
    """Load the models, draw every picture that is asked for, and write the timings."""
    name, emulated = bundle.manifest["model"], bundle.manifest["emulated"]
    asked = replace(
        bundle.picture,
        prompt=given.prompt,
        negative_prompt=given.negative_prompt,
        guidance_scale=given.guidance_scale,
        steps=given.steps,
        strength=vars(given).get("strength"),
        image_guidance_scale=vars(given).get("image_guidance_scale"),
    )
    draw_one = _drawing(bundle, asked, given)
    read_seconds = _read_prompts(bundle, asked, given)
    models, load_seconds = _load(program, bundle, given)
    load_seconds = {name: seconds + read_seconds.get(name, 0.0) for name, seconds in load_seconds.items()}
    provider = models.denoiser.provider
    logger.info("%s: loaded in %.1f s, runs on %s", name, sum(load_seconds.values()), provider)
    if emulated:
        logger.info("The models are EMULATED: they run on this host, and the times say nothing about a board.")
    pictures = []
    for seed in range(given.seed, given.seed + given.count):
        picture = replace(asked, seed=seed)
        drawing = draw_one(models, picture)
        path = given.output if given.count == 1 else given.output.with_name(f"{given.output.stem}-{seed}.png")
        _save(path, drawing, picture, emulated=emulated)
        times = picture_timings(drawing)
        pictures.append({"seed": seed, "file": path.name, **times})
        for said in drawing.warnings if seed == given.seed else ():
            logger.warning("prompt: %s", said)
        logger.info("%s: %.2f s, %.2f s per step", path, times["total_seconds"], _mean(drawing.step_seconds))
    if given.timings:
        content = timings(
            program=program,
            model=name,
            emulated=emulated,
            height=asked.height,
            width=asked.width,
            scheduler=asked.scheduler,
            steps=asked.steps,
            guidance_scale=asked.guidance_scale,
            device=given.device,
            provider=provider,
            load_seconds=load_seconds,
            card=card_counts(models.denoiser),
            pictures=pictures,
            total_seconds=time.perf_counter() - started,
        )
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        _write(given.timings, lambda beside: beside.write_text(text, encoding="utf-8"))


def _read_prompts(bundle: Bundle, asked: Picture, given: argparse.Namespace) -> dict[str, float]:
    """Have a text encoder that the card runs in layers read what is new of the prompts, before other models come to the card.

    Nothing is then loaded twice on a card that cannot hold the encoder beside the denoiser. Drawing finds the prompts remembered;
    where the bundle's folder cannot be written, it has them read again.

    Returns:
        Name of the encoder -> seconds that it took, loading included; empty if there is no such encoder.
    """
    remembered = bundle.remembered()
    in_layers = [name for name in bundle.of_role("text") if bundle.components[name].in_layers]
    if not remembered or not in_layers:
        return {}
    started = time.perf_counter()
    how: dict[str, Any] = {"runtime": given.runtime, "device": given.device, "threads": given.threads}
    embed_prompts(
        [bundle.open(name, **how)[0] for name in bundle.of_role("text")],
        bundle.tokenizer(),
        prompts_of(asked, bundle.schedule(asked.steps)),
        chunks=asked.prompt_chunks,
        conditioning=bundle.conditioning,
        remembered=remembered,
    )
    return {in_layers[0]: time.perf_counter() - started}


def _load(program: str, bundle: Bundle, given: argparse.Namespace) -> tuple[Models, dict[str, float]]:
    """The models that *program* needs, and how many seconds loading each component took."""
    sessions: dict[str, list[Session]] = {}  # by role
    seconds = {}
    for role in ROLES["img2img" if bundle.canvas else program]:
        sessions[role] = []
        for component in bundle.of_role(role):
            session, seconds[component] = bundle.open(
                component, runtime=given.runtime, device=given.device, threads=given.threads
            )
            sessions[role].append(session)
    (denoiser,), (decoder,) = sessions["denoiser"], sessions["decoder"]
    (encoder,) = sessions.get("encoder", [None])
    return Models(tuple(sessions["text"]), denoiser, decoder, encoder, bundle.added(), bundle.remembered()), seconds


def _drawing(bundle: Bundle, asked: Picture, given: argparse.Namespace) -> Callable[[Models, Picture], Drawing]:
    """A function that draws one picture; all that it needs besides is loaded here.

    Args:
        asked: the pictures, but for their seeds.
        given: with the picture to draw over, of image to image, or the one to draw on and, for inpainting, its mask.
    """
    schedule, tokenizer = bundle.schedule(asked.steps), bundle.tokenizer()
    if schedule.guidance_embedded and asked.guidance_scale != bundle.picture.guidance_scale:
        raise BundleError(
            f"--guidance-scale {asked.guidance_scale:g}: this model's schedule has the fixed value "
            f"{bundle.picture.guidance_scale:g}."
        )
    latents, conditioning = bundle.latents, bundle.conditioning
    if bundle.canvas:
        files = [vars(given)[name] for name, _ in zip(CANVAS, bundle.canvas)]
        canvas = read_canvas(*files, height=asked.height, width=asked.width)
        return lambda models, picture: paint(
            canvas, models, tokenizer, schedule, picture, latents=latents, conditioning=conditioning
        )
    over = vars(given).get("picture")
    if over is None:
        return lambda models, picture: draw(
            models, tokenizer, schedule, picture, latents=latents, conditioning=conditioning
        )
    if given.mask is not None:
        kind = bundle.manifest["settings"]["prediction_type"]
        mask = grey_mask(upright_picture(given.mask))
        part = over_part(upright_picture(over), mask, height=asked.height, width=asked.width)
        white = part.mask
        assert white is not None
        return lambda models, picture: redraw_masked(
            part.pixels,
            white,
            models,
            tokenizer,
            schedule,
            picture,
            latents=latents,
            conditioning=conditioning,
            prediction_type=kind,
        )
    pixels = read_picture(over, height=asked.height, width=asked.width)
    return lambda models, picture: redraw(
        pixels, models, tokenizer, schedule, picture, latents=latents, conditioning=conditioning
    )


def _save(path: Path, drawing: Drawing, picture: Picture, *, emulated: bool) -> None:
    _write(path, lambda beside: save_png(beside, drawing.image, picture.parameters(), emulated=emulated))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Have *write* make *path*, beside it first, so that no half-written file has its name."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(beside)
        beside.replace(path)
    finally:
        if beside.exists():
            beside.unlink()


def _mean(seconds: Sequence[float]) -> float:
    return sum(seconds) / len(seconds) if seconds else 0.0
