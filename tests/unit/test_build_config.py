"""Pulsar2's configs: what axbake sets, what users may set over it, and what is refused with the place where it belongs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from axbake.emulator.config import Pulsar2ConfigError, merged
from axbake.emulator.config import build_config as read_build
from axbake.emulator.fields import MESSAGES
from axbake.families import FAMILIES
from axbake.model import Model
from axbake.networks.component import ROLES
from axbake.toolchain.build_config import build_config, doubts, overridden, read_own_fields
from docs.make_pulsar2 import PAGE, page
from tests.builds import CHIP, COLUMNS, build_of
from tests.double.arguments import MESSAGES as DOCUMENTED
from tests.double.arguments import check

SD1 = FAMILIES["sd1"]
UNET = build_of(SD1.denoiser)
PRECISIONS = ["U8", "U16", "S16"]


def configured(component, precision="U16", **fields):
    """The config of Stable Diffusion 1.x' *component*, as JSON holds it."""
    build = build_of(SD1.component(component), precision=precision)
    return json.loads(json.dumps(build_config(build, read_own_fields(build, fields))))


def refusal(**fields):
    with pytest.raises(Pulsar2ConfigError) as caught:
        read_own_fields(UNET, fields)
    return str(caught.value)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("component", SD1.names)
def test_the_config_of_every_component_is_one_that_the_compiler_takes(component, precision):
    values = configured(component, precision)
    built = read_build(merged(values, {"input": "graph.onnx", "output_dir": "out"}))

    check(values | {"input": "graph.onnx", "output_dir": "out"})  # by the double's own table
    assert (built.target_hardware, built.npu_mode) == ("AX650", "NPU3")
    (layer,) = built.layers
    assert layer.data_type == precision
    assert (layer.start_tensors, layer.end_tensors) == (("DEFAULT",), ("DEFAULT",))
    (calibration,) = built.inputs
    assert calibration.dataset == Path(f"{component}.tar")
    assert calibration.size == -1
    assert values["quant"]["calibration_method"] == "MinMax"


def test_the_formats_are_those_of_the_archives_and_of_the_programs_on_boards():
    places = {"input": "g.onnx", "output_dir": "out"}
    built = {name: read_build(merged(configured(name), places)) for name in SD1.names}

    assert {name: config.inputs[0].format for name, config in built.items()} == {
        "text_encoder": "Numpy",
        "unet": "NumpyObject",
        "vae_encoder": "Image",
        "vae_decoder": "NumpyObject",
    }
    (ids,), (picture,) = built["text_encoder"].processors, built["vae_encoder"].processors
    assert ids.src_dtype == "S32"  # programs feed int32, and pyaxengine compares types
    # Pictures of 0 to 255 become -1 to 1 while calibrating; on the board the program has done so already.
    assert (built["vae_encoder"].inputs[0].mean, built["vae_encoder"].inputs[0].std) == ((127.5,) * 3, (127.5,) * 3)
    assert (picture.tensor_format, picture.mean, picture.std) == ("RGB", (0.0,) * 3, (1.0,) * 3)
    assert not built["unet"].processors and not built["vae_decoder"].processors


def test_the_same_graph_of_another_component_has_the_same_config():
    """So models of two families share a build."""
    assert build_config(UNET, {}) == build_config(replace(UNET, component="painter"), {})


def test_a_graph_of_several_is_calibrated_with_an_archive_of_its_own():
    (entry,) = build_config(replace(UNET, name="down"), {})["quant"]["input_configs"]

    assert entry["calibration_dataset"] == "down.tar"


def test_fields_of_the_users_go_over_axbakes_and_precision_stays_for_the_rest():
    softmax = {"op_types": ["Softmax"], "data_type": "FP32"}
    values = configured(
        "unet",
        npu_mode="NPU1",
        onnx_opt={"enable_onnxsim": True},
        quant={"layer_configs": [softmax], "calibration_method": "Percentile", "input_configs": [SIXTEEN]},
        compiler={"check": 3},
    )

    assert (values["npu_mode"], values["onnx_opt"], values["compiler"]) == (
        "NPU1",
        {"enable_onnxsim": True},
        {"check": 3},
    )
    assert values["quant"]["calibration_method"] == "Percentile"
    assert [layer["data_type"] for layer in values["quant"]["layer_configs"]] == ["U16", "FP32"]
    (entry,) = values["quant"]["input_configs"]
    assert (entry["calibration_size"], entry["calibration_dataset"]) == (16, "unet.tar")
    check(values | {"input": "graph.onnx", "output_dir": "out"})


SIXTEEN = {"tensor_name": "DEFAULT", "calibration_size": 16}
OWN_FILE = """{
  // what we use everywhere
  "input": "model.onnx", "output_dir": "out", "target_hardware": "AX650",
  "npu_mode": "NPU2",  # two cores
  "quant": {
    "input_configs": [{"tensor_name": "DEFAULT", "calibration_dataset": "mine.tar", "calibration_format": "Numpy"}],
    "calibration_method": "MSE", "transformer_opt_level": 1,
  },
}"""


