"""Cut nodes out of a model as an ONNX model of their own, for the lowering through Relax."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir

from edgesparse.graph.attributes import name_of
from edgesparse.graph.ops import Fallback, Value


def carve(model: ir.Model, nodes: list[ir.Node], values: dict[str, Value]) -> Fallback:
    """The nodes as a model of their own: computed values become inputs, constants initializers."""
    inside = {name_of(value) for node in nodes for value in node.outputs if value.name}
    protos = [ir.serde.serialize_node(node) for node in nodes]
    inputs: dict[str, Value] = {}
    initializers: dict[str, onnx.TensorProto] = {}
    outer = {value.name for value in model.graph.outputs}
    members = {id(node) for node in nodes}
    for value in itertools.chain.from_iterable(node.inputs for node in nodes):
        if value is None or not value.name or value.name in inside:
            continue
        if value.const_value is not None and not value.is_graph_input():
            tensor = onnx.numpy_helper.from_array(np.asarray(value.const_value.numpy()), value.name)
            initializers[value.name] = tensor
        else:
            inputs[value.name] = values[value.name]
    outputs = [
        values[name_of(value)]
        for node in nodes
        for value in node.outputs
        if value.name and (value.name in outer or any(id(use.node) not in members for use in value.uses()))
    ]
    graph = onnx.helper.make_graph(
        protos, "part", [_info(v) for v in inputs.values()], [_info(v) for v in outputs], list(initializers.values())
    )
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    part = onnx.helper.make_model(graph, opset_imports=imports, ir_version=min(model.ir_version, 10))
    names = tuple(node.name or node.op_type for node in nodes)
    return Fallback(names[0], names, tuple(inputs), tuple(v.name for v in outputs), part)


def held(model: ir.Model, value: Value, array: np.ndarray) -> Fallback:
    """A constant that is an output of the model, as a part that copies it there."""
    name = f"{value.name}/held"
    node = onnx.helper.make_node("Identity", [name], [value.name], name)
    graph = onnx.helper.make_graph([node], "part", [], [_info(value)], [onnx.numpy_helper.from_array(array, name)])
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    part = onnx.helper.make_model(graph, opset_imports=imports, ir_version=min(model.ir_version, 10))
    return Fallback(name, (name,), (), (value.name,), part)


def _info(value: Value) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(
        value.name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype)), value.shape
    )
