# Takes config/config.yaml and the table of models. Checks both, and makes what rules share: MODELS and the settings files.

from pathlib import Path

from snakemake.exceptions import WorkflowError

from axbake.errors import AxbakeError
from axbake.families import COMPONENTS
from axbake.identity import code_digest, write_identity
from axbake.table import check_config, checkpoint_sha256, read_models

SCHEMAS = Path(workflow.basedir) / "workflow" / "schemas"
# Columns that a component's graph depends on: the text encoder knows no picture size.
SIZE = {component: [] if component == "text_encoder" else ["height", "width"] for component in COMPONENTS}
DRAWING = ["model", "prompt", "negative_prompt", "height", "width", "guidance_scale", "seed"]

try:
    config = check_config(config, schema=SCHEMAS / "config.schema.yaml", source="config/config.yaml")
    MODELS = read_models(Path(config["models"]), schema=SCHEMAS / "models.schema.yaml")
except AxbakeError as error:
    raise WorkflowError(f"{type(error).__name__}: {error}") from None


wildcard_constraints:
    model=r"[a-z0-9][a-z0-9._-]*",
    component="|".join(COMPONENTS),


def row_of(wildcards):
    """The table's row of a job's model."""
    if wildcards.model not in MODELS:
        raise WorkflowError(
            f"{wildcards.model}: no row of that name in {config['models']}; there are {', '.join(MODELS)}."
        )
    return MODELS[wildcards.model]


def checkpoint(wildcards):
    """Path of a model's checkpoint, which is there and is the one that the table means."""
    source_digest(row_of(wildcards))
    return row_of(wildcards)["checkpoint"]


def source_digest(row):
    try:
        return checkpoint_sha256(row)
    except AxbakeError as error:
        raise WorkflowError(f"{type(error).__name__}: {error}") from None


def settings(step, module, *, tools=(), row=(), entries=None, more=None):
    """Input function that gives a job's settings file and writes it when its text changes.

    step: name of the file in results/{model}/settings/.
    module: the package's module that the job runs.
    tools: packages whose version can change the result.
    row: columns of the table that the job reads; by component, or for all. «component» is the job's.
    entries: name -> path in config, parted by slashes, in which {component} stands for the job's.
    more: name -> function of the row.
    """

    def path_of(wildcards):
        model_row = row_of(wildcards)
        component = wildcards.get("component")
        path = Path("results", wildcards.model, "settings", step)
        path = (path / component if component else path).with_suffix(".json")
        columns = row[component] if isinstance(row, dict) else row
        values = {column: component if column == "component" else model_row[column] for column in columns}
        values |= {name: entry(place.format(component=component)) for name, place in (entries or {}).items()}
        values |= {name: value(model_row) for name, value in (more or {}).items()}
        # A job's own process reads the workflow again; what it was started with must not change under it.
        if workflow.is_main_process:
            write_identity(path, module=module, tools=tools, settings=values)
        return str(path)

    return path_of


def entry(place):
    """Value of config at *place*, parted by slashes."""
    value = config
    for name in place.split("/"):
        value = value[name]
    return value


def toolchain_version(row):
    """What decides a build besides its inputs: Pulsar2's version, or the emulator's code."""
    return code_digest("axbake.emulator.__main__") if config["toolchain"] == "emulator" else config["pulsar2_version"]
