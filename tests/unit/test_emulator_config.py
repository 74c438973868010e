"""What the emulator takes of a Pulsar2 configuration, and what it says about the rest."""

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from axbake.emulator.__main__ import main
from axbake.emulator.config import (
    EMULATED,
    HARMLESS,
    REFUSED,
    WITHOUT_EFFECT,
    BuildConfig,
    NotEmulatedError,
    Pulsar2ConfigError,
    Smoothing,
    _plain,
    build_config,
    check_input_names,
    check_input_shapes,
    merged,
    read_config,
)
from axbake.emulator.fields import MESSAGES, PUBLISHED_FIELDS, ROOT, combination_problems, problems, undocumented
from axbake.emulator.graph import load_graph
from axbake.emulator.precision import resolve_precision, unmatched_op_types
from tests.double.arguments import MESSAGES as DOCUMENTED
from tests.double.arguments import PUBLISHED, check

INPUT = {"tensor_name": "DEFAULT", "calibration_dataset": "samples.tar", "calibration_format": "NumpyObject"}


def values(quant=(), **top):
    return {"input": "net.onnx", "output_dir": "out", "quant": {"input_configs": [INPUT], **dict(quant)}, **top}


def faults(configuration):
    with pytest.raises(Pulsar2ConfigError) as caught:
        build_config(configuration)
    return str(caught.value).splitlines()


def test_a_minimal_configuration_has_the_documented_defaults():
    config = build_config(values())
    assert isinstance(config, BuildConfig)
    assert (config.output_name, config.work_dir) == ("compiled.axmodel", Path("out"))
    assert (config.target_hardware, config.npu_mode, config.conv_bias_data_type) == ("AX650", "NPU1", "S32")
    assert config.inputs[0].size == 32 and config.inputs[0].mean == ()


def test_comments_and_trailing_commas_are_read(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(
        """{
        // a comment
        "npu_mode": "NPU3",  # another, with a "quote"
        /* and
           one more */ "output_name": "not # a // comment",
        }"""
    )
    assert read_config(path) == {"npu_mode": "NPU3", "output_name": "not # a // comment"}


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[]", "holds a list"), ('{"a":1,"a":2}', "JSON")])
def test_a_file_that_is_no_object_is_refused(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(Pulsar2ConfigError, match=message):
        read_config(tmp_path / "config.json")


def test_other_formats_are_not_emulated(tmp_path):
    with pytest.raises(NotEmulatedError, match=r"\.yaml"):
        read_config(tmp_path / "config.yaml")


def test_all_faults_are_told_at_once_with_path_and_nearest_name():
    configuration = values(
        quant={
            "calibraton_method": "MinMax",
            "npu_perf": True,
            "layer_configs": [{"op_type": "Add", "data_type": "u16"}, {"data_type": "U8"}],
        },
        npu_mode=3,
        target_hardware="AX8850",
    )
    found = faults(configuration)
    assert len(found) == 6
    joined = "\n".join(found)
    assert "quant.calibraton_method: QuantConfig has no such field; did you mean `calibration_method`?" in joined
    assert "quant.npu_perf: QuantConfig has no such field; it belongs in compiler" in joined
    assert "quant.layer_configs[0].data_type: found 'u16'" in joined and "did you mean `U16`?" in joined
    assert "quant.layer_configs[1]: found none, wanted exactly one of layer_name" in joined
    assert "npu_mode: found 3, wanted one of NPU1, NPU2, NPU3, NPU4" in joined
    assert "target_hardware: found 'AX8850'" in joined and "AX8860" in joined


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ({"output_dir": "out"}, "input: missing, and required"),
        (values(quant={"precision_analysis": "yes"}), "quant.precision_analysis: found 'yes', wanted true or false"),
        (values(quant={"check": 1.5}), "quant.check: found 1.5, wanted an integer"),
        (values(quant={"finetune_lr": float("nan")}), "quant.finetune_lr: found nan, wanted a number"),
        (values(quant={"check": True}), "quant.check: found True, wanted an integer"),
        (values(quant={"precision_analysis": 2}), "quant.precision_analysis: found 2, wanted true or false"),
        (
            values(compiler={"sub_configs": [{"chek": 1}]}),
            "compiler.sub_configs[0].chek: CompilerConfig has no such field",
        ),
        (values(compiler={"check_tensor_black_list": "a"}), "found 'a', wanted a list; write ['a']"),
        (values(op_processors=[{"op_name": "a", "attrs": []}]), "op_processors[0].attrs: found [], wanted an object"),
        (values(quant={"input_configs": INPUT}), "wanted a list"),
        (values(quant={"input_configs": ["x"]}), "quant.input_configs[0]: found 'x', wanted an object"),
        (values(quant={"input_configs": []}), "quant.input_configs: missing"),
        (values(quant={"input_configs": [INPUT, INPUT]}), "two entries for `DEFAULT`"),
        (values(quant={"input_configs": [INPUT | {"calibration_size": 0}]}), "wanted at least 1, or -1"),
        (values(quant={"smooth_quant_threshold": 1.5}), "quant.smooth_quant_threshold: found 1.5, wanted 0 to 1"),
        (values(input_shapes="x 1x3"), "input_shapes: found 'x 1x3', wanted `name:1x3x224x224`"),
        (values(quant={"layer_configs": [{"start_tensor_names": ["a"]}]}), "one is set without the other"),
        (values(quant={"layer_configs": [{"op_type": "A", "layer_name": "b"}]}), "found layer_name, op_type"),
        (
            values(target_hardware="AX620E", npu_mode="NPU3"),
            "npu_mode: found NPU3, wanted one of NPU1, NPU2 for AX620E",
        ),
        (values(output_name="a/b"), "wanted a file name"),
        (values(input_processors=[{"tensor_name": "x", "std": [0]}]), "no zero in it"),
    ],
)
def test_what_does_not_fit_the_documentation_is_refused(configuration, message):
    assert message in "\n".join(faults(configuration))


