"""What a model family is: how its checkpoints are laid out and what its networks are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]  # of tensors, by name
COMPONENTS = ("text_encoder", "unet", "vae_encoder", "vae_decoder")


@dataclass(frozen=True)
class Component:
    """One network of a family, and where it lies in a single-file checkpoint of LDM names."""

    prefix: str  # of its tensors' names in the checkpoint
    renamer: Callable[[Shapes], Callable[[str], str | None]]  # LDM name without prefix -> diffusers name; None: not its
    architecture: Callable[[Shapes], dict]  # config in diffusers' form, read from the renamed tensors' shapes


@dataclass(frozen=True)
class Family:
    """One model family."""

    name: str
    title: str
    marks: tuple[str, ...]  # tensors that every checkpoint of it has, and no other family's has all of
    components: Mapping[str, Component]
    scaling_factor: float  # of latents: standard deviation 1 after multiplication
    prediction_type: str  # diffusers' name of what the UNet was trained to predict
