"""Who is killed, or comes second, costs nothing: same results, nothing built twice."""

import subprocess

import pytest

from tests.workflow.kills import TARGET, WAYS, Battery, digests, faults, moments, traced
from tests.workflow.project import Project, ready


@pytest.fixture(scope="module")
def battery(baked, checkpoint, tmp_path_factory) -> Battery:
    return Battery(tmp_path_factory.mktemp("battery"), checkpoint, baked.cache)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "snakemake"])  # that one alone: test_slurm.py
def test_after_a_kill_the_next_run_gives_the_same_results_and_builds_nothing_twice(way, battery):
    (moment,) = moments("tests", 1)

    assert battery.trial(way, moment) == []


def test_two_checkouts_that_ask_at_once_build_once(checkpoint, tmp_path):
    cache, trace = tmp_path / "cache", tmp_path / "trace"
    projects = [
        traced(Project.lay_out(tmp_path / name / "project", cache, checkpoint), tmp_path / name / "checkout", trace)
        for name in ("one", "two")
    ]
    running = [
        subprocess.Popen(
            [*p.command, TARGET],
            cwd=p.directory,
            env=p.environment | ready().jobs_environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for p in projects
    ]
    said = [process.communicate()[1] for process in running]

    assert [process.returncode for process in running] == [0, 0], said
    assert digests(projects[0]) == digests(projects[1])
    assert faults(trace) == []
    begun = [line.split()[1] for line in trace.read_text().splitlines() if line.startswith("begun")]
    assert len(begun) == len(set(begun)) == len(projects[0].steps())


def test_a_damaged_blob_is_noticed_and_built_again(project):
    before = digests(project)
    axmodel = (project.directory / "results" / "tiny" / "text_encoder.axmodel").read_bytes()
    (blob,) = (path for path in project.cache.glob("blobs/*/*") if path.read_bytes() == axmodel)
    blob.chmod(0o644)
    blob.write_bytes(axmodel[:-1] + bytes([axmodel[-1] ^ 1]))
    (project.directory / "results" / "tiny" / "text_encoder.axmodel").unlink()

    project.bake(TARGET)

    log = (project.directory / "logs" / "tiny" / "build" / "text_encoder.log").read_text()
    assert "damaged blob of compile_model/text_encoder" in log
    assert digests(project) == before
