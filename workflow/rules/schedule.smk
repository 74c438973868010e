# Takes the row's sampler and the UNet's time embedding. Makes schedule.npz: all that a loop in NumPy needs of them.


rule derive_schedule:
    """Write timesteps, time embedding rows and update coefficients of the row's scheduler."""
    input:
        settings=settings(
            "axbake.drawing.schedule.derive_schedule",
            tools=["torch", "diffusers", "numpy"],
            row=["scheduler", "steps", "guidance_scale"],
        ),
        unet="results/{model}/weights/unet.safetensors",
    output:
        schedule="results/{model}/schedule.npz",
    log:
        "logs/{model}/schedule.log",
    benchmark:
        "benchmarks/{model}/schedule.tsv"
    conda:
        "../../envs/axbake.yaml"
    resources:
        mem_mb=more_each_time(2000),
        runtime=more_each_time(20),
    message:
        "Deriving the schedule of {wildcards.model}"
    script:
        "../scripts/job.py"
