"""Runs of Snakemake that need not import it first: a process that has imported it forks itself for each.

Importing is two thirds of a dry run's time, and the tests begin some three hundred runs. Each is a process of its own as users
have it: its own arguments, environment, directory and output; jobs are processes that it starts. The one that is forked has
done nothing but import. A test of how a run starts or ends by a signal starts Snakemake itself (`Project.command`).

    python tests/workflow/ready.py SOCKET    the process that is forked; tests start it with the number of a socket
"""

import atexit
import json
import os
import runpy
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

MOST = 1 << 20  # bytes of a request: arguments and environment
USERS = Path(__file__).parents[1] / "users"  # on PYTHONPATH, Python is as users have it


class Ready:
    """Starts runs by forking a process that has imported what they import."""

    def __init__(self) -> None:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", __file__, str(its.fileno())]  # nothing beside this file is imported
        environment = os.environ | {"PYTHONPATH": str(USERS)}
        subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, pass_fds=[its.fileno()])
        its.close()
        self._socket = ours

    def run(
        self, arguments: Sequence[str], *, directory: Path, environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess:
        """A finished run; its output and errors as one text.

        Args:
            arguments: as in `sys.argv`: a Python program's path, or `-m` and a module's name, and what it is given.
        """
        request = json.dumps({"arguments": arguments, "directory": str(directory), "environment": dict(environment)})
        out, into = os.pipe()
        try:
            socket.send_fds(self._socket, [request.encode()], [into])
        finally:
            os.close(into)
        with os.fdopen(out, encoding="utf-8") as output:
            said = output.read()
        return subprocess.CompletedProcess(list(arguments), json.loads(self._socket.recv(MOST)), said)


def serve(requests: socket.socket) -> None:
    """Fork for every request that comes, and answer with the status that the run ended with."""
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, MOST, 1)
        if not request:
            return
        (output,) = descriptors
        process = os.fork()
        if process == 0:
            requests.close()
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.close(output)
            _begin(**json.loads(request))
        os.close(output)
        _, status = os.waitpid(process, 0)
        requests.send(json.dumps(os.waitstatus_to_exitcode(status)).encode())


def _begin(arguments: list[str], directory: str, environment: dict[str, str]) -> None:
    """Be the run, and end with its status."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    program, *sys.argv[1:] = arguments
    status: object = 0
    try:
        if program == "-m":
            sys.argv = sys.argv[1:]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv[0] = program
            runpy.run_path(program, run_name="__main__")
    except SystemExit as ended:
        status = ended.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(status or 0) if not isinstance(status, str) else 1)


if __name__ == "__main__":
    import snakemake.cli  # noqa: F401 - what all runs begin with

    import axbake.plan  # noqa: F401

    serve(socket.socket(fileno=int(sys.argv[1])))
