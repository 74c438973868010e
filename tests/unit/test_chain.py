"""A component of several graphs goes through every step as one network: the parts of a real UNet, and two text encoders."""

import io
import json
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file

from axbake.calibration.modules import read_module_ranges
from axbake.calibration.pictures import draw_pictures, encode_pictures
from axbake.calibration.tars import calibrate_encoder, calibrate_text_encoder
from axbake.checkpoints.finding import find_family, open_checkpoint
from axbake.checkpoints.refusals import UnknownFamily
from axbake.distance import psnr
from axbake.drawing.simulation import simulate
from axbake.families import FAMILIES
from axbake.graphs.chain import describe_chain
from axbake.graphs.export import export_onnx
from axbake.graphs.parity import measure_parity
from axbake.judging import ParityError, hold_parity
from axbake.networks import unet
from axbake.networks.component import DECODER, ENCODER, Graph, addresses
from axbake.runtime.session import open_models
from axbake.toolchain.compiled import check_compiled
from axbake.weights.embeddings import list_embeddings
from tests import tiny
from tests.builds import COLUMNS, config_of
from tests.chain_family import CONTEXT, FAMILY, MIDDLE, SKIPS, WIDTHS, build_networks, save_checkpoint
from tests.decoder import LAUNCH, compiler, pack_latents
from tests.unit.conftest import TinyModel, describe, import_part, tensors_of
from tests.unit.jobs import attribute, calibrate, draw_picture, emulate, observe, ranges_hold, record
from tests.unit.test_parity import perturbed

UNET = FAMILY.denoiser
NAMES = ["down", "mid", "up"]
ROW = unet.TIME_INPUT
MIN_PSNR = 80  # dB; float32 on both sides
PROMPTS = ["slice of pizza", "penguin"]
DRAWING = {"negative_prompt": "blurry", "guidance_scale": 5, "seed": 9}
SAMPLES = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model of the chain's family, imported."""
    directory = tmp_path_factory.mktemp("chain")
    networks = build_networks()
    checkpoint = save_checkpoint(networks, directory / "chain.safetensors")
    weights = {name: directory / f"{name}.safetensors" for name in FAMILY.names}
    for name, path in weights.items():
        import_part(checkpoint, component=name, weights=path, family=FAMILY)
    list_embeddings(
        [weights[one.name] for one in FAMILY.text_encoders],
        [],
        names=[],
        encoders=[""],
        listing=directory / "embeddings.json",
    )
    return TinyModel(FAMILY, networks, checkpoint, weights, directory / "embeddings.json")


def columns_of(component):
    return {name: COLUMNS[name] for name in component.columns}


def export(model, component, directory):
    """Graphs of a component, at their addresses in *directory*."""
    graphs = []
    for address, piece in zip(addresses(component), component.graphs, strict=True):
        graph = directory / f"{address}.onnx"
        graph.parent.mkdir(exist_ok=True)
        of = {"build": component.build, "piece": piece, "columns": columns_of(component)}
        export_onnx(model.weights[component.name], **of, graph=graph, tensors=tensors_of(graph))
        graphs.append(graph)
    return graphs


@pytest.fixture(scope="module")
def graphs(model, tmp_path_factory):
    """Float graphs of each component."""
    directory = tmp_path_factory.mktemp("onnx")
    return {component.name: export(model, component, directory) for component in FAMILY.components}


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """The same UNet as one graph."""

    def face(config, **size):
        return unet.unet_interface(config, FAMILY.latents, **size, program="axera")

    def inputs(**size):
        return unet.inputs(program="axera", **size)

    single = replace(UNET, graphs=(Graph("unet", inputs, face, unet.cut),))
    (graph,) = export(model, single, tmp_path_factory.mktemp("whole"))
    return graph


def run(graph, feed):
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def interface(graph):
    """Shapes of what a graph takes, and of what it gives."""

    def shapes(values):
        return {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in values}

    content = onnx.load(graph, load_external_data=False).graph
    return shapes(content.input), shapes(content.output)


