# Takes config/config.yaml and the table of models. Checks both, and makes what rules share: MODELS and the settings files.

import os
from functools import partial
from pathlib import Path

from snakemake.exceptions import WorkflowError

from axbake.toolchain.build_config import read_builds
from axbake.checkpoints.containers import files_of, needs_conversion
from axbake.errors import AxbakeError
from axbake.families import COMPONENTS, VAE
from axbake.fetch.sources import check_pin, parse_source
from axbake.host import chosen_precision
from axbake.jobs.identity import code_digest, identify, tool_version, write_identity
from axbake.checkpoints.prediction import read_sidecar
from axbake.table import check_config, checkpoint_sha256, embeddings_sha256, read_models, read_prompts, vae_sha256
from axbake.toolchain.launch import ENGINES, Launch

SCHEMAS = Path(workflow.basedir) / "workflow" / "schemas"
# Columns that a component's graph depends on: the text encoder knows no picture size.
SIZE = {component: [] if component == "text_encoder" else ["height", "width"] for component in COMPONENTS}
SIZE["unet"] = [*SIZE["unet"], "prompt_chunks"]
# What a graph is exported with, besides: the names of its inputs. Programs differ in the UNet's and the VAE decoder's.
GRAPH = SIZE | {component: [*SIZE[component], "program"] for component in ("unet", "vae_decoder")}
JOBS_OWN = ("component", "layout")  # stand among a job's columns, but are of the job and not of the row
DRAWING = ["model", "prompt", "negative_prompt", "height", "width", "guidance_scale", "seed", "clip_skip"]


try:
    config = check_config(config, schema=SCHEMAS / "config.schema.yaml", source="config/config.yaml")
    TEXT_PROMPTS = read_prompts(Path(config["calibration"]["text_prompts"]))
    chip = {name: config[name] for name in ("target_hardware", "npu_mode")}
    config["pulsar2"] = read_builds(config["pulsar2"], **chip)
    MODELS = read_models(Path(config["models"]), schema=SCHEMAS / "models.schema.yaml")
except AxbakeError as error:
    raise WorkflowError(f"{type(error).__name__}: {error}") from None

# Where the models are that the host runs: those that boards run it cannot.
EMULATED = "results/{model}" if config["toolchain"] == "emulator" else "results/{model}/emulated"

if config["cache"]:
    os.environ.setdefault("AXBAKE_CACHE", config["cache"])


wildcard_constraints:
    model=r"[^/]+",  # any name, so that `row_of` can say which there are
    component="|".join(COMPONENTS),


def row_of(wildcards):
    """The table's row of a job's model."""
    if wildcards.model not in MODELS:
        raise SystemExit(
            f"{wildcards.model}: no row of that name in {config['models']}; there are {', '.join(MODELS)}."
        )
    return MODELS[wildcards.model]


def told(function, *arguments):
    """What *function* gives; an error of it ends the run with its text."""
    try:
        return function(*arguments)
    except AxbakeError as error:
        # Snakemake would show a WorkflowError of an input function with a traceback.
        raise SystemExit(f"{type(error).__name__}: {error}") from None


def checkpoint(wildcards):
    """The safetensors file that a component is taken from; mostly the row's checkpoint, but a VAE may have one of its own."""
    row = row_of(wildcards)
    return file_of(row, source_of(row, wildcards.get("component")))


def vae(wildcards):
    """The safetensors file that a model's VAE is taken from."""
    row = row_of(wildcards)
    return file_of(row, source_of(row, "vae_decoder"))


def source_of(row, component):
    """Column of the table that names the file in which a component is."""
    return "vae" if row["vae"] and component in VAE else "checkpoint"


def file_of(row, column):
    """The user's file, or the fetched one, if it is safetensors and the one that the table means; or else one made of it."""
    if converted(row, column):
        return f"results/{row['model']}/{column}.safetensors"
    return fetched(row, column) or row[column]


