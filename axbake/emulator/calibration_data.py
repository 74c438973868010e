"""Calibration samples out of Pulsar2's archives, one at a time.

Archive: tar, tar.gz or zip, subdirectories allowed. Formats as in AXERA-TECH/pulsar2-docs-en,
`user_guides_config/config.md` (`DataFormat`) and `user_guides_advanced/advanced_build_guides.md`. Nothing is extracted:
members are read where they lie, so a member's path cannot reach any file. Which files Pulsar2 takes where there are
more than `calibration_size` is not documented; here it is the first ones in the archive's order.
"""

import io
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from axbake.emulator.config import BuildConfig, InputCalibration, entry_for
from axbake.emulator.graph import TensorSpec
from axbake.errors import AxbakeError

SUFFIXES = {
    "NumpyObject": (".npy",),
    "Numpy": (".npy",),
    "Binary": (".bin",),
    "Image": (".png", ".jpg", ".jpeg", ".bmp", ".webp"),
}
FORMATS = ["PNG", "JPEG", "BMP", "WEBP"]  # of pictures, those of `SUFFIXES`; of some others Pillow would run programs
SLACK = 1 << 20  # bytes that a member may have above its tensors: headers, pickle framing, names

# All that a pickled dict of arrays calls (numpy 1 and 2, pickle protocols 2 to 5).
SAFE_GLOBALS = {
    (module, name)
    for prefix in ("numpy.core", "numpy._core")
    for module, name in (
        (f"{prefix}.multiarray", "_reconstruct"),
        (f"{prefix}.multiarray", "scalar"),
        (f"{prefix}.numeric", "_frombuffer"),
    )
} | {("numpy", "array"), ("numpy", "ndarray"), ("numpy", "dtype")}  # the first two: axbake's own archives

# What a damaged or foreign pickle makes the unpickler raise.
UNREADABLE = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError),
    *(MemoryError, OverflowError, ImportError),
)


class CalibrationDataError(AxbakeError):
    """A calibration archive does not fit the configuration and the model."""


@dataclass(frozen=True)
class Source:
    """The archive of one `quant.input_configs` entry, for the inputs that it serves."""

    settings: InputCalibration
    inputs: tuple[TensorSpec, ...]
    tensor_format: str  # BGR, RGB, GRAY: of pictures


@dataclass(frozen=True)
class Archive:
    """An open archive: its members' names in order, and how to read one."""

    path: Path
    sizes: Mapping[str, int]  # bytes of each regular file, in the archive's order
    read: Callable[[str], bytes]


def sources(config: BuildConfig, inputs: tuple[TensorSpec, ...]) -> tuple[Source, ...]:
    """The archives that calibrate *inputs*, in the order of the configuration."""
    found = []
    for settings in config.inputs:
        served = tuple(spec for spec in inputs if entry_for(config.inputs, spec.name) == settings)
        if not served:
            continue
        if settings.format != "NumpyObject" and len(served) > 1:
            raise CalibrationDataError(
                f"{settings.dataset}: {settings.format} archives hold one input each, and this one is to serve "
                f"{', '.join(spec.name for spec in served)}; give one archive per input, or use NumpyObject"
            )
        processor = entry_for(config.processors, served[0].name)
        found.append(Source(settings, served, processor.tensor_format if processor else "BGR"))
    return tuple(found)


def count_samples(found: tuple[Source, ...]) -> int:
    """How many samples `samples` gives: min(calibration_size, files) of the first archive."""
    with open_archive(found[0].settings.dataset) as archive:
        return len(_members(archive, found[0].settings))


