"""Checkpoints in pickles (`.ckpt`, `.pt`, `.bin`), made into safetensors without running what they hold.

A pickle is a program: it names functions and calls them. Three fences stand around it. It is read in a process of its own, whose
memory is limited. What it names is listed first, by going over its instructions without doing them, and must be on a short list.
And the reading itself is torch's, which calls nothing but what rebuilds tensors (`weights_only=True`).

    python -m axbake.checkpoints.pickles SOURCE [TARGET]   what the process runs; without target it says what tensors there are
"""

import io
import json
import os
import pickletools
import resource
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from axbake.checkpoints.containers import MOST_AXES, MOST_TENSORS, UnreadableCheckpoint, check_names
from axbake.checkpoints.writing import tensor_bytes, write_tensors
from axbake.printable import shown
from axbake.root import PACKAGE
from axbake.users_files import UnreadableFile, open_file

# Checkpoints of 2,600 tensors have 0.4 MB of instructions.
MOST_INSTRUCTION_BYTES = 4_000_000
# Beyond the file's own size: a pickle of a few bytes can ask for a text or a tensor of any size, or unpack to one, and would take
# the whole machine's memory. Address space is what the system limits; mapped files count, so the file's size is added.
MEMORY_BYTES = 1_500_000_000
# Of computing, once torch is there. A file of 8 GB takes 20; a few bytes can make a key whose hash takes years.
AGAIN = "Download it again and compare its SHA-256 with its page."  # of a damaged file
SECONDS, SECONDS_PER_GB = 8, 10
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py: first of the pickles in files before torch 1.6

REBUILD = {f"torch._utils._rebuild_{kind}" for kind in ("tensor", "tensor_v2", "parameter", "parameter_with_state")}
STORAGES = {
    f"torch.{kind}Storage"
    for kind in (
        "Float",
        "Half",
        "BFloat16",
        "Double",
        "Long",
        "Int",
        "Short",
        "Char",
        "Byte",
        "Bool",
        "Untyped",
        "ComplexFloat",
        "ComplexDouble",
    )
} | {"torch.storage.UntypedStorage", "torch.storage.TypedStorage"}
DTYPES = {"torch.float8_e4m3fn", "torch.float8_e5m2", "torch.float16", "torch.bfloat16", "torch.float32"}
#: What a file may name, and torch rebuilds.
ALLOWED = REBUILD | STORAGES | DTYPES | {"torch._utils._rebuild_tensor_v3", "torch._tensor._rebuild_from_type_v2"}
ALLOWED |= {
    "torch.Size",
    "torch.Tensor",
    "torch.device",
    "torch.nn.parameter.Parameter",
    "torch.serialization._get_layout",
}
ALLOWED |= {"collections.OrderedDict", "collections.Counter", "builtins.set", "builtins.complex", "_codecs.encode"}
PARAMETERS = "torch.nn.modules.container.ParameterDict"
ALLOWED |= {PARAMETERS}
#: Entries of what trainers save, in which the table of tensors is
WRAPPERS = ("state_dict", "model", "module", "params_ema", "string_to_param")
#: What trainers leave beside the weights. A file may name it, and gets an object that does nothing in its place.
LEFTOVERS = {
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "argparse.Namespace",
    "builtins.dict",
    "builtins.list",
    "collections.defaultdict",
    "typing.Any",
    "pathlib.PosixPath",
    *(
        f"{lightning}.{name}"
        for lightning in ("pytorch_lightning", "lightning.pytorch")
        for name in (
            "callbacks.model_checkpoint.ModelCheckpoint",
            "callbacks.early_stopping.EarlyStopping",
            "utilities.parsing.AttributeDict",
        )
    ),
    "lightning_fabric.utilities.data.AttributeDict",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.nodes.AnyNode",
}


class UnsafeCheckpoint(UnreadableCheckpoint):
    """The pickle names objects that weights do not need."""

    def __init__(self, text: str, asked: str = "") -> None:
        super().__init__(text)
        self.asked = asked  # what it names, for messages