def test_a_file_of_the_users_is_a_base_with_its_comments_and_without_what_axbake_sets(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(OWN_FILE)

    values = configured("unet", base=str(file), quant={"calibration_method": "KL"})

    assert values["npu_mode"] == "NPU2"
    assert (values["quant"]["calibration_method"], values["quant"]["transformer_opt_level"]) == ("KL", 1)
    (entry,) = values["quant"]["input_configs"]
    assert (entry["calibration_dataset"], entry["calibration_format"]) == ("unet.tar", "NumpyObject")
    assert "input" not in values and "output_dir" not in values


TOKENS = build_of(SD1.component("text_encoder"))
TIMED = build_of(SD1.denoiser, program="euler")  # its inputs: sample, t, encoder_hidden_states


def config_of(build, **said):
    return build_config(build, read_own_fields(build, said))


@pytest.mark.parametrize("name", ["DEFAULT", "input_ids"])
def test_the_only_inputs_name_and_default_are_the_same(name):
    entry = {"tensor_name": name, "calibration_size": 16}
    values = config_of(
        TOKENS, quant={"input_configs": [entry]}, input_processors=[{"tensor_name": name, "src_layout": "NHWC"}]
    )

    (calibration,), (processor,) = values["quant"]["input_configs"], values["input_processors"]
    assert calibration == TOKENS.calibration | {"calibration_size": 16}
    assert processor == {"tensor_name": "input_ids", "src_dtype": "S32", "src_layout": "NHWC"}


def test_all_inputs_by_name_with_the_same_fields_are_default():
    entries = [{"tensor_name": name, "calibration_size": 16} for name in TIMED.inputs]

    assert config_of(TIMED, quant={"input_configs": entries})["quant"]["input_configs"] == [
        TIMED.calibration | {"calibration_size": 16}
    ]


def test_entries_are_laid_over_those_of_the_same_tensor_and_stand_beside_others(tmp_path):
    file = tmp_path / "mine.json"
    base = {"input_processors": [{"tensor_name": "sample", "src_layout": "NCHW", "src_dtype": "FP16"}]}
    base |= {"quant": {"layer_configs": [{"op_types": ["Softmax"], "data_type": "FP32"}]}}
    file.write_text(json.dumps(base))

    values = config_of(
        TIMED,
        base=str(file),
        input_processors=[{"tensor_name": "sample", "src_dtype": "FP32"}],
        quant={
            "layer_configs": [
                {"op_type": "Softmax", "output_data_type": "U16"},
                {"layer_name": "last", "data_type": "S16"},
            ]
        },
    )

    assert values["input_processors"] == [
        {"tensor_name": "t", "src_dtype": "S32"},
        {"tensor_name": "sample", "src_layout": "NCHW", "src_dtype": "FP32"},
    ]
    assert values["quant"]["layer_configs"] == [
        {"start_tensor_names": ["DEFAULT"], "end_tensor_names": ["DEFAULT"], "data_type": "U16"},
        {"op_type": "Softmax", "data_type": "FP32", "output_data_type": "U16"},
        {"layer_name": "last", "data_type": "S16"},
    ]


def test_what_a_users_file_overrides_is_told(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(OWN_FILE.replace('"transformer_opt_level": 1', '"precision_analysis": false'))
    said = {"base": str(file), "compiler": {"check": 3}}

    assert overridden(UNET, said) == [
        f"{file}: npu_mode: NPU2, where axbake would set NPU3",
        f"{file}: quant/calibration_method: MSE, where axbake would set MinMax",
    ]
    assert overridden(TOKENS, {"input_processors": [{"tensor_name": "DEFAULT", "src_dtype": "U32"}]}) == [
        "pulsar2/text_encoder: input_processors/input_ids/src_dtype: U32, where axbake would set S32"
    ]


def test_what_axera_publishes_and_does_not_document_is_doubted_and_not_refused():
    values = configured("unet", npu_mode="NPU5")

    assert any(sentence.startswith("npu_mode: NPU5: not in Pulsar2's documentation") for sentence in doubts(values))


def test_comments_of_a_users_file_decide_nothing(tmp_path):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text(OWN_FILE)
    second.write_text(OWN_FILE.replace("what we use everywhere", "another word").replace("  ", "    "))

    assert read_own_fields(UNET, {"base": str(first)}) == read_own_fields(UNET, {"base": str(second)})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"qant": {}}, "pulsar2/unet: qant: BuildConfig has no such field; did you mean `quant`?"),
        ({"layer_configs": []}, "layer_configs: BuildConfig has no such field; it belongs in quant"),
        (
            {"compiler": {"op_types": []}},
            "CompilerConfig has no such field; it belongs in quant.layer_configs[]",
        ),
        ({"quant": {"calibration_method": "minmax"}}, "did you mean `MinMax`?"),
        ({"npu_mode": "NPU4"}, "npu_mode: found NPU4, wanted one of NPU1, NPU2, NPU3 for AX650"),
        ({"target_hardware": "AX620E"}, "pulsar2/unet/target_hardware: axbake sets it"),
        ({"input": "mine.onnx"}, "pulsar2/unet/input: axbake sets it: the graph that was exported"),
        (
            {"quant": {"input_configs": [SIXTEEN | {"calibration_dataset": "a.tar"}]}},
            "calibration_dataset: axbake sets it",
        ),
        ({"quant": {"input_configs": [{"tensor_name": "sample"}]}}, "wanted one, with tensor_name DEFAULT"),
        (
            {"input_processors": [{"tensor_name": "sample"}, {"tensor_name": "sample"}]},
            "pulsar2/unet: input_processors: 2 entries for sample",
        ),
        ({"quant": {"enable_lsq": True, "enable_brecq": True}}, "set at most one of"),
        ({"base": "nowhere.json"}, "pulsar2/unet/base: nowhere.json: No such file or directory. Correct the path."),
        ({"quant": {"layer_configs": [{"op_types": ["Silu"], "data_type": "FP32"}]}}, "Silu: not an ONNX operator"),
        ({"quant": {"layer_configs": [{"op_type": "Conv", "data_type": "FP32"}]}}, "Conv in FP32"),
    ],
)
def test_a_field_that_cannot_be_used_is_refused_with_its_place(fields, words):
    assert words in refusal(**fields)


