"""What became of each row: why a job failed, the screen's text, the table and the page of all models."""

import csv
import json
import os
import time

import pytest
from PIL import Image

from axbake.jobs.failure import describe_failure
from axbake.pages.overview import write_overview
from axbake.pages.summary import Outcome, RowRefused, baked_outcome, refuse_row, show_outcomes, write_summary
from axbake.users_files import UnreadableFile

ROWS = {name: {"height": 480, "width": 320} for name in ("a", "b", "c", "d")}
OUTCOMES = [
    Outcome("a", "done"),
    Outcome("b", "failed", "compile_model: CompileError: <unet>: too large", "logs/b/build/unet.log"),
    Outcome("c", "skipped", "MissingCheckpoint: c: not there\nMissingEmbedding: c: not there"),
    Outcome("d", "unfinished", "3 jobs are left"),
]
# Of a model's report.json, what the page of all models shows
FACTS = {
    "model": "a",
    "emulated": False,
    "family": "Stable Diffusion 1.x",
    "settings": {"height": 64, "width": 64},
    "distance": {"image_psnr_db": 41.1, "image_ssim": 0.998},
    "components": {"unet": {"bytes": 2_500_000}},
    "times": {"jobs": 23, "stored": 2, "work_seconds": 60.0, "saved_seconds": 4.0},
    "thumbnails": ["data:,", "data:,"],
}


@pytest.fixture
def results(tmp_path):
    """Results of the model that is done."""
    place = tmp_path / "results"
    (place / "a" / "build").mkdir(parents=True)
    (place / "a" / "simulation").mkdir()
    (place / "a" / "build" / "unet.json").write_text(json.dumps({"emulated": True, "bytes": 2_500_000, "version": "v"}))
    (place / "a" / "build" / "unet.config.json").write_text("{}")  # an earlier version's
    distance = {"image_psnr_db": 41.1, "image_ssim": 0.998, "latent_psnr_db": 49.0}
    (place / "a" / "simulation" / "distance.json").write_text(json.dumps(distance))
    return place


def test_the_table_has_a_row_a_model_and_figures_of_those_that_are_done(results):
    write_summary(OUTCOMES, ROWS, results=results)

    with (results / "summary.tsv").open() as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    assert [(row["model"], row["state"]) for row in table] == [(o.model, o.state) for o in OUTCOMES]
    assert (table[0]["megabytes"], table[0]["image_psnr_db"], table[0]["compiled"]) == ("2.5", "41.1", "emulated")
    assert table[2]["why"] == "MissingCheckpoint: c: not there; MissingEmbedding: c: not there"
    assert not list(results.glob(".summary*"))


def test_every_graph_of_a_chain_counts(results):
    chain = results / "a" / "build" / "transformer"
    chain.mkdir()
    for graph in ("first", "last"):
        said = {"emulated": True, "bytes": 1_000_000, "version": "v"}
        (chain / f"{graph}.json").write_text(json.dumps(said))

    write_summary(OUTCOMES[:1], ROWS, results=results)

    with (results / "summary.tsv").open() as file:
        (row,) = csv.DictReader(file, delimiter="\t")
    assert row["megabytes"] == "4.5"


@pytest.mark.parametrize(
    ("newer", "outdated"),
    [("unet.axmodel", True), ("unet/last.axmodel", True), ("emulated/unet.axmodel", False), ("reference.png", False)],
)
def test_a_boards_picture_is_outdated_when_a_model_of_the_boards_is_newer(tmp_path, newer, outdated):
    place = tmp_path / "a"
    for folder in ("board", "unet", "emulated"):
        (place / folder).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(place / "board" / "image.png")
    for name in ("unet/chain.json", "unet.axmodel", "unet/last.axmodel", "emulated/unet.axmodel", "reference.png"):
        (place / name).touch()
        os.utime(place / name, (1e9, 1e9))
    os.utime(place / newer, (4e9, 4e9))
    (place / "report.json").write_text(json.dumps(FACTS))

    write_overview(tmp_path, tmp_path / "report.html", table=["a"])

    assert ("older than the models" in (tmp_path / "report.html").read_text()) == outdated


def test_figures_of_emulated_models_are_not_told_of_real_ones(results):
    record = results / "a" / "build" / "unet.json"
    record.write_text(json.dumps({"emulated": False, "bytes": 2_500_000, "version": "4.2"}))

    write_summary(OUTCOMES[:1], ROWS, results=results)

    with (results / "summary.tsv").open() as file:
        (row,) = csv.DictReader(file, delimiter="\t")
    assert (row["compiled"], row["megabytes"], row["image_psnr_db"]) == ("4.2", "2.5", "")


def test_the_page_over_all_models_tells_what_the_table_does_and_escapes_it(results):
    write_summary(OUTCOMES, ROWS, results=results)

    write_overview(results, results / "report.html", table=[*ROWS, "new"])

    page = (results / "report.html").read_text()
    assert "&lt;unet&gt;: too large" in page
    assert '<a href="../logs/b/build/unet.log">' in page
    assert "3 jobs are left" in page
    assert "0 baked, 5 of the table not done" in page  # of «a» there is no report here


