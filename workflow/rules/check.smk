# Takes compiled models, their float graphs and calibration samples. Makes check/{component}.json: how far the two are, by
# `pulsar2 run` on the host; and verdict.json, once all that was measured is near enough to what config wants. What is too far stops
# what depends on it.


rule check_compiled:
    """Compare a component's compiled models with their float graphs."""
    input:
        files(
            settings=settings(
                "check_compiled",
                step(
                    "axbake.toolchain.compiled.check_compiled",
                    of="component",
                    values=lambda model, wildcards: check_settings(model, model.component(wildcards.component)),
                    means=launch,
                    tools=["numpy", "onnx", "onnxruntime", "pillow"],
                ),
                part="component",
            ),
            axmodels="results/{model}/{graph}.axmodel",
            graphs="results/{model}/onnx/{graph}.onnx",
            tensors="results/{model}/onnx/{graph}.onnx.data",
            archives="results/{model}/calibration/{graph}.tar",
        ),
    output:
        check="results/{model}/check/{component}.json",
    log:
        "logs/{model}/check/{component}.log",
    conda:
        "../../envs/axbake.yaml"
    threads: threads_of(4)
    resources:
        mem_mb=more_each_time(12000),
        runtime=more_each_time(120),
        pulsar2=int(not EMULATES),
    message:
        "Running the compiled {wildcards.component} of {wildcards.model} against its float graph"
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
        "Comparing what was measured of {wildcards.model} with what is wanted"
    script:
        "../scripts/job.py"
