"""`build`: the documented log, the documented output layout, a model that the double's `run` runs; or a failure on request."""

import json
import logging
import os
import sys
import tarfile
import tempfile
import traceback
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.double import log
from tests.double.arguments import check_build, read_config
from tests.double.failures import Failure, fail, spoil

# What the emulator needs of a config; the rest was checked and cannot be emulated.
EMULATED = (
    *("input_configs", "layer_configs", "conv_bias_data_type", "calibration_method"),
    *("enable_smooth_quant", "smooth_quant_threshold", "smooth_quant_strength"),
)


def build(flags: dict[str, Any], version: str, commit: str) -> int:
    """Exit code of a build; `build_context.json` is written also when it fails, as Pulsar2's is."""
    context: dict[str, Any] = {
        "toolchain_version": version,
        "toolchain_commit": commit,
        "build_start": datetime.now().isoformat(),
        "code": "UnknownError",
        "error_msg": "",
    }
    values: dict[str, Any] = {}
    try:
        values = _merged(read_config(Path(flags["config"])) if "config" in flags else {}, flags)
        check_build(values)
        context |= _build(values, version, commit)
        context["code"] = "Success"
        return 0
    except Exception as error:
        context |= {"error_msg": f"{type(error).__name__}: {error}"}
        if isinstance(error, Failure):
            context |= {"code": error.code, "error_msg": error.text}
            print(error.printed, file=sys.stderr)
        else:
            traceback.print_exc()
        return 1
    finally:
        if "output_dir" in values:
            Path(values["output_dir"]).mkdir(parents=True, exist_ok=True)
            (Path(values["output_dir"]) / "build_context.json").write_text(json.dumps(context, indent=2, default=str))


def _merged(values: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for name, value in flags.items():
        section, _, field = name.rpartition(".")
        if section:
            merged[section] = merged.get(section, {}) | {field: value}
        elif name != "config":
            merged[name] = value
    return merged


def _build(values: dict[str, Any], version: str, commit: str) -> dict[str, Any]:
    wanted = values.get("compiler", {}).get("check_tensor_black_list", [])
    failure = os.environ.get("PULSAR2_DOUBLE_FAILS") or next((w[7:] for w in wanted if w.startswith("double:")), "")
    output = Path(values["output_dir"])
    name = values.get("output_name", "compiled.axmodel")
    hardware, mode = values.get("target_hardware", "AX650"), values.get("npu_mode", "NPU1")
    fail(failure, "start")
    datasets = {entry["tensor_name"]: Path(entry["calibration_dataset"]) for entry in values["quant"]["input_configs"]}
    for tensor, dataset in datasets.items():
        place = output / "quant" / "dataset" / tensor
        log.extracting(dataset, place)
        with tarfile.open(dataset) as archive:
            archive.extractall(place)
            count = len(archive.getnames())
        log.loaded(count)
    fail(failure, "frontend")
    import onnx  # here and below: builds that fail before need not wait for it

    from tests.double.container import wrap

    (output / "frontend").mkdir(parents=True, exist_ok=True)
    shell = onnx.load(values["input"])  # with its tensors, of which onnx refuses links
    onnx.save(shell, output / "frontend" / "optimized.onnx")
    log.frontend(output, datasets)
    log.calibrating(count, lambda done: fail(failure, f"sample {done}"))
    with tempfile.TemporaryDirectory() as directory:
        runnable = _emulate(values, Path(directory))
        log.quantised(output)
        (output / "quant" / "quant_axmodel.json").write_text("{}")
        onnx.save(shell, output / "quant" / "quant_axmodel.onnx")
        fail(failure, "compile")
        (output / "compiler").mkdir(exist_ok=True)
        log.compiling(output)
        made = {"version": version, "commit": commit, "hardware": hardware, "mode": mode} | spoil(failure)
        wrap(runnable, output / name, **made)
    if failure == "truncated":
        os.truncate(output / name, (output / name).stat().st_size // 2)
    return {
        "target_platform": hardware,
        "cfg": values,
        "build_time": 1.0,
        "input_model": values["input"],
        "input_model_size": Path(values["input"]).stat().st_size,
        "compiled_model_size": (output / name).stat().st_size,
        "macs": 280262480,
        "output_dir": str(output),
        "output_model": str(output / name),
        "npu_mode_str": mode,
        "model_type": "ONNX",
        "io_info": "",
        "subgraphs": [],
    }


def _emulate(values: dict[str, Any], directory: Path) -> Path:
    """A model that ONNX Runtime runs, made by axbake's emulator of what *values* say."""
    from axbake.emulator.build import build as emulate

    logging.disable()  # its words are not Pulsar2's
    quant = {name: value for name, value in values["quant"].items() if name in EMULATED and value != "KL"}
    config = {"quant": quant, "input_processors": values.get("input_processors", [])}
    (directory / "config.json").write_text(json.dumps(config))
    emulate(directory / "config.json", {"input": values["input"], "output_dir": str(directory)})
    return directory / "compiled.axmodel"
