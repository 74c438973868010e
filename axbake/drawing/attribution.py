"""Which component's quantisation costs what: drawings with one compiled model among float graphs.

The denoiser's takes the longest, and the simulation has drawn with it, if not with it alone: its latent is used, and what else
was quantised on the way to it is named. So no drawing here depends on how denoiser and VAE decoder are compiled.
"""

import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from axbake.distance import psnr, ssim
from axbake.drawing.canvas import canvas_of
from axbake.drawing.parts import Drawn, added_of
from axbake.drawing.prompts import load_tokenizer
from axbake.drawing.simulation import latents_of
from axbake.networks.component import DECODER, DENOISER
from axbake.runtime.added import AddedEmbedding
from axbake.runtime.producer import EMULATOR, producer
from axbake.runtime.sampler import EACH_STEP, Schedule, load_schedule
from axbake.runtime.session import open_models
from axbake.runtime.txt2img import decode_latent
from axbake.runtime.values import Latents, Picture

logger = logging.getLogger(__name__)
NONE, ALL = "none", "all"
FIRST = 3  # steps that are drawn with float graphs alone; multistep schedulers are of their full order then


def draw_parts(
    *,
    models: Sequence[Path],
    graphs: Sequence[Path],
    tensors: Sequence[Path],
    encoder_weights: Path,
    schedule: Path,
    embeddings: Path,
    trajectory: Path,
    picture: Picture,
    drawn: Drawn,
    latents: Latents,
    parts: Path,
    float_image: Path,
    added_weights: Sequence[Path] = (),
    added: Callable[[Path], AddedEmbedding] | None = None,
    canvas: Sequence[Path] = (),
) -> None:
    """Draw the reference's picture with the compiled model of each component that runs before the denoiser.

    The float latent is the reference's last, and the float picture is what the decoder's ONNX graph makes of it. With none
    compiled, the error is all that comes before quantisation: export, sampler and runtime against diffusers. That takes no whole
    drawing: the first `FIRST` steps are compared.

    Args:
        models: compiled ones that ONNX Runtime runs, of the components whose results the denoiser takes.
        graphs, tensors: the float graphs of all components in the order of *drawn*, and the files of their weights beside them.
        encoder_weights: of the VAE encoder, which say the latents' scale.
        added_weights, added: as `axbake.drawing.simulation.simulate` has them.
        embeddings: `embeddings.json`.
        canvas: picture and mask, as `axbake.drawing.reference.draw_reference` has them.
        trajectory: `reference/trajectory.npy`.
        parts: JSON to write: by what is quantised, PSNR of the last latent in dB, PSNR of the picture in dB, and SSIM; with none,
            PSNR of the latent after so many `steps`.
        float_image: PNG to write: the float picture.
    """
    scaled, added_embedding = latents_of(latents, encoder_weights), added_of(added, added_weights)
    over = canvas_of(canvas, height=picture.height, width=picture.width)
    before = drawn.before_denoiser(canvas=bool(canvas))
    floating, compiled = drawn.files(graphs), drawn.models(models, before)
    steps, tokenizer, wanted = load_schedule(schedule), load_tokenizer(embeddings), np.load(trajectory)
    decode = functools.partial(decode_latent, latents=scaled)
    float_picture = decode(open_models(floating[drawn.of_role(DECODER)]), wanted[-1])
    Image.fromarray(float_picture).save(float_image)

    def draw(what: str, files: Mapping[str, Sequence[Path]], schedule: Schedule) -> np.ndarray:
        logger.info("drawing parts: %d steps with %s compiled", len(schedule.timesteps), what)
        given: dict[str, Any] = {"latents": scaled, "added": added_embedding, "canvas": over}
        return drawn.draw_latents(files, tokenizer, schedule, picture, **given)[-1]

    count = min(FIRST, len(steps.timesteps))
    begun = round(psnr(wanted[count - 1], draw(NONE, floating, _first(steps, count))), 2)
    found: dict[str, dict[str, Any]] = {NONE: {"latent_psnr_db": begun, "steps": count}}
    for component in before:
        latent = draw(component, {**floating, component: compiled[component]}, steps)
        image = decode(open_models(floating[drawn.of_role(DECODER)]), latent)
        found[component] = _distance(float_picture, image, round(psnr(wanted[-1], latent), 2))
    parts.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def attribute_error(
    *,
    models: Sequence[Path],
    graphs: Sequence[Path],
    tensors: Sequence[Path],
    encoder_weights: Path,
    reference: Path,
    trajectory: Path,
    simulated: Path,
    distance: Path,
    parts: Path,
    float_image: Path,
    drawn: Drawn,
    latents: Latents,
    attribution: Path,
    canvas: Sequence[Path] = (),
) -> None:
    """Measure what each component's quantisation costs the float picture.

    No drawing is needed for the VAE decoder, which alone makes a picture of the reference's latent. Nor for the denoiser: its
    picture is what the float decoder makes of the simulation's latent, and its entry names `with` what the denoiser's inputs came
    from. With none compiled, the float picture is compared with the reference; with all, the figures are those of
    `axbake.drawing.simulation`.

    Args:
        models: compiled ones that ONNX Runtime runs, of all components in the order of *drawn*.
        graphs, tensors, encoder_weights, canvas: as `draw_parts` has them.
        reference, trajectory: the reference's picture and latents.
        simulated: `simulation/trajectory.npy`.
        distance: `simulation/distance.json`.
        parts, float_image: of `draw_parts`.
        attribution: JSON to write: by what is quantised, PSNR of the last latent in dB, null where that is the reference's own,
            PSNR of the picture in dB, and SSIM; of the denoiser `with`, names of components.
    """
    scaled = latents_of(latents, encoder_weights)
    compiled, floating = drawn.models(models), drawn.files(graphs)
    latent, last = np.load(trajectory)[-1], np.load(simulated)[-1]
    decoder, denoiser = drawn.of_role(DECODER), drawn.of_role(DENOISER)
    decode = functools.partial(decode_latent, latents=scaled)
    wanted = np.asarray(Image.open(float_image))
    of_denoiser = _distance(wanted, decode(open_models(floating[decoder]), last), round(psnr(latent, last), 2))
    of_decoder = _distance(wanted, decode(open_models(compiled[decoder]), latent), None)
    before = json.loads(parts.read_text(encoding="utf-8"))
    all_compiled = json.loads(distance.read_text(encoding="utf-8"))
    begun, drawn_by_torch = before.pop(NONE), np.asarray(Image.open(reference).convert("RGB"))
    found = {NONE: _distance(drawn_by_torch, wanted, None) | begun, decoder: of_decoder, **before}
    found[denoiser] = of_denoiser | {"with": drawn.before_denoiser(canvas=bool(canvas))}
    found[ALL] = {name: all_compiled[name] for name in of_decoder}
    content = {
        "emulated": producer(compiled[denoiser][0]) == EMULATOR,
        "compared": "one compiled model among float ONNX graphs, through ONNX Runtime on the host, against the float picture",
        "quantised": found,
    }
    attribution.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _first(schedule: Schedule, count: int) -> Schedule:
    """The first *count* steps of *schedule*."""
    terms = [
        0,
        *range(1, 1 + count),
        *(np.arange(count) + 1 + len(schedule.timesteps)),
    ]  # initial latent, outputs, noises
    return replace(
        schedule,
        **{name: getattr(schedule, name)[:count] for name in EACH_STEP},
        guided=None if schedule.guided is None else schedule.guided[:count],
        coefficients=schedule.coefficients[:count, terms],
        late_coefficients=np.empty(0),
    )


def _distance(wanted: np.ndarray, image: np.ndarray, latent_psnr: float | None) -> dict[str, Any]:
    return {
        "latent_psnr_db": latent_psnr,
        "image_psnr_db": round(psnr(wanted, image, peak=255), 2),
        "image_ssim": round(ssim(wanted, image), 4),
    }