def brought(wildcards):
    """Files of a model's checkpoint, or of its VAE, as the user has them, or as they are fetched."""
    row, column = row_of(wildcards), wildcards.column
    source_digest(row, column)
    arrived = fetched(row, column)
    return [arrived] if arrived else [str(path) for path in told(files_of, Path(row[column]))]


def remote(row, column="checkpoint"):
    """Where a checkpoint is fetched from; None if the user brings the file."""
    return parse_source(row["checkpoint"]) if column == "checkpoint" else None


def fetched(row, column="checkpoint"):
    """Where a checkpoint is fetched to; None if the user brings it."""
    return f"results/{row['model']}/fetched/checkpoint" if remote(row, column) else None


def fetch_record(wildcards):
    """Where a model's checkpoint is from, in a list; an empty one if the user brings it."""
    return [f"results/{wildcards.model}/fetched/source.json"] if fetched(row_of(wildcards)) else []


def converted(row, column="checkpoint"):
    """Whether a job makes a safetensors file of what is in *column*, which is there and is what the table means."""
    source_digest(row, column)
    source = remote(row, column)
    return source.pickled if source else told(needs_conversion, Path(row[column]))


SOURCE_DIGESTS = {}  # (model, column) -> SHA-256; looked up once a run


def source_digest(row, column="checkpoint"):
    """SHA-256 of what the user brought; of what is fetched, what the table wants: digest, beginning, or nothing."""
    place = row["model"], column
    if place not in SOURCE_DIGESTS:
        known = wanted_digest if remote(row, column) else {"checkpoint": checkpoint_sha256, "vae": vae_sha256}[column]
        SOURCE_DIGESTS[place] = told(known, row)
    return SOURCE_DIGESTS[place]


def wanted_digest(row):
    return check_pin(row, allow_unpinned=config["fetch"]["allow_unpinned"])


def brought_digest(row, column):
    """SHA-256 of what the user brought; None where its content, made by a job, counts itself."""
    return None if remote(row, column) else source_digest(row, column)


def digest_for(component):
    """Function of a row: SHA-256 of the file that the user brought and *component* is taken from; None if one is made of it."""

    def digest(row):
        column = source_of(row, component)
        return None if converted(row, column) else brought_digest(row, column)

    return digest


def own_vae_digest(row):
    """SHA-256 of the row's own VAE; empty if it has none."""
    return source_digest(row, "vae") if row["vae"] else ""


def sidecar(row):
    """What the YAML beside a checkpoint says of its UNet's prediction."""
    return "" if fetched(row) else told(read_sidecar, Path(row["checkpoint"]))


def embeddings(wildcards):
    """Paths of a model's textual-inversion embeddings, which are there."""
    embeddings_digest(row_of(wildcards))
    return row_of(wildcards)["embeddings"]


def embeddings_digest(row):
    return " ".join(told(embeddings_sha256, row))


def embedding_names(row):
    """What prompts call a model's embeddings: their files' names without the ending."""
    return [Path(path).stem for path in row["embeddings"]]


def more_each_time(amount):
    """A resource of which each attempt at a job gets *amount* more: MiB of memory, minutes.

    Enough for Stable Diffusion 1.5 at full size (docs/numbers.md), and for Snakemake's own process beside the job's.
    """

    def resource(wildcards, attempt):
        return amount * attempt

    return resource


