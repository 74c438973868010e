"""Snakemake bakes a tiny model from checkpoint to report; an edit remakes what it affects; what cannot work is refused."""

import base64
import json
import math
import os
import re
import shutil
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import save_file

from axbake.families import COMPONENTS
from axbake.interface import interface
from axbake.runtime.session import EMULATOR, open_model, producer
from axbake.weights import read_description, read_shapes
from tests import tiny
from tests.workflow.project import REPORT, ROOT, ROW, Project

# Rules below the compiled models
AFTER = {"simulate": 1, "write_report": 1}


def results(project, name):
    return project.directory / "results" / "tiny" / name


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_model_runs_under_the_names_of_its_interface(baked, component):
    path = results(baked, f"{component}.axmodel")
    config = read_description(results(baked, f"weights/{component}.safetensors")).config
    face = interface(component, config, height=64, width=64)

    session = open_model(path)

    assert {name: shape for name, (shape, _) in session.inputs.items()} == {n: t.shape for n, t in face.inputs.items()}
    assert list(session.outputs) == [face.output]
    assert producer(path) == EMULATOR
    assert json.loads(results(baked, f"build/{component}.json").read_text())["emulated"] is True


def test_nothing_half_made_is_left_behind(baked):
    assert not [name for name in baked.results() if any(part.startswith(".") for part in name.split("/"))]
    assert {f"tiny/{component}.axmodel" for component in COMPONENTS} < set(baked.results())


def test_the_models_draw_nearly_what_the_reference_shows(baked):
    said = json.loads(results(baked, "simulation/distance.json").read_text())

    assert said["emulated"] is True
    assert said["latent_psnr_db"] > 20
    assert said["image_psnr_db"] > 20
    assert said["vae_encoder_psnr_db"] > 20
    assert 0.5 < said["image_ssim"] <= 1
    assert all(math.isfinite(decibels) for decibels in said["latent_psnr_db_by_step"])
    assert len(said["latent_psnr_db_by_step"]) == int(ROW["steps"])


def test_every_graph_is_its_network(baked):
    for component in COMPONENTS:
        said = json.loads(results(baked, f"parity/{component}.json").read_text())
        assert said["psnr_db"] >= said["min_psnr_db"] == 60


def test_the_report_says_emulated_and_shows_both_pictures(baked):
    page = results(baked, "report.html").read_text()

    assert "Emulated" in page
    for picture in ("reference/image.png", "simulation/image.png"):
        assert base64.b64encode(results(baked, picture).read_bytes()).decode() in page
    for said in (ROW["prompt"], ROW["negative_prompt"], "Stable Diffusion 1.x", *COMPONENTS):
        assert said in page


def test_every_job_has_a_log_and_none_has_a_traceback(baked):
    logs = list((baked.directory / "logs" / "tiny").rglob("*.log"))

    assert len(logs) == sum(baked.plan("--forceall", REPORT).jobs.values())
    assert not [path for path in logs if "Traceback" in path.read_text()]


def test_every_rule_takes_part(fresh):
    rules = "".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))

    assert set(fresh.plan(REPORT).jobs) == set(re.findall(r"^rule (\w+):", rules, re.MULTILINE))


def test_a_second_run_has_nothing_to_do(project):
    assert "Nothing to be done" in project.bake(REPORT)
    assert "Nothing to be done" in project.bake()  # the default target


def test_a_prompt_of_the_web_ui_is_drawn_with_its_embedding_its_chunks_and_its_clip_skip(fresh):
    embeddings(fresh)
    prompt = "a (rocket:1.3), [night] BREAK ((stars))"
    cells = {"embeddings": "embeddings/easynegative.safetensors", "prompt_chunks": "2", "clip_skip": "2"}
    fresh.write_rows(ROW | cells | {"prompt": prompt, "negative_prompt": "(easynegative:1.2), blurry"})

    said = fresh.bake("results/tiny/simulation/distance.json")

    assert open_model(results(fresh, "unet.axmodel")).inputs["encoder_hidden_states"][0][1] == 154
    table = "embeddings.token_embedding.weight"
    assert read_shapes(results(fresh, "weights/text_encoder.safetensors"))[table] == (49416, tiny.WIDTH)
    assert json.loads(results(fresh, "reference/settings.json").read_text())["prompt"] == prompt
    assert json.loads(results(fresh, "simulation/distance.json").read_text())["latent_psnr_db"] > 20
    assert "looks like an embedding" not in said and "does not count" not in said


