"""How good a denoiser is when calibrated with few samples or many, chosen in this way or that.

    python bench/calibration.py DIRECTORY               the demo model, 64 × 64
    python bench/calibration.py DIRECTORY --flow        the second demo model: a rectified flow, its transformer in three graphs
    python bench/calibration.py DIRECTORY --full-size   random weights of Stable Diffusion 1.5's size, 256 × 256

Bakes what it needs into DIRECTORY as a user's project: the denoiser's graphs, the trajectories of calibration prompts, and the
ranges of every activation on every sample of them. Each variant is then quantised by the emulator with the ranges of its own
samples, so nothing is observed twice; activations U16, weights S8.

Measured on held-out prompts against the float graphs, both in ONNX Runtime: SQNR of the denoiser's output for the inputs that the
float graphs get while they draw (signal and error summed over all of them), and PSNR of the last latent after all steps from the
same noise (mean of the prompts' decibels). The last two rows of the first table say what no calibration can better: «held-out
too» adds the held-out prompts' own ranges, so nothing is clipped; «float activations» rounds the weights alone. Of a denoiser in
several graphs there is a second table: one graph quantised, with the ranges of 32 samples by coverage, and the others float.

A demo takes some minutes on 2 cores; the full size half an hour, with four calibration prompts of seven, one held-out prompt of
two, SQNR on every fourth step, and one random choice of five.
"""

import argparse
import logging
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere

import numpy as np
from measure import denoiser_configs

from axbake.calibration.coverage import choose, shares
from axbake.calibration.denoiser_samples import EMPTY, TakenInputs, load_samples
from axbake.calibration.modules import OUTPUT, read_module_ranges
from axbake.calibration.observation import Observed, chain_inputs, observe_chain
from axbake.calibration.tars import required_samples, stratified
from axbake.distance import psnr
from axbake.drawing.parts import added_of
from axbake.drawing.prompts import load_tokenizer, prompt_embedding
from axbake.emulator.build import quantise_model
from axbake.emulator.config import build_config
from axbake.emulator.graph import Graph, load_graph
from axbake.emulator.precision import Precision, resolve_precision
from axbake.emulator.ranges import Ranges, float_activations
from axbake.families import FAMILIES
from axbake.families.family import Family
from axbake.networks.component import addresses
from axbake.runtime.noise import TorchNoise
from axbake.runtime.prompt import encoder
from axbake.runtime.sampler import Denoiser, Time, denoiser, initial_latent, load_schedule, sample
from axbake.runtime.session import open_model, open_models
from axbake.runtime.txt2img import added_rows

ROOT = Path(__file__).parents[1]
SEED = 7
PROMPTS = [
    "rocket",
    "penguin",
    "smiling face with sunglasses",
    "tractor",
    "red apple",
    "christmas tree",
    "house",
]
HELD_OUT = ["panda face", "slice of pizza"]
CELLS = {
    "height": "64",
    "width": "64",
    "prompt": HELD_OUT[0],
    "calibration_prompts": "config/prompts/bench.txt",
}


@dataclass(frozen=True)
class Measured:
    """A model that is measured, and how thoroughly."""

    family: Family
    row: Mapping[str, str]
    prompts: Sequence[str]
    held_out: Sequence[str]
    every: int  # so many steps: one that counts for the SQNR
    draws: int  # of random samples

    @property
    def name(self) -> str:
        return self.row["model"]

    @property
    def guidance_scale(self) -> float:
        return float(self.row["guidance_scale"])


def _demo(family: str, name: str, checkpoint: str, **cells: str) -> Measured:
    row = {"model": name, "checkpoint": str(ROOT / "resources" / name / checkpoint), **CELLS, **cells}
    return Measured(FAMILIES[family], row, PROMPTS, HELD_OUT, every=1, draws=5)


DEMO = _demo("sd1", "demo", "emoji-sd.safetensors", guidance_scale="7")
FLOW = _demo("sd3", "demo_flow", "emoji-sd3.safetensors", guidance_scale="5", scheduler="euler", steps="28")
RANDOM = {"model": "random-sd15", "checkpoint": "checkpoints/random-sd15.safetensors", "height": "256", "width": "256"}
FULL_SIZE = Measured(FAMILIES["sd1"], {**DEMO.row, **RANDOM}, PROMPTS[:4], HELD_OUT[:1], every=4, draws=1)

Choices = list[list[int]]  # rows of the ranges, of each of several draws


def bake(directory: Path, measured: Measured) -> Path:
    """The directory of the model's results, baked as far as the bench needs them."""
    row = measured.row
    shutil.copytree(ROOT / "config", directory / "config", dirs_exist_ok=True)
    (directory / row["calibration_prompts"]).write_text("\n".join(measured.prompts) + "\n")
    (directory / "config" / "models.tsv").write_text("\t".join(row) + "\n" + "\t".join(row.values()) + "\n")
    if measured is FULL_SIZE and not (directory / row["checkpoint"]).is_file():
        command = [sys.executable, ROOT / "bench" / "random_checkpoint.py", directory / row["checkpoint"]]
        subprocess.run(command, check=True)
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", directory]
    family, results = measured.family, Path("results", measured.name)
    graphs = [*addresses(family.denoiser), *(name for one in family.text_encoders for name in addresses(one))]
    files = [f"onnx/{graph}.onnx" for graph in graphs]
    files += ["embeddings.json", f"calibration/{family.denoiser.name}.ranges.npz"]
    subprocess.run([*command, "--cores", "all", "--jobs", "1", *(results / name for name in files)], check=True)
    return directory / results


