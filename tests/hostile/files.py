"""Files that strangers made, thousands of every kind: each is read or refused in a sentence, within bounds, and runs nothing.

    python -m tests.hostile.files [--inputs 4000] [--seed 1] [--directory DIR]

Readers run in processes that watch themselves (`tests.hostile.reading`); what ends one, or keeps it too long, is counted. Prints
a table, and ends with 1 if anything went wrong.
"""

import argparse
import contextlib
import io
import json
import os
import pickle
import random
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save

from tests import loras, tiny, tiny_anima, tiny_flux2, tiny_lumina, tiny_sd3, tiny_xl, tiny_z_image

ROOT = Path(__file__).parents[2]
SECONDS = 20  # for one input
MOST_MEMORY = 2 * 10**9  # bytes of one process
LONGEST = 5000  # characters of a message
STRANGE = [-1, 0, 1, 7, 2**31, 2**48, 2**63, 2**64, 10**30, 1.5, True, None, "", "F16", [], {}, [[1]], "\ud83d\ude00"]
STRANGE += ["a" * 9999, "\x1b[31m", {"a": {"b": []}}, [1e308], "NaN", -0.0]


def split(content: bytes) -> tuple[dict, bytes]:
    """Header and tensors of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: dict | str, tensors: bytes) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + tensors


def spoilt_bytes(draw: random.Random, content: bytes) -> bytes:
    """*content* with bytes changed, cut off, put in or doubled."""
    spoilt = bytearray(content)
    where = draw.randrange(min(len(spoilt), draw.choice([16, 256, 4096, len(spoilt)])))
    kind = draw.randrange(5)
    if kind == 0:
        for _ in range(draw.randrange(1, 9)):
            spoilt[draw.randrange(len(spoilt))] = draw.randrange(256)
    elif kind == 1:
        del spoilt[where:]
    elif kind == 2:
        del spoilt[where : where + draw.randrange(1, 100)]
    elif kind == 3:
        spoilt[where:where] = draw.randbytes(draw.randrange(1, 100))
    else:
        spoilt[where] = draw.randrange(256)
    return bytes(spoilt)


def spoilt_header(draw: random.Random, content: bytes) -> bytes:
    """A safetensors file whose header lies, in well-formed JSON."""
    header, tensors = split(content)
    name = draw.choice(sorted(header))
    entry = header[name]
    kind = draw.randrange(12)
    if kind == 0:
        del header[name]
    elif kind == 1:
        header[draw.choice(["x", "", name + ".", "a" * 10**5, name[1:], "\x1b]0;x\x07", "a\u2028b"])] = header.pop(name)
    elif kind == 2:
        entry[draw.choice(sorted(entry) or ["x"])] = draw.choice(STRANGE)
    elif kind == 3:
        entry["shape"] = [draw.choice(STRANGE) for _ in range(draw.randrange(12))]
    elif kind == 4 and "shape" in entry:
        # Of the same size, so that only the network's own shapes can object.
        shape = entry["shape"]
        entry["shape"] = draw.choice([shape[::-1], [1, *shape], [*shape, 1], shape[1:]])
    elif kind == 5 and "data_offsets" in entry:
        entry["data_offsets"] = [
            max(0, offset + draw.choice([-8, -1, 1, 8, 2**40])) for offset in entry["data_offsets"]
        ]
    elif kind == 6:
        header["__metadata__"] = metadata(draw)
    elif kind == 7:
        return joined(f"{json.dumps(header)[:-1]}, {json.dumps(name)}: {json.dumps(entry)}}}", tensors)
    elif kind == 8:
        words = [
            "[" * 10**5,
            '{"a":' * 10**4,
            "{}",
            "[]",
            "null",
            '{"a": NaN}',
            '{"a": 1e999}',
            '{"\\ud800": 1}',
            "9" * 9999,
        ]
        return joined(draw.choice(words), tensors)
    elif kind == 9:
        return joined("{" + ",".join(f'"{draw.choice("ab")}": 1' for _ in range(20_000)) + "}", tensors)
    elif kind == 10:
        entry["dtype"] = draw.choice(["C64", "I64", "U8", "BOOL", "F64", "F8_E8M0", "F4", "F16"])
    else:
        return draw.choice([2**63, 2**64 - 1, 2**32, 0, 1]).to_bytes(8, "little") + content[8:]
    return joined(header, tensors)


def metadata(draw: random.Random) -> object:
    """What may stand where a file speaks of itself."""
    told = ["[]", "{", "null", '{"configs": 3}', '{"configs": {"unet": 3, "vae": {"scaling_factor": "x"}}}']
    told += ['{"left_out": 3, "leftovers": [[1]], "bytes": "x", "form": []}', "[" * 10**5]
    key = draw.choice(
        ["axbake.source", "modelspec.prediction_type", "modelspec.architecture", "lora_adapter_metadata", "axbake"]
    )
    return draw.choice([*STRANGE, {"a": 1}, {key: draw.choice(told)}, {key: "\x1b[2J" * 50}])


def with_values(draw: random.Random, content: bytes, count: int = 1) -> bytes:
    """A safetensors file some of whose numbers are not finite, or huge."""
    header, tensors = split(content)
    spoilt = bytearray(tensors)
    for name in draw.sample(sorted(set(header) - {"__metadata__"}), count):
        start, end = header[name]["data_offsets"]
        size = {"F16": 2, "BF16": 2, "F32": 4}.get(header[name]["dtype"], 0)
        if size and end > start:
            where = start + size * draw.randrange((end - start) // size)
            spoilt[where : where + size] = {2: b"\x00\x7e", 4: draw.choice([b"\x00\x00\xc0\x7f", b"\x00\x00\x80\xff"])}[
                size
            ]
    return joined(header, bytes(spoilt))


class Payload:
    """Pickled, it asks for *function* to be called."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple:
        return self.function, self.arguments


