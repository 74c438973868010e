"""Time and memory of a LoRA and of a merge at full size, each in a process of its own.

    python bench/changes.py DIRECTORY

A random checkpoint of Stable Diffusion 1.5's size is made in DIRECTORY if it is not there. The LoRA changes every matrix and
convolution of the UNet with rank 64, as LCM-LoRAs do; the merge is a weighted sum of the checkpoint with itself, with a share
for one block. Needs 7 GB.
"""

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

from measure import import_part

RANK = 64


def write_lora(place: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from axbake.networks import unet
    from axbake.networks.architecture import CONFIGS
    from axbake.weights.networks import wanted_shapes

    config = json.loads((CONFIGS / "unet" / "config.json").read_text())
    tensors = {}
    for name, shape in wanted_shapes(unet.build, config).items():
        if len(shape) < 2:
            continue
        key = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
        down = torch.randn((RANK, *shape[1:]), dtype=torch.float16) / math.sqrt(math.prod(shape[1:]))
        up = torch.randn((shape[0], RANK, *[1] * (len(shape) - 2)), dtype=torch.float16) * 0.01
        tensors |= {
            f"{key}.lora_down.weight": down,
            f"{key}.lora_up.weight": up,
            f"{key}.alpha": torch.tensor(RANK / 2),
        }
    save_file(tensors, place / "lora.safetensors")


def plain(place: Path) -> None:
    import_part(place / "random-sd15.safetensors", component="unet", weights=place / "plain.safetensors")


def with_lora(place: Path) -> None:
    import_part(
        place / "random-sd15.safetensors",
        [place / "lora.safetensors"],
        component="unet",
        weights=place / "fused.safetensors",
        strengths=[0.8],
    )


def merge(place: Path) -> None:
    import yaml

    from axbake.checkpoints.merging import merge_checkpoints
    from axbake.families import FAMILIES
    from axbake.networks.component import as_files

    path = place / "random-sd15.safetensors"
    with path.open("rb") as file:
        entry = {"path": str(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    step = {"method": "weighted_sum", "a": "a", "b": "b", "alpha": 0.3, "blocks": {"M00": 0.5}}
    recipe = place / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"checkpoints": {"a": entry, "b": entry}, "steps": [step]}))
    family = FAMILIES["sd1"]
    components = [as_files(component) for component in family.components]
    merge_checkpoints(recipe, checkpoint=place / "merged.safetensors", components=components, latents=family.latents)


STEPS = {step.__name__: step for step in (plain, with_lora, merge)}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("directory", type=Path)
    arguments.add_argument("--step", choices=STEPS, help="do this one here, without measuring")
    options = arguments.parse_args()
    place = options.directory
    if options.step:
        return STEPS[options.step](place)
    checkpoint = place / "random-sd15.safetensors"
    if not checkpoint.is_file():
        subprocess.run([sys.executable, Path(__file__).with_name("random_checkpoint.py"), checkpoint], check=True)
    write_lora(place)
    print(f"LoRA: {(place / 'lora.safetensors').stat().st_size / 1e6:.0f} MB")
    for step in STEPS:
        started = time.monotonic()
        process = subprocess.Popen([sys.executable, __file__, place, "--step", step])
        _, status, usage = os.wait4(process.pid, 0)
        seconds, processor, gib = time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20
        made = f"{seconds:.1f} s, {processor:.1f} s of processors, {gib:.2f} GiB"
        print(f"{step:10} {made if not status else 'failed'}", flush=True)


if __name__ == "__main__":
    main()
