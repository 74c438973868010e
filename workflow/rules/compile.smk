# Takes graphs, calibration archives and config. Makes {graph}.axmodel with Pulsar2 or its emulator, and build/{graph}.json, which says
# what made it. A graph that is not the network, by parity/{component}.json, is not compiled.


def compile_steps(compiler, launch):
    """Function that gives a compile's steps: first its parity is compared, then it is built, or placed from the build cache."""

    def steps(model, wildcards):
        component, number = model.of_address(wildcards.graph)
        return [
            step(
                "axbake.judging.hold_parity",
                values=lambda *_: {"min_psnr": model.entry_of("parity/min_psnr", component)},
                cached=False,
            ),
            step(
                "axbake.toolchain.pulsar2.compile_model",
                of="graph",
                values=lambda *_: {
                    "component": wildcards.graph,
                    "role": component.role,
                    "config": model.pulsar2_config(component, number),
                    "compiler": compiler(model),
                },
                means=launch,
                own_code=False,  # a better message of axbake's must not cost 68 minutes; `compiler` is what decides
            ),
        ]

    return steps


def parity_of(model, wildcards):
    """Parity of the component that a job's graph is of; in a list, since a graph of a chain has no file of its own."""
    component, _ = model.of_address(wildcards.graph)
    return f"results/{model.name}/parity/{component.name}.json"


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
    benchmark:
        "benchmarks/{model}/build/{graph}.tsv"
    conda:
        "../../envs/axbake.yaml"
    threads: 4
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
    benchmark:
        "benchmarks/{model}/emulated/{graph}.tsv"
    resources:
        mem_mb=more_each_time(12000),
        runtime=more_each_time(60),
        pulsar2=0,
    message:
        "Emulating the compile of the {wildcards.graph} of {wildcards.model}"
