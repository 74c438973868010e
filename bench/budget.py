"""What recipes of growing budgets save and cost: multiplications in 8 bits, and dB of the last latent.

    python bench/budget.py DIRECTORY            the demo model
    python bench/budget.py DIRECTORY --flow     the second demo model, a transformer in three graphs

Bakes what it needs into DIRECTORY, as `bench/calibration.py` does. For each budget (the column `quality`), the layers' types are
chosen by what was measured on the first held-out prompt, compiled by the emulator, and drawn with both held-out prompts against
the float graphs, in ONNX Runtime: the second has not been looked at before. Some minutes on 2 cores.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere

from calibration import DEMO, FLOW, HELD_OUT, ROOT, HeldOut, bake, graphs_of
from measure import denoiser_configs

from axbake.calibration.observation import read_observed
from axbake.distance import psnr
from axbake.networks.component import addresses
from axbake.quality.assignment import NARROW, WIDE
from axbake.quality.finding import emulate_recipe
from axbake.quality.recipe import recipe_of
from axbake.quality.records import read_model
from axbake.quality.search import cured, point, within
from axbake.runtime.sampler import denoiser
from axbake.runtime.session import open_models

BUDGETS = (0.25, 0.5, 1, 2, 4, 8)  # dB


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("directory", type=Path)
    arguments.add_argument("--flow", dest="measured", action="store_const", const=FLOW, default=DEMO)
    options = arguments.parse_args()
    directory, measured = options.directory.resolve(), options.measured
    results, network = bake(directory, measured), measured.family.denoiser
    sensitivity = results / "calibration" / f"{network.name}.sensitivity.json"
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", directory]
    subprocess.run([*command, "--cores", "all", sensitivity.relative_to(directory)], check=True)
    model, observed = read_model(sensitivity), read_observed(results / "calibration" / f"{network.name}.ranges.npz")
    held_out = HeldOut(results, measured, observed.taken)
    places = addresses(network)
    archives = [results / "calibration" / f"{address}.tar" for address in places]
    configs = denoiser_configs(measured.family)

    def row(name: str, types: list[str]) -> None:
        found = point(model, types)
        with tempfile.TemporaryDirectory(dir=directory) as work:
            recipe = recipe_of(model.layers, types)
            models = emulate_recipe(Path(work), graphs_of(results, measured), archives, configs, places, recipe)
            drawn = held_out.draw(denoiser(open_models(models)))
        dbs = [f"{psnr(wanted, one):.2f}" for wanted, one in zip(held_out.latents, drawn, strict=True)]
        print(f"| {name} | {100 * found.narrow_share:.1f} % | {found.sqnr_db:.2f} | {' | '.join(dbs)} |", flush=True)

    print(f"| | in 8 bits | rounding alone, forecast | {' | '.join(f'“{prompt}”, drawn' for prompt in HELD_OUT)} |")
    print("|---|---:|---:|---:|---:|")
    row("U16", [WIDE] * len(model.layers))
    for budget in BUDGETS:
        limit = model.least * 10 ** (budget / 10)
        begun = cured(model, limit)
        row(f"{budget:g} dB", within(model, begun, max(limit, model.noise(begun))))
    row("U8", [NARROW] * len(model.layers))


if __name__ == "__main__":
    main()