# Import ---------------------------------------------------------------------------------------------------------------


def test_only_its_own_family_fits_its_file_and_it_fits_no_other(model, tmp_path):
    known = {**FAMILIES, FAMILY.name: FAMILY}

    assert find_family(open_checkpoint(model.checkpoint), known) is FAMILY
    for name, build in tiny.FAMILIES.items():
        other = open_checkpoint(tiny.save(build(), tmp_path / f"{name}.safetensors"))
        assert find_family(other, known) is FAMILIES[name]
    with pytest.raises(UnknownFamily):
        find_family(open_checkpoint(model.checkpoint), FAMILIES)


def test_each_component_is_imported_to_the_last_tensor(model):
    halves = {"vae_encoder": ("encoder.", "quant_conv."), "vae_decoder": ("decoder.", "post_quant_conv.")}

    for name, path in model.weights.items():
        network = model.networks["vae" if name in halves else name]
        wanted = {tensor.removeprefix("text_model."): value for tensor, value in network.state_dict().items()}
        wanted = {tensor: value for tensor, value in wanted.items() if tensor.startswith(halves.get(name, ""))}
        found = load_file(path)
        assert found.keys() == wanted.keys(), name
        assert all(torch.equal(found[tensor].float(), wanted[tensor]) for tensor in wanted), name


def test_the_description_counts_all_components_and_the_width_of_both_text_encoders(model, tmp_path):
    describe(model.checkpoint, tmp_path / "checkpoint.json", family=FAMILY)

    said = json.loads((tmp_path / "checkpoint.json").read_text())
    assert list(said["components"]) == [*FAMILY.names]
    assert said["components"]["unet"]["config"]["cross_attention_dim"] == CONTEXT == sum(WIDTHS.values())
    assert said["unused_tensors"] == []


# Export and parity ----------------------------------------------------------------------------------------------------


def test_each_graph_takes_what_those_before_it_give(graphs):
    (down, skips), (mid, middle), (up, prediction) = map(interface, graphs["unet"])

    assert list(down) == ["sample", "encoder_hidden_states", ROW]
    assert list(skips) == [*SKIPS]
    assert list(mid) == [SKIPS[-1], "encoder_hidden_states", ROW]
    assert list(middle) == [MIDDLE]
    assert list(up) == [MIDDLE, *SKIPS, "encoder_hidden_states", ROW]
    assert prediction == {"out_sample": (1, 4, 8, 8)}
    made = skips | middle
    assert all(taken[name] == made[name] for taken in (mid, up) for name in taken if name in made)


def test_each_weight_is_in_one_graph_and_the_time_embeddings_in_none(model, graphs):
    constants = [map(numpy_helper.to_array, onnx.load(graph).graph.initializer) for graph in graphs["unet"]]
    found = [{array.tobytes() for array in arrays} for arrays in constants]
    places = {"time_embedding": [], "conv_in": ["down"], "down_blocks": ["down"], "mid_block": ["mid"]}
    places |= {part: ["up"] for part in ("up_blocks", "conv_norm_out", "conv_out")}

    for name, tensor in load_file(model.weights["unet"]).items():
        weight = tensor.float().numpy()
        holds = [graph for graph, its in zip(NAMES, found, strict=True) if {weight.tobytes(), weight.T.tobytes()} & its]
        assert holds == places[name.partition(".")[0]], name


def test_the_chain_of_graphs_computes_what_diffusers_unet_does(model, graphs):
    generator = torch.Generator().manual_seed(3)
    latent, context = torch.randn((1, 4, 8, 8), generator=generator), torch.randn((1, 77, CONTEXT), generator=generator)
    network, time = model.networks["unet"], torch.tensor([741])
    with torch.inference_mode():
        row = torch.nn.functional.silu(network.time_embedding(network.time_proj(time)))
        wanted = network(latent, time, context).sample.numpy()

    known = {"sample": latent.numpy(), "encoder_hidden_states": context.numpy(), ROW: row.numpy()}
    for graph in graphs["unet"]:
        known |= run(graph, {name: known[name] for name in interface(graph)[0]})
    opened = open_models(graphs["unet"])

    assert psnr(wanted, known["out_sample"]) > MIN_PSNR
    assert opened.component == "unet"
    assert np.array_equal(opened.run({name: known[name] for name in opened.inputs})["out_sample"], known["out_sample"])


