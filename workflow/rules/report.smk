# Takes what the other steps say of a model. Makes one page of it, which `snakemake --report` takes in too.

PARTS = collect("{step}/{component}", step=["weights", "onnx", "parity", "calibration", "build"], component=COMPONENTS)
JOBS = [
    "checkpoint",
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
]


rule write_report:
    """Write the page of a model."""
    input:
        settings=settings(
            "axbake.report.write_report", data=["axbake/report.html.j2"], tools=["jinja2"], row=["model"], cached=False
        ),
        checkpoint="results/{model}/checkpoint.json",
        drawn="results/{model}/reference/settings.json",
        reference="results/{model}/reference/image.png",
        simulation="results/{model}/simulation/image.png",
        distance="results/{model}/simulation/distance.json",
        attribution="results/{model}/simulation/attribution.json",
        calibration="results/{model}/calibration/unet.json",
        check="results/{model}/calibration/unet.check.json",
        preflight="results/{model}/preflight.json",
        parities=collect("results/{{model}}/parity/{component}.json", component=COMPONENTS),
        records=collect("results/{{model}}/build/{component}.json", component=COMPONENTS),
        benchmarks=collect("benchmarks/{{model}}/{job}.tsv", job=JOBS),
    output:
        page=report(
            "results/{model}/report.html",
            caption="../report/model.rst",
            category="Models",
            labels={"model": "{model}"},
        ),
    log:
        "logs/{model}/report.log",
    conda:
        "../../envs/axbake.yaml"
    message:
        "Writing the report of {wildcards.model}"
    script:
        "../scripts/job.py"
