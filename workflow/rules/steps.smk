# What jobs are given and do, step by step, where that takes more than a line in the rule.

IMPORT_TOOLS = ["safetensors", "torch", "diffusers", "transformers", "lycoris_lora"]
ADVISED = set()  # models


def import_steps(model, wildcards):
    """The description of the checkpoint, which refuses what cannot be imported; a step a component; the listing of embeddings."""
    family = model.family
    formats = model.formats
    description = step(
        "axbake.weights.description.describe_checkpoint",
        values=described,
        row=["prediction"],
        tools=["safetensors", *TORCH],
        data=family.resources,
        sources=lambda model, _: {column: model.sources.file_digest(column_of(model, column)) for column in COLUMNS},
    )
    listing = step(
        "axbake.weights.embeddings.list_embeddings",
        values=lambda model, _: {
            "names": model.sources.embedding_names,
            "encoders": [one.files.embedding for one in family.clips],
        }
        | ({"formats": formats} if formats else {}),
        tools=["safetensors", "torch"] + ["tokenizers"] * bool(formats),
        sources=lambda model, _: {"embeddings": model.sources.embeddings_digest}
        | ({"tokenizers": model.sources.tokenizers_digest(formats)} if formats else {}),
        names={"text_encoders": [one.name for one in family.text_encoders]},
    )
    return [description, *(partial(import_step, component=component) for component in family.components), listing]


def import_step(model, wildcards, component):
    """The step that takes *component* out of its file."""
    family, column = model.family, model.sources.column_of(component)
    autoencoder = component.role in (ENCODER, DECODER)
    given = {
        "component": family.as_files[component.name],
        "family": "" if autoencoder else family.name,
        "latents": family.latents,
    }
    sources = {"checkpoint": model.sources.file_digest(column)}
    names = {"checkpoint": column, "weights": component.name}
    function = "axbake.weights.importing.import_component"
    if not autoencoder:
        given |= {"title": family.title, "strengths": model.strengths_of(component)}
        sources["loras"] = model.loras_digest(component)
        names["loras"] = f"{component.name}_loras"
    if component.role == TEXT:
        function = "axbake.weights.importing.import_text_encoder"
        given |= {"clip_skip": model.row["clip_skip"], "shortened": family.clip_skip}
        sources["embeddings"] = model.sources.embeddings_digest
    elif component.role == DENOISER:
        function = "axbake.weights.importing.import_denoiser"
        given |= {
            "prediction": model.row["prediction"],
            "prediction_type": family.process.prediction_type,
            "sidecar": model.sources.sidecar,
            "sampling": family.process.sampling,
        }
    return step(
        function,
        of=component.name,
        values=lambda model, _: given,
        tools=IMPORT_TOOLS,
        data=family.resources,
        sources=lambda model, _: sources,
        names=names,
    )(model, wildcards)


def described(model, wildcards):
    """What the description of a checkpoint is given besides the row."""
    family, own = model.family, model.row["vae"]
    return {
        "family": family.name,
        "title": family.title,
        "components": list(family.as_files.values()),
        "latents": family.latents,
        "conditioning": family.conditioning,
        "fits": family.fits,
        "prediction_type": family.process.prediction_type,
        "sampling": family.process.sampling,
        "sha256": model.sources.digest(),
        "vae_sha256": model.sources.digest("vae") if own else "",
        "sidecar": model.sources.sidecar,
    }


def checkpoint_of(model, wildcards):
    """The file that a model is imported from, once headers and row were found to fit."""
    path = model.sources.file("checkpoint")
    model.check_fit()
    return path


def column_of(model, column):
    """*column*; the checkpoint's where the row has no VAE of its own."""
    return column if model.row[column] else "checkpoint"


def loras_for(component):
    """Input function: paths of a model's LoRAs that change *component*; says, once a run, which of them have no effect."""

    def paths(model, wildcards):
        if model.name not in ADVISED and workflow.is_main_process:
            ADVISED.add(model.name)
            for sentence in model.advice:
                logger.warning(f"{model.name}: {sentence}.")
        return [lora.path for lora in model.loras_of(component)]

    return brought(paths)


