# Takes what the other steps say of a model, and what their jobs say of themselves in their logs. Makes one page of it, which
# `snakemake --report` takes in too. No rule makes the page of all models: `axbake.pages.overview` makes it of those that there are.


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
                        "advice": model.advice,
                        "roles": {one.name: one.role for one in model.family.components},
                        "limits": model.entry("picture"),
                        "addresses": model.built,
                        "components": list(model.family.names),
                        "logs": logs_of(model) + [f"logs/{model.name}/comparison.log"] * is_compared(model),
                    },
                    tools=["jinja2", "numpy", "pillow"],
                    data=["axbake/pages"],
                    cached=False,
                ),
            ),
            calibration="results/{model}/calibration/{denoiser}.json",
            residuals="results/{model}/calibration/{denoiser}.residuals.json",
            parities="results/{model}/parity/{component}.json",
            checks="results/{model}/check/{component}.json",
        ),
        records=with_model(records_of),
        comparison=with_model(comparison_of),
        trade=with_model(trade_of),
        checkpoint="results/{model}/checkpoint.json",
        drawn="results/{model}/reference/settings.json",
        activations="results/{model}/reference/activations.json",
        reference="results/{model}/reference/image.png",
        floating="results/{model}/simulation/float.png",
        simulation="results/{model}/simulation/image.png",
        distance="results/{model}/simulation/distance.json",
        attribution="results/{model}/simulation/attribution.json",
        held_out="results/{model}/simulation/held_out.json",
        nodes="results/{model}/simulation/nodes.json",
        preflight="results/{model}/preflight.json",
        verdict="results/{model}/verdict.json",
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
