"""`python -m tests.double build|llm_build|run|version`, as `pulsar2` does them.

The environment steers it: PULSAR2_DOUBLE_VERSION, and PULSAR2_DOUBLE_FAILS, a failure of `tests.double.failures`; or the config
does, by `compiler.check_tensor_black_list: ["double:{failure}"]`.
"""

import os
import sys

from tests.double.arguments import BUILD, RUN, UsageError, parse

VERSION, COMMIT = "4.2", "d0b1ed0b"
USAGE = "usage: pulsar2 [-h] {version,build,llm_build,run} ..."


def main(arguments: list[str]) -> int:
    """Exit code of the command that *arguments* name."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    try:
        if command == "version" and not rest:
            print(f"version: {os.environ.get('PULSAR2_DOUBLE_VERSION', VERSION)}\ncommit: {COMMIT}")
            return 0
        if command == "build":
            from tests.double.build import build  # here and below: onnx takes half a second

            version = os.environ.get("PULSAR2_DOUBLE_VERSION", VERSION)
            return build(parse(BUILD, rest), version, COMMIT)
        if command == "llm_build":
            from tests.double.llm_build import llm_build, parse_llm

            return llm_build(parse_llm(rest), os.environ.get("PULSAR2_DOUBLE_VERSION", VERSION), COMMIT)
        if command == "run":
            from tests.double.run import run

            return run(parse(RUN, rest))
        raise UsageError(f"invalid choice: {command!r} (choose from version, build, llm_build, run)")
    except UsageError as error:
        print(f"{USAGE}\npulsar2: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
