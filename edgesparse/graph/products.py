"""Rules for what multiplies by constant weights: convolutions, products of rows of features, and their layer norms."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgesparse.graph.attributes import constant_of, integer, is_float, name_of, node_name, number, pads_of, pair
from edgesparse.graph.ops import Conv, LayerNorm, Linear, Op
from edgesparse.graph.walk import Walk

#: Rows from which a layer norm is one of ours: fewer fill no vectors.
_NORM_ROWS = 16


def conv(walk: Walk, node: ir.Node) -> Op | None:
    """A convolution of an image by constant weights, with what can be fused into it."""
    x, w = node.inputs[0], node.inputs[1]
    image, weight = walk.image(x), constant_of(w)
    bias = constant_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if image is None or weight is None or weight.ndim != 4 or not is_float(w):
        return None
    if len(node.inputs) > 2 and node.inputs[2] is not None and bias is None:
        return None
    kernel = (weight.shape[2], weight.shape[3])
    strides, dilations = pair(node, "strides"), pair(node, "dilations")
    pads = pads_of(node, image[2:], kernel, strides, dilations)
    epilogue, residual, chain = walk.fusion.fuse(node, walk.made(), residuals=True)
    epilogue, affine, chain = walk.fusion.affine(epilogue, chain)
    flat = weight.reshape(*weight.shape[:2], -1)
    return Conv(
        node_name(node),
        walk.names(chain),
        (name_of(x), *((residual,) if residual else ())),
        (walk.output(chain),),
        flat,
        bias if bias is not None else np.zeros(weight.shape[0], np.float32),
        kernel,
        strides,
        dilations,
        pads,
        integer(node, "group", 1),
        epilogue,
        affine,
    )


def gemm(walk: Walk, node: ir.Node) -> Op | None:
    """Rows of features times a constant matrix, plus a bias."""
    x, w = node.inputs[0], node.inputs[1]
    weight = constant_of(w)
    extra = node.inputs[2] if len(node.inputs) > 2 else None
    bias = constant_of(extra)
    if weight is None or constant_of(x) is not None or not is_float(x):
        return None
    if extra is not None and bias is None:
        return None
    if integer(node, "transA", 0) or number(node, "alpha", 1.0) != 1.0 or number(node, "beta", 1.0) != 1.0:
        return None
    rows_out = weight if integer(node, "transB", 0) else weight.T
    if bias is not None and bias.size != 1 and (bias.size != rows_out.shape[0] or bias.shape[-1] != bias.size):
        return None  # a value of its own for each row of x
    return _linear(walk, node, name_of(x), rows_out, bias)


def matmul(walk: Walk, node: ir.Node) -> Op | None:
    """Rows of features times a constant matrix; an addition of a bias that follows is part of it."""
    x, w = node.inputs[0], node.inputs[1]
    weight = constant_of(w)
    if weight is None or weight.ndim != 2 or constant_of(x) is not None or not is_float(x):
        return None
    add = walk.fusion.sole_consumer(node.outputs[0])
    bias = None
    if add is not None and add.op_type == "Add":
        constants = [constant_of(value) for value in add.inputs]
        bias = next((each for each in constants if each is not None and each.shape == weight.shape[1:]), None)
    return _linear(walk, node, name_of(x), weight.T, bias, add if bias is not None else None)


def _linear(
    walk: Walk, node: ir.Node, x: str, weight: np.ndarray, bias: np.ndarray | None, add: ir.Node | None = None
) -> Op | None:
    if x not in walk.values:
        return None
    shape = walk.values[x].shape
    if not shape or shape[-1] != weight.shape[1]:
        return None
    head = [node, add] if add is not None else [node]
    made = walk.made() | {name_of(value) for part in walk.loose for value in part.outputs if value.name}
    epilogue, residual, chain = walk.fusion.fuse(head[-1], made, residuals=True)
    walk.fusion.taken.update(id(part) for part in head)
    full = np.zeros(weight.shape[0], np.float32)
    if bias is not None:
        full += bias.reshape(-1)
    return Linear(
        node_name(node),
        walk.names([*head[:-1], *chain]),
        (x, *((residual,) if residual else ())),
        (walk.output(chain),),
        weight[:, :, None],
        full,
        int(np.prod(shape[:-1], dtype=np.int64)),
        epilogue,
    )


def layer_norm(walk: Walk, node: ir.Node) -> Op | None:
    """Layer norm over rows of features between matrix products, which keep them feature-major."""
    shape = walk.shape_of(node.outputs[0])
    scale = constant_of(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None
    shift = constant_of(given) if given is not None else None
    if len(shape) < 2 or integer(node, "axis", -1) not in (-1, len(shape) - 1) or not is_float(node.inputs[0]):
        return None
    if scale is None or scale.shape != shape[-1:] or (given is not None and shift is None):
        return None
    rows = int(np.prod(shape[:-1], dtype=np.int64))
    if rows < _NORM_ROWS or len([value for value in node.outputs if value.name]) != 1:
        return None
    x = name_of(node.inputs[0])
    after = [use.node for use in node.outputs[0].uses()]
    products = any(isinstance(op, Linear) and x in op.outputs for op in walk.ops) or any(
        each.op_type == "MatMul" and constant_of(each.inputs[1]) is not None for each in after
    )
    if not products or constant_of(node.inputs[0]) is not None:
        return None
    walk.fusion.taken.add(id(node))
    return LayerNorm(
        node_name(node),
        walk.names([node]),
        (x,),
        (walk.output([node]),),
        scale,
        shift if shift is not None else np.zeros_like(scale),
        number(node, "epsilon", 1e-5),
        rows,
    )
