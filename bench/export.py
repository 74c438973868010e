"""Export a UNet of full size the obvious way and ours, and tell time and peak memory of both.

    python bench/export.py DIRECTORY [--repeats 3] [--height 480] [--width 320]

DIRECTORY keeps a random checkpoint of Stable Diffusion 1.5's size (made where it is not yet; 20 GB of disk). Each way runs
in a process of its own, alternately. The obvious way is that of published scripts (`export_onnx.py` of
yuyun2000/sd15-to-ax8850-deploy and those it comes from): load the whole pipeline in float32, `torch.onnx.export` through
TorchScript, `onnx.load`, `onnxsim.simplify`, `onnx.save` with external data. It takes 12 GB of memory. Two things in it are not
theirs: the pipeline comes from a folder, since no hub is asked; and the exporter is asked for by `dynamo=False`, since it is no
longer torch's own choice.
"""

import argparse
import shutil
from pathlib import Path

from measure import diffusers_folder, export_unet, full_size, median, run

WAYS = ("obvious", "axbake")


def obvious(directory: Path, height: int, width: int) -> None:
    """What published scripts do, as far as the UNet goes."""
    import onnx
    import onnxsim
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        directory / "diffusers", dtype=torch.float32, local_files_only=True
    )
    unet = pipeline.unet.eval()

    class Wrapper(torch.nn.Module):
        def __init__(self, unet):
            super().__init__()
            self.unet = unet

        def forward(self, sample, t, encoder_hidden_states):
            return self.unet(sample, t, encoder_hidden_states, return_dict=False)[0]

    place = _empty(directory / "obvious")
    inputs = {
        "sample": torch.rand(1, 4, height // 8, width // 8),
        "t": torch.tensor([1]),
        "encoder_hidden_states": torch.rand(1, 77, 768),
    }
    torch.onnx.export(
        Wrapper(unet),
        tuple(inputs.values()),
        str(place / "unet.onnx"),  # a Path is taken for a buffer, which cannot be above 2 GB
        opset_version=17,
        do_constant_folding=True,
        input_names=list(inputs),
        dynamo=False,
    )
    simplified, same = onnxsim.simplify(onnx.load(place / "unet.onnx"))
    assert same, "onnxsim's result differs from the model"
    onnx.save(simplified, place / "unet_sim.onnx", save_as_external_data=True)


def axbake(directory: Path, height: int, width: int) -> None:
    """What the job `export_onnx` does."""
    graph = _empty(directory / "axbake") / "unet.onnx"
    export_unet(directory / "unet.safetensors", graph, height=height, width=width)


def _empty(place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    return place


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("directory", type=Path)
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--height", type=int, default=480)
    arguments.add_argument("--width", type=int, default=320)
    arguments.add_argument("--way", choices=WAYS, help="run this one here, without measuring")
    options = arguments.parse_args()
    if options.way:
        globals()[options.way](options.directory, options.height, options.width)
        return
    full_size(options.directory)
    diffusers_folder(options.directory)
    size = ["--height", options.height, "--width", options.width]
    rounds = [
        {way: run("export.py", options.directory, *size, "--way", way) for way in WAYS} for _ in range(options.repeats)
    ]
    costs = {way: median([costs[way] for costs in rounds]) for way in WAYS}
    print(f"\nMedians of {options.repeats}, UNet at {options.height} × {options.width}:\n")
    print("| export | wall time | peak memory |\n|---|---:|---:|")
    for way, cost in costs.items():
        print(f"| {way} | {cost.seconds:.1f} s | {cost.gib:.2f} GiB |")
    first, ours = costs.values()
    print(f"| obvious : axbake | {first.seconds / ours.seconds:.1f} | {first.gib / ours.gib:.1f} |")


if __name__ == "__main__":
    main()