def embeddings_of(model, wildcards):
    """Paths of a model's textual-inversion embeddings, which are there."""
    assert model.sources.embeddings_digest is not None
    return model.row["embeddings"]


def tokenizers_of(model, wildcards):
    """Paths of the tokenizers of a model's language models, which are there."""
    return model.tokenizers


def canvas_of(model, wildcards):
    """Paths of what a model draws on, which are there; none of one for text to image."""
    assert model.sources.canvas_digest is not None
    return model.canvas


def canvas_sources(model, wildcards=None):
    """Their SHA-256, for the steps that read them."""
    return {"canvas": model.sources.canvas_digest} if model.canvas else {}


def pipeline_of(model):
    """diffusers' pipeline that draws a model's reference."""
    model.check_fit()  # it draws on what its row gives
    return model.family.process.pipelines[" ".join(model.drawn_on)]


def size_of_schedule(model):
    """Height and width of the picture, if a model's schedule depends on them."""
    return {side: model.row[side] for side in ("height", "width")} if model.family.process.sized else {}


def recording(model):
    """Where and in which precision torch records samples; decided here, so that it stands in the jobs' settings."""
    device = chosen_device(model.entry("device"))
    return {"device": device, "precision": chosen_precision(model.entry("calibration/recorded_in"), device=device)}


def builds_recorded(model):
    """Function that builds each of the networks whose drawings are recorded, and the encoder of the pictures that one draws on."""
    family = model.family
    encoder, _ = family.autoencoder
    return {
        one.name: one.build for one in [*family.text_encoders, family.denoiser, *([encoder] if model.canvas else [])]
    }


def recipe_settings(model, wildcards):
    """What a merge needs of its checkpoints' family; other forms are converted without."""
    path = Path(model.row[wildcards.column])
    if not is_recipe(path):
        return {}
    family = family_of(path)
    return {"components": list(family.as_files.values()), "latents": family.latents}


def export_steps(model, wildcards, component=None):
    """One step a graph, and the parity of all; of several graphs what the chain is, too."""
    component = model.component(component or wildcards.component)
    chain = len(component.graphs) > 1
    if not chain:
        model.of_address(component.name)
    given = {"build": component.build, "columns": model.columns(component)}
    steps = [
        step(
            "axbake.graphs.export.export_onnx",
            of=graph,
            values=lambda *_, piece=piece: given | {"piece": piece},
            tools=[*TORCH, "onnx", "onnx-ir", "onnxscript", "onnxsim"],
            names={"graph": f"graph_{number}", "tensors": f"tensors_{number}"} if chain else None,
        )
        for number, (graph, piece) in enumerate(zip(addresses(component), component.graphs))
    ]
    compared = given | {"component": component.name, "pieces": component.graphs, "example": component.example}
    names = [f"graph_{number}" for number in range(len(component.graphs))] if chain else ["graph"]
    steps.append(
        step(
            "axbake.graphs.parity.measure_parity",
            of=component.name,
            values=lambda *_: compared,
            tools=[*TORCH, "onnxruntime"],
            names={"graphs": names, "tensors": [name.replace("graph", "tensors") for name in names]},
        )
    )
    return steps + [partial(chain_step, component=component, names=names)] * chain


def chain_step(model, wildcards, component, names):
    """The step that says what a chain is; *names*: what the rule calls its graphs."""
    return step(
        "axbake.graphs.chain.describe_chain",
        of=component.name,
        values=lambda *_: {"component": component.name},
        tools=["onnx"],
        names={"graphs": names},
    )(model, wildcards)


