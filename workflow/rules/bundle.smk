# Takes the compiled models and what goes with them. Makes bundle/{layout}/, which an on-board program loads as it is, and the same as
# one archive. Not part of the default target. The manifest stands for the directory: it comes there last.

from axbake.bundles.carried import runtime_files
from axbake.bundles.layouts import LAYOUTS

# What a bundle carries of this checkout besides the code that makes it.
CARRIED = ["LICENSE", "axbake/__init__.py", "resources/clip", "resources/bundle"]
CARRIED += [f"axbake/runtime/{name}" for name in runtime_files()]


wildcard_constraints:
    layout="|".join(LAYOUTS),


rule write_bundle:
    """Lay out a model as one on-board program loads it."""
    input:
        files(
            settings=settings(
                "write_bundle",
                step(
                    "axbake.bundles.writing.write_bundle",
                    values=bundled,
                    row=["program", "source"],
                    tools=["torch", "diffusers", "numpy", "jinja2", "pyyaml"],
                    data=CARRIED,
                    sources=canvas_sources,
                    cached=False,
                ),
                part="layout",
            ),
            denoiser="results/{model}/weights/{denoiser}.safetensors",
        ),
        records=with_model(records_of),
        models=models_in("results/{model}"),
        canvas=brought(canvas_of),
        checkpoint="results/{model}/checkpoint.json",
        schedule="results/{model}/schedule.npz",
        embeddings="results/{model}/embeddings.json",
    output:
        manifest="results/{model}/bundle/{layout}/manifest.json",
    log:
        "logs/{model}/bundle/{layout}.log",
    conda:
        "../../envs/axbake.yaml"
    resources:
        mem_mb=memory_of(2000),
        runtime=more_each_time(10),
    message:
        "Laying out {wildcards.model} as {wildcards.layout}"
    script:
        "../scripts/job.py"


rule pack_bundle:
    """Write a bundle as one archive."""
    input:
        settings=settings("pack_bundle", step("axbake.bundles.writing.pack_bundle", cached=False), part="layout"),
        manifest="results/{model}/bundle/{layout}/manifest.json",
    output:
        archive="results/{model}/bundle/{layout}.tar",
    log:
        "logs/{model}/bundle/{layout}.tar.log",
    conda:
        "../../envs/axbake.yaml"
    resources:
        mem_mb=memory_of(500),
        runtime=more_each_time(10),
    message:
        "Packing the bundle {wildcards.layout} of {wildcards.model}"
    script:
        "../scripts/job.py"