def test_an_embedding_that_is_not_there_is_named(fresh):
    fresh.write_rows(ROW | {"embeddings": "embeddings/nowhere.pt"})

    said = fresh.refusal("--dry-run", REPORT)

    assert "MissingEmbedding: tiny: embeddings/nowhere.pt: not there. Put the files there" in said
    assert "Traceback" not in said


def touch_everything(project: Project) -> None:
    for path in project.directory.rglob("*"):
        if path.is_file() and ".snakemake" not in path.parts:
            os.utime(path)


def forget(project: Project) -> None:
    """Lose what Snakemake and axbake remember."""
    shutil.rmtree(project.directory / ".snakemake")
    shutil.rmtree(project.directory / ".axbake")


def row(**cells: str) -> Callable[[Project], None]:
    return lambda project: project.write_rows(ROW | cells)


def config(old: str, new: str) -> Callable[[Project], None]:
    return lambda project: project.edit("config/config.yaml", old, new)


def another_row(project: Project) -> None:
    project.write_rows(ROW, ROW | {"model": "other", "prompt": "a tractor", "height": "72"})


def another_prompt(project: Project) -> None:
    project.edit(ROW["calibration_prompts"], "penguin", "tractor")


def embeddings(project: Project) -> None:
    """Give the row an embedding."""
    path = project.directory / "embeddings" / "easynegative.safetensors"
    path.parent.mkdir()
    save_file({"emb_params": torch.full((8, tiny.WIDTH), 0.02)}, path)
    row(embeddings="embeddings/easynegative.safetensors")(project)


# What a change of the text encoder's weights remakes
TEXT_ENCODER = {
    "import_text_encoder": 1,
    "export_onnx": 1,
    "check_parity": 1,
    "draw_reference": 1,
    "record_trajectories": 1,
    "calibrate_unet": 1,
    "compile_model": 2,
    **AFTER,
}
# What is edited -> the rules that run again, with their jobs
EDITS = {
    "nothing": (lambda project: None, {}),
    "the times of all files": (touch_everything, {}),
    "what Snakemake remembers": (forget, {}),
    "another model's row": (another_row, {}),
    "a comment in the config": (config("# of the UNet, spread", "# of the UNet, all spread"), {}),
    "a comment among the prompts": (lambda p: p.edit(ROW["calibration_prompts"], "penguin", "# one\npenguin"), {}),
    "where the checkpoint is had": (row(source="https://example.org/elsewhere"), {}),
    "the reference's prompt": (row(prompt="a tractor"), {"draw_reference": 1, **AFTER}),
    "the reference's seed": (row(seed="8"), {"draw_reference": 1, **AFTER}),
    "a calibration prompt": (
        another_prompt,
        {"record_trajectories": 1, "calibrate_unet": 1, "compile_model": 1, **AFTER},
    ),
    "the steps": (
        row(steps="5"),
        {
            "derive_schedule": 1,
            "draw_reference": 1,
            "record_trajectories": 1,
            "calibrate_unet": 1,
            "compile_model": 1,
            **AFTER,
        },
    ),
    "the chunks of prompts": (
        row(prompt_chunks="2"),
        {
            "draw_reference": 1,
            "export_onnx": 1,
            "check_parity": 1,
            "record_trajectories": 1,
            "calibrate_unet": 1,
            "compile_model": 1,
            **AFTER,
        },
    ),
    "the clip skip": (row(clip_skip="2"), TEXT_ENCODER),
    "the embeddings": (embeddings, TEXT_ENCODER | {"list_embeddings": 1, "calibrate_text_encoder": 1}),
    "the width": (
        row(width="72"),
        {
            "draw_reference": 1,
            "export_onnx": 3,
            "check_parity": 3,
            "record_trajectories": 1,
            "calibrate_unet": 1,
            "draw_pictures": 1,
            "encode_pictures": 1,
            "calibrate_vae_encoder": 1,
            "calibrate_vae_decoder": 1,
            "compile_model": 3,
            **AFTER,
        },
    ),
    "a prompt of all text encoders": (
        lambda p: p.edit("config/prompts/text_encoder.txt", "rocket", "tractor"),
        {"calibrate_text_encoder": 1, "compile_model": 1, **AFTER},
    ),
    "how near the unet must be": (
        config("    unet: 60", "    unet: 55"),
        {"check_parity": 1, "compile_model": 1, **AFTER},
    ),
    "the unet's precision": (
        config("  unet: U16", "  unet: S16"),
        {"configure_build": 1, "compile_model": 1, **AFTER},
    ),
    "the number of samples": (
        config("samples: 8", "samples: 9"),
        {"calibrate_unet": 1, "compile_model": 1, **AFTER},
    ),
    "the version of a compiler that is not used": (config('"4.2"', '"5.0"'), {}),
    "the toolchain": (config("toolchain: emulator", "toolchain: native"), {"compile_model": 4, **AFTER}),
}


