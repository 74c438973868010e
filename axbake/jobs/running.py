"""What every job does around its work: settings from its file, outputs that appear whole or not at all, a log."""

import contextlib
import importlib
import logging
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from axbake.cache import Cache, Key, Outcome, cache_directory
from axbake.cache.errors import disks
from axbake.cache.locks import now
from axbake.cache.remote.remote import Remote
from axbake.errors import AxbakeError
from axbake.jobs.identity import Step, files_of, read_steps
from axbake.jobs.inputs import meant
from axbake.jobs.interrupts import interrupts_insist
from axbake.jobs.record import JobRecord, last_made, log_record
from axbake.jobs.values import decode
from axbake.printable import error_line, printable
from axbake.runtime.errors import BundleError

logger = logging.getLogger(__name__)
Files = Mapping[str, list[Path]]  # by parameter of a step's function
Work = Callable[[dict[str, Path]], None]  # makes the outputs at the paths it is given, by file name
FORMAT = "%(asctime)s %(levelname)s %(message)s"


def run(snakemake) -> None:
    """Do a rule's work: call the functions that its settings file names, or place their results from the build cache.

    Each is called with the rule's inputs and outputs that it has parameters for, and every setting, by name; an input may also be
    what a step before it made. Outputs are paths in a private directory, with their own file names; they are moved to their place
    when the function returns, and are gone after an error. So a killed job leaves nothing that looks finished. An `AxbakeError`
    ends the job with its text alone on the screen, its traceback in the log.
    """
    log = Path(snakemake.log[0])
    last = last_made(log)  # before it is written anew
    with job_log(log):
        started = time.monotonic()
        steps = read_steps(Path(snakemake.input.settings))
        inputs, outputs = named_files(snakemake.input), named_files(snakemake.output)
        lists = {name for files in (snakemake.input, snakemake.output) for name, file in files.items() if is_list(file)}
        for step, (reads, makes) in zip(steps, files_of(steps, inputs, outputs), strict=True):
            do_step(step, reads, makes, lists, last.get((name_of(step), step.component), ""))
        logger.info("done in %.1f s, peak memory %.2f GiB", time.monotonic() - started, peak_memory())


def named_files(files) -> dict[str, list[Path]]:
    """A job's inputs or outputs by name, as Snakemake has them."""
    return {name: [meant(Path(path)) for path in (file if is_list(file) else [file])] for name, file in files.items()}


def is_list(file) -> bool:
    """Whether a rule's input or output of one name is a list of files."""
    return not isinstance(file, str)


def name_of(step: Step) -> str:
    """Name of the step's function."""
    return step.function.rpartition(".")[2]


def do_step(step: Step, reads: Files, makes: Files, lists: set[str], last: str = "") -> None:
    """Call a step's function, or place its result from the build cache.

    Args:
        lists: what the rule calls those inputs and outputs that are lists.
        last: when the result was built that the job had the last time; empty: not known.
    """

    def argument(parameter: str, files: list[Path]) -> Path | list[Path]:
        name = step.names.get(parameter, parameter)
        return files if isinstance(name, list) or name in lists else files[0]

    def work(made: dict[str, Path]) -> None:
        module, _, function = step.function.rpartition(".")
        arguments = {parameter: argument(parameter, files) for parameter, files in reads.items()}
        arguments |= {name: argument(name, [made[place.name] for place in places]) for name, places in makes.items()}
        # Here and not above: a result from the cache does not wait for torch to be imported.
        call = getattr(importlib.import_module(module), function)
        call(**arguments, **{name: decode(value) for name, value in step.settings.items()}, **step.means)

    started, worked = time.monotonic(), processor_time()
    outcome = None
    if step.cached:
        outcome = build_cached(step, reads, makes, work, last)
    elif makes:
        build_beside([place for places in makes.values() for place in places], work)
    else:
        work({})  # it compares only, and makes nothing of which the report could tell
        return
    record = record_of(step, outcome, seconds=time.monotonic() - started, processor=processor_time() - worked)
    log_record(record)
    logger.debug("%s in %.1f s", name_of(step), record.seconds)


