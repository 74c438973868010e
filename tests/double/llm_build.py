"""`llm_build`: the documented log, one model a layer and the last one, in containers as real ones are; or a failure on request.

Containers are as people found those of Pulsar2 6.0 of SmolLM2 and Qwen3-0.6B (github onnxsim/onnxsim, `scripts/axera`): two
nodes, of the group that makes one token after the other and of the one that reads a prompt, which share one blob of weights.
"""

import json
import os
import re
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from tests.double.arguments import UsageError
from tests.double.container import DOUBLE, extra_data

DOCUMENTED = json.loads((Path(__file__).parent / "documented_llm_build.json").read_text())
FLAGS, SHORT = DOCUMENTED["flags"], DOCUMENTED["short"]
BAR = "━" * 60
#: Ways to fail that are asked for by PULSAR2_DOUBLE_FAILS
FAILURES = ("heads", "last-layer", "check", "other-version", "other-hardware", "truncated", "one-group")


def parse_llm(arguments: list[str]) -> dict[str, Any]:
    """Flag -> value; defaults where a flag is not given. As argparse: each takes one value, of its choices where it has some."""
    found = {name: entry.get("default") for name, entry in FLAGS.items()}
    waiting = list(arguments)
    while waiting:
        flag = waiting.pop(0)
        name = SHORT.get(flag, flag.removeprefix("--") if flag.startswith("--") else "")
        if name not in FLAGS:
            raise UsageError(f"unrecognized arguments: {flag}")
        entry = FLAGS[name]
        if entry["kind"] == "switch":
            found[name] = True
            continue
        if not waiting:
            raise UsageError(f"argument {flag}: expected one argument")
        value: Any = waiting.pop(0)
        if "choices" in entry and value not in entry["choices"]:
            choices = ", ".join(map(repr, entry["choices"]))
            raise UsageError(f"argument {flag}: invalid choice: {value!r} (choose from {choices})")
        if entry["kind"] == "number" and not re.fullmatch(r"-?\d+", value):
            raise UsageError(f"argument {flag}: invalid int value: {value!r}")
        found[name] = int(value) if entry["kind"] == "number" else value
    return found


def _record(line: int, text: str, level: str = "SUCCESS") -> None:
    where = f"yamain.command.llm_build:llm_build:{line}"
    print(f"{datetime.now():%Y-%m-%d %H:%M:%S.%f} | {level:8} | {where} - {text}", flush=True)


def llm_build(flags: dict[str, Any], version: str, commit: str) -> int:
    """Exit code of a build."""
    from axbake.emulator.llm_build import Folder, Options, build_language_model, read_sizes

    failure = os.environ.get("PULSAR2_DOUBLE_FAILS", "")
    if failure and failure not in FAILURES:
        raise ValueError(f"the double knows no failure {failure}")
    place, output = Path(flags["input_path"]), Path(flags["output_path"])
    if not list(place.glob("*.safetensors")) and not (place / "pytorch_model.bin").is_file():
        print(f"FileNotFoundError: no model in {place}", file=sys.stderr)
        return 1
    kind, sizes = read_sizes(place / "config.json")
    folder, width = Folder(place), sizes.width
    folder.tensor("embed_tokens", (sizes.words, width))  # of the last layer, with the norm
    folder.tensor("norm", (width,))
    print(f"Config(\n    model_name='{place.name}',\n    model_type='{kind}',\n    num_hidden_layers={sizes.layers},")
    print(f"    kv_cache_len={flags['kv_cache_len']}\n)")
    if failure == "heads":
        print("Traceback (most recent call last):\nAssertionError", file=sys.stderr)
        return 1
    _record(258, "prepare llm model done!")
    tokens, cached = flags["prefill_len"], flags["kv_cache_len"]
    made = {"version": version, "commit": commit, "hardware": flags["chip"]}
    made |= {"other-version": {"version": "3.3"}, "other-hardware": {"hardware": "AX620E"}}.get(failure, {})
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        options = Options(place, Path(directory), tokens, cached, flags["chip"], 0)
        build_language_model(options)
        for number in range(sizes.layers):
            runnable = Path(directory) / f"{kind}_p{tokens}_l{number}_together.axmodel"
            if failure == "last-layer" and number + 1 == sizes.layers:
                print("Killed", file=sys.stderr)
                return 137
            wrap_layer(
                runnable, output / runnable.name, cached=cached, groups=1 if failure == "one-group" else 2, **made
            )
            done = f"{number + 1}/{sizes.layers}"
            print(f"building llm decode layers   {BAR} {done}     0:00:{number % 60:02}", flush=True)
    post = {"input": (1, 1, width)}, {"output": (1, 1, sizes.words)}
    _write(output / f"{kind}_post.axmodel", [(post, "")], b"post", **made)
    print(f"building llm post layer   {BAR} 1/1     0:01:23", flush=True)
    if failure == "truncated":
        last = output / f"{kind}_p{tokens}_l0_together.axmodel"
        os.truncate(last, last.stat().st_size // 2)
    _record(368, "build llm model done!")
    if failure == "check":
        print("Traceback (most recent call last):\nRuntimeError: simulator", file=sys.stderr)
        return 1
    if int(flags["check_level"] or 0) > 0:
        _record(519, "decode layer0_gt layer0_got cos_sim is: 1.0", "INFO")
        _record(553, "prefill layer0_gt layer0_got cos_sim is: 1.0", "INFO")
        _record(578, "check llm model done!")
    return 0


Sides = tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]  # shapes of inputs and of outputs


