"""Language models on the card, layer by layer: what they give is what the networks themselves give, wherever they run."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from axbake.distance import sqnr
from axbake.networks import language
from axbake.networks.card_layers import files_on_card
from axbake.runtime import axcl, bfloat16, card_chain
from axbake.runtime.axcl import open_card
from axbake.runtime.card_chain import CardLayers, CardSession, open_component
from axbake.runtime.errors import BundleError
from axbake.runtime.language import LanguageTokenizer
from axbake.runtime.language_card import GROUP, LanguageModel, read_described
from axbake.runtime.layers import Layers, StreamedLayers, open_component_of, open_layer
from axbake.runtime.model import Postponed
from axbake.runtime.session import open_model
from axbake.weights import networks
from tests.language_layers import TOKENS, build, form_of
from tests.standins.axcl.library import Standin, compile_library, write_ports
from tests.unit.test_runtime_chain import arrays, save_whole

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
FAMILIES = ("flux2_klein", "z_image", "anima")  # states from the middle; left padding; the last norm


@pytest.fixture(scope="module")
def built(once, model_of):
    """A function that gives a family's tiny model and the files of its language model in layers, emulated once."""

    def of(family):
        model = model_of(family)
        place = once(f"layers-{family}", lambda place: build(model, place / "made"))
        card = model.family.component("text_encoder").card
        return model, [place / "made" / file for file in files_on_card("text_encoder", card)]

    return of


def prompt_of(model, text="a red panda"):
    """Ids and kinds of the tokens of a prompt."""
    content = json.loads(model.embeddings.read_text())["language"]["text_encoder"]["tokenizer"]
    return LanguageTokenizer(content, form_of(model.family.component("text_encoder"))).arrays(text)


def network_of(model, *, quantised=False):
    """torch's network; *quantised*: its matrices as eight bits have them."""
    component = model.family.component("text_encoder")
    network = networks.load(model.weights["text_encoder"], component.build)
    for name, parameter in network.named_parameters() if quantised else ():
        if parameter.ndim == 2 and "embed_tokens" not in name:
            scale = parameter.data.abs().amax(1, keepdim=True) / 127
            parameter.data = (parameter.data / scale).round().clamp(-127, 127) * scale
    return network


def wanted_of(model, ids, kinds, **how):
    card = model.family.component("text_encoder").card
    with torch.inference_mode():
        own = network_of(model, **how)
        (found,) = language.states_of(own, torch.from_numpy(ids), torch.from_numpy(kinds), states=card.states)
    return found.numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_emulated_layers_give_the_states_of_the_network(family, built):
    model, files = built(family)
    ids, kinds = prompt_of(model)
    counted = (kinds[0] > 0) | (not model.family.component("text_encoder").language.masked)

    session = open_component_of(files, threads=1)
    found = session.run(dict(zip(session.inputs, (ids, kinds), strict=True)))["prompt_embeds"]

    assert found.dtype == np.float32
    # What is left against eight bits is bfloat16's rounding.
    assert sqnr(wanted_of(model, ids, kinds, quantised=True)[:, counted], found[:, counted]) > 36
    assert sqnr(wanted_of(model, ids, kinds)[:, counted], found[:, counted]) > 30


def test_a_layer_takes_and_gives_what_public_programs_say_of_one(built):
    model, files = built("flux2_klein")
    config = networks.read_description(model.weights["text_encoder"]).config
    width, keys = config["hidden_size"], config["num_key_value_heads"] * config["head_dim"]

    content = onnx.load(files[2])
    kinds = {one.name: one.type.tensor_type.elem_type for one in (*content.graph.input, *content.graph.output)}
    shapes = {
        one.name: [dim.dim_value for dim in one.type.tensor_type.shape.dim]
        for one in (*content.graph.input, *content.graph.output)
    }

    caches, states = [1, 1, width], [1, TOKENS, width]
    assert shapes == {
        **{"K_cache": caches, "V_cache": caches, "indices": [1, TOKENS], "input": states},
        **{"mask": [1, TOKENS, TOKENS], "output": states},
        **{name: [1, TOKENS, keys] for name in ("K_cache_out", "V_cache_out")},
    }
    assert kinds.pop("indices") == onnx.TensorProto.UINT32
    assert set(kinds.values()) == {onnx.TensorProto.BFLOAT16}
    assert "cannot run on a board" in content.doc_string


