"""The cheapest recipe of a denoiser within a budget: found by what was measured of its layers, checked on the quantised whole."""

import json
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from axbake.distance import psnr, ssim
from axbake.drawing.canvas import canvas_of
from axbake.drawing.parts import Drawn, added_of
from axbake.drawing.prompts import load_tokenizer
from axbake.drawing.simulation import latents_of
from axbake.emulator.build import build
from axbake.networks.component import DECODER, DENOISER
from axbake.quality.assignment import FLOAT, NARROW, WIDE, Model
from axbake.quality.recipe import Recipe, config_with, recipe_of, write_recipe
from axbake.quality.records import read_model
from axbake.quality.search import Point, cured, path, point, within
from axbake.runtime.added import AddedEmbedding
from axbake.runtime.sampler import load_schedule
from axbake.runtime.session import open_models
from axbake.runtime.txt2img import decode_latent, save_png
from axbake.runtime.values import Latents, Picture

logger = logging.getLogger(__name__)
ROUNDS = 4  # of the search: each checks a recipe on the whole, and the next has half the noise to add
POINTS = 40  # of the curve, at most


def find_recipe(
    *,
    graphs: Sequence[Path],
    tensors: Sequence[Path],
    archives: Sequence[Path],
    sensitivity: Path,
    encoder_weights: Path,
    schedule: Path,
    embeddings: Path,
    trajectory: Path,
    picture: Picture,
    drawn: Drawn,
    latents: Latents,
    addresses: list[str],
    configs: list[dict[str, Any]],
    quality: float,
    recipe: Path,
    trade: Path,
    wide_image: Path,
    recipe_image: Path,
    narrow_image: Path,
    added_weights: Sequence[Path] = (),
    added: Callable[[Path], AddedEmbedding] | None = None,
    canvas: Sequence[Path] = (),
) -> None:
    """Find the recipe with the most multiplications in 8 bits whose drawing loses at most *quality* dB.

    The forecast of roundings may grow by *quality* dB over what the S8 weights alone cost, so that the recipe holds for prompts
    whose values leave no range, too. Then the emulator compiles the whole and draws the reference's picture; where the last
    latent or the picture is more than *quality* dB worse than with all layers in 16 bits, the search is repeated with half the
    noise.

    Args:
        graphs, tensors: float graphs of all components in *drawn*, and the files of their weights beside them. All but the
            denoiser draw as they are.
        archives: calibration of the denoiser's graphs.
        sensitivity: `calibration/{component}.sensitivity.json`.
        encoder_weights: of the VAE encoder, which say the latents' scale.
        addresses, configs: of the denoiser's graphs: Pulsar2's, with all layers in 16 bits.
        trajectory: `reference/trajectory.npy`.
        recipe: YAML to write (`axbake.quality.recipe`).
        trade: JSON to write: points with all layers in 16 bits, of the recipe, and all in 8 bits, each with its share of
            multiplications in 8 bits, its conversions, what was forecast and what was drawn; and the forecast curve between them.
        wide_image, recipe_image, narrow_image: PNGs to write, of the three.
        canvas, added_weights, added: as `axbake.drawing.simulation.simulate` has them.
    """
    model, files, denoiser = read_model(sensitivity), drawn.files(graphs), drawn.of_role(DENOISER)
    scaled, last = latents_of(latents, encoder_weights), np.load(trajectory)[-1]
    wanted = decode_latent(open_models(files[drawn.of_role(DECODER)]), last, latents=scaled)
    added_embedding = added_of(added, added_weights)

    def draw(chosen: Recipe, image: Path) -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=trade.parent) as place:
            compiled = emulate_recipe(Path(place), files[denoiser], archives, configs, addresses, chosen)
            made, latent = drawn.draw(
                {**files, denoiser: compiled},
                load_tokenizer(embeddings),
                load_schedule(schedule),
                picture,
                latents=scaled,
                added=added_embedding,
                canvas=canvas_of(canvas, height=picture.height, width=picture.width),
            )
        save_png(image, made, picture.parameters(), emulated=True)
        found = {
            "latent_psnr_db": round(psnr(last, latent[-1]), 2),
            "image_psnr_db": round(psnr(wanted, made, peak=255), 2),
            "image_ssim": round(ssim(wanted, made), 4),
        }
        logger.info("latent %(latent_psnr_db)s dB, picture %(image_psnr_db)s dB, SSIM %(image_ssim)s", found)
        return found

    wide, narrow = (point(model, [kind] * len(model.layers)) for kind in (WIDE, NARROW))
    logger.info("drawing with all layers in 16 bits")
    in_wide = draw(recipe_of(model.layers, wide.types), wide_image)
    anchor = model.signal * 10 ** (-in_wide["latent_psnr_db"] / 10) - wide.noise
    allowed, tried = model.least * (10 ** (quality / 10) - 1), []
    for number in range(ROUNDS):
        begun = cured(model, model.least + allowed)
        found = point(model, within(model, begun, max(model.least + allowed, model.noise(begun))))
        logger.info(
            "drawing with recipe %d: %.1f %% of the multiplications in 8 bits, %d layers in float32",
            *(number + 1, 100 * found.narrow_share, found.types.count(FLOAT)),
        )
        in_recipe = draw(recipe_of(model.layers, found.types), recipe_image)
        tried.append(_said(model, found, anchor, in_recipe))
        loss = max(in_wide[name] - in_recipe[name] for name in ("latent_psnr_db", "image_psnr_db"))
        if loss <= quality:
            break
        allowed /= 2
    logger.info("drawing with all layers in 8 bits")
    in_narrow = draw(recipe_of(model.layers, narrow.types), narrow_image)
    content = {
        "component": denoiser,
        "emulated": True,
        "compared": "the denoiser alone quantised, by the emulator, all else in float; against the reference drawn in float",
        "prompt": picture.prompt,
        "quality_db": quality,
        "lost_db": round(loss, 2),
        "within": loss <= quality,
        "points": {
            WIDE: _said(model, wide, anchor, in_wide),
            "recipe": tried[-1],
            NARROW: _said(model, narrow, anchor, in_narrow),
        },
        "tried": tried[:-1],
        "curve": list(_curve(model, begun, anchor)),
        "float32": [
            {"names": list(layer.names), "operator": layer.operator, "peak": _peak(model, number)}
            for number, (layer, kind) in enumerate(zip(model.layers, found.types, strict=True))
            if kind == FLOAT
        ],
    }
    if loss > quality:
        logger.warning("%s: the recipe loses %.2f dB, more than the %g dB of quality", denoiser, loss, quality)
    trade.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    comment = (
        f"Recipe of precision for the {denoiser}, found by axbake for quality {quality:g} dB; layers not named compute in U16.\n"
        f"{100 * found.narrow_share:.1f} % of the multiplications in 8 bits, {found.types.count(FLOAT)} layers in float32."
    )
    write_recipe(recipe, recipe_of(model.layers, found.types), comment)


