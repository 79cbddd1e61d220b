"""float16 and bfloat16 models as float32 ones: the kernels compute in float32.

Weights are widened exactly. What was rounded to 16 bits between two nodes no longer is, so results are nearer to the
real numbers than the narrow model's own. float16 inputs and outputs keep their type, with a Cast behind or before
them; bfloat16, which numpy has not, becomes float32 there too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

HALF, BRAIN, SINGLE = ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT
_NARROW = (HALF, BRAIN)


def widen(model: ir.Model, notice: Callable[[str], None]) -> bool:
    """Make all 16-bit floats of a model float32, in place; whether there were any."""
    found = {value.dtype for value in _values(model)} & set(_NARROW)
    if not found and not any(_retyped(node) for node in ir.traversal.RecursiveGraphIterator(model.graph)):
        return False
    halves = [value for value in (*model.graph.inputs, *model.graph.outputs) if value.dtype == HALF]
    brains = [value.name for value in (*model.graph.inputs, *model.graph.outputs) if value.dtype == BRAIN]
    for graph in _graphs(model):
        for value in graph.initializers.values():
            if value.dtype in _NARROW and value.const_value is not None:
                value.const_value = _wide(value.const_value)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for attribute in _retyped(node):
            node.attributes[attribute.name] = attribute
    for value in _values(model):
        if value.dtype in _NARROW:
            value.type = ir.TensorType(SINGLE)
    _cast_ends(model, halves)
    notice("16-bit floats are computed in float32")
    if brains:
        notice(f"bfloat16 inputs and outputs are float32 now: {', '.join(str(name) for name in brains)}")
    return True


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield model.graph
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield attribute.as_graph()
            elif attribute.type == ir.AttributeType.GRAPHS:
                yield from attribute.as_graphs()


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in _graphs(model):
        yield from graph.inputs
        yield from graph.initializers.values()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        yield from node.outputs


def _retyped(node: ir.Node) -> list[ir.Attr]:
    """The attributes of a node that name a 16-bit type or hold such a tensor, for float32."""
    made = []
    for name, attribute in node.attributes.items():
        if name in ("to", "dtype", "output_dtype", "stash_type") and attribute.type == ir.AttributeType.INT:
            if attribute.as_int() in [int(kind) for kind in _NARROW]:
                made.append(ir.AttrInt64(name, int(SINGLE)))
        elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in _NARROW:
            made.append(ir.AttrTensor(name, _wide(attribute.as_tensor())))
    return made


def _wide(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(np.asarray(tensor.numpy()).astype(np.float32), name=tensor.name)


def _cast_ends(model: ir.Model, halves: list[ir.Value]) -> None:
    """Give float16 inputs and outputs their type back, and their readers and makers a Cast."""
    graph = model.graph
    outputs = [(index, value) for index, value in enumerate(graph.outputs) if value in halves]
    for value in [value for value in graph.inputs if value in halves]:
        node = ir.node("Cast", [value], {"to": int(SINGLE)}, name=f"{value.name}/float32")
        made = node.outputs[0]
        made.name, made.type, made.shape = f"{value.name}/float32", ir.TensorType(SINGLE), value.shape
        for use in list(value.uses()):
            if use.node is not node:
                use.node.replace_input_with(use.idx, made)
        for index, output in list(enumerate(graph.outputs)):
            if output is value:
                outputs = [(at, made if at == index else each) for at, each in outputs]
        value.type = ir.TensorType(HALF)
        graph.insert_before(graph[0], node) if len(graph) else graph.append(node)
    for index, value in outputs:
        name = graph.outputs[index].name
        node = ir.node("Cast", [value], {"to": int(HALF)}, name=f"{name}/float16")
        made = node.outputs[0]
        made.type, made.shape = ir.TensorType(HALF), graph.outputs[index].shape
        if graph.outputs[index] is value:
            value.name = f"{name}/float32"
        made.name = name
        graph.append(node)
        graph.outputs[index] = made
