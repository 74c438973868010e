"""Layouts of bundles: where each on-board program looks for its files, and what it assumes.

Published programs have their sampler written in, so a model only fits if its row says the same. They are
AXERA-TECH/sd1.5-lcm.axera (`python/launcher.py`), yuyun2000/sd15-to-ax8850-deploy with Hugging Face's
M5Stack/SD1.5-LLM8850, and Mojo24x7/SD1.5_AXM1-AX8850_Euler (`scripts/txt2img_axengine_euler.py`), all on GitHub.
"""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from axbake.errors import AxbakeError
from axbake.graphs.programs import PROGRAMS
from axbake.networks.component import DECODER, DENOISER, ENCODER, TEXT
from axbake.networks.sampling import Sampling
from axbake.runtime.sampler import Schedule

LCM_TIMESTEPS = (999, 759, 499, 259)  # in launcher.py; its image to image begins with the third
TEXT_ENCODER = "sd15_text_encoder_sim.axmodel"
ONE_RUN = {"prompt_chunks": 1, "vae_tile": 0}  # of what takes a prompt, and of what makes pixels
HARD_CODED = {**ONE_RUN, "prediction_type": "epsilon", "zero_terminal_snr": False, "scaling_factor": 0.18215}


class LayoutError(AxbakeError):
    """A model does not meet the requirements of a layout's program."""


@dataclass(frozen=True)
class Layout:
    """One layout.

    Attributes:
        program: that loads it, for people.
        models: role -> file, of programs that know one network of each; empty: any components, under their own names.
        tokenizer: folder of CLIP's tokenizer.
        demands: setting -> the value that it must have.
        extras: (schedule, settings) -> further files by name.
        call: command that draws, in the program's own checkout or, of axbake's own, in the bundle.
    """

    program: str
    models: dict[str, str]
    tokenizer: str
    call: str
    demands: dict[str, Any] = field(default_factory=dict)
    extras: Callable[[Schedule, dict[str, Any]], dict[str, bytes]] = lambda schedule, settings: {}

    def check(
        self, name: str, settings: dict[str, Any], components: Mapping[str, str], *, drawn_on: bool = False
    ) -> None:
        """Raise LayoutError, with every demand that *settings* miss.

        Args:
            components: address of each graph -> its component's role.
            drawn_on: whether the denoiser draws on a picture.
        """
        missed = [
            f"{setting}: {settings[setting]!r}, wanted {wanted!r}"
            for setting, wanted in self.demands.items()
            if settings[setting] != wanted
        ]
        missed += ["a UNet that draws on a picture, wanted one for text to image"] * (drawn_on and bool(self.models))
        several = [role for role in self.models if list(components.values()).count(role) != 1]
        missed += [
            f"{', '.join(graph for graph, its in components.items() if its == role)}: wanted one graph"
            for role in several
        ]
        if missed:
            raise LayoutError(
                f"{settings['model']}: cannot make the layout {name}; {'; '.join(missed)}. {self.program} requires "
                "these. Add a row with them for this model, or use the layout axbake, which has no requirements."
            )


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def _axera_extras(schedule: Schedule, settings: dict[str, Any]) -> dict[str, bytes]:
    found = tuple(schedule.timesteps.tolist())
    if found != LCM_TIMESTEPS:
        raise LayoutError(f"{settings['model']}: timesteps {found}; wanted {LCM_TIMESTEPS}, which launcher.py runs.")
    rows = schedule.time_embedding
    late = np.zeros_like(rows)  # launcher.py reads two rows of it; published files have four
    late[:2] = rows[2:]
    return {
        "models/time_input_txt2img.npy": _npy(rows),
        "models/time_input_img2img.npy": _npy(late),
        "config.json": _axllm_config(settings),
    }


def _axllm_config(settings: dict[str, Any]) -> bytes:
    """What `axllm serve` of AXERA-TECH/ax-llm reads of a folder of image models (its docs/sd15_axllm_implementation.md)."""
    size = f"{settings['width']}x{settings['height']}"
    variant = {
        "id": f"{settings['model']}-{size}",
        "dir": "models",
        "size": size,
        "chip": "ax650",
        "supports_img2img": True,
    }
    return (json.dumps({"model_name": settings["model"], "image_variants": [variant]}, indent=2) + "\n").encode()


def _m5stack_extras(schedule: Schedule, settings: dict[str, Any]) -> dict[str, bytes]:
    return {f"models/time_input_dpmpp_{settings['steps']}steps.npy": _npy(schedule.time_embedding)}


def _euler_extras(schedule: Schedule, settings: dict[str, Any]) -> dict[str, bytes]:
    from axbake.drawing.schedule import build_scheduler  # it imports torch, which a reader of this table does without

    sampling = Sampling(settings["prediction_type"], settings["zero_terminal_snr"])
    scheduler = build_scheduler(settings["scheduler"], sampling)
    kept = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    configs: dict[str, dict[str, Any]] = {
        "scheduler/scheduler_config.json": {"_class_name": type(scheduler).__name__, **kept},
        "vae/config.json": {"_class_name": "AutoencoderKL", "scaling_factor": settings["scaling_factor"]},
    }
    return {
        f"support/{name}": (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
        for name, content in configs.items()
    }


LAYOUTS = {
    "axbake": Layout(
        program="axbake's own txt2img.py, img2img.py and serve.py",
        models={},
        tokenizer="tokenizer",
        call="python3 txt2img.py",
    ),
    "axera": Layout(
        program=PROGRAMS["axera"],
        models={
            TEXT: f"models/text_encoder/{TEXT_ENCODER}",
            DENOISER: "models/unet.axmodel",
            ENCODER: "models/vae_encoder.axmodel",
            DECODER: "models/vae_decoder.axmodel",
        },
        tokenizer="models/tokenizer",
        demands={"program": "axera", "scheduler": "lcm", "steps": 4, "guidance_scale": 1, **HARD_CODED},
        extras=_axera_extras,
        call="python3 python/launcher.py --model_dir BUNDLE/models --isize {height}x{width}",
    ),
    "m5stack": Layout(
        program=PROGRAMS["m5stack"],
        models={
            TEXT: f"models/text_encoder/{TEXT_ENCODER}",
            DENOISER: "models/unet.axmodel",
            DECODER: "models/vae_decoder.axmodel",
        },
        tokenizer="models/tokenizer",
        demands={
            **{"program": "m5stack", "scheduler": "dpmpp_2m_karras", "steps": 20, "height": 480, "width": 320},
            **HARD_CODED,
        },
        extras=_m5stack_extras,
        call="python3 dpm20_infer.py  # beside models/",
    ),
    "euler": Layout(
        program=PROGRAMS["euler"],
        models={
            TEXT: f"axmodels/{TEXT_ENCODER}",
            DENOISER: "axmodels/unet.axmodel",
            ENCODER: "axmodels/vae_encoder.axmodel",
            DECODER: "axmodels/vae_decoder.axmodel",
        },
        tokenizer="support/tokenizer",
        demands={"program": "euler", "scheduler": "euler", **ONE_RUN},
        extras=_euler_extras,
        call="python3 scripts/txt2img_axengine_euler.py --weights_dir BUNDLE/axmodels --tokenizer_dir BUNDLE/support/tokenizer"
        " --scheduler_dir BUNDLE/support/scheduler --vae_config BUNDLE/support/vae/config.json --height {height}"
        " --width {width} --steps {steps} --guidance {guidance_scale:g} --out image.png --prompt …",
    ),
}