def emulate_recipe(
    place: Path,
    graphs: Sequence[Path],
    archives: Sequence[Path],
    configs: Sequence[Mapping[str, Any]],
    addresses: Sequence[str],
    recipe: Recipe,
) -> list[Path]:
    """The denoiser's graphs, compiled by the emulator in *place* with the layers' types of *recipe*.

    Args:
        graphs, archives, configs, addresses: by graph: the ONNX file, its calibration, Pulsar2's config, its address.
    """
    made = []
    for graph, archive, config, address in zip(graphs, archives, configs, addresses, strict=True):
        given = [entry | {"calibration_dataset": str(archive)} for entry in config["quant"]["input_configs"]]
        whole = config_with({**config, "quant": {**config["quant"], "input_configs": given}}, recipe, address)
        settings, axmodel = place / f"{graph.stem}.json", place / f"{graph.stem}.axmodel"
        settings.write_text(json.dumps(whole), encoding="utf-8")
        build(settings, {"input": str(graph), "output_dir": str(place), "output_name": axmodel.name})
        made.append(axmodel)
    return made


def _said(model: Model, found: Point, anchor: float, drawing: Mapping[str, float]) -> dict[str, Any]:
    return {
        "narrow_share": round(found.narrow_share, 4),
        "conversions": found.conversions,
        "layers": {kind: found.types.count(kind) for kind in (NARROW, WIDE, FLOAT)},
        "rounding_db": round(found.sqnr_db, 2),
        "forecast_db": _forecast(model, found.noise, anchor),
    } | dict(drawing)


def _forecast(model: Model, noise: float, anchor: float) -> float:
    """PSNR of the last latent in dB, by a noise of roundings and what else the whole in 16 bits has: clipping, above all."""
    return round(model.sqnr(noise + max(anchor, 0.0)), 2)


def _curve(model: Model, begun: list[str], anchor: float) -> list[dict[str, float]]:
    """The forecast from *begun* on, while one layer after the other goes to 8 bits."""
    types = list(begun)
    steps = [(model.narrow_share(types), model.noise(types))]
    every, done = sum(layer.multiplications for layer in model.layers), steps[0][0]
    for layer, noise in path(model, types):
        done += model.layers[layer].multiplications / every
        steps.append((done, noise))
    places = np.unique(np.linspace(0, len(steps) - 1, POINTS).round().astype(int))
    return [
        {"narrow_share": round(steps[at][0], 4), "forecast_db": _forecast(model, steps[at][1], anchor)} for at in places
    ]


def _peak(model: Model, layer: int) -> float:
    """The largest share of peak and median among the tensors that a layer makes or reads."""
    return max((model.tensors[place].peak for place in model.around([layer])), default=0.0)
