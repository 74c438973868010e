"""The screen says which job begins, how far the run is and how long it takes; of a failed job its log, and no traceback."""

import logging
import time

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from axbake.cache import Cache, Key
from axbake.jobs.terminal import Pending, Screen, last_times

EXPORT = Pending(1, (("export_onnx", "unet"), ("measure_parity", "unet")), threads=1)
COMPILE = Pending(2, (("compile_model", "unet"),), threads=4)
REPORT = Pending(3, (), threads=1)
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

    # The export takes one of two cores, so another job can take the other meanwhile.
    assert (
        begin(shown, 1, "Exporting the unet of a")
        == "[1 of 3, 1 h 7 min left as the last time] Exporting the unet of a"
    )
    assert say(shown, "Finished jobid: 1", event=LogEvent.JOB_FINISHED, job_id=1) == ""
    assert begin(shown, 2, "Compiling") == "[2 of 3, 1 h 6 min left as the last time] Compiling"
    assert say(shown, "Finished jobid: 2", event=LogEvent.JOB_FINISHED, job_id=2) == ""
    assert begin(shown, 3, "Writing the report") == "[3 of 3] Writing the report"


def test_no_time_is_promised_for_what_was_never_built():
    assert begin(screen(_2=None), 1, "Exporting") == "[1 of 3, 20 s left as the last time, and what is new] Exporting"
    assert begin(screen(_1=None, _2=None), 1, "Exporting") == "[1 of 3] Exporting"


def store(cache, directory, step, component, seconds):
    """Let the build of a step have taken so many seconds."""
    key = Key(step, component, {"settings": {"seconds": seconds}}, {}, {"made": "made"})

    def build(made):
        time.sleep(seconds)
        made["made"].touch()

    cache.fetch_or_build(key, {"made": directory / f"{step}-{component}" / "made"}, build)


def test_a_job_takes_as_long_as_the_last_builds_of_its_steps_together(tmp_path):
    cache = Cache(tmp_path / "cache")
    for name, seconds in (("export_onnx", 0.3), ("measure_parity", 0.2)):
        store(cache, tmp_path, name, "unet", seconds)
    other = Pending(4, (("export_onnx", "unet"), ("measure_parity", "vae_decoder")), threads=1)

    times = last_times(cache, [EXPORT, COMPILE, REPORT, other])

    assert times[1] == pytest.approx(0.5, abs=0.2)
    assert (times[2], times[3], times[4]) == (None, 0.0, None)  # never built; takes no time; a part never built


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
