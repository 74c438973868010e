"""What the emulator takes of a Pulsar2 configuration, and what it says about the rest."""

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from axbake.emulator.__main__ import main
from axbake.emulator.config import (
    EMULATED,
    WITHOUT_EFFECT,
    BuildConfig,
    NotEmulatedError,
    Pulsar2ConfigError,
    build_config,
    check_input_names,
    merged,
    read_config,
)
from axbake.emulator.fields import MESSAGES, ROOT, combination_problems, problems
from axbake.emulator.graph import load_graph
from axbake.emulator.precision import resolve_precision, unmatched_op_types

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
    assert "quant.npu_perf: QuantConfig has no such field; it belongs into compiler" in joined
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
        (values(quant={"input_configs": [INPUT | {"calibration_mean": [1]}]}), "documented for pictures"),
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
        (values(quant={"enable_smooth_quant": True}), "quant.enable_smooth_quant"),
        (values(quant={"enable_brecq": True}), "quant.enable_brecq"),
        (values(quant={"highest_mix_precision": True}), "quant.highest_mix_precision"),
        (values(quant={"refine_weight_threshold": -1}), "quant.refine_weight_threshold"),
        (values(quant={"transformer_opt_level": 1}), "quant.transformer_opt_level"),
        (values(quant={"ln_scale_data_type": "S32"}), "quant.ln_scale_data_type"),
        (values(model_type="QuantONNX"), "model_type"),
        (values(input_shapes="x:1x3"), "input_shapes"),
        (values(compiler={"static_batch_sizes": [1, 2]}), "compiler.static_batch_sizes"),
        (values(compiler={"max_dynamic_batch_size": 2}), "compiler.max_dynamic_batch_size"),
        (values(compiler={"start_tensor_names": ["a"]}), "compiler.start_tensor_names"),
        (values(const_processors=[{"name": "a", "data": [1]}]), "const_processors[0].name"),
        (values(op_processors=[{"op_name": "a", "attrs": {}}]), "op_processors[0].op_name"),
        (values(output_processors=[{"tensor_name": "y", "dst_perm": [0]}]), "output_processors[0].dst_perm"),
        (values(input_processors=[{"tensor_name": "x", "src_layout": "NHWC"}]), "input_processors[0].src_layout"),
        (values(input_processors=[{"tensor_name": "x", "csc_mode": "Matrix"}]), "input_processors[0].csc_mode"),
        (values(input_processors=[{"tensor_name": "x", "src_format": "RGB"}]), "input_processors[0].src_format"),
        (
            values(input_processors=[{"tensor_name": "x", "src_extra_shapes": [{"shape": [1]}]}]),
            "input_processors[0].src_extra_shapes[0].shape",
        ),
    ],
)
def test_what_is_documented_but_not_emulated_is_refused_by_name(configuration, path):
    with pytest.raises(NotEmulatedError) as caught:
        build_config(configuration)
    assert str(caught.value).startswith(f"{path}: the emulator does not")


def test_hints_are_accepted_and_named():
    compiler = {"check": 2, "npu_perf": True, "max_dynamic_batch_size": 1, "sub_configs": [{"check": 1}]}
    config = build_config(values(quant={"precision_analysis": True, "device": "cuda:0"}, compiler=compiler))
    assert set(config.without_effect) == {
        "quant.precision_analysis",
        "quant.device",
        "compiler.check",
        "compiler.npu_perf",
        "compiler.max_dynamic_batch_size",
        "compiler.sub_configs[0].check",
    }


def test_defaults_written_out_are_accepted():
    quant = {name: field.default for name, field in MESSAGES["QuantConfig"].items() if field.default is not None}
    compiler = {name: field.resting for name, field in MESSAGES["CompilerConfig"].items() if field.repeated}
    assert build_config(values(quant=quant, compiler=compiler)).without_effect == ()


def test_every_field_with_a_stance_is_documented():
    def paths(message, prefix=""):
        for name, field in MESSAGES[message].items():
            yield f"{prefix}{name}"
            if field.kind in MESSAGES and field.kind != message:
                yield from paths(field.kind, f"{prefix}{name}.")

    documented = set(paths(ROOT))
    assert documented >= EMULATED | WITHOUT_EFFECT
    assert not EMULATED & WITHOUT_EFFECT


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
    flags = ["--input", str(tmp_path / "no.onnx"), "--output_dir", str(tmp_path), "--quant.calibration_method", "MSE"]
    assert main(["build", "--config", str(path), *flags]) == 1
    assert "quant.calibration_method: the emulator does not do 'MSE'" in capsys.readouterr().err
    context = json.loads((tmp_path / "build_context.json").read_text())
    assert context["cfg"]["quant"]["calibration_method"] == "MSE"


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
        ({"op_type": "Silu"}, "`Silu` is no ONNX operator; Pulsar2 would pass over it in silence"),
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