def convert_pickle(source: Path, target: Path | None) -> dict:
    """Write the tensors of the pickle *source* as safetensors to *target*, in a process of its own.

    Args:
        target: None: only look.

    Returns:
        `tensors`: name -> type in safetensors' name, shape; `left_out`: names of entries that are no tensors; `leftovers`:
        what it named besides tensors.

    Raises:
        UnsafeCheckpoint: it names anything but tensors and a trainer's harmless leftovers; says what.
        UnreadableCheckpoint: no whole pickle, no tensors in it, or it wants more memory or time than its size explains.
    """
    try:
        with open_file(source) as file:
            size = os.fstat(file.fileno()).st_size
    except UnreadableFile as error:
        raise UnreadableCheckpoint(str(error)) from None
    # -P: nothing that lies in the working directory is imported.
    command = [
        sys.executable,
        "-P",
        "-m",
        "axbake.checkpoints.pickles",
        str(source),
        *([str(target)] if target else []),
    ]
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode == -signal.SIGPROF:
        raise UnreadableCheckpoint(
            f"{source}: reading it took more than {_seconds(size)} s of computing time; weights of this size need "
            "less. It may be an attack. Use the model's safetensors file."
        )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"code {done.returncode}"
        raise UnreadableCheckpoint(
            f"{source}: reading it ended its process with {ended}: {shown(done.stderr.strip()[-300:], 300)}. It needs more"
            f" than {MEMORY_BYTES / 1e9:g} GB beyond its size, or is damaged. Use the model's safetensors file."
        ) from None
    return taken(answer)


def taken(answer: dict) -> dict:
    """*answer* of the process; an error that it tells of is raised."""
    if answer.get("error") == UnsafeCheckpoint.__name__:
        raise UnsafeCheckpoint(answer["text"], answer["asked"])
    if "error" in answer:
        raise UnreadableCheckpoint(answer["text"])
    return answer


def names_of(source: Path) -> set[str]:
    """Everything that the pickle *source* would import, as module.name, found without running any of it.

    Raises:
        UnreadableCheckpoint: its instructions cannot be followed.
    """
    names: set[str] = set()
    with open_file(source) as file:
        if file.read(4) == b"PK\x03\x04":
            names.update(_globals(io.BytesIO(_instructions(source))))
        else:
            file.seek(0)
            # A file before torch 1.6 is five pickles one after the other, and then the values.
            for number in range(5):
                names.update(_globals(file))
                if number == 0 and not _is_legacy(source):
                    break
    return names


def _is_legacy(source: Path) -> bool:
    with open_file(source) as file:
        return LEGACY_MAGIC.to_bytes(10, "little") in file.read(32)


def _instructions(source: Path) -> bytes:
    """`data.pkl` of a zip archive as torch.save writes it."""
    try:
        with zipfile.ZipFile(source) as archive:
            members = [member for member in archive.infolist() if member.filename.rpartition("/")[2] == "data.pkl"]
            if len(members) != 1 or any(name.endswith("constants.pkl") for name in archive.namelist()):
                raise UnreadableCheckpoint(
                    f"{source}: a zip archive of {len(members)} data.pkl; wanted one, as torch.save writes it, and no program."
                )
            if members[0].file_size > MOST_INSTRUCTION_BYTES:
                raise UnreadableCheckpoint(
                    f"{source}: {members[0].file_size} bytes of instructions; weights need 0.4 MB."
                )
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise UnreadableCheckpoint(f"{source}: a compressed archive, which torch.save does not write.")
            return archive.read(members[0])
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        raise UnreadableCheckpoint(
            f"{source}: {source.stat().st_size} bytes that are not a complete zip archive ({error}). Download it again "
            "and compare its SHA-256 with its page."
        ) from None


