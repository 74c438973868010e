# Takes the weights and the row's prompt and sampler. Makes the picture that the model should draw, with its latents.


rule draw_reference:
    """Draw the reference picture with diffusers, in float32."""
    input:
        settings=settings(
            "axbake.drawing.reference.draw_reference",
            data=["resources/clip"],
            tools=["torch", "diffusers", "transformers", "tokenizers", "numpy", "pillow"],
            row=[*DRAWING, "scheduler", "steps", "prompt_chunks"],
        ),
        text_encoder="results/{model}/weights/text_encoder.safetensors",
        unet="results/{model}/weights/unet.safetensors",
        vae_decoder="results/{model}/weights/vae_decoder.safetensors",
        embeddings="results/{model}/embeddings.json",
    output:
        image="results/{model}/reference/image.png",
        trajectory="results/{model}/reference/trajectory.npy",
        settings="results/{model}/reference/settings.json",
    log:
        "logs/{model}/reference.log",
    benchmark:
        "benchmarks/{model}/reference.tsv"
    conda:
        "../../envs/axbake.yaml"
    threads: 4
    resources:
        mem_mb=more_each_time(10000),
        runtime=more_each_time(60),
    message:
        "Drawing the reference picture of {wildcards.model}"
    script:
        "../scripts/job.py"
