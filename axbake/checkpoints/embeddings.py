"""Files of textual-inversion embeddings: `.safetensors`, or pickles (`.pt`, `.bin`), by their content and not by their name."""

import contextlib
import math
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from axbake.checkpoints.containers import (
    Container,
    Stored,
    UnreadableCheckpoint,
    all_finite,
    form_of,
    open_safetensors,
)
from axbake.checkpoints.forms import PICKLE, SAFETENSORS
from axbake.checkpoints.pickles import UnsafeCheckpoint, convert_pickle
from axbake.digest import remembered
from axbake.errors import AxbakeError
from axbake.jobs.known import code_of
from axbake.runtime.prompt import CHUNK
from axbake.runtime.tokenizer import VOCABULARY

BUNDLE = re.compile(r"bundle_emb\.(?P<name>[^.]+)\.(?P<inside>.+)")  # in LoRAs, as AUTOMATIC1111 reads them
MOST_VALUES = 10_000_000  # of one embedding; 75 vectors of SDXL's text encoder have 96,000
LARGEST = 65504  # that fp16 holds, in which token tables are stored
FLOATS = ("F32", "F16", "BF16", "F64")
# What an embedding was made for, by the width of its vectors
ENCODERS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 1280: "Stable Diffusion XL"}
XL = ("clip_l", "clip_g")  # what files for Stable Diffusion XL call the vectors of its text encoders
WANTED = "wanted a textual-inversion embedding: string_to_param, emb_params, or one tensor of (vectors, width)."


class EmbeddingError(AxbakeError):
    """A file is not a textual-inversion embedding that fits the model's text encoder."""


def read_embedding(path: Path, *, encoder: str = "") -> Any:
    """The vectors of a textual-inversion embedding, torch's (N, W); of a LoRA that bundles several, one after the other.

    Forms: AUTOMATIC1111's (`string_to_param` in pickles, `emb_params` in safetensors, `bundle_emb.NAME.` in LoRAs) and
    diffusers' (one tensor under the embedding's own name); for Stable Diffusion XL `clip_l` and `clip_g` in one file.

    Args:
        encoder: clip_l or clip_g, of a model with both; empty: of one with a single text encoder.

    Raises:
        EmbeddingError: another form, a file that asks for code to be run, or numbers that no token table can hold.
    """
    import torch  # here, since a model without embeddings does without

    vectors = list(read_embeddings(path, encoder=encoder).values())
    if len({part.shape[1] for part in vectors}) > 1:
        raise EmbeddingError(
            f"{path}: its embeddings have vectors of different widths. They do not belong to one text encoder."
        )
    return torch.cat(vectors)


def read_embeddings(path: Path, *, encoder: str = "") -> dict[str, Any]:
    """Vectors of each embedding in *path*, torch's (N, W), by its own name; an empty one: it is called as its file is."""
    with _embeddings(path, encoder) as (container, found):
        return {name: _vectors(path, container, tensor) for name, tensor in found.items()}


def embedding_sizes(path: Path, *, encoder: str = "") -> dict[str, list[int]]:
    """Number of vectors, and of numbers in one, of each embedding in *path* by its own name; remembered with the file.

    Raises:
        EmbeddingError: as `read_embedding`, but for the numbers' values.
    """

    def read() -> dict[str, list[int]]:
        with _embeddings(path, encoder) as (container, found):
            return {name: list(_checked(path, container, tensor)) for name, tensor in found.items()}

    return remembered(path, f"embedding-{encoder}-{code_of(f'{__name__}.embedding_sizes')[__name__]}", read)


def check_vectors(path: Path, count: int, found: int, *, rows: int, width: int) -> None:
    """Raise EmbeddingError unless a text encoder of *rows* tokens of *width* numbers takes *count* vectors of *found* numbers."""
    if rows != VOCABULARY:
        raise EmbeddingError(
            f"{path}: the text encoder has {rows} tokens, wanted CLIP's {VOCABULARY} to add embeddings to."
        )
    if found != width:
        made_for = f", for {ENCODERS[found]}" if found in ENCODERS else ""
        raise EmbeddingError(f"{path}: vectors of {found} numbers{made_for}; the model's text encoder takes {width}.")
    if count > CHUNK:
        raise EmbeddingError(f"{path}: {count} vectors; a prompt's chunk holds {CHUNK}.")


