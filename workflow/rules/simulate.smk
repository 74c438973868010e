# Takes the compiled models. Makes the picture that they draw on the host, its distance from the reference, how much of that distance
# each model makes, and on the reference's drawing whether the calibrated ranges hold, and where in the denoiser errors arise.


rule simulate:
    """Draw the reference's picture with the compiled models, and with parts of them."""
    input:
        files(
            settings=settings("simulate", more=simulate_steps),
            text_graphs="results/{model}/onnx/{text_graph}.onnx",
            text_tensors="results/{model}/onnx/{text_graph}.onnx.data",
            latent_graphs="results/{model}/onnx/{latent_graph}.onnx",
            latent_tensors="results/{model}/onnx/{latent_graph}.onnx.data",
            picture_graphs="results/{model}/onnx/{picture_graph}.onnx",
            picture_tensors="results/{model}/onnx/{picture_graph}.onnx.data",
            encoder_weights="results/{model}/weights/{encoder}.safetensors",
            added_weights="results/{model}/weights/{added}.safetensors",
            denoiser_weights="results/{model}/weights/{denoiser}.safetensors",
            record="results/{model}/calibration/{denoiser}.json",
        ),
        models=models_in(EMULATED),
        before_models=models_in(EMULATED, lambda model: model.drawn.before_denoiser(canvas=bool(model.canvas))),
        denoiser_models=models_in(EMULATED, lambda model: [model.family.denoiser.name]),
        canvas=brought(canvas_of),
        canvas_encoder=with_canvas("results/{model}/weights/{encoder}.safetensors"),
        decoder_weights=with_tiles("results/{model}/weights/{decoder}.safetensors"),
        verdict="results/{model}/verdict.json",
        schedule="results/{model}/schedule.npz",
        embeddings="results/{model}/embeddings.json",
        trajectories="results/{model}/calibration/trajectories.npz",
        reference="results/{model}/reference/image.png",
        trajectory="results/{model}/reference/trajectory.npy",
    output:
        image="results/{model}/simulation/image.png",
        simulated="results/{model}/simulation/trajectory.npy",
        distance="results/{model}/simulation/distance.json",
        attribution="results/{model}/simulation/attribution.json",
        parts="results/{model}/simulation/parts.json",
        float_image="results/{model}/simulation/float.png",
        held_out="results/{model}/simulation/held_out.json",
        nodes="results/{model}/simulation/nodes.json",
    log:
        "logs/{model}/simulation.log",
    conda:
        "../../envs/axbake.yaml"
    threads: threads_of(4)
    resources:
        mem_mb=memory_of(12000, whole=WHOLE),
        runtime=more_each_time(180),
    message:
        "Drawing with the compiled models of {wildcards.model}"
    script:
        "../scripts/job.py"
