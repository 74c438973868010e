"""What a component of several graphs is: `{component}/chain.json`."""

import json
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import helper


def describe_chain(graphs: Sequence[Path], *, component: str, chain: Path) -> None:
    """Write the order of *graphs*, and what each takes and gives.

    Args:
        chain: JSON to write: `graphs`, in the order in which they run: file of the compiled model, `inputs` and `outputs` with
            type, shape and bytes; `between`: bytes that cross each cut.
    """
    entries = []
    for path in graphs:
        content = onnx.load(path, load_external_data=False).graph
        constants = {tensor.name for tensor in content.initializer}
        inputs = {value.name: _tensor(value) for value in content.input if value.name not in constants}
        outputs = {value.name: _tensor(value) for value in content.output}
        entries.append({"name": path.stem, "file": f"{path.stem}.axmodel", "inputs": inputs, "outputs": outputs})
    content = {"component": component, "graphs": entries, "between": _between(entries)}
    chain.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _tensor(value: onnx.ValueInfoProto) -> dict:
    tensor = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    shape = [dim.dim_value for dim in tensor.shape.dim]
    size = dtype.itemsize
    for side in shape:
        size *= side
    return {"dtype": str(dtype), "shape": shape, "bytes": size}


def _between(entries: list[dict]) -> list[int]:
    """Bytes that cross each cut: made before it, read after it."""
    crossing = []
    for cut in range(1, len(entries)):
        made = {name: tensor for entry in entries[:cut] for name, tensor in entry["outputs"].items()}
        taken = {name for entry in entries[cut:] for name in entry["inputs"]}
        crossing.append(sum(made[name]["bytes"] for name in taken & made.keys()))
    return crossing