def zipped(instructions: bytes, *, name: str = "archive/data.pkl", packed: int = zipfile.ZIP_STORED) -> bytes:
    """Instructions in an archive as torch.save writes it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packed) as archive:
        archive.writestr(name, instructions)
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def saved(content: object, *, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def doubling(steps: int, *, of: bytes = b"\x86") -> bytes:
    """Instructions of a tuple that holds itself twice, *steps* times over: its hash takes 2 ** *steps* calls."""
    return b"\x80\x02}(K\x01" + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + of for n in range(steps)) + b"K\x01u."


def hostile_pickle(draw: random.Random, mark: Path) -> bytes:
    """A pickle that runs code, or asks for much, or is nothing whole."""
    touch = f"touch {mark}"
    system, opened = Payload(os.system, touch), Payload(open, str(mark), "w")
    attacks = [system, opened, Payload(exec, f"open({str(mark)!r}, 'w')"), Payload(eval, f"open({str(mark)!r}, 'w')")]
    attacks += [Payload(subprocess.Popen, ["touch", str(mark)]), Payload(pickle.loads, pickle.dumps(system))]
    attacks += [Payload(getattr, "", "format"), Payload(__import__, "os"), Payload(torch.load, str(mark))]
    attacks += [Payload(shutil.rmtree, str(mark)), Payload(Path, "/"), Payload(os.remove, str(mark))]
    kind = draw.randrange(9)
    if kind < 4:
        attack = draw.choice(attacks)
        content: object = draw.choice([attack, {"state_dict": attack}, [attack], {"string_to_param": {"*": attack}}])
        instructions = pickle.dumps(content, draw.choice([0, 1, 2, 3, 4, 5]))
        return draw.choice(
            [instructions, zipped(instructions), saved({"w": torch.ones(2)}, legacy=True) + instructions]
        )
    if kind == 4:
        bombs = [
            b"\x80\x02X\xff\xff\xff\xff" + b"a" * 100 + b".",
            b"\x80\x04\x8d" + (2**62).to_bytes(8, "little") + b"a.",
        ]
        bombs += [
            b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
            b"\x80\x02\x8b\xff\xff\xff\x7f" + b"1" * 100 + b".",
        ]
        bombs += [b"\x80\x02" + b"N0" * 10**5 + b"N.", b"I" + b"9" * 10**5 + b"\n.", b"cos\nsystem\n.", doubling(20)]
        bombs += [b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00ascii\x86R."]
        instructions = draw.choice(bombs)
        return draw.choice([instructions, zipped(instructions), zipped(instructions, packed=zipfile.ZIP_DEFLATED)])
    tensor = draw.choice(
        [
            torch.as_strided(torch.ones(1), (10**6, 10**5), (0, 0)),
            torch.full((2, 8), float("nan")),
            torch.ones(2, 8, dtype=draw.choice([torch.complex64, torch.int64, torch.bool, torch.float64, torch.uint8])),
            torch.ones(2, 8).to_sparse(),
            torch.empty(0),
            torch.full((2, 8), 1e38),
            torch.ones((1,) * 20),
            torch.nn.Parameter(torch.ones(2, 8)),
        ]
    )
    name = draw.choice(["w", "", "a" * 5000, "\x1b[2J", 3, (1, 2), "x\ud800"])
    content = draw.choice(
        [{name: tensor}, {"state_dict": {name: tensor}}, tensor, [tensor], {"string_to_param": {"*": tensor}}]
    )
    if kind == 5:
        return saved(content, legacy=draw.random() < 0.3)
    return spoilt_bytes(draw, saved(draw.choice([content, {"w": torch.ones(2, 8)}]), legacy=draw.random() < 0.3))


YAML = """
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    parameterization: "v"
    linear_start: 0.00085
    unet_config: {target: ldm.modules.diffusionmodules.openaimodel.UNetModel, params: {use_checkpoint: true}}
    cond_stage_config: &text {target: ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder}
    again: *text
