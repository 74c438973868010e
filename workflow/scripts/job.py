"""Every rule's script: the rule's settings file names the function that does the work."""

import gc
import os
import signal
import sys

# Ctrl-C while modules are imported ends the job at once. Python would print a traceback, which tells nobody anything.
interrupted = signal.signal(signal.SIGINT, signal.SIG_DFL)
# A job is a short process: a third of torch's and diffusers' import went into looking for garbage, and a second at the end
# into taking their modules apart.
gc.set_threshold(10_000)

from axbake.jobs.running import run  # noqa: E402

signal.signal(signal.SIGINT, interrupted)
run(snakemake)
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)
