"""Pulsar2's `llm_build`: the folder that it is given, how it is started, and what of it is accepted."""

import json
import os
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, Qwen3ForCausalLM

from axbake.emulator.llm_build import _parser, main, quantise_rows
from axbake.families import FAMILIES
from axbake.model import Model, NotOnCard
from axbake.networks import language
from axbake.preflight.language import language_findings
from axbake.runtime.layers import open_component_of
from axbake.table import check_config
from axbake.toolchain.axmodel import read_axmodel
from axbake.toolchain.launch import WrongToolchain
from axbake.toolchain.pulsar2 import CompileError
from axbake.weights import networks
from axbake.weights.language_folder import write_folder
from tests.double.llm_build import FLAGS, SHORT
from tests.language_layers import TOKENS, build
from tests.unit.conftest import SCHEMAS, row_of

ROOT = Path(__file__).parents[2]
#: A way to fail of the double -> the error
FAILURES = {
    "heads": r"native llm_build: it refuses the language model and does not say why: AssertionError\. Some versions",
    "last-layer": r"it was killed, most likely because it ran out of memory: Killed\.",
    "other-version": r"Pulsar2 3\.3, wanted 4\.2",
    "other-hardware": r"for AX620E, wanted AX650",
    "truncated": r"qwen3_p48_l0_together\.axmodel: not a complete \.axmodel",
    "one-group": r"takes K_cache .*; wanted among them the states of a whole prompt, \[1, 48, 32\]",
}