"""


def yaml_bomb(draw: random.Random, top: str) -> bytes:
    """YAML whose aliases or merge keys multiply, that is nested, or whose values are of odd types."""
    many, deep = draw.randrange(2, 12), draw.randrange(2, 40)
    lists = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * many)}]\n" for n in range(1, deep))
    merges = "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * many)}], k{n}: 1}}\n" for n in range(1, deep))
    texts = [f"a0: &a0 [x]\n{lists}", f"a0: &a0 {{x: 1}}\n{merges}", f"a: &a [{'*a,' * many}]", "[" * 5000, "- " * 5000]
    texts += [
        "!!python/object/apply:os.system ['touch ran']",
        "a: 2001-99-99",
        "? {a: b}: c\n: d",
        "a: !!int x",
        "<<: 3",
    ]
    texts += [
        "a: !!binary x",
        "1" + ":1" * 50_000,
        "a: " + "9" * 9000,
        "x" * 300_000,
        "\ufeff" + YAML,
        "a: \x00",
        "%TAG ! x\n---",
    ]
    texts += [
        f"{top}: {text}" for text in ("3", "[]", "{}", "null", "[[1]]", "{a: [1, {b: c}]}", "&a {b: *a}", "2020-01-01")
    ]
    texts += [f"model: {{params: {text}}}" for text in ("3", "[]", "{parameterization: [1]}", "{parameterization: {}}")]
    return draw.choice(texts).encode("utf-8", "surrogatepass")


#: Families of rectified flow, whose files are spoilt
FLOW = (
    (tiny_sd3, tiny_sd3.sd3),
    (tiny_flux2, tiny_flux2.klein),
    (tiny_z_image, tiny_z_image.turbo),
    (tiny_lumina, tiny_lumina.lumina),
    (tiny_anima, tiny_anima.preview),
)


@dataclass
class Material:
    """Whole files that are spoilt, made once."""

    checkpoint: bytes
    vae: bytes
    xl: bytes  # a checkpoint of Stable Diffusion XL
    flow: list[bytes]  # checkpoints of families of rectified flow
    tokenizer: bytes  # of a language model
    lora: bytes
    embedding: bytes
    folders: dict[Path, dict[str, bytes]]  # diffusers folders -> their small texts
    recipe: dict
    axmodels: list[bytes]
    bundle: dict[str, dict[str, np.ndarray]]  # name -> arrays, of those files of a bundle that have some


def material(directory: Path) -> Material:
    """A tiny model in every form."""
    networks = tiny.bk_sdm_tiny()
    checkpoint = tiny.save(networks, directory / "whole.safetensors", extra=tiny.leftovers())
    folder = tiny.save_folder(networks, directory / "folder", shard="1MB")
    xl = tiny_xl.save_folder(tiny_xl.sdxl(), directory / "xl")
    flow = tiny_flux2.save_folder(tiny_flux2.klein(), directory / "flow")
    ldm = tiny.single_file_tensors(networks)
    vae = {
        name.removeprefix("first_stage_model."): t for name, t in ldm.items() if name.startswith("first_stage_model.")
    }
    pairs = loras.pairs(tiny.sd1(torch.float32))
    recipe = {
        "checkpoints": {name: {"path": str(checkpoint), "sha256": "0" * 64} for name in "ab"},
        "steps": [{"method": "weighted_sum", "a": "a", "b": "b", "alpha": 0.5}],
    }
    return Material(
        checkpoint.read_bytes(),
        save(vae),
        save(tiny_xl.single_file_tensors(tiny_xl.sdxl())),
        [save(module.single_file_tensors(made())) for module, made in FLOW],
        tiny_flux2.tokenizer().to_str().encode(),
        save(loras.peft(pairs), metadata={"lora_adapter_metadata": '{"unet.lora_alpha": 4}'}),
        save({"emb_params": torch.ones(4, tiny.WIDTH)}),
        {one: small_texts(one) for one in (folder, xl, flow)},
        recipe,
        [path.read_bytes() for path in sorted((ROOT / "tests" / "data").glob("*.axmodel"))],
        {"schedule.npz": schedule_arrays(3), "added_embedding.npz": added_arrays(8)},
    )


def small_texts(folder: Path) -> dict[str, bytes]:
    """Name -> content of the JSON files of *folder*, without the vocabulary."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*.json")
        if path.stat().st_size < 10**5
    }


