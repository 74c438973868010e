"""Every command of README and docs/ is run as a reader would run it, in a clone with the tiny model, or it says why not.

Of what they start, Snakemake's jobs alone begin otherwise (tests/workflow/ready.py).
"""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_docs import DOCS, ROOT, prose, shell, spans
from tests.workflow.project import ROW, Project, ready

# Those in other languages have the same ones (tests/unit/test_translations.py).
PAGES = [ROOT / "README.md", *(path for path in sorted(DOCS.glob("*.md")) if "." not in path.stem)]
# What pages write for names of the reader's -> what stands for them here
NAMES = {"NAME": "tiny", "FILE": "checkpoints/tiny.safetensors", "TARGET": "results/tiny/unet.axmodel"}


def commands(page: Path) -> list[str]:
    """Commands of a page, without remarks: in blocks that are marked `sh`, and in the text."""
    inline = [span for span in spans(page) if re.match(r"(\.venv/bin/\S+|make) \S", span)]
    return [re.sub(r"\s+# .*", "", line) for line in shell(prose(page))] + inline


COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands(page)))
ON_A_BOARD = (
    *("python3 -m venv .venv", ".venv/bin/pip install --requirement requirements.txt", ". .venv/bin/activate"),
    *("python3 txt2img.py", "python3 img2img.py", "python3 serve.py"),
)
SITE = "needs Civitai; tests/unit/test_add.py runs it with a site of its own"
BOARD = "needs models by the real Pulsar2, and a board; tests/workflow/test_board.py runs it with a board of its own"
IMAGE = (
    "needs Docker Hub and half a gigabyte of packages; below, the recipe is compared with what the package consists of"
)
# Command -> why it is not run here
NOT_RUN = {
    "make demo": "installs from the network and bakes for minutes; the rules are those that bake the tiny model",
    ".venv/bin/axbake bake demo_flow": "bakes for minutes; tests/workflow/test_sd3.py bakes a model of that kind",
    "make demo TORCH=auto": "the same, and brings 3 GB",
    "make test": "is what runs this test",
    "make site": "tests/conftest.py builds the site",
    "make docs": "tests/unit/test_docs.py makes these pages and compares them",
    ".venv/bin/axbake add LINK": SITE,
    ".venv/bin/axbake add --pin NAME": SITE,
    ".venv/bin/axbake add https://civitai.com/models/4384/dreamshaper": SITE,
    ".venv/bin/axbake add 'https://civitai.com/models/47274?modelVersionId=102222'": SITE,
    ".venv/bin/snakemake --cores 4 results/NAME/board/report.html": BOARD,
    ".venv/bin/snakemake --cores 1 results/NAME/board/deployment.json": BOARD,
    ".venv/bin/snakemake --cores 1 results/NAME/board/report.html": BOARD,
    ".venv/bin/snakemake --cores 1 results/NAME/board/served.json": BOARD,
    ".venv/bin/snakemake --cores 1 --forcerun benchmark_board -- results/NAME/board/report.html": BOARD,
    ".venv/bin/snakemake --workflow-profile profiles/slurm": "tests/workflow/test_slurm.py runs it on a real Slurm",
    "mkdir /shared/axbake && chgrp lab /shared/axbake && chmod 3770 /shared/axbake": "needs a group of people",
    "docker build --tag axbake --file envs/Containerfile .": IMAGE,
    'docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/project" axbake demo': IMAGE,
    "hf upload OWNER/REPOSITORY results/NAME/bundle/axbake": "needs Hugging Face",
    **{
        f".venv/bin/axbake cache {what}": "needs a remote; tests/workflow/test_remote.py has one"
        for what in (
            "push results/NAME/report.html",
            "push results/NAME/report.html --yes",
            "push results/NAME/bundle/axbake/manifest.json --remote results/NAME/bundle/axbake/builds --yes",
            *("remote", "verify", "prune --days 90"),
        )
    },
    "export AXBAKE_SIGNING_KEY=~/.ssh/id_ed25519": "sets a variable",
    ".venv/bin/python -m axbake.emulator build|run|version": "three commands; tests/unit/test_emulator.py runs each",
    ".venv/bin/python -m tests.unit.depends": "tests/unit/test_code.py compares what it writes",
    ".venv/bin/python -m tests.workflow.matrix docs/rebuilds.md": "makes every edit; tests/workflow/test_content.py makes some",
    ".venv/bin/python -m tests.workflow.families": "bakes every family; tests/workflow/ bakes some",
    ".venv/bin/python -m tests.workflow.kills 50": "takes half an hour; tests/workflow/test_kills.py runs one of each kind",
}
# They measure for minutes to hours.
MEASURES = [command for command in COMMANDS if "python bench/" in command]
PROGRAMS = [path for path in sorted((ROOT / "bench").glob("*.py")) if "__main__" in path.read_text()]
RUN = [one for one in COMMANDS if one not in (*NOT_RUN, *MEASURES) and not one.startswith(ON_A_BOARD)]


