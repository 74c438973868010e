# Takes a compiled model, its float graph and its calibration samples. Makes check/{component}.json: how far the two are, by
# `pulsar2 run` on the host. A compiled model that is too far stops what depends on it.


rule check_compiled:
    """Compare a compiled model with its float graph."""
    input:
        settings=settings(
            "axbake.toolchain.compiled.check_compiled",
            tools=["numpy", "onnx", "onnxruntime", "pillow"],
            entries={"samples": "compiled/samples", "min_sqnr": "compiled/min_sqnr/{component}"},
            more={"compiler": compiler},
            means={"launch": launch},
        ),
        axmodel="results/{model}/{component}.axmodel",
        graph="results/{model}/onnx/{component}.onnx",
        tensors="results/{model}/onnx/{component}.onnx.data",
        archive="results/{model}/calibration/{component}.tar",
        config="results/{model}/build/{component}.config.json",
    output:
        check="results/{model}/check/{component}.json",
    log:
        "logs/{model}/check/{component}.log",
    benchmark:
        "benchmarks/{model}/check/{component}.tsv"
    conda:
        "../../envs/axbake.yaml"
    threads: 4
    resources:
        mem_mb=more_each_time(12000),
        runtime=more_each_time(120),
        pulsar2=int(config["toolchain"] != "emulator"),
    message:
        "Running the compiled {wildcards.component} of {wildcards.model} against its float graph"
    script:
        "../scripts/job.py"
