# Takes config/config.yaml and the table of models. Checks both, and makes what rules share: MODELS, and the settings files of jobs.

import gc
import inspect
import os
import re
import shlex
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from axbake.cache.remote.remote import remote_settings
from axbake.checkpoints.recipes import is_recipe
from axbake.digest import file_sha256
from axbake.errors import AxbakeError
from axbake.families import FAMILIES
from axbake.host import chosen_device, chosen_precision
from axbake.jobs.known import code_of
from axbake.jobs.identity import identify, tool_version, write_steps
from axbake.jobs.inputs import as_input
from axbake.model import Model, divided_family, family_of
from axbake.networks.card_layers import files_on_card
from axbake.networks.component import DECODER, DENOISER, ENCODER, ROLES, TEXT, addresses
from axbake.printable import error_line
from axbake.quality.recipe import recipe_path
from axbake.root import run_own_code, shipped
from axbake.sources import COLUMNS
from axbake.table import check_config, commented_line, read_models, read_prompts, read_row_config
from axbake.toolchain.launch import ENGINES, Launch

# Planning makes millions of objects that all stay. To look for garbage among them takes a fifth of its time (bench/many_models.py).
gc.set_threshold(50_000, 20, 1_000)

# Where this workflow's files are in one that has it as a module with a `prefix`; what users bring stays where it is.
PLACED = workflow.modifier.path_modifier.replace_prefix

run_own_code()
SCHEMAS = shipped("workflow/schemas")
if shlex.quote(sys.executable) != sys.executable:
    raise WorkflowError(
        f"{sys.executable}: the path of Python contains a space or another special character of the shell, and Snakemake"
        " writes it into commands without quotes (snakemake/snakemake#2645). Move the checkout, or install into another directory."
    )

COMPONENTS = {one.name: one.role for family in FAMILIES.values() for one in family.components}
TORCH = ["torch", "diffusers", "transformers"]
SD15_PARAMETERS = 1.07e9  # of a whole checkpoint
WHOLE = 4200  # MiB that its denoiser takes in torch in float32, with what it computes
SMALL_MEMORY = 1500  # MiB, of a job on a small model, most of them torch and diffusers themselves


try:
    of_config = {"schema": SCHEMAS / "config.schema.yaml", "components": COMPONENTS}
    config = check_config(config, source="config/config.yaml", **of_config)
    DIVIDED = {name: divided_family(name, config) for name in FAMILIES}
    rows = read_models(Path(config["models"]), schema=SCHEMAS / "models.schema.yaml", families=list(FAMILIES))
    MODELS = {
        name: Model(row, read_row_config(Path(row["config"]), config, **of_config) if row["config"] else config)
        for name, row in rows.items()
    }
    TEXT_PROMPTS = {
        place: read_prompts(Path(place)) for place in {m.entry("calibration/text_prompts") for m in MODELS.values()}
    }
except AxbakeError as error:
    raise WorkflowError(error_line(error)) from None

if config["cache"]:
    os.environ.setdefault("AXBAKE_CACHE", config["cache"])
for name, value in remote_settings(config).items():
    os.environ.setdefault(name, value)


def told(function, *arguments):
    """What *function* gives; an error of it ends the run with its text."""
    try:
        return function(*arguments)
    except AxbakeError as error:
        # Snakemake would show a WorkflowError of an input function with a traceback.
        raise SystemExit(error_line(error)) from None


def model_of(wildcards):
    """The model of a job."""
    if wildcards.model not in MODELS:
        there = f"known: {', '.join(MODELS)}"
        if line := commented_line(Path(config["models"]), wildcards.model):
            there = f"line {line} is a comment. Remove the # before the row"
        raise SystemExit(f"{wildcards.model}: no row with this name in {config['models']}; {there}.")
    return MODELS[wildcards.model]


def with_model(function):
    """Input function that gives what *function* makes of a job's model and wildcards."""
    return with_signature(lambda wildcards: told(function, model_of(wildcards), wildcards))


def brought(function):
    """The same of a file, or files, that the user may have brought."""

    def paths(model, wildcards):
        found = function(model, wildcards)
        return in_place(found) if isinstance(found, str) else [in_place(path) for path in found]

    return with_model(paths)


def in_place(path):
    """*path* as an input, where it is; one that a job makes is placed as the others are."""
    path = as_input(path)
    return path if path.startswith("results/") or PLACED(path) == path else local(path)


def with_signature(function):
    """*function*, whose parameters are found at once: Snakemake asks for them a hundred times a model."""
    function.__signature__ = inspect.signature(function)
    return function


