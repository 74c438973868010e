"""A family of its own file, with two text encoders and a UNet of three graphs, is baked from checkpoint to bundle."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from axbake.runtime.session import open_model, open_models
from tests import chain_family, tiny
from tests.chain_family import FAMILY, build_networks, save_checkpoint
from tests.workflow.matrix import BUILDING
from tests.workflow.project import ROOT, ROW, Project

GRAPHS = ["unet/down", "unet/mid", "unet/up"]
CHAIN = ROW | {"model": "chain", "checkpoint": "checkpoints/chain.safetensors"}
REPORT, BUNDLE = "results/chain/report.html", "results/chain/bundle/axbake/manifest.json"


@pytest.fixture(scope="module")
def checkpoint_of_chain(tmp_path_factory):
    return save_checkpoint(build_networks(), tmp_path_factory.mktemp("chain") / "chain.safetensors")


def lay_out(directory, checkpoint_of_chain) -> Project:
    """A project of the family's model, run by a checkout in which its file stands among the families."""
    checkpoint = tiny.save(tiny.small_sd1(), directory / "tiny.safetensors")
    project = Project.lay_out(directory / "project", directory / "cache", checkpoint)
    project = project.copy_checkout(directory / "checkout")
    shutil.copy(ROOT / "LICENSE", project.checkout)  # which a bundle holds
    shutil.copy(chain_family.__file__, project.checkout / "axbake" / "families" / f"{FAMILY.name}.py")
    shutil.copy(checkpoint_of_chain, project.directory / CHAIN["checkpoint"])
    project.write_rows(CHAIN)
    return project


@pytest.fixture
def fresh(checkpoint_of_chain, tmp_path) -> Project:
    return lay_out(tmp_path, checkpoint_of_chain)


def test_asking_for_a_component_of_several_graphs_names_them(fresh):
    said = fresh.refusal("--dry-run", "results/chain/unet.axmodel")

    wanted = ", ".join(f"results/chain/{graph}.axmodel" for graph in GRAPHS)
    assert (
        f"SeveralGraphs: results/chain/unet.axmodel: the unet of {FAMILY.title} has 3 graphs; ask for {wanted}." in said
    )
    assert "Traceback" not in said


def test_one_of_its_graphs_is_compiled_alone(fresh):
    plan = fresh.plan(f"results/chain/{GRAPHS[1]}.axmodel")

    assert plan.jobs == {
        "import_chain": 1,
        "export_unet_of_chain": 1,
        "record_trajectories": 1,
        "calibrate_denoiser_of_chain": 1,
        "compile_model": 1,
    }


def test_a_family_whose_unet_is_one_graph_stands_beside_it_in_the_table(fresh):
    fresh.write_rows(ROW, CHAIN)

    jobs = fresh.plan().jobs

    assert (jobs["import_sd1"], jobs["import_chain"]) == (1, 1)
    assert (jobs["export_onnx"], jobs["export_unet_of_chain"], jobs["compile_model"]) == (4 + 4, 1, 4 + 7)
    assert fresh.plan("results/tiny/unet.axmodel").jobs["export_onnx"] == 1
    said = fresh.refusal("--dry-run", "results/chain/unet.axmodel")
    assert "SeveralGraphs: results/chain/unet.axmodel" in said


@pytest.fixture(scope="module")
def baked_chain(checkpoint_of_chain, tmp_path_factory) -> Project:
    project = lay_out(tmp_path_factory.mktemp("baked"), checkpoint_of_chain)
    project.bake(REPORT, BUNDLE)
    return project


def results(project, name):
    return project.directory / "results" / "chain" / name


def test_every_graph_is_compiled_and_every_component_is_near_enough(baked_chain):
    said = json.loads(results(baked_chain, "unet/chain.json").read_text())
    verdict = json.loads(results(baked_chain, "verdict.json").read_text())

    assert [graph["file"] for graph in said["graphs"]] == [f"{graph.partition('/')[2]}.axmodel" for graph in GRAPHS]
    for graph in GRAPHS:
        assert json.loads(results(baked_chain, f"build/{graph}.json").read_text())["emulated"] is True
    assert set(verdict["min_psnr_db"]) == set(verdict["min_sqnr_db"]) == set(FAMILY.names)
    unet = open_models([results(baked_chain, f"{graph}.axmodel") for graph in GRAPHS])
    assert list(unet.outputs) == list(open_model(results(baked_chain, f"{GRAPHS[-1]}.axmodel")).outputs)
    assert json.loads(results(baked_chain, "simulation/distance.json").read_text())["latent_psnr_db"] > 20
    facts = json.loads(results(baked_chain, "report.json").read_text())
    assert facts["family"] == FAMILY.title
    assert {name: part["graphs"] for name, part in facts["components"].items() if part["graphs"] > 1} == {"unet": 3}


def test_the_bundles_own_program_draws_the_simulations_picture_to_the_byte(baked_chain, tmp_path):
    program = results(baked_chain, "bundle/axbake/txt2img.py")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "OMP_NUM_THREADS": "1"
    }  # as many threads as the project's bakes have: another number adds in another order

    done = subprocess.run([sys.executable, program], cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "image.png").read_bytes() == results(baked_chain, "simulation/image.png").read_bytes()


def test_a_second_run_has_nothing_to_do_and_another_precision_of_the_unet_compiles_its_graphs_alone(baked_chain):
    again = baked_chain.bake(REPORT)
    assert "Nothing to be done" in again, again
    baked_chain.edit("config/config.yaml", "  denoiser: U16 # unet", "  denoiser: S16")
    logs = list((baked_chain.directory / "logs" / "chain").rglob("*.log"))
    before = {path: path.stat().st_mtime_ns for path in logs}

    baked_chain.bake("results/chain/check/unet.json")

    texts = [path.read_text() for path in logs if path.stat().st_mtime_ns != before[path]]
    built = {step for text in texts for step in BUILDING.findall(text)}
    assert built == {*(f"compile_model/{graph}" for graph in GRAPHS), "check_compiled/unet"}
