"""The matrix of edits: what is edited, which steps then do real work, and what a dry run and the planner say beforehand.

`python -m tests.workflow.matrix docs/rebuilds.md` carries all of it out on a tiny model, in some minutes, and writes the table.
"""

import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests import loras, tiny
from tests.workflow.project import COMPONENTS, REPORT, ROW, Project

# Jobs of several steps
SHARED = {
    "import_sd1": [
        *("import_text_encoder", "import_denoiser", "import_component", "list_embeddings", "describe_checkpoint"),
    ],
    "export_onnx": ["export_onnx", "measure_parity"],
    "calibrate_denoiser_of_sd1": ["calibrate_denoiser", "measure_residuals"],
    "calibrate_vae_of_sd1": [
        "draw_pictures",
        "encode_pictures",
        "calibrate_encoder",
        "decode_latents",
        "calibrate_decoder",
    ],
    "record_trajectories": ["derive_schedule", "record_trajectories"],
    "check_compiled_of_sd1": ["check_compiled"],
    "simulate": ["simulate", "draw_parts", "attribute_error", "check_calibration", "compare_nodes"],
}
BUILDING = re.compile(r" building (\S+): ")  # in a job's log, of each step that does real work
LINE_OF_PLAN = re.compile(r"^(stored|build|unknown|run) +(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Edit:
    """Something that a user does to a baked project, and the steps of jobs that do real work in the next run because of it."""

    what: str
    carry_out: Callable[[Project], Project | None]  # gives the project, if it is elsewhere afterwards
    work: frozenset[str]
    of_code: bool = False  # in the checkout, which has to be a copy


@dataclass(frozen=True)
class Seen:
    """What was seen of an edit, which has been taken back since."""

    project: Project
    dry_run: Counter[str]  # rule -> jobs, as `snakemake -n` counts them
    plan: dict[str, str]  # job -> stored, build, unknown, run
    started: set[str]  # jobs that the run started
    work: set[str]  # steps of them which did real work, and did not place a stored result
    plan_back: dict[str, str]  # the planner's, once the edit was taken back


def jobs_of(plan: dict[str, str], kind: str) -> set[str]:
    """The jobs that the planner calls *kind*."""
    return {name for name, said in plan.items() if said == kind}


def observe(edit: Edit, project: Project) -> Seen:
    """Carry *edit* out in the baked *project*, bake, take it back."""
    before = _own_files(project)
    edited = edit.carry_out(project) or project
    dry_run, plan = foretell(edited)
    started, work = bake(edited)
    for path in _own_files(project).keys() - before.keys():
        path.unlink()
    for path, content in before.items():
        if path.read_bytes() != content:
            path.write_bytes(content)
    return Seen(edited, dry_run, plan, started, work, planned(edited))


def _own_files(project: Project) -> dict[Path, bytes]:
    """What the user, or a developer, edits: name -> content."""
    places = [project.directory / "config", project.directory / "checkpoints", project.checkout / "axbake"]
    files = (path for place in places for path in place.rglob("*.*") if path.is_file() and path.suffix != ".pyc")
    return {path: path.read_bytes() for path in files}


def foretell(project: Project) -> tuple[Counter[str], dict[str, str]]:
    """What a dry run counts, and what the planner says of each job."""
    return project.plan(REPORT).jobs, planned(project)


def planned(project: Project) -> dict[str, str]:
    """What the planner says of each job: rule and component -> stored, build, unknown or run."""
    return {name: kind for kind, name in LINE_OF_PLAN.findall(project.planner(REPORT))}


def bake(project: Project) -> tuple[set[str], set[str]]:
    """Bake; the jobs that were started, and the steps of which their logs say that they did real work."""
    logs = project.directory / "logs"
    before = {path: path.stat().st_mtime_ns for path in logs.rglob("*.log")}
    project.bake(REPORT)
    written = [path for path in logs.rglob("*.log") if path.stat().st_mtime_ns != before.get(path)]
    texts = {job_name(path.relative_to(logs / "tiny")): path.read_text() for path in written}
    return set(texts), {step for text in texts.values() for step in BUILDING.findall(text)}


def job_name(log: Path) -> str:
    """Rule and component of a job, by its log's path below `logs/{model}`."""
    step, component = (log.parts[0], log.stem) if len(log.parts) > 1 else (log.stem, "")
    rules = {
        "weights": "import_sd1",
        "reference": "draw_reference",
        "onnx": "export_onnx",
        "build": "compile_model",
        "check": "check_compiled_of_sd1",
        "verdict": "judge",
        "simulation": "simulate",
        "report": "write_report",
        "preflight": "preflight",
    }
    if step == "calibration":
        own = {
            "trajectories": "record_trajectories",
            "unet": "calibrate_denoiser_of_sd1",
            "vae": "calibrate_vae_of_sd1",
        }
        return own.get(component, f"calibrate_{component}/{component}")
    return f"{rules[step]}/{component}" if component else rules[step]


def job_of(step: str) -> str:
    """The job, as the planner calls it, that does a step: `measure_parity/unet`."""
    name, _, component = step.partition("/")
    for job, steps in SHARED.items():
        if name in steps:
            return f"{job}/{component}" if job == "export_onnx" else job
    return step


def row(**cells: str) -> Callable[[Project], None]:
    """Change cells of the model's row."""
    return lambda project: project.write_rows(ROW | cells)


def config(old: str, new: str) -> Callable[[Project], None]:
    """Change an entry of the config."""
    return lambda project: project.edit("config/config.yaml", old, new)


def prompts(old: str, new: str) -> Callable[[Project], None]:
    """Change the file of calibration prompts."""
    return lambda project: project.edit(ROW["calibration_prompts"], old, new)


def code(name: str, old: str, new: str) -> Callable[[Project], None]:
    """Change a module of the package."""
    return lambda project: project.edit_checkout(f"axbake/{name}", old, new)


def copy_all(project: Project) -> Project:
    """Project and checkout are somewhere else."""
    beside = project.directory.with_name("elsewhere")
    return replace(project.copy(beside), cache=project.cache).copy_checkout(beside / "checkout")


def clone(project: Project) -> None:
    """As after `git clone`: nothing is there but what the user brings; the cache is kept."""
    project.forget()
    for name in ("results", "logs"):
        shutil.rmtree(project.directory / name)


def other_bytes(project: Project) -> None:
    """Another checkpoint under the same name, of an older date; one value of the VAE decoder is another."""
    path = project.directory / ROW["checkpoint"]
    tensors, past = load_file(path), path.stat().st_mtime - 86400
    tensors["first_stage_model.decoder.conv_out.bias"][0] += 0.01
    save_file(tensors, path)
    os.utime(path, (past, past))


def same_checkpoint_elsewhere(project: Project) -> None:
    shutil.copy(project.directory / ROW["checkpoint"], project.directory / "checkpoints" / "copy.safetensors")
    project.write_rows(ROW | {"checkpoint": "checkpoints/copy.safetensors"})


def embeddings(project: Project) -> None:
    """Give the row an embedding."""
    path = project.directory / "embeddings" / "easynegative.safetensors"
    path.parent.mkdir()
    save_file({"emb_params": torch.full((8, tiny.WIDTH), 0.02)}, path)
    project.write_rows(ROW | {"embeddings": "embeddings/easynegative.safetensors"})


def unet_lora(project: Project) -> None:
    """Give the row a LoRA, of the UNet alone."""
    path = project.directory / "loras" / "film.safetensors"
    loras.save(loras.kohya(loras.pairs(tiny.small_sd1(), ("unet",))), path)
    project.write_rows(ROW | {"loras": "loras/film.safetensors:0.5"})


def own_vae(project: Project) -> None:
    """Give the row a small VAE of its own."""
    tensors = tiny.single_file_tensors(tiny.sdxs())
    path = project.directory / "checkpoints" / "taesd.safetensors"
    save_file({name: tensor for name, tensor in tensors.items() if "first_stage" in name}, path)
    project.write_rows(ROW | {"vae": "checkpoints/taesd.safetensors"})


def new_family(project: Project) -> None:
    """Put a family beside the others, to which no checkpoint belongs."""
    families = project.checkout / "axbake" / "families"
    text = (families / "sd2.py").read_text()
    assert text.count('name="sd2"') == 1
    text = re.sub(r"    return width == .*", "    return False", text.replace('name="sd2"', 'name="pixart"'))
    (families / "pixart.py").write_text(text)


def own_config(text: str) -> Callable[[Project], None]:
    """Give the row a config of its own."""

    def carry_out(project: Project) -> None:
        (project.directory / "config" / "tiny.yaml").write_text(text)
        project.write_rows(ROW | {"config": "config/tiny.yaml"})

    return carry_out


def each(step: str, *components: str) -> set[str]:
    """The same *step* of each component; of all if none is named."""
    return {f"{step}/{component}" for component in components or COMPONENTS}


def exported(*components: str) -> set[str]:
    """Exports and their parity of *components*; of all if none is named."""
    return each("export_onnx", *components) | each("measure_parity", *components)


def compiled(*components: str) -> set[str]:
    """Compiles and their checks of *components*; of all if none is named."""
    return each("compile_model", *components) | each("check_compiled", *components)


def _edit(what: str, carry_out: Callable, *work: str | set[str], of_code: bool = False) -> Edit:
    steps = set().union(*({step} if isinstance(step, str) else step for step in work))
    return Edit(what, carry_out, frozenset(steps), of_code)


COMPILED = {"simulate", "attribute_error"}
PICTURES = {"draw_reference", "draw_parts", "check_calibration", "compare_nodes/unet", *COMPILED}
CHOSEN = {"calibrate_denoiser/unet", "check_calibration", "compare_nodes/unet", *compiled("unet"), *COMPILED}
UNET = {"record_trajectories", "measure_residuals/unet", *CHOSEN}
VAE = ("vae_encoder", "vae_decoder")
PROMPTS = "calibrate_text_encoder/text_encoder"
TEXT_ENCODER = {"import_text_encoder/text_encoder", *exported("text_encoder"), *compiled("text_encoder")}
OTHER = ROW | {"model": "other", "prompt": "a tractor", "height": "72"}
EDITS = [
    _edit("nothing", lambda project: None),
    _edit("all files touched", Project.touch),
    _edit("project and checkout copied elsewhere", copy_all),
    _edit("`git clone` anew, the cache kept", clone),
    _edit("`.snakemake` and `.axbake` deleted", Project.forget),
    _edit(
        "a comment in a module", code("graphs/export.py", "\nOPSET = 18", "\n# Of its own.\nOPSET = 18"), of_code=True
    ),
    _edit("a docstring", code("graphs/parity.py", '"""Whether ONNX graphs', '"""Says whether graphs'), of_code=True),
    _edit("another model family", new_family, of_code=True),
    _edit(
        "a word in an error about pyaxengine",
        code("runtime/session.py", "pyaxengine cannot be imported", "pyaxengine is not importable"),
        of_code=True,
    ),
    _edit("how often progress is printed", code("runtime/progress.py", "SECONDS = 5", "SECONDS = 7"), of_code=True),
    _edit(
        "a real change of all exports, same results",
        code("graphs/export.py", "\nOPSET = 18", "\nOPSET = 9 + 9"),
        each("export_onnx"),
        of_code=True,
    ),
    _edit(
        "a real change of the text encoder's graph, same results",
        code("networks/modules.py", "MASKED = -100.0", "MASKED = -10.0 * 10"),
        exported("text_encoder"),
        of_code=True,
    ),
    _edit("a threshold of parity", config("    denoiser: 60", "    denoiser: 55")),
    _edit("a threshold of compiled models", config("    denoiser: 20", "    denoiser: 19")),
    _edit("a row's own config, with thresholds", own_config("compiled: {min_sqnr: {unet: 18}}\n")),
    _edit(
        "the emulator's version",
        code("emulator/build.py", "emulated (axbake", "emulated again (axbake"),
        compiled(),
        COMPILED,
        {"draw_parts", "compare_nodes/unet"},
        of_code=True,
    ),
    _edit("the version of a compiler that is not used", config('"4.2"', '"5.0"')),
    _edit("a comment in the config", config("# for the UNet, chosen from", "# of all those")),
    _edit("a comment among the prompts", prompts("penguin", "# one\npenguin")),
    _edit("another model's row", lambda project: project.write_rows(ROW, OTHER)),
    _edit("the order of rows", lambda project: project.write_rows(OTHER, ROW)),
    _edit("the address that the checkpoint came from", row(source="https://example.org/elsewhere")),
    _edit("the same checkpoint under another name", same_checkpoint_elsewhere),
    _edit(
        "a checkpoint of other bytes and an older date; only its VAE decoder differs",
        other_bytes,
        {"import_text_encoder/text_encoder", "import_denoiser/unet", *each("import_component", *VAE)},
        {"describe_checkpoint", "draw_reference", "draw_parts", "decode_latents"},  # the same latents are chosen
        exported("vae_decoder"),
        compiled("vae_decoder"),
        COMPILED,
    ),
    _edit("the reference's prompt", row(prompt="a tractor"), PICTURES),
    _edit("its seed", row(seed="8"), PICTURES),
    _edit("a calibration prompt", prompts("penguin", "tractor"), UNET),
    _edit("the negative prompt", row(negative_prompt="ugly"), UNET, PICTURES),
    _edit("the guidance scale", row(guidance_scale="6"), UNET, PICTURES, "derive_schedule"),
    _edit("the steps", row(steps="5"), UNET, PICTURES, "derive_schedule"),
    _edit("the scheduler", row(scheduler="ddim"), UNET, PICTURES, "derive_schedule"),
    _edit("clip skip", row(clip_skip="2"), UNET, PICTURES, TEXT_ENCODER, "list_embeddings"),
    _edit(
        "an embedding that no prompt names",
        embeddings,
        {"list_embeddings", PROMPTS, "record_trajectories"},
        PICTURES,
        TEXT_ENCODER,
    ),
    _edit(
        "a LoRA of the UNet",
        unet_lora,
        "import_denoiser/unet",
        "derive_schedule",  # the time embedding is the UNet's
        exported("unet"),
        UNET,
        PICTURES,
    ),
    _edit(
        "a VAE of its own",
        own_vae,
        {"describe_checkpoint", "draw_reference", "draw_parts"},
        {"encode_pictures", "calibrate_encoder", "decode_latents", "calibrate_decoder"},
        each("import_component", *VAE),
        exported(*VAE),
        compiled(*VAE),
        COMPILED,
    ),
    _edit(
        "chunks of prompts",
        row(prompt_chunks="2"),
        UNET,
        PICTURES,
        exported("unet"),
    ),
    _edit("the number of samples", config("samples: 8", "samples: 9"), CHOSEN),
    _edit("how samples are chosen", config("selection: coverage", "selection: first"), CHOSEN),
    _edit(
        "a prompt of all text encoders",
        lambda project: project.edit("config/prompts/text_encoder.txt", "rocket", "tractor"),
        PROMPTS,
        compiled("text_encoder"),
        COMPILED,
        "draw_parts",
    ),
    _edit(
        "Pulsar2's precision of the VAE decoder",
        config("  decoder: U16", "  decoder: S16"),
        compiled("vae_decoder"),
        COMPILED,
    ),
    _edit(
        "the height",
        row(height="72"),
        UNET,
        PICTURES,
        {"draw_pictures", "encode_pictures", "calibrate_encoder", "decode_latents", "calibrate_decoder"},
        exported("unet", *VAE),
        compiled(*VAE),
    ),
]


def short(steps: set[str]) -> str:
    """Names of steps for people: `export_onnx` of which components, by step."""
    parts: dict[str, list[str]] = {}
    for step, _, component in sorted(name.partition("/") for name in steps):
        parts.setdefault(step, []).append(component)
    names = (f"{step} ({', '.join(components)})" if any(components) else step for step, components in parts.items())
    return "; ".join(names) or "none"


def line(edit: Edit, seen: Seen) -> str:
    """A line of the table in docs/rebuilds.md; bakes once more for it."""
    _, work_back = bake(seen.project)
    assert not seen.project.plan(REPORT).jobs
    count = Counter(seen.plan.values())
    plan = ", ".join(f"{count[kind]} {kind}" for kind in ("stored", "build", "unknown", "run") if count[kind])
    same = "the same" if seen.work == edit.work else short(seen.work)
    compiles = sum(name.startswith("compile_model") for name in seen.work)
    expected, jobs = short(set(edit.work)), sum(seen.dry_run.values())
    cells = [edit.what, jobs, plan or "none", expected, same, compiles, len(work_back)]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    page = Path(sys.argv[1])
    head = page.read_text(encoding="utf-8").partition("| edit |")[0]
    lines = [
        "| edit | jobs of `-n` | planner | real work, expected | seen | compiles | real work once taken back |",
        "|---|---:|---|---|---|---:|---:|",
    ]
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        checkpoint = tiny.save(tiny.small_sd1(), directory / "tiny.safetensors")
        baked = Project.lay_out(directory / "baked" / "project", directory / "baked" / "cache", checkpoint)
        baked.bake(REPORT)

        def seen(number: int, edit: Edit) -> str:
            place = directory / str(number)
            told = line(edit, observe(edit, prepare(edit, baked, place)))
            shutil.rmtree(place)
            print(told, flush=True)
            return told

        with ThreadPoolExecutor(os.cpu_count()) as threads:  # each waits for programs
            lines += threads.map(seen, *zip(*enumerate(EDITS), strict=True))
    page.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


def prepare(edit: Edit, baked: Project, directory: Path) -> Project:
    """A copy of the *baked* project in *directory* in which *edit* can be carried out, with a cache of its own."""
    project = baked.copy(directory)
    return project.copy_checkout(directory / "checkout") if edit.of_code else project


if __name__ == "__main__":
    main()
