"""A bundle that looks compiled: no model in it was, and its program draws nothing."""

import hashlib
import json
import random
from pathlib import Path

from axbake.networks.component import DECODER, DENOISER, ENCODER, TEXT
from axbake.runtime.bundle import FORMAT

# The first bytes of Pulsar2's models: ModelProto's fields 1, IR version 10, and 2, the producer's name.
PULSAR2 = b"\x08\x0a\x12\x07Pulsar2"
EMULATOR = b"\x08\x0a\x12\x0faxbake-emulator"
ROLES = {"text_encoder": TEXT, "unet": DENOISER, "vae_encoder": ENCODER, "vae_decoder": DECODER}
BYTES = {"text_encoder": 100_000, "unet": 400_000, "vae_encoder": 50_000, "vae_decoder": 100_000}  # of all files
SIZE = (64, 48)  # height and width of the picture, in pixels

# Speaks for txt2img.py of a real bundle where tests are of what is around it: same options, same files; figures are made up.
PROGRAM = """
import argparse, json, pathlib
from PIL import Image
parser = argparse.ArgumentParser()
for name, kind in {"steps": int, "count": int, "device": int, "runtime": str, "output": str, "timings": str}.items():
    parser.add_argument(f"--{name}", type=kind, required=True)
given = parser.parse_args()
manifest = json.loads(pathlib.Path("manifest.json").read_text())
settings, pictures = manifest["settings"], []
for seed in range(settings["seed"], settings["seed"] + given.count):
    path = pathlib.Path(given.output)
    path = path.with_name(f"{path.stem}-{seed}.png") if given.count > 1 else path
    Image.new("RGB", (settings["width"], settings["height"]), (seed % 256, given.steps, 0)).save(path)
    runs = {"text_encoder": [0.01, 0.02], "unet": [0.25] * (2 * given.steps), "vae_decoder": [0.75]}
    pictures.append({"seed": seed, "file": path.name, "text_embedding_seconds": 0.03, "step_seconds": [0.5] * given.steps,
                     "decode_seconds": 0.75, "total_seconds": 0.78 + 0.5 * given.steps, "runs": runs})
pathlib.Path(given.timings).write_text(json.dumps({
    "program": "txt2img", "model": manifest["model"], "emulated": False, "runtime": given.runtime, "provider": "played",
    "device": given.device, "steps": given.steps, "load_seconds": {"text_encoder": 1.0, "unet": 9.0, "vae_decoder": 1.0},
    "host": {"machine": "played", "system": "played", "cores": 4, "python": "3", "packages": {}},
    "pictures": pictures, "total_seconds": 99.0}))
"""


def write_bundle(
    directory: Path,
    *,
    model: str = "tiny",
    content: int = 1,
    head: bytes = PULSAR2,
    graphs: tuple[str, ...] = (),
    **told,
) -> Path:
    """Path of the manifest of a new bundle in *directory*.

    Args:
        content: seed of its models' bytes.
        head: what its models begin with.
        graphs: of its UNet, where it has several.
        told: entries of the manifest other than usual.
    """
    noise = random.Random(content)
    models = {name: [f"{name}.axmodel"] for name in ROLES}
    if graphs:
        models["unet"] = [f"unet/{graph}.axmodel" for graph in graphs]
    files = {
        file: head + noise.randbytes(BYTES[name] // len(its_files))
        for name, its_files in models.items()
        for file in its_files
    }
    files |= {"txt2img.py": PROGRAM.encode(), "requirements.txt": b"numpy\n", "schedule.npz": b"of 20 steps"}
    files |= {"schedules/euler-20.npz": b"of 20 steps", "schedules/euler-10.npz": b"of 10 steps"}
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    settings = {"height": SIZE[0], "width": SIZE[1], "scheduler": "euler", "steps": 20, "guidance_scale": 7, "seed": 7}
    manifest = {
        "format": FORMAT,
        "layout": "axbake",
        "model": model,
        "emulated": False,
        "models": {name: {"role": ROLES[name], "files": its, "emulated": False} for name, its in models.items()},
        "settings": settings | {"prompt": "a cat", "negative_prompt": ""},
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()
        },
    } | told
    path = directory / "manifest.json"
    path.write_text(json.dumps(manifest))
    return path
