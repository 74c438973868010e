"""A live display on a real terminal: nothing tears it, nothing is lost in it, and what goes wrong in it harms nobody."""

import os
import re
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from axbake.jobs.display import Display, Running, bar_of, finished_line, part_of, shorten
from tests.terminal import run_on_terminal

ROOT = Path(__file__).parents[2]
MESSAGE = "Exporting the unet of demo"
# A run of two jobs. It goes on when there is a file `seen`.
RUN = """
import os, pathlib, sys, time
from axbake.jobs.display import Display

log = pathlib.Path("unet.log")
log.write_text("2026-01-01 00:00:00,000 INFO of the last run: 7 of 8\\n")
display = Display(os.dup(2), 2, {1: 40.0, 2: None}, lambda elapsed: ", 40 s left")
BREAK
display.start()
display.begin(1, "Exporting the unet of demo", log)
display.begin(2, "Checking demo", None)
print("as the job began", file=sys.stderr)
log.write_text("2026-01-01 00:00:00,000 DEBUG not told\\n2026-01-01 00:00:00,000 INFO sample 3 of 8\\n")
while not pathlib.Path("seen").exists():
    time.sleep(0.01)
os.system("echo from a child; echo of its errors >&2")
sys.stderr.write("half a line")
sys.stderr.write(", and " + "its other half " * 9 + "\\n")
display.finish(1)
display.fail(2)
sys.stderr.write("the last word")
display.stop()
print("\\nafter the end")
"""


