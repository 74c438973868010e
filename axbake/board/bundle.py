"""A bundle as it lies on this host: its manifest, checked against its files before any of them leaves."""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from axbake.board.errors import DamagedBundle, EmulatedModel
from axbake.digest import file_sha256
from axbake.runtime.session import EMULATOR, producer

DRAWING = ("text_encoder", "unet", "vae_decoder")  # models that text to image has in the card's memory at once


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
        """File of each component."""
        return {component: entry["file"] for component, entry in self.manifest["models"].items()}


def read_bundle(manifest: Path) -> Bundle:
    """The bundle whose `manifest.json` is at *manifest*, each file of it read and found to be the one that is listed.

    Raises:
        DamagedBundle: files that are missing or others than listed, all of them; or a path that leaves the directory.
    """
    bundle = Bundle(manifest.parent, json.loads(manifest.read_text(encoding="utf-8")))
    outside = [name for name in bundle.files if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
    if outside or any("\n" in name or "\\" in name for name in bundle.files):
        raise DamagedBundle(
            f"{manifest}: lists {', '.join(outside) or 'a name with a line break'}; no file of a bundle."
        )
    wrong = [name for name, sha256 in bundle.files.items() if not _is(bundle.directory / name, sha256)]
    if wrong:
        raise DamagedBundle(
            f"{manifest.parent}: {', '.join(wrong)}: not what its manifest lists. Delete {manifest} and run again; the bundle is"
            " then made anew."
        )
    return bundle


def _is(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256


def refuse_emulated(bundle: Bundle) -> None:
    """Raise EmulatedModel if the manifest, or what a model's own file says of its maker, calls a model emulated."""
    marked = [name for name, entry in bundle.manifest["models"].items() if entry["emulated"]]
    found = [
        name
        for name, file in bundle.models.items()
        if (bundle.directory / file).is_file() and producer(bundle.directory / file) == EMULATOR
    ]
    emulated = sorted({*marked, *found})
    if emulated or bundle.manifest["emulated"]:
        raise EmulatedModel(
            f"{bundle.model}: {', '.join(emulated) or 'the bundle'} was made by axbake's emulator; hosts run it, boards cannot."
            " Set toolchain in config/config.yaml to one of Pulsar2's, and compile."
        )
