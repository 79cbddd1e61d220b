"""Fold what scales and shifts each channel into the layer before it.

A convolution or product y = W x + b followed by z = s * y + t, with one s and t per output channel, is the
layer W' = s W, b' = s b + t. Batch normalisation is such a step, s = gamma / sqrt(var + eps), t = beta - s *
mean, and so are Mul, Div, Add and Sub with a constant per channel. The algebra runs in float64 and is rounded
once.

Also makes Gemm plain: alpha and beta go into the weight and a bias of shape [N]; MatMul of rank 2 plus bias
becomes Gemm.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgesparse.errors import Reason
from edgesparse.passes.base import PassResult
from edgesparse.passes.graph import (
    Array,
    bypass,
    constant,
    nodes_of,
    only_user,
    set_constant,
    static_shape,
)

Affine = tuple[Array, Array]


def fold_affine(model: ir.Model) -> PassResult:
    """The pass; see the module's text. A `BatchNormalization` that stays gets a Reason."""
    modified = False
    for node in nodes_of(model, "Conv", "ConvTranspose", "Gemm", "MatMul"):
        weight = constant(node.inputs[1])
        if weight is None or weight.dtype.kind != "f":
            continue
        if node.op_type == "Gemm":
            modified = _plain_gemm(model, node) or modified
        while (user := only_user(node.outputs[0])) is not None:
            affine = _affine_of(user, node)
            if affine is None or not _apply(model, node, *affine):
                break
            bypass(user, node.outputs[0])
            modified = True
    modified = _matmul_to_gemm(model) or modified
    reasons = tuple(
        Reason("batch-norm-kept", "it follows no convolution or product that it could be folded into", node.name or "")
        for node in nodes_of(model, "BatchNormalization")
    )
    return PassResult(model, modified, reasons)


def _channels(node: ir.Node) -> tuple[int, int, int] | None:
    """(rank, channel axis, channels) of the node's output; None where they are not known."""
    shape = static_shape(node.outputs[0])
    if shape is None or len(shape) < 2:
        return None
    axis = len(shape) - 1 if node.op_type == "MatMul" else 1
    return len(shape), axis, shape[axis]


def _affine_of(user: ir.Node, node: ir.Node) -> Affine | None:
    """Scale and shift per channel, float64 `[C]`, that `user` applies to the output of `node`; None if it
    does not.
    """
    known = _channels(node)
    if known is None or user.domain not in ("", "ai.onnx"):
        return None
    rank, axis, count = known
    if user.op_type == "BatchNormalization":
        return _batch_norm(user) if axis == 1 and user.inputs[0] is node.outputs[0] else None
    if user.op_type not in ("Mul", "Div", "Add", "Sub") or user.inputs[0] is user.inputs[1]:
        return None
    first = user.inputs[0] is node.outputs[0]
    operand = constant(user.inputs[1] if first else user.inputs[0])
    if operand is None or operand.ndim > rank or operand.dtype.kind != "f":
        return None
    dims = (1,) * (rank - operand.ndim) + operand.shape
    if any(dim != 1 for i, dim in enumerate(dims) if i != axis):
        return None
    vector = np.broadcast_to(operand.astype(np.float64).reshape(-1), (count,))
    one, zero = np.ones(count), np.zeros(count)
    if user.op_type == "Mul":
        return vector, zero
    if user.op_type == "Add":
        return one, vector
    if user.op_type == "Sub":
        return (one, -vector) if first else (-one, vector)
    return (1.0 / vector, zero) if first and vector.all() else None


def _batch_norm(node: ir.Node) -> Affine | None:
    parts = [constant(value) for value in node.inputs[1:5]]
    if node.attributes.get_int("training_mode", 0) or any(out.uses() for out in node.outputs[1:]):
        return None
    if len(parts) < 4 or any(part is None for part in parts):
        return None
    gamma, beta, mean, var = (np.asarray(part, dtype=np.float64) for part in parts)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    if (var + epsilon <= 0).any():
        return None
    scale = gamma / np.sqrt(var + epsilon)
    return scale, beta - scale * mean


def _apply(model: ir.Model, node: ir.Node, scale: Array, shift: Array) -> bool:
    """Fold one step into the node's weight and bias. False where it does not fit, and nothing has changed."""
    weight = constant(node.inputs[1])
    bias = _bias(node, len(scale))
    if weight is None or bias is None or (node.op_type == "MatMul" and shift.any()):
        return False
    with np.errstate(over="ignore"):  # what overflows is seen below, and left alone
        new_weight = _scaled(node, weight, scale).astype(weight.dtype)
        new_bias = (bias * scale + shift).astype(weight.dtype)
    if not (np.isfinite(new_weight).all() and np.isfinite(new_bias).all()):
        return False
    set_constant(model, node, 1, new_weight)
    if node.op_type != "MatMul" and (len(node.inputs) > 2 or new_bias.any()):
        set_constant(model, node, 2, new_bias, name=f"{node.inputs[1].name}_bias")  # type: ignore[union-attr]
    return True


def _bias(node: ir.Node, count: int) -> Array | None:
    """The node's bias as float64 `[count]`, zeros where it has none; None where it is computed or no vector."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return np.zeros(count)
    bias = constant(node.inputs[2])
    if bias is None or bias.size not in (1, count) or any(dim != 1 for dim in bias.shape[:-1]):
        return None
    return np.broadcast_to(bias.astype(np.float64).reshape(-1), (count,))


def _scaled(node: ir.Node, weight: Array, scale: Array) -> Array:
    wide = weight.astype(np.float64)
    if node.op_type == "ConvTranspose":
        groups = node.attributes.get_int("group", 1)
        split = wide.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        return (split * scale.reshape(groups, 1, -1, 1)).reshape(weight.shape)
    rows = node.op_type == "Conv" or bool(node.attributes.get_int("transB", 0))
    return wide * (scale.reshape(-1, *[1] * (weight.ndim - 1)) if rows else scale)


def _plain_gemm(model: ir.Model, node: ir.Node) -> bool:
    """Move alpha and beta into the constants. False where there is nothing to move."""
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    known = _channels(node)
    if (alpha, beta) == (1.0, 1.0) or known is None:
        return False
    bias = _bias(node, known[2])
    weight = constant(node.inputs[1])
    if bias is None or weight is None:
        return False
    set_constant(model, node, 1, (weight.astype(np.float64) * alpha).astype(weight.dtype))
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        set_constant(model, node, 2, (bias * beta).astype(weight.dtype))
    for name in ("alpha", "beta"):
        node.attributes.pop(name, None)
    return True


def _matmul_to_gemm(model: ir.Model) -> bool:
    """MatMul of a matrix with a constant, followed by adding one number per column, is Gemm."""
    modified = False
    for node in nodes_of(model, "MatMul"):
        user = only_user(node.outputs[0])
        weight = constant(node.inputs[1])
        data = static_shape(node.inputs[0])
        if user is None or weight is None or weight.ndim != 2 or data is None or len(data) != 2:
            continue
        affine = _affine_of(user, node) if user.op_type in ("Add", "Sub") else None
        if affine is None or (affine[0] != 1).any():
            continue
        gemm = ir.node("Gemm", [node.inputs[0], node.inputs[1]], name=node.name)
        gemm.outputs[0].name = node.outputs[0].name
        gemm.outputs[0].shape, gemm.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
        model.graph.insert_before(node, gemm)
        bypass(node, gemm.outputs[0])
        set_constant(model, gemm, 2, affine[1].astype(weight.dtype), name=f"{gemm.name}_bias")
        bypass(user, gemm.outputs[0])
        modified = True
    return modified
