"""ONNX to ONNX before Relax: Resize becomes tables; nodes with more tensors than a kernel has pointers, several;
what the frontend lacks is spelt out.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgesparse.fallback.resize import resized
from edgesparse.fallback.spelled import needs_spelling, spelled

#: Tensors that one node may join or split.
MOST = 10


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with such nodes broken up; the same object where there are none."""
    shapes, kinds = _known(model)
    if not any(_special(node) or needs_spelling(node, kinds) for node in model.graph.node):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = []
    for node in model.graph.node:
        if needs_spelling(node, kinds):
            nodes += spelled(copy, node, kinds, len(shapes.get(node.input[0], ())))
        elif not _special(node) or node.op_type == "Constant":
            nodes.append(node)
        elif node.op_type == "Concat":
            nodes += _joined(node)
        elif node.op_type == "ConvTranspose":
            nodes.append(_padded(node, shapes))
        elif node.op_type == "Split":
            nodes += _sliced(copy, node, shapes)
        else:
            nodes += resized(copy, node, shapes)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return constants_held(copy)


def constants_held(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its Constant nodes as initializers, in place: the frontend knows few of their forms."""
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    for node in model.graph.node:
        form = node.attribute[0].name if node.op_type == "Constant" and node.attribute else ""
        if form not in kinds and form != "value":
            continue
        value = helper.get_attribute_value(node.attribute[0])
        array = numpy_helper.to_array(value) if form == "value" else np.array(value, kinds[form])
        held = f"{node.output[0]}/held"
        model.graph.initializer.append(numpy_helper.from_array(array, held))
        node.CopyFrom(helper.make_node("Identity", [held], list(node.output), node.name))
    return model


def _special(node: onnx.NodeProto) -> bool:
    wide = {"Concat": len(node.input) > MOST, "Split": len(node.output) > MOST, "Resize": True, "Constant": True}
    wide["ConvTranspose"] = any(item.name == "output_shape" for item in node.attribute)
    return node.domain in ("", "ai.onnx") and wide.get(node.op_type, False)


def _known(model: onnx.ModelProto) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Static shapes and element types by value name."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    found = {item.name: list(item.dims) for item in model.graph.initializer}
    kinds = {item.name: item.data_type for item in model.graph.initializer}
    for value in (*inferred.graph.value_info, *model.graph.output, *model.graph.input):
        dims = value.type.tensor_type.shape.dim
        kinds[value.name] = value.type.tensor_type.elem_type
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            found[value.name] = [dim.dim_value for dim in dims]
    return found, kinds


def _axis(node: onnx.NodeProto, default: int) -> int:
    return next((int(item.i) for item in node.attribute if item.name == "axis"), default)


def _padded(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> onnx.NodeProto:
    """A transposed convolution whose result has a given shape, by the pads that give it (ONNX's formula)."""
    options = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    if any(name not in shapes for name in (*node.input[:2], node.output[0])):
        return node
    image, kernel, made = (shapes[name][2:] for name in (*node.input[:2], node.output[0]))
    rank = len(image)
    strides, dilations, more = (
        list(options.get(name, [default] * rank))
        for name, default in (("strides", 1), ("dilations", 1), ("output_padding", 0))
    )
    begins, ends = [], []
    for axis in range(rank):
        size = strides[axis] * (image[axis] - 1) + more[axis] + (kernel[axis] - 1) * dilations[axis] + 1
        more[axis] += max(0, made[axis] - size)
        total = max(0, size - made[axis])
        begins.append(total // 2 if options.get("auto_pad") == b"SAME_UPPER" else total - total // 2)
        ends.append(total - begins[-1])
    kept = {name: value for name, value in options.items() if name not in ("auto_pad", "output_shape")}
    kept |= {"pads": [*begins, *ends], "output_padding": more}
    return helper.make_node("ConvTranspose", list(node.input), list(node.output), node.name, **kept)


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