def test_the_chains_file_says_what_runs_in_order_and_how_much_crosses_each_cut(graphs, tmp_path):
    describe_chain(graphs["unet"], component="unet", chain=tmp_path / "chain.json")

    said = json.loads((tmp_path / "chain.json").read_text())
    assert said["component"] == "unet"
    assert [entry["file"] for entry in said["graphs"]] == [f"{name}.axmodel" for name in NAMES]
    for entry, graph in zip(said["graphs"], graphs["unet"], strict=True):
        for told, shapes in zip((entry["inputs"], entry["outputs"]), interface(graph), strict=True):
            assert {name: tuple(tensor["shape"]) for name, tensor in told.items()} == shapes
            assert {tensor["dtype"] for tensor in told.values()} == {"float32"}
    # Of 32 channels at 8 × 8, twice; 32 at 4 × 4; 64 at 4 × 4. Behind the middle that is made of the last comes beside it.
    skips = 4 * (2 * 32 * 64 + 32 * 16 + 64 * 16)
    assert said["between"] == [skips, skips + 4 * 64 * 16]


def measure(model, graphs, parity):
    measure_parity(
        model.weights["unet"],
        graphs,
        [tensors_of(graph) for graph in graphs],
        component="unet",
        build=UNET.build,
        pieces=UNET.graphs,
        example=UNET.example,
        columns=columns_of(UNET),
        parity=parity,
    )
    return json.loads(parity.read_text())


def test_parity_is_of_each_graph_and_of_the_chain(model, graphs, tmp_path):
    said = measure(model, graphs["unet"], tmp_path / "parity.json")

    assert (said["component"], said["output"]) == ("unet", "out_sample")
    assert list(said["graphs"]) == NAMES
    assert min(part["psnr_db"] for part in (said, *said["graphs"].values())) > MIN_PSNR
    assert max(part["largest_error"] for part in (said, *said["graphs"].values())) < 1e-3
    hold_parity(tmp_path / "parity.json", min_psnr=60)


def test_a_graph_that_is_not_its_part_of_the_network_is_named_and_no_other(model, graphs, tmp_path):
    (tmp_path / "unet").mkdir()
    wrong = perturbed(graphs["unet"][1], tmp_path / "unet", "mid_block.resnets.1.conv2.weight")

    said = measure(model, [graphs["unet"][0], wrong, graphs["unet"][2]], tmp_path / "parity.json")
    with pytest.raises(ParityError) as caught:
        hold_parity(tmp_path / "parity.json", min_psnr=60)

    assert said["graphs"]["mid"]["psnr_db"] < 60 < min(said["graphs"][name]["psnr_db"] for name in ("down", "up"))
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == ["unet", "unet/mid"]


# Calibration ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(model, tmp_path_factory):
    """schedule.npz and trajectories.npz."""
    directory = tmp_path_factory.mktemp("recorded")
    schedule = model.schedule(directory / "schedule.npz", scheduler="euler", steps=4)
    record(model, schedule, directory / "trajectories.npz", prompts=PROMPTS, **DRAWING)
    return directory


def test_tokens_of_both_text_encoders_lie_side_by_side(model, recorded):
    tokens = np.load(recorded / "trajectories.npz")["prompt_embeds"]
    pipeline_ids = torch.from_numpy(first_ids(model))

    assert tokens.shape == (2, 1, 77, CONTEXT)
    with torch.inference_mode():
        states = [model.networks[name](pipeline_ids).last_hidden_state.numpy() for name in WIDTHS]
    assert psnr(np.concatenate(states, axis=-1), tokens[0]) > MIN_PSNR


