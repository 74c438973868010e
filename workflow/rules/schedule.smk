# Takes the row's sampler and the denoiser's time embedding. Makes schedule.npz: all that a loop in NumPy needs of them.


rule derive_schedule:
    """Write timesteps, time embedding rows and update coefficients of the row's scheduler."""
    input:
        files(
            settings=settings(
                "derive_schedule",
                step(
                    "axbake.drawing.schedule.derive_schedule",
                    values=lambda model, _: {"rows": model.family.denoiser.rows},
                    row=["scheduler", "steps", "guidance_scale"],
                    tools=["torch", "diffusers", "numpy"],
                ),
            ),
            denoiser="results/{model}/weights/{denoiser}.safetensors",
        ),
    output:
        schedule="results/{model}/schedule.npz",
    log:
        "logs/{model}/schedule.log",
    localrule: True
    conda:
        "../../envs/axbake.yaml"
    message:
        "Deriving the schedule of {wildcards.model}"
    script:
        "../scripts/job.py"
