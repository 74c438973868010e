"""Snakemake bakes a tiny model from checkpoint to report; an edit remakes what it affects; what cannot work is refused."""

import base64
import io
import json
import math
import re
import subprocess

import numpy as np
import onnx
import onnxruntime
import onnxsim
import pytest
from PIL import Image

from axbake.families import FAMILIES
from axbake.families.sd1 import FAMILY
from axbake.runtime.session import EMULATOR, open_model, producer
from axbake.weights.files import read_description, read_shapes
from tests import tiny
from tests.workflow.matrix import config, embeddings, jobs_of, own_config, own_vae, planned, row
from tests.workflow.project import COMPONENTS, REPORT, ROW, Project

# Rules below the compiled models
AFTER = {"simulate": 1, "write_report": 1}
COLUMNS = {"height": 64, "width": 64, "prompt_chunks": 1, "program": "axera"}  # of the row, that graphs depend on


def results(project, name):
    return project.directory / "results" / "tiny" / name


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_model_runs_under_the_names_of_its_interface(baked, component):
    path = results(baked, f"{component}.axmodel")
    config = read_description(results(baked, f"weights/{component}.safetensors")).config
    (piece,) = FAMILY.component(component).graphs
    face = piece.interface(config, **{name: COLUMNS[name] for name in FAMILY.component(component).columns})

    session = open_model(path)

    assert {name: shape for name, (shape, _) in session.inputs.items()} == {n: t.shape for n, t in face.inputs.items()}
    assert tuple(session.outputs) == face.outputs
    assert producer(path) == EMULATOR
    assert json.loads(results(baked, f"build/{component}.json").read_text())["emulated"] is True


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_graph_opens_in_the_tools_that_people_use(baked, component):
    path = results(baked, f"onnx/{component}.onnx")
    assert (
        path.with_name(f"{path.name}.data").stat().st_nlink == 1
    )  # where the cache shares a file system with the project, too

    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path)
    onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    simplified, same = onnxsim.simplify(model)

    assert same and {value.name for value in simplified.graph.output} == {value.name for value in model.graph.output}


def test_a_home_that_cannot_be_written_does_not_matter(fresh, monkeypatch):
    """As on nodes of a cluster, and in containers whose user has none (snakemake/snakemake#1593)."""
    monkeypatch.setenv("HOME", "/proc/nohome")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    # Not by a process that has imported it where there was a home
    done = subprocess.run([*fresh.command, "results/tiny/checkpoint.json"], cwd=fresh.directory, env=fresh.environment)

    assert done.returncode == 0
    assert results(fresh, "checkpoint.json").is_file()


def test_nothing_half_made_is_left_behind(baked):
    assert not [name for name in baked.results() if any(part.startswith(".") for part in name.split("/"))]
    assert {f"tiny/{component}.axmodel" for component in COMPONENTS} < set(baked.results())


def test_the_models_draw_nearly_what_the_reference_shows(baked):
    said = json.loads(results(baked, "simulation/distance.json").read_text())

    assert said["emulated"] is True
    assert said["latent_psnr_db"] > 20
    assert said["image_psnr_db"] > 15  # of untrained networks
    assert said["vae_encoder_psnr_db"] > 20
    assert 0.5 < said["image_ssim"] <= 1
    assert all(math.isfinite(decibels) for decibels in said["latent_psnr_db_by_step"])
    assert len(said["latent_psnr_db_by_step"]) == int(ROW["steps"])


def test_every_graph_is_its_network_and_every_compiled_model_its_graph(baked):
    limits = json.loads(results(baked, "verdict.json").read_text())
    for component in COMPONENTS:
        parity, check = (
            json.loads(results(baked, f"{step}/{component}.json").read_text()) for step in ("parity", "check")
        )
        assert parity["psnr_db"] >= limits["min_psnr_db"][component] == 60
        assert all(one["sqnr_db"] >= limits["min_sqnr_db"][component] == 20 for one in check["outputs"].values())