def _globals(file: IO[bytes]) -> Iterator[str]:
    """Names in the pickle that begins here; leaves *file* at its end.

    The newer instruction takes module and name from the stack: they are the last two texts, or something computed, which
    is then given as it stands and is on no list.
    """
    texts: list[str] = []
    start = file.tell()
    for instruction, argument, _ in pickletools.genops(file):
        if file.tell() - start > MOST_INSTRUCTION_BYTES:
            raise ValueError(f"more than {MOST_INSTRUCTION_BYTES} bytes of instructions")
        if instruction.name in ("GLOBAL", "INST"):
            module, _, name = str(argument).partition(" ")
            yield _modern(module, name)
        elif instruction.name == "STACK_GLOBAL":
            yield _modern(*texts[-2:]) if len(texts) > 1 else "a name that it computes"
        elif instruction.name in ("EXT1", "EXT2", "EXT4"):
            yield f"an extension, number {argument}"
        elif isinstance(argument, str) and "UNICODE" in instruction.name:
            texts = [*texts[-1:], argument]


def _modern(module: str, name: str) -> str:
    """A name of Python 2's library as Python 3 has it, as unpicklers do."""
    import _compat_pickle

    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"


class Leftover(dict):
    """Stands for whatever a trainer left; takes everything and does nothing."""

    def __new__(cls, *args: object) -> "Leftover":
        return super().__new__(cls)

    def __init__(self, *args: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        pass


class Parameters(dict):
    """Stands for torch's ParameterDict, in which the first textual inversion keeps its vectors."""

    def __setstate__(self, state: object) -> None:
        kept = state.get("_parameters") if isinstance(state, dict) else None
        self.update(kept if isinstance(kept, dict) else {})


def _load(source: Path, leftovers: set[str]) -> Any:
    """What torch's restricted unpickler makes of *source*."""
    import torch

    stubs: list[Any] = [(type("Leftover", (Leftover,), {}), name) for name in sorted(leftovers)]
    with torch.serialization.safe_globals([*stubs, (Parameters, PARAMETERS)]), open_file(source) as file:
        # By another name, since torch takes a file for safetensors where its name ends so.
        place = f"/proc/self/fd/{file.fileno()}"
        mapped = zipfile.is_zipfile(place)  # values are then read when they are written, one tensor at a time
        return torch.load(place, map_location="cpu", weights_only=True, mmap=mapped)


def _unwrapped(loaded: Any) -> Mapping:
    """The table of tensors inside what trainers wrap around it."""
    seen = 0
    while isinstance(loaded, Mapping) and seen < 8:
        inner = [loaded[name] for name in WRAPPERS if name in loaded]
        inner = [value for value in inner if isinstance(value, Mapping)]
        if not inner and len(loaded) == 1 and isinstance(next(iter(loaded.values())), Mapping):
            inner = list(loaded.values())
        if not inner:
            break
        loaded, seen = inner[0], seen + 1
    return loaded if isinstance(loaded, Mapping) else {}


def _convert(source: Path, target: Path | None) -> dict:
    """`convert_pickle` inside its process."""
    import torch

    try:
        names = names_of(source)
    except (ValueError, IndexError, KeyError, EOFError, OverflowError, AttributeError) as error:
        raise UnreadableCheckpoint(
            f"{source}: {source.stat().st_size} bytes that are not a complete pickle ({shown(error, 200)}). {AGAIN}"
        ) from None
    if strange := sorted(names - ALLOWED - LEFTOVERS):
        asked = f"{', '.join(shown(name, 100) for name in strange[:8])}{' …' if len(strange) > 8 else ''}"
        raise UnsafeCheckpoint(
            f"{source}: asks for {asked}, which weights do not need. axbake did not run it; it may be an attack. Use "
            "the model's safetensors file.",
            asked,
        )
    try:
        table = _unwrapped(_load(source, names & LEFTOVERS))
        tensors = {n: value for n, value in table.items() if isinstance(value, torch.Tensor) and isinstance(n, str)}
        kinds = _kinds(source, tensors)
        check_names(tensors)
    except (MemoryError, UnreadableCheckpoint):
        raise
    except Exception as error:  # a damaged pickle makes torch's reader fail in any way there is
        raise UnreadableCheckpoint(
            f"{source}: {source.stat().st_size} bytes that are not a complete pickle of tensors "
            f"({type(error).__name__}: {shown(error, 200)}). {AGAIN}"
        ) from None
    if not tensors or len(tensors) > MOST_TENSORS:
        raise UnreadableCheckpoint(f"{source}: {len(tensors)} tensors; wanted 1 to {MOST_TENSORS}: weights by name.")
    shapes = {name: (kinds[name], tuple(tensor.shape)) for name, tensor in tensors.items()}
    if target:
        try:
            write_tensors(target, shapes, lambda name: tensor_bytes(tensors[name].detach()), metadata={"format": "pt"})
        except OSError as error:
            raise UnreadableCheckpoint(f"{source}: {target} cannot be written: {error.strerror}.") from None
    left_out = sorted(shown(name, 100) for name in table if name not in tensors)
    return {"tensors": shapes, "left_out": left_out[:20], "leftovers": sorted(names & LEFTOVERS)}


def _kinds(source: Path, tensors: Mapping[str, Any]) -> dict[str, str]:
    """Type of each tensor in safetensors' name, after checking that it is plain and not larger than what is stored of it."""
    import torch

    names = {
        torch.float64: "F64",
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.bool: "BOOL",
    }
    names |= {torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"}
    names |= {torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"}
    faults, total = [], 0
    for name, tensor in tensors.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or tensor.dtype not in names or tensor.ndim > MOST_AXES:
            faults.append(
                f"{shown(name, 100)}: {tensor.dtype}, {tensor.layout}, on {tensor.device}, {tensor.ndim} axes"
            )
        elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            faults.append(f"{shown(name, 100)}: shape {tuple(tensor.shape)}, but less data is stored")
        total += tensor.numel() * tensor.element_size()
    if total > 2 * source.stat().st_size + 1_000_000:
        faults.append(f"{total} bytes of tensors in a file of {source.stat().st_size}")
    if faults:
        raise UnreadableCheckpoint(f"{source}: {'; '.join(faults[:8])}. Wanted plain tensors, each stored whole.")
    return {name: names[tensor.dtype] for name, tensor in tensors.items()}


def _limit_process(file_bytes: int) -> None:
    """Bound the memory of this process, which reads what nobody has checked."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    most = pages * resource.getpagesize() + 2 * file_bytes + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _seconds(file_bytes: int) -> int:
    """How long a pickle of so many bytes may be computed with."""
    return SECONDS + SECONDS_PER_GB * file_bytes // 10**9


def _limit_seconds(file_bytes: int) -> None:
    """Bound the time that this process may compute from here on; a limit of the system's would count torch's import too."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process
    signal.setitimer(signal.ITIMER_PROF, _seconds(file_bytes))


def main(source: Path, target: Path | None) -> dict:
    """Convert in this process, and give `convert_pickle`'s answer as it is printed."""
    try:
        return _convert(source, target)
    except UnsafeCheckpoint as error:
        return {"error": type(error).__name__, "text": str(error), "asked": error.asked}
    except (UnreadableCheckpoint, UnreadableFile) as error:
        return {"error": UnreadableCheckpoint.__name__, "text": str(error)}
    except MemoryError:
        return {
            "error": UnreadableCheckpoint.__name__,
            "text": f"{source}: needs more than {MEMORY_BYTES / 1e9:g} GB of memory beyond its size. It is not a "
            "checkpoint.",
        }


if __name__ == "__main__":
    import torch  # before the limits, which count from here

    torch.set_num_threads(1)
    _limit_process(Path(sys.argv[1]).stat().st_size)
    _limit_seconds(Path(sys.argv[1]).stat().st_size)
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)))
