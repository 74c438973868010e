"""A network in several graphs computes what it computes in one."""

import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest

from axbake.runtime import session as sessions
from axbake.runtime.chain import Chain, StreamedChain
from axbake.runtime.errors import BundleError
from axbake.runtime.session import EMULATOR, Session, open_model, open_models
from tests.chains import cut_graph

ROOT = Path(__file__).parents[2]
FLOAT = np.dtype(np.float32)

#: A network of nodes (operator, inputs, output): the skip is taken again at its end, the shift in the middle and there
NETWORK = [
    ("MatMul", ("sample", "w0"), "skip"),
    ("Tanh", ("skip",), "h0"),
    ("MatMul", ("h0", "w1"), "h1"),
    ("Add", ("h1", "shift"), "h2"),
    ("Sigmoid", ("h2",), "h3"),
    ("Mul", ("h3", "skip"), "h4"),
    ("Add", ("h4", "shift"), "out_sample"),
]
SHAPE = (3, 4)
CUTS = {"one cut": (2,), "two cuts": (2, 5), "each node": (1, 2, 3, 4, 5, 6)}


def weights():
    random = np.random.default_rng(0)
    return {name: random.normal(size=(4, 4)).astype(np.float32) for name in ("w0", "w1")}


def network(*, producer_name="axbake"):
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(kind, taken, [output]) for kind, taken, output in NETWORK],
        "network",
        [value(name, onnx.TensorProto.FLOAT, SHAPE) for name in ("sample", "shift")],
        [value("out_sample", onnx.TensorProto.FLOAT, SHAPE)],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights().items()],
    )
    opset = onnx.helper.make_opsetid("", 18)
    return onnx.helper.make_model(graph, producer_name=producer_name, opset_imports=[opset], ir_version=10)


def save_whole(path):
    onnx.save(network(), path)
    return path


def save_parts(folder, places, *, suffix=".onnx", **options):
    return cut_graph(network(**options), places, folder, suffix=suffix)


def arrays():
    random = np.random.default_rng(1)
    return {name: random.normal(size=SHAPE).astype(np.float32) for name in ("sample", "shift")}


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
def test_a_chain_gives_what_the_network_in_one_graph_gives(tmp_path, cuts):
    whole = open_models([save_whole(tmp_path / "whole.onnx")], threads=1)

    chain = open_models(save_parts(tmp_path / "unet", cuts), threads=1)

    assert isinstance(chain, Chain) and len(chain.graphs) == len(cuts) + 1
    assert list(chain.inputs.items()) == list(whole.inputs.items()) == [(name, (SHAPE, FLOAT)) for name in arrays()]
    assert chain.outputs == whole.outputs == {"out_sample": (SHAPE, FLOAT)}
    assert chain.provider == whole.provider == "CPUExecutionProvider"
    for _ in range(2):
        assert np.array_equal(chain.run(arrays())["out_sample"], whole.run(arrays())["out_sample"])


def test_what_a_chain_computes_is_what_the_formula_says(tmp_path):
    x, w = arrays(), weights()
    skip = x["sample"] @ w["w0"]
    wanted = skip / (1 + np.exp(-(np.tanh(skip) @ w["w1"] + x["shift"]))) + x["shift"]

    found = open_models(save_parts(tmp_path / "unet", (2, 5))).run(x)["out_sample"]

    assert np.abs(found - wanted).max() < 1e-5


def test_one_path_is_that_model_and_several_are_called_after_their_folder(tmp_path):
    one = open_models([save_whole(tmp_path / "whole.onnx")])
    several = open_models(save_parts(tmp_path / "unet", (2, 5)))

    assert not isinstance(one, Chain)
    assert (one.name, one.component) == ("whole.onnx", "whole")
    assert (several.name, several.component) == ("unet", "unet")
    assert [graph.name for graph in several.graphs] == ["part_00.onnx", "part_01.onnx", "part_02.onnx"]


def test_each_run_of_a_chain_is_one_time_and_holds_those_of_its_graphs(tmp_path):
    chain = open_models(save_parts(tmp_path / "unet", (2, 5)))

    for _ in range(3):
        chain.run(arrays())

    assert len(chain.seconds) == 3
    assert [len(graph.seconds) for graph in chain.graphs] == [3, 3, 3]
    for run, seconds in enumerate(chain.seconds):
        assert seconds >= sum(graph.seconds[run] for graph in chain.graphs) > 0


def test_a_chain_is_as_strict_with_what_it_is_given_as_one_model(tmp_path):
    chain = open_models(save_parts(tmp_path / "unet", (2,)))

    with pytest.raises(BundleError, match=r"unet: got inputs sample; wanted sample, shift\."):
        chain.run({"sample": arrays()["sample"]})
    with pytest.raises(
        BundleError,
        match=r"unet: sample: found shape \(4, 3\), wanted \(3, 4\); shift: found int64, wanted values of float",
    ):
        chain.run({"sample": arrays()["sample"].T, "shift": np.zeros(SHAPE, np.int64)})
    with pytest.raises(BundleError, match="a chain without graphs"):
        open_models([])


