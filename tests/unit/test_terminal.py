"""The screen says which job begins, how far the run is and how long it takes; of a failed job its log, and no traceback."""

import logging
import os
import pty
import signal
import termios
import time
from pathlib import Path

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from axbake.cache import Cache
from axbake.jobs.terminal import Pending, Screen, forecasts, header, show_made, show_reports
from tests.unit.test_forecast import DEMO, LARGE

EXPORT = Pending(1, (("export_onnx", "unet"), ("measure_parity", "unet")), threads=1, needs=(), bake=DEMO)
COMPILE = Pending(2, (("compile_model", "unet"),), threads=4, needs=(1,), bake=DEMO)
REPORT = Pending(3, (("write_report", None),), threads=1, needs=(2,), bake=DEMO)
JOBS = [EXPORT, COMPILE, REPORT]


def screen(**seconds):
    times = {1: 40.0, 2: 4000.0, 3: 0.0} | {int(number[1:]): value for number, value in seconds.items()}
    shown = Screen(logging.Formatter("usual: %(message)s"), reports=lambda: "  report: results/a/report.html")
    shown.expect(JOBS, times, cores=2)
    return shown


def say(screen, text="", **extra):
    record = logging.makeLogRecord({"msg": text, "levelno": logging.INFO, "levelname": "INFO"} | extra)
    return screen.format(record)


def begin(screen, number, message):
    return say(screen, event=LogEvent.JOB_INFO, jobid=number, rule_msg=message)


def test_what_a_line_quotes_is_not_shown_raw():
    assert say(screen(), "a \x1b]0;title\x07\x1b[2Jb\x9b1m") == "usual: a b1m"


def test_each_job_is_said_with_its_number_and_the_time_that_is_left():
    shown = screen()

    # Compile and report wait for the export, so no core can do them meanwhile.
    assert begin(shown, 1, "Exporting the unet of a") == "[1 of 3, up to 1 h 7 min left] Exporting the unet of a"
    assert say(shown, "Finished jobid: 1", event=LogEvent.JOB_FINISHED, job_id=1) == ""
    assert begin(shown, 2, "Compiling") == "[2 of 3, up to 1 h 6 min left] Compiling"
    assert say(shown, "Finished jobid: 2", event=LogEvent.JOB_FINISHED, job_id=2) == ""
    assert begin(shown, 3, "Writing the report") == "[3 of 3] Writing the report"


def test_what_running_jobs_have_taken_is_not_left_any_more():
    shown = screen()

    assert shown.remaining() == ", up to 1 h 7 min left"
    assert shown.remaining({1: 30.0}) == ", up to 1 h 6 min left"
    shown.left.end(1)
    assert shown.remaining({2: 3000.0}) == ", up to 16 min 40 s left"
    assert shown.remaining({2: 5000.0}) == ""  # it takes longer than was forecast


def fail(screen, number):
    say(screen, event=LogEvent.JOB_ERROR, jobid=number, rule_name="compile", rule_msg=None, log=[])


def test_what_waits_for_a_failed_job_leaves_the_total_until_that_job_begins_again():
    other = Pending(4, (), threads=2, needs=(), bake=DEMO)
    shown = Screen(None)
    shown.expect([*JOBS, other], {1: 40.0, 2: 4000.0, 3: 10.0, 4: 100.0}, cores=2)
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
        **failed("logs/a/build/unet.log"),
    )

    assert said == "FAILED: Compiling the unet of a\n  its log: logs/a/build/unet.log"


def failed(log):
    """What Snakemake says of a failed job."""
    return {"event": LogEvent.JOB_ERROR, "jobid": 2, "rule_name": "compile_model", "rule_msg": None, "log": [str(log)]}


