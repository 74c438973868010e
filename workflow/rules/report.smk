# Takes what the other steps say of a model, and what their jobs say of themselves in their logs. Makes one page of it, which
# `snakemake --report` takes in too. The page over all models is of no rule: `axbake.pages.overview` makes it of those that there are.

PARTS = collect(
    "{step}/{component}", step=["weights", "onnx", "parity", "calibration", "build", "check"], component=COMPONENTS
)
JOBS = [
    "checkpoint",
    "embeddings",
    "reference",
    "schedule",
    "calibration/trajectories",
    "calibration/ranges",
    "calibration/check",
    "calibration/pictures",
    "calibration/latents",
    *PARTS,
    "simulation",
    "attribution",
    "preflight",
]


rule write_report:
    """Write the page of a model."""
    input:
        settings=settings(
            "axbake.pages.report.write_report",
            data=["axbake/pages"],
            tools=["jinja2", "numpy", "pillow"],
            row=["model"],
            more={"loras": lora_strengths},
            cached=False,
        ),
        checkpoint="results/{model}/checkpoint.json",
        drawn="results/{model}/reference/settings.json",
        reference="results/{model}/reference/image.png",
        floating="results/{model}/simulation/float.png",
        simulation="results/{model}/simulation/image.png",
        distance="results/{model}/simulation/distance.json",
        attribution="results/{model}/simulation/attribution.json",
        calibration="results/{model}/calibration/unet.json",
        held_out="results/{model}/calibration/unet.check.json",
        preflight="results/{model}/preflight.json",
        parities=collect("results/{{model}}/parity/{component}.json", component=COMPONENTS),
        records=collect("results/{{model}}/build/{component}.json", component=COMPONENTS),
        checks=collect("results/{{model}}/check/{component}.json", component=COMPONENTS),
        logs=collect("logs/{{model}}/{job}.log", job=JOBS),
    output:
        page=report(
            "results/{model}/report.html",
            caption="../report/model.rst",
            category="Models",
            labels={"model": "{model}"},
        ),
        facts="results/{model}/report.json",
    log:
        "logs/{model}/report.log",
    conda:
        "../../envs/axbake.yaml"
    message:
        "Writing the report of {wildcards.model}"
    script:
        "../scripts/job.py"
