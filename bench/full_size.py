"""Bake a random checkpoint of a published model's size, and tell what each stage took.

    python bench/full_size.py DIRECTORY [--model sd15 | sdxl | ssd-1b | vega | anima] [--cores 2] [--to FILE]

Writes the checkpoint (`random_checkpoint.py`) and a project with one row into DIRECTORY, bakes all its models with the
emulator, and prints wall time, processor time and peak resident memory of every step of every job (of its largest process, as
the kernel counts; of a later step of a job, the peak of those before it too). sd15 at 480 × 320 takes more than half an hour on
2 cores, 12 GB of disk, and less than 12 GiB of memory. The others are drawn at 512 × 512 in 2 steps, calibrated with 8 samples.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere

from axbake.jobs.record import read_records

ROOT = Path(__file__).parents[1]
ROW = {
    "height": "480",
    "width": "320",
    "prompt": "1girl, upper body, sun glare, bokeh, depth of field, red background",
    "negative_prompt": "lowres, bad anatomy",
    "calibration_prompts": "config/prompts/people.txt",
}
#: What differs of models that are larger: a row, and a config of its own
LARGE = {"height": "512", "width": "512", "steps": "2", "scheduler": "euler", "guidance_scale": "5"}
LARGE |= {"calibration_prompts": "config/prompts/two.txt", "config": "config/large.yaml"}
TOKENIZER = {"anima": {"tokenizer": "checkpoints"}}
#: Random networks are compiled less well than trained ones, and what the bench tells is not how well
CONFIG = "calibration: {samples: 8}\ncompiled: {min_sqnr: {text: 10, denoiser: 10, encoder: 10, decoder: 10}}\n"
PROMPTS = "a lighthouse at dusk\na bowl of ramen\n"


def lay_out(directory: Path, model: str) -> str:
    """A project of one row in *directory*, and its checkpoint if it is not there yet; the row's name."""
    shutil.copytree(ROOT / "config", directory / "config", dirs_exist_ok=True)
    name = f"random-{model}"
    checkpoint = f"checkpoints/{name}.safetensors"
    row = {"model": name, "checkpoint": checkpoint} | ROW | ({} if model == "sd15" else LARGE)
    row |= TOKENIZER.get(model, {})
    cells = "\t".join(row), "\t".join(row.values())
    (directory / "config" / "models.tsv").write_text("\n".join(cells) + "\n")
    (directory / "config" / "large.yaml").write_text(CONFIG)
    (directory / "config" / "prompts" / "two.txt").write_text(PROMPTS)
    if not (directory / checkpoint).is_file():
        command = [sys.executable, ROOT / "bench" / "random_checkpoint.py", directory / checkpoint, model]
        subprocess.run(command, check=True)
    return name


def bake(directory: Path, cores: int, target: str) -> None:
    """*target*, one job at a time so that jobs do not slow each other."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", directory]
    subprocess.run([*command, "--cores", str(cores), "--jobs", "1", target], check=True)


def table(directory: Path, name: str) -> str:
    """Times and peak memory of every step, in the order they ran, as a Markdown table; the jobs say them in their logs."""
    lines = ["| step | wall time | processor time | peak memory |", "|---|---:|---:|---:|"]
    total = worked = compiles = 0.0
    logs = directory / "logs" / name
    for path in sorted(logs.rglob("*.log"), key=lambda path: path.stat().st_mtime):
        said = read_records(path)
        for record in said:
            step = f"{record.step}/{record.component}" if record.component else record.step
            processor = record.processor_seconds or 0
            lines.append(f"| {step} | {record.seconds} s | {processor} s | {record.peak_memory} GiB |")
            total, worked = total + record.seconds, worked + processor
            compiles += processor if record.step == "compile_model" else 0
    lines.append(f"| all, without start-up | {total / 60:.1f} min | {worked:.0f} s | |")
    return "\n".join([*lines, f"| the same without compiles | | {worked - compiles:.0f} s | |"])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("directory", type=Path)
    arguments.add_argument("--model", choices=("sd15", "sdxl", "ssd-1b", "vega", "anima"), default="sd15")
    arguments.add_argument("--cores", type=int, default=2)
    arguments.add_argument("--to", default="report.html", help="file of the model that is made, and all before it")
    options = arguments.parse_args()
    name = lay_out(options.directory, options.model)
    bake(options.directory, options.cores, f"results/{name}/{options.to}")
    print(table(options.directory, name))


if __name__ == "__main__":
    main()