def schedule_arrays(steps: int) -> dict[str, np.ndarray]:
    """A schedule as `axbake.drawing.schedule` writes it."""
    late = sum(n * (1 + 2 * n) for n in range(1, steps))
    plain = ("input_scale", "picture_scale", "noise_scale")
    return {
        "scheduler": np.array("euler"),
        "timesteps": np.linspace(999, 0, steps, dtype=np.float32),
        **{name: np.ones(steps) for name in plain},
        "time_embedding": np.ones((steps, 8), np.float32),
        "init_noise_sigma": np.array(1.0),
        "coefficients": np.ones((steps, 1 + 2 * steps)),
        "draws_noise": np.zeros(steps, bool),
        "guidance_embedded": np.array(False),
        "late_coefficients": np.ones(late),
    }


def added_arrays(channels: int) -> dict[str, np.ndarray]:
    """An added embedding as bundles of Stable Diffusion XL have it."""
    shapes = {"weight_1": (channels, tiny_xl.POOLED + tiny_xl.SIZES), "bias_1": (channels,)}
    shapes |= {"weight_2": (channels, channels), "bias_2": (channels,)}
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


@dataclass(frozen=True)
class Case:
    """One input, written."""

    kind: str
    reader: str  # in `tests.hostile.reading`
    path: Path
    fenced: bool = False  # whether its reader runs in a process with limited memory, as pickles' does


def _spoilt(draw: random.Random, content: bytes) -> bytes:
    return draw.choice([spoilt_bytes, spoilt_header, spoilt_header, with_values])(draw, content)


def checkpoints(draw: random.Random, whole: Material, place: Path) -> Case:
    path = place / draw.choice(["model.safetensors", "model.ckpt", "model.pt", "model", "mod\x1bel.safetensors"])
    path.write_bytes(_spoilt(draw, whole.checkpoint))
    return Case("checkpoint", draw.choice(["inspect", "inspect", "import"]), path, fenced=True)


def xl_checkpoints(draw: random.Random, whole: Material, place: Path) -> Case:
    path = place / draw.choice(["model.safetensors", "model.ckpt"])
    path.write_bytes(_spoilt(draw, whole.xl))
    return Case("SDXL checkpoint", draw.choice(["inspect", "import XL"]), path, fenced=True)


def flow_checkpoints(draw: random.Random, whole: Material, place: Path) -> Case:
    path = place / draw.choice(["model.safetensors", "model.ckpt"])
    path.write_bytes(_spoilt(draw, draw.choice(whole.flow)))
    return Case("checkpoint of a flow", draw.choice(["inspect", "import flow"]), path, fenced=True)


def tokenizers(draw: random.Random, whole: Material, place: Path) -> Case:
    """A `tokenizer.json` with bytes or values that are odd."""
    path = place / "tokenizer.json"
    told = json.loads(whole.tokenizer)
    within = draw.choice([told, told["model"], told["pre_tokenizer"], told["added_tokens"][0]])
    within[draw.choice(sorted(within))] = draw.choice(STRANGE)
    path.write_bytes(draw.choice([json.dumps(told).encode(), spoilt_bytes(draw, whole.tokenizer)]))
    return Case("tokenizer", "tokenizer", path)


def spoilt_arrays(draw: random.Random, arrays: dict[str, np.ndarray]) -> bytes:
    """An `.npz` file of *arrays*, one of which is missing, of another type, shape or value, or claims to be huge."""
    spoilt, name = dict(arrays), draw.choice(sorted(arrays))
    kind = draw.randrange(6)
    if kind == 0:
        del spoilt[name]
    elif kind == 1:
        odd = [
            np.array("x"),
            np.array(1j),
            np.zeros(0),
            np.array(3),
            np.full((2, 2), np.nan),
            np.array([1, "a"], object),
        ]
        spoilt[name] = draw.choice([*odd, np.zeros((1,) * 20), np.array("2020", "M8"), np.array(b"\x1b[2J")])
    elif kind == 2:
        spoilt[name] = np.ones(spoilt[name].shape, draw.choice(["U8", "c16", "i1", "f2"]))
    elif kind == 3:
        spoilt[name] = draw.choice([spoilt[name][..., None], spoilt[name].ravel()[:1], spoilt[name].T])
    elif kind == 4:
        header = io.BytesIO()
        claim = {"descr": "<f4", "fortran_order": False, "shape": (10 ** draw.choice([6, 9, 12, 18]),)}
        np.lib.format.write_array_header_1_0(header, claim)
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for each in arrays:
                archive.writestr(f"{each}.npy", header.getvalue() + bytes(64))
        return file.getvalue()
    else:
        spoilt["\x1b[2J"] = np.zeros(3)
    file = io.BytesIO()
    draw.choice([np.savez, np.savez_compressed])(file, **spoilt)
    return draw.choice([file.getvalue(), spoilt_bytes(draw, file.getvalue())])


