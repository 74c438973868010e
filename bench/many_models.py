"""How long Snakemake takes to plan for a table of many models, beside a plain workflow of as many jobs.

    python bench/many_models.py [--models 1000]

The plain workflow has the same number of rules and of jobs a model: a chain of rules, each with one input, one output and a
shell command, without settings files. Times are of `snakemake -n` as a whole process; memory is its peak. Nothing is
built: that all is up to date is shown by writing every product.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
SNAKEMAKE = Path(sys.executable).with_name("snakemake")
ROW = {
    "checkpoint": "checkpoints/model.safetensors",
    "height": "512",
    "width": "512",
    "prompt": "a rocket",
    "negative_prompt": "blurry",
    "calibration_prompts": "config/prompts/emoji.txt",
}
PLAIN = """
MODELS = [f"m{{number:04}}" for number in range({models})]
rule all:
    input: collect("results/{{model}}/{last}", model=MODELS)
rule r0:
    output: "results/{{model}}/0"
    shell: "touch {{output}}"
"""
LINK = """
rule r{number}:
    input: "results/{{model}}/{before}"
    output: "results/{{model}}/{number}"
    shell: "touch {{output}}"
"""


def lay_out(directory: Path, models: int) -> list[str | Path]:
    """axbake's project of *models* rows in *directory*; its command."""
    (directory / "checkpoints").mkdir(parents=True)
    (directory / "config").symlink_to(ROOT / "config")
    (directory / ROW["checkpoint"]).symlink_to(ROOT / "resources" / "demo" / "emoji-sd.safetensors")
    table = directory / "many.tsv"
    rows = (["model", *ROW, "seed"], *([f"m{number:04}", *ROW.values(), str(number)] for number in range(models)))
    table.write_text("".join("\t".join(row) + "\n" for row in rows))
    return [SNAKEMAKE, "--snakefile", ROOT / "Snakefile", "--config", f"models={table.name}", "--cores", "2"]


def lay_out_plain(directory: Path, models: int, jobs: int) -> list[str | Path]:
    """The plain workflow of *jobs* a model; its command."""
    directory.mkdir()
    links = (LINK.format(number=number, before=number - 1) for number in range(1, jobs))
    (directory / "Snakefile").write_text(PLAIN.format(models=models, last=jobs - 1) + "".join(links))
    return [SNAKEMAKE, "--cores", "2"]


def dry_run(command: list[str | Path], directory: Path, *targets: str) -> tuple[str, float, float]:
    """What `-n` says, its seconds, and its peak memory in MB."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        environment = os.environ | {"AXBAKE_CACHE": str(directory / "cache")}
        arguments = [*command, "--dry-run", "--quiet", "rules", "--", *targets]
        running = subprocess.Popen(arguments, cwd=directory, env=environment, stdout=said, stderr=said)
        _, status, used = os.wait4(running.pid, 0)
        seconds = time.monotonic() - started
        said.seek(0)
        text = said.read()
    assert status == 0, text
    return text, seconds, used.ru_maxrss / 1000


def outputs(command: list[str | Path], directory: Path) -> list[Path]:
    """Every output of every job of axbake's that a run would start, and the logs that another job reads."""
    code = (
        "import sys; from axbake.plan import pending_jobs\n"
        "for job in pending_jobs(sys.argv[1:]):\n"
        "    for files in [*job.outputs.values(), job.inputs.get('logs', [])]: print(*files, sep='\\t')"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "AXBAKE_CACHE": str(directory / "cache")}
    arguments = [sys.executable, "-c", code, *command[1:]]
    done = subprocess.run(arguments, cwd=directory, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [directory / path for path in done.stdout.split()]


def write(products: Iterable[Path]) -> None:
    """Make empty files of *products*, of one age, so that none is older than what it was made from."""
    now = time.time()
    for path in products:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (now, now))


def line(name: str, scratch: tuple, one: tuple, nothing: tuple, jobs: int) -> str:
    """A line of the table."""
    assert "Nothing to be done" in nothing[0], nothing[0][-2000:]
    times = " | ".join(f"{seconds:.1f} s" for _, seconds, _ in (scratch, nothing, one))
    return f"| {name} | {jobs:,} | {times} | {scratch[2]:.0f} MB |"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--models", type=int, default=1000)
    models = arguments.parse_args().models
    print(f"| {models:,} models | jobs | `-n` from scratch | `-n`, nothing to do | one target | peak memory |")
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / "axbake"
        command = lay_out(directory, models)
        scratch = dry_run(command, directory)
        jobs = int(re.findall(r"^total +(\d+)", scratch[0], re.MULTILINE)[0])
        one = dry_run(command, directory, "results/m0001/report.html")
        write(outputs(command, directory))
        print(line("axbake", scratch, one, dry_run(command, directory), jobs), flush=True)

        directory, rules = Path(place) / "plain", jobs // models
        command = lay_out_plain(directory, models, rules)
        scratch = dry_run(command, directory)
        one = dry_run(command, directory, f"results/m0001/{rules - 1}")
        write(directory / "results" / f"m{m:04}" / str(number) for m in range(models) for number in range(rules))
        print(line("plain workflow", scratch, one, dry_run(command, directory), models * rules + 1))


if __name__ == "__main__":
    main()