def graphs_of(results: Path, measured: Measured) -> list[Path]:
    """The denoiser's float graphs, in their order."""
    return [results / "onnx" / f"{graph}.onnx" for graph in addresses(measured.family.denoiser)]


class HeldOut:
    """Drawings of held-out prompts by the float graphs, and what the denoiser was given and gave in them."""

    def __init__(self, results: Path, measured: Measured, taken: TakenInputs):
        family = measured.family
        self.guidance_scale = measured.guidance_scale
        self.schedule = load_schedule(results / "schedule.npz")
        encoders = [
            open_model(results / "onnx" / f"{name}.onnx") for one in family.text_encoders for name in addresses(one)
        ]
        tokenizer = load_tokenizer(results / "embeddings.json")
        embed = prompt_embedding(
            [encoder(one) for one in encoders], tokenizer, chunks=1, conditioning=family.conditioning
        )
        self.prompts, self.negative = [embed(prompt) for prompt in measured.held_out], embed("", negative=True)
        weights = [results / "weights" / f"{family.denoiser.name}.safetensors"] if family.denoiser.added else []
        self.added = added_of(family.denoiser.added, weights)
        graphs = open_models(graphs_of(results, measured))
        self.shape, _ = graphs.inputs["sample"]
        self.inputs: list[dict[str, np.ndarray]] = []
        given: list[tuple[np.ndarray, Time, np.ndarray]] = []
        seen: list[np.ndarray] = []
        run = denoiser(graphs)

        def watched(latent: np.ndarray, time: Time, texts: np.ndarray) -> np.ndarray:
            outputs = run(latent, time, texts)
            rows = [time._replace(row=row) for row in time.rows(len(texts))]
            for text, row, output in zip(texts, rows, outputs, strict=True):
                self.inputs.append(taken.feed(latent, text[None], row))
                given.append((latent, row, text[None]))
                seen.append(output[None])
            return outputs

        self.latents = self.draw(watched)
        # The two branches of a step follow one another.
        self.compared = [(given[i], seen[i]) for i in range(len(seen)) if i // 2 % measured.every == 0]

    def draw(self, denoise: Denoiser) -> list[np.ndarray]:
        """The last latent of each prompt."""
        return [
            sample(
                denoise,
                self.schedule,
                noise := TorchNoise(SEED + number),
                initial_latent(self.schedule, noise, self.shape),
                prompt_embeds=prompt.tokens,
                negative_embeds=self.negative.tokens,
                guidance_scale=self.guidance_scale,
                added=added_rows(self.added, [prompt, self.negative], ()),
            ).latent
            for number, prompt in enumerate(self.prompts)
        ]

    def measure(self, models: Sequence[Path]) -> tuple[float, float]:
        """SQNR of the output and PSNR of the last latent, in dB, of a denoiser of quantised graphs."""
        network = denoiser(open_models(models))
        signal = error = 0.0
        for inputs, wanted in self.compared:
            found = network(*inputs)
            signal += float(np.square(wanted, dtype=np.float64).sum())
            error += float(np.square(wanted.astype(np.float64) - found).sum())
        drawn = [psnr(wanted, found) for wanted, found in zip(self.latents, self.draw(network), strict=True)]
        return 10 * np.log10(signal / error), float(np.mean(drawn))


class Quantising:
    """The emulator's second half: a denoiser's graphs of given ranges."""

    def __init__(self, results: Path, measured: Measured, work: Path):
        self.work, self.paths = work, graphs_of(results, measured)
        self.graphs = [load_graph(path) for path in self.paths]
        places = [{"input": str(path), "output_dir": str(work), "work_dir": str(work)} for path in self.paths]
        configs = denoiser_configs(measured.family)
        self.configs = [build_config(config | place) for config, place in zip(configs, places, strict=True)]

    def quantise(self, ranges: Ranges, *, activations: bool = True) -> list[Path]:
        """The quantised graphs; without *activations* only their weights are rounded."""
        models = []
        for path, graph, config in zip(self.paths, self.graphs, self.configs, strict=True):
            # Which Pulsar2's config cannot say: convolutions of float activations.
            weights_only = tuple(Precision("FP32", "FP32", "S8") for _ in graph.nodes)
            precision = resolve_precision(graph, config.layers) if activations else weights_only
            models.append(self.work / f"{path.stem}.axmodel")
            quantise_model(config, graph, self._own(ranges, path, graph), precision, models[-1])
        return models

    def _own(self, ranges: Ranges, path: Path, graph: Graph) -> dict[str, tuple[float, float]]:
        """Ranges of the tensors of one graph, which in the table of several have its name before theirs."""
        overall = ranges.overall()
        return {name: overall[name if name in overall else f"{path.stem}/{name}"] for name in float_activations(graph)}


def observe_all(results: Path, measured: Measured) -> Observed:
    """Ranges of all that was recorded, of which a bake observes what it has chosen."""
    graphs, what = graphs_of(results, measured), "observing all:"
    taken = TakenInputs.of(chain_inputs(graphs))
    recorded = load_samples(results / "calibration" / "trajectories.npz", results / "schedule.npz", taken)
    there = recorded.recorded(measured.guidance_scale)
    ranges = observe_chain(graphs, lambda: recorded.all_inputs(there), len(there), beside=results, what=what)
    return Observed(there, ranges, taken, frozenset(spec.name for spec in load_graph(graphs[-1]).outputs))


def variants(results: Path, measured: Measured, observed: Observed) -> dict[str, Choices]:
    """Rows of the observed ranges by the name of the choice."""
    archive = results / "calibration" / "trajectories.npz"
    recorded = load_samples(archive, results / "schedule.npz", observed.taken)
    drawn = [which for which in observed.samples if which[2] != EMPTY]
    prompts, steps, branches = (sorted({which[axis] for which in drawn}) for axis in range(3))
    spread = stratified(32, prompts=len(prompts), branches=[len(branches)] * len(steps))
    required = [list(group.values()) for group in required_samples(recorded, observed.samples)]
    greedy = choose(shares(observed.ranges, observed.outputs), 32, required)
    by_modules = choose(shares(read_module_ranges(archive), {OUTPUT}), 32, required)[:32]
    unweighted = choose(shares(observed.ranges, frozenset()), 32, required)[:32]
    permuted = [np.random.RandomState(number).permutation(len(drawn)) for number in range(measured.draws)]
    return {
        "first 4, as published": [list(range(4))],
        "random 32": [list(rows[:32]) for rows in permuted],
        "stratified 32": [[observed.samples.index((p, steps[number], branch)) for p, number, branch in spread]],
        **{f"coverage {count}": [greedy[:count]] for count in (4, 8, 16, 32)},
        "coverage 32, by the ranges of modules, as in a bake": [by_modules],
        "coverage 32, the output with the weight of one tensor": [unweighted],
        f"all {len(observed.samples)}": [list(range(len(observed.samples)))],
    }


def row_of(name: str, found: Sequence[tuple[float, float]]) -> str:
    """A line of the Markdown table; of several draws the mean, and their span."""
    cells = [f"{np.mean(values):.1f}" for values in zip(*found, strict=True)]
    if len(found) > 1:
        name += f", mean of {len(found)} draws"
        spans = [f" ({min(values):.1f} to {max(values):.1f})" for values in zip(*found, strict=True)]
        cells = [cell + span for cell, span in zip(cells, spans, strict=True)]
    return f"| {name} | {cells[0]} | {cells[1]} |"


def heading(what: str, network: str) -> str:
    """The first two lines of a table."""
    return f"| {what} | SQNR of the {network}'s output, dB | PSNR of the last latent, dB |\n|---|---:|---:|"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("directory", type=Path)
    which = arguments.add_mutually_exclusive_group()
    which.add_argument("--flow", dest="measured", action="store_const", const=FLOW, default=DEMO)
    which.add_argument("--full-size", dest="measured", action="store_const", const=FULL_SIZE)
    options = arguments.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("axbake.runtime.sampler").setLevel(logging.WARNING)
    directory, measured = options.directory.resolve(), options.measured
    results, network = bake(directory, measured), measured.family.denoiser.name
    observed = observe_all(results, measured)
    held_out = HeldOut(results, measured, observed.taken)
    quantising = Quantising(results, measured, directory)
    ranges = observed.ranges
    print(heading("calibration", network), flush=True)
    choices = variants(results, measured, observed)
    for name, draws in choices.items():
        chosen = [Ranges(ranges.names, ranges.low[rows], ranges.high[rows]) for rows in draws]
        print(row_of(name, [held_out.measure(quantising.quantise(one)) for one in chosen]), flush=True)
    count, what = len(held_out.inputs), "observing held-out prompts:"
    own = observe_chain(quantising.paths, lambda: iter(held_out.inputs), count, beside=directory, what=what)
    both = Ranges(ranges.names, np.concatenate([ranges.low, own.low]), np.concatenate([ranges.high, own.high]))
    print(row_of("held-out too", [held_out.measure(quantising.quantise(both))]), flush=True)
    print(row_of("float activations", [held_out.measure(quantising.quantise(both, activations=False))]), flush=True)
    if len(quantising.paths) > 1:
        (rows,) = choices["coverage 32"]
        models = quantising.quantise(Ranges(ranges.names, ranges.low[rows], ranges.high[rows]))
        print(f"\n{heading('quantised graph', network)}", flush=True)
        for number, model in enumerate(models):
            mixed = [*quantising.paths[:number], model, *quantising.paths[number + 1 :]]
            print(row_of(model.stem, [held_out.measure(mixed)]), flush=True)
        print(row_of("all", [held_out.measure(models)]), flush=True)


if __name__ == "__main__":
    main()
