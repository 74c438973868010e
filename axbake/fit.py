"""Whether a row's files and cells fit each other, by headers and the table alone: what would otherwise end a later job.

The import looks at all of it again, and at every tensor's shape, since what is still to be fetched has no header yet.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from axbake.calibration.counting import Recorded, count_branches
from axbake.checkpoints.containers import Container
from axbake.checkpoints.embeddings import EmbeddingError, check_vectors, embedding_sizes
from axbake.checkpoints.finding import averaged_namings, read_network, use_average
from axbake.checkpoints.prediction import EPSILON
from axbake.checkpoints.refusals import check_canvas, check_latents, check_texts
from axbake.families import FAMILIES
from axbake.families.family import Family
from axbake.jobs.values import encode
from axbake.loras.files import LoraError, check_family, lora_facts, read_lora
from axbake.networks.clip_skip import layers_left
from axbake.networks.component import Component, Shapes, columns_of
from axbake.networks.sampling import SamplingError, guided_steps, steps_run
from axbake.runtime.values import CANVAS
from axbake.sources import COLUMNS, Sources, read_header

Configs = Mapping[str, dict[str, Any]]  # of networks, by component


def check_fit(row: dict[str, Any], family: Family, configs: Configs) -> None:
    """Compare the networks in a row's files with each other, and with what the row asks of them.

    Args:
        configs: as `configs_of` gives them.

    Raises:
        TensorMismatch: token widths differ.
        SamplingError, CanvasError, TimeEmbeddingError, ClipSkipError: the row asks for what its networks cannot do.
        EmbeddingError, LoraError: made for another text encoder.
    """
    if family.denoiser.name in configs:  # and so the text encoders, which are in the same file
        _check_conditioning(row, family, configs)
        _check_denoiser(row, family, configs)
    for component in family.components:
        for piece in component.graphs if component.name in configs else ():
            piece.interface(configs[component.name], **columns_of(component, row))


def configs_of(row: dict[str, Any], family: Family, sources: Sources) -> dict[str, dict[str, Any]]:
    """Config of each network of a row, by component; of those that are still to be fetched none.

    Raises:
        UnknownFamily, TensorMismatch: a network is not there, or of another kind than the family's.
    """
    configs: dict[str, dict[str, Any]] = {}
    for column in COLUMNS:
        components = [one for one in family.components if sources.column_of(one) == column]
        if components and not sources.is_remote(column):
            configs |= _configs_in(Path(row[column]), family, components)
    return configs


def modules_of(path: Path, family: Family, component: Component) -> Shapes:
    """Shapes of the weights of *component* in the local checkpoint *path*, by diffusers' names; remembered likewise."""

    def look(container: Container) -> dict[str, list[int]]:
        shapes = read_network(use_average(container, averaged_namings([component])), component).shapes
        return {name: list(shape) for name, shape in shapes.items() if name.endswith(".weight")}

    return read_header(path, f"modules-{component.name}", look, *_code(family.name, (component.name,)))


def _configs_in(path: Path, family: Family, components: Sequence[Component]) -> Configs:
    """Config of each of *components* in *path*, in diffusers' form; remembered while file and code are the same."""

    def look(container: Container) -> dict[str, Any]:
        container = use_average(container, averaged_namings(components))
        found = {one.name: read_network(container, one).config for one in components}
        for config in found.values():
            check_latents(container.path, config, family.latents)
        return found

    names = tuple(one.name for one in components)
    return read_header(path, f"configs-{family.name}-{len(components)}", look, *_code(family.name, names))


@cache
def _code(family: str, components: tuple[str, ...]) -> list[str]:
    """Dotted names of what decides how the headers of *components* are read."""
    names = ["axbake.checkpoints.finding.read_network", "axbake.checkpoints.refusals.check_latents"]
    return names + [name for one in components for name in encode({"files": FAMILIES[family].component(one).files})[1]]