@contextlib.contextmanager
def _embeddings(path: Path, encoder: str) -> Iterator[tuple[Container, dict[str, str]]]:
    """The tensors of *path*, and which of them each embedding is."""
    with contextlib.ExitStack() as stack:
        try:
            container = _opened(path, stack)
            yield container, _sorted(path, container, encoder)
        except UnsafeCheckpoint as error:
            raise EmbeddingError(
                f"{path}: asks for {error.asked}, which axbake did not run. Wanted an embedding; get it as "
                ".safetensors."
            ) from None
        except UnreadableCheckpoint as error:
            raise EmbeddingError(f"{error} Wanted a textual-inversion embedding.") from None


def _opened(path: Path, stack: contextlib.ExitStack) -> Container:
    """The tensors of *path*, whatever form it has."""
    form = form_of(path)
    if form == SAFETENSORS:
        return open_safetensors(path)
    if form != PICKLE:
        raise EmbeddingError(f"{path}: a {form}; {WANTED}")
    made = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "embedding.safetensors"
    convert_pickle(path, made)
    return open_safetensors(made)


def _sorted(path: Path, container: Container, encoder: str) -> dict[str, str]:
    """Own name of each embedding in a file -> its tensor; `_read` says what an empty one is."""
    names = list(container.tensors)
    bundled = {name: match for name in names if (match := BUNDLE.fullmatch(name))}
    inside = [match["inside"].rpartition(".")[2] for match in bundled.values()]
    there = {*names, *inside}.intersection(XL)
    if there and not encoder:
        raise EmbeddingError(
            f"{path}: an embedding for Stable Diffusion XL ({', '.join(names[:5])}); wanted one for the model."
        )
    if encoder and there != {*XL}:
        raise EmbeddingError(
            f"{path}: holds {', '.join(names[:5]) or 'no tensors by name'}; wanted {' and '.join(XL)}, the vectors for both text"
            " encoders of the model. Give an embedding that was made for it."
        )
    if encoder:
        names = [name for name in names if name.rpartition(".")[2] == encoder]
        bundled = {name: match for name, match in bundled.items() if name in names}
    if bundled:
        found = {match["name"]: name for name, match in bundled.items()}
        if len(found) < len(bundled):
            raise EmbeddingError(f"{path}: bundles {', '.join(list(bundled)[:5])}; {WANTED}")
        return found
    if len(names) != 1:
        raise EmbeddingError(f"{path}: holds {', '.join(names[:5]) or 'no tensors by name'}; {WANTED}")
    return {"": names[0]}


def _checked(path: Path, container: Container, name: str) -> tuple[int, int]:
    """Vectors, and numbers in one, of the tensor *name*, which has shape and type of an embedding."""
    stored: Stored = container.tensors[name]
    if len(stored.shape) not in (1, 2) or not 0 < math.prod(stored.shape) <= MOST_VALUES:
        raise EmbeddingError(f"{path}: holds {name}; {WANTED} Its shape is {list(stored.shape)}.")
    if stored.dtype not in FLOATS:
        raise EmbeddingError(f"{path}: {name} is of type {stored.dtype}, wanted one of {', '.join(FLOATS)}.")
    return (1, stored.shape[0]) if len(stored.shape) == 1 else (stored.shape[0], stored.shape[1])


def _vectors(path: Path, container: Container, name: str) -> Any:
    """The tensor *name* as vectors (N, W), after checking that a token table can hold them."""
    size = _checked(path, container, name)
    vectors = container.read(name)
    if not all_finite(vectors) or float(vectors.abs().max()) > LARGEST:
        raise EmbeddingError(
            f"{path}: {name} holds values that are not finite, or beyond {LARGEST}, which fp16 cannot hold. The file is damaged."
        )
    return vectors.reshape(size)