def samples(found: tuple[Source, ...]) -> Iterator[dict[str, np.ndarray]]:
    """One sample after the other: the value of each input, of its dtype and shape.

    Samples of several archives belong together by equal file names.
    """
    with ExitStack() as stack:
        archives = [stack.enter_context(open_archive(source.settings.dataset)) for source in found]
        first = _members(archives[0], found[0].settings)
        others = [_by_name(archive) for archive in archives[1:]]
        _check_partners(first, archives, others)
        for member in first:
            sample = read_sample(archives[0], member, found[0])
            for archive, source, names in zip(archives[1:], found[1:], others, strict=True):
                sample |= read_sample(archive, names[_stem(member)], source)
            yield sample


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """The members of the archive *path*, without extracting any."""
    if not path.is_file():
        raise CalibrationDataError(f"{path}: no such file, wanted the archive of `calibration_dataset`")
    with ExitStack() as stack:
        with _damage(path):
            if zipfile.is_zipfile(path):
                packed = stack.enter_context(zipfile.ZipFile(path))
                sizes = {info.filename: info.file_size for info in packed.infolist() if not info.is_dir()}
                archive = Archive(path, sizes, packed.read)
            else:
                tar = stack.enter_context(tarfile.open(path))
                members = {member.name: member for member in tar.getmembers() if member.isreg()}
                sizes = {name: member.size for name, member in members.items()}
                archive = Archive(path, sizes, lambda name: _tar_bytes(tar, members[name]))
        yield archive


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn what a damaged archive raises into an error that names it; zipfile calls an encrypted one a RuntimeError."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        first = (
            str(error).splitlines()[0] if str(error) else type(error).__name__
        )  # tarfile adds each method's findings
        raise CalibrationDataError(f"{path}: {first}; wanted a whole tar, tar.gz or zip archive") from error


def _tar_bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""


def _members(archive: Archive, settings: InputCalibration) -> list[str]:
    """The members to calibrate with; editors' and systems' hidden files are none."""
    names = [name for name in archive.sizes if not PurePosixPath(name).name.startswith(".")]
    strange = [name for name in names if PurePosixPath(name).suffix.lower() not in SUFFIXES[settings.format]]
    if strange or not names:
        wanted = " or ".join(SUFFIXES[settings.format])
        raise CalibrationDataError(
            f"{archive.path}: found {strange[0] if strange else 'no files'}, wanted {wanted} files only, since "
            f"calibration_format is {settings.format}"
        )
    return names if settings.size == -1 else names[: settings.size]


def _stem(member: str) -> str:
    return PurePosixPath(member).stem


def _by_name(archive: Archive) -> dict[str, str]:
    return {_stem(name): name for name in archive.sizes}


def _check_partners(first: list[str], archives: list[Archive], others: list[dict[str, str]]) -> None:
    """Equal file names hold several archives together, so they must be there, and there once."""
    for archive, names in zip(archives[1:], others, strict=True):
        missing = [member for member in first if _stem(member) not in names]
        if missing:
            raise CalibrationDataError(
                f"{archive.path}: has no file with the name of {missing[0]} of {archives[0].path}; samples of several "
                "inputs belong together by equal file names"
            )
    if len(archives) > 1 and len({_stem(member) for member in first}) < len(first):
        raise CalibrationDataError(f"{archives[0].path}: two files of one name; several inputs want each name once")


def read_sample(archive: Archive, member: str, source: Source) -> dict[str, np.ndarray]:
    """The inputs' values in *member*."""
    where = f"{archive.path}: {member}"
    most = sum(int(np.prod(spec.shape)) * 16 for spec in source.inputs) + SLACK  # complex128 would be found out below
    if source.settings.format != "Image" and archive.sizes[member] > most:
        raise CalibrationDataError(f"{where}: {archive.sizes[member]} bytes, wanted at most {most} for its inputs")
    with _damage(archive.path):
        content = archive.read(member)
    spec = source.inputs[0]
    match source.settings.format:
        case "NumpyObject":
            return _from_dict(_object_array(content, where), source, where)
        case "Numpy":
            value = _plain_array(content, spec, where)
        case "Binary":
            value = _raw_array(content, spec, where)
        case _:
            value = _picture(content, spec, source, where)
    return {spec.name: _checked(value, spec, where)}


def _checked(value: object, spec: TensorSpec, where: str) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        raise CalibrationDataError(f"{where}: {spec.name}: found a {type(value).__name__}, wanted an array")
    if value.dtype != spec.dtype or value.shape != spec.shape:
        raise CalibrationDataError(
            f"{where}: {spec.name}: found {value.dtype} {list(value.shape)}, wanted {spec.dtype} {list(spec.shape)}"
        )
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise CalibrationDataError(f"{where}: {spec.name}: holds infinity or NaN, wanted finite values")
    return np.asarray(value, order="C")


def _from_dict(values: object, source: Source, where: str) -> dict[str, np.ndarray]:
    if not isinstance(values, dict):
        raise CalibrationDataError(f"{where}: holds a {type(values).__name__}, wanted a dict of input name to array")
    names = {spec.name for spec in source.inputs}
    missing, extra = sorted(names - set(values)), sorted(set(values) - names, key=str)
    if missing or (extra and source.settings.tensor_name == "DEFAULT"):
        raise CalibrationDataError(f"{where}: found inputs {sorted(map(str, values))}, wanted {sorted(names)}")
    return {spec.name: _checked(values[spec.name], spec, where) for spec in source.inputs}


