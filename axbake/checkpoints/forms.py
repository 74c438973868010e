"""What a file is, by its first bytes and not by its name: a form that axbake reads, or what people take for a model."""

import re
from dataclasses import dataclass
from pathlib import Path

from axbake.printable import shown
from axbake.users_files import MOST_JSON_BYTES, UnreadableFile, load_json, open_file, read_text

SAFETENSORS, PICKLE, AXMODEL, ONNX = "safetensors", "pickle", ".axmodel", "ONNX graph"
COMPILERS = (b"Pulsar2", b"axbake-emulator")  # that write .axmodel files
PICKLE_ENDINGS = (".ckpt", ".pt", ".pth", ".bin")
# How pickles begin that are text, which torch never wrote: a name to import, or a table, list or tuple.
TEXT_PICKLE = re.compile(rb"c[\w.]+\n[\w.]+\n|\((?:[dlt(SVI]|c[\w.]+\n)")
START_BYTES = 4096
TAIL_BYTES = 1_000_000  # of a zip archive, in which its list of files ends
AGAIN = "Download it again and compare its SHA-256 with its page."
UNPACK = "Unpack it and give the model inside."
GIVE = "Give the checkpoint as safetensors, as a pickle, or as a diffusers folder."

#: Where, what stands there, what the file is then, and what to do
MAGIC = (
    (0, b"GGUF", "a GGUF file, whose weights are quantised in blocks", "Give the safetensors file that it was made from."),
    *((0, magic, "a GGML file, whose weights are quantised in blocks", GIVE) for magic in (b"lmgg", b"fmgg", b"tjgg")),
    *((0, magic, f"a compressed archive ({kind})", UNPACK)
      for magic, kind in (
          (b"\x1f\x8b", "gzip"),
          (b"7z\xbc\xaf\x27\x1c", "7-Zip"),
          (b"Rar!", "RAR"),
          (b"\xfd7zXZ", "xz"),
          (b"BZh", "bzip2"),
          (b"\x28\xb5\x2f\xfd", "Zstandard"),
      )),
    (257, b"ustar", "a tar archive", UNPACK),
    *((0, magic, f"a picture ({kind})", "Give the model that drew it; its page may name it.")
      for magic, kind in ((b"\x89PNG\r\n", "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"GIF8", "GIF"), (b"BM", "BMP"))),
    (8, b"WEBP", "a picture (WebP)", "Give the model that drew it; its page may name it."),
    (4, b"ftyp", "a video or a picture (MP4, AVIF or HEIC)", "Give the model that drew it; its page may name it."),
    (0, b"%PDF", "a PDF document", GIVE),
    (0, b"\x89HDF", "an HDF5 file, as Keras writes it", GIVE),
    (0, b"\x93NUMPY", "a NumPy array", GIVE),
    (4, b"TFL3", "a TensorFlow Lite model", GIVE),
    (0, b"RKNN", "a model compiled for Rockchip's NPU", GIVE),
    (0, b"\x7fELF", "a program", GIVE),
    (0, b"MZ", "a program for Windows", "Do not start it; a model is not a program."),
)  # fmt: skip


@dataclass(frozen=True)
class Form:
    """What a file is."""

    name: str  # safetensors, pickle, .axmodel, ONNX graph; or empty: another
    words: str = ""  # of what is no checkpoint: what it is, with its article
    advice: str = ""  # what to do then


def form_of_file(path: Path) -> Form:
    """What the regular file *path* is.

    Raises:
        UnreadableFile: not there, not a regular file, not readable.
    """
    with open_file(path) as file:
        start = file.read(START_BYTES)
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL_BYTES))
        tail = file.read() if start[:4] == b"PK\x03\x04" else b""
    if not start:
        return Form("", "not a complete safetensors file: it is empty", AGAIN)
    # A header's length before its `{`; as text, eight letters would be a length beyond any disk.
    if start[8:9] == b"{" and not _is_text(start[:8]):
        return Form(SAFETENSORS)
    if start[:4] == b"PK\x03\x04":
        return _zip_archive(start, tail)
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return Form(PICKLE)
    for place, magic, words, advice in MAGIC:
        if start[place : place + len(magic)] == magic and not (len(magic) < 3 and _is_text(start)):
            return Form("", words, advice)
    if _is_text(start):
        if told := _text(path, start.decode("utf-8-sig", errors="ignore")):
            return told
    elif _is_protobuf(start):
        name = start[4 : 4 + start[3]] if start[2:3] == b"\x12" and start[3] < 128 else b""
        maker = f" (made by {shown(name.decode(errors='replace'), 40)})" if name else ""
        if path.suffix == ".axmodel" or name in COMPILERS:
            return Form(AXMODEL, f"an already compiled model{maker}", GIVE)
        return Form(ONNX, f"an ONNX graph{maker}", GIVE)
    if not start.strip(b"\0"):
        return Form("", "not a complete safetensors file: it begins with zeros, like an interrupted download", AGAIN)
    text = _is_text(start)
    if path.suffix in PICKLE_ENDINGS and (not text or TEXT_PICKLE.match(start)):
        return Form(PICKLE)
    if text:
        first = start.decode("utf-8-sig", errors="ignore").strip().splitlines()[:1]
        return Form("", f"not a safetensors file but a text: «{shown(first[0] if first else '')}»", AGAIN)
    return Form("", "not a complete safetensors file", AGAIN)


def _is_text(start: bytes) -> bool:
    """Whether a file that begins so is text: UTF-8, which the end of *start* may cut, without controls."""
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:
            return False
        text = start[: error.start].decode("utf-8")
    return not re.search(r"[\x00-\x08\x0b\x0e-\x1f\x7f]", text)


def _zip_archive(start: bytes, tail: bytes) -> Form:
    """A pickle of torch's, whose instructions are one of the archive's files, or another archive."""
    length = int.from_bytes(start[26:28], "little")
    first = start[30 : 30 + length]
    if len(first) < length or length == 0:
        return Form(PICKLE)  # cut off: its reader says so
    if first.endswith(b"data.pkl") or b"data.pkl" in tail:
        return Form(PICKLE)
    name = first.decode("utf-8", errors="replace")
    what = "an archive of NumPy arrays" if name.endswith(".npy") else f"a zip archive ({shown(name)} …)"
    return Form("", what, UNPACK)


def _is_protobuf(start: bytes) -> bool:
    """Whether a file begins as an ONNX model, which an .axmodel is too: its version, then one of its first fields."""
    return (
        start[:1] == b"\x08"
        and 0 < start[1] < 32
        and start[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x28", b"\x32", b"\x3a", b"\x42")
    )


def _text(path: Path, start: str) -> Form | None:
    """What a text is that people take for a model; None if it is no such text."""
    if start.startswith("version https://git-lfs"):
        size = re.search(r"^size (\d{1,15})$", start, re.MULTILINE)
        of = f" of a file of {int(size[1]) / 1e6:,.0f} MB" if size else ""
        return Form(
            "",
            f"a Git LFS pointer{of}, not the file itself",
            "Fetch it with `git lfs pull`, or download it from its page.",
        )
    if "/annex/objects/" in start[:400]:
        return Form("", "a git-annex pointer, not the file itself", "Fetch it with `git annex get`.")
    if start.startswith("# xet version"):
        return Form(
            "", "a Xet pointer, not the file itself", "Fetch it with `git xet checkout`, or download it from its page."
        )
    if start.lstrip().startswith("<?xml") and (said := re.search(r"<Message>([^<]*)</Message>", start)):
        return Form("", f"an answer from the site, not the file: «{shown(said[1].strip())}»", AGAIN)
    if start.lstrip().startswith("<"):
        title = re.search(r"<title[^>]*>([^<]*)", start, re.IGNORECASE)
        called = f" («{shown(' '.join(title[1].split()))}»)" if title and title[1].strip() else ""
        return Form(
            "", f"not a complete safetensors file but a web page{called}, which a download needs a login for", AGAIN
        )
    if start.lstrip()[:1] in ("{", "["):
        return _json(path)
    return None


def _json(path: Path) -> Form:
    """What a text that begins as JSON is."""
    try:
        said = load_json(read_text(path, most_bytes=MOST_JSON_BYTES))
    except (UnreadableFile, ValueError):
        return Form("", "not a complete safetensors file but a text that begins like JSON", AGAIN)
    table = said if isinstance(said, dict) else {}
    if "weight_map" in table:
        return Form("", "a list of the files that hold a model's weights", "Give the folder that contains it.")
    if {"_class_name", "model_type", "architectures"} & set(table):
        return Form("", "the config of a network, without its weights", "Give the folder that contains it.")
    inner = [table, *(value for value in table.values() if isinstance(value, dict))]
    keys = ("message", "error_description", "detail", "error", "title")
    texts = [one[key] for key in keys for one in inner if isinstance(one.get(key), str)]
    if texts:
        return Form(
            "",
            f"an answer from the site, not the file: «{shown(texts[0])}»",
            "Log in, or give a token, and download it again (docs/getting-checkpoints.md).",
        )
    return Form("", "a JSON text", GIVE)
