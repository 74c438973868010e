"""Checkpoints in other forms than a single safetensors file, baked by Snakemake: converted once, and by content."""

import os
import shutil

import pytest
from safetensors.torch import load_file

from tests import tiny
from tests.workflow.project import ROW, Project

# Two stand for all: what they are to be imported from differs.
WEIGHTS = [f"results/{{model}}/weights/{component}.safetensors" for component in ("text_encoder", "unet")]
PICKLE, FOLDER = "{model} (v1).ckpt", "a <folder> {of} mine"  # names that mean something to Snakemake, and to a shell
UNET = "results/tiny/weights/unet.safetensors"


def wanted(model):
    return [path.format(model=model) for path in WEIGHTS]


@pytest.fixture(scope="module")
def project(checkpoint, tmp_path_factory):
    """A project with a pickle, a diffusers folder, and a file whose prediction type stands in a YAML beside it."""
    directory = tmp_path_factory.mktemp("project")
    networks = tiny.small_sd2()
    project = Project.lay_out(directory / "project", directory / "cache", checkpoint)
    place = project.directory / "checkpoints"
    tiny.save_pickle(networks, place / PICKLE)
    tiny.save_folder(networks, place / FOLDER, shard="1MB")
    paths = {"pickle": PICKLE, "folder": FOLDER, "tiny": "tiny.safetensors"}
    project.write_rows(*(ROW | {"model": name, "checkpoint": f"checkpoints/{path}"} for name, path in paths.items()))
    project.bake(*wanted("pickle"), *wanted("folder"), UNET)
    return project


def test_a_pickle_and_a_folder_give_the_same_weights(project):
    for path in WEIGHTS:
        pickle, folder = (load_file(project.directory / path.format(model=model)) for model in ("pickle", "folder"))
        assert set(pickle) == set(folder)
        assert [name for name, tensor in pickle.items() if not tensor.equal(folder[name])] == []


def test_a_pickle_is_converted_once_for_all_components_and_a_safetensors_file_not_at_all(project):
    assert (project.directory / "results/pickle/checkpoint.safetensors").is_file()
    assert not (project.directory / "results/tiny/checkpoint.safetensors").exists()
    assert project.plan(*wanted("pickle"), *wanted("folder")).jobs == {}


def test_a_touched_folder_is_nothing_new_and_a_changed_file_in_it_is(project, tmp_path):
    copy = project.copy(tmp_path)
    folder = copy.directory / "checkpoints" / FOLDER
    for path in folder.rglob("*"):
        os.utime(path)

    assert copy.plan(*wanted("folder")).jobs == {}

    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("v_prediction", "epsilon"))
    assert copy.plan(*wanted("folder")).jobs["convert_checkpoint"] == 1


def test_a_yaml_that_appears_beside_a_checkpoint_makes_the_unet_anew_and_no_other_network(project, tmp_path):
    copy = project.copy(tmp_path)
    (copy.directory / "checkpoints" / "tiny.yaml").write_text("model: {params: {parameterization: v}}\n")

    (line,) = (line for line in copy.planner(UNET).splitlines() if line.startswith("build"))
    assert "describe_checkpoint: " in line and "unet: " in line
    assert "text_encoder: " not in line and "vae_" not in line


def test_a_payload_stops_the_run_with_its_name(project, tmp_path):
    copy = project.copy(tmp_path)
    mark = tmp_path / "ran"
    text = f"touch {mark}".encode()
    hostile = b"\x80\x02cposix\nsystem\nX" + len(text).to_bytes(4, "little") + text + b"\x85R."
    (copy.directory / "checkpoints" / PICKLE).write_bytes(hostile)

    said = copy.refusal(*wanted("pickle"))

    assert "asks for posix.system, which weights do not need" in said
    assert "Traceback" not in said
    assert not mark.exists()


def test_a_model_is_written_back_as_a_single_file_that_can_be_baked(project):
    project.bake("results/folder/single_file.safetensors")
    shutil.copy(project.directory / "results/folder/single_file.safetensors", project.directory / "checkpoints")
    row = ROW | {"model": "again", "checkpoint": "checkpoints/single_file.safetensors"}
    project.write_rows(ROW | {"model": "folder", "checkpoint": f"checkpoints/{FOLDER}"}, row)

    project.bake(*wanted("again"))

    for path in WEIGHTS:
        first, again = (project.directory / path.format(model=model) for model in ("folder", "again"))
        assert first.read_bytes() == again.read_bytes()