@pytest.mark.parametrize("most", [1 << 30, 0], ids=["open", "streamed"])
def test_a_chain_leaves_memory_with_its_last_name_and_not_with_the_next_collection(most, tmp_path):
    gc.disable()
    try:
        chain = open_models(save_parts(tmp_path / "unet", (2, 5)), most_open=most)
        assert isinstance(chain, StreamedChain) == (most == 0)
        chain.run(arrays())
        graphs = [weakref.ref(chain), *(weakref.ref(graph) for graph in chain.graphs)]
        del chain
        assert [graph for graph in graphs if graph() is not None] == []
    finally:
        gc.enable()


def test_of_a_large_chain_one_graph_is_in_memory_at_a_time_and_it_gives_the_same(tmp_path, monkeypatch):
    paths = save_parts(tmp_path / "unet", (2, 5))
    wanted = open_models(paths, threads=1)
    alive, most = weakref.WeakSet(), []

    def opened(path, **how):
        gc.collect()
        most.append(len(alive))
        session = open_model(path, **how)
        alive.add(session)
        return session

    monkeypatch.setattr(sessions, "open_model", opened)
    chain = open_models(paths, threads=1, most_open=sum(path.stat().st_size for path in paths) - 1)

    feeds = [arrays(), {name: array + 1 for name, array in arrays().items()}]
    found = chain.run_all(feeds)

    assert isinstance(chain, StreamedChain) and (chain.inputs, chain.outputs) == (wanted.inputs, wanted.outputs)
    for made, feed in zip(found, feeds, strict=True):
        assert np.array_equal(made["out_sample"], wanted.run(feed)["out_sample"])
    assert most == [0] * 6  # to see what they take, and for both feeds together
    assert [len(graph.seconds) for graph in chain.graphs] == [2, 2, 2]


@pytest.mark.parametrize("cuts", [(), (2,)], ids=["a graph", "a chain"])
def test_weights_of_emulated_models_are_in_float_where_those_of_the_whole_fit(cuts, tmp_path, monkeypatch):
    paths = save_parts(tmp_path / "unet", cuts, suffix=".axmodel", producer_name=EMULATOR)
    size, opened = sum(path.stat().st_size for path in paths), []
    monkeypatch.setattr(
        sessions, "open_model", lambda path, **how: opened.append(how["in_float"]) or open_model(path, **how)
    )

    for most in (4 * size, 4 * size - 1):
        open_models(paths, threads=1, most_open=most)

    assert opened == [True] * len(paths) + [False] * len(paths)


def session(name, inputs, outputs, compute=None, *, provider="p"):
    """A graph whose tensors are float32, of shapes by name."""
    tensors = ({tensor: (shape, FLOAT) for tensor, shape in given.items()} for given in (inputs, outputs))
    return Session(name, *tensors, compute or (lambda feed: []), provider)


def test_tensors_are_dropped_once_no_later_graph_takes_them():
    alive = {}
    seen = []

    def computing(*outputs):
        def compute(feed):
            seen.append({name for name, array in alive.items() if array() is not None})
            made = [np.zeros(2, np.float32) for _ in outputs]
            alive.update({name: weakref.ref(array) for name, array in zip(outputs, made, strict=True)})
            return made

        return compute

    two = (2,)
    chain = Chain(
        "unet",
        [
            session("a", {"x": two}, {"h": two, "skip": two, "unused": two}, computing("h", "skip", "unused")),
            session("b", {"h": two, "y": two}, {"g": two}, computing("g")),
            session("c", {"g": two, "skip": two}, {"f": two}, computing("f")),
            session("d", {"f": two, "y": two}, {"out": two, "more": two}, computing("out", "more")),
        ],
    )

    given = chain.run({"x": np.zeros(2, np.float32), "y": np.zeros(2, np.float32)})

    assert seen == [set(), {"h", "skip"}, {"skip", "g"}, {"f"}]
    assert list(chain.inputs) == ["x", "y"] and list(given) == list(chain.outputs) == ["out", "more"]
    assert all(alive[name]() is None for name in ("h", "skip", "unused", "g", "f"))


def test_what_the_caller_gave_is_left_as_it_was(tmp_path):
    given, same = arrays(), arrays()

    open_models(save_parts(tmp_path / "unet", (2, 5))).run(given)

    assert list(given) == list(same) and all(np.array_equal(given[name], same[name]) for name in same)


