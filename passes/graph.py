"""Small helpers for editing an `onnx_ir` graph. Shared initializers are the classic trap: `set_constant`
copies first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]


def constant(value: ir.Value | None) -> Array | None:
    """The array of an initializer that is no graph input; None for anything else."""
    if value is None or value.const_value is None or not value.is_initializer() or value.is_graph_input():
        return None
    return value.const_value.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """The number in a constant of one element; None for anything else."""
    array = constant(value)
    return float(array.item()) if array is not None and array.size == 1 and array.dtype.kind in "fiu" else None


def nodes_of(model: ir.Model, *op_types: str) -> Iterator[ir.Node]:
    """The main graph's nodes of these standard operators, in order; safe to edit while iterating."""
    for node in tuple(model.graph):
        if node.op_type in op_types and node.domain in ("", "ai.onnx") and node.graph is not None:
            yield node


def only_user(value: ir.Value) -> ir.Node | None:
    """The one node of the main graph that reads `value`; None if it is read elsewhere or is a graph output."""
    uses = tuple(value.uses())
    if value.is_graph_output() or len(uses) != 1:
        return None
    node = uses[0].node
    return node if node.graph is value.graph else None


def set_constant(model: ir.Model, node: ir.Node, index: int, array: Array, name: str = "") -> ir.Value:
    """Make input `index` of `node` an initializer of its own with this array, whoever else read the old one.

    The old name is kept where the node was its only reader; otherwise it is derived from it, or from `name`
    where there was no input. Returns the initializer.
    """
    array = np.ascontiguousarray(array)
    old = node.inputs[index] if index < len(node.inputs) else None
    if old is not None and constant(old) is not None and len(old.uses()) == 1 and not old.is_graph_output():
        old.const_value = ir.tensor(array, name=old.name)
        old.shape = ir.Shape(array.shape)
        old.dtype = ir.DataType.from_numpy(array.dtype)
        return old
    fresh = add_initializer(model, (old.name if old is not None else None) or name, array)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, fresh)
    return fresh


def add_initializer(model: ir.Model, base: str, array: Array) -> ir.Value:
    """A new initializer whose name is `base`, numbered if that is taken."""
    taken = set(model.graph.initializers) | {value.name for value in model.graph.inputs}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        taken.update(value.name or "" for value in node.outputs)
    name, number = base, 0
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def bypass(node: ir.Node, value: ir.Value) -> None:
    """Remove a node of one output; its readers read `value` instead, which takes over the name of a graph
    output.

    If that output is a graph output, `value` must neither be one itself, nor an input or initializer.
    """
    old = node.outputs[0]
    name, exposed = old.name, old.is_graph_output()
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    assert node.graph is not None
    node.graph.remove(node, safe=True)
    if exposed:
        old.name = None
        value.name = name


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape where it is known in full."""
    if value is None or value.shape is None:
        return None
    dims = tuple(dim for dim in value.shape if isinstance(dim, int))
    return dims if len(dims) == len(value.shape) else None


def ints(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """An integer list attribute, or the default."""
    found = node.attributes.get_ints(name)
    return tuple(found) if found is not None else default
