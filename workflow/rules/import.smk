# Takes a single-file checkpoint. Makes weights/{component}.safetensors under diffusers' names, and checkpoint.json, which
# says what the file is.


rule import_checkpoint:
    """Take one component out of a checkpoint, under diffusers' names."""
    input:
        settings=settings(
            "axbake.checkpoint.import_checkpoint",
            data=["resources/sd1"],
            tools=["safetensors", "torch", "diffusers", "transformers"],
            row=["component"],
            sources={"checkpoint": source_digest},
        ),
        checkpoint=checkpoint,
    output:
        weights="results/{model}/weights/{component}.safetensors",
    log:
        "logs/{model}/weights/{component}.log",
    benchmark:
        "benchmarks/{model}/weights/{component}.tsv"
    conda:
        "../../envs/axbake.yaml"
    resources:
        mem_mb=2000,
    message:
        "Importing the {wildcards.component} of {wildcards.model} from {input.checkpoint}"
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
            sources={"checkpoint": source_digest},
        ),
        checkpoint=checkpoint,
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
