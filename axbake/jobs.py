"""What every job does around its work: settings from its file, outputs that appear whole or not at all, a log."""

import contextlib
import logging
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from axbake.errors import AxbakeError
from axbake.identity import read_settings
from axbake.runtime.errors import BundleError

logger = logging.getLogger(__name__)
FORMAT = "%(asctime)s %(levelname)s %(message)s"


@contextlib.contextmanager
def job(snakemake) -> Iterator[tuple[SimpleNamespace, SimpleNamespace, SimpleNamespace]]:
    """Settings, inputs and outputs of a job, by name.

    Outputs are paths in a directory beside their place, with their own file names; when the block ends they are synced and
    moved to their place, and after an error they are gone. So a killed job leaves nothing that looks finished.
    An `AxbakeError` ends the job with its text alone on the screen, its traceback in the log.
    """
    with job_log(Path(snakemake.log[0])):
        settings = SimpleNamespace(**read_settings(Path(snakemake.input.settings)))
        inputs = SimpleNamespace(**{name: _paths(value) for name, value in snakemake.input.items()})
        places = {name: Path(value) for name, value in snakemake.output.items()}
        first = next(iter(places.values()))
        first.parent.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        with tempfile.TemporaryDirectory(dir=first.parent, prefix=f".{first.name}.") as beside:
            made = {name: Path(beside) / place.name for name, place in places.items()}
            yield settings, inputs, SimpleNamespace(**made)
            for name, place in places.items():
                publish(made[name], place)
        logger.info("done in %.1f s, peak memory %.2f GiB", time.monotonic() - started, peak_memory())


def _paths(value):
    return Path(value) if isinstance(value, str) else [Path(item) for item in value]


def peak_memory() -> float:
    """Highest resident memory so far of this process or of the largest program it ran, in GiB.

    Snakemake's benchmark files look every half minute at most, and miss peaks.
    """
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 2**20


def publish(made: Path, place: Path) -> None:
    """Move the finished file *made* to *place*, on disk before it is there, readable as the user's umask says."""
    umask = os.umask(0)
    os.umask(umask)
    made.chmod(0o666 & ~umask)  # safetensors and temporary files are made for the owner alone
    with made.open("rb") as file:
        os.fsync(file.fileno())
    place.parent.mkdir(parents=True, exist_ok=True)
    made.replace(place)


@contextlib.contextmanager
def job_log(path: Path) -> Iterator[None]:
    """Send records and warnings to the log *path* and to the screen; an error's traceback only to the log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    logging.captureWarnings(True)
    to_file = logging.FileHandler(path, mode="w", encoding="utf-8")
    to_file.setFormatter(logging.Formatter(FORMAT))
    to_screen = logging.StreamHandler(sys.stderr)
    to_screen.setLevel(logging.INFO)
    # The one line of an error is printed below; its traceback is for the log.
    to_screen.addFilter(lambda record: record.name.startswith("axbake") and not record.exc_info)
    root = logging.getLogger()
    root.handlers = [to_file, to_screen]
    logging.getLogger("axbake").setLevel(logging.DEBUG)
    log = logging.getLogger("axbake")
    try:
        yield
    except (AxbakeError, BundleError) as error:
        log.exception("%s: %s", type(error).__name__, error)
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
    except Exception:
        log.exception("not an error that axbake knows; please report it with this log")
        raise
    finally:
        to_file.close()
