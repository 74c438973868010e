# Takes the weights, the schedule, the UNet's graph and the row's calibration prompts. Makes calibration/{component}.tar: samples
# of what each network sees, in Pulsar2's formats. Those of VAE and text encoder do not depend on the model around them.


rule record_trajectories:
    """Draw the latents of all calibration prompts, and keep what the UNet saw."""
    input:
        settings=settings(
            "axbake.calibration.trajectories.record_trajectories",
            data=["resources/clip"],
            tools=["torch", "diffusers", "transformers", "tokenizers", "numpy"],
            row=["height", "width", "negative_prompt", "guidance_scale", "prompt_chunks"],
            entries={"seed": "calibration/seed"},
            more={"prompts": lambda row: row["calibration_prompts"], "precision": recording_precision},
        ),
        text_encoder="results/{model}/weights/text_encoder.safetensors",
        unet="results/{model}/weights/unet.safetensors",
        schedule="results/{model}/schedule.npz",
        embeddings="results/{model}/embeddings.json",
    output:
        trajectories="results/{model}/calibration/trajectories.npz",
    log:
        "logs/{model}/calibration/trajectories.log",
    benchmark:
        "benchmarks/{model}/calibration/trajectories.tsv"
    conda:
        "../../envs/axbake.yaml"
    threads: 4
    resources:
        mem_mb=more_each_time(10000),
        runtime=more_each_time(120),
    message:
        "Recording what {wildcards.model} sees with its calibration prompts"
    script:
        "../scripts/job.py"


rule observe_unet:
    """Record the range of each of the UNet's activations on all that it saw."""
    input:
        settings=settings(
            "axbake.calibration.observation.observe_unet",
            tools=["numpy", "onnx", "onnxruntime"],
            row=["guidance_scale"],
        ),
        graph="results/{model}/onnx/unet.onnx",
        tensors="results/{model}/onnx/unet.onnx.data",
        trajectories="results/{model}/calibration/trajectories.npz",
        schedule="results/{model}/schedule.npz",
    output:
        ranges="results/{model}/calibration/unet.ranges.npz",
    log:
        "logs/{model}/calibration/ranges.log",
    benchmark:
        "benchmarks/{model}/calibration/ranges.tsv"
    conda:
        "../../envs/axbake.yaml"
    threads: 4
    resources:
        mem_mb=more_each_time(10000),
        runtime=more_each_time(90),
    message:
        "Observing the activations of the unet of {wildcards.model}"
    script:
        "../scripts/job.py"


rule calibrate_unet:
    """Choose and pack samples of the UNet's inputs."""
    input:
        settings=settings(
            "axbake.calibration.tars.calibrate_unet",
            tools=["numpy"],
            entries={"samples": "calibration/samples", "selection": "calibration/selection"},
        ),
        trajectories="results/{model}/calibration/trajectories.npz",
        schedule="results/{model}/schedule.npz",
        ranges="results/{model}/calibration/unet.ranges.npz",
    output:
        archive="results/{model}/calibration/unet.tar",
        record="results/{model}/calibration/unet.json",
    log:
        "logs/{model}/calibration/unet.log",
    benchmark:
        "benchmarks/{model}/calibration/unet.tsv"
    conda:
        "../../envs/axbake.yaml"
    message:
        "Choosing calibration samples for the unet of {wildcards.model}"
    script:
        "../scripts/job.py"


rule check_calibration:
    """Compare the ranges that the UNet was calibrated for with those of the reference's drawing."""
    input:
        settings=settings(
            "axbake.calibration.held_out.check_calibration",
            data=["resources/clip"],
            tools=["numpy", "onnx", "onnxruntime", "tokenizers"],
            row=["prompt", "negative_prompt", "guidance_scale", "seed", "prompt_chunks"],
            more={"prompts": lambda row: row["calibration_prompts"]},
        ),
        graph="results/{model}/onnx/unet.onnx",
        tensors="results/{model}/onnx/unet.onnx.data",
        text_encoder="results/{model}/onnx/text_encoder.onnx",
        text_encoder_tensors="results/{model}/onnx/text_encoder.onnx.data",
        schedule="results/{model}/schedule.npz",
        embeddings="results/{model}/embeddings.json",
        trajectory="results/{model}/reference/trajectory.npy",
        ranges="results/{model}/calibration/unet.ranges.npz",
        calibration="results/{model}/calibration/unet.json",
    output:
        record="results/{model}/calibration/unet.check.json",
    log:
        "logs/{model}/calibration/check.log",
    benchmark:
        "benchmarks/{model}/calibration/check.tsv"
    conda:
        "../../envs/axbake.yaml"
    threads: 4
    resources:
        mem_mb=more_each_time(10000),
        runtime=more_each_time(30),
    message:
        "Checking the calibration of the unet of {wildcards.model} on its reference"
    script:
        "../scripts/job.py"