@pytest.fixture(scope="module")
def clone(baked, tmp_path_factory) -> Project:
    """A clone in which the tiny model stands in the table as `NAME` and `demo`, is baked, and `.venv` is that of these tests."""
    directory = tmp_path_factory.mktemp("clone")
    baked.copy_checkout(directory)
    shutil.copytree(baked.directory, directory, symlinks=True, dirs_exist_ok=True)
    for name in ("Makefile", "pyproject.toml", "requirements-dev.lock"):
        shutil.copy2(ROOT / name, directory)
    (directory / ".venv").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (directory / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    for name in ("installed", "developer"):
        (directory / ".venv" / name).touch()
    clone = Project(directory, baked.cache, checkout=directory).copy_cache(tmp_path_factory.mktemp("stored") / "cache")
    clone.write_rows(ROW, ROW | {"model": "demo"})
    return clone


def say(clone: Project, command: str, place: str = "") -> str:
    """What *command* says in the clone; it has to succeed."""
    for name, means in NAMES.items():
        command = re.sub(rf"\b{name}\b(?!=)", means, command)
    # What a `make test` around this run says of itself would change what `make` prints.
    own = ("PYTHONPATH", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    done = subprocess.run(
        ["bash", "-euc", command],
        cwd=clone.directory / place,
        env=environment | {"AXBAKE_CACHE": str(clone.cache)} | ready().jobs_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_every_exception_is_a_command_of_the_pages():
    assert set(NOT_RUN) <= set(COMMANDS)
    assert len(RUN) >= 20 and len(MEASURES) >= 10


def test_blocks_of_commands_are_marked_as_such():
    for page in PAGES:
        unmarked = re.findall(r"^ *```\n(.*?)^ *```", prose(page), re.MULTILINE | re.DOTALL)
        assert not [block for block in unmarked if re.search(r"^ *(\.venv/bin/|make |python3? )", block, re.MULTILINE)]


@pytest.mark.parametrize("command", RUN)
def test_a_command_of_the_pages_works(clone, command):
    if "--report" in command:  # of all rows, which have to be there
        say(clone, ".venv/bin/snakemake --cores 4")
    said = say(clone, command)

    assert "Traceback" not in said


@pytest.mark.parametrize("command", MEASURES)
def test_what_measures_for_long_is_there_and_knows_its_options(command):
    program, *arguments = command.split()[1:]
    text = (ROOT / program).read_text()

    assert all(f'"{option}"' in text for option in arguments if option.startswith("--"))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_a_program_that_measures_says_how_and_does_not_begin_with_arguments_that_it_does_not_know(
    program, tmp_path, monkeypatch, capsys
):
    """In this process, since importing torch takes seconds each time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(program.parent)
    ends = []
    for arguments in (["--help"], ["new", "--no-such-option"]):
        monkeypatch.setattr(sys, "argv", [str(program), *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(program), run_name="__main__")
        ends.append((ended.value.code, capsys.readouterr()))

    (asked, usage), (wrong, refusal) = ends
    assert asked == 0 and usage.out.startswith(f"usage: {program.name}")
    assert f"python bench/{program.name}" in usage.out
    assert wrong == 2 and refusal.err.startswith(f"usage: {program.name}")
    assert not list(tmp_path.iterdir())


def test_what_is_to_be_typed_on_the_board_draws_with_the_bundle(clone):
    say(clone, ".venv/bin/snakemake --cores 2 results/NAME/bundle/axbake/manifest.json")
    place = "results/tiny/bundle/axbake"
    (block,) = (
        block
        for block in re.findall(r"^```sh\n(.*?)^```", prose(DOCS / "bundles.md"), re.MULTILINE | re.DOTALL)
        if block.startswith(ON_A_BOARD)
    )
    shutil.copy(clone.directory / "results" / "tiny" / "reference" / "image.png", clone.directory / place / "photo.png")

    said = say(clone, block, place)

    assert "EMULATED" in said
    assert len(list((clone.directory / place).glob("cat*.png"))) == 4


@pytest.mark.parametrize("command", [command for command in NOT_RUN if command in ("make demo", "make test")])
def test_make_would_run_programs_of_the_clone(clone, command):
    said = say(clone, command.replace("make", "make --dry-run", 1))

    assert ".venv/bin/" in said
    assert "pip install" not in said  # .venv is there


def test_the_report_over_all_models_has_what_the_pages_promise(clone):
    said = say(clone, "make report")

    assert said.startswith("results/report.html: ")
    assert "tiny/report.html" in (clone.directory / "results" / "report.html").read_text()


@pytest.mark.parametrize("name", ["My Projects", "it's", 'a"b'])
def test_a_checkout_whose_path_no_shell_takes_is_refused_before_anything_is_installed(name, clone, tmp_path):
    """Snakemake writes Python's path into commands as it is (snakemake/snakemake#2645)."""
    place = tmp_path / name
    (place / "venv").mkdir(parents=True)
    shutil.copy2(ROOT / "Makefile", place)
    for part in ("bin", "lib", "pyvenv.cfg"):
        (place / "venv" / part).symlink_to(Path(sys.prefix) / part)
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    snakemake = [place / "venv" / "bin" / "python", "-m", "snakemake", *clone.command[1:], "--dry-run"]

    made = subprocess.run(["make", "demo"], cwd=place, **how)
    run = subprocess.run(snakemake, cwd=clone.directory, env=clone.environment, **how)

    assert (
        made.returncode != 0
        and "has a space, a quote or a backslash, with which Snakemake cannot start jobs" in made.stdout
    )
    assert not (place / ".venv").exists()
    assert run.returncode != 0 and "the path of Python contains a space or another special character" in run.stdout