def test_preflight_warns_of_what_published_builds_hold_too_and_finds_no_error(baked):
    said = json.loads(results(baked, "preflight.json").read_text())
    warnings = {(f["component"], f["check"]) for f in said["findings"] if f["level"] == "warning"}

    # Ids of two dimensions in Gather, Resize by the floor, and the slash in the time input's name
    operators = {(name, "operators") for name in ("text_encoder", "unet", "vae_decoder")}
    assert warnings == operators | {("unet", "names")}
    assert not [f for f in said["findings"] if f["level"] == "error"]
    assert {f["component"] for f in said["findings"] if f["check"] == "estimate"} == set(COMPONENTS)
    assert "of 7040 MiB of CMM" in results(baked, "report.html").read_text()
    assert "samples fit the graph" in (baked.directory / "logs/tiny/build/unet.log").read_text()


def test_the_report_says_emulated_and_shows_all_pictures(baked):
    page = results(baked, "report.html").read_text()

    assert "Emulated" in page
    shown = re.findall(r"data:image/png;base64,([^\"]+)", page)
    pixels = [np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))).convert("RGB")) for uri in shown]
    for picture in ("reference/image.png", "simulation/float.png", "simulation/image.png"):
        wanted = np.asarray(Image.open(results(baked, picture)).convert("RGB"))
        assert any(np.array_equal(found, wanted) for found in pixels)
    for said in (ROW["prompt"], ROW["negative_prompt"], "Stable Diffusion 1.x", *COMPONENTS):
        assert said in page
    for component in COMPONENTS:
        (output,) = json.loads(results(baked, f"check/{component}.json").read_text())["outputs"].values()
        assert f"{output['sqnr_db']} dB" in page


def test_pictures_are_called_emulated_beside_models_that_are_not(project):
    for component in COMPONENTS:
        record = results(project, f"build/{component}.json")
        record.write_text(record.read_text().replace('"emulated": true', '"emulated": false'))
    project.bake(REPORT)

    page = results(project, "report.html").read_text()
    assert "beside models that Pulsar2 itself compiled" in page
    assert 'alt="Emulated"' in page and 'alt="Compiled"' not in page
    assert "all models</span>" in page  # whose sizes are Pulsar2's


def test_the_report_tells_what_calibration_covers_and_what_each_part_costs(baked):
    page = results(baked, "report.html").read_text()
    calibration = json.loads(results(baked, "calibration/unet.json").read_text())
    found = json.loads(results(baked, "simulation/attribution.json").read_text())["quantised"]

    assert len(calibration["samples"]) == 8
    assert all(calibration["required"].values())
    assert all(name in page for name in calibration["worst_covered"])
    points = re.search(r'<polyline .*points="(.*?) *"', page.partition('id="calibration"')[2])[1].split()
    assert len(points) == len(calibration["coverage_by_samples"])
    assert found["all"]["image_psnr_db"] <= min(part["image_psnr_db"] for part in found.values()) + 3
    assert all(f"{part['image_psnr_db']} dB" in page for name, part in found.items() if name != "none")
    assert found["none"]["image_psnr_db"] > 45


def test_every_job_has_a_log_and_none_has_a_traceback(baked):
    logs = list((baked.directory / "logs" / "tiny").rglob("*.log"))

    assert len(logs) == sum(baked.plan("--forceall", REPORT).jobs.values())
    assert not [path for path in logs if "Traceback" in path.read_text()]


def test_a_second_run_has_nothing_to_do(project):
    assert "Nothing to be done" in project.bake(REPORT)
    assert "Nothing to be done" in project.bake()  # the default target


def test_a_prompt_of_the_web_ui_reaches_the_reference_with_its_embedding_and_its_chunks(project):
    embeddings(project)
    prompt = "a (rocket:1.3), [night] BREAK ((stars))"
    cells = {"embeddings": "embeddings/easynegative.safetensors", "prompt_chunks": "2", "clip_skip": "2"}
    project.write_rows(ROW | cells | {"prompt": prompt, "negative_prompt": "(easynegative:1.2), blurry"})

    said = project.bake("results/tiny/reference/image.png")

    table = "embeddings.token_embedding.weight"
    assert read_shapes(results(project, "weights/text_encoder.safetensors"))[table] == (49416, tiny.WIDTH)
    assert json.loads(results(project, "reference/settings.json").read_text())["prompt"] == prompt
    assert (
        "longer than" not in (project.directory / "logs" / "tiny" / "reference.log").read_text()
    )  # BREAK makes two chunks
    assert "looks like an embedding" not in said and "does not count" not in said


