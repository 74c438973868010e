"""How far the emulated denoiser is from its float graph after each layer: where errors arise along the network."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper

from axbake.calibration.denoiser_samples import TakenInputs
from axbake.calibration.observation import chain_inputs
from axbake.calibration.reference_samples import reference_samples
from axbake.distance import sqnr
from axbake.drawing.parts import Drawn
from axbake.emulator.graph import session_options
from axbake.networks.component import DENOISER
from axbake.quality.network import Network
from axbake.runtime.added import AddedEmbedding
from axbake.runtime.progress import progress
from axbake.runtime.sampler import load_schedule
from axbake.runtime.values import Latents, Picture
from axbake.weights.networks import Build

logger = logging.getLogger(__name__)
MOST = 2 << 30  # bytes of tensors that are compared at once
WORST = 10


def compare_nodes(
    *,
    models: Sequence[Path],
    graphs: Sequence[Path],
    tensors: Sequence[Path],
    schedule: Path,
    embeddings: Path,
    trajectory: Path,
    picture: Picture,
    drawn: Drawn,
    addresses: list[str],
    nodes: Path,
    added_weights: Sequence[Path] = (),
    added: Callable[[Path], AddedEmbedding] | None = None,
    canvas: Sequence[Path] = (),
    encoder_weights: Sequence[Path] = (),
    encoder_build: Build | None = None,
    latents: Latents | None = None,
) -> None:
    """Run float and emulated denoiser on one sample, of the middle step of the reference's drawing, and compare their tensors.

    Args:
        models: emulated ones of the denoiser.
        graphs, tensors: float graphs of the components in *drawn*, which are text encoders and denoiser, and the files of their
            weights beside them.
        schedule, embeddings, trajectory: as `axbake.calibration.held_out.check_calibration` has them, and all that is not here.
        addresses: of the denoiser's graphs.
        nodes: JSON to write: of each layer's result, in the order of the network: SQNR in dB of all that was rounded up to there,
            the calibrated range, and the share of values outside of it.
    """
    steps, component = load_schedule(schedule), drawn.of_role(DENOISER)
    files = drawn.files(graphs)[component]
    run = [step for step in range(len(steps.timesteps)) if steps.runs_model(step)]
    step = run[len(run) // 2]
    feeds = reference_samples(
        graphs=graphs,
        schedule=steps,
        embeddings=embeddings,
        trajectory=trajectory,
        picture=picture,
        drawn=drawn,
        taken=TakenInputs.of(chain_inputs(files)),
        steps=[step],
        added_weights=added_weights,
        added=added,
        canvas=canvas,
        encoder_weights=encoder_weights,
        encoder_build=encoder_build,
        latents=latents,
    )
    known = [dict(next(iter(feeds.values()))) for _ in range(2)]  # of the float chain, and of the emulated one
    found: list[dict[str, Any]] = []
    for address, graph, model in zip(addresses, files, models, strict=True):
        network = Network.load([graph])
        results = {
            node.outputs[0]: node for node in network.nodes if not node.moves and node.outputs[0] in network.sizes
        }
        kept = [name for name in results if network.types[name] == TensorProto.FLOAT]
        tell, done = progress(f"comparing layers of {address}:"), 0
        pair = _Pair(graph, model, kept)
        for names in _chunks(kept, network.sizes):
            for name, wanted, made in pair.run(known, names):
                node = results[name]
                entry = {"graph": address, "layer": node.name, "operator": node.proto.op_type, "tensor": name}
                found.append(entry | {"sqnr_db": round(sqnr(wanted, made), 2)} | pair.clipping(name, wanted))
            done += len(names)
            tell(done, len(kept))
        known = [one | made for one, made in zip(known, pair.outputs, strict=True)]
    worst = sorted(range(len(found)), key=lambda place: found[place]["sqnr_db"])[:WORST]
    content = {
        "component": component,
        "emulated": True,
        "step": step + 1,
        "compared": "emulated against float, after each layer, all before it emulated too; one sample of the reference's drawing",
        "worst": worst,
        "layers": found,
    }
    nodes.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


class _Pair:
    """A float graph and its emulated model, which give the same tensors."""

    def __init__(self, graph: Path, model: Path, names: Sequence[str]) -> None:
        emulated = onnx.load(model)
        made = {name for node in emulated.graph.node for name in node.output}
        self.of_emulated = {name: _rounded_name(name, made) for name in names}
        self.encodings = _encodings(emulated)
        floating = onnx.load(graph, load_external_data=False)
        self.own = [value.name for value in floating.graph.output]
        self.models: list[tuple[onnx.ModelProto, Path | None]] = [(floating, graph), (emulated, None)]
        self.outputs: list[dict[str, np.ndarray]] = [{}, {}]

    def run(
        self, known: Sequence[Mapping[str, np.ndarray]], names: Sequence[str]
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Each of *names*, as the float graph and as the emulated model have it; and keeps the graph's own outputs."""
        results = []
        for place, wanted in enumerate((list(names), [self.of_emulated[name] for name in names])):
            own = self.own if not self.outputs[place] else []
            # One session at a time, which gives no more: a tensor that it could give is kept to the end of a run, wanted or not.
            session = _with_outputs(*self.models[place], wanted)
            feed = {value.name: known[place][value.name] for value in session.get_inputs()}
            found = session.run([*wanted, *own], feed)
            del session
            results.append(found[: len(wanted)])
            self.outputs[place] |= dict(zip(own, found[len(wanted) :], strict=True))
        yield from zip(names, *results, strict=True)

    def clipping(self, name: str, wanted: np.ndarray) -> dict[str, Any]:
        """The range that tensor *name* is encoded in, its type, and the share of *wanted* outside of it; float: nothing."""
        if name not in self.encodings:
            return {"type": "float", "low": None, "high": None, "clipped": 0.0}
        kind, low, high = self.encodings[name]
        half = (high - low) / 2 / (2**16 if kind.endswith("16") else 2**8)
        outside = float(np.mean((wanted < low - half) | (wanted > high + half)))
        return {
            "type": kind,
            "low": float(f"{low:.4g}"),
            "high": float(f"{high:.4g}"),
            "clipped": float(f"{outside:.3g}"),
        }


