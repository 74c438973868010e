"""Whether what was measured is good enough: one place that compares, so that another threshold measures nothing anew."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from axbake.errors import AxbakeError
from axbake.networks.component import DECODER, DENOISER, ENCODER
from axbake.units import in_words

logger = logging.getLogger(__name__)
GOOD, FAIR, POOR = "good", "fair", "poor"  # what a picture is called


class ParityError(AxbakeError):
    """A graph differs too much from its network."""


class CompiledTooFar(AxbakeError):
    """A compiled model differs too much from its graph."""


def hold_parity(parity: Path, *, min_psnr: float) -> None:
    """Raise ParityError unless a component's graphs are near enough to its network; asked before they are compiled.

    Args:
        parity: `parity/{component}.json`.
        min_psnr: least PSNR of the output, in dB.
    """
    if faults := list(_parity_faults(_read_json(parity), min_psnr)):
        raise ParityError("\n".join(faults))


def judge(
    parities: Sequence[Path],
    checks: Sequence[Path],
    *,
    min_psnr: Mapping[str, float],
    min_sqnr: Mapping[str, float],
    verdict: Path,
) -> None:
    """Compare what was measured of a model with what is wanted, and write both.

    Args:
        parities, checks: `parity/{component}.json` and `check/{component}.json`.
        min_psnr, min_sqnr: by component, in dB: of graphs against their network, of compiled models against their graphs. 20 dB
            of SQNR is an error of a tenth of the signal.
        verdict: JSON to write.

    Raises:
        ParityError, CompiledTooFar: says all that is too far. Nothing is written then.
    """
    measured, compared = [_read_json(path) for path in parities], [_read_json(path) for path in checks]
    faults = [fault for said in measured for fault in _parity_faults(said, min_psnr[said["component"]])]
    if faults:
        raise ParityError("\n".join(faults))
    faults = [fault for said in compared for fault in _compiled_faults(said, min_sqnr[said["component"]])]
    if faults:
        raise CompiledTooFar("\n".join(faults))
    content = {
        "min_psnr_db": {said["component"]: min_psnr[said["component"]] for said in measured},
        "min_sqnr_db": {said["component"]: min_sqnr[said["component"]] for said in compared},
    }
    verdict.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def judge_picture(
    distance: Mapping[str, Any], quantised: Mapping[str, Any], roles: Mapping[str, str], limits: Mapping[str, Any]
) -> dict[str, Any]:
    """What to call the picture that the compiled models draw.

    Args:
        distance: of it from the reference: `image_psnr_db`, `image_ssim`.
        quantised: name of a component -> the same where it alone is quantised, or it and those that it names `with`; `none`:
            where none is, as `simulation/attribution.json` has them.
        roles: of the components.
        limits: config's `picture`.

    Returns:
        `verdict`: good, fair or poor; `why`: a sentence, empty for good; `advice`: what to try, sentences.
    """
    psnr, ssim = distance["image_psnr_db"], distance["image_ssim"]
    good, poor = limits["good"], limits["poor"]
    for verdict, entry, least in ((POOR, POOR, poor), (FAIR, GOOD, good)):
        low = [f"PSNR {psnr} dB, below {least['psnr']:g}"] if psnr < least["psnr"] else []
        low += [f"SSIM {ssim}, below {least['ssim']:g}"] if ssim < least["ssim"] else []
        if low:
            why = f"picture against reference: {' and '.join(low)} (config picture/{entry})"
            return {"verdict": verdict, "why": why, "advice": list(_advice(psnr, quantised, roles))}
    return {"verdict": GOOD, "why": "", "advice": []}


def _advice(psnr: float, quantised: Mapping[str, Any], roles: Mapping[str, str]) -> Iterator[str]:
    """What to try against the distance of a picture."""
    floating = min(quantised["none"][what] for what in ("latent_psnr_db", "image_psnr_db"))
    if floating <= psnr + 3:
        yield f"the float graphs are as far from the reference ({floating} dB): check parity, sampler and steps first"
        return

    def error(name: str) -> float:
        """Of the picture, as a share of the peak's square."""
        return 10 ** (-quantised[name]["image_psnr_db"] / 10)

    def own(name: str) -> float:
        """Errors that are made apart from each other add up."""
        return error(name) - sum(map(error, quantised[name].get("with", ())))

    worst = max((name for name in roles if name in quantised), key=own)
    others = [in_words(name) for name in quantised[worst].get("with", ())]
    only = f"it and the {' and '.join(others)} are" if others else "only it is"
    yield (
        f"the {in_words(worst)} loses most: {quantised[worst]['image_psnr_db']} dB when {only} quantised; use a finer precision "
        f"(precision/{worst})"
    )
    if roles[worst] == DENOISER:
        yield "more calibration samples (calibration/samples), or calibration prompts closer to the row's prompt"
    if roles[worst] in (ENCODER, DECODER):
        yield "another VAE in the column vae"


def _parity_faults(said: dict[str, Any], least: float) -> Iterator[str]:
    component = said["component"]
    found = {"": said, **{f"/{name}": part for name, part in said.get("graphs", {}).items()}}
    for graph, part in found.items():
        if part["psnr_db"] < least:
            yield (
                f"{component}{graph}: onnx against torch is {part['psnr_db']:.1f} dB, below the {least:g} dB of config"
                f" parity/min_psnr/{component}; output: {said['output']}. The graph is not the network; do not bake it."
            )


def _compiled_faults(said: dict[str, Any], least: float) -> Iterator[str]:
    component = said["component"]
    found = {"": said.get("outputs", {}), **{f"/{name}": part for name, part in said.get("graphs", {}).items()}}
    for graph, outputs in found.items():
        far = [f"{name} {part['sqnr_db']:.1f} dB" for name, part in outputs.items() if part["sqnr_db"] < least]
        if far:
            yield (
                f"{component}{graph}: the compiled model is too far from its float graph: SQNR of {', '.join(far)}, below the"
                f" {least:g} dB of config compiled/min_sqnr/{component}. Try a finer precision (precision/{component}:"
                " U16), more calibration samples (calibration/samples) or other prompts;"
                f" pulsar2/{component}/quant/precision_analysis: true lists the layers that lose most."
            )


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
