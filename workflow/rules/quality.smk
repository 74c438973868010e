# Takes the denoiser's graphs, its calibration and the reference's drawing. Makes calibration/{denoiser}.sensitivity.json: what the
# rounding of each layer costs the last latent. Not part of the default target, unless a row has a recipe.


for family in IN_TABLE:

    rule:
        """Measure what each layer of the denoiser costs in 8 and in 16 bits."""
        name:
            f"measure_sensitivity_of_{family.name}"
        input:
            files(
                settings=settings("measure_sensitivity", more=sensitivity_steps),
                graphs="results/{model}/onnx/{latent_graph}.onnx",
                tensors="results/{model}/onnx/{latent_graph}.onnx.data",
                added_weights="results/{model}/weights/{added}.safetensors",
            ),
            ranges=f"results/{{model}}/calibration/{family.denoiser.name}.ranges.npz",
            calibration=f"results/{{model}}/calibration/{family.denoiser.name}.json",
            canvas=brought(canvas_of),
            encoder_weights=with_canvas("results/{model}/weights/{encoder}.safetensors"),
            schedule="results/{model}/schedule.npz",
            embeddings="results/{model}/embeddings.json",
            trajectory="results/{model}/reference/trajectory.npy",
        output:
            sensitivity=f"results/{{model}}/calibration/{family.denoiser.name}.sensitivity.json",
        log:
            f"logs/{{model}}/calibration/{family.denoiser.name}.sensitivity.log",
        wildcard_constraints:
            model=models_of([family]),
        conda:
            "../../envs/axbake.yaml"
        threads: threads_of(4)
        resources:
            mem_mb=more_each_time(12000),
            runtime=more_each_time(120),
        message:
            f"Measuring what each layer of the {family.denoiser.name} of {{wildcards.model}} costs"
        script:
            "../scripts/job.py"
