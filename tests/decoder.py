"""A VAE decoder of one convolution, and its compile: for tests of what starts, reads and judges the compiler."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from axbake.calibration.tars import calibrate_decoder
from axbake.networks.autoencoder import VAE_DECODER
from axbake.toolchain.build_config import build_config
from axbake.toolchain.compiled import check_compiled
from axbake.toolchain.pulsar2 import compile_model
from tests.builds import COLUMNS, build_of

LAUNCH = {"version": "4.2", "minutes": 0, "image": "", "network": "none", "user": "root", "options": []}


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
    pack_latents(directory / "latents.npy", paths["archive"])
    return paths


def pack_latents(latents: Path, archive: Path) -> None:
    """Pack all of *latents* as the decoder's calibration samples."""
    (piece,) = VAE_DECODER.graphs
    calibrate_decoder(latents, all_of(latents), piece=piece, columns=COLUMNS, archive=archive)


def all_of(arrays: Path) -> Path:
    """A record that chooses each of *arrays*, an .npy; beside it."""
    chosen = arrays.with_suffix(".json")
    chosen.write_text(json.dumps({"samples": list(range(len(np.load(arrays))))}))
    return chosen


def compile_decoder(
    directory: Path,
    inputs: dict[str, Path],
    toolchain: str,
    *,
    precision: str = "U16",
    fields: dict[str, Any] | None = None,
    **launch: Any,
) -> dict[str, Any]:
    """Compile the decoder in *directory*; paths of the model and its record, and its config, by the names that jobs call them."""
    (directory / "made").mkdir(exist_ok=True)
    made = {"axmodel": directory / "made" / "vae_decoder.axmodel", "record": directory / "made" / "vae_decoder.json"}
    config = build_config(build_of(VAE_DECODER, precision=precision), fields or {})
    compile_model(
        **inputs,
        component=VAE_DECODER.name,
        role=VAE_DECODER.role,
        config=config,
        compiler=compiler(toolchain),
        launch=LAUNCH | {"toolchain": toolchain} | launch,
        **made,
    )
    return made | {"config": config}


def check_decoder(
    made: dict[str, Any], inputs: dict[str, Path], toolchain: str, directory: Path, *, samples: int = 2
) -> dict[str, Any]:
    """How far a compiled decoder is from its graph, as the check of it says; it is written in *directory*."""
    check_compiled(
        [made["axmodel"]],
        [inputs["graph"]],
        [inputs["tensors"]],
        [inputs["archive"]],
        component=VAE_DECODER.name,
        configs=[made["config"]],
        samples=samples,
        compiler=compiler(toolchain),
        launch=LAUNCH | {"toolchain": toolchain},
        check=directory / "check.json",
    )
    return json.loads((directory / "check.json").read_text())


def compiler(toolchain: str) -> dict[str, str]:
    """What decides a build besides its inputs."""
    return {"emulator": "this"} if toolchain == "emulator" else {"pulsar2": "4.2"}