@pytest.mark.parametrize(
    ("configuration", "path"),
    [
        (values(quant={"calibration_method": "KL"}), "quant.calibration_method"),
        (values(quant={"enable_brecq": True}), "quant.enable_brecq"),
        (values(quant={"highest_mix_precision": True}), "quant.highest_mix_precision"),
        (values(quant={"transformer_opt_level": 1}), "quant.transformer_opt_level"),
        (values(quant={"refine_weight_threshold": 1e-5}), "quant.refine_weight_threshold"),
        (values(quant={"enable_easy_quant": True}), "quant.enable_easy_quant"),
        (values(quant={"disable_quant_optimization": True}), "quant.disable_quant_optimization"),
        (values(model_type="QuantONNX"), "model_type"),
        (values(model_type="OptimizedQuantAxModel"), "model_type"),
        (values(target_hardware="AX620L"), "target_hardware"),
        (values(npu_mode="NPU5"), "npu_mode"),
        (values(debug={"disable_compiler": True}), "debug.disable_compiler"),
        (
            values(quant={"layer_configs": [{"op_type": "Add", "data_type": "BF16"}]}),
            "quant.layer_configs[0].data_type",
        ),
        (values(compiler={"static_batch_sizes": [1, 2]}), "compiler.static_batch_sizes"),
        (values(compiler={"max_dynamic_batch_size": 2}), "compiler.max_dynamic_batch_size"),
        (values(compiler={"start_tensor_names": ["a"]}), "compiler.start_tensor_names"),
        (values(const_processors=[{"name": "a", "data": [1]}]), "const_processors[0].name"),
        (values(op_processors=[{"op_name": "a", "attrs": {}}]), "op_processors[0].op_name"),
        (values(compiler={"sub_configs": [{"sub_configs": [{"static_batch_sizes": [2]}]}]}), "compiler.sub_configs[0]"),
        (values(output_processors=[{"tensor_name": "y", "dst_perm": [1, 0]}]), "output_processors[0].dst_perm"),
        (values(output_processors=[{"tensor_name": "y", "output_dtype": "U8"}]), "output_processors[0].output_dtype"),
        (values(input_processors=[{"tensor_name": "x", "src_format": "YUV420SP"}]), "input_processors[0].src_format"),
        (values(input_processors=[{"tensor_name": "x", "padding": [0, 1]}]), "input_processors[0].padding"),
        (values(input_processors=[{"tensor_name": "x", "scale": 0.5}]), "input_processors[0].scale"),
        (values(input_processors=[{"tensor_name": "x", "scale": 1, "zeropoint": 9}]), "input_processors[0].scale"),
        (
            values(input_processors=[{"tensor_name": "x", "src_extra_shapes": [{"shape": [1]}]}]),
            "input_processors[0].src_extra_shapes[0].shape",
        ),
    ],
)
def test_what_is_documented_but_not_emulated_is_refused_by_name(configuration, path):
    with pytest.raises(NotEmulatedError) as caught:
        build_config(configuration)
    assert str(caught.value).startswith(path) and ": the emulator does not do " in str(caught.value)


