# Takes the denoiser's graphs, its calibration and the reference's drawing. Makes calibration/{denoiser}.ranges.npz: ranges of its
# activations on the calibration samples; calibration/{denoiser}.sensitivity.json: what the rounding of each layer costs the last latent; and recipe/{denoiser}.yaml, the type of each layer within a budget. No default target
# asks for either, unless a row has a recipe.


for family in IN_TABLE:

    rule:
        """Observe the denoiser on its calibration samples, and measure what each layer costs in 8 and in 16 bits."""
        name:
            f"measure_sensitivity_of_{family.name}"
        input:
            files(
                settings=settings("measure_sensitivity", more=sensitivity_steps),
                graphs="results/{model}/onnx/{latent_graph}.onnx",
                tensors="results/{model}/onnx/{latent_graph}.onnx.data",
                denoiser_graphs="results/{model}/onnx/{denoiser_graph}.onnx",
                denoiser_tensors="results/{model}/onnx/{denoiser_graph}.onnx.data",
                added_weights="results/{model}/weights/{added}.safetensors",
            ),
            trajectories="results/{model}/calibration/trajectories.npz",
            record=f"results/{{model}}/calibration/{family.denoiser.name}.json",
            canvas=brought(canvas_of),
            encoder_weights=with_canvas("results/{model}/weights/{encoder}.safetensors"),
            schedule="results/{model}/schedule.npz",
            embeddings="results/{model}/embeddings.json",
            trajectory="results/{model}/reference/trajectory.npy",
        output:
            ranges=f"results/{{model}}/calibration/{family.denoiser.name}.ranges.npz",
            sensitivity=f"results/{{model}}/calibration/{family.denoiser.name}.sensitivity.json",
        log:
            f"logs/{{model}}/calibration/{family.denoiser.name}.sensitivity.log",
        wildcard_constraints:
            model=models_of([family]),
        conda:
            "../../envs/axbake.yaml"
        threads: threads_of(4)
        resources:
            mem_mb=memory_of(12000),
            runtime=more_each_time(120),
        message:
            f"Measuring what each layer of the {family.denoiser.name} of {{wildcards.model}} costs"
        script:
            "../scripts/job.py"

    rule:
        """Find the precision of each layer of the denoiser, and draw with it, with 16 bits and with 8."""
        name:
            f"find_recipe_of_{family.name}"
        input:
            files(
                settings=settings("find_recipe", more=recipe_steps),
                latent_graphs="results/{model}/onnx/{latent_graph}.onnx",
                latent_tensors="results/{model}/onnx/{latent_graph}.onnx.data",
                picture_graphs="results/{model}/onnx/{picture_graph}.onnx",
                picture_tensors="results/{model}/onnx/{picture_graph}.onnx.data",
                archives="results/{model}/calibration/{denoiser_graph}.tar",
                encoder_weights="results/{model}/weights/{encoder}.safetensors",
                added_weights="results/{model}/weights/{added}.safetensors",
            ),
            sensitivity=f"results/{{model}}/calibration/{family.denoiser.name}.sensitivity.json",
            canvas=brought(canvas_of),
            schedule="results/{model}/schedule.npz",
            embeddings="results/{model}/embeddings.json",
            trajectory="results/{model}/reference/trajectory.npy",
        output:
            recipe=f"results/{{model}}/recipe/{family.denoiser.name}.yaml",
            trade=f"results/{{model}}/recipe/{family.denoiser.name}.json",
            wide_image="results/{model}/recipe/U16.png",
            recipe_image="results/{model}/recipe/recipe.png",
            narrow_image="results/{model}/recipe/U8.png",
        log:
            f"logs/{{model}}/recipe/{family.denoiser.name}.log",
        wildcard_constraints:
            model=models_of([family]),
        conda:
            "../../envs/axbake.yaml"
        threads: threads_of(4)
        resources:
            mem_mb=memory_of(12000),
            runtime=more_each_time(120),
        message:
            f"Finding a recipe of precision for the {family.denoiser.name} of {{wildcards.model}}"
        script:
            "../scripts/job.py"