def test_an_embedding_that_is_not_there_is_named(fresh):
    fresh.write_rows(ROW | {"embeddings": "embeddings/nowhere.pt"})

    said = fresh.refusal("--dry-run", REPORT)

    assert "MissingEmbedding: tiny: embeddings/nowhere.pt: not there. Put the files there" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("edit", "components"),
    [
        (config("samples: 8", "samples: 9"), {"unet"}),
        (config("  decoder: U16", "  decoder: S16"), {"vae_decoder"}),
        (own_config("precision: {vae_decoder: S16}\n"), {"vae_decoder"}),
    ],
)
def test_an_edit_of_one_components_setting_leaves_the_others_alone(project, edit, components):
    edit(project)

    said = [words for words in project.plan(REPORT).messages for name in COMPONENTS if f"the {name} " in words]
    assert said
    assert not [words for words in said if not any(f"the {name} " in words for name in components)]


def test_another_vae_leaves_the_unet_and_the_text_encoder_alone(project):
    own_vae(project)

    plan = planned(project)

    halves = {f"{step}/{half}" for step in ("export_onnx", "compile_model") for half in ("vae_encoder", "vae_decoder")}
    assert {"import_sd1"} == jobs_of(plan, "build")  # of it the VAE's halves alone, so the plan knows the rest
    assert halves | {"calibrate_vae_of_sd1", "draw_reference"} < jobs_of(plan, "unknown")
    assert not [name for name in jobs_of(plan, "unknown") if name.endswith(("/unet", "/text_encoder"))]
    assert {"record_trajectories", "calibrate_denoiser_of_sd1", "compile_model/unet"} < jobs_of(plan, "stored")


def test_another_toolchain_or_version_of_it_compiles_everything_anew(project):
    project.edit("config/config.yaml", "toolchain: emulator", "toolchain: native")

    assert project.plan(REPORT).jobs == {
        "preflight": 1,  # its estimates differ
        "compile_model": 4,
        "emulate_model": 4,
        "check_compiled_of_sd1": 1,
        "judge": 1,
        **AFTER,
    }


# What is edited in the checkout beside its modules (of them: matrix.py) -> file, text, new text, and rules that have to run again
CODE_EDITS = {
    "the report's template": ("axbake/pages/report.html.j2", '"Pictures"', '"Images"', {"write_report"}),
    "the tokenizer": ("resources/clip/merges.txt", "\ni n\n", "\nn i\n", {"calibrate_text_encoder", "simulate"}),
}


@pytest.mark.parametrize("what", CODE_EDITS)
def test_an_edit_of_the_checkout_remakes_what_it_affects(project, what, tmp_path):
    name, old, new, affected = CODE_EDITS[what]
    project = project.copy_checkout(tmp_path / "checkout")
    project.edit_checkout(name, old, new)

    assert affected <= set(project.plan(REPORT).jobs)


def test_an_edit_is_seen_without_what_snakemake_remembers(project):
    project.forget()
    project.write_rows(ROW | {"prompt": "a tractor"})

    assert project.plan(REPORT).jobs == {"draw_reference": 1, **AFTER}


def test_a_checkpoint_of_other_bytes_remakes_everything_and_the_same_bytes_nothing(project):
    path = project.directory / ROW["checkpoint"]
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    assert project.plan(REPORT).jobs == {}

    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    jobs = project.plan(REPORT).jobs
    assert (jobs["import_sd1"], jobs["export_onnx"], jobs["compile_model"]) == (1, 4, 4)


def test_the_unet_alone_needs_no_vae_no_reference_and_no_report(fresh):
    plan = fresh.plan("results/tiny/unet.axmodel")

    assert plan.jobs == {
        "import_sd1": 1,
        "export_onnx": 1,
        "record_trajectories": 1,
        "calibrate_denoiser_of_sd1": 1,
        "compile_model": 1,
    }
    assert not [said for said in plan.messages if "vae" in said]