def test_the_keys_and_values_are_given_too(built):
    """As a run of the network with a cache has them: nothing of a layer is made up."""
    model, files = built("flux2_klein")
    ids, kinds = prompt_of(model)
    with torch.inference_mode():
        network = network_of(model, quantised=True)
        cache = network(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(kinds), use_cache=True)
        first = cache.past_key_values.layers[0]
    layer = open_layer(files[2], runtime="onnxruntime", device=0, threads=1)
    table = np.fromfile(files[1], np.uint16).reshape(-1, layer.inputs["input"][0][2])
    seen = np.tri(TOKENS, dtype=bool) & (kinds[0] == 1)
    feed = {name: np.zeros(shape, dtype) for name, (shape, dtype) in layer.inputs.items()}
    feed |= {"input": table[ids], "indices": np.arange(TOKENS, dtype=np.uint32)[None]}
    feed |= {"mask": bfloat16.to_bits(np.where(seen, np.float32(0), np.float32(-65536)))[None]}

    made = layer.run(feed)

    for name, one in (("K_cache_out", first.keys), ("V_cache_out", first.values)):
        flat = one.transpose(1, 2).flatten(2).numpy()
        assert sqnr(flat, bfloat16.from_bits(made[name])) > 40, name


def test_numbers_are_rounded_to_bfloat16_as_torch_does():
    values = np.random.default_rng(1).standard_normal(10_000).astype(np.float32) * 1e3
    ties = np.array([1.00390625, 1.01171875, -65536, 0, -0.0, 3.3e38], np.float32)
    both = np.concatenate([values, ties])

    bits = bfloat16.to_bits(both)

    assert np.array_equal(bits, torch.from_numpy(both).to(torch.bfloat16).view(torch.uint16).numpy())
    assert np.array_equal(bfloat16.to_bits(bfloat16.from_bits(bits)), bits)


def test_layers_too_large_for_memory_are_opened_one_by_one_and_give_the_same(built):
    model, files = built("flux2_klein")
    feed = dict(zip(("input_ids", "attention_mask"), prompt_of(model), strict=True))

    whole, streamed = open_component_of(files, threads=1), open_component_of(files, threads=1, most_open=1)

    assert isinstance(whole._layers, Layers) and isinstance(streamed._layers, StreamedLayers)
    assert np.array_equal(whole.run(feed)["prompt_embeds"], streamed.run(feed)["prompt_embeds"])


def test_what_is_filled_up_changes_no_token_of_the_prompt(built):
    model, files = built("flux2_klein")
    ids, kinds = prompt_of(model)
    own = int((kinds == 1).sum())
    session = open_component_of(files, threads=1)

    first = session.run({"input_ids": ids, "attention_mask": kinds})["prompt_embeds"]
    ids[:, own:] = 7
    second = session.run({"input_ids": ids, "attention_mask": kinds})["prompt_embeds"]

    assert own < TOKENS and np.array_equal(first[:, :own], second[:, :own])
    assert not np.array_equal(first[:, own:], second[:, own:])


# Damaged files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(built, tmp_path):
    """A copy of klein's files, to spoil."""
    _, files = built("flux2_klein")
    for path in files:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return [tmp_path / path.name for path in files]


SAID = {
    "no JSON": (lambda said: None, r"language\.json: \w+Error: .* Copy the bundle again"),
    "a state behind the last": (lambda said: said | {"states": [28]}, r"states: \(28,\); wanted some from 1 to 27"),
    "no state": (lambda said: said | {"states": []}, r"states: \(\)"),
    "a huge number": (lambda said: said | {"tokens": 10**12}, "tokens, drop, width, vocabulary, layers"),
    "a text for a number": (lambda said: said | {"width": "much"}, "ValueError"),
    "a norm of another width": (lambda said: said | {"norm": [1.0]}, "norm: 1 numbers; wanted 32, or none"),
    "other layers": (lambda said: said | {"layers": 28}, "28 layers, but 27 files of layers"),
    "other tokens": (lambda said: said | {"tokens": 40}, r"its layers take .*; wanted .* Take all files from one bake"),
    "another vocabulary": (lambda said: said | {"vocabulary": 9}, r"embed_tokens\.bin: \d+ bytes; wanted 576 bytes"),
}


@pytest.mark.parametrize("damage", SAID)
def test_a_description_that_does_not_fit_is_an_error_that_names_it(damage, copied):
    change, wanted = SAID[damage]
    changed = change(json.loads(copied[0].read_text()))
    copied[0].write_text("[" if changed is None else json.dumps(changed))

    with pytest.raises(BundleError, match=wanted):
        open_component_of(copied)


def test_a_table_or_a_layer_that_is_not_whole_is_an_error_that_names_it(copied):
    whole = copied[5].read_bytes()
    copied[5].write_bytes(b"\x08\x0a\x12\x07Pulsar2" + whole[19:])
    with pytest.raises(BundleError, match=r"layer_3\.axmodel: made by Pulsar2, which ONNX Runtime does not run"):
        open_component_of(copied)
    copied[5].unlink()
    with pytest.raises(BundleError, match=r"layer_3\.axmodel: no such file"):
        open_component_of(copied)
    copied[1].write_bytes(copied[1].read_bytes()[:-2])
    with pytest.raises(BundleError, match=r"embed_tokens\.bin: \d+ bytes; wanted \d+ bytes, a row for each token"):
        open_component_of(copied)


