# Takes a checkpoint in any form, and a VAE's file if the row has one. Makes weights/{component}.safetensors under diffusers' names,
# and checkpoint.json, which says what the checkpoint is; embeddings.json: token ids of the row's textual-inversion embeddings, and
# of its padding. What is no single safetensors file becomes one first, once for all components.

# Only the UNet's import asks what it predicts.
PREDICTION = {
    component: ["component", "prediction"] if component == "unet" else ["component"] for component in COMPONENTS
}
SIDECAR = {component: {"sidecar": sidecar} if component == "unet" else {} for component in COMPONENTS}
STRENGTHS = {component: {"strengths": strengths_for(component)} for component in COMPONENTS}


rule convert_checkpoint:
    """Make one safetensors file of a pickle, a diffusers folder or a recipe of a merge, in the column checkpoint or vae."""
    input:
        settings=settings(
            "axbake.checkpoints.importing.convert_checkpoint",
            tools=["torch", "sd-mecha"],
            sources={column: {"source": partial(brought_digest, column=column)} for column in ("checkpoint", "vae")},
        ),
        source=brought,
    output:
        checkpoint="results/{model}/{column}.safetensors",
    log:
        "logs/{model}/{column}.safetensors.log",
    benchmark:
        "benchmarks/{model}/{column}.safetensors.tsv"
    wildcard_constraints:
        column="checkpoint|vae",
    conda:
        "../../envs/axbake.yaml"
    resources:
        mem_mb=more_each_time(4000),
        runtime=more_each_time(20),
    message:
        "Converting the {wildcards.column} of {wildcards.model} to safetensors"
    script:
        "../scripts/job.py"


rule import_checkpoint:
    """Take one component out of a checkpoint, under diffusers' names."""
    input:
        settings=settings(
            "axbake.checkpoints.importing.import_checkpoint",
            data=["resources/sd1"],
            tools=["safetensors", "torch", "diffusers", "transformers", "lycoris_lora"],
            row=PREDICTION,
            more={component: SIDECAR[component] | STRENGTHS[component] for component in COMPONENTS},
            sources={
                component: {"checkpoint": digest_for(component), "loras": loras_digest_for(component)}
                for component in COMPONENTS
            },
        ),
        checkpoint=checkpoint,
        loras=loras,
    output:
        weights="results/{model}/weights/{component}.safetensors",
    log:
        "logs/{model}/weights/{component}.log",
    benchmark:
        "benchmarks/{model}/weights/{component}.tsv"
    wildcard_constraints:
        component="unet|vae_encoder|vae_decoder",  # the text encoder has a rule of its own
    conda:
        "../../envs/axbake.yaml"
    resources:
        mem_mb=more_each_time(2000),
        runtime=more_each_time(20),
    message:
        "Importing the {wildcards.component} of {wildcards.model} from {input.checkpoint}"
    script:
        "../scripts/job.py"


rule import_text_encoder:
    """Take the text encoder out of a checkpoint, with the row's embeddings and clip skip."""
    input:
        settings=settings(
            "axbake.checkpoints.text_encoder.import_text_encoder",
            data=["resources/sd1"],
            tools=["safetensors", "torch", "diffusers", "transformers", "lycoris_lora"],
            row=["clip_skip"],
            more=STRENGTHS["text_encoder"],
            sources={
                "checkpoint": digest_for("text_encoder"),
                "embeddings": embeddings_digest,
                "loras": loras_digest_for("text_encoder"),
            },
        ),
        checkpoint=checkpoint,
        embeddings=embeddings,
        loras=loras,
    output:
        weights="results/{model}/weights/text_encoder.safetensors",
    log:
        "logs/{model}/weights/text_encoder.log",
    benchmark:
        "benchmarks/{model}/weights/text_encoder.tsv"
    conda:
        "../../envs/axbake.yaml"
    resources:
        mem_mb=more_each_time(6000),
        runtime=more_each_time(20),
    message:
        "Importing the text_encoder of {wildcards.model} from {input.checkpoint}"
    script:
        "../scripts/job.py"


rule list_embeddings:
    """Say which token ids the row's embeddings have, and which its padding."""
    input:
        settings=settings(
            "axbake.checkpoints.embeddings.list_embeddings",
            tools=["safetensors", "torch"],
            more={"names": embedding_names},
            sources={"embeddings": embeddings_digest},
        ),
        text_encoder="results/{model}/weights/text_encoder.safetensors",
        embeddings=embeddings,
    output:
        listing="results/{model}/embeddings.json",
    log:
        "logs/{model}/embeddings.log",
    conda:
        "../../envs/axbake.yaml"
    message:
        "Listing the embeddings of {wildcards.model}"
    script:
        "../scripts/job.py"


rule describe_checkpoint:
    """Say what a checkpoint is, and what in it is not used."""
    input:
        settings=settings(
            "axbake.checkpoints.description.describe_checkpoint",
            data=["resources/sd1"],
            tools=["safetensors", "torch", "diffusers", "transformers"],
            row=["prediction"],
            more={"sha256": source_digest, "vae_sha256": own_vae_digest, "sidecar": sidecar},
            sources={"checkpoint": digest_for("unet"), "vae": digest_for("vae_decoder")},
        ),
        checkpoint=checkpoint,
        vae=vae,
        records=fetch_record,
    output:
        description="results/{model}/checkpoint.json",
    log:
        "logs/{model}/checkpoint.log",
    benchmark:
        "benchmarks/{model}/checkpoint.tsv"
    conda:
        "../../envs/axbake.yaml"
    resources:
        mem_mb=more_each_time(2000),
        runtime=more_each_time(20),
    message:
        "Describing {input.checkpoint}"
    script:
        "../scripts/job.py"


rule write_single_file:
    """Write a model as one fp16 safetensors file of LDM names, for stable-diffusion.cpp and web UIs."""
    input:
        settings=settings("axbake.checkpoints.single_file.write_single_file", tools=["torch"]),
        text_encoder="results/{model}/weights/text_encoder.safetensors",
        unet="results/{model}/weights/unet.safetensors",
        vae_encoder="results/{model}/weights/vae_encoder.safetensors",
        vae_decoder="results/{model}/weights/vae_decoder.safetensors",
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
