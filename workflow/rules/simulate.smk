# Takes the compiled models. Makes the picture that they draw on the host, its distance from the reference, and how much of that
# distance each model makes.


rule simulate:
    """Draw the reference's picture with the compiled models."""
    input:
        settings=settings(
            "axbake.drawing.simulation.simulate",
            data=["resources/clip"],
            tools=["onnxruntime", "tokenizers", "numpy", "pillow", "scikit-image"],
            row=DRAWING,
            gates=["check"],
        ),
        text_encoder=f"{EMULATED}/text_encoder.axmodel",
        unet=f"{EMULATED}/unet.axmodel",
        vae_encoder=f"{EMULATED}/vae_encoder.axmodel",
        vae_decoder=f"{EMULATED}/vae_decoder.axmodel",
        check=collect("results/{{model}}/check/{component}.json", component=COMPONENTS),
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
        mem_mb=more_each_time(12000),
        runtime=more_each_time(60),
    message:
        "Drawing with the compiled models of {wildcards.model}"
    script:
        "../scripts/job.py"


rule attribute_error:
    """Draw with one compiled model at a time, the others float, and with float ones alone."""
    input:
        settings=settings(
            "axbake.drawing.attribution.attribute_error",
            data=["resources/clip"],
            tools=["onnxruntime", "tokenizers", "numpy", "pillow", "scikit-image"],
            row=["prompt", "negative_prompt", "guidance_scale", "seed", "height", "width"],
        ),
        text_encoder=f"{EMULATED}/text_encoder.axmodel",
        unet=f"{EMULATED}/unet.axmodel",
        vae_decoder=f"{EMULATED}/vae_decoder.axmodel",
        float_text_encoder="results/{model}/onnx/text_encoder.onnx",
        float_text_encoder_tensors="results/{model}/onnx/text_encoder.onnx.data",
        float_unet="results/{model}/onnx/unet.onnx",
        float_unet_tensors="results/{model}/onnx/unet.onnx.data",
        float_vae_decoder="results/{model}/onnx/vae_decoder.onnx",
        float_vae_decoder_tensors="results/{model}/onnx/vae_decoder.onnx.data",
        weights="results/{model}/weights/vae_decoder.safetensors",
        schedule="results/{model}/schedule.npz",
        embeddings="results/{model}/embeddings.json",
        trajectory="results/{model}/reference/trajectory.npy",
        distance="results/{model}/simulation/distance.json",
    output:
        attribution="results/{model}/simulation/attribution.json",
        float_image="results/{model}/simulation/float.png",
    log:
        "logs/{model}/attribution.log",
    benchmark:
        "benchmarks/{model}/attribution.tsv"
    conda:
        "../../envs/axbake.yaml"
    threads: 4
    resources:
        mem_mb=more_each_time(12000),
        runtime=more_each_time(120),
    message:
        "Drawing with one compiled model of {wildcards.model} at a time"
    script:
        "../scripts/job.py"