def test_what_changes_nothing_is_accepted_and_named():
    quant = {
        "precision_analysis": True,
        "device": "cuda:0",
        "disable_auto_refine_scale": True,
        "refine_weight_threshold": -1,
        "ln_scale_data_type": "S32",
    }
    compiler = {
        "check": 2,
        "npu_perf": True,
        "max_dynamic_batch_size": 1,
        "sub_configs": [{"check": 1, "start_tensor_names": ["a"]}],
        "compiler_group_patterns": [{"nodes": [{"types": ["Conv"]}], "type": "Tile"}],
    }
    entry = {
        "csc_mode": "Matrix",
        "csc_mat": [1.0],
        "padding": [0, 0],
        "padding_constant_value": 1,
        "scale": 1,
        "zeropoint": 0,
    }
    config = build_config(
        values(
            quant=quant,
            compiler=compiler,
            input_processors=[{"tensor_name": "x", **entry}],
            output_processors=[{"tensor_name": "y", "dst_perm": [0, 1], "tensor_layout": "NCHW"}],
            debug={"dump_frontend_graph": True, "ocm_size": 0, "default_quant_dataset": ""},
            custom_ops=[],
        )
    )
    assert {note.partition(": ")[0] for note in config.notes} == {
        *(f"quant.{name}" for name in quant),
        *("compiler.check", "compiler.npu_perf", "compiler.max_dynamic_batch_size"),
        *("compiler.sub_configs[0].check", "compiler.sub_configs[0].start_tensor_names"),
        *("compiler.compiler_group_patterns[0].nodes[0].types", "compiler.compiler_group_patterns[0].type"),
        *(f"input_processors[0].{name}" for name in entry if name != "zeropoint"),
        *("output_processors[0].tensor_name", "output_processors[0].dst_perm", "output_processors[0].tensor_layout"),
        "debug.dump_frontend_graph",
    }
    assert all(note.endswith("accepted, without effect on an emulated model") for note in config.notes)


def test_a_configuration_as_axera_publishes_them_is_accepted():
    """Of fields that many published ones have, and of the documentation's example for normalisation outside of the model."""
    quant = {
        **{"calibration_method": "MinMax", "precision_analysis": True, "precision_analysis_method": "EndToEnd"},
        **{"conv_bias_data_type": "FP32", "enable_smooth_quant": True, "disable_auto_refine_scale": True},
        **{"transformer_opt_level": 0, "highest_mix_precision": False, "check": 1},
    }
    processor = {
        **{"tensor_name": "DEFAULT", "tensor_format": "BGR", "tensor_layout": "NCHW", "src_format": "BGR"},
        **{"src_dtype": "FP32", "src_layout": "NCHW", "csc_mode": "NoCSC", "mean": [0, 0, 0], "std": [1, 1, 1]},
    }
    compiler = {"check": 3, "check_mode": "CheckOutput", "check_cosine_simularity": 0.9, "enable_slice_mode": False}
    outputs = [{"tensor_name": "DEFAULT"}]
    config = build_config(
        values(quant=quant, compiler=compiler, input_processors=[processor], output_processors=outputs)
    )
    assert config.smoothing == Smoothing(threshold=0.2, strength=0.6) and config.conv_bias_data_type == "FP32"


@pytest.mark.parametrize(
    ("mean", "std", "notes"), [([0], [1], 0), ([0, 0, 0], [1, 1, 1], 0), ([127.5], [127.5], 2), ([], [255], 1)]
)
def test_a_mean_of_arrays_is_for_the_run_time(mean, std, notes):
    config = build_config(values(quant={"input_configs": [INPUT | {"calibration_mean": mean, "calibration_std": std}]}))
    assert len(config.notes) == notes
    assert all("samples are used unchanged" in note for note in config.notes)


