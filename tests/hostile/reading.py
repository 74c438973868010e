"""The process in which `tests.hostile.files` has its inputs read: it watches what is run, how long it takes and how much memory.

python -m tests.hostile.reading DIRECTORY [--fenced]   reader and path in JSON on stdin, a line each; an answer a line
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from axbake.checkpoints import embeddings, pickles
from axbake.checkpoints.containers import files_of
from axbake.checkpoints.conversion import convert_checkpoint
from axbake.checkpoints.embeddings import read_embedding
from axbake.checkpoints.prediction import read_sidecar
from axbake.errors import AxbakeError
from axbake.families import FAMILIES
from axbake.families.flux2_klein import FORMAT
from axbake.loras.fusing import Fusion
from axbake.runtime.added import load_added
from axbake.runtime.bundle import read_bundle
from axbake.runtime.canvas import read_canvas
from axbake.runtime.errors import BundleError
from axbake.runtime.language import language_tokenizers
from axbake.runtime.sampler import load_schedule
from axbake.runtime.tokenizer import load_tokenizer
from axbake.weights.embeddings import list_embeddings
from tests import peaks, tiny, tiny_xl
from tests.hostile import planted
from tests.unit.conftest import SD1, family_in, halves, import_part

ROOT = Path(__file__).parents[2]
#: Events of Python's audit hooks that run something, or reach out
WATCHED = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect")
ran: list[str] = []


def watch(event: str, arguments: tuple) -> None:
    """Note what is run, what is removed that attacks name, and files that are written outside the inputs' directory."""
    first = str(arguments[0]) if arguments else ""
    if event in WATCHED or (event in ("os.remove", "shutil.rmtree") and first.endswith("/ran")):
        ran.append(f"{event} {arguments!r:.200}")
    inside = not first.startswith("/") or first.startswith((DIRECTORY, "/tmp/", "/dev/null", "/proc/self/clear_refs"))
    if event == "open" and not inside and set(str(arguments[1])) & set("wax+"):
        ran.append(f"open {arguments!r:.200}")


def in_process(source: Path, target: Path | None) -> dict:
    """`convert_pickle` in this process, which is limited as its own is: a process for each of thousands takes hours."""
    return pickles.taken(json.loads(json.dumps(pickles.main(source, target))))


def inspect(path: Path) -> None:
    said = inspect_module.inspect_checkpoint(path)
    "\n".join(inspect_module.lines(said)).encode("utf-8", "backslashreplace")
    if not said["bakeable"]:
        raise AxbakeError(f"{said['path']} {said['why']}")


def imported(path: Path) -> None:
    for component in ("unet", "vae_decoder"):
        import_part(path, component=component, weights=path.parent / "weights.safetensors")


def imported_xl(path: Path) -> None:
    for component in ("text_encoder_2", "unet"):
        import_part(path, component=component, weights=path.parent / "weights.safetensors", family=FAMILIES["sdxl"])


def imported_flow(path: Path) -> None:
    for component in ("text_encoder", "transformer", "vae_decoder"):
        import_part(path, component=component, weights=path.parent / "weights.safetensors", family=family_in(path))


def tokenized(path: Path) -> None:
    listing = path.with_name("embeddings.json")
    list_embeddings([], [], [path], names=[], encoders=[], listing=listing, formats={"text_encoder": FORMAT})
    ids, _ = language_tokenizers(json.loads(listing.read_text()))["text_encoder"].arrays("a (cat:1.2) \n" * 50)
    if ids.shape != (1, FORMAT.tokens) or ids.min() < 0:
        raise AssertionError(f"ids of shape {ids.shape}, the least {ids.min()}")


def added(path: Path) -> torch.Tensor:
    row = load_added(path).row(np.ones((1, tiny_xl.POOLED), np.float32), (64, 64, 0, 0, 64, 64))
    return torch.from_numpy(row)


def vae(path: Path) -> None:
    for component in halves(SD1):
        import_part(path, component=component, weights=path.parent / "weights.safetensors")


def fused(path: Path) -> None:
    for component in ("unet", "text_encoder"):
        tensors = plain[component]
        fusion = Fusion(
            SD1.component(component), {n: tuple(t.shape) for n, t in tensors.items()}, [(path, 0.7)], width=tiny.WIDTH
        )
        for name, tensor in tensors.items():
            if fusion.changes(name):
                fusion.apply(name, tensor)


READERS: dict[str, Callable[[Path], object]] = {
    "inspect": inspect,
    "import": imported,
    "import XL": imported_xl,
    "import flow": imported_flow,
    "tokenizer": tokenized,
    "schedule": load_schedule,
    "added_embedding": added,
    "embeddings": lambda path: load_tokenizer(ROOT / "resources" / "clip", path),
    "manifest": lambda path: read_bundle(path.parent),
    "vae": vae,
    "lora": fused,
    "embedding": read_embedding,
    "sidecar": read_sidecar,
    "picture": lambda path: read_canvas(path, height=64, width=96),
    "canvas": lambda path: read_canvas(path, path.with_name("mask"), height=64, width=96),
    "recipe": files_of,
    "convert": lambda path: convert_checkpoint(
        files_of(path), checkpoint=path.parent / "converted.safetensors", components=SD1.components, latents=SD1.latents
    ),
}


READERS |= planted.READERS
MADE = ("weights.safetensors", "converted.safetensors")  # by readers, beside their input


def is_wrong(result: object, place: Path) -> bool:
    """Whether what a reader gave, or wrote into *place*, has numbers that no model is to be baked of."""
    made = [tensor for name in MADE if (place / name).exists() for tensor in load_file(place / name).values()]
    made += [one for one in (result if isinstance(result, list) else [result]) if isinstance(one, torch.Tensor)]
    return not all(bool(torch.isfinite(tensor.float()).all()) for tensor in made)


def answer(reader: str, path: Path) -> dict:
    """What came of reading *path*: read, wrong, refused or traceback, with its text, seconds, and the most memory."""
    peaks.count_anew()
    ran.clear()
    started = time.monotonic()
    outcome, text = "read", ""
    try:
        if is_wrong(READERS[reader](path), path.parent):
            outcome, text = "wrong", "not finite"
    except (AxbakeError, BundleError) as error:
        outcome, text = "refused", str(error)
    except BaseException as error:
        outcome, text = (
            "traceback",
            f"{type(error).__name__}: {error}\n{''.join(traceback.format_tb(error.__traceback__)[-4:])}",
        )
    peak, seconds = peaks.peak(), time.monotonic() - started
    return {
        "outcome": outcome,
        "text": text[:10_000],
        "seconds": seconds,
        "peak": peak,
        "ran": ran[:3],
    }


if __name__ == "__main__":
    from axbake import inspect as inspect_module

    DIRECTORY = sys.argv[1]
    os.chdir(DIRECTORY)  # digests are remembered in the working directory
    torch.set_num_threads(1)
    networks = tiny.sd1(torch.float32)
    plain = {
        component: {n.removeprefix("text_model."): t for n, t in networks.component(component).state_dict().items()}
        for component in ("unet", "text_encoder")
    }
    if "--fenced" in sys.argv:
        pickles.convert_pickle = embeddings.convert_pickle = in_process
        pickles._limit_process(0)
    sys.addaudithook(watch)
    print("ready", flush=True)
    for line in sys.stdin:
        reader, path = json.loads(line)
        print(json.dumps(answer(reader, Path(path))), flush=True)
