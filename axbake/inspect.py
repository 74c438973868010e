"""Show what a file is and whether axbake can bake it, from its header only.

A safetensors file of any size takes milliseconds. For a pickle, a separate process reads the names and shapes, which takes
seconds. SHA-256 and AutoV2 (its first ten digits, which Civitai uses) are shown if the workflow has computed them
before; `--hash` computes them, which takes seconds per GB.
"""

import argparse
import functools
import json
import math
import sys
from pathlib import Path
from typing import Any

from axbake.checkpoints.containers import (
    Container,
    added_words,
    files_of,
    form_of,
    scan_folder,
)
from axbake.checkpoints.conversion import open_unconverted
from axbake.checkpoints.finding import averaged_namings, find_family, has_network, read_network, use_average
from axbake.checkpoints.forms import AXMODEL, form_of_file
from axbake.checkpoints.prediction import decide_sampling, gather_evidence, read_sidecar, reasons
from axbake.checkpoints.refusals import check_latents, check_texts
from axbake.digest import file_sha256, files_sha256, remembered_sha256
from axbake.errors import AxbakeError
from axbake.families import FAMILIES
from axbake.families.family import Family
from axbake.families.others import recognise
from axbake.printable import shown
from axbake.users_files import kind_of

MODEL_FACTS = ("made_by", "hardware", "npu_mode")  # of a compiled model


def inspect_checkpoint(path: Path, *, hashing: bool = False) -> dict[str, Any]:
    """What *path* is, for people and programs.

    Args:
        hashing: whether to compute its SHA-256 if it is not remembered.

    Returns:
        `bakeable` and `why` always; the rest as far as the file tells it.
    """
    said: dict[str, Any] = {"path": str(path)}
    if not (kind := kind_of(path)):
        return said | {"bakeable": False, "why": f"{shown(path, 400)}: no such file or folder. Correct the path."}
    try:
        if kind == "a file" and form_of_file(path).name == AXMODEL:
            return said | _compiled(path)
        files = files_of(path)
        said |= {"bytes": sum(file.stat().st_size for file in files), "container": form_of(path)}
        said |= _hashes(files, hashing=hashing)
        if said["container"] == "recipe":
            names = ", ".join(str(file) for file in files[1:])
            return said | {"kind": "a merge recipe", "bakeable": True, "why": f"It merges {names}; inspect those."}
        container = use_average(open_unconverted(path), averaged_namings(one.denoiser for one in FAMILIES.values()))
    except AxbakeError as error:
        return said | {"bakeable": False, "why": str(error)}
    except OSError as error:
        return said | {"bakeable": False, "why": f"{shown(path, 400)}: {error.strerror}. Correct the path."}
    if said["container"] == "diffusers folder" and (words := added_words(scan_folder(path))):
        said["words_not_read"] = words
    said |= {"tensors": len(container.tensors), "stored": _precisions(container.tensors.values())}
    if other := recognise(container.shapes):
        return said | {"kind": other.kind, "bakeable": False, "why": other.sentence}
    faults: list[str] = []
    try:
        family = find_family(container, FAMILIES)
    except AxbakeError as error:
        return said | {"bakeable": False, "why": str(error)}
    said |= {"kind": "a checkpoint", "family": family.name, "title": family.title}
    inside = any(name.startswith("model_ema.") for name in container.tensors)
    said["ema"] = (
        "used as the UNet, since there is no other" if container.averaged else "inside; not used" if inside else None
    )
    said["components"], configs = {}, {}
    no_vae = not any(has_network(container, half) for half in family.autoencoder)
    for component in family.components:
        if component in family.autoencoder and no_vae:
            continue
        try:
            found = read_network(container, component)
            held = {origin.name for origin in found.origins.values()}  # one tensor may hold several: attn.qkv
            stored = [container.tensors[name] for name in sorted(held)]
            said["components"][component.name] = {
                "names": f"{found.prefix}…",
                "parameters": sum(math.prod(shape) for shape in found.shapes.values()),
                "stored": _precisions(stored),
            }
            if component == family.denoiser:
                said["variant"] = component.variant(found.config) if component.variant else family.title
                said |= _prediction(container, family, found.config, path, faults)
            if component in family.text_encoders:
                sizes = {"width": "hidden_size", "layers": "num_hidden_layers"}  # a conditioner says neither
                said["components"][component.name] |= {
                    name: found.config[entry] for name, entry in sizes.items() if entry in found.config
                }
            configs[component.name] = found.config
            check_latents(path, found.config, family.latents)
        except AxbakeError as error:
            faults.append(str(error))
    if not faults:
        try:
            check_texts(path, family.components, configs, family.conditioning)
        except AxbakeError as error:
            faults.append(str(error))
    if faults:
        return said | {"bakeable": False, "why": " ".join(dict.fromkeys(faults))}
    how = "give its path in the column checkpoint of config/models.tsv"
    if no_vae:
        how += ", and a VAE, which this file lacks, in the column vae"
    if said["container"] != "safetensors":
        how += "; the first bake converts it to safetensors"
    return said | {"bakeable": True, "why": f"{how[:1].upper()}{how[1:]}. The import compares every tensor's shape."}