def test_a_job_that_ended_before_this_process_knew_of_the_ctrl_c_was_interrupted(tmp_path, monkeypatch):
    signals = []
    shown = screen()
    shown.expect([], {}, cores=1, interrupted=signals)
    begin(shown, 2, "Compiling the unet of a")
    log = tmp_path / "unet.log"
    log.write_text("2026-11-22 08:00:00,123 ERROR CompileError: of an earlier run\n")
    os.utime(log, (0, 0))
    monkeypatch.setattr(time, "sleep", lambda seconds: signals.append(signal.SIGINT))

    assert say(shown, **failed(log)) == "Interrupted: Compiling the unet of a"
    log.write_text("2026-11-22 08:00:00,123 ERROR CompileError: of this run\n")
    assert say(shown, **failed(log)).startswith("FAILED: ")


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
        {"text": "Building DAG of jobs..."},
        {"text": "Using shell: /usr/bin/bash"},
        {"text": "Assuming unrestricted shared filesystem usage."},
        {"text": "Conda environments: ignored"},
        {"text": "Complete log(s): /somewhere/.snakemake/log/x.log"},
        {"text": "Job stats:\njob    count", "event": LogEvent.RUN_INFO},
        {"text": "Provided resources: pulsar2=1", "event": LogEvent.RESOURCES_INFO},
        {"text": "WorkflowError:\nAt least one job did not complete successfully.", "event": LogEvent.ERROR},
        {"text": None, "event": LogEvent.PROGRESS},
        {"text": "RuleException:\nCalledProcessError in file x.smk, line 3", "event": LogEvent.ERROR},
    ],
)
def test_what_helps_nobody_is_left_out(extra):
    assert say(screen(), **extra) == ""


@pytest.mark.parametrize("event", [None, LogEvent.ERROR])
def test_all_else_is_said_as_snakemake_says_it(event):
    assert say(screen(), "MissingOutputException in rule x", event=event) == "usual: MissingOutputException in rule x"


def test_a_run_with_nothing_to_do_says_where_the_report_is():
    assert say(screen(), "Nothing to be done (all is up to date).") == (
        "usual: Nothing to be done (all is up to date).\n  report: results/a/report.html"
    )


def test_of_many_reports_some_are_named():
    paths = [f"results/{name}/report.html" for name in "abcdefg"]

    assert show_reports([]) == ""
    assert show_reports(paths[:5]).count("report: ") == 5 and "more" not in show_reports(paths[:5])
    assert show_reports(paths).endswith("\n  and 2 more; `make report` collects them on one page.")


def test_a_run_begins_with_what_it_will_do_and_where(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    places = {"cache": Path("/home/somebody/.cache/axbake"), "log": tmp_path / ".snakemake" / "log" / "a.log"}

    assert header({"a": 19, "b": 1}, cores=2, **places).splitlines() == [
        "20 jobs on 2 cores: 19 of a, 1 of b",
        "  build cache: ~/.cache/axbake",
        "  Snakemake's log: .snakemake/log/a.log",
    ]
    many = header(dict.fromkeys("abcdefg", 3), cores=1, cache=Path("/mnt/cache"), log=None)
    assert (
        many
        == "21 jobs on 1 core: 3 of a, 3 of b, 3 of c, 3 of d, 3 of e and 2 other models\n  build cache: /mnt/cache"
    )


def test_on_a_terminal_text_is_broken_between_words_and_what_goes_on_is_indented():
    _, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 40))
    shown = Screen(logging.Formatter("%(message)s"), terminal=terminal)
    path = "results/a_model_with_a_name/which/is/longer/than/the/terminal.json"

    lines = say(shown, f"  failed: onnx against torch is 132.2 dB; see {path} for more").split("\n")

    assert lines == ["  failed: onnx against torch is 132.2", "      dB; see", f"      {path}", "      for more"]
    os.close(terminal)


@pytest.mark.parametrize(
    ("made", "next_one"),
    [
        (["results/mine/unet.axmodel"], "Next: make results/mine/report.html too"),
        (["results/mine/unet.axmodel", "results/other/unet/up.axmodel"], "Next: make results/NAME/report.html too"),
        (["results/mine/report.html"], "Next: open report.html"),
        (["results/mine/onnx/unet.onnx"], ""),
    ],
)
def test_after_what_was_made_comes_what_to_do_next(made, next_one):
    *lines, last = show_made(made).split("\n")

    assert last.startswith(next_one or "Made ")
    assert lines[: len(made)] == [f"Made {path}" for path in made][: len(lines)]
