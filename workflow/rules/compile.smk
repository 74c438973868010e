# Takes graphs, calibration archives and config. Makes {graph}.axmodel with Pulsar2 or its emulator, and build/{graph}.json, which says
# what made it. A graph that is not the network, by parity/{component}.json, is not compiled. Of a language model that a row has on
# the card, takes the weights, and makes one axmodel a layer.


HOSTED = [(family, one) for family in IN_TABLE for one in family.components if one.host]
# Another family in the table may compile a component of this name.
NO_HOST = "".join(
    rf"(?!({names_of([model for model, name in FAMILY_OF.items() if name == family.name])})/(\w+/)?{re.escape(one.name)}[/.])"
    for family, one in HOSTED
)


rule compile_model:
    """Compile one graph with the toolchain of config."""
    input:
        settings=settings("compile_model", more=compile_steps(compiler, launch), part="graph"),
        parity=with_model(parity_of),
        recipe=brought(recipe_of),
        graph="results/{model}/onnx/{graph}.onnx",
        tensors="results/{model}/onnx/{graph}.onnx.data",
        archive="results/{model}/calibration/{graph}.tar",
    output:
        axmodel="results/{model}/{graph}.axmodel",
        record="results/{model}/build/{graph}.json",
    log:
        "logs/{model}/build/{graph}.log",
    wildcard_constraints:
        model=rf"{NO_HOST}[^/]+",
    conda:
        "../../envs/axbake.yaml"
    threads: threads_of(4)
    resources:
        mem_mb=memory_of(12000),
        runtime=more_each_time(60 if EMULATES else 240),
        pulsar2=int(not EMULATES),  # of these the profile allows only so many at once
    message:
        f"Compiling the {{wildcards.graph}} of {{wildcards.model}} (toolchain: {config['toolchain']})"
    script:
        "../scripts/job.py"


for family, component in HOSTED:

    rule:
        """Quantise the weights of a component that the board's host runs."""
        name:
            f"quantise_{component.name}_of_{family.name}"
        input:
            **{f"graph_{n}": f"results/{{model}}/onnx/{graph}.onnx" for n, graph in enumerate(addresses(component))},
            **{
                f"tensors_{n}": f"results/{{model}}/onnx/{graph}.onnx.data"
                for n, graph in enumerate(addresses(component))
            },
            settings=settings(f"quantise_{component.name}", more=partial(host_steps, component=component)),
            parity=f"results/{{model}}/parity/{component.name}.json",
            before=[
                f"results/{{model}}/onnx/{graph}.onnx"
                for one in [before_of(family, component)]
                if one is not component
                for graph in addresses(one)
            ],
            before_tensors=[
                f"results/{{model}}/onnx/{graph}.onnx.data"
                for one in [before_of(family, component)]
                if one is not component
                for graph in addresses(one)
            ],
            embeddings="results/{model}/embeddings.json",
        output:
            **{f"model_{n}": f"results/{{model}}/{graph}.onnx" for n, graph in enumerate(addresses(component))},
            **{f"record_{n}": f"results/{{model}}/build/{graph}.json" for n, graph in enumerate(addresses(component))},
            check=f"results/{{model}}/check/{component.name}.json",
        log:
            f"logs/{{model}}/build/{component.name}.log",
        wildcard_constraints:
            model=models_on_host(family) if component.card else models_of([family]),
        conda:
            "../../envs/axbake.yaml"
        threads: threads_of(4)
        resources:
            mem_mb=memory_of(12000),
            runtime=more_each_time(60),
        message:
            f"Quantising the weights of the {component.name} of {{wildcards.model}}"
        script:
            "../scripts/job.py"


CARDED = [
    (family, one)
    for family in IN_TABLE
    if models_on_card(family) != names_of([])
    for one in family.components
    if one.card
]

