"""A container image of the test double of `pulsar2`, made of this machine's own Python: no registry is asked.

`python -m tests.services.double_image docker pulsar2:4.2` makes it with the engine's command that is on the PATH.
"""

import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy

ROOT = Path(__file__).parents[2]
HOME = Path("/double")  # of the double, in the image
PACKAGES = ("numpy", "onnx", "onnxruntime", "PIL", "json5", "google", "ml_dtypes", "flatbuffers", "packaging")
PACKAGES += ("jsonschema", "jsonschema_specifications", "referencing", "rpds", "attr", "attrs", "yaml")
LIBRARIES = ("numpy.libs", "pillow.libs", "ml_dtypes.libs")  # shared ones that wheels bring along
SINGLE = ("typing_extensions.py",)
STANDARD = Path(sys.base_prefix) / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
INSTALLED = Path(numpy.__file__).parents[1]
UNNEEDED = ("site-packages", "test", "idlelib", "lib2to3", "ensurepip", "tkinter", "turtledemo", "__phello__")
PROGRAMS = ("sh", "chown", "true")
PULSAR2 = f"""#!/bin/sh
PYTHONPATH={HOME} exec {sys.base_prefix}/bin/python3 -m tests.double "$@"
"""


def parts() -> Iterator[tuple[Path, Path]]:
    """What lies where in the image: source and place."""
    python = Path(sys.executable).resolve()
    yield python, Path(sys.base_prefix) / "bin" / "python3"
    for path in STANDARD.iterdir():
        if path.name not in UNNEEDED and not path.name.startswith("config-"):
            yield path, path
    for name in (*PACKAGES, *LIBRARIES, *SINGLE):
        if (INSTALLED / name).exists():
            yield INSTALLED / name, HOME / name  # Debian's Python looks into no directory of wheels in its prefix
    for name in ("axbake", "tests/double"):
        yield ROOT / name, HOME / name
    for name in PROGRAMS:
        yield Path("/bin", name).resolve(), Path("/bin", name)


def libraries(files: list[Path]) -> set[Path]:
    """Shared libraries that *files* ask for, of those outside of Python's own directories."""
    said = subprocess.run(["ldd", *files], capture_output=True, text=True, check=False).stdout
    words = (word for line in said.splitlines() for word in line.split())
    paths = {Path(word) for word in words if word.startswith("/") and ".so" in word and not word.endswith(":")}
    return {path for path in paths if not {INSTALLED, STANDARD} & set(path.resolve().parents)}


def write(file) -> None:
    """Write the image's root to *file*, a tar."""
    binaries: list[Path] = []

    def take(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        return member

    with tarfile.open(fileobj=file, mode="w|") as archive:
        for source, place in parts():
            archive.add(source, place.relative_to("/"), filter=take)
            below = [source] if source.is_file() else sorted(source.rglob("*.so*"))
            binaries += [path for path in below if path.suffix != ".py"]
        for path in sorted(libraries(binaries)):
            archive.add(path.resolve(), path.relative_to("/"), filter=take)
        for name, text, mode in (("bin/pulsar2", PULSAR2, 0o755), ("etc/passwd", "root:x:0:0::/:/bin/sh\n", 0o644)):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text), mode
            archive.addfile(member, io.BytesIO(text.encode()))
        temporary = tarfile.TarInfo("tmp")
        temporary.type, temporary.mode = tarfile.DIRTYPE, 0o1777
        archive.addfile(temporary)


def make(engine: str, image: str) -> None:
    """Have *engine* import the image under the name *image*."""
    command = [engine, "import", "--change", "ENV PATH=/bin", "-", image]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        write(process.stdin)
    if process.returncode:
        raise SystemExit(f"`{' '.join(command)}` ended with status {process.returncode}")


if __name__ == "__main__":
    make(*sys.argv[1:])
