# Takes the compiled models and what goes with them. Makes bundle/{layout}/, which an on-board program loads as it is, and the same as
# one archive. Not part of the default target. The manifest stands for the directory: it comes there last.

from axbake.bundles.layouts import LAYOUTS

# What a bundle carries of this checkout besides the code that makes it.
CARRIED = ["LICENSE", "axbake/__init__.py", "resources/clip", "resources/bundle"]
CARRIED += sorted(
    f"axbake/runtime/{path.name}" for path in (Path(workflow.basedir) / "axbake" / "runtime").glob("*.py")
)


wildcard_constraints:
    layout="|".join(LAYOUTS),


rule write_bundle:
    """Lay out a model as one on-board program loads it."""
    input:
        settings=settings(
            "axbake.bundles.writing.write_bundle",
            data=CARRIED,
            tools=["torch", "diffusers", "numpy", "jinja2", "pyyaml"],
            row=[*DRAWING, "scheduler", "steps", "prompt_chunks", "program", "source", "layout"],
            cached=False,
        ),
        text_encoder="results/{model}/text_encoder.axmodel",
        unet="results/{model}/unet.axmodel",
        vae_encoder="results/{model}/vae_encoder.axmodel",
        vae_decoder="results/{model}/vae_decoder.axmodel",
        records=collect("results/{{model}}/build/{component}.json", component=COMPONENTS),
        checkpoint="results/{model}/checkpoint.json",
        unet_weights="results/{model}/weights/unet.safetensors",
        schedule="results/{model}/schedule.npz",
        embeddings="results/{model}/embeddings.json",
    output:
        manifest="results/{model}/bundle/{layout}/manifest.json",
    log:
        "logs/{model}/bundle/{layout}.log",
    conda:
        "../../envs/axbake.yaml"
    resources:
        mem_mb=more_each_time(2000),
        runtime=more_each_time(10),
    message:
        "Laying out {wildcards.model} as {wildcards.layout}"
    script:
        "../scripts/job.py"


rule pack_bundle:
    """Write a bundle as one archive."""
    input:
        settings=settings("axbake.bundles.writing.pack_bundle", cached=False),
        manifest="results/{model}/bundle/{layout}/manifest.json",
    output:
        archive="results/{model}/bundle/{layout}.tar",
    log:
        "logs/{model}/bundle/{layout}.tar.log",
    conda:
        "../../envs/axbake.yaml"
    resources:
        mem_mb=more_each_time(500),
        runtime=more_each_time(10),
    message:
        "Packing the bundle {wildcards.layout} of {wildcards.model}"
    script:
        "../scripts/job.py"
