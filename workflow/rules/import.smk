# Takes a checkpoint in any form, and a VAE's file if the row has one. Makes weights/{component}.safetensors under diffusers' names,
# and checkpoint.json, which says what the checkpoint is; embeddings.json: token ids of the row's textual-inversion embeddings, and
# of its padding. What is not a single safetensors file becomes one first. Each family has a rule of its own, since its components
# are the rule's outputs.


rule convert_checkpoint:
    """Make one safetensors file of a pickle, a diffusers folder or a recipe of a merge, in the column checkpoint or vae."""
    input:
        settings=settings(
            "convert_checkpoint",
            step(
                "axbake.checkpoints.conversion.convert_checkpoint",
                values=recipe_settings,
                tools=["torch"],
                sources=lambda model, wildcards: {"source": model.sources.brought_digest(wildcards.column)},
            ),
            part="column",
        ),
        source=brought(lambda model, wildcards: model.sources.brought(wildcards.column)),
    output:
        checkpoint="results/{model}/{column}.safetensors",
    log:
        "logs/{model}/{column}.safetensors.log",
    wildcard_constraints:
        column="|".join(COLUMNS),
    conda:
        "../../envs/axbake.yaml"
    resources:
        mem_mb=memory_of(4000),
        runtime=more_each_time(20),
    message:
        "Converting the {wildcards.column} of {wildcards.model} to safetensors"
    script:
        "../scripts/job.py"


for family in IN_TABLE:

    rule:
        """Take a model's components out of its checkpoint, list its embeddings, and say what the checkpoint is."""
        name:
            f"import_{family.name}"
        input:
            **{f"{one.name}_loras": loras_for(one) for one in family.components if one.role in (TEXT, DENOISER)},
            settings=settings("import_model", more=import_steps),
            checkpoint=brought(checkpoint_of),
            vae=brought(lambda model, _: model.sources.file(column_of(model, "vae"))),
            embeddings=brought(embeddings_of),
            tokenizers=brought(tokenizers_of),
            records=with_model(lambda model, _: model.sources.fetch_records),
        output:
            **{name: f"results/{{model}}/weights/{name}.safetensors" for name in family.names},
            description="results/{model}/checkpoint.json",
            listing="results/{model}/embeddings.json",
        log:
            "logs/{model}/weights.log",
        wildcard_constraints:
            model=models_of([family]),
        conda:
            "../../envs/axbake.yaml"
        resources:
            mem_mb=memory_of(6000),
            runtime=more_each_time(30),
        message:
            "Importing {wildcards.model} from {input.checkpoint}"
        script:
            "../scripts/job.py"


rule write_single_file:
    """Write a model as one fp16 safetensors file of LDM names, for stable-diffusion.cpp and web UIs."""
    input:
        files(
            settings=settings(
                "write_single_file",
                step(
                    "axbake.weights.single_file.write_single_file",
                    values=lambda model, _: {
                        "components": list(model.family.as_files.values()),
                        "title": model.family.title,
                        "specification": model.family.specification,
                    },
                    tools=["torch"],
                ),
            ),
            weights="results/{model}/weights/{component}.safetensors",
        ),
    output:
        single_file="results/{model}/single_file.safetensors",
    log:
        "logs/{model}/single_file.log",
    conda:
        "../../envs/axbake.yaml"
    resources:
        mem_mb=memory_of(2000),
        runtime=more_each_time(20),
    message:
        "Writing {wildcards.model} as a single file"
    script:
        "../scripts/job.py"
