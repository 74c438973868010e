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
from pathlib import Path

from axbake.cache import Cache, Key, Outcome, cache_directory
from axbake.cache.locks import now
from axbake.errors import AxbakeError
from axbake.jobs.identity import Identity, read_identity
from axbake.jobs.record import JobRecord, log_record
from axbake.runtime.errors import BundleError

logger = logging.getLogger(__name__)
Work = Callable[[dict[str, Path]], None]  # makes the outputs at the paths it is given, by name
FORMAT = "%(asctime)s %(levelname)s %(message)s"


def run(snakemake) -> None:
    """Do a rule's work: call the function that its settings file names, or place its result from the build cache.

    The function is called with every input but the settings and the gates, every output, and every setting, by name. Outputs are
    paths in a private directory, with their own file names; they are moved to their place when the function returns, and are
    gone after an error. So a killed job leaves nothing that looks finished. An `AxbakeError` ends the job with its text
    alone on the screen, its traceback in the log.
    """
    with job_log(Path(snakemake.log[0])):
        identity = read_identity(Path(snakemake.input.settings))
        inputs = {
            name: _paths(value)
            for name, value in snakemake.input.items()
            if name != "settings" and not is_gate(identity, value)
        }
        places = {name: Path(value) for name, value in snakemake.output.items()}

        def work(made: dict[str, Path]) -> None:
            module, _, function = identity.function.rpartition(".")
            # Here and not above: a result from the cache does not wait for torch to be imported.
            getattr(importlib.import_module(module), function)(**inputs, **made, **identity.settings, **identity.means)

        started = time.monotonic()
        outcome = None
        if identity.cached:
            outcome = build_cached(identity, inputs, places, work)
        else:
            build_beside(places, work)
        record = record_of(identity, outcome, seconds=time.monotonic() - started)
        log_record(record)
        logger.info("done in %.1f s, peak memory %.2f GiB", record.seconds, peak_memory())


def record_of(identity: Identity, outcome: Outcome | None, *, seconds: float) -> JobRecord:
    """What a job says of itself.

    Args:
        outcome: of the build cache; None where the job does not go through it.
        seconds: wall time of the job.
    """
    entry = outcome.entry if outcome else None
    return JobRecord(
        step=identity.function.rpartition(".")[2],
        component=identity.component,
        stored=outcome is not None and outcome.hit,
        seconds=round(seconds, 1),
        work_seconds=entry.seconds if entry else round(seconds, 1),
        peak_memory=entry.peak_memory if entry else round(peak_memory(), 2),
        made=entry.created if entry else now(),
        tools=identity.tools,
    )


def _paths(value):
    return Path(value) if isinstance(value, str) else [Path(item) for item in value]


def is_gate(identity: Identity, path: str | list[str]) -> bool:
    """Whether an input, or a list of some, only has to be there; they lie in a directory that the identity calls a gate."""
    paths = [path] if isinstance(path, str) else list(path)
    return bool(paths) and all(Path(one).parts[2:3] in [(gate,) for gate in identity.gates] for one in paths)


def key_of(identity: Identity, digests: Mapping[Path, str], outputs: Iterable[Path]) -> Key:
    """The build cache's key of a job. Paths count from their model's directory on: `onnx/unet.onnx`, whatever the model.

    Args:
        digests: SHA-256 of each input in `results` but settings and gates.
    """
    parts = {"settings": identity.settings, "code": identity.code, "tools": identity.tools}
    contents = {"/".join(path.parts[2:]): digest for path, digest in digests.items()}
    names = {path.name: path.name for path in outputs}
    return Key(identity.function.rpartition(".")[2], identity.component, parts, contents | identity.sources, names)


def build_cached(
    identity: Identity, inputs: Mapping[str, Path | list[Path]], places: dict[str, Path], work: Work
) -> Outcome:
    """Place the job's result from the build cache, or do *work* and keep the result there."""
    cache = Cache(cache_directory(None))
    given = [paths for name, paths in inputs.items() if name not in identity.sources]
    made_here = [path for paths in given for path in (paths if isinstance(paths, list) else [paths])]
    key = key_of(identity, {path: cache.sha256(path) for path in made_here}, places.values())
    name_of = {place.name: name for name, place in places.items()}
    return cache.fetch_or_build(
        key,
        {place.name: place for place in places.values()},
        lambda made: work({name_of[file]: path for file, path in made.items()}),
        inputs={"/".join(path.parts[2:]): path for path in made_here},
    )


def build_beside(places: dict[str, Path], work: Work) -> None:
    """Do *work* in a directory beside the first place, and move what it made to its places."""
    first = next(iter(places.values()))
    first.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=first.parent, prefix=f".{first.name}.") as beside:
        made = {name: Path(beside) / place.name for name, place in places.items()}
        work(made)
        for name, place in places.items():
            publish(made[name], place)


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
    """Send records and warnings to the log *path* and to the screen; an error's traceback only to the log.

    Where the screen is no terminal, as in CI, it gets warnings and errors alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    logging.captureWarnings(True)
    to_file = logging.FileHandler(path, mode="w", encoding="utf-8")
    to_file.setFormatter(logging.Formatter(FORMAT))
    to_screen = logging.StreamHandler(sys.stderr)
    to_screen.setLevel(logging.INFO if sys.stderr.isatty() else logging.WARNING)
    # Jobs run side by side, so each line says whose it is: `demo/build/unet`.
    to_screen.setFormatter(logging.Formatter(f"    {'/'.join(path.with_suffix('').parts[1:])}: %(message)s"))
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
        yield
    except (AxbakeError, BundleError) as error:
        log.exception("%s: %s", type(error).__name__, error)
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        log.exception("interrupted")
        sys.exit(130)  # as shells have it: 128 + SIGINT
    except Exception as error:
        log.exception("not an error that axbake knows; please report it with this log")
        print(
            f"{type(error).__name__}: {error}\nNot an error that axbake knows; please report it with {path}.",
            file=sys.stderr,
        )
        sys.exit(1)
    finally:
        to_file.close()
