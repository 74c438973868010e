"""Compile a UNet of full size with the emulator, beside the runs of ONNX Runtime that no calibration can avoid.

    python bench/emulated_compile.py DIRECTORY [--repeats 3] [--samples 32] [--height 480] [--width 320]

DIRECTORY keeps a random checkpoint of Stable Diffusion 1.5's size (made where it is not yet) and its graph. «forwards» opens the
graph in ONNX Runtime as it comes and runs it on every sample; «emulator» is the whole build. Each runs in a process of its own,
alternately. What the build's time is made of is read off the times of its log's lines.
"""

import argparse
import io
import itertools
import json
import logging
import os
import statistics
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

from measure import denoiser_configs, export_unet, full_size, median, run

WAYS = ("forwards", "emulator")


def lay_out(directory: Path, height: int, width: int, samples: int) -> Path:
    """A directory with the graph, Pulsar2's config and *samples* of random inputs, as the emulator takes them."""
    import numpy as np

    from axbake.families import FAMILIES

    place = directory / f"compile-{height}x{width}"
    place.mkdir(exist_ok=True)
    graph = place / "unet.onnx"
    if not graph.is_file():
        export_unet(full_size(directory)["unet"], graph, height=height, width=width)
    (config,) = denoiser_configs(FAMILIES["sd1"])
    (place / "config.json").write_text(json.dumps(config))
    with tarfile.open(place / "unet.tar", "w") as archive:
        for number, values in enumerate(inputs(graph, samples)):
            packed = io.BytesIO()
            np.save(packed, values)
            member = tarfile.TarInfo(f"{number}.npy")
            member.size = packed.tell()
            packed.seek(0)
            archive.addfile(member, packed)
    return place


def inputs(graph: Path, samples: int) -> Iterator[dict]:
    """Normal values for each input of *graph*."""
    import numpy as np
    import onnx

    specs = {
        value.name: [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in onnx.load(graph, load_external_data=False).graph.input
    }
    generator = np.random.default_rng(0)
    for _ in range(samples):
        yield {name: generator.standard_normal(shape).astype(np.float32) for name, shape in specs.items()}


def forwards(place: Path, samples: int) -> dict[str, float]:
    """Seconds of opening the graph, and of all runs."""
    import onnxruntime

    started = time.monotonic()
    session = onnxruntime.InferenceSession(place / "unet.onnx", providers=["CPUExecutionProvider"])
    opened = time.monotonic()
    for values in inputs(place / "unet.onnx", samples):
        session.run(None, values)
    return {"opening the session": opened - started, "runs": time.monotonic() - opened}


def emulator(place: Path, samples: int) -> dict[str, float]:
    """Seconds of each part of a build."""
    from axbake.emulator.__main__ import main as build

    lines: list[tuple[float, str]] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append((record.created, record.getMessage()))  # type: ignore[method-assign]
    logging.getLogger("axbake.emulator").addHandler(handler)
    os.chdir(place)  # the config names its archive without a folder
    if build(["build", "--input", "unet.onnx", "--config", "config.json", "--output_dir", "out"]):
        sys.exit("the emulator's build failed")

    def at(mark: str) -> list[float]:
        return [when for when, text in lines if mark in text]

    (begun,), (ready,), done = at("Building onnx"), at("Quantization calibration will be"), at("Calibration Progress")
    (ended,) = at("Network Quantization Finished")
    a_run = statistics.median(after - before for before, after in itertools.pairwise(done))
    return {
        "reading the graph": ready - begun,
        "opening the session": done[0] - ready - a_run,
        "runs, each tensor's range with them": done[-1] - done[0] + a_run,
        "quantising and writing": ended - done[-1],
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("directory", type=Path)
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--samples", type=int, default=32)
    arguments.add_argument("--height", type=int, default=480)
    arguments.add_argument("--width", type=int, default=320)
    arguments.add_argument("--way", choices=WAYS, help="run this one in DIRECTORY, and print what it took")
    options = arguments.parse_args()
    if options.way:
        print(json.dumps(globals()[options.way](options.directory, options.samples)))
        return
    place = lay_out(options.directory, options.height, options.width, options.samples)
    size = ["--samples", options.samples]
    rounds = [
        {way: run("emulated_compile.py", place, *size, "--way", way) for way in WAYS} for _ in range(options.repeats)
    ]
    print(f"Medians of {options.repeats}, UNet at {options.height} × {options.width}, {options.samples} samples:\n")
    print("| | wall time | peak memory |\n|---|---:|---:|")
    for way in WAYS:
        costs = [costs[way] for costs in rounds]
        whole, parts = median(costs), [json.loads(cost.said.splitlines()[-1]) for cost in costs]
        print(f"| {way} | {whole.seconds:.1f} s | {whole.gib:.2f} GiB |")
        for part in parts[0]:
            print(f"| — {part} | {statistics.median(seconds[part] for seconds in parts):.1f} s | |")


if __name__ == "__main__":
    main()
