# Takes a checkpoint in any form, and a VAE's file if the row has one. Makes weights/{component}.safetensors under diffusers' names,
# and checkpoint.json, which says what the checkpoint is; embeddings.json: token ids of the row's textual-inversion embeddings, and
# of its padding. What is not a single safetensors file becomes one first. Each family has a rule of its own, since its components
# are the rule's outputs.

IMPORT_TOOLS = ["safetensors", "torch", "diffusers", "transformers", "lycoris_lora"]
ADVISED = set()  # models


def family_told(model):
    """Name of a model's family; of a row that cannot be baked, none."""
    try:
        return model.family.name
    except AxbakeError:
        return None


FAMILY_OF = {name: family_told(model) for name, model in MODELS.items()}
IN_TABLE = [family for name, family in FAMILIES.items() if name in FAMILY_OF.values()] or [*FAMILIES.values()][:1]


def models_of(families):
    """Regular expression of the models of *families*; those of the first family in the table have any other name too, so that
    `model_of` can say which there are."""
    others = [name for name, family in FAMILY_OF.items() if family and family not in [one.name for one in families]]
    mine = [name for name, family in FAMILY_OF.items() if family in [one.name for one in families]]
    if IN_TABLE[0] in families:
        return f"(?!({names_of(others)})/)[^/]+" if others else "[^/]+"
    return names_of(mine)


def import_steps(model, wildcards):
    """The description of the checkpoint, which refuses it before anything is written; one step a component; the listing of embeddings."""
    family = model.family
    description = step(
        "axbake.weights.description.describe_checkpoint",
        values=described,
        row=["prediction"],
        tools=["safetensors", *TORCH],
        data=lambda model: model.family.resources,
        sources=lambda model, _: {column: model.sources.file_digest(column_of(model, column)) for column in COLUMNS},
    )
    listing = step(
        "axbake.weights.embeddings.list_embeddings",
        values=lambda model, _: {"names": model.sources.embedding_names},
        tools=["safetensors", "torch"],
        sources=lambda model, _: {"embeddings": model.sources.embeddings_digest},
        names={"text_encoder": family.text_encoders[0].name},
    )
    return [description, *(partial(import_step, component=component) for component in family.components), listing]


def column_of(model, column):
    """*column*; the checkpoint's where the row has no VAE of its own."""
    return column if model.row[column] else "checkpoint"


def described(model, wildcards):
    family, own = model.family, model.row["vae"]
    return {
        "family": family.name,
        "title": family.title,
        "components": [as_files(component) for component in family.components],
        "latents": family.latents,
        "fits": family.fits,
        "prediction_type": family.process.prediction_type,
        "sampling": family.process.sampling,
        "sha256": model.sources.digest(),
        "vae_sha256": model.sources.digest("vae") if own else "",
        "sidecar": model.sources.sidecar,
    }


def import_step(model, wildcards, component):
    """The step that takes *component* out of its file."""
    family, column = model.family, model.sources.column_of(component)
    autoencoder = component.role in (ENCODER, DECODER)
    given = {"component": as_files(component), "family": "" if autoencoder else family.name, "latents": family.latents}
    sources = {"checkpoint": model.sources.file_digest(column)}
    names = {"checkpoint": column, "weights": component.name}
    function = "import_component"
    if not autoencoder:
        given |= {"title": family.title, "strengths": model.strengths_of(component)}
        sources["loras"] = model.loras_digest(component)
        names["loras"] = f"{component.name}_loras"
    if component.role == TEXT:
        function = "import_text_encoder"
        given |= {"clip_skip": model.row["clip_skip"], "shortened": family.clip_skip}
        sources["embeddings"] = model.sources.embeddings_digest
    elif component.role == DENOISER:
        function = "import_denoiser"
        given |= {
            "prediction": model.row["prediction"],
            "prediction_type": family.process.prediction_type,
            "sidecar": model.sources.sidecar,
            "sampling": family.process.sampling,
        }
    return step(
        f"axbake.weights.importing.{function}",
        of=component.name,
        values=lambda model, _: given,
        tools=IMPORT_TOOLS,
        data=family.resources,
        sources=lambda model, _: sources,
        names=names,
    )(model, wildcards)