def graphs_of(family, *roles):
    """Addresses of all graphs of a family's components, of *roles* or of all."""
    return [graph for one in family.components if one.role in (roles or ROLES) for graph in addresses(one)]


ALL = {"graph": graphs_of}
ALL |= {"compiled_graph": lambda family: [g for one in family.components if not one.host for g in addresses(one)]}
ALL |= {"text_graph": lambda family: graphs_of(family, TEXT)}
ALL |= {"latent_graph": lambda family: graphs_of(family, TEXT, DENOISER)}
ALL |= {"denoiser_graph": lambda family: graphs_of(family, DENOISER)}
ALL |= {"picture_graph": lambda family: graphs_of(family, ENCODER, DECODER)}
ALL |= {"component": lambda family: family.names, TEXT: lambda family: [one.name for one in family.text_encoders]}
ALL |= {"added": lambda family: [family.denoiser.name] if family.denoiser.added else []}
ONE = {role: lambda family, role=role: family.of_role(role).name for role in (DENOISER, ENCODER, DECODER)}
PLACES = (
    {}
)  # (family, component or None, patterns) -> by name, pattern or patterns with {model} alone; filled in as rules ask


def files(settings=None, **patterns):
    """Input function: a job's settings file, and files by name.

    In a pattern {graph} stands for each graph of the model, or of the job's component, {compiled_graph} for each that is compiled,
    {latent_graph} for each that has a part in drawing a latent, {text_graph} for each of the text encoders, {denoiser_graph} for
    each of the denoiser, {picture_graph} for each of the autoencoder, {component} for each component, {text} for each text encoder,
    {denoiser}, {encoder} and {decoder} for the component of that role, and {added} for the denoiser if prompts add to its rows, else
    for nothing.
    """

    def by_name(model, wildcards):
        place = model.family.name, wildcards.get("component"), id(patterns)
        if place not in PLACES:
            PLACES[place] = {name: expanded(pattern, *place[:2]) for name, pattern in patterns.items()}
        found = {
            name: (
                [one.format(model=model.name) for one in places]
                if isinstance(places, list)
                else places.format(model=model.name)
            )
            for name, places in PLACES[place].items()
        }
        return ({"settings": settings(wildcards)} if settings else {}) | found

    return unpack(with_model(by_name))


def with_canvas(*patterns):
    """Input function: files that only the jobs of models that draw on a picture read, by patterns as of `files`."""
    return only_of(lambda model: model.canvas, patterns)


def with_tiles(*patterns):
    """The same of models whose VAE decoder draws tiles."""
    return only_of(lambda model: model.tile, patterns)


def only_of(which, patterns):
    """The same of the models that *which* is true of."""

    def paths(model, wildcards):
        places = [expanded(pattern, model.family.name, None) for pattern in patterns]
        return [place.format(model=model.name) for place in places] if which(model) else []

    return with_model(paths)


def expanded(pattern, family, component):
    """*pattern* with the components and graphs of a family; a list where it stands for several files."""
    family, kept = DIVIDED[family], {"model": "{model}"}
    for name, value in ONE.items():
        pattern = pattern.replace(f"{{{name}}}", value(family))
    for name, values in ALL.items():
        if f"{{{name}}}" in pattern:
            mine = addresses(family.component(component)) if component and name == "graph" else values(family)
            return [pattern.format(**kept, **{name: value}) for value in mine]
    return pattern


def models_in(place, names=None):
    """Input function: the models that a picture is drawn with, graph by graph: compiled ones in *place*, and those of the host.

    names: function of the model that gives the components that are wanted; None: all of them.
    """

    def paths(model, wildcards):
        directory, wanted = place.format(model=model.name), names(model) if names else model.family.names
        components = [component for component in model.family.components if component.name in wanted]
        return [path for component in components for path in models_of_component(model, component, directory)]

    return with_model(paths)


def models_of_component(model, component, directory):
    """What one component of a model runs from; *directory*: where what was compiled lies."""
    if component.card:
        return [f"{directory}/{file}" for file in files_on_card(component.name, component.card)]
    if component.host:
        return [f"results/{model.name}/{graph}.onnx" for graph in addresses(component)]
    return [f"{directory}/{graph}.axmodel" for graph in addresses(component)]


def language_weights_of(model, wildcards):
    """Paths of the weights of a model's language models on the card."""
    return [f"results/{model.name}/weights/{one.name}.safetensors" for one in model.on_card]


def records_of(model, wildcards):
    """Paths of the records of how a model's graphs, and its language models on the card, were made."""
    return [f"results/{model.name}/build/{name}.json" for name in model.built]