def bundles(draw: random.Random, whole: Material, place: Path) -> Case:
    """A file that the programs of a bundle read, on the board or here."""
    name = draw.choice([*sorted(whole.bundle), "embeddings.json", "manifest.json"])
    odd = draw.choice(STRANGE)
    if name in whole.bundle:
        content = spoilt_arrays(draw, whole.bundle[name])
    elif name == "embeddings.json":
        told = {"embeddings": {"cat": [49408]}, "pad_token_id": 49407, "pad_token_ids": {"text_encoder_2": 0}}
        told[draw.choice(sorted(told))] = draw.choice([odd, {"a": odd}, {"a": [odd]}])
        content = json.dumps(draw.choice([told, odd])).encode()
    else:
        told = {"layout": "axbake", "format": 2, "model": "x", "emulated": True, "files": {}, "models": {}}
        told |= {
            "settings": {},
            "latents": {"channels": 4, "factor": 8},
            "conditioning": {"encoders": ["text_encoder"]},
        }
        told[draw.choice(sorted(told))] = draw.choice([odd, {"a": odd}, {"channels": odd}, {"encoders": odd}])
        content = json.dumps(told).encode()
    if draw.random() < 0.2:
        content = draw.choice([b"", b"[" * 10**5, b"9" * 9999, spoilt_bytes(draw, content)])
    path = place / name
    path.write_bytes(content)
    return Case("file of a bundle", name.partition(".")[0], path)


def vaes(draw: random.Random, whole: Material, place: Path) -> Case:
    path = place / draw.choice(["vae.safetensors", "vae.pt"])
    path.write_bytes(_spoilt(draw, whole.vae))
    return Case("VAE", "vae", path, fenced=True)


def lora_files(draw: random.Random, whole: Material, place: Path) -> Case:
    path = place / "lora.safetensors"
    header, tensors = split(whole.lora)
    kind = draw.randrange(4)
    if kind == 0:
        odd = draw.choice(STRANGE)
        told = {f"unet.{name}": draw.choice([odd, 4]) for name in ("lora_alpha", "alpha_pattern", "use_rslora")}
        patterns = [{"x": odd}, [odd], {"attn2.to_k": 3, "(.*)*$": 1}, {f"m{n}": n for n in range(5000)}]
        told["unet.alpha_pattern"] = draw.choice([odd, *patterns])
        header["__metadata__"] = {"lora_adapter_metadata": json.dumps(told)}
        path.write_bytes(joined(header, tensors))
    elif kind == 1:
        start, end = draw.choice(
            [("bundle_emb.a.", ""), ("base_model.model.", ""), ("", ".default"), ("bundle_emb", ""), ("", "x")]
        )
        renamed = {f"{start}{name}{end}" if name != "__metadata__" else name: entry for name, entry in header.items()}
        path.write_bytes(joined(renamed, tensors))
    else:
        path.write_bytes(_spoilt(draw, whole.lora))
    return Case("LoRA", "lora", path)


def embeddings(draw: random.Random, whole: Material, place: Path) -> Case:
    path = place / draw.choice(["word.safetensors", "word.pt", "word.bin"])
    shape = draw.choice([(2, tiny.WIDTH), (0, 8), (8,), (2, 2, 2), (), (1, 10**6)])
    kinds = [torch.float16, torch.float32, torch.bfloat16, torch.int64, torch.complex64, torch.float64, torch.bool]
    tensor = torch.ones(shape, dtype=draw.choice(kinds))
    names = [
        {"emb_params": tensor},
        {"<x>": tensor},
        {"clip_l": tensor, "clip_g": tensor.clone()},
        {"bundle_emb.a.b": tensor},
    ]
    content = draw.choice(
        [save(draw.choice(names)), _spoilt(draw, whole.embedding), hostile_pickle(draw, place.parent / "ran")]
    )
    path.write_bytes(content)
    return Case("embedding", "embedding", path, fenced=True)


def pickles(draw: random.Random, whole: Material, place: Path) -> Case:
    path = place / draw.choice(["model.ckpt", "model.pt", "model.bin", "model.safetensors"])
    path.write_bytes(hostile_pickle(draw, place.parent / "ran"))
    return Case("pickle", "inspect", path, fenced=True)


