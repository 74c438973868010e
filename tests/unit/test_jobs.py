"""A job's outputs appear whole or not at all; its errors are one line on the screen and a traceback in the log."""

import os
import pty
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from axbake.jobs.identity import Step, write_steps
from axbake.jobs.record import read_records
from axbake.jobs.running import key_of

ROOT = Path(__file__).parents[2]
# A job as Snakemake starts it; the function that its settings name runs the text in the environment's BLOCK.
JOB = """
import os
from types import SimpleNamespace
from snakemake.iocontainers import Namedlist
from axbake.jobs.running import run

snakemake = SimpleNamespace(
    log=Namedlist(["logs/tiny/job.log"]),
    input=Namedlist(fromdict={"settings": "settings.json", "weights": "in.bin", "parts": ["a", "b"]}),
    output=Namedlist(fromdict={"graph": "results/tiny/out.onnx", "tensors": "results/tiny/out.onnx.data"}),
)
os.umask(0o022)
run(snakemake)
"""
BLOCK = """
import logging, os, time, warnings
from pathlib import Path
from types import SimpleNamespace
from axbake.errors import AxbakeError
from axbake.runtime.errors import BundleError

def work(*, height, prompts, weights, parts, graph, tensors):
    settings = SimpleNamespace(height=height, prompts=prompts)
    input = SimpleNamespace(weights=weights, parts=parts)
    output = SimpleNamespace(graph=graph, tensors=tensors)
    exec(os.environ["BLOCK"])

def first(*, weights, graph):
    Path("runs").open("a").write("first ")
    graph.write_text(weights.read_text() + " as a graph")

def second(*, weights, graphs, tensors, options):
    Path("runs").open("a").write(options["word"] + " ")
    assert [type(weights).__name__, type(graphs).__name__] == ["PosixPath", "list"]
    tensors.write_text(graphs[0].read_text() + ", compared")
"""
WRITE = "output.graph.write_text('graph'); output.tensors.write_text('tensors');"


def step_of(function, *parameters, cached=False, names=None, means=None, sources=None, **settings):
    """A step of a function that is not the package's."""
    return Step(
        function, None, list(parameters), names or {}, settings, means or {}, sources or {}, {}, {}, cached=cached
    )


@pytest.fixture
def directory(tmp_path):
    settings = {"height": 64, "prompts": ["a"]}
    step = step_of("block.work", "weights", "parts", "graph", "tensors", **settings)
    write_steps(tmp_path / "settings.json", [step])
    (tmp_path / "block.py").write_text(BLOCK)
    (tmp_path / "in.bin").write_text("weights")
    return tmp_path


COMMAND = [sys.executable, "-c", JOB]


def environment(block):
    return os.environ | {"PYTHONPATH": str(ROOT), "BLOCK": block}


def run(block, directory):
    return subprocess.run(COMMAND, cwd=directory, env=environment(block), capture_output=True, text=True)


def made(directory):
    """Everything in the directory of results, hidden things too."""
    return sorted(path.name for path in (directory / "results" / "tiny").iterdir())


def log(directory):
    return (directory / "logs" / "tiny" / "job.log").read_text()


def test_a_job_has_settings_inputs_and_outputs_by_name(directory):
    block = (
        "assert (settings.height, settings.prompts) == (64, ['a']);"
        "assert (str(input.weights), list(map(str, input.parts))) == ('in.bin', ['a', 'b']);"
        "assert (output.graph.name, output.tensors.name) == ('out.onnx', 'out.onnx.data');"
        "assert output.graph.parent == output.tensors.parent;" + WRITE
    )
    done = run(block, directory)

    assert done.returncode == 0, done.stderr
    assert made(directory) == ["out.onnx", "out.onnx.data"]
    assert (directory / "results" / "tiny" / "out.onnx").read_text() == "graph"


def test_outputs_can_be_read_as_the_umask_says(directory):
    run(WRITE + "output.graph.chmod(0o600)", directory)

    for name in made(directory):
        assert stat.S_IMODE((directory / "results" / "tiny" / name).stat().st_mode) == 0o644


@pytest.mark.parametrize("error", ["AxbakeError", "BundleError"])
def test_a_known_error_is_one_line_on_the_screen_and_a_traceback_in_the_log(directory, error):
    done = run(WRITE + f"raise {error}('conv_in: found 9, wanted 4')", directory)

    assert done.returncode == 1
    assert done.stderr == f"{error}: conv_in: found 9, wanted 4\n"
    assert done.stdout == ""
    assert "Traceback (most recent call last)" in log(directory)
    assert f"{error}: conv_in: found 9, wanted 4" in log(directory)
    assert made(directory) == []


