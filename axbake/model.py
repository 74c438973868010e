"""A model of the table: its row, its own config, its family and its sources, and what its jobs are given of all that."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from axbake.advice import advise
from axbake.checkpoints.containers import Container
from axbake.checkpoints.finding import averaged_namings, find_family, use_average
from axbake.drawing.parts import Drawn, Part
from axbake.emulator.config import Pulsar2ConfigError
from axbake.errors import AxbakeError
from axbake.families import FAMILIES
from axbake.families.family import Family
from axbake.fit import Configs, check_fit, check_samples, configs_of
from axbake.jobs.values import encode
from axbake.loras.files import lora_facts
from axbake.loras.names import own_names
from axbake.loras.rows import Lora
from axbake.networks.card_layers import files_on_card
from axbake.networks.component import DENOISER, TEXT, Component, addresses, columns_of
from axbake.printable import error_line
from axbake.quality.assignment import WIDE
from axbake.quality.recipe import RecipeError, read_recipe, recipe_path
from axbake.runtime.language import LanguageFormat
from axbake.runtime.values import CANVAS, Picture
from axbake.sources import CHECKPOINT, VAE, Sources, read_header
from axbake.table import checkpoint_path, loras_sha256
from axbake.toolchain.build_config import Build, build_config, overridden, read_own_fields

RECIPE, RECIPE_FILES = "recipe", (".yaml", ".yml")  # what `precision` says where a component has a recipe
QUALITY = 1.0  # dB, of a recipe where the row says none
PICTURE = tuple(name for name in Picture.__dataclass_fields__ if name != "strength")  # columns


HOST = "host"  # where a language model runs: of `text_encoder_place`
#: With fewer parameters one thread is as fast as two (docs/numbers.md); published models have 500 million and more
SMALL = 50_000_000
#: What was made of a graph and the user's fields: a thousand rows ask for few different ones
_CONFIGS: dict[str, dict[str, Any]] = {}


class MissingFamily(AxbakeError):
    """The table does not give the family of a checkpoint that is not downloaded yet."""


class WrongFamily(AxbakeError):
    """A checkpoint has a different family than the table says."""


class NotOnCard(AxbakeError):
    """A text encoder is wanted on the card, but Pulsar2 is not documented to build it."""


class SeveralGraphs(AxbakeError):
    """A component is requested as one model, but it has several graphs."""


class NoComponent(AxbakeError):
    """A model has no such component."""


class Model:
    """One row of the table."""

    def __init__(self, row: dict, config: dict) -> None:
        """
        Args:
            row: typed, defaults filled in (`axbake.table.read_models`).
            config: the project's with the row's own entries over it.
        """
        self.row, self.config = row, config
        self.name: str = row["model"]
        self.sources = Sources(row, allow_unpinned=config["fetch"]["allow_unpinned"])
        self._fits = False

    @cached_property
    def family(self) -> Family:
        """Of its checkpoint.

        Raises:
            MissingFamily, WrongFamily, MissingCheckpoint, and errors of who reads the checkpoint's header.
        """
        said = self.row["family"]
        if self.sources.is_remote(CHECKPOINT):
            if not said:
                raise MissingFamily(
                    f"{self.name}: column family: empty, wanted one of {', '.join(FAMILIES)}, because the checkpoint "
                    f"is not downloaded yet. `axbake add {self.row['checkpoint']}` downloads it and fills in the "
                    "column."
                )
            return self._placed(said)
        found = family_of(checkpoint_path(self.row))
        if said and found.name != said and not _is_without(FAMILIES[said], found):
            raise WrongFamily(
                f"{self.name}: column family: {said}, but {self.row[CHECKPOINT]} is of {found.name} ({found.title}). Correct the"
                " column, or leave it empty."
            )
        return self._placed(said or found.name)

    def _placed(self, name: str) -> Family:
        """The family called *name*, its language model where the row, or else config, wants it.

        Raises:
            NotOnCard
        """
        family, told = divided_family(name, self.config), self.row["text_encoder_place"]
        languages = [one for one in family.components if one.language]
        place = told or self.config["text_encoder_place"]
        if place == HOST or (not languages and not told):  # config speaks of language models alone
            return divided_family(name, self.config, host=True)
        if not any(one.card for one in languages):
            raise NotOnCard(
                f"{self.name}: text_encoder_place: card: {family.title} has {_in_words(languages)}; Pulsar2's llm_build is"
                f" documented for language models such as Qwen3, and axbake uses it for {', '.join(_ON_CARD)}. Leave the"
                " column empty, or write host."
            )
        return family

    @cached_property
    def parameters(self) -> int | None:
        """How many its checkpoint has; None where that cannot be read or is not fetched yet."""
        try:
            return None if self.sources.is_remote(CHECKPOINT) else parameters_of(checkpoint_path(self.row))
        except AxbakeError:
            return None

    @property
    def is_small(self) -> bool:
        """Whether more threads would only wait for each other; no, where its size is not known."""
        return self.parameters is not None and self.parameters < SMALL

    def component(self, name: str) -> Component:
        """The component called *name*.

        Raises:
            NoComponent
        """
        if name not in self.family.names:
            raise NoComponent(
                f"{self.name}: no component {name}; {self.family.title} has {', '.join(self.family.names)}."
            )
        return self.family.component(name)

    def of_address(self, graph: str) -> tuple[Component, int]:
        """The component that has the graph at the address *graph*, and which of its graphs that is.

        Raises:
            SeveralGraphs, NoComponent
        """
        component = self.component(graph.partition("/")[0])
        known = addresses(component)
        if graph not in known:
            files = ", ".join(f"results/{self.name}/{one}.axmodel" for one in known)
            raise SeveralGraphs(
                f"results/{self.name}/{graph}.axmodel: the {component.name} of {self.family.title} has {len(known)}"
                f" graph{'s' if len(known) > 1 else ''}; ask for {files}."
            )
        return component, known.index(graph)

    @property
    def graphs(self) -> list[str]:
        """Addresses of all graphs, component after component."""
        return [graph for component in self.family.components for graph in addresses(component)]

    @property
    def on_card(self) -> list[Component]:
        """Its language models that run on the card, layer by layer."""
        return [component for component in self.family.components if component.card]

    @property
    def built(self) -> list[str]:
        """What there is a record of how it was made, in order: addresses of graphs, and names of language models on the card."""
        return [
            name
            for component in self.family.components
            for name in ([component.name] if component.card else addresses(component))
        ]

    @property
    def compiled(self) -> dict[str, str]:
        """Address of each graph that is compiled -> its component's role."""
        components = [component for component in self.family.components if not component.host]
        return {graph: component.role for component in components for graph in addresses(component)}

    @property
    def roles(self) -> dict[str, str]:
        """Address of each graph -> its component's role."""
        return {graph: component.role for component in self.family.components for graph in addresses(component)}

    @property
    def tokenizers(self) -> list[str]:
        """Paths of the tokenizers of its text encoders that are language models.

        Raises:
            MissingTokenizer
        """
        return self.sources.tokenizers(self.formats)

    @property
    def formats(self) -> dict[str, LanguageFormat]:
        """How each of its text encoders that are language models is given prompts."""
        chunks = self.row["prompt_chunks"]
        return {one.name: one.language.of(chunks) for one in self.family.text_encoders if one.language}

    @property
    def builds(self) -> dict[str, Any]:
        """Function that builds each component's network."""
        return {component.name: component.build for component in self.family.components}

    @property
    def states(self) -> dict[str, Any]:
        """Function that gives each text encoder's states."""
        return {component.name: component.states for component in self.family.text_encoders}

    @property
    def picture(self) -> Picture:
        """How its reference is drawn."""
        return Picture(**{name: self.row[name] for name in PICTURE})

    @property
    def drawn(self) -> Drawn:
        """Which graphs it draws with."""
        parts = tuple(
            Part(one.name, one.role, len(one.graphs), len(files_on_card(one.name, one.card)) if one.card else 0)
            for one in self.family.components
        )
        return Drawn(parts, self.family.conditioning)

    @property
    def canvas(self) -> list[str]:
        """Paths of what it draws on: picture and mask for inpainting, a picture for instructions, else nothing."""
        return [self.row[name] for name in self.drawn_on]

    @property
    def drawn_on(self) -> tuple[str, ...]:
        """Which of the columns `CANVAS` its row fills in."""
        return tuple(name for name in CANVAS if self.row[name])

    @property
    def conditions(self) -> dict[str, Any]:
        """What only some denoisers are given: sizes, and the image guidance scale, if its row has them."""
        return {name: self.row[name] for name in ("sizes", "image_guidance_scale") if self.row[name]}

    @property
    def truncation(self) -> dict[str, float]:
        """Which share of the steps guidance is for, if its row says so."""
        ratio = self.row["cfg_trunc_ratio"]
        return {} if ratio is None else {"cfg_trunc_ratio": ratio}

    @property
    def tile(self) -> dict[str, int]:
        """Side of its VAE decoder's tiles, in latent pixels, if the decoder draws tiles."""
        tile = self.row["vae_tile"]
        return {"tile": tile // self.family.latents.factor} if tile else {}

    def columns(self, component: Component) -> dict[str, Any]:
        """The row's cells that the graphs of *component* depend on."""
        return columns_of(component, self.row)

    def entry(self, place: str) -> Any:
        """Value of its config at *place*, separated by slashes."""
        value: Any = self.config
        for name in place.split("/"):
            value = value[name]
        return value

    def entry_name(self, place: str, component: Component) -> str:
        """What its config calls *component* at *place*: by its name, or else by its role's."""
        return component.name if component.name in self.entry(place) else component.role

    def entry_of(self, place: str, component: Component) -> Any:
        """The value there of *component*."""
        return self.entry(place)[self.entry_name(place, component)]

    def entries_of(self, place: str) -> dict[str, Any]:
        """The same of all components."""
        return {component.name: self.entry_of(place, component) for component in self.family.components}

    def build(self, component: Component, number: int) -> Build:
        """What of Pulsar2's config of its graph *number* the user does not set."""
        piece = component.graphs[number]
        return Build(
            name=addresses(component)[number].rpartition("/")[2],
            component=self.entry_name("pulsar2", component),
            role=component.role,
            inputs=piece.inputs(**self.columns(component)),
            precision=WIDE if self.has_recipe(component) else self.entry_of("precision", component),
            target_hardware=self.config["target_hardware"],
            npu_mode=self.config["npu_mode"],
        )

    def has_recipe(self, component: Component) -> bool:
        """Whether the precision of *component* is found layer by layer, or read from a file that says it so.

        Raises:
            RecipeError: config wants one for a component that is no denoiser.
        """
        said = self.entry_of("precision", component)
        if said != RECIPE and not said.endswith(RECIPE_FILES):
            return component.role == DENOISER and bool(self.row["quality"])
        if component.role != DENOISER:
            raise RecipeError(
                f"{self.name}: precision/{self.entry_name('precision', component)}: {said}, but only denoisers have recipes;"
                " wanted U8, U16 or S16."
            )
        return True

    def recipe_file(self, component: Component) -> str:
        """Path of the recipe that the user brings for *component*; empty if axbake finds it, or it has none."""
        said = self.entry_of("precision", component)
        return said if said.endswith(RECIPE_FILES) and self.has_recipe(component) else ""

    def wide_config(self, component: Component, number: int) -> dict[str, Any]:
        """The same as `pulsar2_config` gives, with all layers in 16 bits, from which a recipe departs."""
        build = replace(self.build(component, number), precision=WIDE)
        return build_config(build, read_own_fields(build, self.entry_of("pulsar2", component)))

    @property
    def quality(self) -> float:
        """How much a recipe may cost, in dB."""
        return self.row["quality"] or QUALITY

    def pulsar2_config(self, component: Component, number: int) -> dict[str, Any]:
        """Pulsar2's config of a graph.

        Raises:
            Pulsar2ConfigError: the user's fields cannot be used, of this graph or of another; says all that is wrong.
        """
        return self._pulsar2_configs[addresses(component)[number]]

    @cached_property
    def _pulsar2_configs(self) -> dict[str, dict[str, Any]]:
        """The same of all graphs, by address."""
        found: dict[str, dict[str, Any]] = {}
        faults: dict[str, None] = {}  # each once, though several graphs have it
        for component in self.family.components:
            for number, graph in enumerate(() if component.host else addresses(component)):
                build, said = self.build(component, number), self.entry_of("pulsar2", component)
                asked = repr((build, said))
                try:
                    if asked not in _CONFIGS:
                        _CONFIGS[asked] = build_config(build, read_own_fields(build, said))
                    found[graph] = _CONFIGS[asked]
                except Pulsar2ConfigError as error:
                    faults |= dict.fromkeys(str(error).splitlines())
        if faults:
            raise Pulsar2ConfigError("\n".join(faults))
        return found

    def loras_of(self, component: Component) -> list[Lora]:
        """LoRAs that change *component*, in their order; one that changes only the UNet is not listed for the text encoder."""
        loras = self.row["loras"]
        loras_sha256(self.row, loras)
        if component.files.lora_names is None:  # of language models; `axbake.advice` tells
            return []
        role = _lora_role(component)
        given = [lora for lora in loras if role in (TEXT, DENOISER) and lora.strength(role)]
        files, denoiser = component.files, self.family.denoiser.name
        return [
            lora for lora in given if own_names(files, component.name, lora_facts(Path(lora.path), denoiser).components)
        ]

    def strengths_of(self, component: Component) -> list[float]:
        """Of the LoRAs that change *component*."""
        return [lora.strength(_lora_role(component)) for lora in self.loras_of(component)]

    def loras_digest(self, component: Component) -> str:
        """SHA-256 of the LoRAs that change *component*."""
        return " ".join(loras_sha256(self.row, self.loras_of(component)))

    @property
    def lora_strengths(self) -> list[dict[str, Any]]:
        """Names of its LoRAs, and their strengths, for the report."""
        return [{"name": lora.name, "text_encoder": lora.text_encoder, "unet": lora.unet} for lora in self.row["loras"]]

    @cached_property
    def advice(self) -> list[str]:
        """What of it has no effect, or not the one that its user may expect, a sentence each (`axbake.advice`).

        And what an own Pulsar2 config overrides.
        """
        self.check_fit()
        sentences = list(advise(self.row, self.family, self.sources, self.configs))
        for component in self.family.components:
            if said := self.entry_of("pulsar2", component):
                builds = [self.build(component, number) for number in range(len(component.graphs))]
                sentences += [sentence for build in builds for sentence in overridden(build, said)]
        return list(dict.fromkeys(sentences))

    def fault(self) -> str:
        """What would end a run that asks for this model by name, one fault per line; empty if nothing would.

        Of each kind of source the first fault, as far as headers tell; if there is none, what does not fit together.
        """
        with_names = [self._named()(look) for look in self._looks]
        return "\n".join(_faults(with_names) or _faults([self.check_fit, self.check_samples, self.check_recipes]))

    @property
    def _looks(self) -> list[Callable[[], Any]]:
        """What looks at each kind of its sources: whether the files are there, and are what they are taken for."""
        return [
            lambda: [self.sources.file(CHECKPOINT), self.sources.sidecar, self.family],
            lambda: self.row[VAE] and self.sources.file(VAE),
            lambda: self.sources.embeddings_digest,
            lambda: self.sources.canvas_digest,
            lambda: self.tokenizers,
            lambda: [
                loras_sha256(self.row, self.row["loras"]),
                *(lora_facts(Path(one.path), self.family.denoiser.name) for one in self.row["loras"]),
            ],
        ]

    @cached_property
    def configs(self) -> Configs:
        """Config of each of its networks whose file is here, by component, from the headers.

        Raises:
            UnknownFamily, TensorMismatch: a network is not there, or of another kind than the family's.
        """
        return configs_of(self.row, self.family, self.sources)

    def check_fit(self) -> None:
        """Raise what its networks would end a job with, as far as headers and the row tell (`axbake.fit`)."""
        if not self._fits:
            with self._named():
                for look in self._looks:
                    look()
                check_fit(self.row, self.family, self.configs)
            self._fits = True

    def check_samples(self) -> None:
        """Raise CalibrationError if its prompts will not give as many calibration samples as are wanted."""
        with self._named():
            check_samples(self.row, self.config["calibration"], self.family, self.configs)

    def check_recipes(self) -> None:
        """Raise RecipeError if config wants a recipe where there is none, or one that cannot be read."""
        with self._named():
            for component in self.family.components:
                if self.has_recipe(component) and (path := self.recipe_file(component)):
                    read_recipe(recipe_path(path))

    @contextmanager
    def _named(self) -> Iterator[None]:
        """What is raised inside begins with the row's name."""
        try:
            yield
        except AxbakeError as error:
            if not str(error).startswith(f"{self.name}: "):
                error.args = (f"{self.name}: {error}",)
            raise


def _faults(looks: list[Callable[[], Any]]) -> list[str]:
    """What *looks* raise, a line each; two may meet the same fault."""
    faults = []
    for look in looks:
        try:
            look()
        except AxbakeError as error:
            faults.append(error_line(error))
    return list(dict.fromkeys(faults))


def parameters_of(path: Path) -> int:
    """Number of parameters in the local checkpoint *path*, from its header; of a recipe, in the first that is merged.

    Raises:
        Errors of who opens it.
    """
    return read_header(path, "parameters", _count, "axbake.model._count")


def _count(container: Container) -> int:
    return sum(math.prod(shape) for shape in container.shapes.values())


def divided_family(name: str, config: dict, *, host: bool = False) -> Family:
    """The family called *name* with as many graphs as the project's *config* asks for; one for all models of it.

    Args:
        host: whether its language models run on the host, and are not built for the card.

    Raises:
        SliceError
    """
    return _divided(name, round(1e6 * config["graph_weights"]), host)


@cache
def _divided(name: str, most: int, host: bool) -> Family:
    if not host:
        return FAMILIES[name].divided(most)
    family = _divided(name, most, False)
    kept = tuple(replace(one, card=None) if one.card else one for one in family.components)
    return family if kept == family.components else replace(family, components=kept)


def _lora_role(component: Component) -> str:
    """Whose strength LoRAs change *component* with: what they count among the denoiser's modules has the denoiser's."""
    return DENOISER if component.files.lora_within else component.role


_ON_CARD = sorted(family.title for family in FAMILIES.values() if any(one.card for one in family.components))


def _in_words(languages: list[Component]) -> str:
    return (
        f"a language model that it does not take ({', '.join(one.name for one in languages)})"
        if languages
        else "no language model"
    )


def _is_without(family: Family, found: Family) -> bool:
    """Whether *family* is what was *found* without some of its text encoders."""
    return family.fits is found.fits and set(family.names) < set(found.names)


def family_of(path: Path) -> Family:
    """The family of the local checkpoint *path*, from its header; remembered while the file is unchanged.

    Raises:
        UnknownFamily: it is of none. And the errors of who opens it.
    """
    return FAMILIES[read_header(path, "family", _find, "axbake.model._find", *_functions())]


def _find(container: Container) -> str:
    denoisers = [family.denoiser for family in FAMILIES.values()]
    return find_family(use_average(container, averaged_namings(denoisers)), FAMILIES).name


@cache
def _functions() -> list[str]:
    """Dotted names of those by which each family's denoiser is found and told from others."""
    return [
        name
        for family in FAMILIES.values()
        for name in encode({"fits": family.fits, "namings": family.denoiser.files.namings})[1]
    ]
