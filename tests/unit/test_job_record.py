"""What a job says of itself in its log is read back; what the build cache saved is summed."""

import logging
from dataclasses import replace

import pytest

from axbake.jobs.record import JobRecord, last_made, log_record, read_records
from axbake.jobs.running import job_log
from axbake.pages.report import times

RECORD = JobRecord(
    step="compile_model",
    component="unet",
    stored=True,
    seconds=0.4,
    work_seconds=4080.0,
    peak_memory=7.5,
    made="2026-11-22T08:54:03+00:00",
    tools={"onnx": "1.23.2"},
)


@pytest.fixture
def keep_logging():
    root = logging.getLogger()
    handlers = root.handlers
    yield
    root.handlers = handlers
    logging.captureWarnings(False)


def test_the_records_of_a_log_are_read_back_in_order_and_are_not_on_the_screen(tmp_path, capsys, keep_logging):
    log = tmp_path / "job.log"
    other = replace(RECORD, component="vae_decoder")
    with job_log(log):
        log_record(other)
        log_record(RECORD)
        logging.getLogger("axbake").info("done")

    assert read_records(log) == [other, RECORD]
    assert capsys.readouterr().err == ""


def test_a_log_without_a_record_has_none(tmp_path):
    (tmp_path / "job.log").write_text("2026-11-22 08:54:03,001 INFO done in 3.0 s\n")

    assert read_records(tmp_path / "job.log") == []


def test_only_stored_results_save_time_and_placing_is_taken_off():
    built = replace(RECORD, stored=False, seconds=10.0, work_seconds=10.0)
    slower = replace(RECORD, seconds=0.6, work_seconds=0.2)

    assert times([RECORD, built, slower]) == {
        "jobs": 3,
        "stored": 2,
        "work_seconds": 4090.2,
        "saved_seconds": 4079.6,
    }
    assert times([])["jobs"] == 0


def test_a_log_says_what_its_job_had_last_and_nothing_where_it_cannot_be_read(tmp_path, keep_logging):
    log = tmp_path / "job.log"
    with job_log(log):
        log_record(RECORD)

    assert last_made(log) == {("compile_model", "unet"): RECORD.made}
    for text in ("", " DEBUG job record: {", ' DEBUG job record: {"step": "of another version"}'):
        log.write_text(text)
        assert last_made(log) == {}
    assert last_made(tmp_path / "none.log") == {}
