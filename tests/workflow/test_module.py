"""Another workflow has this one as a module, as docs/module.md shows; or includes it, as projects of an installed axbake do."""

import re
import subprocess

import pytest

from axbake.project import SNAKEFILE
from tests.workflow.project import ROOT, Project

WANTED = "results/tiny/weights/text_encoder.safetensors"


def outer(prefix: str) -> str:
    """The page's Snakefile, with what is tested in the places of its examples."""
    (text,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "module.md").read_text(), re.MULTILINE | re.DOTALL)
    text = text.replace("/path/to/axbake", str(ROOT)).replace("results/demo/bundle/axbake.tar", prefix + WANTED)
    return text.replace("        config\n", f'        config\n    prefix:\n        "{prefix}"\n') if prefix else text


def run(project: Project, snakefile: str, *arguments: str) -> str:
    (project.directory / "Snakefile").write_text(snakefile)
    command = [project.command[0], "--cores", "2", *arguments]
    how = {"cwd": project.directory, "env": project.environment | {"PYTHONPATH": str(ROOT)}, "text": True}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **how)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("prefix", ["", "bakes/"])
def test_a_module_bakes_below_its_prefix_from_the_users_files_where_they_are(prefix, fresh, baked, tmp_path):
    project = Project(fresh.directory, baked.cache).copy_cache(tmp_path / "stored")

    said = run(project, outer(prefix))

    assert (project.directory / f"{prefix}{WANTED}").is_file()
    assert "axbake_import_sd1" in said and " of 0" not in said
    assert (project.directory / "results").exists() == (prefix == "")
    assert (project.directory / "bakes").exists() == (prefix != "")


def test_a_project_of_an_installed_axbake_includes_the_workflow(fresh, baked, tmp_path):
    project = Project(fresh.directory, baked.cache).copy_cache(tmp_path / "stored")

    run(project, SNAKEFILE, WANTED)

    assert (project.directory / WANTED).is_file()
    assert "write_report" in run(project, SNAKEFILE, "--dry-run", "--quiet", "rules")  # of all rows


def test_the_catalogues_place_has_the_same_workflow(fresh):
    said = run(fresh, "", "--snakefile", str(ROOT / "workflow" / "Snakefile"), "--dry-run", "--quiet", "rules")

    assert "import_sd1" in said and "write_report" in said
