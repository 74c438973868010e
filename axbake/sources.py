"""Which file each component of a row comes from: the user's own, a fetched one, or one that a job makes of it."""

import hashlib
from collections.abc import Callable, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from axbake.checkpoints.containers import FOLDER_FORMS, Container, files_of, form_of, needs_conversion
from axbake.checkpoints.conversion import open_unconverted
from axbake.checkpoints.prediction import read_sidecar
from axbake.checkpoints.recipes import read_recipe
from axbake.checkpoints.refusals import UnknownFamily
from axbake.digest import file_sha256, remembered
from axbake.errors import AxbakeError
from axbake.families.others import AUTOENCODERS, recognise
from axbake.fetch.sources import check_pin, parse_source
from axbake.jobs.known import code_of
from axbake.networks.component import DECODER, ENCODER, Component
from axbake.printable import shown
from axbake.runtime.language import LanguageFormat
from axbake.table import canvas_sha256, checkpoint_sha256, embeddings_sha256, vae_sha256
from axbake.users_files import is_file

TOKENIZER = "tokenizer.json"  # as Hugging Face's tokenizers write it
CHECKPOINT, VAE = "checkpoint", "vae"  # columns of the table that name a file with networks in it
COLUMNS = (CHECKPOINT, VAE)


class MissingTokenizer(AxbakeError):
    """A language model's tokenizer is not where the table says."""


class Sources:
    """What a row's networks are taken from. Everything is looked up once, when it is first asked for.

    Methods raise errors that say what the user can do: the file is not there, or is not the table's.
    """

    def __init__(self, row: dict, *, allow_unpinned: bool) -> None:
        self.row = row
        self.allow_unpinned = allow_unpinned
        self._digests: dict[str, str] = {}
        self._converted: dict[str, bool] = {}

    def column_of(self, component: Component) -> str:
        """Column that names the file in which *component* is; mostly the checkpoint, but a VAE may have one of its own."""
        return VAE if self.row[VAE] and component.role in (ENCODER, DECODER) else CHECKPOINT

    @cached_property
    def remote(self):
        """Where the checkpoint is fetched from; None if the user brings the file."""
        return parse_source(self.row[CHECKPOINT])

    def is_remote(self, column: str) -> bool:
        """Whether what is in *column* is to be fetched."""
        return column == CHECKPOINT and self.remote is not None

    def digest(self, column: str = CHECKPOINT) -> str:
        """SHA-256 of what the user brought; of what is fetched, what the table wants: digest, beginning, or nothing."""
        if column not in self._digests:
            if self.is_remote(column):
                self._digests[column] = check_pin(self.row, allow_unpinned=self.allow_unpinned)
            else:
                known: dict[str, Callable[[dict], str]] = {CHECKPOINT: checkpoint_sha256, VAE: vae_sha256}
                digest = known[column](self.row)
                if column == VAE:
                    check_vae(Path(self.row[VAE]))
                self._digests[column] = digest
        return self._digests[column]

    def is_converted(self, column: str) -> bool:
        """Whether a job makes a safetensors file of what is in *column*, which is there and is what the table means."""
        if column not in self._converted:
            self.digest(column)
            remote = self.remote if self.is_remote(column) else None
            self._converted[column] = bool(remote.pickled) if remote else needs_conversion(Path(self.row[column]))
        return self._converted[column]

    def arrived(self, column: str) -> str:
        """Where what is in *column* lies as it came: fetched, or as the user brought it."""
        return f"results/{self.row['model']}/fetched/checkpoint" if self.is_remote(column) else self.row[column]

    def file(self, column: str) -> str:
        """The safetensors file of *column*: the user's, the fetched one, or else one made of it."""
        return (
            f"results/{self.row['model']}/{column}.safetensors" if self.is_converted(column) else self.arrived(column)
        )

    def brought(self, column: str) -> list[str]:
        """Files of what is in *column*, as the user has them, or as they are fetched."""
        self.digest(column)
        if self.is_remote(column):
            return [self.arrived(column)]
        return [str(path) for path in files_of(Path(self.row[column]))]

    @property
    def fetch_records(self) -> list[str]:
        """Where the checkpoint is from, in a list; an empty one if the user brings it."""
        return [f"results/{self.row['model']}/fetched/source.json"] if self.is_remote(CHECKPOINT) else []

    def brought_digest(self, column: str) -> str | None:
        """SHA-256 of what the user brought; None where its content, made by a job, counts itself."""
        return None if self.is_remote(column) else self.digest(column)

    def file_digest(self, column: str) -> str | None:
        """SHA-256 of the safetensors file of *column*, if the user brought it; None where a job made it."""
        return None if self.is_converted(column) else self.brought_digest(column)

    @cached_property
    def sidecar(self) -> str:
        """What the YAML beside a checkpoint says of its UNet's prediction."""
        return "" if self.is_remote(CHECKPOINT) else read_sidecar(Path(self.row[CHECKPOINT]))

    @cached_property
    def embeddings_digest(self) -> str:
        """SHA-256 of the row's embeddings, which are there."""
        return " ".join(embeddings_sha256(self.row))

    @cached_property
    def canvas_digest(self) -> str:
        """SHA-256 of the picture and the mask that the model draws on, which are there; empty if it draws on nothing."""
        return " ".join(canvas_sha256(self.row))

    def tokenizers(self, formats: Mapping[str, LanguageFormat]) -> list[str]:
        """Paths of the tokenizers of language models, which are there; in the order of the models' names.

        Args:
            formats: how each is given prompts, by text encoder.

        Raises:
            MissingTokenizer
        """
        return [self._tokenizer(name, form) for name, form in sorted(formats.items())]

    def _tokenizer(self, name: str, form: LanguageFormat) -> str:
        """Where the tokenizer of the text encoder *name* is: in the column, or else in the checkpoint's folder."""
        said = self.row["tokenizer"]
        place = Path(said or self.row[CHECKPOINT])
        places = (
            [place, place / form.folder / TOKENIZER, place / TOKENIZER] if said else [place / form.folder / TOKENIZER]
        )
        found = next((str(path) for path in places if is_file(path)), None)
        if found is None:
            looked = f"looked for {', '.join(shown(path, 200) for path in places)}"
            if not said and is_file(place):
                looked = f"the checkpoint {shown(place, 200)} is a file, which has none"
            raise MissingTokenizer(
                f"{self.row['model']}: no {TOKENIZER} of the {name}: {looked}. Name it, or the folder that has it, in the column"
                f" tokenizer: it is in {form.folder} on the model's page on Hugging Face."
            )
        return found

    def tokenizers_digest(self, formats: Mapping[str, LanguageFormat]) -> str:
        """Their SHA-256."""
        return " ".join(file_sha256(Path(path)) for path in self.tokenizers(formats))

    @property
    def embedding_names(self) -> list[str]:
        """What prompts call the embeddings: their files' names without the ending."""
        return [Path(path).stem for path in self.row["embeddings"]]