def first_ids(model):
    """Token ids of the first prompt."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(tiny.ROOT / "resources" / "clip", local_files_only=True)
    return tokenizer(PROMPTS[0], padding="max_length", max_length=77, return_tensors="np").input_ids


def test_ranges_are_those_of_the_same_unet_in_one_graph(recorded, observed, whole, tmp_path):
    said = calibrate(UNET, [whole], recorded, [tmp_path / "unet.tar"], samples=SAMPLES)
    chain, single = observed, observe([whole], recorded, said)

    assert chain.samples == single.samples
    assert chain.taken == single.taken
    assert chain.outputs == single.outputs == {"out_sample"}
    for name in ("sample", "encoder_hidden_states", ROW, "out_sample"):
        for bound in ("low", "high"):
            ours, theirs = (column(one.ranges, name, bound) for one in (chain, single))
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=name)
    # Graphs call tensors as they like: each of the one graph's is somewhere among the chain's, and there are as many.
    ours, theirs = (np.concatenate([one.ranges.low, one.ranges.high]) for one in (chain, single))
    assert len(chain.ranges.names) == len(single.ranges.names) == len(set(chain.ranges.names))
    near = np.isclose(ours[:, :, None], theirs[:, None, :], rtol=1e-3, atol=1e-4).all(axis=0)
    assert near.any(axis=0).all() and near.any(axis=1).all()


def column(ranges, name, bound):
    return getattr(ranges, bound)[:, ranges.names.index(name)]


def test_tensors_inside_graphs_are_told_apart_and_those_between_them_count_once(observed):
    names = observed.ranges.names

    inside = [name for name in names if name.partition("/")[0] in NAMES]
    assert {name for name in names if name not in inside} == {
        *("sample", "encoder_hidden_states", ROW, *SKIPS, MIDDLE, "out_sample"),
    }
    alike = [{name.partition("/")[2] for name in inside if name.startswith(f"{graph}/")} for graph in NAMES]
    assert alike[0] & alike[1] & alike[2]  # or the test means nothing


def test_all_samples_go_through_one_graph_and_then_through_the_next(graphs, recorded, archives, tmp_path, caplog):
    again = [tmp_path / archive.name for archive in archives]
    with caplog.at_level("INFO", "axbake"):
        calibrate(UNET, graphs["unet"], recorded, again, samples=SAMPLES)

    assert f"packing: sample {3 * SAMPLES} of {3 * SAMPLES}" in caplog.messages
    for path in archives:
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted([*(path.name for path in archives), "unet.json"])


@pytest.fixture(scope="module")
def archives(graphs, recorded, tmp_path_factory):
    """One archive a graph of the UNet, and the record beside them."""
    directory = tmp_path_factory.mktemp("archives")
    made = [directory / f"{name}.tar" for name in NAMES]
    calibrate(UNET, graphs["unet"], recorded, made, samples=SAMPLES)
    return made


@pytest.fixture(scope="module")
def observed(graphs, recorded, archives):
    """The UNet's ranges on the samples in *archives*."""
    return observe(graphs["unet"], recorded, archives[0].with_name("unet.json"))


def contents(archive):
    """The samples in an archive, in their order."""
    with tarfile.open(archive) as tar:
        files = [io.BytesIO(tar.extractfile(member).read()) for member in tar.getmembers()]
    return [np.load(file, allow_pickle=True).item() for file in files]


