"""From a simplified ONNX model to operations: which nodes become which kernel family, and what is fused into what.

The walk is in topological order. A node that starts a family (Conv, Gemm, MatMul, pooling, elementwise) takes the
activation and the residual add that follow it into its epilogue, as long as nobody else reads what lies between. What
no family covers is collected, run after run of nodes, for Relax; such a run of a topological order is convex, so it
can be one part.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from edgesparse.errors import UnsupportedError
from edgesparse.graph.attention import attentions
from edgesparse.graph.attributes import constant_of, name_of
from edgesparse.graph.carve import held
from edgesparse.graph.composed import recurrence, topk, upsampled
from edgesparse.graph.elementwise import BINARY, activation_alone, binary, concat, view
from edgesparse.graph.ops import Graph, Op
from edgesparse.graph.pools import global_pooling, pooling, reduce_mean
from edgesparse.graph.products import conv, gemm, layer_norm, matmul
from edgesparse.graph.walk import Walk

#: The rule of each operator that has one: an operation, or None for what it does not cover.
RULES: dict[str, Callable[[Walk, ir.Node], Op | None]] = {
    "Conv": conv,
    "Gemm": gemm,
    "MatMul": matmul,
    "MaxPool": pooling,
    "AveragePool": pooling,
    "GlobalAveragePool": global_pooling,
    "GlobalMaxPool": global_pooling,
    "ReduceMean": reduce_mean,
    "Concat": concat,
    "LayerNormalization": layer_norm,
    "TopK": topk,
    **dict.fromkeys(("ConvTranspose", "DepthToSpace", "Resize"), upsampled),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), recurrence),
    **dict.fromkeys(BINARY, binary),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"), view),
}


def recognise(model: ir.Model) -> Graph:
    """Understand a simplified model with static shapes.

    Raises
    ------
    UnsupportedError
        A node's shape or type is not known, or nothing can lower it; names node, operator and opset.
    """
    walk = Walk(model)
    found = {id(each.last): each for each in attentions(walk.graph)}
    inputs = [value for value in walk.graph.inputs if value.name not in walk.graph.initializers]
    for value in inputs:
        walk.declare(value, "the model")
    walk.fusion.taken.update(id(node) for each in found.values() for node in each.nodes)
    for node in walk.graph:
        if id(node) in found:
            walk.flush()
            walk.declare_outputs(node)
            walk.ops.append(found[id(node)].op)
        if id(node) in walk.fusion.taken:
            continue
        rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        op = (rule(walk, node) if rule else None) or activation_alone(walk, node)
        if op is None:
            walk.loose.append(node)
            walk.declare_outputs(node)
            continue
        walk.flush()
        walk.declare_outputs(node)
        walk.ops.append(op)
    walk.flush()
    outputs = tuple(name_of(value) for value in walk.graph.outputs)
    for value in walk.graph.outputs:
        array = constant_of(value)
        if array is not None:
            walk.declare(value, "the model")
            walk.ops.append(held(walk.model, walk.values[name_of(value)], array))
    ops = tuple(_sorted(walk.ops, [name_of(value) for value in inputs]))
    used = {name for op in ops for name in (*op.inputs, *op.outputs)} | set(outputs)
    names = tuple(name_of(value) for value in inputs)
    values = {name: value for name, value in walk.values.items() if name in used or name in names}
    return Graph(ops, values, names, outputs)


def _sorted(ops: list[Op], inputs: list[str]) -> list[Op]:
    """Topological order, keeping the given order where it can be: a fused op may sit before its residual."""
    ready = set(inputs)
    pending, ordered = list(ops), []
    while pending:
        index = next((i for i, op in enumerate(pending) if all(name in ready for name in op.inputs)), None)
        if index is None:
            names = ", ".join(op.name for op in pending[:4])
            raise UnsupportedError(
                f"the graph has no order in which {names} can run", why="values are missing or form a cycle"
            )
        op = pending.pop(index)
        ready.update(op.outputs)
        ordered.append(op)
    return ordered
