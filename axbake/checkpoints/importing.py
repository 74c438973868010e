"""Checkpoints: made one safetensors file of whatever form they come in, and taken apart into components."""

import functools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from axbake.checkpoints.containers import (
    CONVERTED,
    Container,
    Stored,
    form_of,
    open_safetensors,
    place_of,
    read_configs,
    scan_folder,
)
from axbake.checkpoints.parts import Part, find_family, find_part, open_checkpoint, precision_of, read_part_tensor
from axbake.checkpoints.prediction import decide_sampling, gather_evidence, probe_unet
from axbake.checkpoints.refusals import TensorMismatch, UnknownFamily
from axbake.checkpoints.weights import Description, Sampling, tensor_bytes, write_tensors
from axbake.families import VAE, Family
from axbake.families.others import AUTOENCODERS, recognise


def import_checkpoint(
    checkpoint: Path,
    loras: Sequence[Path] = (),
    *,
    component: str,
    weights: Path,
    strengths: Sequence[float] = (),
    prediction: str = "",
    sidecar: str = "",
) -> None:
    """Write *component* of *checkpoint*, with *loras* in it, under diffusers' names, one tensor at a time.

    Args:
        checkpoint: safetensors file or diffusers folder; for an autoencoder's halves it may hold nothing else.
        component: text_encoder, unet, vae_encoder or vae_decoder.
        loras: files, fused in this order (`axbake.loras.fusing`), and their *strengths*.
        weights: the safetensors file to write; its metadata holds the network's config (`axbake.checkpoints.weights`).
        prediction: what the table says that the UNet predicts: epsilon or v_prediction; empty: what the file says.
        sidecar: what the YAML beside the checkpoint says (`axbake.checkpoints.prediction.read_sidecar`).

    Raises:
        UnreadableCheckpoint, UnknownFamily, TensorMismatch, UnknownPrediction, LoraError
    """
    container = open_checkpoint(checkpoint)
    family = None if component in VAE else find_family(container)
    if component in VAE:
        check_vae(container)
    part = find_part(container, family, component)
    if component == "unet":
        check_widths(container.path, find_part(container, family, "text_encoder"), part)
    sampling = None
    if family and component == "unet":
        sampling = sampling_of(container, family, part, prediction, sidecar, probing=True)
    stored = {new: precision_of(container, source) for new, source in part.sources.items()}
    read: Callable[[str], Any] = functools.partial(read_part_tensor, container, part)
    if loras:
        from axbake.loras.fusing import Fusion  # here, since a model without LoRAs does without LyCORIS

        given = list(zip(loras, strengths, strict=True))
        fusion = Fusion(component, part.shapes, given, width=token_width(part.config))
        stored, read = fusion.precisions(stored), fusion.reader(read)
    write_tensors(
        weights,
        {name: (kind, part.shapes[name]) for name, kind in stored.items()},
        lambda name: tensor_bytes(read(name)),
        metadata=Description(component, family.name if family else "", part.config, sampling).as_metadata(),
    )


def check_vae(container: Container) -> None:
    """Refuse files whose autoencoder is not one of Stable Diffusion 1.x or 2.x, though its shapes are (SDXL's).

    Raises:
        UnknownFamily
    """
    other = recognise(container.shapes)
    if other and other not in AUTOENCODERS:
        raise UnknownFamily(
            f"{container.path}: this is {other.kind}, wanted a VAE or a checkpoint of Stable Diffusion."
        )


def sampling_of(
    container: Container, family: Family, unet: Part, prediction: str, sidecar: str, *, probing: bool
) -> Sampling:
    """How a checkpoint's UNet is run (`prediction.decide_sampling`); *probing* runs it once where nothing else decides."""

    def probe() -> str:
        from axbake.checkpoints import components

        tensors = {name: read_part_tensor(container, unet, name).float() for name in unet.sources}
        return probe_unet(
            components.filled("unet", unet.config, tensors), context_width=unet.config["cross_attention_dim"]
        )

    return decide_sampling(
        gather_evidence(container, sidecar=sidecar),
        family=family,
        config=unet.config,
        prediction=prediction,
        path=container.path,
        probe=probe if probing else None,
    )


def convert_checkpoint(source: list[Path], *, checkpoint: Path) -> None:
    """Make one safetensors file, with the names as they are, of a checkpoint in any other form; of a recipe, what it merges.

    Args:
        source: files of the checkpoint, as `axbake.checkpoints.containers.files_of` lists them.
        checkpoint: safetensors file to write. Its metadata holds a folder's configs, and what was not taken over.

    Raises:
        UnreadableCheckpoint, UnsafeCheckpoint
    """
    from axbake.checkpoints.pickles import convert_pickle

    place = place_of(source)
    form = form_of(place)
    if form == "recipe":
        from axbake.checkpoints.merging import merge_checkpoints  # which reads checkpoints with this module

        merge_checkpoints(place, checkpoint=checkpoint)
        return
    said: dict[str, Any] = {"form": form, "bytes": sum(path.stat().st_size for path in source)}
    tensors: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    with tempfile.TemporaryDirectory(dir=checkpoint.parent) as directory:
        made = Path(directory) / "pickle.safetensors"
        if form == "pickle":
            answer = convert_pickle(place, made)
            said |= {name: answer[name] for name in ("left_out", "leftovers")}
            tensors |= open_safetensors(made).tensors
        elif form == "diffusers folder":
            folder = scan_folder(place)
            for name, files in folder.weights.items():
                for number, file in enumerate(files):
                    opened = file
                    if form_of(file) == "pickle":
                        opened = Path(directory) / f"{name}.{number}.safetensors"
                        said.setdefault("leftovers", []).extend(convert_pickle(file, opened)["leftovers"])
                    tensors |= {
                        f"{name}.{tensor}": stored for tensor, stored in open_safetensors(opened).tensors.items()
                    }
            said["configs"] = read_configs(folder)
        else:
            container = open_safetensors(place)
            tensors |= container.tensors
            metadata |= container.metadata
        view = Container(place, form, tensors, {})
        write_tensors(
            checkpoint,
            {name: (stored.dtype, stored.shape) for name, stored in tensors.items()},
            view.content,
            metadata=metadata | {CONVERTED: json.dumps(said, sort_keys=True)},
        )


def token_width(config: Mapping[str, Any]) -> int:
    """Channels of a token's embedding, which a text encoder gives and a UNet takes."""
    return config["cross_attention_dim"] if "cross_attention_dim" in config else config["hidden_size"]


def check_widths(path: Path, text_encoder: Part, unet: Part) -> None:
    """Refuse a UNet and a text encoder that do not speak of tokens of the same width."""
    told, heard = token_width(text_encoder.config), token_width(unet.config)
    if told != heard:
        raise TensorMismatch(
            f"{path}: its text encoder gives {told} channels a token, its UNet takes {heard}. They are not of one model."
        )
