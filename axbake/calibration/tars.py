"""Calibration samples, packed for Pulsar2.

The UNet's are chosen from what it saw when the model drew (`trajectories`); the VAE's depend on the VAE alone (`pictures`), the
text encoder's on the project's text prompts alone, so that models which share them share their builds.

The formats are Pulsar2's (AXERA-TECH/pulsar2-docs-en, `user_guides_config/config.md`, InputQuantConfig): `NumpyObject` archives
for the UNet and the VAE decoder, a `Numpy` archive for the text encoder, an `Image` archive for the VAE encoder.
"""

import contextlib
import io
import json
import logging
import pickle
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from axbake.calibration.counting import Recorded
from axbake.calibration.coverage import choose, described, shares
from axbake.calibration.denoiser_samples import EMPTY, PROMPT, DenoiserSamples, TakenInputs, Which, load_samples
from axbake.calibration.modules import OUTPUT, read_module_ranges
from axbake.calibration.observation import chain_inputs, feeds_of_chain
from axbake.calibration.pictures import decoded_of, read_chosen
from axbake.drawing.prompts import load_tokenizer
from axbake.networks.component import Piece
from axbake.runtime.progress import progress
from axbake.runtime.prompt import chunk_prompt, ids_for

logger = logging.getLogger(__name__)


