# Takes what the simulation takes, and what was recorded for calibration. Makes the picture that the model would draw if its denoiser
# were calibrated with the first samples recorded: of rows whose config wants it (calibration/compare_first), always emulated.


rule compare_calibration:
    """Draw with a denoiser that is calibrated with the first samples recorded, as published scripts do it."""
    input:
        files(
            settings=settings(
                "compare_calibration",
                step(
                    "axbake.toolchain.comparison.compare_calibration",
                    values=compared_with,
                    tools=[*EMULATOR_TOOLS, "tokenizers", "scikit-image"],
                    data=["resources/clip"],
                    sources=lambda model, wildcards: canvas_sources(model) | recipe_sources(model, wildcards),
                ),
            ),
            graphs="results/{model}/onnx/{denoiser_graph}.onnx",
            tensors="results/{model}/onnx/{denoiser_graph}.onnx.data",
            encoder_weights="results/{model}/weights/{encoder}.safetensors",
            added_weights="results/{model}/weights/{added}.safetensors",
        ),
        models=models_in(EMULATED),
        canvas=brought(canvas_of),
        recipe=brought(recipe_of),
        trajectories="results/{model}/calibration/trajectories.npz",
        schedule="results/{model}/schedule.npz",
        embeddings="results/{model}/embeddings.json",
        reference="results/{model}/reference/image.png",
        trajectory="results/{model}/reference/trajectory.npy",
    output:
        image="results/{model}/simulation/first.png",
        comparison="results/{model}/simulation/first.json",
    log:
        "logs/{model}/comparison.log",
    conda:
        "../../envs/axbake.yaml"
    threads: threads_of(4)
    resources:
        mem_mb=memory_of(12000),
        runtime=more_each_time(90),
    message:
        "Drawing with {wildcards.model} calibrated with the first recorded samples"
    script:
        "../scripts/job.py"