@pytest.mark.parametrize("what", EDITS)
def test_an_edit_remakes_what_it_affects_and_nothing_else(project, what):
    edit, affected = EDITS[what]
    edit(project)

    plan = project.plan(REPORT)

    assert plan.jobs == affected
    if "unet" in what or "samples" in what:
        assert not [said for said in plan.messages if "vae" in said or "text_encoder" in said]


# What is edited in the checkout -> file, text, new text, and rules that have to run again
CODE_EDITS = {
    "the exporter": ("axbake/export.py", "MASKED = -100.0", "MASKED = -99.0", {"export_onnx", "check_parity"}),
    "the emulator": ("axbake/emulator/encoding.py", "import numpy", "import os\nimport numpy", {"compile_model"}),
    "the sampler's noise": ("axbake/runtime/noise.py", "BLOCK = 16", "BLOCK = 32", {"record_trajectories", "simulate"}),
    "the report's template": ("axbake/report.html.j2", "<h2>Pictures", "<h2>Images", {"write_report"}),
    "a family's config": ("resources/sd1/unet/config.json", "1e-05", "1e-06", {"import_checkpoint"}),
    "the tokenizer": ("resources/clip/merges.txt", "\ni n\n", "\nn i\n", {"calibrate_text_encoder", "simulate"}),
}


@pytest.mark.parametrize("what", CODE_EDITS)
def test_an_edit_of_the_checkout_remakes_what_it_affects(project, what, tmp_path):
    name, old, new, affected = CODE_EDITS[what]
    project = project.copy_checkout(tmp_path / "checkout")
    project.edit_checkout(name, old, new)

    assert affected <= set(project.plan(REPORT).jobs)


def test_another_checkout_of_the_same_code_has_nothing_to_do_whatever_its_comments_say(project, tmp_path):
    project = project.copy_checkout(tmp_path / "checkout")
    project.edit_checkout("axbake/export.py", "\nOPSET = 18", "\n# A comment of its own.\nOPSET = 18")
    project.edit_checkout("axbake/parity.py", '"""Whether an ONNX graph', '"""Says whether an ONNX graph')

    assert project.plan(REPORT).jobs == {}


def test_an_edit_is_seen_without_what_snakemake_remembers(project):
    forget(project)
    project.write_rows(ROW | {"prompt": "a tractor"})

    assert project.plan(REPORT).jobs == {"draw_reference": 1, **AFTER}


def test_an_edit_taken_back_leaves_nothing_to_do(project):
    project.write_rows(ROW | {"prompt": "a tractor"})
    project.plan(REPORT)
    project.write_rows(ROW)

    assert project.plan(REPORT).jobs == {}


def test_a_checkpoint_of_other_bytes_remakes_everything_and_the_same_bytes_nothing(project):
    path = project.directory / ROW["checkpoint"]
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    assert project.plan(REPORT).jobs == {}

    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    jobs = project.plan(REPORT).jobs
    assert (jobs["import_checkpoint"], jobs["export_onnx"], jobs["compile_model"]) == (4, 4, 4)


