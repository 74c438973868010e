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
from axbake.networks.component import Piece
from axbake.runtime.session import open_model
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
        parity: JSON to write: PSNR in dB and largest error of the whole's worst output, and of each graph. What must be
            reached is compared by `axbake.judging`.
    """
    config = read_description(weights).config
    faces = [piece.interface(config, **columns) for piece in pieces]
    made = {name for face in faces for name in face.outputs}
    whole = _whole(faces, made)
    with torch.inference_mode():
        network = networks.load(weights, build)
        inputs, wanted = example(network, whole, config, torch.Generator().manual_seed(SEED))
        slices = _slices(network, pieces, faces, inputs) if len(pieces) > 1 else []
    del network
    gc.collect()  # torch's copy of the weights goes before ONNX Runtime loads its own
    known, alone = {name: tensor.numpy() for name, tensor in inputs.items()}, {}
    for number, (piece, graph) in enumerate(zip(pieces, graphs, strict=True)):
        session = open_model(graph)  # one at a time, since all together may not fit in memory
        if slices:
            taken, given = slices[number]
            alone[piece.name] = _distance(given, session.run(taken))
        found = session.run({name: known[name] for name in session.inputs})
        known |= found
        del session
    outputs = wanted if isinstance(wanted, tuple) else (wanted,)
    references = {name: tensor.numpy() for name, tensor in zip(found, outputs, strict=True)}
    result = {
        "component": component,
        "compared": "ONNX Runtime against torch, float32",
        "output": min(found, key=lambda name: psnr(references[name], found[name])),
        **_distance(references, found),
        **({"graphs": alone} if alone else {}),
    }
    logger.info("%s: onnx against torch is %.1f dB", component, result["psnr_db"])
    parity.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _whole(faces: Sequence[Any], made: set[str]) -> Any:
    """What a chain of graphs takes and gives together."""
    inputs = {name: tensor for face in faces for name, tensor in face.inputs.items() if name not in made}
    return type(faces[0])(inputs, faces[-1].outputs)


def _slices(
    network: torch.nn.Module, pieces: Sequence[Piece], faces: Sequence[Any], inputs: dict
) -> list[tuple[Arrays, Arrays]]:
    """What each slice of the network takes and gives in torch, the slices run one after the other."""
    known, found = dict(inputs), []
    for piece, face in zip(pieces, faces, strict=True):
        taken = {name: known[name] for name in face.inputs}
        given = piece.cut(network, face)(*taken.values())
        outputs = dict(zip(face.outputs, given if isinstance(given, tuple) else (given,), strict=True))
        known |= outputs
        found.append(({n: t.numpy() for n, t in taken.items()}, {n: t.numpy() for n, t in outputs.items()}))
    return found


def _distance(wanted: Arrays, found: Arrays) -> dict[str, float]:
    """PSNR of the worst output in dB, and the largest error."""
    return {
        "psnr_db": round(min(psnr(wanted[name], found[name]) for name in wanted), 2),
        "largest_error": float(max(np.abs(wanted[name] - found[name]).max() for name in wanted)),
    }
