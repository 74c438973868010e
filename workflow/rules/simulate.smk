# Takes the compiled models. Makes the picture that they draw on the host, and its distance from the reference.


rule simulate:
    """Draw the reference's picture with the compiled models."""
    input:
        settings=settings(
            "axbake.simulation.simulate",
            data=["resources/clip"],
            tools=["onnxruntime", "tokenizers", "numpy", "pillow", "scikit-image"],
            row=DRAWING,
        ),
        text_encoder="results/{model}/text_encoder.axmodel",
        unet="results/{model}/unet.axmodel",
        vae_encoder="results/{model}/vae_encoder.axmodel",
        vae_decoder="results/{model}/vae_decoder.axmodel",
        vae_encoder_weights="results/{model}/weights/vae_encoder.safetensors",
        schedule="results/{model}/schedule.npz",
        embeddings="results/{model}/embeddings.json",
        reference="results/{model}/reference/image.png",
        trajectory="results/{model}/reference/trajectory.npy",
    output:
        image="results/{model}/simulation/image.png",
        distance="results/{model}/simulation/distance.json",
    log:
        "logs/{model}/simulation.log",
    benchmark:
        "benchmarks/{model}/simulation.tsv"
    conda:
        "../../envs/axbake.yaml"
    threads: 4
    resources:
        mem_mb=12000,
    message:
        "Drawing with the compiled models of {wildcards.model}"
    script:
        "../scripts/job.py"
