"""Whether ONNX graphs compute what the torch network does."""

import gc
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from axbake.distance import psnr
from axbake.networks.component import Graph as Piece
from axbake.runtime.session import open_model, open_models
from axbake.weights import networks
from axbake.weights.files import read_description

logger = logging.getLogger(__name__)
SEED = 0
Arrays = dict[str, np.ndarray]


def measure_parity(
    weights: Path,
    graphs: Sequence[Path],
    tensors: Sequence[Path],
    *,
    component: str,
    build: networks.Build,
    pieces: Sequence[Piece],
    example: Callable[..., Any],
    columns: Mapping[str, Any],
    parity: Path,
) -> None:
    """Run *graphs* in ONNX Runtime and their network in torch on the same seeded inputs; write the distance to *parity*.

    Torch runs the network as it was trained: the UNet with its time embedding, the text encoder with its own causal mask. Where
    there are several graphs, each is also compared alone with its slice of the network, on what the slices before it give.

    Args:
        weights: `weights/{component}.safetensors`.
        graphs: in the order in which they run.
        tensors: of the graphs, beside them under the names by which they refer to them.
        build, pieces, example, columns: the component's: how it is built, its graphs, its example, the columns of its graphs.
        parity: JSON to write: PSNR in dB and largest error of the whole, and of each graph. What must be reached is compared by
            `axbake.judging`.
    """
    config = read_description(weights).config
    faces = [piece.interface(config, **columns) for piece in pieces]
    made = {name for face in faces for name in face.outputs}
    whole = _whole(faces, made)
    with torch.inference_mode():
        inputs, wanted = example(networks.load(weights, build), whole, config, torch.Generator().manual_seed(SEED))
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    slices = _slices(weights, build, config, pieces, faces, inputs) if len(pieces) > 1 else []
    gc.collect()  # torch's copy of the weights goes before ONNX Runtime loads its own
    chain = open_models(graphs)
    (output,) = chain.outputs
    found = chain.run({name: arrays[name] for name in chain.inputs})[output]
    reference = wanted.numpy()
    result = {
        "component": component,
        "compared": "ONNX Runtime against torch, float32",
        "output": output,
        "psnr_db": round(psnr(reference, found), 2),
        "largest_error": float(np.abs(reference - found).max()),
    }
    del chain
    if slices:
        result["graphs"] = {
            piece.name: _compare(path, *slice) for piece, path, slice in zip(pieces, graphs, slices, strict=True)
        }
    logger.info("%s: onnx against torch is %.1f dB", component, result["psnr_db"])
    parity.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _whole(faces: Sequence[Any], made: set[str]) -> Any:
    """What a chain of graphs takes and gives together."""
    inputs = {name: tensor for face in faces for name, tensor in face.inputs.items() if name not in made}
    return type(faces[0])(inputs, faces[-1].outputs)


def _slices(
    weights: Path, build: networks.Build, config: dict, pieces: Sequence[Piece], faces: Sequence[Any], inputs: dict
) -> list[tuple[Arrays, Arrays]]:
    """What each slice of the network takes and gives in torch, the slices run one after the other."""
    known, found = dict(inputs), []
    for piece, face in zip(pieces, faces, strict=True):
        taken = {name: known[name] for name in face.inputs}
        with torch.inference_mode():
            given = piece.cut(networks.load(weights, build), face)(*taken.values())
        outputs = dict(zip(face.outputs, given if isinstance(given, tuple) else (given,), strict=True))
        known |= outputs
        found.append(({n: t.numpy() for n, t in taken.items()}, {n: t.numpy() for n, t in outputs.items()}))
    return found


def _compare(graph: Path, inputs: Arrays, wanted: Arrays) -> dict[str, float]:
    """PSNR of a graph's worst output in dB, and its largest error."""
    found = open_model(graph).run(inputs)
    return {
        "psnr_db": round(min(psnr(wanted[name], found[name]) for name in wanted), 2),
        "largest_error": float(max(np.abs(wanted[name] - found[name]).max() for name in wanted)),
    }
