"""Every family, and what people do with SDXL, baked at tiny sizes from checkpoint to bundle: how near each draws to diffusers.

`python -m tests.workflow.families [NAME …]` prints a table, in some minutes for each name; `make test` bakes a few of them.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file

from tests import (
    tiny,
    tiny_anima,
    tiny_flux1,
    tiny_flux2,
    tiny_lumina,
    tiny_qwen_image,
    tiny_sd3,
    tiny_xl,
    tiny_z_image,
)
from tests.workflow.project import ROW, Project

FLOW = {"width": "128", "scheduler": "euler", "negative_prompt": ""}
LANGUAGE = FLOW | {"tokenizer": "checkpoints"}
LEAST = 60  # dB of the last latent, drawn with the exported graphs, against diffusers' own pipeline


@dataclass(frozen=True)
class Bake:
    """A checkpoint and its row."""

    module: ModuleType  # of tests, that saves it
    make: Callable[[], Any]
    cells: Mapping[str, str] = field(default_factory=dict)
    extra: Callable[[Any, Path], object] | None = None  # (networks, folder of checkpoints): writes what the row names


def lora(networks: Any, folder: Path) -> None:
    """A LoRA of the UNet and of both text encoders, as sd-scripts writes it."""
    places = {
        "lora_unet_down_blocks_2_attentions_0_transformer_blocks_0_attn2_to_k": (
            networks.unet.down_blocks[2].attentions[0].transformer_blocks[0].attn2.to_k
        ),
        "lora_te2_text_model_encoder_layers_0_mlp_fc1": networks.text_encoder_2.text_model.encoder.layers[0].mlp.fc1,
    }
    tensors, generator = {}, torch.Generator().manual_seed(5)
    for name, module in places.items():
        rows, columns = module.weight.shape
        tensors[f"{name}.lora_down.weight"] = 0.1 * torch.randn((4, columns), generator=generator)
        tensors[f"{name}.lora_up.weight"] = 0.1 * torch.randn((rows, 4), generator=generator)
        tensors[f"{name}.alpha"] = torch.tensor(4.0)
    save_file(tensors, folder / "style.safetensors")


def word(networks: Any, folder: Path) -> None:
    """An embedding for both text encoders."""
    generator = torch.Generator().manual_seed(6)
    vectors = {"clip_l": torch.randn((2, 32), generator=generator), "clip_g": torch.randn((2, 64), generator=generator)}
    save_file(vectors, folder / "word.safetensors")


XL = {"width": "96"}
BAKES = {
    "sd1": Bake(tiny, tiny.small_sd1),
    "sdxl": Bake(tiny_xl, tiny_xl.sdxl, XL),
    "sdxl, LoRA": Bake(tiny_xl, tiny_xl.sdxl, XL | {"loras": "checkpoints/style.safetensors:0.8"}, lora),
    "sdxl, embedding": Bake(
        tiny_xl,
        tiny_xl.sdxl,
        XL | {"embeddings": "checkpoints/word.safetensors", "prompt": "a word in the night"},
        word,
    ),
    "sdxl, v": Bake(
        tiny_xl,
        lambda: tiny_xl.sdxl(prediction_type="v_prediction"),
        XL | {"prediction": "v_prediction", "guidance_scale": "4"},
    ),
    "sdxl, turbo": Bake(
        tiny_xl, tiny_xl.sdxl, XL | {"scheduler": "euler_a_trailing", "steps": "4", "guidance_scale": "1"}
    ),
    "ssd1b": Bake(tiny_xl, tiny_xl.ssd1b, XL),
    "vega": Bake(tiny_xl, tiny_xl.vega, XL),
    "koala": Bake(tiny_xl, tiny_xl.koala, XL),
    "koala_700m": Bake(tiny_xl, tiny_xl.koala_700m, XL),
    "sd3": Bake(tiny_sd3, tiny_sd3.sd3, FLOW),
    "sd35_medium": Bake(tiny_sd3, tiny_sd3.sd35_medium, FLOW | {"scheduler": "unipc"}),
    "sd35_large": Bake(tiny_sd3, tiny_sd3.sd35_large, FLOW | {"scheduler": "dpmpp_2m"}),
    "sd3_t5": Bake(tiny_sd3, tiny_sd3.sd3_t5, LANGUAGE | {"guidance_scale": "5", "prompt": "a (red:1.2) rocket"}),
    "sd35_medium_t5": Bake(tiny_sd3, tiny_sd3.sd35_medium_t5, LANGUAGE),
    "sd35_large_t5": Bake(tiny_sd3, tiny_sd3.sd35_large_t5, LANGUAGE),
    "flux1, dev": Bake(tiny_flux1, tiny_flux1.dev, LANGUAGE | {"guidance_scale": "3.5"}),
    "flux1, schnell": Bake(tiny_flux1, tiny_flux1.schnell, LANGUAGE | {"guidance_scale": "1"}),
    "flux2_klein": Bake(tiny_flux2, tiny_flux2.klein, LANGUAGE),
    "flux2_klein_9b": Bake(tiny_flux2, tiny_flux2.klein_9b, LANGUAGE),
    "flux2_dev": Bake(tiny_flux2, tiny_flux2.dev, LANGUAGE | {"guidance_scale": "4"}),
    "qwen_image": Bake(tiny_qwen_image, tiny_qwen_image.whole, LANGUAGE | {"guidance_scale": "4"}),
    "z_image": Bake(tiny_z_image, tiny_z_image.turbo, LANGUAGE | {"guidance_scale": "3"}),
    "lumina2": Bake(tiny_lumina, tiny_lumina.lumina, LANGUAGE | {"guidance_scale": "4", "negative_prompt": "blurry"}),
    "anima": Bake(tiny_anima, tiny_anima.preview, LANGUAGE | {"guidance_scale": "4"}),
}


def laid_out(bake: Bake, directory: Path) -> Project:
    """A project in *directory* with the one row of *bake*, called `tiny`, and all that it names."""
    networks = bake.make()
    checkpoint = bake.module.save(networks, directory / "saved" / "tiny.safetensors")
    project = Project.lay_out(directory / "project", directory / "cache", checkpoint)
    folder = project.directory / "checkpoints"
    for path in checkpoint.parent.iterdir():
        if path != checkpoint:
            path.rename(folder / path.name)  # tokenizers
    if bake.extra:
        bake.extra(networks, folder)
    project.write_rows(ROW | bake.cells)
    return project


def same_picture(project: Project, directory: Path) -> bool:
    """Whether the bundle, run as on a board, draws the simulation's picture byte for byte."""
    results = project.directory / "results" / "tiny"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    program = results / "bundle" / "axbake" / "txt2img.py"
    done = subprocess.run([sys.executable, program], cwd=directory, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (directory / "image.png").read_bytes() == (results / "simulation" / "image.png").read_bytes()


def line(name: str, directory: Path) -> tuple[str, bool]:
    """Bake *name*; its line of the table, and whether it is as it should be."""
    project = laid_out(BAKES[name], directory)
    done = project.snakemake("results/tiny/report.html", "results/tiny/bundle/axbake/manifest.json")
    if done.returncode:
        print(done.stdout[-6000:], file=sys.stderr)
        return f"| {name} | failed | | | |", False
    results = project.directory / "results" / "tiny"

    def said(path: str) -> Any:
        return json.loads((results / path).read_text())

    graphs = sum(part["graphs"] for part in said("report.json")["components"].values())
    exported = said("simulation/attribution.json")["quantised"]["none"]["latent_psnr_db"]
    compiled = said("simulation/distance.json")["latent_psnr_db"]
    same = same_picture(project, directory)
    cells = [name, graphs, f"{exported:.1f} dB", f"{compiled:.1f} dB", "same bytes" if same else "another picture"]
    return f"| {' | '.join(map(str, cells))} |", exported > LEAST and same


def main() -> None:
    names = sys.argv[1:] or list(BAKES)
    if unknown := sorted(set(names) - set(BAKES)):
        sys.exit(f"{', '.join(unknown)}: not known; wanted some of {'; '.join(BAKES)}.")
    print("| model | graphs | latent, float graphs | latent, emulated compiles | bundle |\n|---|---:|---:|---:|---|")
    wrong = []
    for name in names:
        with tempfile.TemporaryDirectory() as place:
            text, right = line(name, Path(place))
        print(text, flush=True)
        wrong += [] if right else [name]
    if wrong:
        sys.exit(f"{', '.join(wrong)}: not as near to diffusers as {LEAST} dB, or the bundle draws another picture.")


if __name__ == "__main__":
    main()
