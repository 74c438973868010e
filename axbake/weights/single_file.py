"""A model as one safetensors file with LDM's names, fp16, as stable-diffusion.cpp and web UIs read it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from axbake.checkpoints.writing import tensor_bytes, write_tensors
from axbake.errors import AxbakeError
from axbake.networks.component import DENOISER, Component
from axbake.weights.files import Description, read_description, read_shapes, read_tensor

TAESD = "AutoencoderTiny"


class SingleFileError(AxbakeError):
    """The model cannot be written as one fp16 file with LDM names."""


def write_single_file(
    weights: Sequence[Path],
    *,
    components: Sequence[Component],
    title: str,
    specification: Mapping[str, str],
    single_file: Path,
) -> None:
    """Write all components as one file, one tensor at a time.

    Distilled UNets are numbered as diffusers' `convert_diffusers_to_original_stable_diffusion.py` does, with gaps; but all their
    tensors have LDM's names, those too that it does not know.

    Args:
        weights: `weights/{component}.safetensors`, in the order of *components*.
        title, specification: of the family.
        single_file: safetensors file to write; its metadata says what the UNet predicts.

    Raises:
        SingleFileError: a weight is too large for fp16, or LDM has no names for a network.
    """
    places = dict(zip((one.name for one in components), weights, strict=True))
    descriptions = {component: read_description(path) for component, path in places.items()}
    _check_names(components, descriptions)
    (denoiser,) = (one.name for one in components if one.role == DENOISER)
    sources: dict[str, tuple[Path, tuple[str, ...]]] = {}  # name in the file -> where its rows are, one after the other
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    transposed: set[str] = set()  # names of matrices that LDM holds so
    for component, path in zip(components, weights, strict=True):
        assert component.files.ldm_name
        rename = component.files.ldm_name(descriptions[component.name].config)
        for name, shape in sorted(read_shapes(path).items()):
            new = rename(name)
            names = (*sources.get(new, (path, ()))[1], name)
            sources[new] = path, names
            if any(name in naming.turned for naming in component.files.namings):
                transposed.add(new)
                shape = shape[::-1]
            height = len(names) * shape[0]
            # LDM's attention in the VAE is made of 1×1 convolutions.
            convolution = (1, 1) if ".attn_1." in new and len(shape) == 2 else ()
            shapes[new] = "F16", (height, *shape[1:], *convolution)

    def read(name: str) -> memoryview:
        path, names = sources[name]
        # The parts of a fused tensor are query, key and value, in this order.
        order = sorted(names, key=lambda part: "qkv".find(part.partition("self_attn.")[2][:1]))
        tensor = (
            torch.cat([read_tensor(path, part) for part in order]) if len(names) > 1 else read_tensor(path, names[0])
        )
        half = (tensor.T.contiguous() if name in transposed else tensor).to(torch.float16)
        if not torch.isfinite(half).all():
            raise SingleFileError(
                f"{name}: {float(tensor.abs().max()):g} is too large for fp16, whose largest is 65504."
            )
        return tensor_bytes(half)

    write_tensors(single_file, shapes, read, metadata=_metadata(descriptions[denoiser], title, specification))


def _check_names(components: Sequence[Component], descriptions: Mapping[str, Description]) -> None:
    nameless = [one.name for one in components if one.files.ldm_name is None]
    if nameless:
        raise SingleFileError(f"{', '.join(nameless)}: LDM has no names for such networks.")
    classes = {description.config.get("_class_name", "") for description in descriptions.values()}
    if TAESD in classes:
        raise SingleFileError(
            f"The VAE is an {TAESD} (TAESD), which LDM has no names for; stable-diffusion.cpp and web UIs take it as a "
            "separate file. Give the row a VAE that is an AutoencoderKL in the column vae."
        )


def _metadata(denoiser: Description, title: str, specification: Mapping[str, str]) -> dict[str, str]:
    sampling = denoiser.sampling
    assert sampling, "a denoiser's weights say how it is run"
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": specification[sampling.prediction_type],
        "modelspec.implementation": "sgm",
        "modelspec.title": f"{title}, written by axbake",
        "modelspec.prediction_type": "v" if sampling.prediction_type == "v_prediction" else "epsilon",
    }
