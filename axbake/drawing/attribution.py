"""Which component's quantisation costs what: drawings with one compiled model among float graphs.

The denoiser's takes the longest, and the simulation has drawn with it, if not with it alone: its latent is used, and what else
was quantised on the way to it is named.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from axbake.distance import psnr, ssim
from axbake.drawing.canvas import canvas_of
from axbake.drawing.parts import Drawn, added_of
from axbake.drawing.prompts import load_tokenizer
from axbake.drawing.simulation import latents_of
from axbake.networks.component import DECODER, DENOISER, ENCODER
from axbake.runtime.added import AddedEmbedding
from axbake.runtime.producer import EMULATOR, producer
from axbake.runtime.sampler import load_schedule
from axbake.runtime.session import open_models
from axbake.runtime.txt2img import decode_latent
from axbake.runtime.values import Latents, Picture

logger = logging.getLogger(__name__)
NONE, ALL = "none", "all"


def attribute_error(
    *,
    models: Sequence[Path],
    graphs: Sequence[Path],
    tensors: Sequence[Path],
    encoder_weights: Path,
    schedule: Path,
    embeddings: Path,
    trajectory: Path,
    simulated: Path,
    distance: Path,
    picture: Picture,
    drawn: Drawn,
    latents: Latents,
    attribution: Path,
    float_image: Path,
    added_weights: Sequence[Path] = (),
    added: Callable[[Path], AddedEmbedding] | None = None,
    canvas: Sequence[Path] = (),
) -> None:
    """Draw the reference's picture with one compiled model at a time, and with none, and measure each against the float picture.

    The float latent is the reference's last, and the float picture is what the decoder's ONNX graph makes of it; so the VAE
    decoder alone needs no drawing. Nor does the denoiser: its picture is what the float decoder makes of the simulation's latent,
    and its entry names `with` what the denoiser's inputs came from. With all compiled, the figures are those of
    `axbake.drawing.simulation`. With none, it is all that comes before quantisation: export, sampler and runtime against
    diffusers.

    Args:
        models: compiled ones that ONNX Runtime runs, of all components in the order of *drawn*.
        graphs, tensors: their float graphs in the same order, and the files of their weights beside them.
        encoder_weights: of the VAE encoder, which say the latents' scale.
        added_weights, added: as `axbake.drawing.simulation.simulate` has them.
        embeddings: `embeddings.json`.
        canvas: picture and mask, as `axbake.drawing.reference.draw_reference` has them.
        trajectory: `reference/trajectory.npy`.
        simulated: `simulation/trajectory.npy`.
        distance: `simulation/distance.json`.
        attribution: JSON to write: by what is quantised, PSNR of the last latent in dB, null where that is the reference's own,
            PSNR of the picture in dB, and SSIM; of the denoiser `with`, names of components.
        float_image: PNG to write: what the float ONNX graphs draw.
    """
    scaled, added_embedding = latents_of(latents, encoder_weights), added_of(added, added_weights)
    compiled, floating = drawn.models(models), drawn.files(graphs)
    steps, tokenizer, latent = load_schedule(schedule), load_tokenizer(embeddings), np.load(trajectory)[-1]
    decoder, denoiser = drawn.of_role(DECODER), drawn.of_role(DENOISER)
    decode = open_models(floating[decoder])
    wanted = decode_latent(decode, latent, latents=scaled)
    found: dict[str, dict[str, Any]] = {}
    over = canvas_of(canvas, height=picture.height, width=picture.width)
    before = [*drawn.conditioning.encoders, *([drawn.of_role(ENCODER)] if over else [])]
    drawings = [NONE, *before]

    def tell(what: str) -> None:
        logger.info("attributing: %d of %d: %s", drawings.index(what) + 1, len(drawings), what)

    def drawn_with(files: Mapping[str, Sequence[Path]]) -> tuple[np.ndarray, dict[str, Any]]:
        image, latents = drawn.draw(
            files, tokenizer, steps, picture, latents=scaled, added=added_embedding, canvas=over
        )
        return image, _distance(wanted, image, round(psnr(latent, latents[-1]), 2))

    tell(NONE)
    plain, found[NONE] = drawn_with(floating)
    Image.fromarray(plain).save(float_image)
    found[decoder] = _distance(wanted, decode_latent(open_models(compiled[decoder]), latent, latents=scaled), None)
    for component in before:
        tell(component)
        _, found[component] = drawn_with({**floating, component: compiled[component]})
    last = np.load(simulated)[-1]
    ours = _distance(wanted, decode_latent(decode, last, latents=scaled), round(psnr(latent, last), 2))
    found[denoiser] = ours | {"with": before}
    all_compiled = json.loads(distance.read_text(encoding="utf-8"))
    found[ALL] = {name: all_compiled[name] for name in found[NONE]}
    content = {
        "emulated": producer(compiled[denoiser][0]) == EMULATOR,
        "compared": "one compiled model among float ONNX graphs, through ONNX Runtime on the host, against the float picture",
        "quantised": found,
    }
    attribution.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _distance(wanted: np.ndarray, image: np.ndarray, latent_psnr: float | None) -> dict[str, Any]:
    return {
        "latent_psnr_db": latent_psnr,
        "image_psnr_db": round(psnr(wanted, image, peak=255), 2),
        "image_ssim": round(ssim(wanted, image), 4),
    }