@pytest.mark.parametrize(
    ("picture", "state", "why"),
    [
        (None, "done", ""),
        ({"verdict": "fair", "why": "PSNR", "advice": ["x"]}, "done", ""),
        ({"verdict": "poor", "why": "PSNR 9 dB", "advice": ["this", "that"]}, "poor", "PSNR 9 dB. Try: this; that."),
    ],
)
def test_a_model_whose_picture_is_poor_is_not_called_done(results, picture, state, why):
    assert baked_outcome("a", results) == Outcome("a", "done")  # no report was asked for
    (results / "a" / "report.json").write_text(json.dumps(FACTS | ({"picture": picture} if picture else {})))

    outcome = baked_outcome("a", results)

    assert outcome == Outcome("a", state, why)
    write_summary([outcome], ROWS, results=results)
    with (results / "summary.tsv").open() as file:
        (row,) = csv.DictReader(file, delimiter="\t")
    assert (row["state"], row["why"], row["image_psnr_db"]) == (state, why, "41.1")
    write_overview(results, results / "report.html", table=["a"])
    assert "Not done" not in (results / "report.html").read_text()


def test_the_screen_tells_every_fault_and_log_but_not_what_is_well():
    said = show_outcomes(OUTCOMES, of_all=True)

    assert said.startswith("4 models: 1 done, 1 failed, 1 skipped, 1 unfinished.\n")
    assert "b: compile_model: CompileError: <unet>: too large" in said
    assert "log: logs/b/build/unet.log" in said
    assert said.count("skipped    c: ") == 2
    assert " a: " not in said


def test_a_failure_is_told_by_the_last_error_in_its_log(tmp_path):
    log = tmp_path / "unet.log"
    log.write_text(
        "2026-11-22 08:00:00,123 ERROR First: one\n2026-11-22 08:00:01,456 ERROR CompileError: unet: two\nTraceback\n"
    )

    assert describe_failure([log], None, since=0) == "CompileError: unet: two"
    assert "without writing an error" in describe_failure([log], None, since=time.time() + 60)  # another run's
    assert "without writing an error" in describe_failure([tmp_path / "none.log"], None, since=0)


def test_an_interrupt_is_no_failure(tmp_path):
    log, other, silent = (tmp_path / name for name in ("unet.log", "other.log", "silent.log"))
    log.write_text("2026-11-22 08:00:00,123 ERROR interrupted\nTraceback (most recent call last):\n")
    other.write_text("2026-11-22 08:00:00,123 ERROR CompileError: unet: one\n")
    silent.write_text("2026-11-22 08:00:00,123 INFO calibrating: 1 of 8\n")

    assert describe_failure([log], None, since=0) == "interrupted"
    for ended in (log, silent):
        assert describe_failure([ended], None, since=0, interrupted=True) == ""
    assert describe_failure([], "SLURM status is: 'CANCELLED'", since=0, interrupted=True) == ""
    assert describe_failure([other], None, since=0, interrupted=True) == "CompileError: unet: one"


@pytest.mark.parametrize(
    ("status", "cluster", "words"),
    [
        ("TIMEOUT", "", "Slurm says TIMEOUT: ended by its time limit"),
        ("FAILED", "slurmstepd: error: *** STEP 5.0 CANCELLED AT 09:00 DUE TO TIME LIMIT ***", "time limit"),
        ("FAILED", "slurmstepd: error: StepId=5.0 exceeded memory limit (900 > 500), being killed", "memory ran out"),
        ("OUT_OF_MEMORY", "error: Detected 1 oom_kill event in StepId=5.batch.", "memory ran out"),
        ("FAILED", "", "Slurm says FAILED: it ended, and its log does not say why"),
    ],
)
def test_what_a_cluster_ended_is_told_in_words(tmp_path, status, cluster, words):
    own, of_cluster = tmp_path / "unet.log", tmp_path / "5.log"
    own.write_text("2026-11-22 08:00:00,123 INFO calibrating: 1 of 8\n")
    of_cluster.write_text(cluster)
    said = f"SLURM-job '5' failed, SLURM status is: '{status}'. Detailed failure reason unavailable"

    assert words in describe_failure([own, of_cluster], said, since=0)


def test_a_refused_row_is_an_error_of_its_reason(tmp_path):
    with pytest.raises(RowRefused, match="MissingCheckpoint: c: not there"):
        refuse_row(why="MissingCheckpoint: c: not there", never=tmp_path / "never")


@pytest.mark.parametrize("content", ["{", "null", "[]", "{}", '{"model": "a", "components": [1]}'])
def test_a_damaged_report_is_named(tmp_path, content):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "report.json").write_text(content)

    with pytest.raises(UnreadableFile, match=r"a/report\.json: "):
        write_overview(tmp_path, tmp_path / "report.html", table=["a"])
    assert baked_outcome("a", tmp_path).state == "done"
