"""One block of each transformer at its real width: import, export, parity and an emulated compile.

    python bench/blocks.py DIRECTORY [FAMILY …] [--side 512]

Where a family has two kinds of blocks, one of each. Random weights; the compile is calibrated with two samples of noise. Each
family runs in a process of its own, whose peak memory is the table's; files in DIRECTORY are removed behind each.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emulated_compile import inputs
from measure import run

FLUX2 = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 128, "in_channels": 128}
SD3 = {"num_layers": 2, "caption_projection_dim": 1536, "num_attention_heads": 24, "pos_embed_max_size": 192}
SD3 |= {"attention_head_dim": 64, "joint_attention_dim": 4096, "pooled_projection_dim": 2048, "in_channels": 16}
#: Family -> what its transformer is built with: of full width, and as few blocks as there are kinds
CONFIGS: dict[str, dict[str, Any]] = {
    "sd3": SD3,
    "sd35_medium": SD3 | {"qk_norm": "rms_norm", "dual_attention_layers": [0], "pos_embed_max_size": 384},
    "sd35_large": SD3 | {"caption_projection_dim": 2432, "num_attention_heads": 38, "qk_norm": "rms_norm"},
    "flux1": {"num_layers": 1, "num_single_layers": 1, "guidance_embeds": True},
    "flux2_klein": FLUX2 | {"num_attention_heads": 24, "joint_attention_dim": 7680, "guidance_embeds": False},
    "flux2_klein_9b": FLUX2 | {"num_attention_heads": 32, "joint_attention_dim": 12288, "guidance_embeds": False},
    "flux2_dev": FLUX2 | {"num_attention_heads": 48, "joint_attention_dim": 15360, "guidance_embeds": True},
    "qwen_image": {"num_layers": 1, "axes_dims_rope": [16, 56, 56]},
    "z_image": {"n_layers": 1, "n_refiner_layers": 1},
    "lumina2": {
        "hidden_size": 2304,
        "num_layers": 1,
        "num_refiner_layers": 1,
        "num_attention_heads": 24,
        "num_kv_heads": 8,
        "cap_feat_dim": 2304,
        "axes_dim_rope": [32, 32, 32],
        "axes_lens": [300, 512, 512],
    },
}


def whole_config(family: str) -> dict[str, Any]:
    """With the class's own defaults."""
    import inspect

    import diffusers

    from axbake.families import FAMILIES

    name = {
        "qwen_image": "QwenImageTransformer2DModel",
        "z_image": "ZImageTransformer2DModel",
        "lumina2": "Lumina2Transformer2DModel",
        "flux1": "FluxTransformer2DModel",
    }.get(family, "Flux2Transformer2DModel" if "flux2" in family else "SD3Transformer2DModel")
    assert FAMILIES[family].denoiser.name == "transformer"
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    defaults = {key: one.default for key, one in parameters.items() if key != "self"}
    return {"_class_name": name} | defaults | CONFIGS[family]


def write_weights(family: str, path: Path) -> int:
    """A file of the transformer alone, under diffusers' names; number of its weights."""
    import math

    import torch
    from random_checkpoint import random_tensor
    from safetensors.torch import save_file

    from axbake.families import FAMILIES
    from axbake.weights.networks import wanted_shapes

    shapes = wanted_shapes(FAMILIES[family].denoiser.build, whole_config(family))
    generator = torch.Generator().manual_seed(0)
    save_file({name: random_tensor(name, shape, generator) for name, shape in shapes.items()}, path)
    return sum(map(math.prod, shapes.values()))


def compile_graph(graph: Path, taken: Mapping[str, str]) -> None:
    """Compile *graph* with the emulator, calibrated with noise."""
    import io
    import os
    import tarfile

    import numpy as np

    from axbake.emulator.__main__ import main as build
    from axbake.networks.component import DENOISER
    from axbake.toolchain.build_config import Build, build_config

    config = build_config(Build("transformer", "transformer", DENOISER, taken, "U16", "AX650", "NPU3"), {})
    os.chdir(graph.parent)  # the config names its archive without a folder
    Path("config.json").write_text(json.dumps(config), encoding="utf-8")
    with tarfile.open("transformer.tar", "w") as archive:
        for number, values in enumerate(inputs(graph, 2)):
            packed = io.BytesIO()
            np.save(packed, {name: array.astype(taken[name]) for name, array in values.items()})  # type: ignore[arg-type]
            member = tarfile.TarInfo(f"{number}.npy")
            member.size = packed.tell()
            packed.seek(0)
            archive.addfile(member, packed)
    if build(["build", "--input", graph.name, "--config", "config.json", "--output_dir", "out"]):
        sys.exit("the emulator's build failed")


def measure(family: str, place: Path, side: int) -> dict[str, Any]:
    """Seconds of each step, and what they gave."""
    import torch
    from measure import import_part

    from axbake.families import FAMILIES
    from axbake.graphs.export import export_onnx
    from axbake.graphs.parity import measure_parity
    from axbake.preflight.graph import read_graph
    from axbake.preflight.operators import check_operators

    torch.set_num_threads(2)
    denoiser = FAMILIES[family].denoiser
    structure = FAMILIES[family].structure
    assert structure
    (piece,) = structure.slices(10**12)
    row = {"height": side, "width": side, "prompt_chunks": 1}
    columns = {name: row[name] for name in denoiser.columns}
    said: dict[str, Any] = {"weights": write_weights(family, place / "random.safetensors")}
    weights, graph = place / "transformer.safetensors", place / "transformer.onnx"
    tensors = place / "transformer.onnx.data"

    def timed(step: str, work: Any) -> None:
        started = time.monotonic()
        work()
        said[step] = time.monotonic() - started

    timed(
        "import",
        lambda: import_part(place / "random.safetensors", component="transformer", weights=weights, family=family),
    )
    of = {"build": denoiser.build, "columns": columns}
    timed("export", lambda: export_onnx(weights, **of, piece=piece, graph=graph, tensors=tensors))
    parity = place / "parity.json"
    compared = {"component": "transformer", "pieces": (piece,), "example": denoiser.example, "parity": parity}
    timed("parity", lambda: measure_parity(weights, [graph], [tensors], **of, **compared))
    said["psnr_db"] = json.loads(parity.read_text())["psnr_db"]
    said["not listed"] = sum(one.level == "error" for one in check_operators("transformer", read_graph(graph)))
    timed("compile", lambda: compile_graph(graph, piece.inputs(**columns)))
    return said


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("directory", type=Path)
    arguments.add_argument("families", nargs="*")
    arguments.add_argument("--side", type=int, default=512, help="pixels of the picture")
    arguments.add_argument("--alone", action="store_true", help="measure the one family here, and print what it took")
    options = arguments.parse_args()
    if options.alone:
        print(json.dumps(measure(options.families[0], options.directory.resolve(), options.side)))
        return
    print(
        "| family | weights | import | export | parity | against torch | operators off the list | compile | peak memory |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for family in options.families or CONFIGS:
        place = options.directory / family
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        cost = run("blocks.py", place, family, "--side", options.side, "--alone")
        said = json.loads(cost.said.splitlines()[-1])
        seconds = [f"{said[step]:.0f} s" for step in ("import", "export", "parity")]
        cells = [family, f"{said['weights'] / 1e6:.0f} M", *seconds, f"{said['psnr_db']:.0f} dB", said["not listed"]]
        cells += [f"{said['compile']:.0f} s", f"{cost.gib:.1f} GiB"]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
