"""ONNX to ONNX before Relax: Resize becomes tables; nodes with more tensors than a kernel has pointers, several."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgesparse.fallback.resize import resized

#: Tensors that one node may join or split.
MOST = 10


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with wide Concat and Split nodes and Resize broken up; the same object where there are none."""
    if not any(_special(node) for node in model.graph.node):
        return model
    shapes = _shapes(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = []
    for node in model.graph.node:
        if not _special(node):
            nodes.append(node)
        elif node.op_type == "Concat":
            nodes += _joined(node)
        elif node.op_type == "Split":
            nodes += _sliced(copy, node, shapes)
        else:
            nodes += resized(copy, node, shapes)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _special(node: onnx.NodeProto) -> bool:
    wide = {"Concat": len(node.input) > MOST, "Split": len(node.output) > MOST, "Resize": True}
    return node.domain in ("", "ai.onnx") and wide.get(node.op_type, False)


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Static shapes by value name."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    found = {item.name: list(item.dims) for item in model.graph.initializer}
    for value in (*inferred.graph.value_info, *model.graph.output, *model.graph.input):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            found[value.name] = [dim.dim_value for dim in dims]
    return found


def _axis(node: onnx.NodeProto, default: int) -> int:
    return next((int(item.i) for item in node.attribute if item.name == "axis"), default)


def _joined(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A tree of concatenations."""
    made: list[onnx.NodeProto] = []
    level = list(node.input)
    while len(level) > MOST:
        parts = [level[i : i + MOST] for i in range(0, len(level), MOST)]
        level = []
        for part in parts:
            if len(part) == 1:
                level.append(part[0])
                continue
            name = f"{node.output[0]}/part{len(made)}"
            made.append(helper.make_node("Concat", part, [name], name, axis=_axis(node, 0)))
            level.append(name)
    made.append(helper.make_node("Concat", level, list(node.output), node.name, axis=_axis(node, 0)))
    return made


def _sliced(model: onnx.ModelProto, node: onnx.NodeProto, shapes: dict[str, list[int]]) -> list[onnx.NodeProto]:
    """One slice for each result. Needs the sizes: given, or the inferred shapes of the results."""
    axis = _axis(node, 0)
    made, start = [], 0
    for output in node.output:
        if output not in shapes:
            return [node]
        stop = start + shapes[output][axis]
        names = []
        for role, number in (("from", start), ("to", stop), ("axis", axis)):
            name = f"{output}/{role}"
            model.graph.initializer.append(numpy_helper.from_array(np.array([number], np.int64), name))
            names.append(name)
        made.append(helper.make_node("Slice", [node.input[0], *names], [output], f"{node.name}/{output}"))
        start = stop
    return made
