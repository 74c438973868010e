"""An ONNX graph cut in several that run in order, by what each node takes and gives and nothing else."""

from collections.abc import Sequence
from pathlib import Path

import onnx


def cut_graph(model: onnx.ModelProto, places: Sequence[int], folder: Path, *, suffix: str = ".onnx") -> list[Path]:
    """Files of *model* in `folder`, cut before each of *places*, numbers of its nodes.

    A tensor keeps its name; each graph gives what a later one takes, and the model's own outputs.
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    known = {value.name: value for value in [*graph.input, *graph.value_info, *graph.output]}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    folder.mkdir(parents=True)
    paths = []
    for number, (start, end) in enumerate(zip([0, *places], [*places, len(graph.node)], strict=True)):
        nodes = graph.node[start:end]
        made = [name for node in nodes for name in node.output]
        taken = dict.fromkeys(name for node in nodes for name in node.input if name and name not in made)
        wanted = {name for node in graph.node[end:] for name in node.input} | {value.name for value in graph.output}
        part = onnx.helper.make_graph(
            nodes,
            f"part {number}",
            [known[name] for name in taken if name not in constants],
            [known[name] for name in made if name in wanted],
            [constants[name] for name in taken if name in constants],
        )
        paths.append(folder / f"part_{number:02}{suffix}")
        onnx.save(
            onnx.helper.make_model(
                part,
                producer_name=model.producer_name,
                opset_imports=list(model.opset_import),
                ir_version=model.ir_version,
            ),
            paths[-1],
        )
    return paths