def calibrate_denoiser_steps(model, wildcards):
    """What is chosen of the samples, and how wide residual sums are."""
    model.check_samples()
    denoiser = model.family.denoiser
    chosen = {name: model.entry(f"calibration/{name}") for name in ("samples", "selection")}
    return [
        step(
            "axbake.calibration.tars.calibrate_denoiser",
            of=denoiser.name,
            values=lambda *_: chosen | {"component": denoiser.name},
            row=["guidance_scale"],
            tools=["numpy", "onnx", "onnxruntime"],
        ),
        step(
            "axbake.calibration.residuals.measure_residuals",
            of=denoiser.name,
            values=lambda *_: {"component": denoiser.name},
            tools=["numpy", "onnx", "onnxruntime"],
        ),
    ]


def drawn_by(model, *roles):
    """What the components of *roles* draw with."""
    return replace(model.drawn, parts=tuple(part for part in model.drawn.parts if part.role in roles))


def sensitivity_steps(model, wildcards):
    """The ranges of the calibration samples, and what each layer's rounding costs the reference's last latent."""
    family = model.family
    denoiser = family.denoiser
    encoder, _ = family.autoencoder
    return [
        step(
            "axbake.calibration.observation.observe_denoiser",
            of=denoiser.name,
            row=["guidance_scale"],
            tools=["numpy", "onnx", "onnxruntime"],
            names={"graphs": "denoiser_graphs", "tensors": "denoiser_tensors"},
        ),
        step(
            "axbake.quality.measuring.measure_sensitivity",
            of=denoiser.name,
            values=lambda *_: {
                "picture": replace(model.picture, model=""),
                "drawn": drawn_by(model, TEXT, DENOISER),
                "prompts": model.row["calibration_prompts"],
                "addresses": list(addresses(denoiser)),
                "added": denoiser.added,
            }
            | ({"encoder_build": encoder.build, "latents": family.latents} if model.canvas else {}),
            tools=["numpy", "onnx", "onnxruntime", "tokenizers", "torch"] + ["diffusers"] * bool(model.canvas),
            data=["resources/clip"],
            sources=canvas_sources,
        ),
    ]


def recipe_steps(model, wildcards):
    """The search, or what the user brings."""
    family, denoiser = model.family, model.family.denoiser
    if path := model.recipe_file(denoiser):
        raise SystemExit(f"{model.name}: its recipe is {path}, so there is none to find; set precision to recipe.")
    return [
        step(
            "axbake.quality.finding.find_recipe",
            of=denoiser.name,
            values=lambda *_: {
                "picture": model.picture,
                "drawn": model.drawn,
                "latents": family.latents,
                "added": denoiser.added,
                "addresses": list(addresses(denoiser)),
                "configs": [model.wide_config(denoiser, number) for number in range(len(denoiser.graphs))],
                "quality": model.quality,
            },
            tools=[*EMULATOR_TOOLS, "tokenizers", "scikit-image"],
            data=["resources/clip"],
            sources=canvas_sources,
            names={what: [f"latent_{what}", f"picture_{what}"] for what in ("graphs", "tensors")},
        )
    ]


def trade_of(model, wildcards):
    """Paths of what was found with a recipe: its figures, and its three pictures."""
    denoiser = model.family.denoiser
    if not model.has_recipe(denoiser) or model.recipe_file(denoiser):
        return []
    return [
        f"results/{model.name}/recipe/{name}" for name in (f"{denoiser.name}.json", "U16.png", "recipe.png", "U8.png")
    ]


def compiled_component(model, wildcards):
    """The component that a job compiles a graph of: the one at its address, or the denoiser."""
    return model.of_address(wildcards.graph)[0] if "graph" in wildcards.keys() else model.family.denoiser


def recipe_of(model, wildcards):
    """Path of the recipe that a job compiles by, if there is one: what axbake finds, or what the user brings."""
    component = compiled_component(model, wildcards)
    if not model.has_recipe(component):
        return []
    return [model.recipe_file(component) or f"results/{model.name}/recipe/{component.name}.yaml"]


