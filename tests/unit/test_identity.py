"""A step's identity changes with what can change its result, and with nothing else; a job's files are divided among its steps."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from axbake.families.sd1 import FAMILY
from axbake.jobs.identity import Step, files_of, identify, names_of, read_steps, tool_version, write_steps

ROOT = Path(__file__).parents[2]
# The code of a step that exports the UNet, as JSON
CODE = """
import json
from axbake.families.sd1 import FAMILY
from axbake.jobs.identity import identify
given = {"build": FAMILY.denoiser.build, "piece": FAMILY.denoiser.graphs[0], "columns": {"height": 64}}
step = identify("axbake.graphs.export.export_onnx", component="unet", settings=given, data=["resources/clip"])
print(json.dumps(step.code))
"""


@pytest.fixture
def package(tmp_path):
    """A copy of the package with its lock and the data of a tokenizer, to edit."""
    shutil.copytree(ROOT / "axbake", tmp_path / "axbake", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "resources" / "clip", tmp_path / "resources" / "clip")
    shutil.copy(ROOT / "requirements.lock", tmp_path)
    return tmp_path


def python(code, directory):
    """What *code* prints, run with the package in *directory*."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=directory, check=True, capture_output=True, text=True
    ).stdout.strip()


def code(package):
    return json.loads(python(CODE, package))


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_modules_in_a_folder_of_data_are_none(package):
    """Python writes compiled ones there, while a run that was planned without them goes on."""
    digest = "from axbake.jobs.identity import data_digest; print(data_digest('axbake/pages'))"
    pages, before = package / "axbake" / "pages", python(digest, package)

    (pages / "__pycache__").mkdir(exist_ok=True)
    (pages / "__pycache__" / "html.cpython-311.pyc").write_bytes(b"compiled")
    edit(pages / "html.py", '"""Fills', '"""Still fills')
    assert python(digest, package) == before

    edit(pages / "page.css", "{", "{ /* so */")
    assert python(digest, package) != before


def test_comments_docstrings_and_layout_do_not_change_the_code(package):
    before = code(package)

    export = package / "axbake" / "graphs" / "export.py"
    edit(export, "OPSET = 18", "# A comment of its own.\n\n\nOPSET = (\n    18\n)")
    edit(export, '"""ONNX graphs of fixed shapes', '"""Graphs')
    edit(package / "axbake" / "networks" / "unet.py", '    """diffusers\' `UNet2D', '    """The `UNet2D')

    assert code(package) == before


def test_code_counts_that_the_function_or_a_function_given_to_it_reaches(package):
    seen = [code(package)]

    for name, old, new in (
        ("graphs/export.py", "OPSET = 18", "OPSET = 17"),
        (
            "networks/unet.py",
            "UNet2DConditionModel.from_config(config)",
            "UNet2DConditionModel.from_config({**config})",
        ),
        ("weights/files.py", 'METADATA = "axbake"', 'METADATA = "other"'),
        ("families/sd1.py", "LATENTS, **size, program", "LATENTS, program=program, **size, more"),
    ):
        edit(package / "axbake" / name, old, new)
        seen.append(code(package))

    assert len({json.dumps(one) for one in seen}) == 5
    assert set(seen[0]) == set(seen[-1])


def test_code_that_is_not_reached_does_not_count(package):
    before = code(package)

    edit(package / "axbake" / "pages" / "report.py", "import json\n", "import json\nimport os\n")
    edit(package / "axbake" / "calibration" / "tars.py", "import io", "import io\nimport os")
    edit(package / "axbake" / "families" / "sd1.py", "HEADS = 8", "HEADS = 9")  # of the config, which an import makes
    edit(package / "axbake" / "families" / "sd2.py", "HEAD_WIDTH = 64", "HEAD_WIDTH = 32")

    assert code(package) == before


@pytest.mark.parametrize("change", ["content", "name", "new"])
def test_data_count_by_name_and_content(package, change):
    before = code(package)
    path = package / "resources" / "clip" / "merges.txt"
    if change == "content":
        edit(path, "\ni n\n", "\nn i\n")
    elif change == "name":
        path.rename(path.with_name("other.txt"))
    else:
        path.with_name("other.txt").touch()

    after = code(package)

    assert [name for name in before if after[name] != before[name]] == ["resources/clip"]