def folders(draw: random.Random, whole: Material, place: Path) -> Case:
    """A diffusers folder with a text spoilt, an odd value in a config, or something else than a file where one should be."""
    folder = place / "model"
    of = draw.choice(list(whole.folders))
    shutil.copytree(of, folder, copy_function=os.link)
    texts = whole.folders[of]
    name = draw.choice(sorted(texts))
    path = folder / name
    denoiser = "unet" if (folder / "unet").exists() else "transformer"
    kind = draw.randrange(5)
    path.unlink()
    if kind == 0:
        path.write_bytes(spoilt_bytes(draw, texts[name]))
    elif kind == 1:
        config = json.loads(texts[name])
        config[draw.choice(sorted(config) or ["x"])] = draw.choice(STRANGE)
        path.write_text(json.dumps(config))
    elif kind == 2:
        target = draw.choice(
            ["/dev/zero", "/dev/null", "/etc/passwd", "../../..", path.name, "nowhere", "/proc/self/mem", "."]
        )
        path.symlink_to(target)
    elif kind == 3:
        special(draw, path)
    elif draw.random() < 0.5:
        shutil.rmtree(folder / draw.choice([denoiser, "vae", "text_encoder"]))
        path.parent.mkdir(exist_ok=True)
        (folder / denoiser).exists() or (folder / denoiser).symlink_to(draw.choice(["/", "..", denoiser, "/dev"]))
    else:
        bad = draw.choice(["../x.safetensors", "..", "", "a" * 300, "x\x00", "/etc/passwd", "\ud800"])
        index = {"weight_map": draw.choice([{"w": bad}, [bad], {"w": 3}, {str(n): f"{n}" for n in range(20_000)}])}
        place_of_index = folder / denoiser / "diffusion_pytorch_model.safetensors.index.json"
        place_of_index.unlink(missing_ok=True)
        place_of_index.write_text(json.dumps(index))
    return Case("folder", draw.choice(["inspect", "convert"]), folder, fenced=True)


def special(draw: random.Random, path: Path) -> None:
    """Something at *path* that is not a file."""
    kind = draw.randrange(5)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    elif kind == 2:
        with socket.socket(socket.AF_UNIX) as listening, contextlib.suppress(OSError):  # a path may be too long for it
            listening.bind(str(path))
    elif kind == 3:
        path.symlink_to(path)
    else:
        path.symlink_to(draw.choice(["/dev/zero", "/dev/random", "/dev/tty", "/proc/self/mem", "/dev/stdin"]))


def specials(draw: random.Random, whole: Material, place: Path) -> Case:
    names = [
        "model.safetensors",
        "model.ckpt",
        "recipe.yaml",
        "lora.safetensors",
        "word.pt",
        "a.axmodel",
        "\udcff.safetensors",
    ]
    path = place / draw.choice([*names, "a" * 255 + ".safetensors", "a\x1b[2J.safetensors"])
    with contextlib.suppress(OSError):
        special(draw, path)
    return Case(
        "special file", draw.choice(["inspect", "lora", "embedding", "recipe", "sidecar", "convert"]), path, fenced=True
    )


def sidecars(draw: random.Random, whole: Material, place: Path) -> Case:
    checkpoint = place / "model.safetensors"
    checkpoint.write_bytes(b"")
    text = yaml_bomb(draw, "model") if draw.random() < 0.6 else spoilt_bytes(draw, YAML.encode())
    checkpoint.with_suffix(".yaml").write_bytes(text)
    return Case("sidecar", "sidecar", checkpoint)


def recipes(draw: random.Random, whole: Material, place: Path) -> Case:
    path, recipe = place / "recipe.yaml", json.loads(json.dumps(whole.recipe))
    kind = draw.randrange(5)
    if kind == 0:
        path.write_bytes(yaml_bomb(draw, draw.choice(["checkpoints", "steps"])))
        return Case("recipe", "recipe", path)
    if kind == 1:
        count, before = draw.choice([8, 40, 1000]), "a"
        recipe["steps"] = []
        for number in range(count):
            step = {"name": f"s{number}", "method": "weighted_sum", "a": before, "b": before, "alpha": 0.5}
            recipe["steps"].append(step)
            before = f"s{number}"
    elif kind == 2:
        step = recipe["steps"][0]
        step[draw.choice([*sorted(step), "blocks", "name", "x"])] = draw.choice(STRANGE)
    elif kind == 3:
        recipe["checkpoints"]["a"] = draw.choice(
            [*STRANGE, {"path": draw.choice(["a" * 300, "/dev/zero", "x\x00y", "", "."])}]
        )
        if isinstance(recipe["checkpoints"]["a"], dict):
            recipe["checkpoints"]["a"]["sha256"] = draw.choice(["0" * 10, "0" * 64 + "\n", 3, "../../x"])
            if recipe["checkpoints"]["a"].get("path"):
                recipe["checkpoints"]["a"]["path"] += ".safetensors"
    else:
        path.write_bytes(spoilt_bytes(draw, json.dumps(recipe).encode()))
        return Case("recipe", "recipe", path)
    path.write_text(json.dumps(recipe))
    return Case("recipe", "recipe", path)


