"""Graphs for the board's host: text encoders that are language models, with their weights in 8 or 4 bits.

Weights are quantised in blocks by ONNX Runtime's own quantiser; activations stay float32, so nothing is calibrated.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from axbake.distance import cosine, psnr, sqnr
from axbake.drawing.prompts import load_tokenizer
from axbake.runtime.prompt import language_text
from axbake.runtime.session import open_models

logger = logging.getLogger(__name__)
BLOCK = 64  # weights along a row that share a scale
TABLE = "Gather"  # operator that reads the token table, which is kept in half precision
BIAS = "relative_attention_bias.weight"  # which is read so too


def quantise_weights(graph: Path, tensors: Path, *, bits: int, model: Path, record: Path) -> None:
    """Write *graph* with its matrices in *bits* bits and its token table in 16, all in one file.

    Args:
        graph, tensors: float ONNX graph, and the file of its weights beside it.
        bits: 8 or 4, of a weight.
        model: ONNX file to write, for ONNX Runtime 1.22 or newer (`com.microsoft.MatMulNBits`).
        record: JSON to write, as `axbake.toolchain.pulsar2` writes it of a build.
    """
    import onnxruntime
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    loaded = onnx.load(graph)
    _halve_table(loaded)
    settings = DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=False, bits=bits)
    quantiser = MatMulNBitsQuantizer(loaded, algo_config=settings)
    quantiser.process()
    onnx.save(quantiser.model.model, model)
    version = f"ONNX Runtime {onnxruntime.__version__}, weights in {bits} bits"
    content = {
        "component": graph.stem,
        "toolchain": "onnxruntime",
        "version": version,
        "emulated": False,
        "bytes": model.stat().st_size,
    }
    record.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    logger.info("%s: %.0f MB, weights in %d bits", graph.stem, model.stat().st_size / 1e6, bits)


def _halve_table(model: onnx.ModelProto) -> None:
    """Keep the token table in float16; what is taken of it becomes float32 again."""
    tables = {one.name: one for one in model.graph.initializer if len(one.dims) == 2 and not one.name.endswith(BIAS)}
    for node in list(model.graph.node):
        table = tables.get(node.input[0]) if node.op_type == TABLE else None
        if table is None or table.data_type != TensorProto.FLOAT:
            continue
        table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(table).astype(np.float16), table.name))
        taken, half = node.output[0], f"{node.output[0]}.half"
        node.output[0] = half
        place = list(model.graph.node).index(node) + 1
        model.graph.node.insert(place, helper.make_node("Cast", [half], [taken], to=TensorProto.FLOAT))
    del model.graph.value_info[:]  # of what is half precision now


def check_quantised(
    graphs: Sequence[Path],
    tensors: Sequence[Path],
    models: Sequence[Path],
    embeddings: Path,
    before: Sequence[Path] = (),
    before_tensors: Sequence[Path] = (),
    *,
    component: str,
    encoder: str,
    prompts: Sequence[str],
    samples: int,
    check: Path,
) -> None:
    """Run a component's quantised graphs and its float graphs on prompts, and compare what they give.

    Args:
        graphs, tensors, models: in the order in which they run.
        embeddings: `embeddings.json`.
        before, before_tensors: of a component that takes a language model's states, the float graphs of that.
        encoder: the language model: the component, or the one before it.
        prompts: of which *samples*, evenly spread, are taken; 0: nothing is run, and *check* says so.
        check: JSON to write, as `axbake.toolchain.compiled` writes it.
    """
    content: dict[str, Any] = {"component": component, "emulated": False, "samples": samples}
    if samples:
        tokenizer = load_tokenizer(embeddings)
        count = min(samples, len(prompts))
        chosen = [prompts[number * len(prompts) // count] for number in range(count)]
        texts = [language_text(text, tokenizer) for text in chosen]
        feeds: list[Sequence[np.ndarray]] = [tokenizer.language[encoder].arrays(text) for text in texts]
        if before:
            states = [next(iter(made.values())) for made in _run(before, feeds)]
            own = tokenizer.language.get(component)
            feeds = [
                (state, kinds, *(own.arrays(text) if own else ()))
                for state, (_, kinds), text in zip(states, feeds, texts, strict=True)
            ]
        wanted, found = (_run(paths, feeds) for paths in (graphs, models))
        outputs = {name: _distances([one[name] for one in wanted], [one[name] for one in found]) for name in wanted[0]}
        content |= {"samples": count, "outputs": outputs}
        for name, distance in outputs.items():
            logger.info("%s: %s is %.1f dB (SQNR) from the float graph's", component, name, distance["sqnr_db"])
    check.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _run(paths: Sequence[Path], feeds: Sequence[Sequence[np.ndarray]]) -> list[dict[str, np.ndarray]]:
    session = open_models(paths)
    return session.run_all([dict(zip(session.inputs, arrays, strict=False)) for arrays in feeds])


def _distances(wanted: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> dict[str, float]:
    """The worst of each figure over all samples."""
    pairs = list(zip(wanted, found, strict=True))
    return {
        "sqnr_db": round(min(sqnr(*pair) for pair in pairs), 2),
        "psnr_db": round(min(psnr(*pair) for pair in pairs), 2),
        "cosine": round(min(cosine(*pair) for pair in pairs), 6),
        "largest_error": float(max(np.abs(one - other).max() for one, other in pairs)),
    }
