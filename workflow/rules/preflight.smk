# Takes the graphs of a model. Makes preflight.json: what can be known of its compiles before they start. Each compile reads its
# own graph again, and its samples, before it starts; so one component can be made alone, and none is compiled in vain.


rule preflight:
    """Check the graphs of a model against what is known of Pulsar2, this host and the card."""
    input:
        files(
            settings=settings(
                "preflight",
                step(
                    "axbake.preflight.verdict.preflight",
                    values=lambda model, _: {
                        "model": model.name,
                        "toolchain": config["toolchain"],
                        "addresses": list(model.compiled),
                        "roles": model.compiled,
                    }
                    | ({"layers": {one.name: one.card for one in model.on_card}} if model.on_card else {}),
                    tools=["onnx"],
                    data=["resources/ax650"],
                    cached=False,  # it looks at this host
                ),
            ),
            graphs="results/{model}/onnx/{compiled_graph}.onnx",
            tensors="results/{model}/onnx/{compiled_graph}.onnx.data",
        ),
        language_weights=with_model(language_weights_of),
    output:
        verdict="results/{model}/preflight.json",
    log:
        "logs/{model}/preflight.log",
    priority: 10  # what may stop a bake goes before what takes long
    localrule: True
    conda:
        "../../envs/axbake.yaml"
    message:
        "Checking {wildcards.model} before it is compiled"
    script:
        "../scripts/job.py"