def recipe_sources(model, wildcards):
    """SHA-256 of a recipe that the user brings."""
    path = model.recipe_file(compiled_component(model, wildcards))
    return {"recipe": file_sha256(recipe_path(path))} if path else {}


def calibrate_vae_steps(model):
    """Pictures, their latents, and of both as archives what each half needs."""
    encoder, decoder = model.family.autoencoder
    (piece,) = decoder.graphs
    return [
        step("axbake.calibration.pictures.draw_pictures", row=["height", "width"], tools=["numpy"]),
        step(
            "axbake.calibration.pictures.encode_pictures",
            values=lambda *_: recording(model)
            | {"build": encoder.lean or encoder.build, "channels": model.family.latents.channels},
            tools=["torch", "diffusers", "numpy"],
            names={"chosen": "encoder_record"},
        ),
        step(
            "axbake.calibration.tars.calibrate_encoder",
            tools=["numpy", "pillow"],
            names={"archive": "encoder_archive", "chosen": "encoder_record"},
        ),
        step(
            "axbake.calibration.pictures.decode_latents",
            values=lambda *_: recording(model) | {"build": decoder.build} | model.tile,
            tools=["torch", "diffusers", "numpy"],
            names={"chosen": "decoder_record"},
        ),
        step(
            "axbake.calibration.tars.calibrate_decoder",
            values=lambda *_: {"piece": piece, "columns": model.columns(decoder)} | model.tile,
            tools=["numpy"],
            names={"archive": "decoder_archive", "chosen": "decoder_record"},
        ),
    ]


def before_of(family, component):
    """The language model whose states a conditioner takes; of a language model itself."""
    if component.name != family.conditioning.conditioner:
        return component
    names = family.conditioning.encoders
    return family.component(names[names.index(component.name) - 1])


def holds_parity(component):
    """The step that refuses a graph which is not the network."""
    return step(
        "axbake.judging.hold_parity",
        values=lambda model, _: {"min_psnr": model.entry_of("parity/min_psnr", component)},
        cached=False,
    )


def compile_steps(compiler, launch):
    """Function that gives a compile's steps: first its parity is compared, then it is built, or placed from the build cache."""

    def steps(model, wildcards):
        component, number = model.of_address(wildcards.graph)
        return [
            holds_parity(component),
            step(
                "axbake.toolchain.pulsar2.compile_model",
                of="graph",
                values=lambda *_: {
                    "component": wildcards.graph,
                    "role": component.role,
                    "config": model.pulsar2_config(component, number),
                    "compiler": compiler(model),
                },
                means=launch,
                sources=recipe_sources,
                own_code=False,  # a better message of axbake's must not cost 68 minutes; `compiler` is what decides
            ),
        ]

    return steps


def parity_of(model, wildcards):
    """Path of what was measured of the component that a job's graph is of."""
    component, _ = model.of_address(wildcards.graph)
    return f"results/{model.name}/parity/{component.name}.json"


#: What the check of a component reads of each of its graphs -> file of the model
CHECKED = {
    "axmodels": "{}.axmodel",
    "graphs": "onnx/{}.onnx",
    "tensors": "onnx/{}.onnx.data",
    "archives": "calibration/{}.tar",
}


def check_steps(model, wildcards):
    """The checks of the compiled components, one after the other: each takes most of a host."""
    return [
        step(
            "axbake.toolchain.compiled.check_compiled",
            of=component.name,
            values=lambda model, _, component=component: {
                "component": component.name,
                "configs": [model.pulsar2_config(component, number) for number in range(len(component.graphs))],
                "samples": model.entry("compiled/samples"),
                "compiler": compiler(model),
            },
            means=launch,
            tools=["numpy", "onnx", "onnxruntime", "pillow"],
            names={what: f"{component.name}_{what}" for what in (*CHECKED, "check")},
        )
        for component in model.family.components
        if not component.host
    ]


def compiled_names(family):
    """Names of a family's components that are compiled."""
    return [one.name for one in family.components if not one.host]