def record_of(step: Step, outcome: Outcome | None, *, seconds: float, processor: float) -> JobRecord:
    """What a job says of one of its steps.

    Args:
        outcome: of the build cache; None where the step does not go through it.
        seconds, processor: wall time and processor time of the step.
    """
    entry = outcome.entry if outcome else None
    return JobRecord(
        step=name_of(step),
        component=step.component,
        stored=outcome is not None and outcome.hit,
        seconds=round(seconds, 1),
        work_seconds=entry.seconds if entry else round(seconds, 1),
        peak_memory=entry.peak_memory if entry else round(peak_memory(), 2),
        made=entry.created if entry else now(),
        tools=step.tools,
        ended=datetime.now(UTC).isoformat(timespec="milliseconds"),
        processor_seconds=round(processor, 1),
    )


def key_of(step: Step, digests: Mapping[Path, str], outputs: Iterable[Path]) -> Key:
    """The build cache's key of a step. Paths count from their model's directory on: `onnx/unet.onnx`, whatever the model.

    Args:
        digests: SHA-256 of each input that a job made.
    """
    parts = {"settings": step.settings, "code": step.code, "tools": step.tools}
    contents = {"/".join(path.parts[2:]): digest for path, digest in digests.items()}
    names = {path.name: path.name for path in outputs}
    return Key(name_of(step), step.component, parts, contents | step.sources, names)


def made_here(step: Step, reads: Files) -> list[Path]:
    """Inputs whose content counts itself: all but the user's own files, of which the settings file says what they are."""
    return [path for parameter, files in reads.items() if parameter not in step.sources for path in files]


def build_cached(step: Step, reads: Files, makes: Files, work: Work, last: str) -> Outcome:
    """Place the step's result from the build cache, or do *work* and keep the result there; *last* as `do_step` has it."""
    cache = Cache(cache_directory(None), Remote.from_environment)
    read = made_here(step, reads)
    places = [place for files in makes.values() for place in files]
    key = key_of(step, {path: cache.sha256(path) for path in read}, places)
    return cache.fetch_or_build(
        key,
        {place.name: place for place in places},
        work,
        inputs={"/".join(path.parts[2:]): path for path in read},
        last=last,
    )


def build_beside(places: list[Path], work: Work) -> None:
    """Do *work* in a directory beside the first place, and move what it made to its places."""
    first = places[0]
    first.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=first.parent, prefix=f".{first.name}.") as beside:
        made = {place.name: Path(beside) / place.name for place in places}
        work(made)
        for place in places:
            publish(made[place.name], place)


def processor_time() -> float:
    """Seconds of user time so far, of this process and of the programs that it ran."""
    times = os.times()
    return times.user + times.children_user


def peak_memory() -> float:
    """Highest resident memory so far of this process or of the largest program it ran, in GiB, as the kernel counts it.

    Snakemake's `benchmark` would look every half minute at most, and miss peaks.
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


class Printable(logging.Formatter):
    """Lines that a terminal may show, whatever they quote: the log too is looked at in one."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextlib.contextmanager
def job_log(path: Path) -> Iterator[None]:
    """Send records and warnings to the log *path* and to the screen; an error's traceback only to the log.

    Where the screen is no terminal, as in CI, it gets warnings and errors alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    logging.captureWarnings(True)
    to_file = logging.FileHandler(path, mode="w", encoding="utf-8")
    to_file.setFormatter(Printable(FORMAT))
    to_screen = logging.StreamHandler(sys.stderr)
    to_screen.setLevel(logging.INFO if sys.stderr.isatty() else logging.WARNING)
    # Jobs run side by side, so each line says whose it is: `demo/build/unet`.
    to_screen.setFormatter(Printable(f"    {'/'.join(path.with_suffix('').parts[1:])}: %(message)s"))
    # The one line of an error is printed below; its traceback is for the log.
    to_screen.addFilter(lambda record: record.name.startswith("axbake") and not record.exc_info)
    # Both tell on every import that torchvision, which no job uses, is not there.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    root = logging.getLogger()
    root.handlers = [to_file, to_screen]
    log = logging.getLogger("axbake")
    log.setLevel(logging.DEBUG)
    try:
        with interrupts_insist(), disks():
            yield
    except (AxbakeError, BundleError) as error:
        log.exception("%s: %s", type(error).__name__, error)
        print(error_line(error), file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        log.exception("interrupted")
        sys.exit(130)  # as shells have it: 128 + SIGINT
    except Exception as error:
        log.exception("axbake does not know this error; please report it with this log")
        print(
            f"{error_line(error)}\naxbake does not know this error; please report it with {path}.",
            file=sys.stderr,
        )
        sys.exit(1)
    finally:
        to_file.close()
