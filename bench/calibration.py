"""How good a UNet is when calibrated with few samples or many, chosen in this way or that.

    python bench/calibration.py DIRECTORY               the demo model, 64 × 64
    python bench/calibration.py DIRECTORY --full-size   random weights of Stable Diffusion 1.5's size, 256 × 256

Bakes what it needs into DIRECTORY as a user's project: the UNet's graph, the trajectories of calibration prompts, and the ranges
of every activation on every sample of them. Each variant is then quantised by the emulator with the ranges of its own samples,
so nothing is observed twice; activations U16, weights S8.

Measured on held-out prompts against the float graph, both in ONNX Runtime: SQNR of the UNet's output for the inputs that the
float graph gets while it draws (signal and error summed over all of them), and PSNR of the last latent after 20 steps from the
same noise (mean of the prompts' decibels). The last two rows say what no calibration can better: «held-out too» adds the
held-out prompts' own ranges, so nothing is clipped; «float activations» rounds the weights alone.

The demo takes some minutes on 2 cores; the full size half an hour, with four calibration prompts of seven, one held-out prompt of
two, SQNR on every fourth step, and one random choice of five.
"""

import argparse
import logging
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere

import numpy as np
from measure import unet_config

from axbake.calibration.coverage import choose, shares
from axbake.calibration.denoiser_samples import EMPTY, load_samples
from axbake.calibration.observation import read_observed
from axbake.calibration.tars import required_samples, stratified
from axbake.distance import psnr
from axbake.drawing.prompts import load_tokenizer, prompt_embedding
from axbake.emulator.build import quantise_model
from axbake.emulator.config import build_config
from axbake.emulator.graph import load_graph
from axbake.emulator.precision import Precision, resolve_precision
from axbake.emulator.ranges import Ranges, record_ranges
from axbake.networks.unet import TIME_INPUT
from axbake.runtime.noise import TorchNoise
from axbake.runtime.progress import progress
from axbake.runtime.prompt import encoder
from axbake.runtime.sampler import Denoiser, Time, denoiser, initial_latent, load_schedule, sample
from axbake.runtime.session import open_model
from axbake.runtime.values import Conditioning

ROOT = Path(__file__).parents[1]
SEED, GUIDANCE = 7, 7.0
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
ROW = {
    "model": "demo",
    "checkpoint": str(ROOT / "resources" / "demo" / "emoji-sd.safetensors"),
    "height": "64",
    "width": "64",
    "guidance_scale": f"{GUIDANCE:g}",
    "prompt": HELD_OUT[0],
    "calibration_prompts": "config/prompts/bench.txt",
}
FULL_SIZE = {
    "model": "random-sd15",
    "checkpoint": "checkpoints/random-sd15.safetensors",
    "height": "256",
    "width": "256",
}
FILES = ["onnx/unet.onnx", "onnx/text_encoder.onnx", "embeddings.json", "calibration/unet.ranges.npz"]

Choices = list[list[int]]  # rows of the ranges, of each of several draws


def bake(directory: Path, full_size: bool) -> Path:
    """The directory of the model's results, baked as far as the bench needs them."""
    row, prompts = (ROW | FULL_SIZE, PROMPTS[:4]) if full_size else (ROW, PROMPTS)
    shutil.copytree(ROOT / "config", directory / "config", dirs_exist_ok=True)
    (directory / row["calibration_prompts"]).write_text("\n".join(prompts) + "\n")
    (directory / "config" / "models.tsv").write_text("\t".join(row) + "\n" + "\t".join(row.values()) + "\n")
    if full_size and not (directory / row["checkpoint"]).is_file():
        command = [sys.executable, ROOT / "bench" / "random_checkpoint.py", directory / row["checkpoint"]]
        subprocess.run(command, check=True)
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", directory]
    results = Path("results", row["model"])
    subprocess.run([*command, "--cores", "all", "--jobs", "1", *(results / name for name in FILES)], check=True)
    return directory / results