rule draw_pictures:
    """Draw the pictures that every VAE of one size is calibrated with."""
    input:
        settings=settings("axbake.calibration.pictures.draw_pictures", tools=["numpy"], row=["height", "width"]),
    output:
        pictures="results/{model}/calibration/pictures.npy",
    log:
        "logs/{model}/calibration/pictures.log",
    benchmark:
        "benchmarks/{model}/calibration/pictures.tsv"
    conda:
        "../../envs/axbake.yaml"
    message:
        "Drawing calibration pictures of the size of {wildcards.model}"
    script:
        "../scripts/job.py"


rule encode_pictures:
    """Encode the calibration pictures with the model's own VAE."""
    input:
        settings=settings("axbake.calibration.pictures.encode_pictures", tools=["torch", "diffusers", "numpy"]),
        pictures="results/{model}/calibration/pictures.npy",
        vae_encoder="results/{model}/weights/vae_encoder.safetensors",
    output:
        latents="results/{model}/calibration/latents.npy",
    log:
        "logs/{model}/calibration/latents.log",
    benchmark:
        "benchmarks/{model}/calibration/latents.tsv"
    conda:
        "../../envs/axbake.yaml"
    threads: 4
    resources:
        mem_mb=more_each_time(6000),
        runtime=more_each_time(30),
    message:
        "Encoding the calibration pictures with the VAE of {wildcards.model}"
    script:
        "../scripts/job.py"


rule calibrate_vae_encoder:
    """Pack the calibration pictures."""
    input:
        settings=settings("axbake.calibration.tars.calibrate_vae_encoder", tools=["numpy", "pillow"]),
        pictures="results/{model}/calibration/pictures.npy",
    output:
        archive="results/{model}/calibration/vae_encoder.tar",
    log:
        "logs/{model}/calibration/vae_encoder.log",
    benchmark:
        "benchmarks/{model}/calibration/vae_encoder.tsv"
    conda:
        "../../envs/axbake.yaml"
    message:
        "Packing calibration pictures for the vae_encoder of {wildcards.model}"
    script:
        "../scripts/job.py"


rule calibrate_vae_decoder:
    """Pack the latents of the calibration pictures."""
    input:
        settings=settings("axbake.calibration.tars.calibrate_vae_decoder", tools=["numpy"], row=["program"]),
        latents="results/{model}/calibration/latents.npy",
    output:
        archive="results/{model}/calibration/vae_decoder.tar",
    log:
        "logs/{model}/calibration/vae_decoder.log",
    benchmark:
        "benchmarks/{model}/calibration/vae_decoder.tsv"
    conda:
        "../../envs/axbake.yaml"
    message:
        "Packing calibration latents for the vae_decoder of {wildcards.model}"
    script:
        "../scripts/job.py"


rule calibrate_text_encoder:
    """Pack the token ids of the calibration prompts."""
    input:
        settings=settings(
            "axbake.calibration.tars.calibrate_text_encoder",
            data=["resources/clip"],
            tools=["tokenizers", "numpy"],
            more={"prompts": text_prompts},
        ),
        embeddings="results/{model}/embeddings.json",
    output:
        archive="results/{model}/calibration/text_encoder.tar",
    log:
        "logs/{model}/calibration/text_encoder.log",
    benchmark:
        "benchmarks/{model}/calibration/text_encoder.tsv"
    conda:
        "../../envs/axbake.yaml"
    message:
        "Packing calibration samples for the text_encoder of {wildcards.model}"
    script:
        "../scripts/job.py"
