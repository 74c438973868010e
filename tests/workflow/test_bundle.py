"""The bundle of a baked model draws on its own what the workflow draws, and nothing in it is half made or changed unseen."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import onnx
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from axbake.digest import file_sha256
from axbake.runtime.session import producer
from tests.workflow.project import COMPONENTS, ROW, Project

BUNDLE, ARCHIVE = "results/tiny/bundle/axbake/manifest.json", "results/tiny/bundle/axbake.tar"
# All that the bundle's requirements bring and its programs import, besides Python's own modules.
REQUIRED = ("numpy", "numpy.libs", "PIL", "pillow.libs", "tokenizers", "onnxruntime", "flatbuffers")


@pytest.fixture(scope="module")
def project(baked, tmp_path_factory) -> Project:
    directory = tmp_path_factory.mktemp("bundled")
    project = baked.copy(directory)
    project.bake(ARCHIVE)
    return project


@pytest.fixture(scope="module")
def unpacked(project, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(project.directory / ARCHIVE) as archive:
        archive.extractall(directory)
    return directory / "tiny-axbake"


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    """A directory of nothing but the required packages; a virtual environment of them takes pip half a minute."""
    return linked(tmp_path_factory.mktemp("packages"), REQUIRED)


@pytest.fixture(scope="module")
def pyaxengine(tmp_path_factory) -> list[Path]:
    """What its users install besides: the stand-in for it, and the package that it needs."""
    return [Path(__file__).parents[1] / "standins", linked(tmp_path_factory.mktemp("pyaxengine"), ["ml_dtypes"])]


def linked(directory, names):
    """*directory* with links to the installed packages called *names*."""
    for path in map(Path, sys.path):
        for name in names:
            if path.name == "site-packages" and (path / name).is_dir() and not (directory / name).exists():
                (directory / name).symlink_to(path / name)
    return directory


def program(script, *arguments, packages, place, more=()):
    """A run of one of the bundle's programs in the directory *place*; no installed package is seen but those given."""
    path = os.pathsep.join(map(str, [packages, *more]))
    # As many threads as the project's bakes have: another number adds in another order.
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-S", "-s", "-B", script, *arguments]
    place.mkdir(exist_ok=True)
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)


def test_the_server_says_what_it_lacks_and_its_unit_needs_nothing(unpacked, packages, tmp_path):
    unit = program(unpacked / "serve.py", "--unit", packages=packages, place=tmp_path / "unit")
    lacking = program(unpacked / "serve.py", packages=packages, place=tmp_path / "lacking")

    assert unit.returncode == 0 and f'"{unpacked}/serve.py"' in unit.stdout and unit.stdout.count("EMULATED") == 0
    assert (
        lacking.returncode == 1 and "No module named 'uvicorn'" in lacking.stderr and "Traceback" not in lacking.stderr
    )
    assert (unpacked / "axbake" / "runtime" / "serve" / "page" / "page.js").is_file()


def test_the_bundles_own_program_draws_the_simulations_picture_to_the_byte(project, unpacked, packages, tmp_path):
    done = program(unpacked / "txt2img.py", "--timings", "t.json", packages=packages, place=tmp_path / "run")

    assert done.returncode == 0, done.stderr
    simulated = project.directory / "results" / "tiny" / "simulation" / "image.png"
    assert (tmp_path / "run" / "image.png").read_bytes() == simulated.read_bytes()
    assert "EMULATED" in done.stderr
    said = json.loads((tmp_path / "run" / "t.json").read_text())
    (picture,) = said["pictures"]
    assert (said["emulated"], said["runtime"], said["provider"]) == (True, "onnxruntime", "CPUExecutionProvider")
    assert {name: len(runs) for name, runs in picture["runs"].items()} == {
        "text_encoder": 2,
        "unet": 8,
        "vae_decoder": 1,
    }
    assert len(picture["step_seconds"]) == int(ROW["steps"]) == said["steps"]
    parts = picture["text_embedding_seconds"] + sum(picture["step_seconds"]) + picture["decode_seconds"]
    assert 0 < parts <= picture["total_seconds"] + 1e-4
    assert picture["total_seconds"] + sum(said["load_seconds"].values()) < said["total_seconds"]
    assert set(said["load_seconds"]) == set(picture["runs"])


def test_several_pictures_other_steps_and_a_picture_drawn_over(unpacked, packages, tmp_path):
    place = tmp_path / "run"
    several = program(
        *(unpacked / "txt2img.py", "--count", "2", "--steps", "10", "--prompt", "a (moon:1.2)", "--output", "moon.png"),
        packages=packages,
        place=place,
    )
    over = program(
        *(unpacked / "img2img.py", "moon-7.png", "--strength", "0.5", "--output", "over.png"),
        packages=packages,
        place=place,
    )

    assert (several.returncode, over.returncode) == (0, 0), several.stderr + over.stderr
    assert sorted(path.name for path in place.iterdir()) == ["moon-7.png", "moon-8.png", "over.png"]
    texts = [Image.open(place / name).text["parameters"] for name in ("moon-8.png", "over.png")]
    assert texts[0].startswith(
        "a (moon:1.2)\nNegative prompt: blurry\nSteps: 10, Sampler: Euler, CFG scale: 5, Seed: 8,"
    )
    assert texts[1].startswith(ROW["prompt"]) and texts[1].endswith("Model: tiny, Denoising strength: 0.5")


