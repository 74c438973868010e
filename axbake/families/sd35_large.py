"""Stable Diffusion 3.5 large and its turbo: as 3 medium with 38 wider blocks, whose queries and keys are normalised."""

from dataclasses import replace

from axbake.families import sd3
from axbake.networks.component import DENOISER, GRAPH_WEIGHTS, Shapes

WIDE = {"caption_projection_dim": 2432, "num_layers": 38, "qk_norm": "rms_norm"}
STRUCTURE = replace(sd3.STRUCTURE, config={**sd3.CONFIG, **WIDE})


def fits(denoiser: Shapes) -> bool:
    """By the norms, without a second attention."""
    return "pos_embed.pos_embed" in denoiser and sd3.NORM in denoiser and sd3.DUAL not in denoiser


FAMILY = replace(
    sd3.FAMILY,
    name="sd35_large",
    title="Stable Diffusion 3.5 large",
    fits=fits,
    components=tuple(
        replace(one, graphs=STRUCTURE.slices(GRAPH_WEIGHTS)) if one.role == DENOISER else one
        for one in sd3.FAMILY.components
    ),
    structure=STRUCTURE,
    cells={"scheduler": "euler", "steps": "28", "guidance_scale": "3.5"},
)
