"""Time and memory of importing, exporting and writing back checkpoints of full size and random weights, each job in its process.

    python bench/checkpoints.py DIRECTORY [sd15 | sd21 | bk-sdm-tiny | sdxs …]

Needs 6 GB in DIRECTORY for one model at a time; its files are deleted before the next. Where stable-diffusion-cpp-python can
be imported, it draws one step of 256 × 256 pixels from the file that was written back, and says what it makes of it.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere

from axbake.families import FAMILIES
from axbake.families.family import Family

# Of a row; pixels are those of the published deployment.
COLUMNS = {"height": 480, "width": 320, "prompt_chunks": 1, "program": "axera"}


def family_of(model: str) -> Family:
    from bench.random_checkpoint import FAMILY_OF

    return FAMILIES[FAMILY_OF.get(model, "sd1")]


def write_checkpoint(place: Path, model: str, _: str) -> None:
    from bench.random_checkpoint import write_random_checkpoint

    write_random_checkpoint(place / "checkpoint.safetensors", model=model)


def import_component(place: Path, model: str, component: str) -> None:
    from bench.measure import import_part

    weights = place / f"{component}.safetensors"
    import_part(place / "checkpoint.safetensors", component=component, weights=weights, family=family_of(model).name)


def export_component(place: Path, model: str, component: str) -> None:
    from axbake.graphs.export import export_onnx

    part = family_of(model).component(component)
    graph = place / f"{component}.onnx"
    tensors = graph.with_name(f"{graph.name}.data")
    columns = {name: COLUMNS[name] for name in part.columns}
    (piece,) = part.graphs
    weights = place / f"{component}.safetensors"
    export_onnx(weights, build=part.build, piece=piece, columns=columns, graph=graph, tensors=tensors)
    tensors.unlink()


def write_back(place: Path, model: str, _: str) -> None:
    from axbake.networks.component import as_files
    from axbake.weights.single_file import write_single_file

    family = family_of(model)
    write_single_file(
        [place / f"{component}.safetensors" for component in family.names],
        components=[as_files(component) for component in family.components],
        title=family.title,
        specification=family.specification,
        single_file=place / "single_file.safetensors",
    )


def draw(place: Path, _: str, __: str) -> None:
    """One step by stable-diffusion.cpp."""
    import numpy as np
    from stable_diffusion_cpp import StableDiffusion

    model = StableDiffusion(model_path=str(place / "single_file.safetensors"), wtype="f16", verbose=True)
    (image,) = model.generate_image(prompt="a rocket", height=256, width=256, sample_steps=1, cfg_scale=1, seed=1)
    pixels = np.asarray(image)
    print(f"drew {pixels.shape}, values {pixels.min()} to {pixels.max()}", file=sys.stderr)


STEPS: dict[str, Callable[[Path, str, str], None]] = {
    step.__name__: step for step in (write_checkpoint, import_component, export_component, write_back, draw)
}


def measure(place: Path, model: str, step: str, component: str = "") -> None:
    """Run a step in a process of its own, and print its line."""
    started = time.monotonic()
    log = place / f"{step}.log"
    with log.open("w") as said:
        command = [sys.executable, __file__, str(place), model, "--step", step, "--component", component]
        process = subprocess.Popen(command, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
    seconds, processor, gib = time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20
    made = f"{seconds:.1f} s, {processor:.1f} s of processors, {gib:.2f} GiB"
    print(
        f"{model:12} {step:18} {component:13} {made if not status else f'failed: {log.read_text()[-600:]}'}", flush=True
    )


def main() -> None:
    from bench.random_checkpoint import MODELS

    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("directory", type=Path)
    arguments.add_argument("models", nargs="*", metavar="MODEL", help=f"{', '.join(MODELS)} (default: all)")
    arguments.add_argument("--step", choices=STEPS, help="do this one of one model in DIRECTORY, without measuring")
    arguments.add_argument("--component", default="", help="that --step is of")
    options = arguments.parse_args()
    if unknown := set(options.models) - set(MODELS):
        arguments.error(f"no such models: {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    if options.step:
        (model,) = options.models
        return STEPS[options.step](options.directory, model, options.component)
    for model in options.models or MODELS:
        place = options.directory / model
        place.mkdir(parents=True)
        measure(place, model, "write_checkpoint")
        components = family_of(model).names
        for component in components:
            measure(place, model, "import_component", component)
        (place / "checkpoint.safetensors").unlink()
        for component in components:
            measure(place, model, "export_component", component)
        measure(place, model, "write_back")
        if importlib.util.find_spec("stable_diffusion_cpp") and (place / "single_file.safetensors").is_file():
            measure(place, model, "draw")
            print((place / "draw.log").read_text())
        shutil.rmtree(place)
    return None


if __name__ == "__main__":
    main()