def axmodels(draw: random.Random, whole: Material, place: Path) -> Case:
    path = place / draw.choice(["unet.axmodel", "unet.onnx", "unet.safetensors"])
    content = draw.choice(whole.axmodels)
    fields = (
        b"\x08\x0a"
        + b"\x12\x07Pulsar2"
        + draw.choice([b"\x18\x01" * 10**5, b"\x3a\xff\xff\xff\xff\x0f", b"\x72\x02\x0a\x00" * 10**4])
    )
    path.write_bytes(draw.choice([spoilt_bytes(draw, content), content, fields]))
    return Case("axmodel", "inspect", path)


def downloads(draw: random.Random, whole: Material, place: Path) -> Case:
    """What a download really is."""
    starts = [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 4265146304\n",
        b"GGUF" + bytes(99),
    ]
    starts += [
        b'{"error":"Unauthorized","message":"log in"}',
        b"<!doctype html><title>Sign in</title>",
        b"\x1f\x8b" + bytes(50),
    ]
    starts += [
        b"<?xml version='1.0'?><Error><Message>Denied</Message></Error>",
        b"\x89PNG\r\n\x1a\n" + bytes(50),
        b"",
        bytes(5000),
    ]
    starts += [
        json.dumps(odd).encode()
        for odd in (STRANGE[:12], {"message": "\x1b[2J" * 99}, {"weight_map": {}}, {"error": {}})
    ]
    starts += [
        b"{" * 10**5,
        b"[" * 10**5,
        b"<" * 10**5,
        b"not found",
        b"MZ" + bytes(99),
        b"%PDF-1.4",
        b"\x93NUMPY" + bytes(80),
    ]
    starts += [
        zipped(b"x", name="model.safetensors"),
        zipped(b"x", name="\x1b[2J"),
        b"PK\x03\x04",
        struct.pack("<Q", 30) + b"{" * 40,
    ]
    content = draw.choice(starts)
    path = place / draw.choice(
        ["model.safetensors", "model.ckpt", "word.pt", "lora.safetensors", "model.yaml", "model"]
    )
    path.write_bytes(spoilt_bytes(draw, content) if content and draw.random() < 0.4 else content)
    return Case("download", draw.choice(["inspect", "lora", "embedding", "convert"]), path, fenced=True)


def drawn_picture(draw: random.Random) -> tuple[bytes, str]:
    """A small picture of any kind that Pillow writes, and its format."""
    mode = draw.choice(["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK"])
    kind = draw.choice([*["PNG", "JPEG", "WEBP"] * 5, "GIF", "TIFF", "BMP", "EPS", "PDF", "ICO", "TGA", "PPM"])
    size = draw.choice([(8, 8), (1, 1), (3, 200), (640, 480)])
    image, more, file = Image.new(mode, size), {}, io.BytesIO()
    if kind in ("PNG", "JPEG", "WEBP") and draw.random() < 0.6:
        more["exif"] = draw.choice([exif(draw.choice([*range(10), 2**16 - 1])), draw.randbytes(draw.choice([8, 60]))])
    if kind == "PNG" and draw.random() < 0.4:
        texts = PngInfo()
        texts.add_text("parameters", draw.choice(["a" * 10**7, "\x1b[2J", "Steps: 4"]), zip=True)
        more["pnginfo"] = texts
    try:
        image.save(file, kind, **more)
    except (OSError, ValueError, KeyError, TypeError, SyntaxError):  # a mode that the format has not
        file = io.BytesIO()
        image.convert("RGB").save(file, kind)
    return file.getvalue(), kind


def exif(orientation: int) -> bytes:
    found = Image.Exif()
    found[0x0112] = orientation
    return found.tobytes()


def pictures(draw: random.Random, whole: Material, place: Path) -> Case:
    """What a denoiser draws on: `picture`, and `mask` beside it."""
    for name in ("picture", "mask"):
        content, kind = drawn_picture(draw)
        if kind == "PNG" and draw.random() < 0.2:  # a size that the file has not, up to the largest
            content = (
                content[:16]
                + struct.pack(">II", *draw.choices([0, 1, 10**4, 2**31 - 1, 2**32 - 1], k=2))
                + content[24:]
            )
        path = place / name
        path.write_bytes(spoilt_bytes(draw, content) if draw.random() < 0.6 else content)
    return Case("picture", draw.choice(["picture", "canvas"]), place / "picture")


#: What makes inputs -> how many of a hundred are its
MAKERS = {
    checkpoints: 8,
    xl_checkpoints: 5,
    flow_checkpoints: 7,
    tokenizers: 4,
    bundles: 8,
    pickles: 9,
    embeddings: 9,
    lora_files: 9,
    vaes: 5,
    folders: 8,
    recipes: 7,
    sidecars: 5,
    axmodels: 3,
    downloads: 5,
    pictures: 5,
    specials: 3,
}