@pytest.fixture(scope="module")
def for_the_card(unpacked, tmp_path_factory) -> Path:
    """The bundle with models that say they are Pulsar2's."""
    directory = tmp_path_factory.mktemp("card") / "bundle"
    subprocess.run(["cp", "-r", unpacked, directory], check=True)
    manifest = json.loads((directory / "manifest.json").read_text())
    for component in COMPONENTS:
        path = directory / f"{component}.axmodel"
        model = onnx.load(path)
        model.producer_name = "Pulsar2"
        onnx.save(model, path)
        manifest["files"][path.name]["bytes"] = path.stat().st_size
    (directory / "manifest.json").write_text(json.dumps(manifest | {"emulated": False}))
    return directory


def test_through_pyaxengine_it_draws_the_same_picture(project, for_the_card, packages, pyaxengine, tmp_path):
    done = program(
        *(for_the_card / "txt2img.py", "--timings", "t.json"),
        packages=packages,
        place=tmp_path / "run",
        more=pyaxengine,
    )

    assert done.returncode == 0, done.stderr
    simulated = Image.open(project.directory / "results" / "tiny" / "simulation" / "image.png")
    drawn = Image.open(tmp_path / "run" / "image.png")
    assert drawn.tobytes() == simulated.tobytes()
    assert simulated.text["axbake"].startswith("EMULATED") and "axbake" not in drawn.text
    assert drawn.text["parameters"] == simulated.text["parameters"]
    said = json.loads((tmp_path / "run" / "t.json").read_text())
    assert (said["emulated"], said["runtime"], said["provider"]) == (False, "axcl", "AXCLRTExecutionProvider")


@pytest.mark.parametrize(
    ("which", "arguments", "words"),
    [
        (
            "unpacked",
            ["--runtime", "axcl"],
            "emulated (made by axbake-emulator); accelerators run only models compiled by Pulsar2",
        ),
        ("for_the_card", ["--runtime", "onnxruntime"], "made by Pulsar2 runs only on the accelerator card"),
        (
            "for_the_card",
            ["--runtime", "axengine"],
            "AxEngineExecutionProvider is not available; pyaxengine finds AXCLRT",
        ),
        ("for_the_card", ["--device", "3"], "cannot load it: Device index 3 is out of range, total 1 device."),
        ("unpacked", ["--steps", "7"], "7 steps: the bundle has schedules of 4, 10, 20 steps"),
        ("unpacked", ["--output", "nowhere/image.png"], "No such file or directory: 'nowhere"),
    ],
)
def test_what_cannot_be_is_said_in_a_line_and_nothing_is_left(
    which, arguments, words, request, packages, pyaxengine, tmp_path
):
    bundle = request.getfixturevalue(which)
    done = program(bundle / "txt2img.py", *arguments, packages=packages, place=tmp_path / "run", more=pyaxengine)

    assert done.returncode == 1
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run").iterdir())


def test_a_bundle_that_is_not_whole_is_refused(unpacked, packages, tmp_path):
    broken = tmp_path / "broken"
    subprocess.run(["cp", "-r", unpacked, broken], check=True)
    (broken / "schedule.npz").write_bytes(b"cut")
    (broken / "vae_encoder.axmodel").unlink()

    done = program(broken / "txt2img.py", packages=packages, place=tmp_path / "run")

    assert done.returncode == 1
    assert "schedule.npz: 3 bytes, wanted" in done.stderr and "vae_encoder.axmodel: not there" in done.stderr


def test_the_manifest_lists_every_file_and_models_are_links(project):
    bundle = project.directory / BUNDLE
    manifest = json.loads(bundle.read_text())

    for name, file in manifest["files"].items():
        assert file_sha256(bundle.parent / name) == file["sha256"]
    for component in COMPONENTS:
        assert (bundle.parent / f"{component}.axmodel").samefile(bundle.parents[2] / f"{component}.axmodel")
        record = json.loads((bundle.parents[2] / "build" / f"{component}.json").read_text())
        assert manifest["models"][component]["version"] == record["version"]
        assert producer(bundle.parent / f"{component}.axmodel") == "axbake-emulator"
    assert manifest["checkpoint"]["source"] == ROW["source"]
    card = ModelCard.load(bundle.parent / "README.md")
    assert card.data.license == "other" and "emulated" in card.data.tags
    assert ROW["source"] in card.text and ROW["source"] in (bundle.parent / "LICENSE.md").read_text()


def test_bundle_and_archive_are_the_same_bytes_again_and_follow_an_edit(project):
    before = (project.directory / ARCHIVE).read_bytes()
    assert "Nothing to be done" in project.bake(ARCHIVE)
    stale = project.directory / "results" / "tiny" / "bundle" / "axbake" / "left" / "behind.npz"
    stale.parent.mkdir()
    stale.write_bytes(b"")
    for name in (BUNDLE, ARCHIVE):
        (project.directory / name).unlink()

    project.bake(ARCHIVE)

    assert (project.directory / ARCHIVE).read_bytes() == before
    assert not stale.parent.exists()
    project.write_rows(ROW | {"source": "https://example.org/elsewhere"})
    assert project.plan(ARCHIVE).jobs == {"write_bundle": 1, "pack_bundle": 1}
    assert "cannot make the layout m5stack; program: 'axera', wanted 'm5stack'; scheduler: 'euler'" in project.refusal(
        "results/tiny/bundle/m5stack.tar"
    )