def test_the_unet_alone_needs_no_vae_no_reference_and_no_report(fresh):
    plan = fresh.plan("results/tiny/unet.axmodel")

    assert plan.jobs == {
        "import_checkpoint": 2,
        "derive_schedule": 1,
        "export_onnx": 1,
        "check_parity": 1,
        "record_trajectories": 1,
        "calibrate_unet": 1,
        "configure_build": 1,
        "compile_model": 1,
    }
    assert not [said for said in plan.messages if "vae" in said]


def test_the_text_encoder_alone_needs_no_drawing(fresh):
    plan = fresh.plan("results/tiny/text_encoder.axmodel")

    assert sum(plan.jobs.values()) == 6
    assert not [said for said in plan.messages if "text_encoder" not in said]


@pytest.mark.parametrize(
    "target",
    [
        *(f"{component}.axmodel" for component in COMPONENTS),
        "schedule.npz",
        "calibration/unet.tar",
        "simulation/image.png",
    ],
)
def test_every_artifact_can_be_asked_for_first(fresh, target):
    assert fresh.plan(f"results/tiny/{target}").jobs


def test_several_artifacts_can_be_asked_for_at_once(fresh):
    names = [f"{step}/{part}.{end}" for part in COMPONENTS for step, end in (("onnx", "onnx"), ("parity", "json"))]

    assert fresh.plan(*(f"results/tiny/{name}" for name in names)).jobs["export_onnx"] == 4


def test_all_models_of_the_table_are_the_default_target(fresh):
    fresh.write_rows(ROW, ROW | {"model": "other"})

    assert fresh.plan().jobs["compile_model"] == 8


def truncate(project: Project) -> None:
    path = project.directory / ROW["checkpoint"]
    path.write_bytes(path.read_bytes()[:-1000])


def no_checkpoint(project: Project) -> None:
    (project.directory / ROW["checkpoint"]).unlink()


# What is wrong -> how, and what is said of it
FAULTS = {
    "a misspelt setting": (
        config("npu_mode:", "npu_mdoe:"),
        ["ConfigError", "npu_mdoe: unknown; did you mean npu_mode?"],
    ),
    "a height of 500": (
        row(height="500"),
        ["TableError", "line 2 (tiny), column height: 500 is not a multiple of 8; take 496 or 504"],
    ),
    "no checkpoint": (
        no_checkpoint,
        [
            "MissingCheckpoint",
            "checkpoints/tiny.safetensors is not there. It is had at https://example.org/models/tiny",
        ],
    ),
    "another checkpoint": (
        row(sha256="0123456789"),
        ["WrongChecksum", "the table says 0123456789"],
    ),
    "a truncated checkpoint": (
        truncate,
        ["UnreadableCheckpoint", "bytes that are no whole safetensors file", "Download it again"],
    ),
}


@pytest.mark.parametrize("what", FAULTS)
def test_what_cannot_work_is_refused_in_words_and_without_a_traceback(fresh, what):
    spoil, words = FAULTS[what]
    spoil(fresh)

    text = fresh.refusal("results/tiny/weights/unet.safetensors")

    for said in words:
        assert said in text
    assert "Traceback" not in text
    assert fresh.results() == []


def test_a_model_that_has_no_row_is_refused_with_those_that_have(fresh):
    text = fresh.refusal("results/nosuch/unet.axmodel")

    assert "nosuch: no row of that name in config/models.tsv; there are tiny." in text
    assert "Traceback" not in text
    assert fresh.results() == []


def test_another_model_can_be_baked_while_one_has_no_checkpoint(fresh):
    fresh.write_rows(ROW, ROW | {"model": "other", "checkpoint": "checkpoints/nowhere.safetensors"})

    assert fresh.plan("results/tiny/unet.axmodel").jobs


def test_snakemakes_own_report_takes_the_page_in(project):
    project.bake("--report", "report.html", REPORT)

    page = (project.directory / "report.html").read_text()
    assert "Settings, pictures, distances, sizes and times of tiny." in page