class Reader:
    """A process that reads one file after the other, and says of each what came of it."""

    def __init__(self, directory: Path, *, fenced: bool) -> None:
        self.directory, self.fenced = directory, fenced
        self.process: subprocess.Popen | None = None  # started when it is needed, since its imports take long

    def _start(self) -> subprocess.Popen:
        """A new process, once it can read."""
        command = [
            sys.executable,
            "-m",
            "tests.hostile.reading",
            str(self.directory),
            *(["--fenced"] if self.fenced else []),
        ]
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        return process

    def read(self, case: Case) -> dict:
        """What `tests.hostile.reading` answers; of a process that ends or takes too long, that."""
        self.process = self.process or self._start()
        assert self.process.stdin and self.process.stdout
        started = time.monotonic()
        self.process.stdin.write(json.dumps([case.reader, str(case.path)]) + "\n")
        self.process.stdin.flush()
        waiting, _, _ = select.select([self.process.stdout], [], [], SECONDS)
        line = self.process.stdout.readline() if waiting else ""
        if line:
            return json.loads(line)
        code = self.close()
        return {
            "outcome": "ended" if waiting else "hang",
            "text": f"code {code}",
            "seconds": time.monotonic() - started,
            "peak": 0,
        }

    def close(self) -> int | None:
        """End the process; the status that it ended with, if there was one."""
        process, self.process = self.process, None
        if process is None:
            return None
        process.kill()
        return process.wait()


def faults(case: Case, answer: dict, mark: Path) -> Iterator[str]:
    """What is wrong with an answer."""
    if answer["outcome"] not in ("read", "refused"):
        yield answer["outcome"]
    if answer["peak"] > MOST_MEMORY:
        yield "above 2 GB"
    if mark.exists() or answer.get("ran"):
        yield "code run"
    if answer["outcome"] == "refused":
        text = answer["text"].replace(str(case.path), case.path.parent.name)
        if case.path.parent.name not in text:
            yield "names no file"
        if len(text) > LONGEST or any(ord(letter) < 32 and letter != "\n" for letter in text):
            yield "long or unprintable"


def attack(inputs: int, seed: int, directory: Path, *, tell: Callable[[str], None] = print) -> Counter:
    """Read *inputs* files; kind and outcome -> how many, and of faults, each told, the same."""
    readers = {fenced: Reader(directory, fenced=fenced) for fenced in (False, True)}
    draw, whole = random.Random(seed), material(directory)
    counts: Counter = Counter()
    mark = directory / "ran"
    try:
        drawn = draw.choices([*MAKERS], [*MAKERS.values()], k=max(0, inputs - len(MAKERS)))
        for number, maker in enumerate([*MAKERS, *drawn][:inputs]):  # of each kind one, however few there are
            place = directory / f"{number:05}"
            place.mkdir()
            case = maker(draw, whole, place)
            answer = readers[case.fenced].read(case)
            counts[case.kind, "inputs"] += 1
            counts[case.kind, answer["outcome"]] += 1
            counts[case.kind, "most ms"] = max(counts[case.kind, "most ms"], int(1000 * answer["seconds"]))
            counts[case.kind, "most MB"] = max(counts[case.kind, "most MB"], answer["peak"] // 10**6)
            wrong = list(faults(case, answer, mark))
            for fault in wrong:
                counts[case.kind, fault] += 1 if fault not in ("hang", "ended", "traceback", "wrong") else 0
                counts["all", "faults"] += 1
                tell(
                    f"{number}: {case.kind}, {case.reader}, {case.path}: {fault}: {answer.get('ran')} {answer['text'][:900]}"
                )
            if not wrong:
                shutil.rmtree(place)
            if mark.exists():
                mark.unlink()
    finally:
        for reader in readers.values():
            reader.close()
    return counts


COLUMNS = (
    "inputs",
    "read",
    "refused",
    "code run",
    "hang",
    "above 2 GB",
    "traceback",
    "ended",
    "wrong",
    "names no file",
    "long or unprintable",
)
COLUMNS += ("most ms", "most MB")


def table(counts: Counter) -> str:
    """*counts* in lines, a kind each."""
    kinds = sorted({kind for kind, _ in counts} - {"all"})
    rows = [["", *COLUMNS], *([kind, *(str(counts[kind, column]) for column in COLUMNS)] for kind in kinds)]
    last = COLUMNS.index("most ms")
    totals = [sum(counts[kind, column] for kind in kinds) for column in COLUMNS[:last]]
    totals += [max(counts[kind, column] for kind in kinds) for column in COLUMNS[last:]]
    rows.append(["all", *map(str, totals)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.hostile.files", description="Attack axbake's readers of files.")
    parser.add_argument("--inputs", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", type=Path, help="where inputs are written; those that did harm stay there")
    arguments = parser.parse_args()
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="hostile."))
    directory.mkdir(parents=True, exist_ok=True)
    counts = attack(arguments.inputs, arguments.seed, directory)
    print(table(counts))
    return 1 if counts["all", "faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