def stratified(count: int, *, prompts: int, branches: Sequence[int]) -> list[Which]:
    """*count* different (prompt, step, branch), spread evenly over each of the three; there are as many or more.

    In the order of steps, from the first (all noise) to the last.

    Args:
        branches: of each step, how many run.
    """
    ends = np.cumsum(branches)
    # Numbers of one step follow one another, so they are of different prompts, and of the other branch when a prompt
    # comes round again.
    found = []
    for number in range(count):
        step = int(np.searchsorted(ends, number * ends[-1] // count, side="right"))
        found.append((number % prompts, step, (number // prompts + number % prompts) % branches[step]))
    return found


def calibrate_denoiser(
    graphs: Sequence[Path],
    tensors: Sequence[Path],
    trajectories: Path,
    schedule: Path,
    *,
    component: str,
    guidance_scale: float,
    samples: int,
    selection: str,
    archives: Sequence[Path],
    record: Path,
) -> None:
    """Choose *samples* of what was recorded, and pack what each graph takes of them into a `NumpyObject` archive.

    They are in it in the order in which they were chosen; with `coverage` the first n are the best n that greed finds. Names in
    an archive are its graph's.

    Args:
        graphs, tensors: its graphs in order, and the files of their weights beside them.
        trajectories: `calibration/trajectories.npz`, whose ranges of modules the samples are chosen by.
        guidance_scale: at 1 the negative branch does not run, and gives no samples.
        selection: `coverage`, with an empty prompt, a longest prompt and every step that runs the model, if
            *samples* are enough for them; `stratified`, evenly over prompts, steps and branches; `first`, as recorded: by prompt,
            step, branch.
        archives: tars to write, one a graph.
        record: JSON to write: the samples chosen, and what of the modules' ranges they cover.

    Raises:
        CalibrationError: there are fewer than *samples*.
    """
    taken = TakenInputs.of(chain_inputs(graphs))
    recorded = load_samples(trajectories, schedule, taken)
    there = recorded.recorded(guidance_scale)
    _check_count(there, samples, selection)
    required = required_samples(recorded, there)
    covered = shares(read_module_ranges(trajectories), {OUTPUT})
    assert len(covered.low) == len(there), "the trajectories were recorded with another guidance"
    by_coverage = choose(covered, samples, [list(group.values()) for group in required])
    rows = by_coverage[:samples]
    if selection == "first":
        rows = list(range(samples))
    elif selection == "stratified":
        rows = _stratified_rows(there, samples)
    chosen = [there[row] for row in rows]
    with contextlib.ExitStack() as packing:
        adds = [packing.enter_context(_archive(path)) for path in archives]
        tell = progress("packing: sample")
        for graph, row, feed in feeds_of_chain(graphs, lambda: recorded.all_inputs(chosen), beside=record.parent):
            adds[graph](f"{archives[graph].stem}_{row:04d}.npy", _npy_object(dict(feed)))
            tell(graph * samples + row + 1, len(graphs) * samples)
    content = {
        "component": component,
        "selection": selection,
        "recorded": len(there),
        **described(covered, rows, by_coverage),
        "required": {name: not those.isdisjoint(rows) for group in required for name, those in group.items()},
        "samples": [{"row": row, **recorded.describe(there[row])} for row in rows],
    }
    logger.info("%d of %d samples cover %.2f %% of the ranges", samples, len(there), 100 * content["coverage"])
    record.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_count(there: list[Which], samples: int, selection: str) -> None:
    """Raise CalibrationError if there are fewer than *samples*; those of an added empty prompt are for `coverage` alone."""
    drawn = [which for which in there if which[2] != EMPTY]
    prompts, steps, branches = (sorted({which[axis] for which in drawn}) for axis in range(3))
    alone = sum(count < len(branches) for count in _branches_by_step(drawn))
    counted = Recorded(len(prompts), len(steps), len(branches), alone)
    counted.check("samples", samples, empty=len(there) - len(drawn) if selection == "coverage" else 0)


def _branches_by_step(drawn: list[Which]) -> list[int]:
    steps = sorted({step for _, step, _ in drawn})
    return [len({branch for _, one, branch in drawn if one == step}) for step in steps]


def _stratified_rows(there: list[Which], samples: int) -> list[int]:
    drawn = [which for which in there if which[2] != EMPTY]
    prompts, steps, branches = (sorted({which[axis] for which in drawn}) for axis in range(3))
    spread = stratified(samples, prompts=len(prompts), branches=_branches_by_step(drawn))
    return [there.index((prompt, steps[number], branches[branch])) for prompt, number, branch in spread]


def required_samples(recorded: DenoiserSamples, samples: list[Which]) -> list[dict[str, set[int]]]:
    """What a choice must hold one of, with the rows that are one, in the groups that `coverage.choose` wants."""
    rows, longest = range(len(samples)), recorded.longest()
    texts = {
        "an empty prompt": {row for row in rows if recorded.is_empty(samples[row])},
        "a longest prompt": {row for row in rows if samples[row][2] == PROMPT and samples[row][0] in longest},
    }
    # The time path sees one row of the schedule a step: a finite set, which can be covered wholly.
    times = {f"step {step + 1}": {row for row in rows if samples[row][1] == step} for step in recorded.steps}
    return [texts, times]


def calibrate_decoder(
    latents: Path,
    chosen: Path,
    *,
    piece: Piece,
    columns: Mapping[str, Any],
    archive: Path,
    tile: int | None = None,
) -> None:
    """Pack *latents*, an .npy of (N, 1, C, h, w) float32 (`pictures.encode_pictures`), into a `NumpyObject` archive.

    Args:
        chosen: which of them (`pictures.decode_latents`).
        piece, columns: the decoder's graph, and the columns that its interface asks for: they say what its input is called.
        tile: side of a tile in latent pixels, of a decoder of tiles. Then there is one tile of each latent: of the n-th the n-th
            that a drawing decodes, and from the last on the first again. So there are as many samples as of a whole decoder.
    """
    (name,) = piece.inputs(**columns)
    decoded = decoded_of(np.load(latents), tile)
    arrays = enumerate(decoded[row] for row in read_chosen(chosen))
    _write_archive(archive, ((f"{archive.stem}_{n:04d}.npy", _npy_object({name: latent})) for n, latent in arrays))


def calibrate_text_encoder(embeddings: Path, *, component: str, prompts: list[str], archive: Path) -> None:
    """Pack the chunks of *prompts*, of all embeddings' names and of the empty prompt into a `Numpy` archive.

    Each chunk is there once, (1, 77) int64 ids; a long prompt has several.

    Args:
        embeddings: `embeddings.json`.
        component: the text encoder, which may have a padding of its own.
    """
    tokenizer = load_tokenizer(embeddings)
    texts = [*prompts, *tokenizer.embeddings, ""]
    chunks = (ids_for(chunk, tokenizer, component) for text in texts for chunk in chunk_prompt(text, tokenizer))
    samples = {ids.tobytes(): ids for ids in chunks}
    _write_archive(archive, ((f"{archive.stem}_{n:04d}.npy", _npy(ids)) for n, ids in enumerate(samples.values())))


def calibrate_encoder(pictures: Path, chosen: Path, *, archive: Path) -> None:
    """Pack those of *pictures* that are *chosen* into an `Image` archive, as PNGs.

    Args:
        pictures: .npy of (P, H, W, 3) uint8.
        chosen: which of them (`pictures.encode_pictures`).
    """

    def png(picture: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        return file.getvalue()

    drawn = np.load(pictures)
    shown = enumerate(drawn[row] for row in read_chosen(chosen))
    _write_archive(archive, ((f"{archive.stem}_{number:04d}.png", png(picture)) for number, picture in shown))


def _write_archive(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """A tar of *members* in their order."""
    with _archive(path) as add:
        for name, content in members:
            add(name, content)


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[Callable[[str, bytes], None]]:
    """A function that adds a member to the tar *path*; the same members give the same bytes (no times, no owners)."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

        yield add


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return file.getvalue()


class _PortablePickler(pickle.Pickler):
    """Pickles arrays as calls of `numpy.ndarray`.

    NumPy 2 pickles refer to `numpy._core`, which the NumPy 1 inside Pulsar2's image has not; `numpy.ndarray` and
    `numpy.array` are in both.
    """

    def reducer_override(self, obj):
        if not isinstance(obj, np.ndarray):
            return NotImplemented
        if obj.dtype == object:
            return np.array, (obj.item(), "O")
        return np.ndarray, (obj.shape, obj.dtype.str, obj.tobytes())


def _npy_object(arrays: dict[str, np.ndarray]) -> bytes:
    """An `.npy` of one object, the dict *arrays*, as `np.save(path, arrays)` writes it, readable by NumPy 1 and 2."""
    file = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": ()}
    np.lib.format.write_array_header_1_0(file, header)
    _PortablePickler(file, protocol=4).dump(np.array(arrays, dtype=object))
    return file.getvalue()
