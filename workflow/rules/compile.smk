# Takes graphs, calibration archives and config. Makes {graph}.axmodel with Pulsar2 or its emulator, and build/{graph}.json, which says
# what made it. A graph that is not the network, by parity/{component}.json, is not compiled.


rule compile_model:
    """Compile one graph with the toolchain of config."""
    input:
        settings=settings("compile_model", more=compile_steps(compiler, launch), part="graph"),
        parity=with_model(parity_of),
        graph="results/{model}/onnx/{graph}.onnx",
        tensors="results/{model}/onnx/{graph}.onnx.data",
        archive="results/{model}/calibration/{graph}.tar",
    output:
        axmodel="results/{model}/{graph}.axmodel",
        record="results/{model}/build/{graph}.json",
    log:
        "logs/{model}/build/{graph}.log",
    conda:
        "../../envs/axbake.yaml"
    threads: threads_of(4)
    resources:
        mem_mb=more_each_time(12000),
        runtime=more_each_time(60 if EMULATES else 240),
        pulsar2=int(not EMULATES),  # of these the profile allows only so many at once
    message:
        f"Compiling the {{wildcards.graph}} of {{wildcards.model}} (toolchain: {config['toolchain']})"
    script:
        "../scripts/job.py"


use rule compile_model as emulate_model with:
    # What the card's pictures will be like, where the toolchain is Pulsar2 itself. A build that `toolchain: emulator` made is not
    # made again: it has the same key.
    input:
        settings=settings("emulate_model", more=compile_steps(emulator, launch_emulator), part="graph"),
        parity=with_model(parity_of),
        graph="results/{model}/onnx/{graph}.onnx",
        tensors="results/{model}/onnx/{graph}.onnx.data",
        archive="results/{model}/calibration/{graph}.tar",
    output:
        axmodel="results/{model}/emulated/{graph}.axmodel",
        record="results/{model}/emulated/{graph}.json",
    log:
        "logs/{model}/emulated/{graph}.log",
    resources:
        mem_mb=more_each_time(12000),
        runtime=more_each_time(60),
        pulsar2=0,
    message:
        "Emulating the compile of the {wildcards.graph} of {wildcards.model}"
