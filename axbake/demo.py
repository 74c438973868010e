"""Bake the demo model, which comes with axbake, and open its report."""

import argparse

from axbake.bake import bake, how_to_run
from axbake.project import open_project


def arguments(parser: argparse.ArgumentParser) -> None:
    """What `axbake demo` takes."""
    parser.description = __doc__
    how_to_run(parser)


def run(options: argparse.Namespace) -> int:
    """Exit status: Snakemake's."""
    open_project()
    return bake("demo", cores=options.cores)