def _rounded_name(name: str, made: set[str]) -> str:
    return f"{name}/dequantized" if f"{name}/dequantized" in made else name


def _encodings(model: onnx.ModelProto) -> dict[str, tuple[str, float, float]]:
    """Type, lowest and highest value of each tensor that is rounded where it is made."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[str, tuple[str, float, float]] = {}
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
        if scale.size == 1:
            limits, kind = np.iinfo(zero.dtype), f"{'U' if zero.dtype.kind == 'u' else 'S'}{8 * zero.dtype.itemsize}"
            low, high = ((limit - int(zero)) * float(scale) for limit in (limits.min, limits.max))
            found.setdefault(node.input[0].removesuffix("/float"), (kind, low, high))
    return found


def _with_outputs(model: onnx.ModelProto, beside: Path | None, names: Sequence[str]) -> onnxruntime.InferenceSession:
    """A session of *model* that gives *names* too; weights outside lie beside the file *beside*."""
    own = [value.name for value in model.graph.output]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in own)
    options = session_options(onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC)
    # It runs once: weights packed for many runs would take their size again, and an arena keeps up to twice what it holds.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    if beside is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(beside.parent))
    content = model.SerializeToString()
    del model.graph.output[len(own) :]
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _chunks(names: Sequence[str], sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """*names* in rows of at most `MOST` bytes of float32, in both models."""
    row: list[str] = []
    for name in names:
        if row and 8 * sum(sizes[one] for one in [*row, name]) > MOST:
            yield row
            row = []
        row.append(name)
    if row:
        yield row