A, B = (1, 2), (1, 3)
FAULTS = {
    "an input that an earlier graph makes otherwise": (
        [session("a", {"x": A}, {"h": A}), session("b", {"h": B}, {"y": A})],
        r"unet: .*; h: a makes float32 \(1, 2\), b takes float32 \(1, 3\)\. Take all graphs from one bake",
    ),
    "an input that two graphs take, of two shapes": (
        [session("a", {"x": A, "t": A}, {"h": A}), session("b", {"h": A, "t": B}, {"y": A})],
        r"t: a takes float32 \(1, 2\), b takes float32 \(1, 3\)",
    ),
    "an input of two types": (
        [
            session("a", {"x": A}, {"h": A}),
            Session("b", {"h": (A, np.dtype(np.float16))}, {"y": (A, FLOAT)}, lambda feed: []),
        ],
        r"h: a makes float32 \(1, 2\), b takes float16 \(1, 2\)",
    ),
    "graphs in the wrong order": (
        [session("b", {"h": A}, {"y": A}), session("a", {"x": A}, {"h": A})],
        r"h: a makes it, b takes it before",
    ),
    "a tensor that two graphs make": (
        [session("a", {"x": A}, {"h": A}), session("b", {"h": A}, {"g": A}), session("c", {"g": A}, {"h": A})],
        r"h: c makes it, a makes it too",
    ),
    "a graph that gives what it takes": ([session("a", {"x": A}, {"x": A})], r"x: a makes it, a takes it before"),
    "two providers": (
        [session("a", {"x": A}, {"h": A}), session("b", {"h": A}, {"y": A}, provider="q")],
        r"a runs on p, b on q; wanted one for all",
    ),
    "several faults at once": (
        [session("a", {"x": A, "t": A}, {"h": A}), session("b", {"h": B, "t": B}, {"y": A})],
        r"h: a makes .*, b takes .*; t: a takes .*, b takes ",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_graphs_that_do_not_fit_are_refused_with_the_names_of_both(fault):
    graphs, said = FAULTS[fault]

    with pytest.raises(BundleError, match=said):
        Chain("unet", graphs)


def test_a_graph_that_is_missing_is_refused(tmp_path):
    first, _, last = save_parts(tmp_path / "unet", (2, 5))

    with pytest.raises(BundleError, match=r"no such file"):
        open_models([first, tmp_path / "unet" / "part_9.onnx", last])
    assert set(open_models([first, last]).inputs) == {"sample", "shift", "h3"}  # what the middle one makes is asked for


ON_A_CARD = """
import json, sys
import numpy as np
from pathlib import Path
from axbake.runtime.session import open_models
from tests.chains import cut_graph

given = json.loads(sys.argv[1])
chain = open_models([Path(path) for path in given["paths"]], runtime=given["runtime"])
arrays = {name: np.asfortranarray(np.array(rows, np.float32)) for name, rows in given["arrays"].items()}
outputs = chain.run(arrays)
print(json.dumps({"provider": chain.provider, "out_sample": outputs["out_sample"].tolist(), "runs": len(chain.seconds)}))
"""


def on_a_card(paths, runtime="auto"):
    """A chain of Pulsar2's axmodels, run by the stand-in for pyaxengine."""
    given = {
        "paths": [str(path) for path in paths],
        "runtime": runtime,
        "arrays": {name: array.tolist() for name, array in arrays().items()},
    }
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "standins")])}
    done = subprocess.run(
        [sys.executable, "-c", ON_A_CARD, json.dumps(given)], env=environment, capture_output=True, text=True
    )
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr


@pytest.mark.parametrize("runtime", ["auto", "axcl"])
def test_a_chain_runs_on_the_accelerator_too(tmp_path, runtime):
    whole = open_model(save_whole(tmp_path / "whole.onnx")).run(arrays())["out_sample"]

    found = on_a_card(save_parts(tmp_path / "unet", (2, 5), suffix=".axmodel", producer_name="Pulsar2"), runtime)

    assert found["provider"] == "AXCLRTExecutionProvider" and found["runs"] == 1
    assert np.abs(np.array(found["out_sample"], np.float32) - whole).max() < 1e-6


def test_a_chain_half_compiled_and_half_emulated_is_refused(tmp_path):
    compiled, *_ = save_parts(tmp_path / "unet", (2,), suffix=".axmodel", producer_name="Pulsar2")
    _, emulated = save_parts(tmp_path / "emulated", (2,), suffix=".axmodel", producer_name=EMULATOR)

    assert "part_00.axmodel runs on AXCLRTExecutionProvider, part_01.axmodel on CPUExecutionProvider" in on_a_card(
        [compiled, emulated]
    )


def test_a_graph_that_the_card_cannot_load_is_an_error_that_names_it(tmp_path):
    parts = save_parts(tmp_path / "unet", (2, 5), suffix=".axmodel", producer_name="Pulsar2")
    parts[1].write_bytes(parts[1].read_bytes()[:40])

    said = on_a_card(parts)

    assert "BundleError" in said.splitlines()[-1] and "part_01.axmodel: AXCLRTExecutionProvider cannot load it" in said
