"""Preflight: a sound graph passes, each known fault of a graph is reported, all at once, and it is not compiled."""

import io
import json
import tarfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from axbake.families import FAMILIES
from axbake.networks.autoencoder import VAE_DECODER
from axbake.networks.component import DECODER, DENOISER, ROLES
from axbake.preflight import estimate as estimates
from axbake.preflight.findings import Finding, named, show
from axbake.preflight.graph import PROTOBUF_LIMIT, UnreadableGraph, read_graph
from axbake.preflight.operators import check_operators, known_operators
from axbake.preflight.structure import check_structure
from axbake.preflight.verdict import PreflightError, check_build, preflight
from axbake.toolchain.pulsar2 import compile_model
from tests import peaks
from tests.builds import config_of
from tests.decoder import LAUNCH, pack_latents

SD1 = FAMILIES["sd1"]
FLOAT = TensorProto.FLOAT


def value(name, *shape, dtype=FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def constant(name, *shape, dtype=FLOAT):
    """A constant of zeros."""
    return helper.make_tensor(name, dtype, shape, np.zeros(shape).flatten())


def declared(name, *shape):
    """A constant whose values are in a file beside the graph, which is as long as it says."""
    tensor = TensorProto(name=name, data_type=FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, text in {"location": "tensors.data", "offset": "0", "length": str(4 * int(np.prod(shape)))}.items():
        tensor.external_data.add(key=key, value=text)
    return tensor


SAME = value("y", 1, 4, 8, 8)  # what leaves most of the nodes below


def model(nodes, *, inputs=(), outputs=(), constants=(), opset=18, domain=""):
    inputs, outputs = list(inputs) or [value("x", 1, 4, 8, 8)], list(outputs) or [SAME]
    graph = helper.make_graph(list(nodes), "tiny", inputs, outputs, list(constants))
    domains = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=domains)


def node(operator, *inputs, outputs=("y",), **attributes):
    return helper.make_node(operator, inputs or ("x",), outputs, name=f"the_{operator}", **attributes)


def saved(tmp_path, proto, name="vae_decoder"):
    path = tmp_path / f"{name}.onnx"
    onnx.save(proto, path)
    return path


def findings_of(tmp_path, proto):
    graph = read_graph(saved(tmp_path, proto))
    return [*check_operators("unet", graph), *check_structure("unet", graph)]


CONV = node("Conv", "x", "w", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
KERNEL = constant("w", 4, 4, 3, 3)
SOUND = model([CONV], outputs=[SAME], constants=[KERNEL])

# What is broken -> the graph, the check that tells, its level, words of it
BROKEN = {
    "an operator that is not listed": (
        model([node("Einsum", equation="abcd->abdc")], outputs=[SAME]),
        ("operators", "error", "Einsum: not in the documented operators of the AX650; write it as MatMul"),
    ),
    "an operator that an earlier list has": (
        model([node("Neg")], outputs=[SAME]),
        ("operators", "warning", "Neg: in Pulsar2's operator list of version 4.2, but not"),
    ),
    "an operator of another domain": (
        model([node("Gadget", domain="acme")], outputs=[SAME], domain="acme"),
        ("operators", "error", "acme.Gadget: a custom operator"),
    ),
    "a type that Cast does not make": (
        model([node("Cast", to=TensorProto.INT64)], outputs=[value("y", 1, 4, 8, 8, dtype=TensorProto.INT64)]),
        ("operators", "error", "Cast: to is int64, documented is uint8 or int8"),
    ),
    "padding by reflection": (
        model([node("Pad", "x", "pads", mode="reflect")], constants=[constant("pads", 8, dtype=TensorProto.INT64)]),
        ("operators", "error", "Pad: mode is reflect, documented is constant"),
    ),
    "padding of named axes": (
        model(
            [node("Pad", "x", "pads", "", "axes")],
            constants=[constant("pads", 2, dtype=TensorProto.INT64), constant("axes", 1, dtype=TensorProto.INT64)],
        ),
        ("operators", "error", "Pad: input 3 is given; Pulsar2 does not take it"),
    ),
    "automatic padding": (
        model([node("Conv", "x", "w", auto_pad="SAME_UPPER")], outputs=[SAME], constants=[KERNEL]),
        ("operators", "error", "Conv: auto_pad is SAME_UPPER, documented is NOTSET"),
    ),
    "a factor in Gemm": (
        model(
            [node("Gemm", "x", "w", alpha=0.5)],
            inputs=[value("x", 2, 3)],
            outputs=[value("y", 2, 3)],
            constants=[constant("w", 3, 3)],
        ),
        ("operators", "error", "Gemm: alpha is 0.5, documented is 1.0"),
    ),
    "cubic interpolation": (
        model([node("Resize", "x", "", "s", mode="cubic")], constants=[constant("s", 4)], outputs=[SAME]),
        ("operators", "error", "Resize: mode is cubic, documented is nearest or linear"),
    ),
    "nearest by the floor, as published builds have it": (
        model([node("Resize", "x", "", "s", mode="nearest", nearest_mode="floor")], constants=[constant("s", 4)]),
        ("operators", "warning", "Resize: nearest_mode is floor, documented is round_prefer_ceil; published builds"),
    ),
    "a norm over more than the last axis": (
        model([node("LayerNormalization", "x", "w", axis=2)], constants=[constant("w", 8, 8)], outputs=[SAME]),
        ("operators", "error", "LayerNormalization: axis is 2, documented is last"),
    ),
    "an exponent that is computed": (
        model([node("Pow", "x", "x")], outputs=[SAME]),
        ("operators", "error", "Pow: input 1 is computed; Pulsar2 takes a constant there"),
    ),
    "an exponent for each element": (
        model([node("Pow", "x", "w")], constants=[constant("w", 8)], outputs=[SAME]),
        ("operators", "error", "Pow: input 1 has shape [8]; Pulsar2 takes 1 value"),
    ),
    "indices of two dimensions, as published text encoders have them": (
        model(
            [node("Gather", "w", "x")],
            inputs=[value("x", 1, 7, dtype=TensorProto.INT64)],
            outputs=[value("y", 1, 7, 4)],
            constants=[constant("w", 9, 4)],
        ),
        ("operators", "warning", "Gather: input 1 has 2 dimensions, documented is 1"),
    ),
    "indices of three dimensions": (
        model(
            [node("Gather", "w", "x")],
            inputs=[value("x", 1, 2, 7, dtype=TensorProto.INT64)],
            outputs=[value("y", 1, 2, 7, 4)],
            constants=[constant("w", 9, 4)],
        ),
        ("operators", "error", "Gather: input 1 has 3 dimensions, documented is 1"),
    ),
    "an old opset": (
        model([CONV], outputs=[SAME], constants=[KERNEL], opset=10),
        ("opset", "error", "opset 10; Pulsar2 takes 11 and later"),
    ),
    "a new opset": (
        model([CONV], outputs=[SAME], constants=[KERNEL], opset=21),
        ("opset", "warning", "opset 21; published builds of Stable Diffusion use 17 or 18"),
    ),
    "a shape that is not fixed": (
        model([node("Relu")], inputs=[value("x", "batch", 4, 8, 8)], outputs=[value("y", "batch", 4, 8, 8)]),
        ("shapes", "error", "shapes that are not fixed: x ['batch', 4, 8, 8]"),
    ),
    "a side above 16 bits": (
        model([node("Resize", "x", "", "s", mode="linear")], constants=[constant("s", 4)], outputs=[value("y", 70000)]),
        ("shapes", "error", "Resize to more than 65535 a side: y [70000]"),
    ),
    "a constant as a node": (
        model([node("Constant", value=KERNEL, outputs=("w",)), CONV], outputs=[SAME]),
        ("constants", "warning", "1 Constant nodes force Pulsar2 to simplify the graph"),
    ),
    "a constant as a node in a graph above 2 GB": (
        model(
            [node("Constant", value=KERNEL, outputs=("w",)), CONV],
            outputs=[SAME],
            constants=[declared("huge", 25_000, 25_000)],
        ),
        ("constants", "error", "the simplifier fails with a narrowing error above 2 GB (2.50 GB)"),
    ),
    "a slash in a name": (
        model([node("Relu", "/a/b")], inputs=[value("/a/b", 2)], outputs=[value("y", 2)]),
        ("names", "warning", "/a/b: a slash in a name"),
    ),
    "a blank name": (
        model([node("Relu", "x ")], inputs=[value("x ", 2)], outputs=[value("y", 2)]),
        ("names", "error", "blanks at an end: ['x ']"),
    ),
    "an output that no node makes": (
        model([CONV], outputs=[SAME, value("z", 2)], constants=[KERNEL]),
        ("names", "error", "z: outputs that no node makes"),
    ),
    "a value that two nodes make": (
        model([CONV, node("Relu")], outputs=[SAME], constants=[KERNEL]),
        ("names", "error", "y: made by more than one node"),
    ),
    "more than 2 GB once quantised": (
        model([CONV], outputs=[SAME], constants=[KERNEL, declared("huge", 50_000, 50_000)]),
        ("sizes", "error", "2.50 GB with weights in 8 bits; protobuf allows 2 GB"),
    ),
    "tensors that are not all there": (
        model([CONV], outputs=[SAME], constants=[declared("w", 4, 4, 3, 3)]),
        ("tensors", "error", "tensors.data: has 0 bytes, but the graph's tensors end at 576"),
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_graph_broken_in_a_known_way_is_told_so(what, tmp_path):
    proto, (check, level, words) = BROKEN[what]

    found = findings_of(tmp_path, proto)

    assert [f for f in found if (f.check, f.level) == (check, level) and words in f.text], found
    other_errors = [f for f in found if f.level == "error" and f.check not in (check, "tensors")]
    assert not other_errors


def test_a_sound_graph_has_nothing_but_its_size(tmp_path):
    (only,) = findings_of(tmp_path, SOUND)

    assert (only.check, only.level) == ("sizes", "note")


def test_what_a_graph_holds_is_counted(tmp_path):
    path = tmp_path / "g.onnx"
    nodes = [
        node("Conv", "x", "w", outputs=("c",), kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Reshape", "c", "shape", outputs=("r",)),
        node("MatMul", "r", "m", outputs=("p",)),
        node("Gemm", "p", "g"),
    ]
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [4, 64])
    constants = [KERNEL, shape, constant("m", 64, 16), constant("g", 16, 2)]
    onnx.save(model(nodes, constants=constants, outputs=[value("y", 4, 2)]), path)

    graph = read_graph(path)

    assert graph.macs == 256 * 4 * 9 + 4 * 16 * 64 + 4 * 2 * 16
    assert graph.largest_tensor == 256 * 4
    assert graph.float_bytes == 4 * (144 + 1024 + 32) + 2 * 8
    assert graph.quantised_bytes == 144 + 1024 + 32 + 2 * 4


def test_a_file_that_is_no_graph_or_too_large_for_protobuf_is_named(tmp_path):
    path = tmp_path / "cut.onnx"
    path.write_bytes(SOUND.SerializeToString()[:-7])
    with pytest.raises(UnreadableGraph, match="truncated"):
        read_graph(path)

    with path.open("wb") as file:
        file.truncate(PROTOBUF_LIMIT + 1)  # a hole; no bytes on the disk
    with pytest.raises(UnreadableGraph, match="external data"):
        read_graph(path)


def test_opening_a_graph_does_not_read_its_tensors(tmp_path):
    kernel, huge = declared("w", 4, 4, 3, 3), declared("huge", 20_000, 20_000)
    path = saved(tmp_path, model([CONV], constants=[kernel, huge]))
    with path.with_name("tensors.data").open("wb") as file:
        file.truncate(4 * 20_000**2)  # a hole of 1.6 GB
    held = peaks.count_anew()

    graph = read_graph(path)

    assert graph.float_bytes == 4 * (20_000**2 + 144)
    assert not [f for f in check_structure("unet", graph) if f.level == "error"]
    assert peaks.peak() - held < 100_000_000  # bytes


def test_every_operator_of_the_list_is_one_of_onnx_or_of_axera():
    of_onnx = {schema.name for schema in onnx.defs.get_all_schemas()}
    of_axera = {"InverseSigmoid", "Mish", "RMSNormalization", "RotaryEmbedding", "Silu", "SpatialTransformer"}

    assert set(known_operators()["operators"]) - of_onnx <= of_axera | {"Gelu", "Swish"}


def preflight_of(graphs, directory, *, toolchain):
    """The verdict on *graphs*, one a component of Stable Diffusion 1.x, written in *directory*."""
    roles = {component.name: component.role for component in SD1.components}
    of = {"model": "m", "addresses": list(SD1.names), "roles": roles, "tensors": []}
    preflight(**of, toolchain=toolchain, graphs=graphs, verdict=directory / "preflight.json")
    return json.loads((directory / "preflight.json").read_text())


def test_all_findings_of_a_model_are_told_at_once_and_nothing_is_written(tmp_path):
    graphs = [saved(tmp_path, SOUND, name) for name in SD1.names]
    saved(tmp_path, BROKEN["cubic interpolation"][0], "unet")
    (tmp_path / "text_encoder.onnx").write_bytes(b"nothing of the kind")

    with pytest.raises(PreflightError) as raised:
        preflight_of(graphs, tmp_path, toolchain="emulator")

    assert "unet" in str(raised.value) and "Resize: mode is cubic" in str(raised.value)
    assert "text_encoder.onnx: not an ONNX graph" in str(raised.value)
    assert "axbake compiles nothing until these errors are fixed" in str(raised.value)
    assert not (tmp_path / "preflight.json").exists()


def test_the_verdict_holds_findings_and_estimates_with_their_basis(tmp_path, caplog):
    graphs = [saved(tmp_path, SOUND, name) for name in SD1.names]
    caplog.set_level("INFO")

    said = preflight_of(graphs, tmp_path, toolchain="native")

    assert set(said["components"]) == set(SD1.names)
    assert said["components"]["unet"]["operators"] == {"Conv": 1}
    unet = next(f for f in said["findings"] if (f["component"], f["check"]) == ("unet", "estimate"))
    assert "68 min published of SD 1.5's UNet at 480 × 320" in unet["text"]
    assert "Pulsar2's is not published" in unet["text"]
    assert "of 7040 MiB of CMM" in caplog.text


def test_the_published_models_are_estimated_as_published(tmp_path, monkeypatch):
    graph = read_graph(saved(tmp_path, SOUND))
    assert set(estimates.ON_CARD) == set(estimates.EMULATED) == set(estimates.PUBLISHED) == set(ROLES)
    for role, card in estimates.ON_CARD.items():
        monkeypatch.setattr(type(graph), "quantised_bytes", card.quantised_bytes)
        monkeypatch.setattr(estimates, "volume", lambda shape, card=card: card.first_input)
        assert estimates.estimate(role, graph, "emulator").cmm_mb == pytest.approx(card.cmm_mb)


def test_a_host_with_too_little_is_told_so(tmp_path):
    graph = read_graph(saved(tmp_path, SOUND))
    found = estimates.estimate(DENOISER, graph, "emulator")

    def levels(memory, free):
        return [f.level for f in estimates.check_host("unet", graph, found, memory=memory, free=free)]

    assert levels(2**40, 2**40) == []
    assert levels(2**20, 2**40) == ["warning"]
    assert levels(2**40, graph.quantised_bytes) == ["warning"]
    assert levels(2**40, graph.quantised_bytes - 1) == ["error"]


def test_models_that_do_not_fit_a_card_together_are_told_so():
    def card(megabytes):
        (found,) = estimates.check_card({"unet": estimates.Estimate(0, "", 0, 0, megabytes)})
        return found.level

    assert card(1000) == "note"
    assert card(7300) == "warning"


def test_what_a_component_that_no_card_holds_does_on_a_card_is_told():
    def told(*megabytes):
        parts = {f"transformer/blocks_{number}": one for number, one in enumerate(megabytes)} | {"vae_decoder": 400}
        found = {name: estimates.Estimate(0, "", 0, 0, one) for name, one in parts.items()}
        (finding,) = estimates.check_card(found)
        return finding.text

    assert "alone" not in told(*[1000] * 7)
    eleven = told(*[900] * 11)  # 7040 MiB are 7382 MB: six stay, and two slots
    assert (
        "The transformer alone takes about 9441 MiB: on an 8 GB card 6 of its 11 graphs stay, and the others, 4.5 GB, are"
        in eleven
    )
    assert "in 9 s or more on a Raspberry Pi 5; on a 16 GB card all stay loaded." in eleven
    assert "on a 16 GB card 13 of its 32 graphs stay" in told(*[1000] * 32)
    assert "its largest graph does not fit twice" in told(4000, 4000)


def test_a_card_that_does_not_hold_the_decoder_is_said_to_hold_one_of_tiles(tmp_path):
    def card(unet_mb, side):
        sizes = {"x": [1, 4, side // 8, side // 8], "sample": [1, 3, side, side]}
        x, sample = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in sizes.items())
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["sample"])], "decoder", [x], [sample])
        onnx.save(helper.make_model(graph), tmp_path / "vae_decoder.onnx")
        decoder = read_graph(tmp_path / "vae_decoder.onnx")
        found = {"unet": estimates.Estimate(0, "", 0, 0, unet_mb)}
        found["vae_decoder"] = estimates.estimate(DECODER, decoder, "emulator")
        (finding,) = estimates.check_card(found, {"vae_decoder": estimates.tile_estimates(decoder)})
        return finding.text

    per_pixel = (466 - 65) / 512**2  # MB, as published of 512 × 512
    limit = 0.9 * 7040 * 2**20 / 1e6  # MB
    said = card(limit - 700 * 700 * per_pixel, 1024)

    assert (
        f"or use a smaller size; or set `vae_tile` to 640: vae_decoder then takes about {640**2 * per_pixel:.0f} MB"
        in said
    )
    assert "vae_tile" not in card(1000, 1024)
    assert "vae_tile" not in card(limit, 1024) and "smaller size." in card(limit, 1024)


def archive_of(path, **members):
    with tarfile.open(path, "w") as archive:
        for name, array in members.items():
            file = io.BytesIO()
            np.save(file, array, allow_pickle=True)
            member = tarfile.TarInfo(f"{name}.npy")
            member.size = len(file.getvalue())
            archive.addfile(member, io.BytesIO(file.getvalue()))
    return path


CONFIG = config_of(VAE_DECODER)


@pytest.fixture
def build(tmp_path):
    """A function that checks a build with samples of its own making; the graph takes what a VAE decoder does."""
    graph = saved(tmp_path, SOUND)

    def check(archive):
        of = VAE_DECODER.name, VAE_DECODER.role
        check_build(*of, graph, archive, CONFIG, toolchain="emulator", place=tmp_path)

    return check


# What is wrong with a sample -> the sample, words
SAMPLES = {
    "another name": ({"z": np.zeros((1, 4, 8, 8), np.float32)}, "found inputs ['z'], wanted ['x']"),
    "another type": ({"x": np.zeros((1, 4, 8, 8))}, "x: found float64 [1, 4, 8, 8], wanted float32 [1, 4, 8, 8]"),
    "another shape": ({"x": np.zeros((4, 8, 8), np.float32)}, "x: found float32 [4, 8, 8], wanted float32 [1, 4"),
    "infinity": ({"x": np.full((1, 4, 8, 8), np.inf, np.float32)}, "holds infinity or NaN"),
}


@pytest.mark.parametrize("what", SAMPLES)
def test_samples_that_do_not_fit_the_graph_stop_the_compile(build, tmp_path, what):
    sample, words = SAMPLES[what]
    archive = archive_of(tmp_path / "samples.tar", good={"x": np.ones((1, 4, 8, 8), np.float32)}, bad=sample)

    with pytest.raises(PreflightError) as raised:
        build(archive)

    assert words in str(raised.value) and "bad.npy" in str(raised.value)


def test_samples_of_our_own_fit(build, tmp_path):
    latents = tmp_path / "latents.npy"
    np.save(latents, np.ones((2, 1, 4, 8, 8), np.float32))
    pack_latents(latents, tmp_path / "vae_decoder.tar")

    build(tmp_path / "vae_decoder.tar")


def test_no_samples_at_all_stop_the_compile(build, tmp_path):
    with pytest.raises(PreflightError, match="no such file"):
        build(tmp_path / "nowhere.tar")


def test_a_graph_with_an_error_is_not_given_to_the_compiler(tmp_path):
    archive = archive_of(tmp_path / "vae_decoder.tar", good={"x": np.ones((1, 4, 8, 8), np.float32)})
    broken = saved(tmp_path, BROKEN["cubic interpolation"][0])

    with pytest.raises(PreflightError, match="Resize: mode is cubic"):
        compile_model(
            broken,
            tmp_path / "none.data",
            archive,
            component=VAE_DECODER.name,
            role=VAE_DECODER.role,
            config=CONFIG,
            compiler={},
            launch=LAUNCH | {"toolchain": "no such toolchain"},  # it is not even looked for
            axmodel=tmp_path / "vae_decoder.axmodel",
            record=tmp_path / "record.json",
        )


def test_a_long_list_of_names_is_cut_and_the_worst_comes_first():
    assert named(f"n{number}" for number in range(9)) == "n0, n1, n2, n3, n4 and 4 more"
    table = show([Finding("unet", "sizes", "note", "a"), Finding("unet", "names", "error", "b")])
    assert table.splitlines()[0] == "preflight: 1 errors, 0 warnings"
    assert table.index(" b") < table.index(" a")
