"""What a bake at full size takes with this checkout, and with another one of axbake, one stage after the other.

    python bench/two_checkouts.py OTHER DIRECTORY [--cores 2]

OTHER is a checkout of another revision (`git worktree add OTHER REVISION`), which is run by this Python. The random checkpoint
of `full_size.py` (sd15, 480 × 320) is baked to its report in DIRECTORY/other and DIRECTORY/this, each with a cache of its own
and one job at a time. Each stage runs with the other checkout, then with this one, so that a machine whose speed changes treats
both alike. Printed is the processor time of all processes, Snakemake's own too. It takes an hour and a half on 2 cores, and 24
GB of disk.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere

from full_size import ROOT, ROW

NAME = "random-sd15"
COMPONENTS = ("text_encoder", "unet", "vae_encoder", "vae_decoder")
COMPILE = "emulated compiles"
#: Files under the model's results that end each stage
STAGES = {
    "import, export, parity": [f"parity/{component}.json" for component in COMPONENTS],
    "reference picture": ["reference/image.png"],
    "recording": ["calibration/trajectories.npz"],
    "the UNet's samples": ["calibration/unet.tar"],
    "the VAE's and the text encoder's samples": [
        f"calibration/{component}.tar" for component in COMPONENTS if component != "unet"
    ],
    COMPILE: [f"{component}.axmodel" for component in COMPONENTS],
    "checks, drawings, report": ["report.html"],
}


def lay_out(checkout: Path, directory: Path, checkpoint: Path) -> None:
    """A project of one row in *directory*, with the *checkout*'s own config."""
    shutil.copytree(checkout / "config", directory / "config", dirs_exist_ok=True)
    row = {"model": NAME, "checkpoint": str(checkpoint)} | ROW
    (directory / "config" / "models.tsv").write_text("\t".join(row) + "\n" + "\t".join(row.values()) + "\n")


def bake(checkout: Path, directory: Path, cores: int, files: list[str]) -> float:
    """Bake *files*; the processor's seconds."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", checkout / "Snakefile", "--directory", directory]
    targets = [f"results/{NAME}/{file}" for file in files]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with (directory / "bake.log").open("a") as log:
        subprocess.run(
            [*command, "--cores", str(cores), "--jobs", "1", *targets],
            check=True,
            cwd=checkout,
            # This checkout's package is installed in the environment; PYTHONPATH comes first.
            env=os.environ | {"AXBAKE_CACHE": str(directory / "cache"), "PYTHONPATH": str(checkout)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("other", type=Path)
    arguments.add_argument("directory", type=Path)
    arguments.add_argument("--cores", type=int, default=2)
    options = arguments.parse_args()
    place = options.directory.resolve()
    checkpoint = place / f"{NAME}.safetensors"
    sides = {"other": options.other.resolve(), "this": ROOT}
    for name, checkout in sides.items():
        lay_out(checkout, place / name, checkpoint)
    if not checkpoint.is_file():
        subprocess.run([sys.executable, ROOT / "bench" / "random_checkpoint.py", checkpoint, "sd15"], check=True)
    totals = dict.fromkeys(sides, 0.0)
    print("| stage | other | this | |\n|---|---:|---:|---:|", flush=True)

    def row(what: str, found: dict[str, float]) -> None:
        print(
            f"| {what} | {found['other']:.0f} s | {found['this']:.0f} s | {found['this'] / found['other']:.0%} |",
            flush=True,
        )

    for stage, files in STAGES.items():
        found = {name: bake(checkout, place / name, options.cores, files) for name, checkout in sides.items()}
        row(stage, found)
        if stage != COMPILE:
            totals = {name: total + found[name] for name, total in totals.items()}
    row(f"all without {COMPILE}", totals)


if __name__ == "__main__":
    main()