def _compiled(path: Path) -> dict[str, Any]:
    """What a compiled model says of itself."""
    from axbake.toolchain.axmodel import read_axmodel  # here, since who looks at checkpoints does without onnx

    model = read_axmodel(path)
    chip = (
        f"{model.hardware or 'a chip that it does not name'}, {model.npu_mode or 'an NPU mode that it does not name'}"
    )
    return {
        "bytes": path.stat().st_size,
        "container": AXMODEL,
        "kind": "a compiled model",
        "made_by": " ".join(filter(None, [model.producer, model.version, model.commit])),
        "hardware": model.hardware,
        "npu_mode": model.npu_mode,
        "inputs": {name: str(value) for name, value in model.inputs.items()},
        "outputs": {name: str(value) for name, value in model.outputs.items()},
        "bakeable": False,
        "why": f"It is already compiled, for {chip}. To bake, give the checkpoint that it was made from.",
    }


def _prediction(container: Container, family: Family, config: dict, path: Path, faults: list[str]) -> dict[str, Any]:
    """What the UNet predicts, or the fault that it is not said."""
    evidence = gather_evidence(container, sidecar=read_sidecar(path))
    title, usual = family.title, family.process.prediction_type
    why = reasons(evidence, title=title, prediction_type=usual, prediction="")
    run = functools.partial(family.process.sampling, config)
    try:
        sampling = decide_sampling(
            evidence, title=title, prediction_type=usual, sampling=run, prediction="", path=path, probe=None
        )
    except AxbakeError as error:
        faults.append(str(error))
        return {"prediction_type": None, "prediction_why": evidence.lines()}
    return {
        "prediction_type": sampling.prediction_type,
        "zero_terminal_snr": sampling.zero_terminal_snr,
        "prediction_why": why,
        "steps": sampling.steps,
        "guidance_embedded": sampling.guidance_embedded,
    }


def _precisions(tensors: Any) -> dict[str, int]:
    """Bytes by type of value."""
    found: dict[str, int] = {}
    for stored in tensors:
        found[stored.dtype] = found.get(stored.dtype, 0) + stored.end - stored.start
    return dict(sorted(found.items()))


def _hashes(files: list[Path], *, hashing: bool) -> dict[str, str]:
    known = [file_sha256(file) if hashing else remembered_sha256(file) for file in files]
    if not all(known):
        return {}
    sha256 = files_sha256(files)
    return {"sha256": sha256, "autov2": sha256[:10]}


def lines(said: dict[str, Any]) -> list[str]:
    """The same as text, one fact per line."""
    facts = [f"{said['bytes'] / 1e6:,.0f} MB"] if "bytes" in said else []
    facts += [said["container"]] if "container" in said else []
    title = f"{said.get('title', '')}, {said['variant']}" if "variant" in said else said.get("title", "")
    rows = [("file", ": ".join(filter(None, [said["path"], ", ".join(facts)])))]
    rows += [("is", f"{said['kind']}{': ' + title if title else ''}")] if "kind" in said else []
    rows += [(name.replace("_", " "), said[name] or "not said") for name in MODEL_FACTS if name in said]
    for name in ("inputs", "outputs"):
        rows += (
            [(name, "; ".join(f"{tensor}: {value}" for tensor, value in said[name].items()))] if name in said else []
        )
    if "prediction_why" in said:
        rows.append(("predicts", f"{said['prediction_type'] or 'not said'}: {'; '.join(said['prediction_why'])}"))
    rows += [("steps", f"{said['steps']}, without guidance")] if said.get("steps") else []
    rows += [("guidance", "is an input of the UNet; use the scheduler lcm")] if said.get("guidance_embedded") else []
    for component, part in said.get("components", {}).items():
        size = f"{part['parameters'] / 1e6:,.1f} M parameters in {', '.join(part['stored'])}"
        more = f", {part['layers']} layers of {part['width']}" if "layers" in part else ""
        rows.append((component, f"{size}{more}; {part['names']}"))
    rows += [("EMA", said["ema"])] if said.get("ema") else []
    if "words_not_read" in said:
        rows.append(("not read", f"words that its tokenizer adds to CLIP's: {', '.join(said['words_not_read'])}"))
    rows += [(name, said[name]) for name in ("sha256", "autov2") if name in said]
    rows.append(("bake", f"{'yes' if said['bakeable'] else 'no'}. {said['why']}"))
    return [f"{name:13} {shown(text, 4000)}" for name, text in rows]


def arguments(parser: argparse.ArgumentParser) -> None:
    """What `axbake inspect` takes."""
    parser.description = __doc__
    parser.add_argument("file", type=Path, help="a file or a diffusers folder")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument("--hash", action="store_true", help="compute SHA-256 and AutoV2 if they are not stored yet")


def run(options: argparse.Namespace) -> int:
    """Exit status: 0 if it can be baked, 1 if it cannot."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a path may be in any encoding
    said = inspect_checkpoint(options.file, hashing=options.hash)
    print(json.dumps(said, indent=1, ensure_ascii=False) if options.json else "\n".join(lines(said)))
    return 0 if said["bakeable"] else 1