def test_an_unknown_error_asks_for_a_report_in_the_log(directory):
    done = run(WRITE + "1 / 0", directory)

    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "ZeroDivisionError: division by zero",
        "axbake does not know this error; please report it with logs/tiny/job.log.",
    ]
    assert "axbake does not know this error; please report it" in log(directory)
    assert "Traceback (most recent call last)" in log(directory)
    assert made(directory) == []


@pytest.mark.parametrize("kind", ["AxbakeError", "BundleError", "ValueError"])
def test_what_an_error_or_a_warning_quotes_reaches_neither_screen_nor_log_raw(directory, kind):
    said = "'a\\x1b]0;title\\x07\\x1b[2Jb\\x9b1mc'"
    warned = f"import logging; logging.getLogger('axbake.x').warning({said});"
    done = run(WRITE + f"{warned} raise {kind}({said})", directory)

    assert done.stderr.splitlines()[:2] == ["    tiny/job: ab1mc", f"{kind}: ab1mc"]
    assert f"{kind}: ab1mc" in log(directory)
    assert "\x1b" not in done.stderr + log(directory) and "\x9b" not in done.stderr + log(directory)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("OSError(28, 'No space left on device')", "no space left"),
        ("OSError(30, 'Read-only file system', 'results/x')", "NotWritten: results/x: Read-only file system"),
        ("PermissionError(13, 'Permission denied', 'x')", "NotWritten: x: Permission denied"),
    ],
)
def test_a_full_disk_or_a_lacking_permission_is_a_sentence_wherever_it_is_met(directory, error, said):
    done = run(WRITE + f"raise {error}", directory)

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and said in done.stderr and done.stderr.startswith("NotWritten: ")


def test_a_firewalls_refusal_is_not_taken_for_a_disks(directory):
    done = run(WRITE + "raise PermissionError(1, 'Operation not permitted')", directory)

    assert done.stderr.startswith("PermissionError: ")


def test_ctrl_c_is_told_in_the_log_alone(directory):
    done = run(WRITE + "raise KeyboardInterrupt", directory)

    assert (done.returncode, done.stderr) == (130, "")
    assert "ERROR interrupted" in log(directory)
    assert made(directory) == []


LOST = """
import weakref
class Held:
    def __del__(self):
        {in_del}
held = Held()
gone = weakref.ref(held, lambda _: {in_callback})
del held
for _ in range(200):
    time.sleep(0.1)
"""
INTERRUPT = "__import__('signal').raise_signal(2)"


@pytest.mark.parametrize(
    ("code", "said"),
    [("os.kill(os.getpid(), 2); time.sleep(9)", "Interrupted.\n"), ("1 / 0", "ZeroDivisionError: division by zero\n")],
)
def test_a_run_that_is_interrupted_says_so_in_a_word(code, said):
    program = f"import os, time; from axbake.jobs.interrupts import interrupt_in_a_word; interrupt_in_a_word(); {code}"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == (-signal.SIGINT if "kill" in code else 1)
    assert done.stderr.endswith(said) and ("Traceback" in done.stderr) == ("kill" not in code)


@pytest.mark.parametrize("place", ["in_del", "in_callback"])
def test_ctrl_c_where_python_ignores_it_ends_the_job_all_the_same(directory, place):
    done = run(WRITE + LOST.format(**({"in_del": "pass", "in_callback": "None"} | {place: INTERRUPT})), directory)

    assert (done.returncode, done.stderr) == (130, "")
    assert made(directory) == []


@pytest.mark.parametrize(
    ("module", "ends"),
    [
        ("interrupt()\n", (-signal.SIGINT, "", "")),
        (
            "def run(_):\n    try:\n        interrupt()\n    except KeyboardInterrupt:\n        print('seen')\n",
            (0, "seen\n", ""),
        ),
    ],
    ids=["while modules are imported", "while it runs"],
)
def test_an_interrupt_is_silent_before_the_job_runs_and_the_jobs_own_afterwards(module, ends, tmp_path):
    """The script with another `axbake.jobs.running`, which gets a Ctrl-C in its import or in its work."""
    place = tmp_path / "axbake" / "jobs"
    place.mkdir(parents=True)
    interrupt = (
        "import os, signal, time\ndef interrupt():\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(60)\n"
    )
    (place / "running.py").write_text(interrupt + module)
    script = tmp_path / "job.py"
    script.write_text("snakemake = None\n" + (ROOT / "workflow" / "scripts" / "job.py").read_text())
    for folder in (place, place.parent):
        (folder / "__init__.py").touch()

    done = subprocess.run([sys.executable, script], capture_output=True, text=True)

    assert (done.returncode, done.stdout, done.stderr) == ends


def test_after_an_error_the_older_result_is_whole(directory):
    run(WRITE, directory)
    run("output.graph.write_text('other'); raise AxbakeError('no')", directory)

    assert made(directory) == ["out.onnx", "out.onnx.data"]
    assert (directory / "results" / "tiny" / "out.onnx").read_text() == "graph"


