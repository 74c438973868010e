"""What a model family is: how its checkpoints are laid out and what its networks are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]  # of tensors, by name
COMPONENTS = ("text_encoder", "unet", "vae_encoder", "vae_decoder")
#: A tensor's name in the file -> its name in diffusers; several: those that its rows are parted among; None: not the network's
Rename = Callable[[str], str | tuple[str, ...] | None]


@dataclass(frozen=True)
class Layout:
    """Names under which files hold a network."""

    marker: (
        str  # a tensor that the network has in every file of this layout; what stands before it is the prefix of all
    )
    renamer: Callable[[Shapes], Rename]  # from the shapes by name without prefix


@dataclass(frozen=True)
class Component:
    """One network of a family."""

    layouts: tuple[Layout, ...]
    architecture: Callable[[Shapes], dict]  # config in diffusers' form, read from the renamed tensors' shapes
    folder: str  # of a diffusers model


@dataclass(frozen=True)
class Family:
    """One model family."""

    name: str
    title: str
    fits: Callable[[Shapes], bool]  # whether a UNet, by its tensors' shapes under diffusers' names, is this family's
    components: Mapping[str, Component]  # text_encoder and unet; autoencoders are of no family
    clip_skip: bool  # whether web UIs' clip skip shortens its text encoder
    prediction_type: str | None  # what a UNet predicts where the file does not say; None: there are both kinds
