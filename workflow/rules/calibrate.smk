# Takes the weights, the denoiser's graphs, the row's sampler and its calibration prompts. Makes schedule.npz, all that a loop in NumPy
# needs of sampler and time embedding; and calibration/{graph}.tar: samples of what each graph sees, in Pulsar2's formats. Those of VAE
# and text encoders do not depend on the model around them.


rule record_trajectories:
    """Write the row's schedule, draw the latents of all calibration prompts by it, and keep what the denoiser saw."""
    input:
        files(
            settings=settings(
                "record_trajectories",
                step(
                    "axbake.drawing.schedule.derive_schedule",
                    values=lambda model, _: {"rows": model.family.denoiser.rows}
                    | size_of_schedule(model)
                    | model.truncation,
                    row=["scheduler", "steps", "guidance_scale"],
                    tools=["torch", "diffusers", "numpy"],
                ),
                step(
                    "axbake.calibration.trajectories.record_trajectories",
                    values=lambda model, _: {
                        "builds": builds_recorded(model),
                        "states": model.states,
                        "added": model.family.denoiser.added,
                        "with_rows": model.family.denoiser.with_rows,
                        "conditioning": model.family.conditioning,
                        "latents": model.family.latents,
                        "prompts": model.row["calibration_prompts"],
                        "seed": model.entry("calibration/seed"),
                    }
                    | recording(model)
                    | model.conditions,
                    row=["height", "width", "negative_prompt", "guidance_scale", "prompt_chunks"],
                    tools=[*TORCH, "tokenizers", "numpy"],
                    data=["resources/clip"],
                ),
            ),
            text_encoders="results/{model}/weights/{text}.safetensors",
            denoiser="results/{model}/weights/{denoiser}.safetensors",
        ),
        pictures=with_canvas("results/{model}/calibration/pictures.npy"),
        encoder=with_canvas("results/{model}/weights/{encoder}.safetensors"),
        embeddings="results/{model}/embeddings.json",
    output:
        schedule="results/{model}/schedule.npz",
        trajectories="results/{model}/calibration/trajectories.npz",
    log:
        "logs/{model}/calibration/trajectories.log",
    conda:
        "../../envs/axbake.yaml"
    threads: threads_of(4)
    resources:
        mem_mb=memory_of(8000, whole=WHOLE),
        runtime=more_each_time(120),
    message:
        "Recording what {wildcards.model} sees with its calibration prompts"
    script:
        "../scripts/job.py"


for family in IN_TABLE:

    rule:
        """Choose the denoiser's calibration samples of what was recorded, and pack them."""
        name:
            f"calibrate_denoiser_of_{family.name}"
        input:
            settings=settings("calibrate_denoiser", more=calibrate_denoiser_steps),
            graphs=[f"results/{{model}}/onnx/{graph}.onnx" for graph in addresses(family.denoiser)],
            tensors=[f"results/{{model}}/onnx/{graph}.onnx.data" for graph in addresses(family.denoiser)],
            trajectories="results/{model}/calibration/trajectories.npz",
            schedule="results/{model}/schedule.npz",
        output:
            archives=[f"results/{{model}}/calibration/{graph}.tar" for graph in addresses(family.denoiser)],
            record=f"results/{{model}}/calibration/{family.denoiser.name}.json",
            residuals=f"results/{{model}}/calibration/{family.denoiser.name}.residuals.json",
        log:
            f"logs/{{model}}/calibration/{family.denoiser.name}.log",
        wildcard_constraints:
            model=models_of([family]),
        conda:
            "../../envs/axbake.yaml"
        threads: threads_of(4)
        resources:
            mem_mb=memory_of(10000),
            runtime=more_each_time(90),
        message:
            f"Choosing calibration samples for the {family.denoiser.name} of {{wildcards.model}}"
        script:
            "../scripts/job.py"

    rule:
        """Draw calibration pictures, encode them, and pack those that the VAE's halves need."""
        name:
            f"calibrate_vae_of_{family.name}"
        input:
            settings=settings("calibrate_vae", more=lambda model, wildcards: calibrate_vae_steps(model)),
            encoder=f"results/{{model}}/weights/{family.of_role(ENCODER).name}.safetensors",
            decoder=f"results/{{model}}/weights/{family.of_role(DECODER).name}.safetensors",
        output:
            pictures="results/{model}/calibration/pictures.npy",
            latents="results/{model}/calibration/latents.npy",
            encoder_record=f"results/{{model}}/calibration/{family.of_role(ENCODER).name}.json",
            decoder_record=f"results/{{model}}/calibration/{family.of_role(DECODER).name}.json",
            encoder_archive=f"results/{{model}}/calibration/{family.of_role(ENCODER).name}.tar",
            decoder_archive=f"results/{{model}}/calibration/{family.of_role(DECODER).name}.tar",
        log:
            "logs/{model}/calibration/vae.log",
        wildcard_constraints:
            model=models_of([family]),
        conda:
            "../../envs/axbake.yaml"
        threads: threads_of(4)
        resources:
            mem_mb=memory_of(6000),
            runtime=more_each_time(30),
        message:
            "Drawing calibration pictures in the size of {wildcards.model} and encoding them with its VAE"
        script:
            "../scripts/job.py"


rule calibrate_text_encoder:
    """Pack the token ids of the calibration prompts."""
    input:
        settings=settings(
            "calibrate_text_encoder",
            step(
                "axbake.calibration.tars.calibrate_text_encoder",
                of="component",
                values=lambda model, wildcards: {
                    "component": wildcards.component,
                    "prompts": TEXT_PROMPTS[model.entry("calibration/text_prompts")],
                },
                tools=["tokenizers", "numpy"],
                data=["resources/clip"],
            ),
            part="component",
        ),
        embeddings="results/{model}/embeddings.json",
    output:
        archive="results/{model}/calibration/{component}.tar",
    log:
        "logs/{model}/calibration/{component}.log",
    wildcard_constraints:
        component="|".join(
            sorted({one.name for family in DIVIDED.values() for one in family.text_encoders if not one.host})
        ),
    localrule: True
    conda:
        "../../envs/axbake.yaml"
    message:
        "Packing calibration samples for the {wildcards.component} of {wildcards.model}"
    script:
        "../scripts/job.py"