def host_steps(model, wildcards, component):
    """The quantisation of each graph of a component that the board's host runs, and a comparison with the float graphs."""
    numbers = range(len(component.graphs))
    steps = [
        step(
            "axbake.graphs.host.quantise_weights",
            of=graph,
            values=lambda model, _: {"bits": model.entry("host_weights")},
            tools=["numpy", "onnx", "onnxruntime"],
            names={what: f"{what}_{number}" for what in ("graph", "tensors", "model", "record")},
        )
        for number, graph in enumerate(addresses(component))
    ]
    compared = step(
        "axbake.graphs.host.check_quantised",
        of=component.name,
        values=lambda model, _: {
            "component": component.name,
            "prompts": TEXT_PROMPTS[model.entry("calibration/text_prompts")],
            "samples": model.entry("compiled/samples"),
            "encoder": before_of(model.family, component).name,
        },
        tools=["numpy", "onnxruntime", "tokenizers"],
        data=["resources/clip"],
        names={
            "graphs": [f"graph_{n}" for n in numbers],
            "tensors": [f"tensors_{n}" for n in numbers],
            "models": [f"model_{n}" for n in numbers],
        },
    )
    return [holds_parity(component), *steps, compared]


def card_step(component, compiler, launch):
    """The step that builds the layers of the language model *component*, by what *compiler* and *launch* give for a model."""
    return step(
        "axbake.toolchain.llm_build.build_layers",
        of=component.name,
        values=lambda model, _: {
            "component": component.name,
            "card": component.card,
            "format": model.formats[component.name],
            "chip": config["target_hardware"],
            "compiler": of_layers(compiler(model)),
        },
        means=lambda model: launch(model) | {"parallel": 1 if model.is_small else 4},
        tools=["safetensors", "torch"],
        own_code=False,  # as of `compile_steps`
    )


def check_card_step(component):
    """The step that compares its emulated layers with its float graphs."""
    return step(
        "axbake.graphs.card.check_layers",
        of=component.name,
        values=lambda model, _: {
            "component": component.name,
            "prompts": TEXT_PROMPTS[model.entry("calibration/text_prompts")],
            "samples": model.entry("compiled/samples"),
        },
        tools=["numpy", "onnxruntime", "tokenizers"],
        data=["resources/clip"],
    )


def simulate_steps(model, wildcards):
    """The drawing, drawings with parts, what each model costs, and on the reference's drawing the calibrated ranges and each layer's error."""
    family = model.family
    encoder, decoder = family.autoencoder
    tiles = model.tile | ({"decoder_build": decoder.build} if model.tile else {})
    drawn, added = {"picture": model.picture, "drawn": model.drawn}, {"added": family.denoiser.added}
    unnamed = replace(model.picture, model="")  # what stores no picture is shared by all rows of one checkpoint
    samples = added | {"picture": unnamed, "drawn": drawn_by(model, TEXT, DENOISER)}
    samples |= {"encoder_build": encoder.build, "latents": family.latents} if model.canvas else {}
    of_samples = {
        "tools": ["numpy", "onnx", "onnxruntime", "tokenizers", *(["torch", "diffusers"] if model.canvas else [])],
        "data": ["resources/clip"],
        "sources": canvas_sources,
    }
    of_names = {"graphs": "latent_graphs", "tensors": "latent_tensors", "encoder_weights": "canvas_encoder"}
    all_graphs = {what: [f"latent_{what}", f"picture_{what}"] for what in ("graphs", "tensors")}
    tools = ["onnxruntime", "tokenizers", "numpy", "pillow", "scikit-image"]
    return [
        step(
            "axbake.drawing.simulation.simulate",
            values=lambda *_: drawn | added | tiles | {"latents": family.latents, "build": encoder.build},
            tools=tools,
            data=["resources/clip"],
            sources=canvas_sources,
        ),
        step(
            "axbake.drawing.attribution.draw_parts",
            values=lambda *_: drawn | added | {"picture": unnamed, "latents": family.latents},
            tools=tools,
            data=["resources/clip"],
            sources=canvas_sources,
            names=all_graphs | {"models": "before_models"},
        ),
        step(
            "axbake.drawing.attribution.attribute_error",
            values=lambda *_: {"drawn": model.drawn, "latents": family.latents},
            tools=["onnxruntime", "numpy", "scikit-image"],
            sources=canvas_sources,
            names=all_graphs,
        ),
        step(
            "axbake.calibration.held_out.check_calibration",
            values=lambda *_: samples
            | {"drawn": drawn_by(model, TEXT), "prompts": model.row["calibration_prompts"]}
            | {"component": family.denoiser.name}
            | {"build": family.denoiser.build, "with_rows": family.denoiser.with_rows}
            | recording(model),
            **of_samples
            | {
                "tools": [*TORCH, "numpy", "onnxruntime", "tokenizers"],
                "names": of_names
                | {"graphs": "text_graphs", "tensors": "text_tensors", "denoiser": "denoiser_weights"},
            },
        ),
        step(
            "axbake.quality.nodes.compare_nodes",
            of=family.denoiser.name,
            values=lambda *_: samples | {"addresses": list(addresses(family.denoiser))},
            **of_samples | {"names": of_names | {"models": "denoiser_models"}},
        ),
    ]


