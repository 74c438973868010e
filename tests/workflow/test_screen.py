"""What a user sees of a run: live on a terminal, in plain lines elsewhere, and always where the report is."""

import signal

import pytest

from tests.terminal import Terminal, run_on_terminal
from tests.workflow.project import REPORT

LOGS = ".snakemake/log"
UNET = "results/tiny/unet.axmodel"
MADE = [f"Made {REPORT}", f"Made {UNET}"]
#: What Snakemake says of a run, that is left to its log
PREAMBLE = (
    "Building DAG of jobs...",
    "Job stats:",
    "Provided cores: 2",
    "Select jobs to execute...",
    "Complete log(s): ",
)
POOR = {"old": "decoder: 60", "new": "decoder: 190"}


def show(project, columns, *arguments, answer=lambda _: b"", **environment):
    """Exit status and terminal of a run of Snakemake in the project."""
    return run_on_terminal(
        [*project.command, *arguments],
        columns,
        cwd=project.directory,
        environment=project.environment | {"TERM": "xterm-256color"} | environment,
        answer=answer,
    )


def log(project):
    """Snakemake's log of the last run."""
    return max((project.directory / LOGS).iterdir()).read_text()


def after_profile(terminal: Terminal) -> list[str]:
    """Lines that are not empty, behind the one on the profile, which is written before the Snakefile is read."""
    lines = [line for line in terminal.lines if line]
    # A terminal breaks it wherever its edge is, which depends on the path of the checkout.
    read = ["".join(lines[: number + 1]).replace(" ", "") for number in range(len(lines))]
    last = next(number for number, text in enumerate(read) if text.endswith("commandlinearguments."))
    return lines[last + 1 :]


def lose(project):
    """Leave the report and a model to be made, of which the build cache has the second."""
    for path in (UNET, REPORT):
        (project.directory / path).unlink()


@pytest.mark.parametrize("columns", [80, 120])
def test_on_a_terminal_a_run_is_shown_live_and_ends_with_what_was_made(columns, project):
    lose(project)
    live = []

    def look(terminal):
        live.extend(line for line in terminal.lines if "━" in line)
        return b""

    status, terminal = show(project, columns, REPORT, UNET, answer=look)

    lines = after_profile(terminal)
    assert status == 0 and terminal.cursor
    jobs = int(lines[0].split()[0])
    assert lines[0] == f"{jobs} jobs on 2 cores: {jobs} of tiny"
    assert any(f"0 of {jobs} jobs" in line for line in live) and max(map(len, live)) < columns
    assert "      cache  Compiling the unet of tiny (toolchain: emulator)" in lines
    assert [line for line in lines if line.endswith(" s  Writing the report of tiny")]
    assert [line for line in lines if line.endswith(f" s  {jobs} of {jobs} jobs")]
    assert set(MADE) <= set(lines) and lines[-1].endswith("page.")
    assert not [line for line in lines if line.startswith(PREAMBLE) or "━" in line]
    for words in PREAMBLE[:-1]:
        assert words in log(project)


def test_nothing_to_do_is_said_with_where_the_report_is(project):
    status, terminal = show(project, 80, REPORT)

    assert status == 0
    assert after_profile(terminal)[0].startswith("Nothing to be done")
    assert after_profile(terminal)[1:] == [f"  report: {REPORT}"]
    assert f"  report: {REPORT}" in project.bake().splitlines()  # of all rows


def test_the_error_of_a_job_stands_above_in_full_and_the_summary_below(project):
    project.edit("config/config.yaml", *POOR.values())

    status, terminal = show(project, 80, REPORT)

    lines = after_profile(terminal)
    said = " ".join(" ".join(lines).split())
    assert status == 1 and terminal.cursor
    assert max(map(len, lines)) <= 80
    assert "below the 190 dB of config parity/min_psnr/vae_decoder; output: sample. The graph is not the" in said
    assert (
        said.index("ParityError: ") < said.index("FAILED: Compiling the vae_decoder") < said.index("1 model: 1 failed.")
    )
    assert lines[-1].endswith("log: logs/tiny/build/vae_decoder.log")
    assert "Traceback" not in said and "CalledProcessError" not in said


def test_ctrl_c_leaves_the_terminal_as_it_was_with_the_summary_at_its_end(project):
    project.edit("config/config.yaml", "samples: 8", "samples: 6")
    typed = []

    def interrupt(terminal):
        if not typed and any("━" in line and "unet" in line for line in terminal.lines):
            typed.append(True)
            return b"\x03"
        return b""

    status, terminal = show(project, 80, REPORT, answer=interrupt)

    lines = after_profile(terminal)
    assert status not in (0, -signal.SIGINT) and terminal.cursor
    assert not [line for line in lines if "━" in line]
    said = " ".join(" ".join(lines).split())
    assert said.endswith("interrupted; the same command goes on where it stopped") and "FAILED" not in said


def test_elsewhere_there_are_plain_lines(project):
    lose(project)

    lines = project.bake(REPORT, UNET).splitlines()

    assert [
        line
        for line in lines
        if line.startswith("[1 of ") and line.endswith("Compiling the unet of tiny (toolchain: emulator)")
    ]
    assert set(MADE) <= set(lines)
    assert not [line for line in lines if line.startswith(PREAMBLE) or "━" in line or "\x1b" in line]


def test_a_terminal_that_obeys_no_commands_gets_plain_lines(project):
    lose(project)

    status, terminal = show(project, 80, REPORT, UNET, TERM="dumb")

    assert status == 0
    assert [line for line in terminal.lines if line.startswith("[1 of ")]
    assert set(MADE) <= set(terminal.lines) and not [line for line in terminal.lines if "━" in line]


def test_a_dry_run_keeps_snakemakes_own_words(project):
    lose(project)

    said = project.bake("--dry-run", REPORT)

    assert "Job stats:" in said and "Building DAG of jobs..." in said and "This was a dry-run" in said
