# Takes graphs, calibration archives and config. Makes {component}.axmodel with Pulsar2 or its emulator, and
# build/{component}.json, which says what made it.


rule configure_build:
    """Write Pulsar2's config of one component."""
    input:
        settings=settings(
            "axbake.toolchain.build_config.configure_build",
            row={component: ["component"] + ["program"] * (component == "unet") for component in COMPONENTS},
            entries={
                "precision": "precision/{component}",
                "target_hardware": "target_hardware",
                "npu_mode": "npu_mode",
                "fields": "pulsar2/{component}",
            },
        ),
    output:
        config="results/{model}/build/{component}.config.json",
    log:
        "logs/{model}/build/{component}.config.log",
    conda:
        "../../envs/axbake.yaml"
    message:
        "Configuring the build of the {wildcards.component} of {wildcards.model}"
    script:
        "../scripts/job.py"


rule compile_model:
    """Compile one component's graph with the toolchain of config."""
    input:
        settings=settings(
            "axbake.toolchain.pulsar2.compile_model",
            more={"compiler": compiler},
            means={"launch": launch},
            gates=["parity"],
            own_code=False,  # a better message of axbake's must not cost 68 minutes; `compiler` is what decides
        ),
        graph="results/{model}/onnx/{component}.onnx",
        tensors="results/{model}/onnx/{component}.onnx.data",
        parity="results/{model}/parity/{component}.json",
        archive="results/{model}/calibration/{component}.tar",
        config="results/{model}/build/{component}.config.json",
    output:
        axmodel="results/{model}/{component}.axmodel",
        record="results/{model}/build/{component}.json",
    log:
        "logs/{model}/build/{component}.log",
    benchmark:
        "benchmarks/{model}/build/{component}.tsv"
    conda:
        "../../envs/axbake.yaml"
    threads: 4
    resources:
        mem_mb=more_each_time(12000),
        runtime=more_each_time(60 if config["toolchain"] == "emulator" else 240),
        pulsar2=int(config["toolchain"] != "emulator"),  # of these the profile allows only so many at once
    message:
        f"Compiling the {{wildcards.component}} of {{wildcards.model}} (toolchain: {config['toolchain']})"
    script:
        "../scripts/job.py"


use rule compile_model as emulate_model with:
    # What the card's pictures will be like, where the toolchain is Pulsar2 itself. A build that `toolchain: emulator` made is not
    # made again: it has the same key.
    input:
        settings=settings(
            "axbake.toolchain.pulsar2.compile_model",
            step="emulate_model",
            more={"compiler": emulator},
            means={"launch": lambda row: {"toolchain": "emulator", "minutes": config["time_limit"]}},
            gates=["parity"],
            own_code=False,
        ),
        graph="results/{model}/onnx/{component}.onnx",
        tensors="results/{model}/onnx/{component}.onnx.data",
        parity="results/{model}/parity/{component}.json",
        archive="results/{model}/calibration/{component}.tar",
        config="results/{model}/build/{component}.config.json",
    output:
        axmodel="results/{model}/emulated/{component}.axmodel",
        record="results/{model}/emulated/{component}.json",
    log:
        "logs/{model}/emulated/{component}.log",
    benchmark:
        "benchmarks/{model}/emulated/{component}.tsv"
    resources:
        mem_mb=more_each_time(12000),
        runtime=more_each_time(60),
        pulsar2=0,
    message:
        "Emulating the compile of the {wildcards.component} of {wildcards.model}"
