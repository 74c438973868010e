"""Values that describe a network: how files name its tensors, what its config is, which graphs it becomes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from axbake.errors import AxbakeError
from axbake.networks.card_layers import CardLayers
from axbake.runtime.language import LanguageFormat

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]  # of tensors, by name
#: A tensor's name in the file -> its name in diffusers; several: those that its rows are split into, in equal parts, of which a
#: name that is repeated gets as many; None: not the network's
Rename = Callable[[str], str | tuple[str, ...] | None]
#: torch.nn.Module, which is not imported here
Module = Any

TEXT, DENOISER, ENCODER, DECODER = "text", "denoiser", "encoder", "decoder"
ROLES = (TEXT, DENOISER, ENCODER, DECODER)
GRAPH_WEIGHTS = 880_000_000  # of one graph, at most, where the config does not say


class SliceError(AxbakeError):
    """A denoiser cannot be split into its family's graphs."""


@dataclass(frozen=True)
class Naming:
    """Names under which files hold a network."""

    marker: str  # a tensor that every file of such names has; what stands before it is the prefix of all
    renamer: Callable[[Shapes], Rename]  # from the shapes by name without prefix
    turned: tuple[str, ...] = ()  # matrices, by diffusers' names, that such files hold transposed
    #: From the same -> tensors, by diffusers' names, whose halves such files have the other way round
    exchanged: Callable[[Shapes], tuple[str, ...]] | None = None


@dataclass(frozen=True)
class Files:
    """How checkpoints hold a network."""

    namings: tuple[Naming, ...]
    architecture: Callable[[Shapes], dict]  # config in diffusers' form, read from the renamed tensors' shapes
    folder: str  # of a diffusers model
    prefix: str  # of its names in a single file of diffusers' names, but for those in `beside`
    told: tuple[str, ...] = ()  # entries of a folder's config that shapes do not tell, and that go before the family's
    #: Entries of a folder's config for parts that the network does not have -> values that say so; others are another network
    without: Mapping[str, tuple] = field(default_factory=dict)
    ldm_name: Callable[[dict], Callable[[str], str]] | None = None  # config -> LDM's name of each tensor
    averaged: bool = False  # whether LDM's trainer keeps a moving average of it
    lora_names: Callable[[str], list[str]] | None = None  # a module -> every name that LoRA files give it
    #: Shapes by diffusers' names -> its authors' modules, each with diffusers' that have its rows, in equal parts, as in `Rename`
    lora_modules: Callable[[Shapes], Mapping[str, tuple[str, ...]]] | None = None
    #: Of a part that LoRA files count among another network's modules: that component, and what its modules' names begin with
    lora_within: tuple[str, tuple[str, ...]] | None = None
    lora_apart: tuple[
        str, ...
    ] = ()  # what names begin with that LoRA files count among its modules, and that are such a part's
    merge_block: Callable[[str], str] | None = None  # a tensor -> the block whose share it has in a merge
    #: Tensors that stand elsewhere in such a file -> their prefix
    beside: Mapping[str, str] = field(default_factory=dict)
    embedding: str = ""  # what embedding files call its vectors, of a family with several text encoders
    #: (shapes by diffusers' names, those of all networks of such names in a file) -> whether it is the one that is meant
    meant: Callable[[Shapes, list[Shapes]], bool] | None = None


@dataclass(frozen=True)
class Tensor:
    """Shape and NumPy type of a graph's input."""

    shape: Shape
    dtype: str


@dataclass(frozen=True)
class Interface:
    """What a graph takes and gives, in order."""

    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    latent: Shape = ()  # of the latent that is drawn, for graphs in the middle of a chain, which take none


class Piece(Protocol):
    """One ONNX graph, and one axmodel: `Graph`, or `axbake.networks.unet_slices.UnetSlice`."""

    @property
    def name(self) -> str: ...

    @property
    def inputs(self) -> Callable[..., dict[str, str]]: ...

    @property
    def interface(self) -> Callable[..., Interface]: ...

    @property
    def cut(self) -> Callable[[Module, Interface], Module]: ...


@dataclass(frozen=True)
class Graph:
    """One ONNX graph, and one axmodel."""

    name: str
    inputs: Callable[..., dict[str, str]]  # (the component's columns by name) -> NumPy's type of each input, in order
    interface: Callable[..., Interface]  # (config, the same) -> the same with shapes, and the outputs
    #: The network -> the slice of it that takes and gives that; other slices may be cut of the same network afterwards
    cut: Callable[[Module, Interface], Module]


@dataclass(frozen=True)
class Component:
    """One network of a family. It becomes one graph, or several that run in order."""

    name: str
    role: str  # of ROLES
    files: Files
    build: Callable[[dict], Module]  # config -> the network, with whatever weights the surrounding device context gives
    graphs: tuple[Piece, ...]
    columns: tuple[str, ...]  # of the table, that its graphs depend on
    #: Config -> a network of the same tensors that computes the same with less work, where there is one
    lean: Callable[[dict], Module] | None = None
    #: Config -> channels of a token that a text encoder gives, or a denoiser takes
    width: Callable[[dict], int] | None = None
    #: Config -> channels of the pooled prompt that a text encoder gives, or a denoiser takes
    pooled: Callable[[dict], int] | None = None
    variant: Callable[[dict], str] | None = None  # config -> name of the structure
    #: A denoiser -> the network as (latent, tokens, row) -> prediction, whatever its graphs
    with_rows: Callable[[Module], Module] | None = None
    #: A denoiser's weights, (N,) timesteps, guidance_scale -> (N, C) float32 rows that its graphs take, or that are added to
    rows: Callable[..., Any] | None = None
    #: The same weights -> `axbake.runtime.added.AddedEmbedding`, where prompts add to its rows
    added: Callable[..., Any] | None = None
    #: A text encoder, (1, T) ids -> its hidden states, (1, T, W), and where it is pooled (1, T, P) too; torch's
    states: Callable[..., Any] | None = None
    #: Of a text encoder that is a language model: how it is given prompts
    language: LanguageFormat | None = None
    #: Whether the board's host runs it, from an ONNX graph whose weights are quantised; else it is compiled for the card
    host: bool = False
    #: Of one of the host's that is a language model and can also run on the card, layer by layer: what is built for that. A row's
    #: own family has it only where the row wants it there
    card: CardLayers | None = None
    #: (network, its interface, its config, torch's generator) -> inputs by name, and what the network makes of them, in the
    #: order of its outputs where there are several; torch's
    example: Callable[..., Any] | None = None


# Components are data: a job that is given one depends on what it holds, and on no code of these classes.


def address(component: Component, graph: Piece) -> str:
    """Where a graph's files lie: `unet`, or `unet/down` where the component has several."""
    return component.name if len(component.graphs) == 1 else f"{component.name}/{graph.name}"


def addresses(component: Component) -> list[str]:
    """Of all its graphs, in the order in which they run."""
    return [address(component, graph) for graph in component.graphs]


def columns_of(component: Component, row: Mapping[str, Any]) -> dict[str, Any]:
    """The cells of *row* that the graphs of *component* depend on; a decoder of tiles has the graph of a picture of that size."""
    cells = {name: row[name] for name in component.columns}
    tile = row["vae_tile"] if component.role == DECODER else 0
    return cells | {"height": tile, "width": tile} if tile else cells


def as_files(component: Component) -> Component:
    """*component* for who takes it out of a checkpoint: without its graphs."""
    bare = replace(component, graphs=(), columns=(), with_rows=None, rows=None, added=None)
    return replace(bare, states=None, example=None, lean=None, card=None)
