# Takes the weights and the row's size. Makes onnx/{graph}.onnx with its tensors in one file beside it, and parity/{component}.json: how
# far it is from the network. A component of one graph has files of its own name; one of several has them in a directory of its name,
# with chain.json, and a rule of its own, since its graphs are the rule's outputs.

SINGLE = sorted({one.name for family in IN_TABLE for one in family.components if len(one.graphs) == 1})
CHAINS = [(family, one) for family in IN_TABLE for one in family.components if len(one.graphs) > 1]
GRAPHS = sorted({graph for family in IN_TABLE for one in family.components for graph in [one.name, *addresses(one)]})
# One family may have as one graph what another has as several under the same name: this keeps models of the latter out of a rule
# for one graph.
NO_CHAIN = "".join(
    rf"(?!({names_of([model for model, name in FAMILY_OF.items() if name == family.name])})/\w+/{re.escape(one.name)}\.)"
    for family, one in CHAINS
)


wildcard_constraints:
    model=r"[^/]+",  # any name, so that `model_of` can say which there are
    component="|".join(map(re.escape, COMPONENTS)),
    graph="|".join(map(re.escape, sorted(GRAPHS, key=len, reverse=True))),


rule export_onnx:
    """Trace one component of a model into an ONNX graph of fixed shapes, and compare it with its network in torch."""
    input:
        settings=settings("export_onnx", more=export_steps, part="component"),
        weights="results/{model}/weights/{component}.safetensors",
    output:
        graph="results/{model}/onnx/{component}.onnx",
        tensors="results/{model}/onnx/{component}.onnx.data",
        parity="results/{model}/parity/{component}.json",
    log:
        "logs/{model}/onnx/{component}.log",
    wildcard_constraints:
        model=rf"{NO_CHAIN}[^/]+",
        component="|".join(map(re.escape, SINGLE)),
    priority: 10  # preflight waits for it
    conda:
        "../../envs/axbake.yaml"
    threads: threads_of(2)
    resources:
        mem_mb=memory_of(8000, whole=WHOLE),
        runtime=more_each_time(30),
    message:
        "Exporting the {wildcards.component} of {wildcards.model}"
    script:
        "../scripts/job.py"


for family, component in CHAINS:
    # Another family in the table may have a component of this name that is one graph. As `ruleorder:`, which takes no names made here.
    workflow.ruleorder(f"export_{component.name}_of_{family.name}", "export_onnx")

    rule:
        """Trace one component of a model into ONNX graphs that run in order, and compare them with its network in torch."""
        name:
            f"export_{component.name}_of_{family.name}"
        input:
            settings=settings(f"export_{component.name}", more=partial(export_steps, component=component.name)),
            weights=f"results/{{model}}/weights/{component.name}.safetensors",
        output:
            **{f"graph_{n}": f"results/{{model}}/onnx/{graph}.onnx" for n, graph in enumerate(addresses(component))},
            **{
                f"tensors_{n}": f"results/{{model}}/onnx/{graph}.onnx.data"
                for n, graph in enumerate(addresses(component))
            },
            parity=f"results/{{model}}/parity/{component.name}.json",
            chain=f"results/{{model}}/{component.name}/chain.json",
        log:
            f"logs/{{model}}/onnx/{component.name}.log",
        wildcard_constraints:
            model=models_of([family]),
        priority: 10
        conda:
            "../../envs/axbake.yaml"
        threads: threads_of(2)
        resources:
            mem_mb=memory_of(8000, whole=WHOLE),
            runtime=more_each_time(60),
        message:
            f"Exporting the {len(component.graphs)} graphs of the {component.name} of {{wildcards.model}}"
        script:
            "../scripts/job.py"
