"""A family of its own file, with two text encoders and a UNet of three graphs, is planned as those of the package are.

Stable Diffusion XL, which has as many, is baked in test_sdxl.py; tests/unit/test_chain.py takes this family through every step.
"""

import shutil

import pytest

from tests import chain_family, tiny
from tests.chain_family import FAMILY, build_networks, save_checkpoint
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