class HeldOut:
    """Drawings of held-out prompts by the float graph, and what the UNet was given and gave in them."""

    def __init__(self, results: Path, prompts: list[str], every: int):
        self.schedule = load_schedule(results / "schedule.npz")
        encode = encoder(open_model(results / "onnx" / "text_encoder.onnx"))
        of = {"chunks": 1, "conditioning": Conditioning(("text_encoder",))}
        embed = prompt_embedding([encode], load_tokenizer(results / "embeddings.json"), **of)
        self.texts = [embed(prompt).tokens for prompt in prompts]
        self.negative = embed("").tokens
        unet = open_model(results / "onnx" / "unet.onnx")
        self.shape, _ = unet.inputs["sample"]
        self.inputs: list[dict[str, np.ndarray]] = []
        given: list[tuple[np.ndarray, Time, np.ndarray]] = []
        seen: list[np.ndarray] = []
        run = denoiser(unet)

        def watched(latent: np.ndarray, time: Time, texts: np.ndarray) -> np.ndarray:
            outputs = run(latent, time, texts)
            for text, output in zip(texts, outputs, strict=True):
                self.inputs.append({"sample": latent, TIME_INPUT: time.row, "encoder_hidden_states": text[None]})
                given.append((latent, time, text[None]))
                seen.append(output[None])
            return outputs

        self.latents = self.draw(watched)
        # The two branches of a step follow one another.
        self.compared = [(given[i], seen[i]) for i in range(len(seen)) if i // 2 % every == 0]

    def draw(self, denoise: Denoiser) -> list[np.ndarray]:
        """The last latent of each prompt."""
        return [
            sample(
                denoise,
                self.schedule,
                noise := TorchNoise(SEED + number),
                initial_latent(self.schedule, noise, self.shape),
                prompt_embeds=text,
                negative_embeds=self.negative,
                guidance_scale=GUIDANCE,
            ).latent
            for number, text in enumerate(self.texts)
        ]

    def measure(self, model: Path) -> tuple[float, float]:
        """SQNR of the output and PSNR of the last latent, in dB, of a quantised UNet."""
        unet = denoiser(open_model(model))
        signal = error = 0.0
        for inputs, wanted in self.compared:
            found = unet(*inputs)
            signal += float(np.square(wanted, dtype=np.float64).sum())
            error += float(np.square(wanted.astype(np.float64) - found).sum())
        drawn = [psnr(wanted, found) for wanted, found in zip(self.latents, self.draw(unet), strict=True)]
        return 10 * np.log10(signal / error), float(np.mean(drawn))


class Quantising:
    """The emulator's second half: a UNet of given ranges."""

    def __init__(self, results: Path, work: Path):
        self.graph, self.model = load_graph(results / "onnx" / "unet.onnx"), work / "unet.axmodel"
        places = {"input": str(results / "onnx" / "unet.onnx"), "output_dir": str(work), "work_dir": str(work)}
        self.config = build_config(unet_config() | places)

    def quantise(self, ranges: Ranges, precision: tuple[Precision, ...] | None = None) -> Path:
        precision = precision or resolve_precision(self.graph, self.config.layers)
        quantise_model(self.config, self.graph, ranges.overall(), precision, self.model)
        return self.model


def variants(results: Path, draws: int) -> dict[str, Choices]:
    """Rows of `unet.ranges.npz` by the name of the choice."""
    observed = read_observed(results / "calibration" / "unet.ranges.npz")
    archive = results / "calibration" / "trajectories.npz"
    recorded = load_samples(archive, results / "schedule.npz", observed.taken)
    drawn = [which for which in observed.samples if which[2] != EMPTY]
    prompts, steps, branches = (sorted({which[axis] for which in drawn}) for axis in range(3))
    spread = stratified(32, prompts=len(prompts), steps=len(steps), branches=len(branches))
    required = [list(group.values()) for group in required_samples(recorded, observed.samples)]
    greedy = choose(shares(observed.ranges, observed.outputs), 32, required)
    unweighted = choose(shares(observed.ranges, frozenset()), 32, required)[:32]
    return {
        "first 4, as published": [list(range(4))],
        "random 32": [list(np.random.RandomState(n).permutation(len(drawn))[:32]) for n in range(draws)],
        "stratified 32": [[observed.samples.index((p, steps[number], branch)) for p, number, branch in spread]],
        **{f"coverage {count}": [greedy[:count]] for count in (4, 8, 16, 32)},
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


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("directory", type=Path)
    arguments.add_argument("--full-size", action="store_true")
    options = arguments.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("axbake.runtime.sampler").setLevel(logging.WARNING)
    results = bake(options.directory.resolve(), options.full_size)
    held_out = HeldOut(results, HELD_OUT[: 1 if options.full_size else 2], every=4 if options.full_size else 1)
    quantising = Quantising(results, options.directory.resolve())
    observed = read_observed(results / "calibration" / "unet.ranges.npz").ranges
    print("| calibration | SQNR of the UNet's output, dB | PSNR of the last latent, dB |\n|---|---:|---:|", flush=True)
    for name, choices in variants(results, 1 if options.full_size else 5).items():
        chosen = [Ranges(observed.names, observed.low[rows], observed.high[rows]) for rows in choices]
        print(row_of(name, [held_out.measure(quantising.quantise(ranges)) for ranges in chosen]), flush=True)
    tell = progress("observing held-out prompts:")
    own = record_ranges(quantising.graph, held_out.inputs, on_sample=lambda done: tell(done, len(held_out.inputs)))
    both = Ranges(observed.names, np.concatenate([observed.low, own.low]), np.concatenate([observed.high, own.high]))
    print(row_of("held-out too", [held_out.measure(quantising.quantise(both))]), flush=True)
    # Which Pulsar2's config cannot say: convolutions of float activations.
    weights_only = tuple(Precision("FP32", "FP32", "S8") for _ in quantising.graph.nodes)
    print(row_of("float activations", [held_out.measure(quantising.quantise(both, weights_only))]), flush=True)


if __name__ == "__main__":
    main()
