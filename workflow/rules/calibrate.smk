# Takes the weights, the schedule and the row's calibration prompts. Makes calibration/{component}.tar: samples of what each
# network sees when the model draws, in Pulsar2's formats.


rule record_trajectories:
    """Draw the latents of all calibration prompts, and keep what the UNet saw."""
    input:
        settings=settings(
            "record_trajectories",
            "axbake.trajectories",
            tools=["torch", "diffusers", "transformers", "tokenizers", "numpy"],
            row=["height", "width", "negative_prompt", "guidance_scale"],
            entries={"seed": "calibration/seed"},
            more={"prompts": lambda row: row["calibration_prompts"]},
        ),
        text_encoder="results/{model}/weights/text_encoder.safetensors",
        unet="results/{model}/weights/unet.safetensors",
        schedule="results/{model}/schedule.npz",
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
        mem_mb=10000,
    message:
        "Recording what {wildcards.model} sees with its calibration prompts"
    script:
        "../scripts/record_trajectories.py"


rule calibrate_unet:
    """Pack samples of the UNet's inputs, spread over prompts, steps and branches."""
    input:
        settings=settings(
            "calibrate/unet",
            "axbake.calibration",
            tools=["numpy"],
            row=["guidance_scale"],
            entries={"samples": "calibration/samples"},
        ),
        trajectories="results/{model}/calibration/trajectories.npz",
        schedule="results/{model}/schedule.npz",
    output:
        archive="results/{model}/calibration/unet.tar",
    log:
        "logs/{model}/calibration/unet.log",
    benchmark:
        "benchmarks/{model}/calibration/unet.tsv"
    conda:
        "../../envs/axbake.yaml"
    message:
        "Choosing calibration samples for the unet of {wildcards.model}"
    script:
        "../scripts/calibrate_unet.py"


rule calibrate_vae_decoder:
    """Pack the final latents of the calibration prompts."""
    input:
        settings=settings("calibrate/vae_decoder", "axbake.calibration", tools=["numpy"]),
        trajectories="results/{model}/calibration/trajectories.npz",
        weights="results/{model}/weights/vae_decoder.safetensors",
    output:
        archive="results/{model}/calibration/vae_decoder.tar",
    log:
        "logs/{model}/calibration/vae_decoder.log",
    benchmark:
        "benchmarks/{model}/calibration/vae_decoder.tsv"
    conda:
        "../../envs/axbake.yaml"
    message:
        "Packing calibration samples for the vae_decoder of {wildcards.model}"
    script:
        "../scripts/calibrate_vae_decoder.py"


rule decode_pictures:
    """Decode the final latents of the calibration prompts."""
    input:
        settings=settings("decode_pictures", "axbake.trajectories", tools=["torch", "diffusers", "numpy"]),
        trajectories="results/{model}/calibration/trajectories.npz",
        vae_decoder="results/{model}/weights/vae_decoder.safetensors",
    output:
        pictures="results/{model}/calibration/pictures.npy",
    log:
        "logs/{model}/calibration/pictures.log",
    benchmark:
        "benchmarks/{model}/calibration/pictures.tsv"
    conda:
        "../../envs/axbake.yaml"
    threads: 4
    resources:
        mem_mb=6000,
    message:
        "Decoding the calibration pictures of {wildcards.model}"
    script:
        "../scripts/decode_pictures.py"


rule calibrate_vae_encoder:
    """Pack the pictures of the calibration prompts."""
    input:
        settings=settings("calibrate/vae_encoder", "axbake.calibration", tools=["numpy", "pillow"]),
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
        "../scripts/calibrate_vae_encoder.py"


rule calibrate_text_encoder:
    """Pack the token ids of the calibration prompts."""
    input:
        settings=settings(
            "calibrate/text_encoder",
            "axbake.calibration",
            tools=["tokenizers", "numpy"],
            more={"prompts": lambda row: [*row["calibration_prompts"], row["negative_prompt"]]},
        ),
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
        "../scripts/calibrate_text_encoder.py"