def more_each_time(amount):
    """A resource of which each attempt at a job gets *amount* more, such as minutes."""

    def resource(wildcards, attempt):
        return amount * attempt

    return with_signature(resource)


def memory_of(most, whole=0):
    """*most* MiB of memory, more at each attempt; what jobs take on a small model, so that more of them run beside each other.

    Enough for Stable Diffusion 1.5 at full size, and for the demo (docs/numbers.md), and for Snakemake's own process beside the job's.

    whole: MiB of it that are a whole network in torch, whose larger models take as many times as much as they have parameters.
    """

    def resource(wildcards, attempt):
        model = model_of(wildcards)
        larger = round(whole * (model.parameters or 0) / SD15_PARAMETERS)
        return (min(most, SMALL_MEMORY) if model.is_small else max(most, larger)) * attempt

    return with_signature(resource)


def threads_of(most):
    """*most* threads, or one for a small model, of which more jobs run beside each other then."""
    return with_signature(lambda wildcards: 1 if model_of(wildcards).is_small else most)


def step(function, *, of=None, values=None, row=(), means=None, sources=None, tools=(), data=(), names=None, **how):
    """One step of a job: a function that gives it for a job's model and wildcards.

    function: of the package, that does the work; called with inputs, outputs and settings by name.
    of: wildcard that says which component or graph it is of, or the component's name.
    values: what it is given besides: function of model and wildcards that gives settings by name.
    row: columns of the table that it is given.
    means: function of the model; of what does not decide the result, such as how a program is started.
    sources: function of model and wildcards: name of an input that the user brings -> its SHA-256, or None if a job made it.
    tools: packages whose version can change the result.
    data: folders of the package that it reads; or a function of the model that gives them.
    names, how: as `axbake.jobs.identity.identify` has them.
    """

    def of_job(model, wildcards):
        given = {column: model.row[column] for column in row} | (values(model, wildcards) if values else {})
        digests = sources(model, wildcards) if sources else {}
        return identify(
            function,
            component=wildcards.get(of, of) if of else None,
            settings=given,
            sources={name: digest for name, digest in digests.items() if digest is not None},
            means=means(model) if means else {},
            tools=tools,
            data=data(model) if callable(data) else data,
            names=names,
            **how,
        )

    return of_job


def settings(name, *steps, part=None, more=None):
    """Input function that gives a job's settings file, and writes it when its text changes.

    name: of the rule; what the file's directory is called.
    steps: of the job, in order; *more*: function of the model that gives further ones to go before them.
    part: wildcard that tells jobs of the rule and of one model apart.
    """

    def path_of(model, wildcards):
        # A directory of its own: Snakemake lists a directory once a run, and takes for missing what comes into it later.
        place = ".".join(Path(wildcards[part]).parts) if part else "model"
        path = f"results/{model.name}/settings/{name}/{place}/settings.json"
        # A job's own process reads the workflow again; what it was started with must not change under it.
        if workflow.is_main_process:
            given = [*(more(model, wildcards) if more else ()), *steps]
            write_steps(Path(PLACED(path)), [one(model, wildcards) for one in given])
        return path

    return with_model(path_of)


def address_of(wildcards, function):
    """What *function* gives of the component and the number of the graph that a job is of."""
    return told(lambda: function(*model_of(wildcards).of_address(wildcards.graph)))


def names_of(models):
    """Regular expression of the names of *models*."""
    return "|".join(re.escape(model) for model in models) or "$^"


def family_told(model):
    """Name of a model's family; of a row that cannot be baked, none."""
    try:
        return model.family.name
    except AxbakeError:
        return None


FAMILY_OF = {name: family_told(model) for name, model in MODELS.items()}
ON_CARD = [name for name, model in MODELS.items() if FAMILY_OF[name] and model.on_card]
IN_TABLE = [family for name, family in DIVIDED.items() if name in FAMILY_OF.values()] or [DIVIDED["sd1"]]


def models_of(families):
    """Regular expression of the models of *families*; those of the first family in the table have any other name too, so that
    `model_of` can say which there are."""
    others = [name for name, family in FAMILY_OF.items() if family and family not in [one.name for one in families]]
    mine = [name for name, family in FAMILY_OF.items() if family in [one.name for one in families]]
    if IN_TABLE[0] in families:
        return f"(?!({names_of(others)})/)[^/]+" if others else "[^/]+"
    return names_of(mine)


def models_on_host(family):
    """The same of the models of *family* whose language models, if they have some, run on the host."""
    return f"(?!({names_of(ON_CARD)})/){models_of([family])}"


def models_on_card(family):
    """The same of those whose language models run on the card."""
    return names_of([name for name in ON_CARD if FAMILY_OF[name] == family.name])