def loras_for(component):
    """Input function: paths of a model's LoRAs that change *component*; says, once a run, which of them have no effect."""

    def paths(model, wildcards):
        if model.name not in ADVISED and workflow.is_main_process:
            ADVISED.add(model.name)
            for sentence in model.advice():
                logger.warning(f"{model.name}: {sentence}.")
        return [lora.path for lora in model.loras_of(component)]

    return with_model(paths)


def embeddings_of(model, wildcards):
    """Paths of a model's textual-inversion embeddings, which are there."""
    assert model.sources.embeddings_digest is not None
    return model.row["embeddings"]


rule convert_checkpoint:
    """Make one safetensors file of a pickle, a diffusers folder or a recipe of a merge, in the column checkpoint or vae."""
    input:
        settings=settings(
            "convert_checkpoint",
            step(
                "axbake.checkpoints.conversion.convert_checkpoint",
                values=lambda model, wildcards: recipe_settings(model),
                tools=["torch", "sd-mecha"],
                sources=lambda model, wildcards: {"source": model.sources.brought_digest(wildcards.column)},
            ),
            part="column",
        ),
        source=with_model(lambda model, wildcards: model.sources.brought(wildcards.column)),
    output:
        checkpoint="results/{model}/{column}.safetensors",
    log:
        "logs/{model}/{column}.safetensors.log",
    benchmark:
        "benchmarks/{model}/{column}.safetensors.tsv"
    wildcard_constraints:
        column="|".join(COLUMNS),
    conda:
        "../../envs/axbake.yaml"
    resources:
        mem_mb=more_each_time(4000),
        runtime=more_each_time(20),
    message:
        "Converting the {wildcards.column} of {wildcards.model} to safetensors"
    script:
        "../scripts/job.py"


def recipe_settings(model):
    """What a merge needs of the family; other forms are converted without."""
    if not is_recipe(Path(model.row["checkpoint"])):
        return {}
    return {"components": [as_files(one) for one in model.family.components], "latents": model.family.latents}


for family in IN_TABLE:

    rule:
        name:
            f"import_{family.name}"
        input:
            settings=settings("import_model", more=import_steps),
            checkpoint=with_model(lambda model, _: model.sources.file("checkpoint")),
            vae=with_model(lambda model, _: model.sources.file(column_of(model, "vae"))),
            embeddings=with_model(embeddings_of),
            records=with_model(lambda model, _: model.sources.fetch_records),
            **{f"{one.name}_loras": loras_for(one) for one in family.components if one.role in (TEXT, DENOISER)},
        output:
            description="results/{model}/checkpoint.json",
            listing="results/{model}/embeddings.json",
            **{name: f"results/{{model}}/weights/{name}.safetensors" for name in family.names},
        log:
            "logs/{model}/weights.log",
        benchmark:
            "benchmarks/{model}/weights.tsv"
        wildcard_constraints:
            model=models_of([family]),
        conda:
            "../../envs/axbake.yaml"
        resources:
            mem_mb=more_each_time(6000),
            runtime=more_each_time(30),
        message:
            "Importing {wildcards.model} from {input.checkpoint}"
        script:
            "../scripts/job.py"


rule write_single_file:
    """Write a model as one fp16 safetensors file of LDM names, for stable-diffusion.cpp and web UIs."""
    input:
        settings=settings(
            "write_single_file",
            step(
                "axbake.weights.single_file.write_single_file",
                values=lambda model, _: {
                    "components": [as_files(one) for one in model.family.components],
                    "title": model.family.title,
                    "specification": model.family.specification,
                },
                tools=["torch"],
            ),
        ),
        weights=of_components("results/{model}/weights/{component}.safetensors"),
    output:
        single_file="results/{model}/single_file.safetensors",
    log:
        "logs/{model}/single_file.log",
    benchmark:
        "benchmarks/{model}/single_file.tsv"
    conda:
        "../../envs/axbake.yaml"
    resources:
        mem_mb=more_each_time(2000),
        runtime=more_each_time(20),
    message:
        "Writing {wildcards.model} as a single file"
    script:
        "../scripts/job.py"
