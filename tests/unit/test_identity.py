"""A job's identity changes with what can change its result, and with nothing else."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from axbake.jobs.identity import identify, read_identity, tool_version, write_identity

ROOT = Path(__file__).parents[2]
JOB_MODULES = [
    "axbake.calibration.tars",
    "axbake.checkpoints.importing",
    "axbake.emulator.__main__",
    "axbake.graphs.export",
    "axbake.graphs.parity",
    "axbake.calibration.pictures",
    "axbake.toolchain.pulsar2",
    "axbake.drawing.reference",
    "axbake.pages.report",
    "axbake.drawing.schedule",
    "axbake.drawing.simulation",
    "axbake.calibration.trajectories",
]


@pytest.fixture
def package(tmp_path):
    """A copy of the package and its lock, to edit."""
    shutil.copytree(ROOT / "axbake", tmp_path / "axbake", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "requirements.lock", tmp_path)
    return tmp_path


def python(code, directory, *arguments):
    """What *code* prints, run with the package in *directory*."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=directory, check=True, capture_output=True, text=True
    ).stdout.strip()


def digest(package, module="axbake.graphs.export"):
    return python(f"from axbake.jobs.identity import code_digest; print(code_digest({module!r}))", package)


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_comments_docstrings_and_layout_do_not_change_the_digest(package):
    before = digest(package)

    export = package / "axbake" / "graphs" / "export.py"
    edit(export, "OPSET = 18", "# A comment of its own.\n\n\nOPSET = (\n    18\n)")
    edit(export, '"""ONNX graphs of fixed shapes', '"""Graphs')
    edit(export, '"""CLIP\'s text encoder with its causal mask as a bounded constant."""', '"""Something."""')
    edit(package / "axbake" / "checkpoints" / "components.py", '"""The encoder half', '"""That half')

    assert digest(package) == before


def test_code_changes_the_digest_also_in_a_module_that_it_imports(package):
    seen = [digest(package)]

    edit(package / "axbake" / "graphs" / "export.py", "MASKED = -100.0", "MASKED = -99.0")
    seen.append(digest(package))
    edit(package / "axbake" / "checkpoints" / "components.py", 'implementation="eager"', 'implementation="sdpa"')
    seen.append(digest(package))
    # export -> weights -> families -> families.sd1
    edit(package / "axbake" / "families" / "sd1.py", "HEADS = 8", "HEADS = 9")
    seen.append(digest(package))

    assert len(set(seen)) == 4


def test_a_module_that_it_does_not_import_does_not_change_the_digest(package):
    before = digest(package)

    edit(package / "axbake" / "pages" / "report.py", "import json\n", "import json\nimport os\n")
    edit(package / "axbake" / "calibration" / "tars.py", "import io", "import io\nimport os")

    assert digest(package) == before


# One process a module, forked after what they share and what takes long to import.
FOLLOWED = """
import functools, importlib, json, os, sys
import diffusers, onnx, onnxruntime, torch, transformers
from pathlib import Path
from axbake.jobs import identity

parse = identity._own_digest.__wrapped__
parsed = functools.cache(lambda module, text: parse(module))  # a text once
identity._own_digest = lambda module: parsed(module, identity._module_path(module).read_text())
for module in sys.argv[1:]:
    identity.code_digest(module)
own = set(sys.modules)
for module in sys.argv[1:]:
    if child := os.fork():
        os.waitpid(child, 0)
        continue
    importlib.import_module(module)
    names = [n for n in sys.modules if n.startswith("axbake.") and n not in own] + [module]
    before, missed = identity.code_digest(module), []
    for path in {Path(identity._module_path(name)) for name in names}:
        text = path.read_text()
        path.write_text(text + "\\nONE_MORE = 1\\n")
        identity.code_digest.cache_clear()
        if identity.code_digest(module) == before:
            missed.append(str(path.relative_to(Path.cwd())))
        path.write_text(text)
    if missed:
        print(f"{module}: {', '.join(sorted(missed))}", flush=True)
    os._exit(0)
"""


def test_every_module_that_python_loads_for_a_job_is_in_its_digest(package):
    assert python(FOLLOWED, package, *JOB_MODULES) == ""


def test_every_module_of_a_rule_is_tested_here():
    rules = "".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))

    for module in JOB_MODULES:
        assert f'"{module}' in rules


def export_identity(**settings):
    how = {"component": "unet", "sources": {}, "tools": ("torch",), "cached": True}
    return identify("axbake.graphs.export.export_onnx", settings=settings, **how)


def test_the_file_holds_settings_code_and_tools(tmp_path):
    path = tmp_path / "deep" / "settings.json"

    write_identity(path, export_identity(height=64, prompt="Élan"))

    assert read_identity(path).settings == {"height": 64, "prompt": "Élan"}
    identity = json.loads(path.read_text())
    assert list(identity["code"]) == ["axbake.graphs.export"]
    assert list(identity["tools"]) == ["torch"]
    assert "Élan" in path.read_text()  # read by people


def test_the_file_is_written_only_when_its_text_changes(tmp_path):
    path = tmp_path / "settings.json"

    def write(**settings):
        write_identity(path, export_identity(**settings))
        return path.stat().st_mtime_ns, path.stat().st_ino

    first = write(height=64, width=64)
    assert write(width=64, height=64) == first
    changed = write(height=72, width=64)
    assert changed != first
    assert write(height=72, width=64) == changed


def test_the_version_of_a_tool_is_the_installed_one():
    assert tool_version("numpy") == python("import numpy; print(numpy.__version__)", ROOT)


def test_the_version_of_a_tool_that_is_not_installed_is_the_locks(package):
    with (package / "requirements.lock").open("a") as lock:
        lock.write("some-tool==1.2.3\nsome-tool-more==4\n")

    assert python("from axbake.jobs.identity import tool_version as v; print(v('Some-Tool'))", package) == "1.2.3"
    with pytest.raises(subprocess.CalledProcessError) as caught:
        python("from axbake.jobs.identity import tool_version as v; print(v('some-too'))", package)
    assert "some-too is in no environment and not in requirements.lock" in caught.value.stderr
