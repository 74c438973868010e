"""A VAE decoder of one convolution, and its compile: for tests of what starts, reads and judges the compiler."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from axbake.calibration.tars import calibrate_vae_decoder
from axbake.toolchain.build_config import configure_build
from axbake.toolchain.pulsar2 import compile_model

LAUNCH = {"version": "4.2", "minutes": 0, "image": "", "network": "none", "user": "root", "options": []}
CHIP = {"target_hardware": "AX650", "npu_mode": "NPU3"}


def write_inputs(directory: Path) -> dict[str, Path]:
    """The graph with its tensors in a file beside it, and an archive of three samples, by the names that jobs call them."""
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((3, 4, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "weights"], ["sample"], pads=[1, 1, 1, 1])],
        "decoder",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])],
        [helper.make_tensor_value_info("sample", TensorProto.FLOAT, [1, 3, 8, 8])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
    names = {"graph": "vae_decoder.onnx", "tensors": "vae_decoder.onnx.data", "archive": "vae_decoder.tar"}
    paths = {name: directory / file for name, file in names.items()}
    beside = {"save_as_external_data": True, "location": names["tensors"], "size_threshold": 0}
    onnx.save(model, paths["graph"], **beside)
    np.save(directory / "latents.npy", generator.standard_normal((3, 1, 4, 8, 8)).astype(np.float32))
    calibrate_vae_decoder(directory / "latents.npy", archive=paths["archive"])
    return paths


def compile_decoder(
    directory: Path,
    inputs: dict[str, Path],
    toolchain: str,
    *,
    precision: str = "U16",
    fields: dict[str, Any] | None = None,
    **launch: Any,
) -> dict[str, Path]:
    """Compile the decoder in *directory*; the model, its record and its config, by the names that jobs call them."""
    (directory / "made").mkdir(exist_ok=True)
    config = directory / "vae_decoder.config.json"
    configure_build(component="vae_decoder", precision=precision, **CHIP, fields=fields or {}, config=config)
    made = {"axmodel": directory / "made" / "vae_decoder.axmodel", "record": directory / "made" / "vae_decoder.json"}
    how = {"compiler": compiler(toolchain), "launch": LAUNCH | {"toolchain": toolchain} | launch}
    compile_model(**inputs, config=config, **how, **made)
    return made | {"config": config}


def compiler(toolchain: str) -> dict[str, str]:
    """What decides a build besides its inputs."""
    return {"emulator": "this"} if toolchain == "emulator" else {"pulsar2": "4.2"}
