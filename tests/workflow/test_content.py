"""Content decides: real work after an edit is exactly what the edit affects, and dry run and planner said so before."""

from collections import Counter

import pytest

from axbake.jobs.record import read_records
from tests.workflow.matrix import (
    EDITS,
    LINE_OF_PLAN,
    Edit,
    bake,
    foretell,
    job_name,
    job_of,
    jobs_of,
    observe,
    prepare,
    short,
)
from tests.workflow.project import REPORT, ROOT, ROW

# Of edits that affect the same jobs, one; `python -m tests.workflow.matrix` carries them all out, and bakes again afterwards.
FIRST_OF_EACH = {edit.work: edit for edit in reversed(EDITS) if edit.work}.values()
# Those that take half a minute or more each: here they are only foretold, and that command carries them out.
FORETOLD = (
    "a checkpoint of other bytes and an older date; only its VAE decoder differs",
    "a calibration prompt",
    "Pulsar2's precision of the VAE decoder",
)
# Those that are like others: that command alone carries them out.
LEFT_OUT = (
    "a real change of all exports, same results",
    "the reference's prompt",
    "clip skip",
    "the emulator's version",
    "the height",
    "a LoRA of the UNet",
    "the number of samples",
    "the negative prompt",
    "the guidance scale",
    "an embedding that no prompt names",
    "a VAE of its own",
    "chunks of prompts",
)
# Of those that affect nothing, those that change all files, or what is remembered of them
OF_ALL = (
    *("project and checkout copied elsewhere", "`git clone` anew, the cache kept"),
    "`.snakemake` and `.axbake` deleted",
)
TAKEN_BACK = "a prompt of all text encoders"  # is baked again then, and not only planned


def agree(edit: Edit, dry_run: Counter[str], plan: dict[str, str]) -> None:
    """Assert that dry run and planner say the same, and no other than what *edit* affects."""
    assert Counter(name.partition("/")[0] for name in plan) == dry_run
    work = {job_of(step) for step in edit.work}
    assert jobs_of(plan, "build") <= work <= jobs_of(plan, "build") | jobs_of(plan, "unknown")


def test_every_step_is_of_the_job_that_it_is_said_to_be_of(baked):
    logs = baked.directory / "logs" / "tiny"
    for log in logs.rglob("*.log"):
        for record in read_records(log):
            step = f"{record.step}/{record.component}" if record.component else record.step
            assert job_of(step) == job_name(log.relative_to(logs)), step


@pytest.mark.parametrize("edit", [e for e in FIRST_OF_EACH if e.what in FORETOLD], ids=lambda edit: edit.what)
def test_dry_run_and_planner_foretell_what_an_edit_affects(edit, baked, tmp_path):
    project = prepare(edit, baked, tmp_path)

    agree(edit, *foretell(edit.carry_out(project) or project))


@pytest.mark.parametrize(
    "edit", [e for e in FIRST_OF_EACH if e.what not in (*FORETOLD, *LEFT_OUT)], ids=lambda edit: edit.what
)
def test_real_work_is_exactly_what_the_edit_affects_and_all_is_stored_once_it_is_taken_back(edit, baked, tmp_path):
    seen = observe(edit, prepare(edit, baked, tmp_path))

    assert seen.work == edit.work
    agree(edit, seen.dry_run, seen.plan)
    assert seen.started == set(seen.plan)
    assert set(seen.plan_back.values()) <= {"stored", "run"}
    if edit.what == TAKEN_BACK:
        assert bake(seen.project) == (set(seen.plan_back), set())
        assert not seen.project.plan(REPORT).jobs


def test_edits_that_affect_nothing_do_no_work_one_after_the_other(baked, tmp_path):
    project = baked.copy(tmp_path).copy_checkout(tmp_path / "checkout")

    for edit in EDITS:
        if not edit.work:
            project = edit.carry_out(project) or project
            if edit.what in OF_ALL:
                assert bake(project)[1] == set(), edit.what

    assert bake(project)[1] == set()  # after all others together; the command's table names the one


def test_the_table_in_the_docs_is_of_these_edits():
    lines = (ROOT / "docs" / "rebuilds.md").read_text().splitlines()
    names, _, *rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    said = [dict(zip(names, row, strict=True)) for row in rows]

    assert [(row["edit"], row["real work, expected"]) for row in said] == [
        (edit.what, short(set(edit.work))) for edit in EDITS
    ]
    assert {row["seen"] for row in said} == {"the same"}


def test_another_model_of_the_same_checkpoint_compiles_nothing_anew(project):
    project.write_rows(ROW, ROW | {"model": "other"})

    plan = {name: kind for kind, name in LINE_OF_PLAN.findall(project.planner("results/other/report.html"))}

    assert jobs_of(plan, "build") == {"draw_reference"}  # its picture names the model
    assert jobs_of(plan, "unknown") == {"simulate"}


def test_the_reason_of_a_build_is_told_in_values(project):
    project.write_rows(ROW | {"seed": "8"})
    project.edit(ROW["calibration_prompts"], "penguin", "tractor")

    said = project.planner(REPORT)

    assert "draw_reference: picture/seed: 7 → 8" in said
    assert "prompt 2 changed" in said