def test_an_emulated_layer_does_not_go_onto_a_card_and_a_graph_is_no_layer(built, tmp_path):
    _, files = built("flux2_klein")

    with pytest.raises(
        BundleError, match=r"layer_0\.axmodel: made by axbake-emulator, which an accelerator does not run"
    ):
        open_component(files, runtime="axcl", device=0, threads=1)
    graph = onnx.load(save_whole(tmp_path / "whole.onnx"))
    graph.producer_name = "axbake-emulator"
    other = tmp_path / "whole.axmodel"
    onnx.save(graph, other)
    with pytest.raises(BundleError, match=r"sample of tensor\(float\).*wanted tensor\(bfloat16\) or tensor\(uint32\)"):
        open_layer(other, runtime="onnxruntime", device=0, threads=1)


def test_token_ids_that_the_table_does_not_have_are_an_error(built):
    model, files = built("flux2_klein")
    ids, kinds = prompt_of(model)
    ids[0, 3] = 10_000

    with pytest.raises(BundleError, match=r"token ids from \d+ to 10000; wanted 0 to 260\. Use the tokenizer"):
        open_component_of(files).run({"input_ids": ids, "attention_mask": kinds})


def test_a_description_is_read_as_it_was_written(built):
    for family, states, normed in (("flux2_klein", (9, 18, 27), False), ("anima", (28,), True)):
        _, files = built(family)
        said = read_described(files[0])
        assert (said.states, bool(said.norm), said.tokens, said.layers) == (states, normed, TOKENS, max(states))


# On a card ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def standin(once):
    return Standin(once("axcl", lambda place: compile_library(place / "libaxcl_rt.so")) / "libaxcl_rt.so")


@pytest.fixture
def card(standin, monkeypatch):
    """A function that gives a card with so many bytes of memory, whose layers run in ONNX Runtime."""
    for module in (axcl, card_chain):
        monkeypatch.setattr(module, "find_library", lambda: str(standin.path))
    monkeypatch.setattr(axcl.atexit, "register", lambda *given: None)
    monkeypatch.setattr(axcl, "_cards", {})
    monkeypatch.setattr(card_chain, "_SESSIONS", {})

    def opened(memory):
        standin.reset(memory, compute)
        return open_card()

    return opened


def compute(path, inputs, outputs):
    """What the emulated layer beside *path*, or the graph there, gives for what stands at the addresses *inputs*."""
    emulated = path.with_suffix(".emulated.axmodel")
    how = {"runtime": "onnxruntime", "device": 0, "threads": 1}
    session = open_layer(emulated, **how) if emulated.exists() else open_model(path, threads=1)

    def at(address, shape, dtype):
        size = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)

    given = {name: at(inputs[i], *port).copy() for i, (name, port) in enumerate(session.inputs.items())}
    for i, made in enumerate(session.run(given).values()):
        at(outputs[i], made.shape, made.dtype)[...] = made


def compiled(files, folder, usage=MIB):
    """Files of layers that look compiled, with both groups of shapes; *folder*: where they come to lie."""
    folder.mkdir()
    made = []
    for path in files:
        (folder / path.name).write_bytes(path.read_bytes())
        made.append(folder / path.name)
    for path in made[2:]:
        layer = open_layer(path, runtime="onnxruntime", device=0, threads=1)
        path.rename(path.with_suffix(".emulated.axmodel"))
        path.write_bytes(b"\x08\x0a\x12\x07Pulsar2")
        sides = [
            [(name, shape, "uint32" if name == "indices" else "bfloat16") for name, (shape, _) in side.items()]
            for side in (layer.inputs, layer.outputs)
        ]
        keys = next(shape for name, shape, _ in sides[1] if name == "K_cache_out")[2]
        one = {"K_cache": (1, 95, keys), "V_cache": (1, 95, keys), "indices": (1, 1), "mask": (1, 1, 96)}
        first = [[(name, one.get(name, (1, 1, shape[-1])), kind) for name, shape, kind in side] for side in sides]
        write_ports(path, usage, *first, second=tuple(sides))
    return made


