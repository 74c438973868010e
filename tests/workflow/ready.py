"""Runs of Snakemake, and their jobs, that need not import first: processes that have imported libraries fork themselves.

Importing is two thirds of a dry run's time, and most of a tiny job's; the tests begin hundreds of each. Each still is a process
of its own with its own arguments, environment, directory and output, and what is forked has only imported libraries, nothing of
axbake. Tests of how runs start, and of signals and kills, start processes as users do (`Project.command`). So do those of what
pages say, but for Snakemake's jobs (`jobs_environment`).

    python -P tests/workflow/ready.py SOCKET snakemake|jobs    what is forked; SOCKET: number of a socket that listens
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

USERS = Path(__file__).parents[1] / "users"  # on PYTHONPATH, Python is as users have it
MOST = 1 << 17  # bytes of a request: arguments and environment
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # libraries read it while they are imported
#: What is forked -> what it has imported
IMPORTS = {
    "snakemake": ["snakemake.cli", "pandas", "jsonschema"],
    "jobs": [
        *("torch.onnx._internal.exporter._core", "onnxscript.optimizer", "onnxsim", "onnxruntime", "onnx.compose"),
        *("diffusers.models.unets.unet_2d_condition", "diffusers.models.autoencoders.autoencoder_kl"),
        *("diffusers.models.autoencoders.autoencoder_tiny", "diffusers.schedulers.scheduling_euler_discrete"),
        *("transformers.models.clip.modeling_clip", "skimage.metrics", "jinja2", "jsonschema", "safetensors.torch"),
    ],
}
#: Stands for Python in Snakemake: has a job's script run by a process that is forked, and all else by Python itself.
PYTHON = """#!{python} -IS
import json, os, socket, sys

if os.environ.get("OMP_NUM_THREADS") != "1" or not "".join(sys.argv[1:2]).endswith(".job.py"):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
request = {{"arguments": sys.argv[1:], "directory": os.getcwd(), "environment": dict(os.environ)}}
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as jobs:
    jobs.connect({address!r})
    socket.send_fds(jobs, [json.dumps(request).encode()], [0, 1, 2])
    sys.exit(int(jobs.recv(9)))
"""


class Ready:
    """Starts runs of Snakemake, whose jobs start likewise."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="axbake-ready-")
        place = Path(self._directory.name)
        self._pipes = [self._start(kind, place) for kind in IMPORTS]  # closed when this process ends, and so do they
        self.address, self.python = place / "snakemake", place / "python"
        self.python.write_text(PYTHON.format(python=sys.executable, address=str(place / "jobs")), encoding="utf-8")
        self.python.chmod(0o755)

    def _start(self, kind: str, place: Path) -> int:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            listening.bind(str(place / kind))
            listening.listen()
            command = [sys.executable, "-P", __file__, str(listening.fileno()), kind]  # -P: nothing beside this file
            how = {"env": os.environ | ONE_THREAD | {"PYTHONPATH": str(USERS)}, "pass_fds": [listening.fileno()]}
            end, pipe = os.pipe()
            subprocess.Popen(command, stdin=end, **how)
            os.close(end)
        return pipe

    @property
    def jobs_environment(self) -> dict[str, str]:
        """What of the environment has a run that is started as users do begin its jobs with what is forked."""
        return {"PYTHONPATH": str(USERS), "JOBS_PYTHON": str(self.python)}

    def run(
        self, arguments: Sequence[str], *, directory: Path, environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess:
        """A finished run; its output and errors as one text.

        Args:
            arguments: as in `sys.argv`: a Python program's path, or `-m` and a module's name, and what it is given.
        """
        request = {"arguments": arguments, "directory": str(directory), "environment": dict(environment)}
        out, into = os.pipe()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as runs:
            runs.connect(str(self.address))
            with Path(os.devnull).open(encoding="utf-8") as nothing:
                content = json.dumps(request | {"python": str(self.python)}).encode()
                socket.send_fds(runs, [content], [nothing.fileno(), into, into])
            os.close(into)
            with os.fdopen(out, encoding="utf-8") as output:
                said = output.read()
            return subprocess.CompletedProcess(list(arguments), int(runs.recv(9)), said)


def serve(listening: socket.socket) -> None:
    """Fork for every request that comes, until who started this process ends; answer with the status that the run ended with."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        ready, _, _ = select.select([listening, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        asking, _ = listening.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listening.close()
            _answer(asking)
        asking.close()


def _answer(asking: socket.socket) -> None:
    """Have the run that is asked for done by a process of its own, and tell its status."""
    request, descriptors, _, _ = socket.recv_fds(asking, MOST, 3)
    process = os.fork()
    if process == 0:
        asking.close()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        _begin(**json.loads(request))
    for descriptor in descriptors:
        os.close(descriptor)
    _, status = os.waitpid(process, 0)
    with contextlib.suppress(BrokenPipeError):  # who asked was ended
        asking.send(str(os.waitstatus_to_exitcode(status) % 256).encode())
    os._exit(0)


def _begin(arguments: list[str], directory: str, environment: dict[str, str], python: str = "") -> None:
    """Be the run, and end with its status."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)  # which Python reads when it starts
    sys.path[:0] = [path for path in paths if path and path not in sys.path]
    sys.executable = python or sys.executable
    status = 1
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    for module in IMPORTS[sys.argv[2]]:
        importlib.import_module(module)
    gc.freeze()  # so that memory that is not written to stays shared
    serve(socket.socket(fileno=int(sys.argv[1])))