def test_while_the_job_works_nothing_is_in_place_and_a_kill_leaves_it_so(directory):
    block = WRITE + "open('ready', 'w').close(); time.sleep(3600)"
    process = subprocess.Popen(COMMAND, cwd=directory, env=environment(block))
    try:
        deadline = time.monotonic() + 600
        while not (directory / "ready").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()

    assert process.returncode == -signal.SIGKILL
    assert not [name for name in made(directory) if not name.startswith(".")]
    assert run(WRITE, directory).returncode == 0  # what is left does not hinder the next
    assert (directory / "results" / "tiny" / "out.onnx").read_text() == "graph"


def test_an_output_that_the_job_forgot_is_an_error(directory):
    done = run("output.graph.write_text('graph')", directory)

    assert done.returncode == 1
    assert "out.onnx.data" in done.stderr


RECORDS = (
    "logging.getLogger('axbake.graphs.export').info('traced 12 of 64');"
    "logging.getLogger('axbake.graphs.export').warning('one is odd');"
    "logging.getLogger('axbake.graphs.export').debug('a detail');"
    "logging.getLogger('torch').warning('of torch');"
    "warnings.warn('of a library');" + WRITE
)


def test_records_go_to_the_log_and_the_packages_own_warnings_to_the_screen(directory):
    done = run(RECORDS, directory)

    assert done.stderr == "    tiny/job: one is odd\n"
    for said in ("INFO traced 12 of 64", "WARNING one is odd", "DEBUG a detail", "WARNING of torch", "of a library"):
        assert said in log(directory)


def test_a_terminal_shows_also_how_far_a_job_is(directory):
    leader, follower = pty.openpty()
    subprocess.run(COMMAND, cwd=directory, env=environment(RECORDS), stderr=follower, check=True)
    os.close(follower)

    shown = os.read(leader, 10_000).decode().splitlines()
    assert shown[:2] == ["    tiny/job: traced 12 of 64", "    tiny/job: one is odd"]
    assert shown[2].startswith("    tiny/job: done in ")
    assert len(shown) == 3


def test_a_log_is_of_the_last_run_alone(directory):
    run("raise AxbakeError('the first')", directory)
    run(WRITE, directory)

    assert "the first" not in log(directory)


def two_steps(word="second"):
    """A job's steps, of which the second one reads what the first one makes."""
    second = step_of(
        *("block.second", "weights", "graphs", "tensors"),
        cached=True,
        names={"graphs": ["graph"]},
        means={"options": {"word": word}},
    )
    return [step_of("block.first", "weights", "graph", cached=True), second]


def run_steps(directory, cache, *steps):
    """What ran of a job of *steps*, and what the job said of each of them."""
    write_steps(directory / "settings.json", steps)
    (directory / "runs").write_text("")
    command = {"env": environment("") | {"AXBAKE_CACHE": str(cache)}, "capture_output": True, "text": True}
    done = subprocess.run(COMMAND, cwd=directory, **command)
    assert done.returncode == 0, done.stderr
    return (directory / "runs").read_text().split(), read_records(directory / "logs" / "tiny" / "job.log")


def test_a_step_reads_what_the_step_before_it_made_and_each_has_a_key_of_its_own(directory, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")

    ran, records = run_steps(directory, cache, *two_steps())

    assert ran == ["first", "second"]
    assert (directory / "results" / "tiny" / "out.onnx.data").read_text() == "weights as a graph, compared"
    assert [(one.step, one.stored) for one in records] == [("first", False), ("second", False)]

    (directory / "in.bin").write_text("weights")  # touched
    ran, records = run_steps(directory, cache, *two_steps())
    assert ran == []
    assert [one.stored for one in records] == [True, True]


def test_only_the_step_runs_whose_key_is_new_and_means_are_in_none(directory, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    run_steps(directory, cache, *two_steps())

    first, second = two_steps(word="otherwise")
    assert run_steps(directory, cache, first, second)[0] == []  # how a program is started

    second.code["axbake.errors"] = "other"
    ran, records = run_steps(directory, cache, first, second)
    assert ran == ["otherwise"]
    assert [one.stored for one in records] == [True, False]


def test_what_the_user_brings_counts_by_what_the_settings_say_of_it_and_paths_from_the_models_directory_on():
    step = step_of("block.first", "checkpoint", "graph", sources={"checkpoint": "aa"}, cached=True)

    key = key_of(step, {Path("results/tiny/onnx/unet.onnx"): "bb"}, [Path("results/tiny/parity/unet.json")])

    assert key.inputs == {"onnx/unet.onnx": "bb", "checkpoint": "aa"}
    assert key.outputs == {"unet.json": "unet.json"}
