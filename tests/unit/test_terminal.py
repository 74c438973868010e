"""The screen says which job begins, how far the run is and how long it takes; of a failed job its log, and no traceback."""

import logging

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from axbake.cache import Cache
from axbake.jobs.terminal import Pending, Screen, forecasts
from tests.unit.test_forecast import DEMO, LARGE

EXPORT = Pending(1, (("export_onnx", "unet"), ("measure_parity", "unet")), threads=1, needs=(), bake=DEMO)
COMPILE = Pending(2, (("compile_model", "unet"),), threads=4, needs=(1,), bake=DEMO)
REPORT = Pending(3, (("write_report", None),), threads=1, needs=(2,), bake=DEMO)
JOBS = [EXPORT, COMPILE, REPORT]


def screen(**seconds):
    times = {1: 40.0, 2: 4000.0, 3: 0.0} | {int(number[1:]): value for number, value in seconds.items()}
    return Screen(logging.Formatter("usual: %(message)s"), JOBS, times, cores=2)


def say(screen, text="", **extra):
    record = logging.makeLogRecord({"msg": text, "levelno": logging.INFO, "levelname": "INFO"} | extra)
    return screen.format(record)


def begin(screen, number, message):
    return say(screen, event=LogEvent.JOB_INFO, jobid=number, rule_msg=message)


def test_each_job_is_said_with_its_number_and_the_time_that_is_left():
    shown = screen()

    # Compile and report wait for the export, so no core can do them meanwhile.
    assert begin(shown, 1, "Exporting the unet of a") == "[1 of 3, up to 1 h 7 min left] Exporting the unet of a"
    assert say(shown, "Finished jobid: 1", event=LogEvent.JOB_FINISHED, job_id=1) == ""
    assert begin(shown, 2, "Compiling") == "[2 of 3, up to 1 h 6 min left] Compiling"
    assert say(shown, "Finished jobid: 2", event=LogEvent.JOB_FINISHED, job_id=2) == ""
    assert begin(shown, 3, "Writing the report") == "[3 of 3] Writing the report"


def fail(screen, number):
    say(screen, event=LogEvent.JOB_ERROR, jobid=number, rule_name="compile", rule_msg=None, log=[])


def test_what_waits_for_a_failed_job_leaves_the_total_until_that_job_begins_again():
    other = Pending(4, (), threads=2, needs=(), bake=DEMO)
    shown = Screen(None, [*JOBS, other], {1: 40.0, 2: 4000.0, 3: 10.0, 4: 100.0}, cores=2)
    begin(shown, 1, "Exporting")
    fail(shown, 1)

    assert begin(shown, 4, "Drawing") == "[2 of 4, up to 1 min 40 s left] Drawing"
    assert begin(shown, 1, "Exporting") == "[2 of 4, up to 1 h 8 min left] Exporting"


def test_a_job_that_was_never_built_has_a_time_too(tmp_path):
    large = Pending(4, EXPORT.steps, threads=1, needs=(), bake=LARGE)

    times = forecasts(Cache(tmp_path / "cache"), [EXPORT, COMPILE, REPORT, large], cores=2)

    assert all(seconds > 1 for seconds in times.values())
    assert times[4] > 1.5 * times[1]


def test_a_failed_job_is_a_line_and_its_log():
    shown = screen()
    begin(shown, 2, "Compiling the unet of a")

    said = say(
        shown,
        event=LogEvent.JOB_ERROR,
        jobid=2,
        rule_name="compile_model",
        rule_msg=None,
        log=["logs/a/build/unet.log"],
    )

    assert said == "FAILED: Compiling the unet of a\n  its log: logs/a/build/unet.log"


def test_why_a_job_failed_on_a_cluster_is_told_too():
    said = say(
        screen(),
        event=LogEvent.JOB_ERROR,
        jobid=2,
        rule_name="compile_model",
        rule_msg="SLURM-job '5' failed, SLURM status is: 'TIMEOUT'.",
        log=["nowhere.log"],
    )

    assert "\n  Slurm says TIMEOUT: ended by its time limit" in said


@pytest.mark.parametrize(
    "extra",
    [
        {"text": "Select jobs to execute..."},
        {"text": "Execute 2 jobs..."},
        {"text": None, "event": LogEvent.PROGRESS},
        {"text": "RuleException:\nCalledProcessError in file x.smk, line 3", "event": LogEvent.ERROR},
    ],
)
def test_what_helps_nobody_is_left_out(extra):
    assert say(screen(), **extra) == ""


@pytest.mark.parametrize("event", [None, LogEvent.ERROR, LogEvent.RUN_INFO])
def test_all_else_is_said_as_snakemake_says_it(event):
    assert say(screen(), "MissingOutputException in rule x", event=event) == "usual: MissingOutputException in rule x"
