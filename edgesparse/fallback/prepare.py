"""ONNX to ONNX before Relax: nodes with more inputs or outputs than a kernel has pointers become several."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

#: Tensors that one node may join or split.
MOST = 10


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with wide Concat and Split nodes broken up; the same object where there are none."""
    wide = [
        node
        for node in model.graph.node
        if (node.op_type == "Concat" and len(node.input) > MOST)
        or (node.op_type == "Split" and len(node.output) > MOST)
    ]
    if not wide:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = []
    for node in model.graph.node:
        if node not in wide:
            nodes.append(node)
        elif node.op_type == "Concat":
            nodes += _joined(node)
        else:
            nodes += _sliced(copy, node)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


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


def _sliced(model: onnx.ModelProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """One slice for each result. Needs the sizes: given, or the inferred shapes of the results."""
    inferred = onnx.shape_inference.infer_shapes(model)
    axis = _axis(node, 0)
    values = [*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input]
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
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