class _ArraysOnly(pickle.Unpickler):
    """Loads dicts of arrays and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # bytes, in pickle protocol 2
            return _latin1
        if (module, name) not in SAFE_GLOBALS:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return super().find_class(module, name)


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


def _npy_header(file: io.BytesIO, where: str) -> tuple[tuple[int, ...], np.dtype]:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except ValueError as error:
        raise CalibrationDataError(f"{where}: {error}; wanted a .npy file") from error
    return shape, dtype


def _object_array(content: bytes, where: str) -> object:
    """The one object in a 0-d object array, as `np.save(path, {...})` writes it."""
    file = io.BytesIO(content)
    shape, dtype = _npy_header(file, where)
    if dtype != np.dtype(object) or shape != ():
        raise CalibrationDataError(
            f"{where}: found {dtype} {list(shape)}, wanted a pickled dict (`np.save(path, {{name: array}})`)"
        )
    try:
        packed = _ArraysOnly(file).load()
    except UNREADABLE as error:
        raise CalibrationDataError(f"{where}: not loaded, since {error}; wanted a dict of plain arrays") from error
    return packed.item() if isinstance(packed, np.ndarray) and packed.shape == () else packed


def _plain_array(content: bytes, spec: TensorSpec, where: str) -> np.ndarray:
    shape, dtype = _npy_header(io.BytesIO(content), where)
    if dtype.hasobject:
        raise CalibrationDataError(
            f"{where}: found pickled objects, wanted an array, or calibration_format NumpyObject"
        )
    if shape != spec.shape or dtype != spec.dtype:  # before anything of that size is allocated
        raise CalibrationDataError(
            f"{where}: {spec.name}: found {dtype} {list(shape)}, wanted {spec.dtype} {list(spec.shape)}"
        )
    try:
        return np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise CalibrationDataError(f"{where}: {error}; wanted a complete .npy file") from error


def _raw_array(content: bytes, spec: TensorSpec, where: str) -> np.ndarray:
    wanted = int(np.prod(spec.shape)) * spec.dtype.itemsize
    if len(content) != wanted:
        raise CalibrationDataError(
            f"{where}: {spec.name}: found {len(content)} bytes, wanted {wanted} of {spec.dtype} {list(spec.shape)}"
        )
    return np.frombuffer(content, spec.dtype.newbyteorder("<")).reshape(spec.shape).astype(spec.dtype)


def _picture(content: bytes, spec: TensorSpec, source: Source, where: str) -> np.ndarray:
    """A picture resized (bilinear) to the input's size: (1, C, H, W) float32, (x - mean) / std with x from 0 to 255."""
    channels = {"GRAY": 1}.get(source.tensor_format, 3)
    if len(spec.shape) != 4 or spec.shape[:2] != (1, channels) or spec.dtype != np.float32:
        raise CalibrationDataError(
            f"{where}: pictures of {source.tensor_format} fit float32 [1, {channels}, H, W], and {spec.name} is "
            f"{spec.dtype} {list(spec.shape)}; set input_processors.tensor_format or another calibration_format"
        )
    height, width = spec.shape[2:]
    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS).convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CalibrationDataError(f"{where}: {error}; wanted a picture") from error
    pixels = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    pixels = pixels.reshape(height, width, channels)
    if source.tensor_format == "BGR":
        pixels = pixels[:, :, ::-1]
    mean, std = per_channel(source.settings.mean, channels, 0.0), per_channel(source.settings.std, channels, 1.0)
    return ((pixels.transpose(2, 0, 1)[None] - mean) / std).astype(np.float32)


def per_channel(values: tuple[float, ...], channels: int, resting: float) -> np.ndarray:
    """*values* as (1, C, 1, 1) float32; one value stands for all channels, none for *resting*.

    Raises:
        CalibrationDataError: there are neither 0, 1 nor C values.
    """
    if len(values) not in (0, 1, channels):
        raise CalibrationDataError(f"mean or std {list(values)}: found {len(values)} values, wanted 1 or {channels}")
    array = np.asarray(values or (resting,), np.float32)
    return np.broadcast_to(array, (channels,)).reshape(1, channels, 1, 1).copy()