def test_a_file_for_another_chip_is_refused(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(OWN_FILE.replace('"AX650"', '"AX620E"').replace('"NPU2"', '"NPU1"'))

    assert "target_hardware: AX620E, but this build has AX650" in refusal(base=str(file))


def model_with(**pulsar2):
    """A model of Stable Diffusion 1.x whose config says so of Pulsar2's fields."""
    row = {"model": "tiny", "checkpoint": "https://huggingface.co/a/b/resolve/main/c.safetensors", "family": "sd1"}
    row |= {"vae_tile": 0, "text_encoder_place": "", "quality": ""}
    config = CHIP | {"fetch": {"allow_unpinned": True}, "precision": dict.fromkeys(ROLES, "U16")}
    config |= {"graph_weights": 880, "text_encoder_place": "host"}
    return Model(row | COLUMNS, config | {"pulsar2": {role: {} for role in ROLES} | pulsar2})


def test_the_faults_of_all_components_are_told_at_once_where_config_has_them():
    model = model_with(denoiser={"qant": {}}, vae_decoder={"compilr": {}})

    with pytest.raises(Pulsar2ConfigError) as caught:
        model.pulsar2_config(SD1.component("text_encoder"), 0)

    # By role, and by name.
    assert str(caught.value).startswith("pulsar2/denoiser: qant: BuildConfig has no such field")
    assert "pulsar2/vae_decoder: compilr: BuildConfig has no such field" in str(caught.value)


def test_a_components_own_fields_go_before_those_of_its_role():
    model = model_with(denoiser={"compiler": {"check": 1}}, unet={"compiler": {"check": 3}})

    assert model.pulsar2_config(SD1.denoiser, 0)["compiler"] == {"check": 3}


@pytest.mark.parametrize(
    ("quant", "words"),
    [
        ({"layer_configs": [{"op_types": ["LayerNormalization"], "data_type": "FP32"}]}, "FP32 on LayerNormalization"),
        ({"highest_mix_precision": True}, "TileFailException"),
        ({"enable_lsq": True}, "requires a GPU"),
        ({"device": "cuda:0"}, "container/options"),
    ],
)
def test_what_may_fail_is_doubted(quant, words):
    assert any(words in sentence for sentence in doubts(configured("unet", quant=quant)))
    assert not doubts(configured("unet"))


def test_the_emulators_table_of_fields_and_the_doubles_are_one():
    """Both were written from the documentation, apart from one another."""

    def plain(messages, of):
        return {name: {field: of(entry) for field, entry in fields.items()} for name, fields in messages.items()}

    ours = plain(MESSAGES, lambda f: (f.options, f.repeated, f.required))
    theirs = plain(
        DOCUMENTED, lambda e: (tuple(e.get("options", ())), e.get("repeated", False), e.get("required", False))
    )
    assert {name: set(fields) for name, fields in ours.items()} == {
        name: set(fields) for name, fields in theirs.items()
    }
    differing = {
        (name, field): (ours[name][field], theirs[name][field])
        for name in ours
        for field in ours[name]
        if ours[name][field] != theirs[name][field]
    }
    assert differing == {}


def test_the_page_lists_all_fields():
    assert page(PAGE.read_text()) == PAGE.read_text(), "run `make docs`"
    assert "| `quant/layer_configs[]/op_types[]` |" in PAGE.read_text()


def test_a_unet_that_takes_the_timestep_is_compiled_for_whole_ones():
    builds = {program: build_of(SD1.denoiser, program=program) for program in ("axera", "euler")}
    found = {program: build_config(build, {}).get("input_processors") for program, build in builds.items()}

    assert found == {"axera": None, "euler": [{"tensor_name": "t", "src_dtype": "S32"}]}
