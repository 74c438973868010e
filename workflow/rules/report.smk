# Takes what the other steps say of a model, and what their jobs say of themselves in their logs. Makes one page of it, which
# `snakemake --report` takes in too. The page over all models is of no rule: `axbake.pages.overview` makes it of those that there are.

ONCE = ["weights", "reference", "schedule", "calibration/trajectories", "calibration/vae"]
LAST = ["verdict", "simulation", "preflight"]


def logs_of(model, wildcards):
    """Logs of all jobs of a model but the report's own, in the order in which the page shows them."""
    family = model.family
    named = [f"{place}/{name}" for place in ("onnx", "check") for name in family.names]
    named += [f"calibration/{one.name}" for one in [*family.text_encoders, family.denoiser]]
    named += [f"build/{graph}" for graph in model.graphs]
    return [f"logs/{model.name}/{job}.log" for job in [*ONCE, *named, *LAST]]


rule write_report:
    """Write the page of a model."""
    input:
        files(
            settings=settings(
                "write_report",
                step(
                    "axbake.pages.report.write_report",
                    values=lambda model, _: {
                        "model": model.name,
                        "loras": model.lora_strengths,
                        "addresses": model.graphs,
                        "components": list(model.family.names),
                    },
                    tools=["jinja2", "numpy", "pillow"],
                    data=["axbake/pages"],
                    cached=False,
                ),
            ),
            calibration="results/{model}/calibration/{denoiser}.json",
            parities="results/{model}/parity/{component}.json",
            records="results/{model}/build/{graph}.json",
            checks="results/{model}/check/{component}.json",
        ),
        checkpoint="results/{model}/checkpoint.json",
        drawn="results/{model}/reference/settings.json",
        reference="results/{model}/reference/image.png",
        floating="results/{model}/simulation/float.png",
        simulation="results/{model}/simulation/image.png",
        distance="results/{model}/simulation/distance.json",
        attribution="results/{model}/simulation/attribution.json",
        held_out="results/{model}/simulation/held_out.json",
        preflight="results/{model}/preflight.json",
        verdict="results/{model}/verdict.json",
        logs=with_model(logs_of),
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
    localrule: True
    conda:
        "../../envs/axbake.yaml"
    message:
        "Writing the report of {wildcards.model}"
    script:
        "../scripts/job.py"
