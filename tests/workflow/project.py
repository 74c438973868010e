"""A project of a user's: a directory with config, table, prompts and checkpoint, in which Snakemake runs as users run it."""

import functools
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from axbake.families.sd1 import FAMILY
from axbake.jobs.identity import read_steps
from tests.workflow.ready import Ready

ROOT = Path(__file__).parents[2]
REPORT = "results/tiny/report.html"
COMPONENTS = FAMILY.names  # of the tiny model; each has one graph
ROW = {
    "model": "tiny",
    "checkpoint": "checkpoints/tiny.safetensors",
    "sha256": "",
    "family": "",
    "config": "",
    "vae": "",
    "source": "https://example.org/models/tiny",
    "height": "64",
    "width": "64",
    "scheduler": "euler",
    "steps": "4",
    "guidance_scale": "5",
    "seed": "7",
    "prompt": "a rocket, in the night",
    "negative_prompt": "blurry",
    "prompt_chunks": "1",
    "program": "axera",
    "clip_skip": "1",
    "embeddings": "",
    "loras": "",
    "calibration_prompts": "config/prompts/few.txt",
}


@functools.cache
def ready() -> Ready:
    """What runs of Snakemake are started with."""
    return Ready()


@dataclass(frozen=True)
class Project:
    """A project's directory, its build cache, and the checkout whose Snakefile it runs; its first row is the tiny model's."""

    directory: Path
    cache: Path
    checkout: Path = ROOT

    @classmethod
    def lay_out(cls, directory: Path, cache: Path, checkpoint: Path) -> "Project":
        """A new project with the shipped config, few samples, and one row for *checkpoint*."""
        project = cls(directory, cache)
        shutil.copytree(ROOT / "config", directory / "config")
        (directory / "checkpoints").mkdir()
        shutil.copy(checkpoint, directory / ROW["checkpoint"])
        (directory / ROW["calibration_prompts"]).write_text("slice of pizza\npenguin\n")
        project.edit("config/config.yaml", "samples: 32", "samples: 8")
        project.edit(
            "config/config.yaml", "psnr: 20 # dB\n    ssim: 0.7", "psnr: 10 # dB\n    ssim: 0.2"
        )  # of untrained networks
        project.write_rows(ROW)
        return project

    def copy(self, place: Path) -> "Project":
        """The same project, results and build cache in the directory *place*; files keep their times.

        A cache of its own, because a result and its blob are one file on disk: placing it here would make it newer there.
        """
        shutil.copytree(self.directory, place / "project", symlinks=True)
        return replace(self, directory=place / "project").copy_cache(place / "cache")

    def copy_cache(self, cache: Path) -> "Project":
        """The same project with a build cache of its own, which holds what this one's holds."""
        shutil.copytree(self.cache, cache)
        return replace(self, cache=cache)

    def copy_checkout(self, directory: Path) -> "Project":
        """The same project, run by a copy of the checkout in *directory*; files keep their times."""
        unneeded = shutil.ignore_patterns(
            "*.pyc.*", "demo", "demo_flow"
        )  # the first: Python has not finished writing it
        for name in ("axbake", "envs", "profiles", "resources", "workflow"):
            shutil.copytree(self.checkout / name, directory / name, ignore=unneeded)
        for name in ("Snakefile", "LICENSE", "requirements.lock"):
            shutil.copy2(self.checkout / name, directory)
        return replace(self, checkout=directory)

    def touch(self) -> None:
        """Make all files as new as now."""
        for path in self.directory.rglob("*"):
            if path.is_file() and ".snakemake" not in path.parts:
                os.utime(path)

    def forget(self) -> None:
        """Lose what Snakemake and axbake remember."""
        shutil.rmtree(self.directory / ".snakemake")
        shutil.rmtree(self.directory / ".axbake")

    def write_rows(self, *rows: dict[str, str]) -> None:
        """Make *rows*, all of the columns of the first, the table of models."""
        lines = [rows[0], *(row.values() for row in rows)]
        (self.directory / "config" / "models.tsv").write_text("".join("\t".join(line) + "\n" for line in lines))

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace *old*, which stands once in the project's file *name*, by *new*."""
        _replace(self.directory / name, old, new)

    def edit_checkout(self, name: str, old: str, new: str) -> None:
        """The same in a file of the checkout, which has to be a copy."""
        assert self.checkout != ROOT
        _replace(self.checkout / name, old, new)

    @property
    def command(self) -> list[str | Path]:
        """Snakemake's command line, without targets; to be run in the project."""
        program = Path(sys.executable).with_name("snakemake")  # not `python -m`, which would import from the directory
        return [program, "--snakefile", self.checkout / "Snakefile", "--directory", self.directory, "--cores", "2"]

    @property
    def environment(self) -> dict[str, str]:
        """Environment of the project's programs, which are those that users have."""
        return os.environ | {"AXBAKE_CACHE": str(self.cache), "PYTHONPATH": str(ROOT / "tests" / "users")}

    def snakemake(self, *arguments: str) -> subprocess.CompletedProcess:
        """A run of Snakemake in the project; its output and errors as one text."""
        return self._run([*self.command, *arguments], self.environment)

    def planner(self, *targets: str) -> str:
        """What `axbake plan` says of *targets*."""
        command = ["-m", "axbake", "plan", *targets, *self.command[1:]]
        done = self._run(command, self.environment | {"PYTHONPATH": str(self.checkout)})
        assert done.returncode == 0, done.stdout
        return done.stdout

    def _run(self, arguments: list[str | Path], environment: dict[str, str]) -> subprocess.CompletedProcess:
        return ready().run(list(map(str, arguments)), directory=self.directory, environment=environment)

    def bake(self, *targets: str) -> str:
        """What a run that has to succeed says."""
        done = self.snakemake(*targets)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def plan(self, *targets: str) -> "Plan":
        """What a dry run for *targets* would do."""
        return Plan(self.bake("--dry-run", *targets))

    def refusal(self, *targets: str) -> str:
        """What a run that must fail says."""
        done = self.snakemake(*targets)
        assert done.returncode != 0, done.stdout
        return done.stdout

    def steps(self, model: str = "tiny") -> list[str]:
        """Steps that the build cache has a key for, of all jobs of *model* that were planned: `export_onnx/unet`."""
        files = (self.directory / "results" / model / "settings").glob("*/*/settings.json")
        steps = [step for path in files for step in read_steps(path) if step.cached]
        return ["/".join(filter(None, [step.function.rpartition(".")[2], step.component])) for step in steps]

    def results(self) -> list[str]:
        """Finished files below results/, settings files apart."""
        base = self.directory / "results"
        files = (path.relative_to(base) for path in base.rglob("*") if path.is_file())
        return sorted(str(path) for path in files if "settings" not in path.parts)


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{path.name}: {text.count(old)} times {old!r}"
    path.write_text(text.replace(old, new), encoding="utf-8")


@dataclass(frozen=True)
class Plan:
    """A dry run's text."""

    text: str

    @property
    def jobs(self) -> Counter[str]:
        """How many jobs of each rule, as the table of job counts says; empty when there is nothing to do."""
        table = re.search(r"^Job stats:\n.*\n-+ +-+\n((?:\w+ +\d+\n)+?)total", self.text, re.MULTILINE)
        if table is None:
            assert "Nothing to be done" in self.text
            return Counter()
        counts = (line.split() for line in table[1].splitlines())
        return Counter({name: int(count) for name, count in counts if name != "all"})

    @property
    def messages(self) -> list[str]:
        """What the jobs say that they do."""
        return re.findall(r"^Job \d+: (.+)$", self.text, re.MULTILINE)
