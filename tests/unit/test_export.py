"""Exported graphs compute what the networks do, under the names that boards' programs ask for, and are the same each time."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from axbake.distance import psnr
from axbake.graphs.export import ExportError
from axbake.graphs.programs import PROGRAMS
from axbake.networks.unet import TIME_INPUT
from axbake.weights.files import read_description
from tests import tiny
from tests.builds import COLUMNS
from tests.unit.conftest import SD1, export_part, family_in, import_part

ROOT = Path(__file__).parents[2]
MIN_PSNR = 80  # dB; float32 on both sides
SIZES = [(64, 64), (64, 96)]  # height × width
TRACES_OF_TORCH = {"Dropout", "If", "Loop", "Shape", "Trilu", "Range", "Identity", "ConstantOfShape", "NonZero"}

everywhere = pytest.mark.parametrize("component", SD1.names)


def run(graph, *inputs):
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, (value.numpy() for value in inputs), strict=True)))[0]


def seeded_run(networks, component, height, width):
    """Inputs of the graph, and what the network of the checkpoint makes of them."""
    generator = torch.Generator().manual_seed(3)
    network = networks.component(component)
    with torch.inference_mode():
        if component == "text_encoder":
            ids = torch.randint(0, 49408, (1, 77), generator=generator)
            return [ids], network(ids).last_hidden_state
        if component == "vae_encoder":
            image = torch.rand((1, 3, height, width), generator=generator) * 2 - 1
            return [image], network(image)
        latent = torch.randn((1, 4, height // 8, width // 8), generator=generator)
        if component == "vae_decoder":
            return [latent], network(latent)
        context, time = (
            torch.randn((1, 77, network.config.cross_attention_dim), generator=generator),
            torch.tensor([741]),
        )
        row = torch.nn.functional.silu(network.time_embedding(network.time_proj(time)))
        return [latent, context, row], network(latent, time, context).sample


@pytest.mark.parametrize(
    ("component", "height", "width"),
    [("text_encoder", 64, 64), *((name, *size) for name in SD1.names[1:] for size in SIZES)],
)
def test_the_graph_computes_what_the_network_does(model, graph_of, component, height, width):
    inputs, wanted = seeded_run(model.networks, component, height, width)

    assert psnr(wanted.numpy(), run(graph_of(component, height, width), *inputs)) > MIN_PSNR


@pytest.mark.parametrize(
    ("build", "component"), [(tiny.sd2, "text_encoder"), (tiny.sdxs, "vae_encoder"), (tiny.sdxs, "vae_decoder")]
)
def test_graphs_of_networks_that_stable_diffusion_1_has_not_compute_what_they_do(build, component, tmp_path):
    networks = build()
    weights, checkpoint = tmp_path / "weights.safetensors", tiny.save(networks, tmp_path / "model.safetensors")
    import_part(checkpoint, component=component, weights=weights)
    graph = export_part(weights, tmp_path / "graph.onnx", family=family_in(checkpoint), height=64, width=96)
    inputs, wanted = seeded_run(networks, component, 64, 96)

    assert psnr(wanted.numpy(), run(graph, *inputs)) > MIN_PSNR


def face_of(model, component, **columns):
    """What the graph of a component of Stable Diffusion 1.x takes and gives."""
    (piece,), config = SD1.component(component).graphs, read_description(model.weights[component]).config
    given = {name: value for name, value in (COLUMNS | columns).items() if name in SD1.component(component).columns}
    return piece.interface(config, **given)


@everywhere
def test_inputs_and_output_are_those_of_the_interface(model, graph_of, component):
    graph = onnx.load(graph_of(component, 64, 96), load_external_data=False).graph
    face = face_of(model, component, height=64, width=96)

    def shape(value):
        return tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)

    kinds = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT64: "int64"}
    found = [(value.name, shape(value), kinds[value.type.tensor_type.elem_type]) for value in graph.input]
    assert found == [(name, tensor.shape, tensor.dtype) for name, tensor in face.inputs.items()]
    assert [value.name for value in graph.output] == list(face.outputs)
    _, wanted = seeded_run(model.networks, component, 64, 96)
    assert shape(graph.output[0]) == tuple(wanted.shape)


def test_the_names_are_those_of_published_programs(graph_of):
    names = {
        component: [value.name for value in onnx.load(graph_of(component), load_external_data=False).graph.input]
        for component in SD1.names
    }

    assert TIME_INPUT == "/down_blocks.0/resnets.0/act_1/Mul_output_0"
    assert names == {
        "text_encoder": ["input_ids"],
        "unet": ["sample", "encoder_hidden_states", TIME_INPUT],
        "vae_encoder": ["image_sample"],
        "vae_decoder": ["x"],
    }


def test_programs_differ_in_the_unets_and_the_vae_decoders_inputs(model):
    def inputs(component, program):
        face = face_of(model, component, program=program)
        (piece,) = SD1.component(component).graphs
        given = {name: COLUMNS[name] for name in SD1.component(component).columns} | {"program": program}
        assert piece.inputs(**given) == {name: tensor.dtype for name, tensor in face.inputs.items()}
        return list(face.inputs)

    assert {program: inputs("unet", program) for program in PROGRAMS} == {
        "axera": ["sample", "encoder_hidden_states", TIME_INPUT],
        "m5stack": ["sample", "encoder_hidden_states", TIME_INPUT],
        "euler": ["sample", "t", "encoder_hidden_states"],  # in this order: its program takes the first with a t in it
    }
    assert [inputs("vae_decoder", program) for program in PROGRAMS] == [["x"], ["latent"], ["x"]]


@everywhere
def test_opset_and_external_data_are_what_the_compiler_reads(graph_of, component):
    path = graph_of(component)
    model = onnx.load(path, load_external_data=False)
    places = {entry.value for t in model.graph.initializer for entry in t.external_data if entry.key == "location"}

    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert places == {f"{component}.onnx.data"}
    assert sorted(file.name for file in path.parent.iterdir()) == [f"{component}.onnx", f"{component}.onnx.data"]
    onnx.checker.check_model(str(path), full_check=True)


@everywhere
def test_nothing_of_this_machine_is_in_the_graph(graph_of, component):
    content = graph_of(component).read_bytes()

    for trace in ("site-packages", str(ROOT), str(Path.home()), sys.prefix, ".py"):
        assert trace.encode() not in content, trace


@pytest.mark.parametrize("component", ["text_encoder", "vae_decoder"])
def test_another_directory_gives_the_same_bytes(model, graph_of, component, tmp_path):
    again = tmp_path / "elsewhere" / f"{component}.onnx"
    again.parent.mkdir()
    export_part(model.weights[component], again)

    for suffix in (".onnx", ".onnx.data"):
        assert again.with_suffix(suffix).read_bytes() == graph_of(component).with_suffix(suffix).read_bytes()


def test_another_process_and_directory_give_the_same_bytes_of_the_unet(model, graph_of, tmp_path):
    again = tmp_path / "unet.onnx"
    command = (
        "import sys; from pathlib import Path; from axbake.graphs.export import export_onnx\n"
        "from axbake.families.sd1 import FAMILY\n"
        "weights, graph, (piece,) = Path(sys.argv[1]), Path(sys.argv[2]), FAMILY.denoiser.graphs\n"
        f"how = {{'build': FAMILY.denoiser.build, 'piece': piece, 'columns': {COLUMNS!r}}}\n"
        "export_onnx(weights, **how, graph=graph, tensors=Path(f'{graph}.data'))"
    )
    subprocess.run([sys.executable, "-c", command, model.weights["unet"], again], cwd=ROOT, check=True)

    for suffix in (".onnx", ".onnx.data"):
        assert again.with_suffix(suffix).read_bytes() == graph_of("unet").with_suffix(suffix).read_bytes()


@everywhere
def test_every_weight_of_the_network_is_in_the_graph(model, graph_of, component):
    # Wider than 64 pixels: of the single latent pixel that the UNet's middle would have then, attention needs no weights.
    size = () if component == "text_encoder" else (64, 96)
    constants = map(numpy_helper.to_array, onnx.load(graph_of(component, *size)).graph.initializer)
    found = {array.tobytes() for array in constants if array.dtype == np.float32}

    for name, tensor in load_file(model.weights[component]).items():
        weight = tensor.float().numpy()
        stored = {weight.tobytes(), weight.T.tobytes()} & found
        assert bool(stored) != name.startswith("time_embedding."), name  # the UNet's time row comes from outside


@everywhere
def test_no_operator_is_left_that_a_fixed_shape_makes_needless(graph_of, component):
    graph = onnx.load(graph_of(component), load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}

    assert not {node.op_type for node in graph.node} & TRACES_OF_TORCH
    assert [node.name for node in graph.node if node.op_type == "Transpose" and node.input[0] in constants] == []
    assert not any(value.type.tensor_type.shape.dim for value in graph.value_info if _is_dynamic(value))
    assert not onnx.load(graph_of(component), load_external_data=False).functions


def _is_dynamic(value):
    return any(dimension.dim_param for dimension in value.type.tensor_type.shape.dim)


def test_the_causal_mask_is_a_number_that_quantisation_can_hold(graph_of):
    graph = onnx.load(graph_of("text_encoder"))
    constants = [*graph.graph.initializer]
    constants += [a.t for n in graph.graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"]
    floats = [array for array in map(numpy_helper.to_array, constants) if array.dtype.kind == "f"]

    assert min(array.min() for array in floats) >= -1000
    assert all(np.isfinite(array).all() for array in floats)


def test_a_token_does_not_see_the_tokens_after_it(graph_of):
    ids = torch.randint(0, 49408, (1, 77), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, 40] = (ids[0, 40] + 1) % 49408

    before, after = (run(graph_of("text_encoder"), tokens) for tokens in (ids, other))

    assert np.array_equal(before[:, :40], after[:, :40])
    assert np.abs(before[:, 40:] - after[:, 40:]).max(axis=(0, 2)).min() > 0


def test_the_time_row_reaches_the_output(model, graph_of):
    (latent, context, row), _ = seeded_run(model.networks, "unet", 64, 64)

    one, other = (run(graph_of("unet"), latent, context, value) for value in (row, row + 0.5))

    assert np.abs(one - other).max() > 1e-3


def test_a_network_that_has_more_weights_than_the_file_is_refused(model, tmp_path):
    tensors = load_file(model.weights["vae_decoder"])
    del tensors["decoder.conv_out.bias"]
    weights = tmp_path / "short.safetensors"
    save_file(tensors, weights, metadata=read_description(model.weights["vae_decoder"]).as_metadata())

    with pytest.raises(ExportError, match=r"decoder\.conv_out\.bias"):
        export_part(weights, tmp_path / "graph.onnx")