def test_the_text_encoder_alone_needs_no_drawing(fresh):
    plan = fresh.plan("results/tiny/text_encoder.axmodel")

    assert plan.jobs == {"import_sd1": 1, "export_onnx": 1, "calibrate_text_encoder": 1, "compile_model": 1}
    assert not [said for said in plan.messages if "text_encoder" not in said and not said.startswith("Importing tiny")]


def test_a_model_is_at_most_19_jobs(fresh):
    assert sum(fresh.plan(REPORT).jobs.values()) <= 19


@pytest.mark.parametrize("target", ["vae_decoder.axmodel", "schedule.npz"])
def test_an_artifact_can_be_asked_for_first(fresh, target):
    assert fresh.plan(f"results/tiny/{target}").jobs


def test_several_artifacts_can_be_asked_for_at_once(fresh):
    names = [f"{step}/{part}.{end}" for part in COMPONENTS for step, end in (("onnx", "onnx"), ("parity", "json"))]

    assert fresh.plan(*(f"results/tiny/{name}" for name in names)).jobs["export_onnx"] == 4


def test_all_models_of_the_table_are_the_default_target(fresh):
    fresh.write_rows(ROW, ROW | {"model": "other"})

    assert fresh.plan().jobs["compile_model"] == 8


def test_models_of_two_families_are_planned_together(fresh):
    tiny.save(tiny.small_sd2(), fresh.directory / "checkpoints" / "two.safetensors")
    fresh.write_rows(ROW, ROW | {"model": "two", "checkpoint": "checkpoints/two.safetensors"})

    plan = fresh.plan()

    each = ("import", "calibrate_denoiser_of", "calibrate_vae_of")
    assert {name: plan.jobs[f"{name}_{family}"] for name in each for family in ("sd1", "sd2")} == dict.fromkeys(each, 1)
    assert plan.jobs["compile_model"] == 8
    assert fresh.plan("results/two/unet.axmodel").jobs == {
        "import_sd2": 1,
        "export_onnx": 1,
        "record_trajectories": 1,
        "calibrate_denoiser_of_sd2": 1,
        "compile_model": 1,
    }


def test_a_rows_own_config_changes_its_own_jobs_alone(fresh):
    other = ROW | {"model": "other"}
    fresh.write_rows(ROW, other)
    fresh.plan()
    before = settings_of(fresh)
    (fresh.directory / "config" / "other.yaml").write_text("precision: {unet: S16}\ncalibration: {samples: 5}\n")
    fresh.write_rows(ROW, other | {"config": "config/other.yaml"})

    fresh.plan()

    after = settings_of(fresh)
    own = ("calibrate_denoiser/model", "compile_model/unet", "check_compiled/model")
    assert {name for name in before if before[name] != after[name]} == {f"other/{name}/settings.json" for name in own}
    assert before.keys() == after.keys()


def settings_of(project: Project) -> dict[str, str]:
    """Texts of the settings files of all jobs that were planned."""
    base = project.directory / "results"
    files = base.glob("*/settings/*/*/settings.json")
    return {path.relative_to(base).as_posix().replace("settings/", "", 1): path.read_text() for path in files}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "precision: {unet: S8}\n",
            "config/tiny.yaml: these entries cannot be used:\n  precision/unet: 'S8' does not match ^(U8",
        ),
        ("precision: {unte: S16}\n", "precision/unte: unknown; did you mean unet?"),
        ("toolchain: native\n", "config/tiny.yaml: toolchain: cannot be set for one row; set it in config/config.yaml"),
        ("- precision\n", "config/tiny.yaml: no entries; wanted entries of config.yaml"),
    ],
)
def test_a_rows_own_config_that_cannot_be_used_is_refused_in_words(fresh, text, words):
    own_config(text)(fresh)

    said = fresh.refusal("--dry-run", REPORT)

    assert "ProjectConfigError: config/tiny.yaml: " in said and words in said
    assert "Traceback" not in said


