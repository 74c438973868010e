"""Python as users have it: without what only axbake's tests need, which diffusers and transformers would use.

On `PYTHONPATH`, of the programs that tests start. Importing both takes a job a second.

With `JOBS_PYTHON` in the environment, that is what Snakemake starts its jobs with.
"""

import os
import sys
from importlib.machinery import PathFinder

HIDDEN = {"peft", "accelerate"}  # of requirements-dev.lock


class UsersFinder(PathFinder):
    """Finds what is installed, but for what is hidden."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname.partition(".")[0] in HIDDEN else super().find_spec(fullname, path, target)


sys.executable = os.environ.get("JOBS_PYTHON", sys.executable)
sys.meta_path[sys.meta_path.index(PathFinder)] = UsersFinder
