# Takes compiled models, their float graphs and calibration samples. Makes check/{component}.json: how far the two are, by
# `pulsar2 run` on the host; and verdict.json, once all that was measured is near enough to what config wants. What is too far stops
# what depends on it.


for family in IN_TABLE:

    rule:
        """Compare a model's compiled components with their float graphs."""
        name:
            f"check_compiled_of_{family.name}"
        input:
            **{
                f"{one.name}_{what}": [f"results/{{model}}/{pattern.format(graph)}" for graph in addresses(one)]
                for one in family.components
                if not one.host
                for what, pattern in CHECKED.items()
            },
            settings=settings("check_compiled", more=check_steps),
        output:
            **{f"{name}_check": f"results/{{model}}/check/{name}.json" for name in compiled_names(family)},
        log:
            "logs/{model}/check.log",
        wildcard_constraints:
            model=models_of([family]),
        conda:
            "../../envs/axbake.yaml"
        threads: threads_of(4)
        resources:
            mem_mb=memory_of(8000),
            runtime=more_each_time(120),
            pulsar2=int(not EMULATES),
        message:
            "Running the compiled models of {wildcards.model} against their float graphs"
        script:
            "../scripts/job.py"


rule judge:
    """Compare what was measured of a model with what config wants."""
    input:
        files(
            settings=settings(
                "judge",
                step(
                    "axbake.judging.judge",
                    values=lambda model, _: {
                        "min_psnr": model.entries_of("parity/min_psnr"),
                        "min_sqnr": model.entries_of("compiled/min_sqnr"),
                    },
                    cached=False,
                ),
            ),
            parities="results/{model}/parity/{component}.json",
            checks="results/{model}/check/{component}.json",
        ),
    output:
        verdict="results/{model}/verdict.json",
    log:
        "logs/{model}/verdict.log",
    localrule: True
    conda:
        "../../envs/axbake.yaml"
    message:
        "Comparing the measurements of {wildcards.model} with the thresholds"
    script:
        "../scripts/job.py"