def test_a_broken_config_is_named_with_its_line_and_code_in_it_is_not_run(fresh):
    fresh.edit("config/config.yaml", "precision:", "precision: [")
    said = fresh.refusal("--dry-run", REPORT)
    assert "ProjectConfigError: config/config.yaml: " in said and "line" in said and "Traceback" not in said

    code = f"__use_yte__: true\nx:\n  ?open({str(fresh.directory / 'ran')!r}, 'w'):\n    1\n"
    (fresh.directory / "config" / "config.yaml").write_text(code)
    assert "__use_yte__: Snakemake would run the Python code in this file" in fresh.refusal("--dry-run", REPORT)
    assert not (fresh.directory / "ran").exists()


def test_results_that_cannot_be_written_are_a_sentence(fresh):
    (fresh.directory / "results").write_text("no folder")

    said = fresh.refusal("--dry-run", REPORT)

    assert "NotWritten: results/tiny/" in said and ": Not a directory" in said and "Traceback" not in said


def test_a_rows_own_config_that_is_not_there_is_named(fresh):
    fresh.write_rows(ROW | {"config": "config/nowhere.yaml"})

    said = fresh.refusal("--dry-run", REPORT)

    assert "line 2 (tiny), column config: config/nowhere.yaml not found; wanted a YAML file of config entries" in said
    assert "Traceback" not in said


def test_a_checkpoint_that_is_to_be_fetched_has_its_family_in_the_table(fresh):
    fetched = ROW | {"checkpoint": "https://example.org/tiny.safetensors", "sha256": "0" * 64}
    fresh.write_rows(fetched)

    said = fresh.refusal("--dry-run", REPORT)

    assert (
        f"MissingFamily: tiny: column family: empty, wanted one of {', '.join(FAMILIES)}, because the checkpoint is "
        "not downloaded yet" in said
    )
    assert "Traceback" not in said
    fresh.write_rows(fetched | {"family": "sd1"})
    assert fresh.plan(REPORT).jobs["fetch_checkpoint"] == 1


def test_a_family_that_is_not_the_checkpoints_is_refused(fresh):
    fresh.write_rows(ROW | {"family": "sd2"})

    said = fresh.refusal("--dry-run", REPORT)

    assert "WrongFamily: tiny: column family: sd2, but checkpoints/tiny.safetensors is of sd1" in said
    assert "Traceback" not in said


def truncate(project: Project) -> None:
    path = project.directory / ROW["checkpoint"]
    path.write_bytes(path.read_bytes()[:-1000])


def no_checkpoint(project: Project) -> None:
    (project.directory / ROW["checkpoint"]).unlink()


# What is wrong -> how, and what the error says
FAULTS = {
    "a misspelt setting": (
        config("npu_mode:", "npu_mdoe:"),
        ["ProjectConfigError", "npu_mdoe: unknown; did you mean npu_mode?"],
    ),
    "a height of 500": (
        row(height="500"),
        ["TableError", "line 2 (tiny), column height: 500 is not a multiple of 8; take 496 or 504"],
    ),
    "no checkpoint": (
        no_checkpoint,
        [
            "MissingCheckpoint",
            "checkpoints/tiny.safetensors is not there. Download it from https://example.org/models/tiny",
        ],
    ),
    "another checkpoint": (
        row(sha256="0123456789"),
        ["WrongChecksum", "the table says 0123456789"],
    ),
    "a truncated checkpoint": (
        truncate,
        ["UnreadableCheckpoint", "bytes that are not a complete safetensors file", "Download it again"],
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

    assert "nosuch: no row with this name in config/models.tsv; known: tiny." in text
    assert "Traceback" not in text
    assert "NAME: no row with this name" in fresh.refusal("results/NAME/report.html")

    fresh.edit("config/models.tsv", "tiny\tcheck", "# tiny\tcheck")
    assert (
        "tiny: no row with this name in config/models.tsv; line 2 is a comment. Remove the # before the row"
        in fresh.refusal(REPORT)
    )
    assert fresh.results() == []


def test_another_model_can_be_baked_while_one_has_no_checkpoint(fresh):
    fresh.write_rows(ROW, ROW | {"model": "other", "checkpoint": "checkpoints/nowhere.safetensors"})

    assert fresh.plan("results/tiny/unet.axmodel").jobs


def test_snakemakes_own_report_takes_the_page_in(project):
    project.bake("--report", "report.html", REPORT)

    page = (project.directory / "report.html").read_text()
    assert "Settings, pictures, distances, sizes and times of tiny." in page