def run(tmp_path, columns, *, breaks="", until="began.*3 of 8.*40 s left"):
    """Status and terminal of RUN; what the terminal showed while the jobs ran."""
    live = []

    def answer(terminal):
        if not live and re.search(until, "\n".join(terminal.lines), re.DOTALL):
            live.extend(terminal.lines)
            (tmp_path / "seen").touch()
        return b""

    command = [sys.executable, "-c", RUN.replace("BREAK", breaks)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    status, terminal = run_on_terminal(command, columns, cwd=tmp_path, environment=environment, answer=answer)
    return status, terminal, live


@pytest.mark.parametrize("columns", [80, 120])
def test_jobs_have_a_line_each_while_they_run_and_messages_are_above(columns, tmp_path):
    status, _, live = run(tmp_path, columns)

    assert status == 0
    first, exporting, checking, whole = [line for line in live if line]
    assert first == "as the job began"
    assert MESSAGE in exporting and exporting.endswith("sample 3 of 8")
    assert checking.rstrip(" ━").endswith("Checking demo")
    assert whole.endswith("0 of 2 jobs, 40 s left")
    assert max(map(len, live)) < columns


@pytest.mark.parametrize("columns", [80, 120])
def test_nothing_is_lost_or_torn_and_of_the_live_part_nothing_is_left(columns, tmp_path):
    _, terminal, _ = run(tmp_path, columns)

    finished = [line for line in terminal.lines if line.endswith(("s  1 of 2 jobs", f"s  {MESSAGE}"))]
    assert len(finished) == 2
    said = [line for line in terminal.lines if line and line not in finished]
    assert said[:3] == ["as the job began", "from a child", "of its errors"]
    words = " ".join(" ".join(said[3:]).split())
    assert words.startswith("half a line, and " + "its other half " * 9)
    assert not [line for line in said if "━" in line or "Checking demo" in line]
    assert "the last word" in said and said[-1] == "after the end"
    assert terminal.cursor


BREAKS = {
    "it cannot be drawn": "Display.live_part = lambda *_: 1 / 0",
    "a line cannot be shown": "Display._print = lambda *_: 1 / 0",
}


@pytest.mark.parametrize("breaks", BREAKS.values(), ids=BREAKS)
def test_where_the_display_fails_the_run_goes_on_with_plain_lines(breaks, tmp_path):
    status, terminal, _ = run(tmp_path, 80, breaks=breaks, until="as the job began")

    assert status == 0 and terminal.cursor
    said = "".join(terminal.lines)
    for line in ("as the job began", "from a child", "of its errors", "half a line, and its other"):
        assert said.count(line) == 1
    assert "the last word" in said and terminal.lines[-2] == "after the end"
    assert "Traceback" not in said


def test_what_ends_without_a_stop_leaves_the_terminal_as_it_was(tmp_path):
    status, terminal, _ = run(tmp_path, 80, breaks="Display.fail = lambda *_: sys.exit('an error')")

    assert status == 1 and terminal.cursor
    assert "an error" in terminal.lines
    assert not [line for line in terminal.lines if "━" in line]


LONG = (
    "Drawing calibration pictures of the size of a_model_with_a_name, and encoding them with its VAE (one of several)"
)


def drawn(display, columns, rows=24):
    """Lines of the live part."""
    console = Console(width=columns, height=rows, force_terminal=False)
    with console.capture() as captured:
        console.print(display.live_part(columns, rows))
    return captured.get().splitlines()


@pytest.mark.parametrize("columns", [50, 77, 117])
def test_a_line_is_as_long_as_the_terminal_allows_and_cut_after_a_word(columns, tmp_path):
    display = Display(2, 2, {}, lambda _: ", 1 h 40 min left as the last time, and what is new")
    log = tmp_path / "log"
    display.begin(1, LONG, log)
    said = "encoding with the encoder of this model: picture 12 of 640"
    log.write_text(f"2026-01-01 00:00:00,000 INFO {said}\n")

    lines = drawn(display, columns)

    assert len(lines) == 2 and max(map(len, lines)) <= columns
    assert "12 of 640" in lines[0]
    words = set(f"{LONG} {said} …".split())
    shown = lines[0].split()[2:]  # behind the seconds
    assert [word for word in shown if word not in words and not set(word) <= set("━╺╸")] == []


def test_more_jobs_than_rows_are_counted(tmp_path):
    display = Display(2, 50, {}, lambda _: "")
    for number in range(50):
        display.begin(number, f"Compiling {number}", None)

    lines = drawn(display, 80, rows=24)

    assert len(lines) == 23
    assert lines[-2].strip() == "and 29 more" and lines[-1].endswith("0 of 50 jobs")


def test_without_jobs_the_line_of_the_run_is_all():
    assert len(drawn(Display(2, 5, {}, lambda _: ""), 80)) == 1


@pytest.mark.parametrize(
    "said, part",
    [
        ("observing: sample 3 of 8", "3 of 8"),
        ("copied, in %: 40 of 100", "40 of 100"),
        ("quantizing 12 of 690, 0:00:12", "12 of 690"),
        ("copying 12.0 of 100.5 MB to a board", ""),
        ("done in 2.1 s", ""),
    ],
)
def test_how_far_a_job_is_stands_in_what_it_says(said, part):
    assert part_of(said) == part


@pytest.mark.parametrize(
    "said, seconds, bar",
    [
        ("sample 3 of 8", None, (3, 8)),
        ("sample 3 of 8", 1000.0, (3, 8)),
        ("sample 8 of 8", None, (0, None)),  # and now something else
        ("building the unet", None, (0, None)),
    ],
)
def test_a_bar_is_of_what_the_log_says(said, seconds, bar, tmp_path):
    job = Running("Exporting", tmp_path / "log", seconds)
    job.log.write_text(f"2026-01-01 00:00:00,000 INFO {said}\n")

    drawn_bar = bar_of(job, job.said())
    assert (drawn_bar.completed, drawn_bar.total) == bar


def test_where_the_log_does_not_say_a_bar_is_of_the_time_that_the_job_may_take(tmp_path):
    job = Running("Exporting", None, 1000.0, begun=time.monotonic() - 500)

    drawn_bar = bar_of(job, job.said())
    assert drawn_bar.total == 1000 and 500 <= drawn_bar.completed < 1000
    assert bar_of(Running("Exporting", None, 10.0, begun=time.monotonic() - 500), "").total is None


def test_what_goes_on_stands_below_the_message():
    lines = finished_line("cache", LONG, 80).plain.split("\n")

    assert lines[0].startswith("      cache  Drawing calibration") and max(map(len, lines)) <= 80
    assert len(lines) > 1 and all(line.startswith(" " * 17) for line in lines[1:])
    assert " ".join(" ".join(lines).split()) == f"cache {LONG}"


def test_text_is_cut_after_a_word():
    assert shorten("sample 3 of 8", 13) == "sample 3 of 8"
    assert shorten("building the unet", 12) == "building …"
    assert shorten("building", 5) == "…"
