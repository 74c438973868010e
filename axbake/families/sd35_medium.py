"""Stable Diffusion 3.5 medium: as 3 medium; queries and keys are normalised, and its first 13 blocks attend twice."""

from dataclasses import replace

from axbake.families import sd3
from axbake.networks.component import DENOISER, GRAPH_WEIGHTS, Shapes

STRUCTURE = replace(
    sd3.STRUCTURE, config={**sd3.CONFIG, "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm"}
)


def fits(denoiser: Shapes) -> bool:
    """By the second attention."""
    return "pos_embed.pos_embed" in denoiser and sd3.NORM in denoiser and sd3.DUAL in denoiser


FAMILY = replace(
    sd3.FAMILY,
    name="sd35_medium",
    title="Stable Diffusion 3.5 medium",
    fits=fits,
    components=tuple(
        replace(one, graphs=STRUCTURE.slices(GRAPH_WEIGHTS)) if one.role == DENOISER else one
        for one in sd3.FAMILY.components
    ),
    structure=STRUCTURE,
    cells={"scheduler": "euler", "steps": "40", "guidance_scale": "4.5"},
)
