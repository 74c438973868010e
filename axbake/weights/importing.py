"""Components taken out of checkpoints, with LoRAs and embeddings in them."""

import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from axbake.checkpoints.containers import Container
from axbake.checkpoints.finding import Found, find_network, open_checkpoint, precision_of, read_found_tensor
from axbake.checkpoints.prediction import decide_sampling, gather_evidence, probe_unet
from axbake.checkpoints.writing import tensor_bytes, write_tensors
from axbake.networks.component import Component
from axbake.networks.sampling import Sampling
from axbake.runtime.values import Latents
from axbake.weights.files import Description


def import_component(
    checkpoint: Path,
    loras: Sequence[Path] = (),
    *,
    component: Component,
    family: str,
    latents: Latents,
    weights: Path,
    strengths: Sequence[float] = (),
) -> None:
    """Write a component of *checkpoint*, with *loras* in it, under diffusers' names, one tensor at a time.

    Args:
        checkpoint: safetensors file or diffusers folder; for an autoencoder's halves it may hold nothing else.
        component: how files hold it, and how it is built.
        family: its name; empty for an autoencoder, which is of none.
        latents: that the family draws with.
        loras: files, fused in this order (`axbake.loras.fusing`), and their *strengths*.
        weights: the safetensors file to write; its metadata holds the network's config (`axbake.weights.files`).

    Raises:
        UnreadableCheckpoint, UnknownFamily, TensorMismatch, LoraError
    """
    container, found = _open(checkpoint, component, latents)
    _write(container, found, component, Description(component.name, family, found.config), weights, loras, strengths)


def import_denoiser(
    checkpoint: Path,
    loras: Sequence[Path] = (),
    *,
    component: Component,
    family: str,
    title: str,
    latents: Latents,
    prediction: str,
    prediction_type: str | None,
    sidecar: str,
    sampling: Callable[..., Sampling],
    weights: Path,
    strengths: Sequence[float] = (),
) -> None:
    """The same of a denoiser, whose weights say also how it is run.

    Args:
        title: of the family, for messages.
        prediction: what the table says that it predicts: epsilon or v_prediction; empty: what the file says.
        prediction_type: what the family's predict where the file does not say it.
        sidecar: what the YAML beside the checkpoint says (`axbake.checkpoints.prediction.read_sidecar`).
        sampling: of the family's process.

    Raises:
        UnknownPrediction: nothing says what it predicts. And the errors of `import_component`.
    """
    container, found = _open(checkpoint, component, latents)

    def probe() -> str:
        from axbake.weights import networks

        tensors = {name: read_found_tensor(container, found, name).float() for name in found.origins}
        assert component.width, "a denoiser's"
        network = networks.filled(component.build, found.config, tensors)
        return probe_unet(network, latents=latents, context_width=component.width(found.config))

    decided = decide_sampling(
        gather_evidence(container, sidecar=sidecar),
        title=title,
        prediction_type=prediction_type,
        sampling=functools.partial(sampling, found.config),
        prediction=prediction,
        path=container.path,
        probe=probe,
    )
    said = Description(component.name, family, found.config, decided)
    _write(container, found, component, said, weights, loras, strengths)


def import_text_encoder(
    checkpoint: Path,
    loras: Sequence[Path] = (),
    embeddings: Sequence[Path] = (),
    *,
    component: Component,
    family: str,
    title: str,
    latents: Latents,
    clip_skip: int,
    shortened: bool,
    weights: Path,
    strengths: Sequence[float] = (),
) -> None:
    """The same of a text encoder, with the row's *embeddings*, and without its last layers.

    Without embeddings, and with a clip skip of 1, it is what `import_component` writes, to the byte.

    Args:
        embeddings: files of textual-inversion embeddings; their vectors follow CLIP's in the token table, in this order, in
            the type that the table is stored in.
        title: of the family, for messages.
        clip_skip: the last *clip_skip* - 1 layers are left out; the final norm stays, as in AUTOMATIC1111's
            `modules/sd_hijack_clip.py` (`CLIP_stop_at_last_layers`).
        shortened: whether web UIs' clip skip shortens the family's text encoders.

    Raises:
        EmbeddingError, ClipSkipError, and the errors of `import_component`.
    """
    whole = functools.partial(
        import_component,
        checkpoint,
        loras,
        component=component,
        family=family,
        latents=latents,
        strengths=strengths,
    )
    if not embeddings and clip_skip == 1:
        whole(weights=weights)
        return
    from axbake.weights.text_encoder import change_text_encoder  # here, since a plain one does without

    with tempfile.TemporaryDirectory(dir=weights.parent, prefix=".") as beside:
        plain = Path(beside) / weights.name
        whole(weights=plain)
        change_text_encoder(
            plain,
            list(embeddings),
            encoder=component.files.embedding,
            title=title,
            clip_skip=clip_skip,
            shortened=shortened,
            weights=weights,
        )


def _open(checkpoint: Path, component: Component, latents: Latents) -> tuple[Container, Found]:
    files = component.files
    container = open_checkpoint(checkpoint, files.namings if files.averaged else ())
    return container, find_network(container, component, latents)


def _write(
    container: Container,
    found: Found,
    component: Component,
    description: Description,
    weights: Path,
    loras: Sequence[Path],
    strengths: Sequence[float],
) -> None:
    stored = {new: precision_of(container, origin) for new, origin in found.origins.items()}
    read: Callable[[str], Any] = functools.partial(read_found_tensor, container, found)
    if loras:
        from axbake.loras.fusing import Fusion  # here, since a model without LoRAs does without LyCORIS

        assert component.width, f"{component.name}: LoRAs change it, so its tokens have a width"
        given = list(zip(loras, strengths, strict=True))
        fusion = Fusion(component, found.shapes, given, width=component.width(found.config))
        stored, read = fusion.precisions(stored), fusion.reader(read)
    write_tensors(
        weights,
        {name: (kind, found.shapes[name]) for name, kind in stored.items()},
        lambda name: tensor_bytes(read(name)),
        metadata=description.as_metadata(),
    )