def test_smooth_quants_parameters_act_with_it_alone():
    said = {"smooth_quant_threshold": 0.5, "smooth_quant_strength": 0.25}
    config = build_config(values(quant=said))
    assert config.smoothing is None
    assert all("since quant.enable_smooth_quant is not set" in note for note in config.notes) and len(config.notes) == 2
    config = build_config(values(quant=said | {"enable_smooth_quant": True}))
    assert (config.smoothing.threshold, config.smoothing.strength, config.notes) == (0.5, 0.25, ())


def test_channels_are_swapped_by_nobody():
    processor = {"tensor_name": "x", "tensor_format": "RGB"}
    assert build_config(values(input_processors=[processor | {"src_format": "RGB"}])).notes == ()
    (note,) = build_config(values(input_processors=[processor | {"src_format": "BGR"}])).notes
    assert note == "input_processors[0].src_format: BGR is not made RGB: Pulsar2 swaps no channels"


def test_defaults_written_out_are_accepted():
    quant = {name: field.default for name, field in MESSAGES["QuantConfig"].items() if field.default is not None}
    compiler = {name: field.resting for name, field in MESSAGES["CompilerConfig"].items() if field.repeated}
    assert build_config(values(quant=quant, compiler=compiler)).notes == ()


def test_every_documented_field_is_emulated_or_without_effect_or_refused_with_a_reason():
    def paths(message, prefix="", within=()):
        for name, field in MESSAGES[message].items():
            if field.kind not in MESSAGES:
                yield _plain(f"{prefix}{name}")
            elif within.count(field.kind) < 2:
                yield from paths(field.kind, f"{prefix}{name}.", (*within, field.kind))

    stances = [EMULATED, WITHOUT_EFFECT, set(REFUSED)]
    assert set(paths(ROOT)) == set.union(*stances)
    assert sum(map(len, stances)) == len(set.union(*stances))
    assert set(HARMLESS) <= set(REFUSED)


def test_what_is_published_and_not_documented_is_a_doubt_and_no_fault():
    configuration = values(
        quant={"layer_configs": [{"op_type": "Add", "data_type": "BF16"}]},
        target_hardware="AX620L",
        debug={"disable_compiler": True, "ocm_size": 0, "dump_frontend_graph": True},
        custom_ops=[],
    )
    assert problems(configuration) == [] and combination_problems(configuration) == []
    check(configuration)  # by the double
    assert [doubt.partition(": not in Pulsar2's documentation")[0] for doubt in undocumented(configuration)] == [
        "quant.layer_configs[0].data_type: BF16",
        "target_hardware: AX620L",
        "debug.disable_compiler: True",
    ]
    assert undocumented(values(quant={"calibration_method": "KL"})) == []
    (fault,) = problems(values(quant={"layer_configs": [{"op_type": "Add", "data_type": "BF61"}]}))
    assert fault == "quant.layer_configs[0].data_type: found 'BF61', wanted one of U8, S8, U16, S16, FP32"


def test_the_doubles_table_of_what_is_published_is_the_emulators():
    """Both were written from what AXERA publishes, apart from one another."""
    enums = {
        (message, name): field
        for message, fields in DOCUMENTED.items()
        for name, field in fields.items()
        if field["type"] in PUBLISHED["enums"]
    }
    assert {
        place: set(PUBLISHED["enums"][field["type"]]) - set(field["options"]) for place, field in enums.items()
    } == {(message, name): set(MESSAGES[message][name].published) for message, name in enums}
    assert {name: set(fields) for name, fields in PUBLISHED["fields"].items()} == {
        name: set(fields) for name, fields in PUBLISHED_FIELDS.items()
    }


def test_the_record_of_a_build_is_told_from_its_configuration(tmp_path):
    path = tmp_path / "build_context.json"
    path.write_text(json.dumps({"toolchain_version": "5.1", "cfg": values(), "code": "Success"}))
    with pytest.raises(Pulsar2ConfigError, match=r"is the record of a build .* is the object `cfg` in it"):
        read_config(path)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("x:1x3;y:2", None),
        ("x:1x3", None),
        ("", None),
        ("x:1x4", "input_shapes: x is 1x3 in the graph, and is to be 1x4"),
        ("z:1x3", "input_shapes: the model has no input `z`"),
    ],
)
def test_input_shapes_may_say_what_the_graph_has(said, message):
    config = build_config(values(input_shapes=said))
    if message is None:
        check_input_shapes(config, {"x": (1, 3), "y": (2,)})
        return
    with pytest.raises(Pulsar2ConfigError, match=message):
        check_input_shapes(config, {"x": (1, 3), "y": (2,)})


