"""Calibration samples, packed for Pulsar2.

The UNet's are chosen from what it saw when the model drew (`trajectories`); the VAE's depend on the VAE alone (`pictures`), the
text encoder's on the project's text prompts alone, so that models which share them share their builds.

The formats are Pulsar2's (AXERA-TECH/pulsar2-docs-en, `user_guides_config/config.md`, InputQuantConfig): `NumpyObject` archives
for the UNet and the VAE decoder, a `Numpy` archive for the text encoder, an `Image` archive for the VAE encoder.
"""

import io
import json
import logging
import pickle
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from axbake.calibration.counting import Recorded
from axbake.calibration.coverage import Shares, choose, shares
from axbake.calibration.denoiser_samples import EMPTY, PROMPT, DenoiserSamples, Which, load_samples
from axbake.calibration.observation import read_observed, run_chain
from axbake.drawing.prompts import load_tokenizer
from axbake.networks.component import Piece
from axbake.runtime.prompt import chunk_prompt, ids_for
from axbake.runtime.tiles import tiles_of

logger = logging.getLogger(__name__)
WORST = 10  # tensors that a record names
ENOUGH = (0.99, 1.0)  # shares of the ranges for which a record says how many samples they take


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
    ranges: Path,
    *,
    component: str,
    samples: int,
    selection: str,
    archives: Sequence[Path],
    record: Path,
) -> None:
    """Pack *samples* of what each of the denoiser's graphs takes into a `NumpyObject` archive, by the names of the graph.

    They are in it in the order in which they were chosen; with `coverage` the first n are the best n that greed finds.

    Args:
        graphs, tensors: its graphs in order, and the files of their weights beside them; only a chain's are run, to have what
            its later graphs take.
        trajectories: `calibration/trajectories.npz`.
        ranges: `calibration/{component}.ranges.npz`; its samples are those that there are.
        selection: `coverage`, with an empty prompt, a longest prompt and every step that runs the model, if
            *samples* are enough for them; `stratified`, evenly over prompts, steps and branches; `first`, as recorded: by prompt,
            step, branch.
        archives: tars to write, one a graph.
        record: JSON to write: the samples chosen, and what of the activations' ranges they cover.

    Raises:
        CalibrationError: there are fewer than *samples*.
    """
    observed = read_observed(ranges)
    recorded = load_samples(trajectories, schedule, observed.taken)
    drawn = [which for which in observed.samples if which[2] != EMPTY]
    prompts, steps, branches = (sorted({which[axis] for which in drawn}) for axis in range(3))
    run = [len({branch for _, one, branch in drawn if one == step}) for step in steps]
    there = Recorded(len(prompts), len(steps), len(branches), sum(count < len(branches) for count in run))
    there.check("samples", samples, empty=len(observed.samples) - len(drawn) if selection == "coverage" else 0)
    required = required_samples(recorded, observed.samples)
    covered = shares(observed.ranges, observed.outputs)
    by_coverage = choose(covered, samples, [list(group.values()) for group in required])
    chosen = by_coverage[:samples]
    if selection == "first":
        chosen = list(range(samples))
    elif selection == "stratified":
        spread = stratified(samples, prompts=len(prompts), branches=run)
        chosen = [
            observed.samples.index((prompt, steps[number], branches[branch])) for prompt, number, branch in spread
        ]
    inputs = [recorded.inputs(observed.samples[row]) for row in chosen]
    taken = run_chain(graphs, inputs) if len(graphs) > 1 else [inputs]
    for archive, feeds in zip(archives, taken, strict=True):
        members = ((f"{archive.stem}_{number:04d}.npy", _npy_object(feed)) for number, feed in enumerate(feeds))
        _write_archive(archive, members)
    content = {
        "component": component,
        "selection": selection,
        "recorded": len(observed.samples),
        **_coverage(covered, chosen, by_coverage),
        "required": {name: not rows.isdisjoint(chosen) for group in required for name, rows in group.items()},
        "samples": [{"row": row, **recorded.describe(observed.samples[row])} for row in chosen],
    }
    logger.info(
        "%d of %d samples cover %.2f %% of the ranges", samples, len(observed.samples), 100 * content["coverage"]
    )
    record.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


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


def _coverage(covered: Shares, chosen: list[int], by_coverage: list[int]) -> dict[str, Any]:
    """What *chosen* cover, and how many samples it takes to cover enough, of *by_coverage*, which cover all."""
    curve, tensors = covered.curve(chosen), covered.by_tensor(chosen)
    whole = covered.curve(by_coverage)
    worst = sorted(tensors, key=lambda name: tensors[name])[:WORST]
    return {
        "coverage": round(curve[-1], 6),
        "tensors": len(tensors),
        "worst_covered": {name: round(tensors[name], 4) for name in worst},
        "samples_for": {f"{share:.0%}": 1 + next(i for i, at in enumerate(whole) if at >= share) for share in ENOUGH},
        # With «coverage» on to the sample that completes it.
        "coverage_by_samples": [round(at, 6) for at in (whole if chosen == by_coverage[: len(chosen)] else curve)],
    }


def calibrate_decoder(
    latents: Path, *, piece: Piece, columns: Mapping[str, Any], archive: Path, tile: int | None = None
) -> None:
    """Pack *latents*, an .npy of (N, 1, C, h, w) float32 (`pictures.encode_pictures`), into a `NumpyObject` archive.

    Args:
        piece, columns: the decoder's graph, and the columns that its interface asks for: they say what its input is called.
        tile: side of a tile in latent pixels, of a decoder of tiles. Then there is one tile of each latent: of the n-th the n-th
            that a drawing decodes, and from the last on the first again. So there are as many samples as of a whole decoder.
    """
    (name,) = piece.inputs(**columns)
    loaded = np.load(latents)
    if tile:
        loaded = [(tiles := tiles_of(latent, tile))[number % len(tiles)] for number, latent in enumerate(loaded)]
    arrays = enumerate(loaded)
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


def calibrate_encoder(pictures: Path, *, archive: Path) -> None:
    """Pack *pictures*, an .npy of (P, H, W, 3) uint8, as PNGs into an `Image` archive."""

    def png(picture: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        return file.getvalue()

    drawn = enumerate(np.load(pictures))
    _write_archive(archive, ((f"{archive.stem}_{number:04d}.png", png(picture)) for number, picture in drawn))


def _write_archive(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """A tar of *members* in their order; the same members give the same bytes (no times, no owners)."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


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
