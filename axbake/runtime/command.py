"""The two programs of a bundle, `txt2img.py` and `img2img.py`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .bundle import Bundle, read_bundle
from .errors import BundleError
from .img2img import read_picture, redraw
from .session import RUNTIMES
from .timings import picture_timings, timings
from .txt2img import SAMPLERS, Drawing, Models, draw, png_parameters, save_png

logger = logging.getLogger(__name__)
STRENGTH = 0.75  # what AUTOMATIC1111's web UI comes with
COMPONENTS = {
    "txt2img": ("text_encoder", "unet", "vae_decoder"),
    "img2img": ("text_encoder", "unet", "vae_encoder", "vae_decoder"),
}


def run(program: str, folder: Path, arguments: Sequence[str] | None = None) -> int:
    """Run *program*, txt2img or img2img, with the bundle in *folder*; its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    started = time.perf_counter()
    try:
        bundle = read_bundle(folder)
        _draw_all(program, bundle, _parse(program, bundle.settings, arguments), started)
    except (BundleError, OSError) as error:
        logger.error("%s: %s", type(error).__name__, error)
        return 1
    return 0


def _parse(program: str, settings: dict[str, Any], arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options; what it leaves out is the bundle's."""
    parser = argparse.ArgumentParser(
        f"{program}.py",
        description="Draw pictures with the models of this bundle.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    if program == "img2img":
        add("picture", type=Path, help="picture to draw over; its middle part is scaled to the models' size")
        add("--strength", type=float, default=STRENGTH, help="share of the steps that are drawn, 0 to 1")
    add("--prompt", default=settings["prompt"], help="as in AUTOMATIC1111's web UI")
    add("--negative-prompt", default=settings["negative_prompt"], help="the same")
    add("--seed", type=int, default=settings["seed"], help="of the first picture")
    add("--count", type=int, default=1, help="pictures; each has the next seed")
    add("--guidance-scale", type=float, default=settings["guidance_scale"], help="1 is without guidance")
    add("--steps", type=int, default=settings["steps"], help="of the scheduler")
    add("--output", type=Path, default=Path("image.png"), help="PNG; of several, the seed comes before the ending")
    add("--runtime", choices=RUNTIMES, default="auto", help="what runs the models")
    add("--device", type=int, default=0, help="number of the card, of axcl")
    add("--threads", type=int, default=0, help="of onnxruntime; 0 is one a core")
    add("--timings", type=Path, help="JSON file to write: how long everything took")
    given = parser.parse_args(arguments)
    if given.count < 1 or given.guidance_scale < 1 or given.output.suffix.lower() != ".png":
        parser.error("wanted --count and --guidance-scale of 1 or more, and an --output that ends in .png")
    return given


def _draw_all(program: str, bundle: Bundle, given: argparse.Namespace, started: float) -> None:
    """Load the models, draw every picture that is asked for, and write the timings."""
    name, emulated = bundle.manifest["model"], bundle.manifest["emulated"]
    draw_one = _drawing(program, bundle, given)
    opened = {
        component: bundle.open(component, runtime=given.runtime, device=given.device, threads=given.threads)
        for component in COMPONENTS[program]
    }
    models = Models(**{component: session for component, (session, _) in opened.items()})
    load_seconds = {component: seconds for component, (_, seconds) in opened.items()}
    logger.info("%s: loaded in %.1f s, run by %s", name, sum(load_seconds.values()), models.unet.provider)
    if emulated:
        logger.info("The models are EMULATED: this host draws, and how long it takes says nothing of a board.")
    pictures = []
    for seed in range(given.seed, given.seed + given.count):
        drawing = draw_one(models, seed)
        path = given.output if given.count == 1 else given.output.with_name(f"{given.output.stem}-{seed}.png")
        _save(path, drawing, _parameters(bundle, given, seed))
        times = picture_timings(drawing)
        pictures.append({"seed": seed, "file": path.name, **times})
        for said in drawing.warnings if seed == given.seed else ():
            logger.warning("prompt: %s", said)
        logger.info("%s: %.2f s, %.2f s a step", path, times["total_seconds"], _mean(drawing.step_seconds))
    if given.timings:
        content = timings(
            program=program,
            model=name,
            emulated=emulated,
            **{setting: bundle.settings[setting] for setting in ("height", "width", "scheduler")},
            steps=given.steps,
            guidance_scale=given.guidance_scale,
            device=given.device,
            provider=models.unet.provider,
            load_seconds=load_seconds,
            pictures=pictures,
            total_seconds=time.perf_counter() - started,
        )
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        _write(given.timings, lambda beside: beside.write_text(text, encoding="utf-8"))


def _drawing(program: str, bundle: Bundle, given: argparse.Namespace) -> Callable[[Models, int], Drawing]:
    """A function of models and seed that draws one picture; all that it needs besides is loaded here."""
    schedule, tokenizer, settings = bundle.schedule(given.steps), bundle.tokenizer(), bundle.settings
    if schedule.guidance_embedded and given.guidance_scale != settings["guidance_scale"]:
        raise BundleError(
            f"--guidance-scale {given.guidance_scale:g}: this model's is in its schedule, and is {settings['guidance_scale']:g}."
        )
    size = {"height": settings["height"], "width": settings["width"]}
    same = {
        "prompt": given.prompt,
        "negative_prompt": given.negative_prompt,
        "guidance_scale": given.guidance_scale,
        "scaling_factor": settings["scaling_factor"],
    }
    if program == "txt2img":
        return lambda models, seed: draw(models, tokenizer, schedule, seed=seed, **size, **same)
    picture = read_picture(given.picture, **size)
    return lambda models, seed: redraw(picture, models, tokenizer, schedule, strength=given.strength, seed=seed, **same)


def _parameters(bundle: Bundle, given: argparse.Namespace, seed: int) -> str:
    settings = bundle.settings
    return png_parameters(
        prompt=given.prompt,
        negative_prompt=given.negative_prompt,
        steps=given.steps,
        sampler=SAMPLERS[settings["scheduler"]],
        guidance_scale=given.guidance_scale,
        seed=seed,
        height=settings["height"],
        width=settings["width"],
        model=bundle.manifest["model"],
        clip_skip=settings["clip_skip"],
        strength=vars(given).get("strength"),
    )


def _save(path: Path, drawing: Drawing, parameters: str) -> None:
    _write(path, lambda beside: save_png(beside, drawing.image, parameters))


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
