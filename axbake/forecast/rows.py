"""What the times of a row's jobs depend on, from its cells, its config and the headers of its files."""

import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from axbake.calibration.counting import count_branches
from axbake.errors import AxbakeError
from axbake.families import FAMILIES
from axbake.fit import modules_of
from axbake.forecast.networks import Network, network_of, typical_network
from axbake.forecast.work import Bake, threads_of
from axbake.host import chosen_precision
from axbake.model import Model
from axbake.networks.component import Component
from axbake.networks.sampling import guided_steps
from axbake.runtime.tiles import starts
from axbake.table import read_prompts

read_texts = functools.cache(read_prompts)


def bake_of(model: Model, *, cores: int) -> Bake:
    """What the times of *model*'s jobs depend on; of a row that is refused, no networks.

    Args:
        cores: that the run has.
    """
    row = model.row
    try:
        networks = {one.name: _network(model, one) for one in model.family.components}
        texts = len(read_texts(Path(model.entry("calibration/text_prompts"))))
    except AxbakeError:
        networks, texts = {}, 0
    return Bake(
        networks=networks,
        steps=row["steps"],
        branches=_branches(row),
        prompts=len(row["calibration_prompts"]),
        samples=model.entry("calibration/samples"),
        first=model.entry("calibration/compare_first"),
        compared=model.entry("compiled/samples"),
        texts=texts,
        precision=chosen_precision(model.entry("calibration/recorded_in")),
        emulated=model.config["toolchain"] == "emulator",
        threads=threads_of(networks.values(), cores),
        tiles=_tiles(row) if row["vae_tile"] else 1,
    )


def _branches(row: Mapping[str, Any]) -> float:
    """Runs of the denoiser in a step, on an average."""
    more = count_branches(row["guidance_scale"], row["image_guidance_scale"]) - 1
    return 1 + more * guided_steps(row["steps"], row["cfg_trunc_ratio"]) / row["steps"]


def _tiles(row: Mapping[str, Any]) -> int:
    """Tiles that the VAE decoder draws of one picture."""
    return math.prod(len(starts(row[side], row["vae_tile"])) for side in ("height", "width"))


def _network(model: Model, component: Component) -> Network:
    """What *component* takes; where its file is not here, or has no header that tells, as Stable Diffusion 1.5's."""
    column = model.sources.column_of(component)
    cells = model.row | model.columns(component)
    size, graphs = {"height": cells["height"], "width": cells["width"]}, len(component.graphs)
    of = Path(model.row[column]), model.family.name, component.name
    try:
        if not model.sources.is_remote(column):
            return replace(_counted(*of, **size, prompt_chunks=model.row["prompt_chunks"]), graphs=graphs)
    except AxbakeError:
        pass
    return replace(typical_network(component.role, **size), graphs=graphs)


@functools.cache
def _counted(path: Path, family: str, component: str, **size: int) -> Network:
    """A network in a file; many rows may be of one file and size."""
    of = FAMILIES[family]
    part = of.component(component)
    return network_of(modules_of(path, of, part), part.role, **size)