def settings(function, *, step=None, tools=(), row=(), entries=None, more=None, means=None, sources=None, **how):
    """Input function that gives a job's settings file and writes it when its text changes.

    function: of the package, that does the work; called with inputs, outputs and settings by name.
    step: what the settings file's directory is called, if not as the function.
    tools: packages whose version can change the result.
    row: columns of the table that the job reads; by component, or for all. «component» and «layout» are the job's.
    entries: name -> path in config, parted by slashes, in which {component} stands for the job's.
    more: name -> function of the row; by component, or for all.
    means: name -> function of the row; of what does not decide the result, such as how a program is started.
    sources: name of an input that the user brings -> function of the row that gives its SHA-256, or None if a job made it; by
        component, or for all.
    how: cached, data, gates, own_code, as `axbake.jobs.identity.identify` has them.
    """

    def path_of(wildcards):
        model_row = row_of(wildcards)
        component = wildcards.get("component")
        # A directory of its own: Snakemake lists a directory once a run, and takes for missing what comes into it later.
        directory = step or function.rpartition(".")[2]
        part = component or wildcards.get("layout") or wildcards.get("column", "model")
        path = Path("results", wildcards.model, "settings", directory, part, "settings.json")
        columns = row[component] if isinstance(row, dict) else row
        values = {column: wildcards[column] if column in JOBS_OWN else model_row[column] for column in columns}
        values |= {name: entry(place.format(component=component)) for name, place in (entries or {}).items()}
        functions = more.get(component, more) if more else {}
        values |= {name: value(model_row) for name, value in functions.items()}
        # A job's own process reads the workflow again; what it was started with must not change under it.
        if workflow.is_main_process:
            mine = sources.get(part, sources) if sources else {}
            digests = {name: digest(model_row) for name, digest in mine.items()}
            digests = {name: digest for name, digest in digests.items() if digest is not None}
            ways = {name: value(model_row) for name, value in (means or {}).items()}
            how_run = {"cached": True, "means": ways, "sources": digests, "tools": tools} | how
            identity = identify(function, component=component, settings=values, **how_run)
            write_identity(path, identity)
        return str(path)

    return path_of


def entry(place):
    """Value of config at *place*, parted by slashes."""
    value = config
    for name in place.split("/"):
        value = value[name]
    return value


def compiler(row):
    """What decides a build besides graph, samples and config: Pulsar2's version, or the emulator's code and tools."""
    return emulator(row) if config["toolchain"] == "emulator" else {"pulsar2": config["pulsar2_version"]}


def emulator(row):
    """What decides a build by the emulator: its code, and the tools that it uses."""
    tools = ["numpy", "onnx", "onnxruntime", "pillow", "json5"]
    return {"emulator": code_digest("axbake.emulator.__main__")} | {tool: tool_version(tool) for tool in tools}


def launch(row):
    """How the compiler is started (`axbake.toolchain.launch.Launch`)."""
    how = {"toolchain": config["toolchain"], "minutes": config["time_limit"]}
    if config["toolchain"] != "emulator":
        how["version"] = config["pulsar2_version"]
    return how | (config["container"] if config["toolchain"] in ENGINES else {})


def check_compiler():
    """End a run that compiles on this machine unless the compiler is there and of config's version.

    So a missing image shows now, and not after an hour of calibration. On a cluster the jobs' own nodes are asked, by the jobs.
    """
    compiles = any(job.rule.name == "compile_model" for job in workflow.dag.needrun_jobs())
    if not compiles or config["toolchain"] == "emulator" or not workflow.is_main_process or not workflow.local_exec:
        return
    try:
        Launch(**launch({})).check()
    except AxbakeError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None


def text_prompts(row):
    """Prompts that every text encoder is calibrated with, whatever its model draws."""
    return TEXT_PROMPTS


def recording_precision(row):
    """In what torch runs the UNet to record its samples. Decided here, so that it stands in the job's settings."""
    return chosen_precision(config["calibration"]["recorded_in"])


def bundle_for_board(wildcards):
    """Path of a bundle's manifest, in a project that has a board and a compiler whose models it runs."""
    if not config["board"]["host"]:
        raise SystemExit("no board: config's entry board/host names none (docs/board.md).")
    if config["toolchain"] == "emulator":
        raise SystemExit(
            f"{wildcards.model}: toolchain is emulator in config; hosts run its models, boards cannot. Choose a toolchain of"
            " Pulsar2's, or measure on this host: results/{model}/host/report.html."
        )
    return "results/{model}/bundle/axbake/manifest.json"