def export_step(**settings):
    how = {"component": "unet", "sources": {"weights": "0" * 64}, "tools": ("torch",)}
    return identify("axbake.graphs.export.export_onnx", settings=settings, **how)


def test_the_file_holds_settings_code_and_tools_of_each_step(tmp_path):
    path = tmp_path / "deep" / "settings.json"
    steps = [export_step(columns={"height": 64}), export_step(columns={"prompt": "Élan"})]

    write_steps(path, steps)

    assert read_steps(path) == steps
    first, _ = json.loads(path.read_text())["steps"]
    assert first["settings"] == {"columns": {"height": 64}}
    assert list(first["tools"]) == ["torch"]
    assert "axbake.graphs.export" in first["code"]
    assert "Élan" in path.read_text()  # read by people
    assert first["parameters"] == ["weights", "build", "piece", "graph", "tensors"]  # that no setting is given for


def test_code_is_left_out_where_something_else_says_what_decides():
    step = identify("axbake.graphs.export.export_onnx", component=None, settings={}, own_code=False, data=["LICENSE"])

    assert list(step.code) == ["LICENSE"]


def test_what_a_family_gives_stands_in_the_settings_by_value_and_by_name():
    step = export_step(piece=FAMILY.denoiser.graphs[0], latents=FAMILY.latents)

    assert step.settings["piece"]["cut"] == {"function": "axbake.networks.unet.cut"}
    assert step.settings["latents"]["channels"] == 4
    assert {"axbake.networks.unet", "axbake.families.sd1"} <= set(step.code)


def test_the_file_is_written_only_when_its_text_changes(tmp_path):
    path = tmp_path / "settings.json"

    def write(**settings):
        write_steps(path, [export_step(**settings)])
        return path.stat().st_mtime_ns, path.stat().st_ino

    first = write(columns={"height": 64, "width": 64})
    assert write(columns={"width": 64, "height": 64}) == first
    changed = write(columns={"height": 72, "width": 64})
    assert changed != first
    assert write(columns={"height": 72, "width": 64}) == changed


def plain(*parameters, **names) -> Step:
    """A step of a function with *parameters*, of which the rule calls some otherwise."""
    return Step("module.work", None, list(parameters), names, {}, {}, {}, {}, {}, cached=True)


def paths(*names):
    return {name: [Path(name)] for name in names}


def test_a_step_makes_what_none_before_it_has_made_and_reads_what_is_made():
    steps = [plain("weights", "graph"), plain("weights", "graph", "parity")]

    shared = files_of(steps, paths("weights", "gate"), paths("graph", "parity"))

    assert shared == [
        (paths("weights"), paths("graph")),
        (paths("weights", "graph"), paths("parity")),
    ]


def test_steps_of_one_function_make_files_that_the_rule_calls_otherwise():
    steps = [plain("checkpoint", "weights", weights=name) for name in ("unet", "vae_decoder")]
    steps.append(plain("weights", "description", weights=["unet", "vae_decoder"]))

    shared = files_of(steps, paths("checkpoint"), paths("unet", "vae_decoder", "description"))

    assert [makes for _, makes in shared] == [
        {"weights": [Path("unet")]},
        {"weights": [Path("vae_decoder")]},
        paths("description"),
    ]
    assert shared[2][0] == {"weights": [Path("unet"), Path("vae_decoder")]}
    assert names_of(steps[2], "weights") == ["unet", "vae_decoder"]
    assert names_of(steps[2], "description") == ["description"]


def test_a_parameter_for_which_the_rule_has_no_files_is_left_to_its_default():
    ((reads, makes),) = files_of([plain("checkpoint", "loras", "weights")], paths("checkpoint"), paths("weights"))

    assert (reads, makes) == (paths("checkpoint"), paths("weights"))


def test_the_version_of_a_tool_is_the_installed_one():
    assert tool_version("numpy") == python("import numpy; print(numpy.__version__)", ROOT)


def test_the_version_of_a_tool_that_is_not_installed_is_the_locks(package):
    with (package / "requirements.lock").open("a") as lock:
        lock.write("some-tool==1.2.3\nsome-tool-more==4\n")

    assert python("from axbake.jobs.identity import tool_version as v; print(v('Some-Tool'))", package) == "1.2.3"
    with pytest.raises(subprocess.CalledProcessError) as caught:
        python("from axbake.jobs.identity import tool_version as v; print(v('some-too'))", package)
    assert "some-too is in no environment and not in requirements.lock" in caught.value.stderr
