"""Bakes tables of tiny models on a local Slurm of one node, installed as root on Debian: how many jobs, how long.

python bench/slurm.py DIRECTORY [ROWS]     ten rows unless told otherwise; their prompts and seeds differ
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere

from tests import tiny
from tests.workflow.cluster import local_slurm
from tests.workflow.project import ROW, Project
from tests.workflow.test_batch import summary

MOST = 4 * 3600  # seconds


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("directory", type=Path)
    arguments.add_argument("rows", type=int, nargs="?", default=10)
    options = arguments.parse_args()
    directory, count = options.directory, options.rows
    checkpoint = tiny.save(tiny.small_sd1(), directory / "tiny.safetensors")
    project = Project.lay_out(directory / "project", directory / "cache", checkpoint)
    project.write_rows(*(ROW | {"model": f"tiny{n}", "prompt": f"{n} penguins", "seed": str(n)} for n in range(count)))
    with local_slurm() as cluster:
        started = time.monotonic()
        # As many at once as the machine can bear, whatever the node claims.
        done = cluster.run(project, "--jobs", "4", seconds=MOST)
        seconds = time.monotonic() - started
        (directory / "said.log").write_text(done.stdout)
        again = cluster.run(project, seconds=MOST).stdout
    states = [row["state"] for row in summary(project).values()]
    submitted = done.stdout.count("has been submitted with SLURM jobid")
    print(
        f"{count} rows in {seconds:.0f} s: {states.count('done')} done; {submitted} Slurm jobs; exit {done.returncode}"
    )
    print(f"a second run: {'nothing to do' if 'Nothing to be done' in again else 'something to do'}")
    subprocess.run(["du", "-sh", project.cache], check=True)


if __name__ == "__main__":
    main()
