"""A bundle on this host: its manifest, checked against its files before any of them is copied."""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from axbake.board.errors import DamagedBundle, EmulatedModel
from axbake.digest import file_sha256
from axbake.networks.component import DECODER, DENOISER, TEXT
from axbake.runtime.bundle import FORMAT
from axbake.runtime.language_card import is_language_model
from axbake.runtime.producer import EMULATOR, producer


@dataclass(frozen=True)
class Bundle:
    """A bundle of the layout `axbake` (docs/bundles.md)."""

    directory: Path
    manifest: dict

    @property
    def model(self) -> str:
        return self.manifest["model"]

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of every file by its path, the manifest's own included."""
        listed = {name: entry["sha256"] for name, entry in self.manifest["files"].items()}
        return listed | {"manifest.json": file_sha256(self.directory / "manifest.json")}

    def bytes_of(self, name: str) -> int:
        return (self.directory / name).stat().st_size

    @property
    def models(self) -> dict[str, str]:
        """File of each model, by its address: a component's name, or of one of its several graphs `{component}/{graph}`."""
        return {address: file for files in self._files.values() for address, file in files.items()}

    @property
    def drawing(self) -> dict[str, list[str]]:
        """Components that text to image has in the card's memory at once -> addresses of their models."""
        roles = {component: entry["role"] for component, entry in self.manifest["models"].items()}
        drawing = (TEXT, DENOISER, DECODER)
        return {name: [*files] for name, files in self._files.items() if roles[name] in drawing}

    @property
    def drawing_bytes(self) -> int:
        """Of their files."""
        return sum(self.bytes_of(self.models[address]) for models in self.drawing.values() for address in models)

    @property
    def _files(self) -> dict[str, dict[str, str]]:
        """Component -> address of each of its models -> file, in the order in which they run.

        Of a language model in layers there is none: it is on the card only while it reads a new prompt, and no tool of the
        board's says what one of its layers takes for one.
        """
        files = {component: entry["files"] for component, entry in self.manifest["models"].items()}
        files = {component: names for component, names in files.items() if not is_language_model([*map(Path, names)])}
        return {
            component: {
                f"{component}/{PurePosixPath(file).stem}" if len(names) > 1 else component: file for file in names
            }
            for component, names in files.items()
        }


def read_bundle(manifest: Path) -> Bundle:
    """The bundle whose `manifest.json` is at *manifest*, each file of it read and found to be the one that is listed.

    Raises:
        DamagedBundle: it is of another format; or files are missing or others than listed, all of them; or a path leaves the
            directory.
    """
    bundle = Bundle(manifest.parent, json.loads(manifest.read_text(encoding="utf-8")))
    if bundle.manifest["format"] != FORMAT:
        raise DamagedBundle(
            f"{manifest}: format {bundle.manifest['format']}, wanted {FORMAT}. Delete it and run again; axbake then "
            "makes the bundle again."
        )
    outside = [name for name in bundle.files if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
    if outside or any("\n" in name or "\\" in name for name in bundle.files):
        raise DamagedBundle(
            f"{manifest}: lists {', '.join(outside) or 'a name with a line break'}; not a file of a bundle."
        )
    wrong = [name for name, sha256 in bundle.files.items() if not _is(bundle.directory / name, sha256)]
    if wrong:
        raise DamagedBundle(
            f"{manifest.parent}: {', '.join(wrong)}: does not match its manifest. Delete {manifest} and run again; "
            "axbake then makes the bundle again."
        )
    return bundle


def _is(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256


def refuse_emulated(bundle: Bundle) -> None:
    """Raise EmulatedModel if the manifest, or what a model's own file says of its maker, calls a model emulated."""
    emulated = [
        component
        for component, entry in bundle.manifest["models"].items()
        if entry["emulated"] or any(_is_emulated(bundle.directory / file) for file in entry["files"])
    ]
    if emulated or bundle.manifest["emulated"]:
        raise EmulatedModel(
            f"{bundle.model}: {', '.join(emulated) or 'the bundle'} was made by axbake's emulator; it runs on hosts, "
            "not on boards. Set toolchain in config/config.yaml to one of Pulsar2's and compile."
        )


def _is_emulated(file: Path) -> bool:
    return file.suffix in (".axmodel", ".onnx") and file.is_file() and producer(file) == EMULATOR