for family, component in CARDED:
    LANGUAGE, TABLE, *LAYERS = files_on_card(component.name, component.card)

    rule:
        """Build the layers of a language model that the card runs."""
        name:
            f"build_{component.name}_of_{family.name}"
        input:
            settings=settings(f"build_{component.name}", card_step(component, compiler, launch)),
            weights=f"results/{{model}}/weights/{component.name}.safetensors",
            embeddings="results/{model}/embeddings.json",
        output:
            described=f"results/{{model}}/{LANGUAGE}",
            table=f"results/{{model}}/{TABLE}",
            axmodels=[f"results/{{model}}/{layer}" for layer in LAYERS],
            record=f"results/{{model}}/build/{component.name}.json",
        log:
            f"logs/{{model}}/build/{component.name}.log",
        wildcard_constraints:
            model=models_on_card(family),
        conda:
            "../../envs/axbake.yaml"
        threads: threads_of(4)
        resources:
            mem_mb=memory_of(12000),
            runtime=more_each_time(60 if EMULATES else 480),
            pulsar2=int(not EMULATES),
        message:
            f"Building the layers of the {component.name} of {{wildcards.model}} (toolchain: {config['toolchain']})"
        script:
            "../scripts/job.py"

    rule:
        """The same by the emulator, whatever the toolchain of config."""
        name:
            f"emulate_{component.name}_of_{family.name}"
        input:
            settings=settings(f"emulate_{component.name}", card_step(component, emulator, launch_emulator)),
            weights=f"results/{{model}}/weights/{component.name}.safetensors",
            embeddings="results/{model}/embeddings.json",
        output:
            described=f"results/{{model}}/emulated/{LANGUAGE}",
            table=f"results/{{model}}/emulated/{TABLE}",
            axmodels=[f"results/{{model}}/emulated/{layer}" for layer in LAYERS],
            record=f"results/{{model}}/emulated/{component.name}.json",
        log:
            f"logs/{{model}}/emulated/{component.name}.log",
        wildcard_constraints:
            model=models_on_card(family),
        conda:
            "../../envs/axbake.yaml"
        threads: threads_of(4)
        resources:
            mem_mb=memory_of(12000),
            runtime=more_each_time(60),
        message:
            f"Emulating the build of the layers of the {component.name} of {{wildcards.model}}"
        script:
            "../scripts/job.py"

    rule:
        """Compare the emulated layers of a language model with its float graphs."""
        name:
            f"check_{component.name}_of_{family.name}"
        input:
            settings=settings(f"check_{component.name}", check_card_step(component)),
            graphs=[f"results/{{model}}/onnx/{graph}.onnx" for graph in addresses(component)],
            tensors=[f"results/{{model}}/onnx/{graph}.onnx.data" for graph in addresses(component)],
            models=[f"{EMULATED}/{file}" for file in (LANGUAGE, TABLE, *LAYERS)],
            embeddings="results/{model}/embeddings.json",
        output:
            check=f"results/{{model}}/check/{component.name}.json",
        log:
            f"logs/{{model}}/check/{component.name}.log",
        wildcard_constraints:
            model=models_on_card(family),
        conda:
            "../../envs/axbake.yaml"
        threads: threads_of(4)
        resources:
            mem_mb=memory_of(12000),
            runtime=more_each_time(60),
        message:
            f"Running the layers of the {component.name} of {{wildcards.model}} against its float graphs"
        script:
            "../scripts/job.py"


use rule compile_model as emulate_model with:
    # What the card's pictures will be like, where the toolchain is Pulsar2 itself. A build that `toolchain: emulator` made is not
    # made again: it has the same key.
    input:
        settings=settings("emulate_model", more=compile_steps(emulator, launch_emulator), part="graph"),
        parity=with_model(parity_of),
        recipe=brought(recipe_of),
        graph="results/{model}/onnx/{graph}.onnx",
        tensors="results/{model}/onnx/{graph}.onnx.data",
        archive="results/{model}/calibration/{graph}.tar",
    output:
        axmodel="results/{model}/emulated/{graph}.axmodel",
        record="results/{model}/emulated/{graph}.json",
    log:
        "logs/{model}/emulated/{graph}.log",
    resources:
        mem_mb=memory_of(12000),
        runtime=more_each_time(60),
        pulsar2=0,
    message:
        "Emulating the compile of the {wildcards.graph} of {wildcards.model}"