def test_archives_of_later_graphs_hold_what_the_float_graphs_before_them_make(graphs, archives):
    samples = [contents(archive) for archive in archives]

    for graph, found in zip(graphs["unet"], samples, strict=True):
        assert [list(sample) for sample in found] == [list(interface(graph)[0])] * SAMPLES
    for down, mid, up in zip(*samples, strict=True):
        known = down | run(graphs["unet"][0], down)
        known |= run(graphs["unet"][1], {name: known[name] for name in mid})
        for sample in (mid, up):
            for name, values in sample.items():
                # The observer keeps ONNX Runtime from fusing nodes, so sums are rounded otherwise.
                np.testing.assert_allclose(values, known[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_last_archives_samples_give_what_the_network_gives_for_the_first_ones(model, graphs, archives):
    """Computed in torch, in one piece."""
    network = unet.with_rows(build_networks()["unet"])

    for down, up in zip(contents(archives[0]), contents(archives[2]), strict=True):
        with torch.inference_mode():
            wanted = network(*(torch.from_numpy(down[name]) for name in ("sample", "encoder_hidden_states", ROW)))
        assert psnr(wanted.numpy(), run(graphs["unet"][2], up)["out_sample"]) > MIN_PSNR


def test_the_record_covers_the_modules_of_the_whole(recorded, archives):
    said = json.loads((archives[0].with_name("unet.json")).read_text())
    names = read_module_ranges(recorded / "trajectories.npz").names

    assert said["component"] == "unet"
    assert len(said["samples"]) == SAMPLES
    assert set(said["worst_covered"]) <= set(names)
    assert len(names) / 2 < said["tensors"] <= len(names)  # of equal ones each counts once


# Compiles -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled(model, graphs, archives, tmp_path_factory):
    """Emulated models of each component, as a bake leaves them; the UNet's graphs in 16 bits."""
    directory = tmp_path_factory.mktemp("compiled")
    encoder, decoder = FAMILY.autoencoder
    for name in WIDTHS:
        calibrate_text_encoder(model.embeddings, component=name, prompts=PROMPTS, archive=directory / f"{name}.tar")
    draw_pictures(height=64, width=64, pictures=directory / "pictures.npy")
    encode_pictures(
        directory / "pictures.npy",
        model.weights[encoder.name],
        build=encoder.build,
        channels=FAMILY.latents.channels,
        precision="float32",
        device="cpu",
        latents=directory / "latents.npy",
        chosen=directory / "chosen.json",
    )
    calibrate_encoder(directory / "pictures.npy", directory / "chosen.json", archive=directory / f"{encoder.name}.tar")
    pack_latents(directory / "latents.npy", directory / f"{decoder.name}.tar")
    (directory / "unet").mkdir()
    made = {}
    for component in FAMILY.components:
        place = directory / "unet" if component is UNET else directory
        samples = archives if component is UNET else [directory / f"{component.name}.tar"]
        made[component.name] = [
            emulate(component, graph, archive, place, number=number)
            for number, (graph, archive) in enumerate(zip(graphs[component.name], samples, strict=True))
        ]
    return made


def check(graphs, compiled, archives, directory, *, samples=2):
    check_compiled(
        compiled,
        graphs,
        [tensors_of(graph) for graph in graphs],
        archives,
        component="unet",
        configs=[config_of(UNET, number) for number in range(3)],
        samples=samples,
        compiler=compiler("emulator"),
        launch=LAUNCH | {"toolchain": "emulator"},
        check=directory / "check.json",
    )
    return json.loads((directory / "check.json").read_text())


def test_each_compiled_graph_is_checked_alone_and_all_as_one(graphs, compiled, archives, tmp_path):
    said = check(graphs["unet"], compiled["unet"], archives, tmp_path)

    assert (said["component"], said["emulated"], said["samples"]) == ("unet", True, 2)
    assert {name: set(part) for name, part in said["graphs"].items()} == {
        "down": set(SKIPS),
        "mid": {MIDDLE},
        "up": {"out_sample"},
    }
    assert list(said["outputs"]) == ["out_sample"]
    figures = [output["sqnr_db"] for part in (*said["graphs"].values(), said["outputs"]) for output in part.values()]
    assert min(figures) > 20 and max(figures) < 120
    # Of all graphs' errors the chain has the sum, and the last one alone its own.
    assert said["outputs"]["out_sample"]["sqnr_db"] < said["graphs"]["up"]["out_sample"]["sqnr_db"]


def test_the_chains_figure_is_that_of_running_the_compiled_graphs_one_after_the_other(
    graphs, compiled, archives, tmp_path
):
    said = check(graphs["unet"], compiled["unet"], archives, tmp_path, samples=1)

    sample = contents(archives[0])[0]
    floating, quantised = (open_models(paths["unet"]).run(sample)["out_sample"] for paths in (graphs, compiled))
    error = 10 * np.log10(np.square(floating, dtype=float).mean() / np.square(floating - quantised, dtype=float).mean())
    assert said["outputs"]["out_sample"]["sqnr_db"] == pytest.approx(error, abs=0.1)


# Drawings -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(model, recorded, tmp_path_factory):
    directory = tmp_path_factory.mktemp("reference")
    shutil.copy(recorded / "schedule.npz", directory)
    return draw_picture(model, model.picture(prompt="a rocket, in the night", **DRAWING), directory)


def in_order(paths):
    """Files of all components, one after the other."""
    return [path for files in paths.values() for path in files]


def drawn_with(model, reference, directory, models):
    """What the simulation says of *models*."""
    encoder = FAMILY.of_role(ENCODER)
    simulate(
        models=in_order(models),
        encoder_weights=model.weights[encoder.name],
        schedule=reference / "schedule.npz",
        embeddings=model.embeddings,
        reference=reference / "image.png",
        trajectory=reference / "trajectory.npy",
        picture=model.picture(prompt="a rocket, in the night", **DRAWING),
        drawn=model.drawn,
        latents=FAMILY.latents,
        build=encoder.build,
        image=directory / "image.png",
        simulated=directory / "simulated.npy",
        distance=directory / "distance.json",
    )
    return json.loads((directory / "distance.json").read_text())


def test_the_float_chain_draws_the_reference_and_the_compiled_one_about_the_same(
    model, graphs, compiled, reference, tmp_path
):
    floating = drawn_with(model, reference, tmp_path, graphs)
    quantised = drawn_with(model, reference, tmp_path, compiled)

    assert (floating["emulated"], quantised["emulated"]) == (False, True)
    assert min(floating["latent_psnr_db_by_step"]) > 60
    assert floating["image_psnr_db"] > 45
    assert 20 < quantised["latent_psnr_db"] < floating["latent_psnr_db"]
    assert quantised["image_psnr_db"] > 15


def test_errors_are_told_by_component_and_not_by_graph(model, graphs, compiled, reference, tmp_path):
    simulated = drawn_with(model, reference, tmp_path, compiled)
    found = attribute(
        model,
        compiled,
        graphs,
        tmp_path,
        picture=model.picture(prompt="a rocket, in the night", **DRAWING),
        schedule=reference / "schedule.npz",
        reference=reference / "image.png",
        trajectory=reference / "trajectory.npy",
        simulated=tmp_path / "simulated.npy",
        distance=tmp_path / "distance.json",
    )["quantised"]
    decoder = FAMILY.of_role(DECODER).name
    assert list(found) == ["none", decoder, *WIDTHS, "unet", "all"]
    assert found["unet"]["with"] == list(WIDTHS)
    assert found["none"]["latent_psnr_db"] > 60
    assert found[decoder]["latent_psnr_db"] is None
    assert all(20 < found[name]["latent_psnr_db"] < found["none"]["latent_psnr_db"] for name in (*WIDTHS, "unet"))
    assert found["all"]["latent_psnr_db"] == simulated["latent_psnr_db"]


def test_the_calibrated_ranges_are_held_against_the_references_drawing(
    model, graphs, recorded, archives, reference, tmp_path
):
    said = ranges_hold(
        model,
        [path for name in WIDTHS for path in graphs[name]],
        recorded,
        shutil.copy(archives[0].with_name("unet.json"), tmp_path / "unet.json"),
        trajectory=reference / "trajectory.npy",
        picture=model.picture(prompt="a rocket, in the night", **DRAWING),
        prompts=PROMPTS,
    )

    assert (said["component"], said["held_out"], said["steps"]) == ("unet", True, [1, 2, 3, 4])
    assert said["chosen"]["samples"] == SAMPLES
    assert 0 < said["chosen"]["clip_rate"] < 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["held_out.json", "unet.json"]
