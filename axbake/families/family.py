"""What a model family is: the whole of what differs between families, as values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

from axbake.networks.component import DECODER, DENOISER, ENCODER, Component, Piece, Shapes, as_files
from axbake.networks.sampling import Sampling
from axbake.runtime.values import Conditioning, Latents


class Divisible(Protocol):
    """The structure of a network that is cut into graphs, such as `axbake.networks.unet_slices.Structure`."""

    def slices(self, most: int) -> tuple[Piece, ...]:
        """As few graphs as have at most *most* weights each."""


@dataclass(frozen=True)
class Process:
    """How a prediction becomes a step."""

    prediction_type: str | None  # what a denoiser predicts where the file does not say; None: there are both kinds
    schedulers: tuple[str, ...]  # that a row may name
    sampling: Callable[..., Sampling]  # (config, prediction_type, zero_terminal_snr=) -> how the denoiser is run
    #: What a denoiser draws on (columns `CANVAS`, with a space between) -> function that gives diffusers' pipeline, which draws
    #: the reference
    pipelines: Mapping[str, Callable[..., Any]]
    sized: bool = False  # whether its schedules depend on the picture's size
    truncated: bool = False  # whether guidance may be left out from some step on (column cfg_trunc_ratio)


@dataclass(frozen=True)
class Family:
    """One model family.

    Its file in `axbake/families` calls it FAMILY, and so it is found.
    """

    name: str
    title: str
    fits: Callable[[Shapes], bool]  # whether a denoiser is this family's, by its shapes under diffusers' names
    components: tuple[Component, ...]
    latents: Latents
    conditioning: Conditioning
    process: Process
    structure: Divisible | None = None  # of a denoiser that is cut into as many graphs as its size asks for
    clip_skip: bool = False  # whether web UIs' clip skip shortens its text encoders
    pixels: int = 512  # a side of the pictures that most models of it were trained with
    cells: Mapping[str, str] = field(
        default_factory=dict
    )  # column -> what a new row needs, where the default does not fit
    resources: tuple[str, ...] = ()  # folders of data that its networks' configs are made from
    #: Prediction -> architecture as Stability's model spec names it; empty: it is not written as one file
    specification: Mapping[str, str] = field(default_factory=dict)

    def component(self, name: str) -> Component:
        """The component called *name*."""
        return next(component for component in self.components if component.name == name)

    def of_role(self, role: str) -> Component:
        """The one component of *role*; of text encoders there may be several (`text_encoders`)."""
        (component,) = (component for component in self.components if component.role == role)
        return component

    def divided(self, most: int) -> "Family":
        """The family with as few graphs of its denoiser as have at most *most* weights each, if it can be cut.

        Raises:
            SliceError: that is too few for one of its modules.
        """
        graphs = self.structure.slices(most) if self.structure else self.denoiser.graphs
        if graphs == self.denoiser.graphs:
            return self
        denoiser = replace(self.denoiser, graphs=graphs)
        return replace(self, components=tuple(denoiser if one.role == DENOISER else one for one in self.components))

    @cached_property
    def as_files(self) -> dict[str, Component]:
        """The components by name, for who takes them out of a checkpoint."""
        return {component.name: as_files(component) for component in self.components}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the components."""
        return tuple(component.name for component in self.components)

    @property
    def text_encoders(self) -> tuple[Component, ...]:
        """In the order in which their tokens are joined."""
        return tuple(self.component(name) for name in self.conditioning.encoders)

    @property
    def clips(self) -> tuple[Component, ...]:
        """Those of them that are CLIPs, and not language models and what takes their states."""
        return tuple(one for one in self.text_encoders if not one.host)

    @property
    def denoiser(self) -> Component:
        return self.of_role(DENOISER)

    @property
    def autoencoder(self) -> tuple[Component, Component]:
        """Encoder and decoder."""
        return self.of_role(ENCODER), self.of_role(DECODER)
