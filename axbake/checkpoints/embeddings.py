"""Files of textual-inversion embeddings.

They come as `.safetensors`, or as `.pt` and `.bin`, which are read as data alone: nothing in them is run.
"""

import pickle
import re
from pathlib import Path
from typing import Any

from axbake.errors import AxbakeError

VOCABULARY = 49408  # CLIP's: rows of a token table before those of embeddings
# What torch raises on files that are no pickle, end early, or ask for more than tensors.
DAMAGE = (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, OSError)


class EmbeddingError(AxbakeError):
    """A file is no textual-inversion embedding that the model's text encoder can take."""


def read_embedding(path: Path) -> Any:
    """The vectors of a textual-inversion embedding, torch's (N, W).

    Forms: AUTOMATIC1111's (`string_to_param` in `.pt`, `emb_params` in `.safetensors`) and diffusers' (one tensor under the
    embedding's own name).

    Raises:
        EmbeddingError: another form, or a file that asks for code to be run.
    """
    import torch  # here, since a model without embeddings does without

    content = _read_file(path)
    if isinstance(content, dict) and "string_to_param" in content:
        content = content["string_to_param"]
    items = list(content.items()) if isinstance(content, dict | torch.nn.ParameterDict) else []
    names = [str(name) for name, _ in items]
    if {"clip_g", "clip_l"} & set(names):
        raise EmbeddingError(
            f"{path}: an embedding for Stable Diffusion XL ({', '.join(names)}); wanted one for the model's."
        )
    if len(items) != 1 or not isinstance(items[0][1], torch.Tensor) or items[0][1].ndim not in (1, 2):
        raise EmbeddingError(
            f"{path}: holds {', '.join(names[:5]) or 'no tensors by name'}; wanted a textual-inversion embedding:"
            " string_to_param, emb_params, or one tensor of (vectors, width)."
        )
    vectors = items[0][1].detach()
    return vectors if vectors.ndim == 2 else vectors[None]


def _read_file(path: Path) -> Any:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # The original textual inversion saves torch's own ParameterDict, which holds tensors and nothing else.
        with torch.serialization.safe_globals([torch.nn.ParameterDict]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, *DAMAGE) as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        why = f"asks for {asked[1]}, which was not run" if asked else f"cannot be read ({type(error).__name__})"
        raise EmbeddingError(f"{path}: {why}. Wanted a textual-inversion embedding; get it as .safetensors.") from error