def wrap_layer(runnable: Path, compiled: Path, *, cached: int, groups: int = 2, **made: str) -> None:
    """Write *compiled*, a container with the emulated layer *runnable* in it.

    Args:
        cached: tokens that the group which makes one after the other sees.
    """
    graph = onnx.load(runnable).graph
    prefill = tuple({one.name: _shape(one) for one in side} for side in (graph.input, graph.output))
    (_, _, width), (_, _, keys) = prefill[0]["input"], prefill[1]["K_cache_out"]
    decode = (
        dict.fromkeys(("K_cache", "V_cache"), (1, cached, keys))
        | {"indices": (1, 1), "input": (1, 1, width), "mask": (1, 1, cached + 1)},
        dict.fromkeys(("K_cache_out", "V_cache_out"), (1, 1, keys)) | {"output": (1, 1, width)},
    )
    _write(compiled, [(decode, ""), (prefill, "_1")][:groups], runnable.read_bytes(), **made)  # type: ignore[list-item]


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _write(
    path: Path, groups: list[tuple[Sides, str]], blob: bytes, *, version: str, commit: str, hardware: str
) -> None:
    nodes, inputs, outputs, blobs = [], [], [], {"npu_params": blob}
    for (taken, given), suffix in groups:
        name = f"subgraph_npu{suffix}"
        blobs[f"{name}_b1_neu"] = b"\x1c\x00\x00\x00" + bytes(60)
        dotneu = {"neu_key": f"{name}_b1_neu", "batch": 1}
        dotneu |= {"extra_inputs": [{"name": "params", "const_data_key": "npu_params"}]}
        nodes.append(
            helper.make_node(
                "neu mode",
                [f"{one}{suffix}" for one in taken],
                [f"{one}{suffix}" for one in given],
                name=name,
                neu_name=name,
                npu_graph_info=json.dumps({"name": name, "dotneus": [dotneu]}),
                outputs_info=json.dumps({f"{one}{suffix}": ["BF16", list(shape)] for one, shape in given.items()}),
                version=1,
            )
        )
        for side, shapes in ((inputs, taken), (outputs, given)):
            for one, shape in shapes.items():
                kind = TensorProto.UINT32 if one == "indices" else TensorProto.BFLOAT16
                side.append(helper.make_tensor_value_info(f"{one}{suffix}", kind, shape))
    constants = [helper.make_tensor(n, TensorProto.UINT8, [len(b)], b, raw=True) for n, b in blobs.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "ax-model", inputs, outputs, constants),
        producer_name="Pulsar2",
        doc_string=f"Pulsar2 Version:  {version}\nPulsar2 Commit: {commit}",
        ir_version=10,
        opset_imports=[helper.make_opsetid("", 18)],
    )
    names = [one.name for one in (*inputs, *outputs)]
    helper.set_model_props(model, {"extra_data": extra_data(names, hardware, "NPU3"), "double": DOUBLE})
    path.write_bytes(model.SerializeToString())
