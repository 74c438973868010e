# Takes the weights and the row's size. Makes onnx/{component}.onnx with its tensors in one file beside it, and checks it:
# parity/{component}.json. A graph that is not the network stops what depends on it.


rule export_onnx:
    """Trace one component of a model into an ONNX graph of fixed shapes."""
    input:
        settings=settings(
            "axbake.graphs.export.export_onnx",
            tools=["torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxsim"],
            row=GRAPH,
        ),
        weights="results/{model}/weights/{component}.safetensors",
    output:
        graph="results/{model}/onnx/{component}.onnx",
        tensors="results/{model}/onnx/{component}.onnx.data",
    log:
        "logs/{model}/onnx/{component}.log",
    benchmark:
        "benchmarks/{model}/onnx/{component}.tsv"
    priority: 10  # preflight waits for it
    conda:
        "../../envs/axbake.yaml"
    threads: 2
    resources:
        mem_mb=more_each_time(4000),
        runtime=more_each_time(20),
    message:
        "Exporting the {wildcards.component} of {wildcards.model}"
    script:
        "../scripts/job.py"


rule check_parity:
    """Compare an ONNX graph with its network in torch."""
    input:
        settings=settings(
            "axbake.graphs.parity.check_parity",
            tools=["torch", "diffusers", "transformers", "onnxruntime"],
            row=SIZE,
            entries={"min_psnr": "parity/min_psnr/{component}"},
        ),
        weights="results/{model}/weights/{component}.safetensors",
        graph="results/{model}/onnx/{component}.onnx",
        tensors="results/{model}/onnx/{component}.onnx.data",
    output:
        parity="results/{model}/parity/{component}.json",
    log:
        "logs/{model}/parity/{component}.log",
    benchmark:
        "benchmarks/{model}/parity/{component}.tsv"
    conda:
        "../../envs/axbake.yaml"
    threads: 4
    resources:
        mem_mb=more_each_time(10000),
        runtime=more_each_time(20),
    message:
        "Comparing the {wildcards.component} of {wildcards.model} in ONNX with torch"
    script:
        "../scripts/job.py"
