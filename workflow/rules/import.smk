# Takes a single-file checkpoint. Makes weights/{component}.safetensors under diffusers' names, and checkpoint.json, which
# says what the file is; of the text encoder also embeddings.json, the token ids of its textual-inversion embeddings.


rule import_checkpoint:
    """Take one component out of a checkpoint, under diffusers' names."""
    input:
        settings=settings(
            "axbake.checkpoint.import_checkpoint",
            data=["resources/sd1"],
            tools=["safetensors", "torch", "diffusers", "transformers"],
            row=["component"],
            sources={"checkpoint": checkpoint_digest},
        ),
        checkpoint=checkpoint,
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
        mem_mb=2000,
    message:
        "Importing the {wildcards.component} of {wildcards.model} from {input.checkpoint}"
    script:
        "../scripts/job.py"


rule import_text_encoder:
    """Take the text encoder out of a checkpoint, with the row's embeddings and clip skip."""
    input:
        settings=settings(
            "axbake.text_encoder.import_text_encoder",
            data=["resources/sd1"],
            tools=["safetensors", "torch", "diffusers", "transformers"],
            row=["clip_skip"],
            sources={"checkpoint": checkpoint_digest, "embeddings": embeddings_digest},
        ),
        checkpoint=checkpoint,
        embeddings=embeddings,
    output:
        weights="results/{model}/weights/text_encoder.safetensors",
    log:
        "logs/{model}/weights/text_encoder.log",
    benchmark:
        "benchmarks/{model}/weights/text_encoder.tsv"
    conda:
        "../../envs/axbake.yaml"
    resources:
        mem_mb=6000,
    message:
        "Importing the text_encoder of {wildcards.model} from {input.checkpoint}"
    script:
        "../scripts/job.py"


rule list_embeddings:
    """Say which token ids the row's embeddings have."""
    input:
        settings=settings(
            "axbake.embeddings.list_embeddings",
            tools=["safetensors", "torch"],
            more={"names": embedding_names},
            sources={"embeddings": embeddings_digest},
        ),
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
            "axbake.checkpoint.describe_checkpoint",
            data=["resources/sd1"],
            tools=["safetensors", "torch", "diffusers", "transformers"],
            more={"sha256": source_digest},
            sources={"checkpoint": checkpoint_digest},
        ),
        checkpoint=checkpoint,
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
        mem_mb=2000,
    message:
        "Describing {input.checkpoint}"
    script:
        "../scripts/job.py"