def test_each_missing_field_is_told_once():
    assert problems({}) == ["input: missing, and required", "output_dir: missing, and required"]


def test_methods_that_exclude_each_other_are_told():
    quant = {"enable_brecq": True, "enable_lsq": True}
    assert problems(values(quant=quant)) == []
    assert "set at most one of" in combination_problems(values(quant=quant))[0]


def test_flags_override_the_file(tmp_path, capsys):
    assert merged({"quant": {"check": 0}, "npu_mode": "NPU1"}, {"quant.check": 1, "npu_mode": "NPU2"}) == {
        "quant": {"check": 1},
        "npu_mode": "NPU2",
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values()))
    flags = ["--input", str(tmp_path / "no.onnx"), "--output_dir", str(tmp_path), "--quant.calibration_method", "KL"]
    assert main(["build", "--config", str(path), *flags]) == 1
    assert "quant.calibration_method: the emulator does not do 'KL'" in capsys.readouterr().err
    context = json.loads((tmp_path / "build_context.json").read_text())
    assert context["cfg"]["quant"]["calibration_method"] == "KL"


def test_an_unknown_flag_ends_the_program(capsys):
    with pytest.raises(SystemExit):
        main(["build", "--npumode", "NPU3"])
    assert "--npumode" in capsys.readouterr().err


def test_inputs_that_the_model_has_not_are_named():
    config = build_config(values(quant={"input_configs": [INPUT | {"tensor_name": "smaple"}]}))
    with pytest.raises(Pulsar2ConfigError) as caught:
        check_input_names(config, ("sample",))
    assert str(caught.value).splitlines() == [
        "quant.input_configs: the model has no input `smaple`; did you mean `sample`?",
        "quant.input_configs: no entry for the model's input `sample`, and none called `DEFAULT`",
    ]


@pytest.fixture
def graph(tmp_path):
    nodes = [
        helper.make_node("Sin", ["x"], ["a"], name="first"),
        helper.make_node("Conv", ["a", "kernel"], ["out"], name="second"),
    ]
    specs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 4, 4]) for name in ("x", "out")]
    kernel = helper.make_tensor("kernel", TensorProto.FLOAT, [1, 1, 1, 1], np.ones(1))
    model = helper.make_model(
        helper.make_graph(nodes, "net", specs[:1], specs[1:], [kernel]), opset_imports=[helper.make_opsetid("", 18)]
    )
    save(model, tmp_path / "net.onnx")
    return load_graph(tmp_path / "net.onnx")


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"layer_name": "secnd"}, "the graph has no layer `secnd`; did you mean `second`?"),
        ({"layer_name": "op_17:onnx.Sin_0"}, "no layer `op_17:onnx.Sin_0`; Pulsar2's front end gives such names"),
        ({"op_type": "Silu"}, "`Silu` is not an ONNX operator; Pulsar2 would silently ignore it"),
        ({"start_tensor_names": ["x"], "end_tensor_names": ["b"]}, "the graph has no tensor `b`"),
        ({"op_type": "Conv", "data_type": "FP32"}, "layer `second`: data_type FP32 is not possible for Conv"),
    ],
)
def test_layer_configs_that_fit_no_layer_are_refused(graph, layer, message):
    config = build_config(values(quant={"layer_configs": [layer]}))
    with pytest.raises(Pulsar2ConfigError) as caught:
        resolve_precision(graph, config.layers)
    assert message in str(caught.value)


def test_an_entry_of_higher_rank_leaves_what_it_does_not_say_to_the_others(graph):
    layers = [
        {"start_tensor_names": ["DEFAULT"], "end_tensor_names": ["DEFAULT"], "data_type": "U16"},
        {"layer_name": "second", "weight_data_type": "FP32", "output_data_type": "FP32"},
        {"op_type": "Gelu", "data_type": "U8"},
    ]
    config = build_config(values(quant={"layer_configs": layers}))
    first, second = resolve_precision(graph, config.layers)
    assert (first.data_type, first.output_data_type, first.weight_data_type) == ("U16", "U16", "S8")
    assert (second.data_type, second.output_data_type, second.weight_data_type) == ("U16", "FP32", "FP32")
    assert unmatched_op_types(graph, config.layers) == ("Gelu",)
