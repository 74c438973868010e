"""What a bundle says of itself in words: model card, licence notes, requirements."""

from typing import Any

import jinja2
import yaml

from axbake.bundles.layouts import LAYOUTS
from axbake.root import shipped

TEMPLATES = shipped("resources/bundle")
REQUIREMENTS = """\
# Python 3.9 or newer
numpy>=1.22
pillow>=9.1
tokenizers>=0.13.3
"""
# Of serve.py alone: HTTP, addresses, and forms with files. Starlette and uvicorn (BSD) and python-multipart (Apache) are pure
# Python, and the first versions without the known denials of service run on Python 3.9.
SERVER_REQUIREMENTS = """\
# serve.py
starlette>=0.47.2
uvicorn>=0.30
python-multipart>=0.0.18
"""
# Emulated models are ONNX graphs of opset 18 with com.microsoft's quantisers of 16 bits.
HOST_REQUIREMENTS = "onnxruntime>=1.18  # the models are emulated: hosts run them, boards cannot\n"
# 8-bit blocks of weights (`MatMulNBits`), and the newer form of a tokenizer's merges.
LANGUAGE_REQUIREMENTS = """\
tokenizers>=0.20
onnxruntime>=1.22  # the text encoder runs on the board's host
"""
# The same tokenizers; and of emulated layers inputs in bfloat16.
LAYERS_REQUIREMENTS = "tokenizers>=0.20\n"
LAYERS_ON_HOST = "onnxruntime>=1.22\n"
CARD_REQUIREMENTS = """\
# pyaxengine is not on PyPI: install the wheel of github.com/AXERA-TECH/pyaxengine/releases (0.1.3 or newer), and the
# driver of the card, which is the vendor's.
"""


def _render(template: str, **values: Any) -> str:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string((TEMPLATES / template).read_text(encoding="utf-8")).render(**values).rstrip() + "\n"


def model_card(manifest: dict[str, Any]) -> str:
    """README.md of a bundle, with the metadata that Hugging Face's hub reads.

    Args:
        manifest: its `files` are not read.
    """
    kind = ["emulated"] if manifest["emulated"] else ["ax650n", "ax8850"]
    metadata = {
        "license": "other",
        "license_name": "see-license-md",
        "license_link": "LICENSE.md",
        "pipeline_tag": "text-to-image",
        "inference": False,
        "tags": ["stable-diffusion", "axmodel", "axera", "npu", *kind],
    }
    layout = LAYOUTS[manifest["layout"]]
    call = layout.call.format(**manifest["settings"])
    text = yaml.safe_dump(metadata, sort_keys=False)
    return _render("README.md.j2", metadata=text, program=layout.program, call=call, **manifest)


def licence_notes(manifest: dict[str, Any], embeddings: list[str]) -> str:
    """LICENSE.md of a bundle.

    Args:
        manifest: its `files` are not read.
        embeddings: names of the model's textual-inversion embeddings.
    """
    return _render("LICENSE.md.j2", embeddings=embeddings, **manifest)


def requirements(*, emulated: bool, on_host: bool = False, on_card: bool = False) -> str:
    """requirements.txt of the layout axbake.

    Args:
        on_host: whether the board's host runs a text encoder.
        on_card: whether the card runs one that is a language model.
    """
    told = REQUIREMENTS + (LANGUAGE_REQUIREMENTS if on_host else LAYERS_REQUIREMENTS if on_card else "")
    told += LAYERS_ON_HOST if on_card and emulated and not on_host else ""
    return told + SERVER_REQUIREMENTS + (HOST_REQUIREMENTS if emulated else CARD_REQUIREMENTS)