@pytest.fixture
def double(tmp_path, monkeypatch):
    """The double of pulsar2, put on the PATH."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "pulsar2").write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m tests.double "$@"\n')
    (programs / "pulsar2").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture(scope="module")
def klein(model_of):
    return model_of("flux2_klein")


def record_of(folder):
    return json.loads((folder / "build" / "text_encoder.json").read_text())


# The folder -----------------------------------------------------------------------------------------------------------


def written(model, place):
    component = model.family.component("text_encoder")
    write_folder(model.weights["text_encoder"], place, card=component.card, tokenizer="{}")
    return component.card


@pytest.mark.parametrize("family", ["flux2_klein", "z_image", "anima"])
def test_transformers_reads_the_folder_as_the_model_cut_off_behind_its_last_layer(family, model_of, tmp_path):
    model = model_of(family)
    card = written(model, tmp_path / "model")
    ids = torch.arange(16)[None] + 40

    read = Qwen3ForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32, attn_implementation="eager").eval()

    assert read.config.num_hidden_layers == card.count
    component = model.family.component("text_encoder")
    own = networks.load(model.weights["text_encoder"], component.build)
    with torch.inference_mode():
        (wanted,) = language.states_of(own, ids, torch.ones_like(ids), states=card.states)
        found = read.model(ids, output_hidden_states=True).hidden_states
    if not networks.read_description(model.weights["text_encoder"]).config["final_norm"]:
        # transformers norms the last state, by ones here: the layers give it as it was.
        last = wanted[..., -wanted.shape[-1] // len(card.states) :]
        normed = last / (last.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        wanted = torch.cat([wanted[..., : -last.shape[-1]], normed], -1)
    assert torch.allclose(torch.cat([found[k] for k in card.states], -1), wanted, atol=1e-5)


def test_the_folder_is_in_files_of_a_layer_each_in_bfloat16(klein, tmp_path):
    card = written(klein, tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "model").glob("*.safetensors"))
    tensors = {name: tensor for path in files for name, tensor in load_file(path).items()}

    assert len(files) == 1 + card.count and set(index["weight_map"]) == set(tensors)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert (tensors["model.norm.weight"] == 1).all()  # klein takes states before it
    said = AutoConfig.from_pretrained(tmp_path / "model")
    assert (said.model_type, said.tie_word_embeddings, said.num_hidden_layers) == ("qwen3", True, 27)
    assert (tmp_path / "model" / "tokenizer.json").read_text() == "{}"


# Builds ---------------------------------------------------------------------------------------------------------------


def test_layers_are_moved_to_their_place_with_the_table_and_a_record(double, klein, tmp_path, caplog):
    caplog.set_level("INFO", logger="axbake")

    files = build(klein, tmp_path / "made", toolchain="native")

    assert len(files) == 29 and all(path.is_file() for path in files)
    said = record_of(tmp_path / "made")
    assert (said["toolchain"], said["emulated"], said["layers"]) == ("native", False, 27)
    assert said["layer_check"] == {"decode": 1.0, "prefill": 1.0}
    assert said["llm_build"] == {
        **{"input_path": "model", "output_path": "out", "hidden_state_type": "bf16", "weight_type": "s8"},
        **{"prefill_len": TOKENS, "kv_cache_len": 2 * TOKENS - 1, "chip": "AX650", "check_level": 1},
    }
    assert said["bytes"] == sum(path.stat().st_size for path in files[1:])
    layer = read_axmodel(files[2])
    assert (layer.producer, layer.version, layer.hardware) == ("Pulsar2", "4.2", "AX650")
    assert sorted(path.name for path in (tmp_path / "made" / "build").iterdir()) == ["text_encoder.json"]
    told = [message for message in caplog.messages if "building layers" in message]
    assert "building layers 27 of 27" in told[-1]
    rows = load_file(klein.weights["text_encoder"])["embed_tokens.weight"].to(torch.bfloat16).view(torch.uint16)
    assert np.array_equal(np.fromfile(files[1], np.uint16).reshape(rows.shape), rows.numpy())


def test_the_emulator_is_started_and_accepted_in_the_same_way(klein, tmp_path):
    files = build(klein, tmp_path / "made")

    said = record_of(tmp_path / "made")
    assert said["emulated"] is True and "emulated" in said["version"] and said["layer_check"] == {}
    assert open_component_of(files).outputs["prompt_embeds"] == ((1, TOKENS, 96), np.dtype(np.float32))


@pytest.mark.parametrize("failure", FAILURES)
def test_a_build_that_fails_says_of_what_and_leaves_nothing(double, failure, klein, tmp_path, monkeypatch):
    monkeypatch.setenv("PULSAR2_DOUBLE_FAILS", failure)

    with pytest.raises(CompileError, match=FAILURES[failure]):
        build(klein, tmp_path / "made", toolchain="native")

    assert [path for path in (tmp_path / "made").rglob("*") if path.is_file() and "pulsar2" not in path.parts] == []


def test_an_error_of_the_check_behind_a_whole_build_is_told_and_the_layers_are_kept(
    double, klein, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("PULSAR2_DOUBLE_FAILS", "check")

    files = build(klein, tmp_path / "made", toolchain="native")

    assert all(path.is_file() for path in files) and record_of(tmp_path / "made")["layer_check"] == {}
    assert "llm_build ended with status 1 after “build llm model done!”; its layers are kept" in caplog.text


def test_a_version_without_the_command_another_version_and_another_chip_are_errors_that_say_so(
    double, klein, tmp_path, monkeypatch
):
    with pytest.raises(CompileError, match="target_hardware AX615: `llm_build` is known for AX650, AX620E alone"):
        build(klein, tmp_path / "chip", toolchain="native", chip="AX615")
    (tmp_path / "bin" / "pulsar2").write_text(
        '#!/bin/sh\n[ "$1" = version ] && echo "version: 4.2" && exit 0\n'
        "echo \"pulsar2: error: argument command: invalid choice: 'llm_build' (choose from 'build', 'run')\" >&2; exit 2\n"
    )
    with pytest.raises(CompileError, match=r"this version of Pulsar2 has no `llm_build`: .*text_encoder_place: host"):
        build(klein, tmp_path / "old", toolchain="native")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(WrongToolchain, match="does not run"):
        build(klein, tmp_path / "none", toolchain="native")


def test_preflight_tells_what_the_layers_take_of_card_and_host(klein):
    card = klein.family.component("text_encoder").card

    card_finding, heads = language_findings("text_encoder", klein.weights["text_encoder"], card)

    weights = sum(
        t.numel() for name, t in load_file(klein.weights["text_encoder"]).items() if name.startswith("layers.")
    )
    assert (card_finding.check, card_finding.level) == ("card", "note")
    assert card_finding.text.startswith(
        f"27 layers, about {weights * 120 / 101 / 2**20:.0f} of 7040 MiB of CMM while they read"
    )
    assert "its heads have 64 channels together, a state 32: Pulsar2 5.2 and 6.0" in heads.text


# The command line -----------------------------------------------------------------------------------------------------


def test_the_emulator_takes_the_documented_flags_with_their_defaults_and_no_others():
    flags = {action.dest: action for action in _parser()._actions if action.dest != "help"}

    assert flags.keys() == FLAGS.keys()
    for name, entry in FLAGS.items():
        default = flags[name].default
        assert (str(default) if isinstance(default, Path) else default) in (entry.get("default"), "."), name
        if "choices" in entry:
            assert list(flags[name].choices) == entry["choices"]
    short = {o: name for name, action in flags.items() for o in action.option_strings if not o.startswith("--")}
    assert short == SHORT


@pytest.fixture
def folder(klein, tmp_path):
    written(klein, tmp_path / "model")
    return tmp_path / "model"


REFUSED = {
    "another type of weights": (["--weight_type", "s4"], "--weight_type: the emulator does not do 's4'"),
    "another type of states": (["-t", "fp16"], "--hidden_state_type: the emulator does not do 'fp16'"),
    "a second group that reads": (
        ["--last_kv_cache_len", "128"],
        r"--last_kv_cache_len: the emulator does not do \[128\]",
    ),
    "no tokens": (["--prefill_len", "0"], "--prefill_len 0, --kv_cache_len 31: wanted a prompt's tokens"),
    "more tokens than positions": (["--prefill_len", "32"], "--prefill_len 32, --kv_cache_len 31"),
}


def emulate(folder, *arguments):
    given = ["--input_path", str(folder), "--output_path", str(folder.parent / "out"), "--prefill_len", "16"]
    return main([*given, "--kv_cache_len", "31", *arguments])


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_emulator_does_not_do_is_refused_with_what_it_is(case, folder, capsys):
    arguments, wanted = REFUSED[case]

    assert emulate(folder, *arguments) == 1
    assert re.search(wanted, capsys.readouterr().err)
    assert not list(folder.parent.glob("out/*.axmodel"))


@pytest.mark.parametrize(
    "arguments", [["--weight_typ", "s8"], ["--weight_type", "s16"], ["--chip", "AX999"], ["build"]]
)
def test_a_flag_or_value_that_is_not_documented_ends_with_the_usage(arguments, folder):
    with pytest.raises(SystemExit) as caught:
        emulate(folder, *arguments)
    assert caught.value.code == 2


DAMAGED = {
    "another model": (lambda place: edit(place, model_type="llama"), "model_type 'llama': the emulator knows qwen3"),
    "no width": (lambda place: edit(place, hidden_size=None), "wanted numbers above 0"),
    "a width of its own": (lambda place: edit(place, intermediate_size=8), "wanted BF16, F16 or F32 of \\(8, 32\\)"),
    "no config": (lambda place: (place / "config.json").unlink(), "config.json"),
    "no layer": (lambda place: sorted(place.glob("*.safetensors"))[3].unlink(), r"no tensor model\.layers\.2\."),
    "no header": (lambda place: overwrite(place, b""), "not a safetensors file"),
    "a huge header": (lambda place: overwrite(place, struct.pack("<Q", 1 << 60)), "a header of 1152921504606846976"),
}


def edit(place, **entries):
    said = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(said | entries))


def overwrite(place, content):
    sorted(place.glob("*.safetensors"))[3].write_bytes(content)


@pytest.mark.parametrize("case", DAMAGED)
def test_a_folder_that_is_no_such_model_is_an_error_that_names_the_file(case, folder, capsys):
    damage, wanted = DAMAGED[case]
    damage(folder)

    assert emulate(folder) == 1
    said = capsys.readouterr().err
    assert said.startswith("axbake emulator: ") and re.search(wanted, said), said


def test_a_row_of_weights_keeps_its_scale_and_zeros_stay_zeros():
    matrix = np.array([[0, 0], [127, -63.4], [1e-3, 5e-4]], np.float32)

    integers, scales = quantise_rows(matrix)

    assert integers.tolist() == [[0, 0], [127, -63], [127, 64]]
    assert scales.tolist() == [1, 1, np.float32(1e-3) / np.float32(127)]


# The setting ----------------------------------------------------------------------------------------------------------

PAGE = "https://civitai.com/models/47274?modelVersionId=102222"


def placed(family, *, cell="", config="host"):
    checked = check_config(
        {"text_encoder_place": config}, schema=SCHEMAS / "config.schema.yaml", source="config.yaml", components=[]
    )
    row = row_of(checkpoint=PAGE, sha256="0" * 64, family=family, text_encoder_place=cell)
    return Model(row, checked)


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


ON_CARD = ("anima", "flux2_klein", "flux2_klein_9b", "z_image")


def test_the_column_goes_before_config_and_the_host_is_the_default():
    for family in ON_CARD:
        assert placed(family).on_card == [] and placed(family, cell="host", config="card").on_card == []
        for how in ({"cell": "card"}, {"config": "card"}, {"cell": "card", "config": "card"}):
            (component,) = placed(family, **how).on_card
            assert component.name == "text_encoder" and component.host
    assert placed("flux2_klein").family is placed("flux2_klein").family  # one for all rows


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(ON_CARD)))
def test_families_whose_text_encoder_pulsar2_does_not_build_say_so(family):
    languages = [one for one in FAMILIES[family].components if one.language]

    with pytest.raises(
        NotOnCard, match=r"text_encoder_place: card: .*llm_build is documented for language models such as"
    ):
        _ = placed(family, cell="card").family
    if languages:
        with pytest.raises(NotOnCard, match="that it does not take"):
            _ = placed(family, config="card").family
    else:
        assert placed(family, config="card").on_card == []  # config speaks of language models alone


def test_a_row_on_the_card_names_what_is_built_and_what_it_draws_with():
    model = placed("z_image", cell="card")

    assert [name for name in model.built if name.startswith("text")] == ["text_encoder", "text_conditioner"]
    text, conditioner, *_ = model.drawn.parts
    assert (text.graphs, text.models) == (5, 37) and (conditioner.graphs, conditioner.models) == (1, 0)
    files = [Path(f"{number}") for number in range(37 + 1 + 8 + 2)]
    assert [len(found) for found in model.drawn.models(files).values()] == [37, 1, 8, 1, 1]
    assert not any(graph.startswith("text") for graph in model.compiled)