def test_a_card_gives_what_the_host_gives_and_copies_only_the_ends_and_the_states_that_are_taken(
    built, card, standin, tmp_path
):
    model, files = built("flux2_klein")
    feed = dict(zip(("input_ids", "attention_mask"), prompt_of(model), strict=True))
    host, _ = open_component_of(files, threads=1), card(64 * MIB)

    session = open_component(compiled(files, tmp_path / "text_encoder"), runtime="auto", device=0, threads=1)

    assert isinstance(session, LanguageModel) and isinstance(session._layers, CardLayers)
    assert (session.inputs, session.outputs) == (host.inputs, host.outputs)
    for run in range(1, 3):
        assert np.array_equal(session.run(feed)["prompt_embeds"], host.run(feed)["prompt_embeds"])
        found = standin.counts()
        width = session._layers.inputs["K_cache"][0][2]
        up = 2 * (2 * width + TOKENS * width + TOKENS * TOKENS) + 4 * TOKENS
        assert (found.uploaded, found.downloaded) == (run * up, run * 3 * 2 * TOKENS * width)
        assert (found.loads, found.runs) == (27, 27 * run)
    session.leave()
    assert standin.counts().used == 0


def test_layers_that_a_card_cannot_hold_stream_through_it(built, card, standin, tmp_path):
    model, files = built("flux2_klein")
    feed = dict(zip(("input_ids", "attention_mask"), prompt_of(model), strict=True))
    card(12 * MIB)

    session = open_component(compiled(files, tmp_path / "text_encoder"), runtime="auto", device=0, threads=1)

    assert session._layers._resident == 10
    wanted = open_component_of(files, threads=1).run(feed)["prompt_embeds"]
    assert np.array_equal(session.run(feed)["prompt_embeds"], wanted)
    assert standin.counts().peak <= 12 * MIB


def test_the_text_encoder_leaves_the_card_when_it_is_released(built, card, standin, tmp_path):
    """What a card takes for 27 layers is free for the transformer afterwards, which no layer then has to leave for."""
    model, files = built("flux2_klein")
    feed = dict(zip(("input_ids", "attention_mask"), prompt_of(model), strict=True))
    opened = card(30 * MIB)
    paths = compiled(files, tmp_path / "text_encoder")
    encoder = Postponed("text_encoder", lambda: open_component(paths, runtime="auto", device=0, threads=1))

    encoder.run(feed)
    assert standin.counts().used > 27 * MIB
    encoder.release()

    assert standin.counts().used == 0
    whole = save_whole(tmp_path / "unet.onnx")
    sides = [
        [(name, *port) for name, port in side.items()] for side in (open_model(whole).inputs, open_model(whole).outputs)
    ]
    write_ports(whole, 20 * MIB, *([(name, shape, str(dtype)) for name, shape, dtype in side] for side in sides))
    CardSession("unet", [whole], opened, "AXCLRTExecutionProvider").run(arrays())
    assert standin.counts().loads == 27 + 1


ON_A_CARD = """
import json, sys
from pathlib import Path
import numpy as np
from axbake.runtime.layers import open_component_of
given = json.loads(sys.argv[1])
session = open_component_of([Path(path) for path in given["paths"]], runtime="axcl")
made = session.run({name: np.array(rows, np.int64) for name, rows in given["feed"].items()})
np.save(given["result"], made["prompt_embeds"])
print(session.provider)
"""


def test_pyaxengine_runs_the_group_that_reads_a_prompt(built, tmp_path):
    model, files = built("flux2_klein")
    feed = dict(zip(("input_ids", "attention_mask"), prompt_of(model), strict=True))
    made = []
    for path in files:
        content = path.read_bytes()
        if path.suffix == ".axmodel":
            layer = onnx.load_model_from_string(content)
            layer.producer_name = "Pulsar2"
            assert {entry.key: entry.value for entry in layer.metadata_props}["shape_group"] == str(GROUP)
            content = layer.SerializeToString()
        (tmp_path / path.name).write_bytes(content)
        made.append(str(tmp_path / path.name))
    given = {"paths": made, "feed": {name: array.tolist() for name, array in feed.items()}}
    given["result"] = str(tmp_path / "states.npy")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "standins")])}

    done = subprocess.run(
        [sys.executable, "-c", ON_A_CARD, json.dumps(given)], env=environment, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "AXCLRTExecutionProvider"
    wanted = open_component_of(files, threads=1).run(feed)["prompt_embeds"]
    assert np.array_equal(np.load(tmp_path / "states.npy"), wanted)


def test_without_pyaxengine_a_compiled_layer_is_an_error_that_says_where_to_have_it(built, tmp_path, monkeypatch):
    _, files = built("flux2_klein")
    monkeypatch.setitem(sys.modules, "axengine", None)
    paths = compiled(files, tmp_path / "text_encoder")

    with pytest.raises(BundleError, match=r"layer_0\.axmodel: runs only on the accelerator, but pyaxengine cannot be"):
        open_component_of(paths, runtime="axcl")