ONCE = ["weights", "reference", "calibration/trajectories", "calibration/vae"]
LAST = ["check", "verdict", "simulation", "preflight"]


def logs_of(model):
    """Logs of all jobs of a model but the report's own, in the order in which the page shows them."""
    family = model.family
    named = [f"onnx/{name}" for name in family.names]
    named += [f"calibration/{one.name}" for one in [*family.text_encoders, family.denoiser] if not one.host]
    named += [f"build/{graph}" for graph in model.compiled]
    named += [f"build/{one.name}" for one in family.components if one.host]
    named += [f"check/{one.name}" for one in model.on_card]
    return [f"logs/{model.name}/{job}.log" for job in [*ONCE, *named, *LAST]]


def is_compared(model):
    """Whether config wants the comparison."""
    return model.entry("calibration/compare_first") > 0


def comparison_of(model, wildcards):
    """Paths of the comparison's picture and figures, if config wants it."""
    return [f"results/{model.name}/simulation/first.{kind}" for kind in ("png", "json")] * is_compared(model)


def compared_with(model, wildcards):
    """What the comparison is given: how the model draws, and how many samples it is calibrated with instead."""
    if not is_compared(model):
        raise SystemExit(
            f"{model.name}: calibration/compare_first is 0 in its config, so there is nothing to compare; set a number of samples, such as 4."
        )
    denoiser = model.family.denoiser
    return {
        "picture": model.picture,
        "drawn": model.drawn,
        "latents": model.family.latents,
        "added": denoiser.added,
        "samples": model.entry("calibration/compare_first"),
        "addresses": list(addresses(denoiser)),
        "configs": [model.pulsar2_config(denoiser, number) for number in range(len(denoiser.graphs))],
    }


BOARD = ("host", "user", "port", "directory", "kind", "device")


def of_board(*names):
    """What a job gets to know of the board: function of model and wildcards."""
    return lambda *_: {name: config["board"][name] for name in names}


def bundled(model, wildcards):
    """What a bundle is made of; refuses a layout whose program does not draw as the row says."""
    layout = LAYOUTS[wildcards.layout]
    cells = {name: model.row[name] for name in layout.demands if name in model.row}
    layout.check(
        wildcards.layout, layout.demands | cells | {"model": model.name}, model.roles, drawn_on=bool(model.canvas)
    )
    return {
        "layout": wildcards.layout,
        "picture": model.picture,
        "components": model.family.components,
        "latents": model.family.latents,
        "conditioning": model.family.conditioning,
    } | ({"vae_tile": model.row["vae_tile"]} if model.tile else {})