def check_vae(path: Path) -> None:
    """Refuse a file whose autoencoder is of another model than Stable Diffusion, though its shapes may be the same (SDXL's).

    Raises:
        UnknownFamily, and the errors of who opens it.
    """
    if kind := read_header(path, "vae", _other_kind, "axbake.sources._other_kind"):
        raise UnknownFamily(f"{path}: this is {kind}, wanted a VAE or a checkpoint of Stable Diffusion.")


def _other_kind(container: Container) -> str:
    """What a file is that is neither an autoencoder nor a checkpoint that has one; empty if it may be one."""
    other = recognise(container.shapes)
    return "" if other is None or other in AUTOENCODERS else other.kind


def read_header(path: Path, what: str, look: Callable[[Container], Any], *code: str) -> Any:
    """What *look* says of the names and shapes in a checkpoint; remembered while the file and the *code* are the same.

    Of a recipe, what it says of the first checkpoint: all that are merged are of one architecture.

    Args:
        what: it says, a plain value and not None; part of a file's name.
        code: dotted names of all that decides it.
    """

    def read() -> Any:
        return look(open_unconverted(path))

    form = form_of(path)
    if form == "recipe":
        return read_header(next(iter(read_recipe(path).checkpoints.values())), what, look, *code)
    if form in FOLDER_FORMS:  # whose own time says nothing of its files
        return read()
    return remembered(path, f"{what}-{_digest(code)}", read)


@cache
def _digest(code: tuple[str, ...]) -> str:
    return hashlib.sha256(repr(sorted(code_of(*code).items())).encode()).hexdigest()[:16]
