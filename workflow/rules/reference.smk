# Takes the weights and the row's prompt and sampler. Makes the picture that the model should draw, with its latents.


rule draw_reference:
    """Draw the reference picture with diffusers, in float32."""
    input:
        files(
            settings=settings(
                "draw_reference",
                step(
                    "axbake.drawing.reference.draw_reference",
                    values=lambda model, _: {
                        "picture": model.picture,
                        "builds": model.builds,
                        "states": model.states,
                        "pipeline": pipeline_of(model),
                        "conditioning": model.family.conditioning,
                        "device": chosen_device(model.entry("device")),
                    },
                    tools=[*TORCH, "tokenizers", "numpy", "pillow"],
                    data=["resources/clip"],
                    sources=canvas_sources,
                ),
            ),
            text_encoders="results/{model}/weights/{text}.safetensors",
            denoiser="results/{model}/weights/{denoiser}.safetensors",
            decoder="results/{model}/weights/{decoder}.safetensors",
        ),
        canvas=brought(canvas_of),
        encoder=with_canvas("results/{model}/weights/{encoder}.safetensors"),
        embeddings="results/{model}/embeddings.json",
    output:
        image="results/{model}/reference/image.png",
        trajectory="results/{model}/reference/trajectory.npy",
        settings="results/{model}/reference/settings.json",
        activations="results/{model}/reference/activations.json",
    log:
        "logs/{model}/reference.log",
    conda:
        "../../envs/axbake.yaml"
    threads: threads_of(4)
    resources:
        mem_mb=memory_of(8000, whole=WHOLE),
        runtime=more_each_time(60),
    message:
        "Drawing the reference picture of {wildcards.model}"
    script:
        "../scripts/job.py"
