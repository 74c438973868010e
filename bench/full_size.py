"""Bake a random checkpoint of Stable Diffusion 1.5's size at 480 × 320, and tell what each stage took.

    python bench/full_size.py DIRECTORY [--cores 2]

Writes the checkpoint (`random_checkpoint.py`) and a project with one row into DIRECTORY, bakes all four models with the
emulator, and prints wall time and peak resident memory of every step of every job (of its largest process, as the kernel counts;
of a later step of a job, the peak of those before it too). Takes
more than an hour on 2 cores, 12 GB of disk, and less than 12 GiB of memory.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere

from axbake.jobs.record import read_records

ROOT = Path(__file__).parents[1]
MODEL = "random-sd15"
ROW = {
    "model": MODEL,
    "checkpoint": f"checkpoints/{MODEL}.safetensors",
    "height": "480",
    "width": "320",
    "prompt": "1girl, upper body, sun glare, bokeh, depth of field, red background",
    "negative_prompt": "lowres, bad anatomy",
    "calibration_prompts": "config/prompts/people.txt",
}


def lay_out(directory: Path) -> None:
    """A project of one row in *directory*, and its checkpoint if it is not there yet."""
    shutil.copytree(ROOT / "config", directory / "config", dirs_exist_ok=True)
    cells = "\t".join(ROW), "\t".join(ROW.values())
    (directory / "config" / "models.tsv").write_text("\n".join(cells) + "\n")
    if not (directory / ROW["checkpoint"]).is_file():
        command = [sys.executable, ROOT / "bench" / "random_checkpoint.py", directory / ROW["checkpoint"]]
        subprocess.run(command, check=True)


def bake(directory: Path, cores: int) -> None:
    """Every artifact of the model, one job at a time so that jobs do not slow each other."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", directory]
    subprocess.run([*command, "--cores", str(cores), "--jobs", "1", f"results/{MODEL}/report.html"], check=True)


def table(directory: Path) -> str:
    """Wall time and peak memory of every step, in the order they ran, as a Markdown table; the jobs say both in their logs."""
    lines = ["| step | wall time | peak memory |", "|---|---:|---:|"]
    total = 0.0
    logs = directory / "logs" / MODEL
    for path in sorted(logs.rglob("*.log"), key=lambda path: path.stat().st_mtime):
        said = read_records(path)
        assert said, f"{path}: does not say how long its steps took"
        for record in said:
            step = f"{record.step}/{record.component}" if record.component else record.step
            lines.append(f"| {step} | {record.seconds} s | {record.peak_memory} GiB |")
            total += record.seconds
    return "\n".join([*lines, f"| all, without start-up | {total / 60:.1f} min | |"])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("directory", type=Path)
    arguments.add_argument("--cores", type=int, default=2)
    options = arguments.parse_args()
    lay_out(options.directory)
    bake(options.directory, options.cores)
    print(table(options.directory))


if __name__ == "__main__":
    main()