def _check_conditioning(row: dict[str, Any], family: Family, configs: Configs) -> None:
    """Text encoders, what is put into them, and what the denoiser takes of them."""
    check_texts(Path(row["checkpoint"]), family.components, configs, family.conditioning)
    encoders = [(one, configs[one.name]) for one in family.text_encoders]
    if row["clip_skip"] > 1:
        for config in [config for _, config in encoders if "num_hidden_layers" in config]:
            layers_left(config["num_hidden_layers"], row["clip_skip"], title=family.title, shortened=family.clip_skip)
    _check_loras(row, family, configs)
    for encoder, config in encoders:
        assert encoder.width
        if encoder.language and row["embeddings"]:
            raise EmbeddingError(
                f"column embeddings: {', '.join(row['embeddings'])}, but the {encoder.name} of {family.title} is a language"
                " model, which takes no textual-inversion embeddings. Empty the column."
            )
        for path in map(Path, row["embeddings"]):
            for count, found in embedding_sizes(path, encoder=encoder.files.embedding).values():
                check_vectors(path, count, found, rows=config["vocab_size"], width=encoder.width(config))


def _check_loras(row: dict[str, Any], family: Family, configs: Configs) -> None:
    """Whether a row's LoRAs were made for its family's networks."""
    changed = [one for one in family.components if one.files.lora_names]
    widths = {one.name: one.width(configs[one.name]) for one in changed if one.width}
    for path in [Path(lora.path) for lora in row["loras"]]:
        facts = lora_facts(path, family.denoiser.name)
        if others := sorted(facts.components.keys() - set(family.names)):
            raise LoraError(
                f"{path}: changes {', '.join(others)}, which {family.title} does not have. Give a LoRA that was made for the"
                " checkpoint."
            )
        for component, width in facts.widths.items():
            if width != widths.get(component, width):
                lora = read_lora(path, family.denoiser.name)
                check_family(lora, component=component, width=widths[component])


def _check_denoiser(row: dict[str, Any], family: Family, configs: Configs) -> None:
    """Whether it draws as the row says; what it predicts does not matter for that."""
    given = [name for name in CANVAS if row[name]]
    check_canvas(family.denoiser.name, configs[family.denoiser.name], given=given)
    kind = family.process.prediction_type or EPSILON
    sampling = family.process.sampling(configs[family.denoiser.name], kind, zero_terminal_snr=False)
    sampling.check(**{name: row[name] for name in ("scheduler", "steps", "guidance_scale")})
    if row["cfg_trunc_ratio"] is not None and not family.process.truncated:
        raise SamplingError(
            f"column cfg_trunc_ratio: {row['cfg_trunc_ratio']:g}, wanted an empty cell or 1: {family.title} is guided in all"
            " steps."
        )
    if row["scheduler"] not in family.process.schedulers:
        raise SamplingError(
            f"column scheduler: {row['scheduler']}, wanted {' or '.join(family.process.schedulers)}, which {family.title} is"
            " drawn with."
        )


def check_samples(row: dict[str, Any], calibration: Mapping[str, Any], family: Family, configs: Configs) -> None:
    """Whether the denoiser will see as many samples as are to be chosen, and as `compare_first` wants.

    `axbake.calibration.denoiser_samples.DenoiserSamples.recorded` lists what will be there.

    Raises:
        CalibrationError: prompts × steps × branches give fewer.
    """
    guidance = 1.0 if _embeds_guidance(family, configs) else row["guidance_scale"]
    branches = count_branches(guidance, row["image_guidance_scale"])
    steps = steps_run(row["scheduler"], row["steps"])
    guided = min(guided_steps(row["steps"], row["cfg_trunc_ratio"]), steps)
    branches = branches if guided else 1
    prompts = len(row["calibration_prompts"])
    # Samples of the empty prompt are added where no branch has it anyway.
    is_added = calibration["selection"] == "coverage" and (branches == 1 or bool(row["negative_prompt"].strip()))
    recorded = Recorded(prompts, steps, branches, alone=steps - guided)
    recorded.check("samples", calibration["samples"], empty=steps if is_added else 0)
    recorded.check("compare_first", calibration["compare_first"])


def _embeds_guidance(family: Family, configs: Configs) -> bool:
    """Whether the denoiser takes the guidance scale as an input, and so has one branch; no, while its file is not here."""
    name = family.denoiser.name
    kind = family.process.prediction_type or EPSILON
    return name in configs and family.process.sampling(configs[name], kind, zero_terminal_snr=False).guidance_embedded
