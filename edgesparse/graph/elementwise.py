"""Rules for what computes or moves single elements of images: arithmetic, activations, concatenation, views."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgesparse.graph.attributes import constant_of, integer, is_float, name_of, node_name
from edgesparse.graph.ops import Concat, Elementwise, Op, View
from edgesparse.graph.walk import Walk

#: ONNX's operators of two operands by the names that kernels have for them.
BINARY = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div"}


def binary(walk: Walk, node: ir.Node) -> Op | None:
    """Image op image, channel vector or scalar; the image has the output's shape."""
    out = walk.shape_of(node.outputs[0])
    if not all(map(is_float, node.inputs)) or len(out) != 4:
        return None
    for x, z in ((0, 1), (1, 0)):
        image = walk.image(node.inputs[x])
        if image is None or image != out:
            continue
        constant = constant_of(node.inputs[z])
        kind = _operand(out, walk.shape_of(node.inputs[z]) if constant is None else constant.shape, constant)
        if kind is None:
            continue
        names = [name_of(node.inputs[x])] + ([] if constant is not None else [name_of(node.inputs[z])])
        op = BINARY[node.op_type]
        epilogue, _, chain = walk.fusion.fuse(node, walk.made(), residuals=False)
        return Elementwise(
            node_name(node),
            walk.names(chain),
            tuple(names),
            (walk.output(chain),),
            op,
            kind,
            constant,
            x == 1,
            epilogue,
        )
    return None


def activation_alone(walk: Walk, node: ir.Node) -> Op | None:
    """An activation that nothing before it could take in."""
    if node.domain not in ("", "ai.onnx") or not node.inputs or walk.image(node.inputs[0]) is None:
        return None
    epilogue = walk.fusion.epilogue_of(node)
    if epilogue is None:
        return None
    walk.fusion.taken.add(id(node))
    x = name_of(node.inputs[0])
    return Elementwise(
        node_name(node), walk.names([node]), (x,), (walk.output([node]),), "first", "none", None, False, epilogue
    )


def concat(walk: Walk, node: ir.Node) -> Op | None:
    """Images put together channel after channel."""
    images = [walk.image(value) for value in node.inputs]
    if any(image is None for image in images) or integer(node, "axis", 0) % 4 != 1:
        return None
    walk.fusion.taken.add(id(node))
    names = tuple(name_of(value) for value in node.inputs)
    return Concat(node_name(node), walk.names([node]), names, (walk.output([node]),))


def view(walk: Walk, node: ir.Node) -> Op | None:
    """Another shape of the same elements."""
    x = node.inputs[0]
    if x is None or constant_of(x) is not None or name_of(x) not in walk.values:
        return None
    walk.fusion.taken.add(id(node))
    return View(node_name(node), walk.names([node]), (name_of(x),), (walk.output([node]),))


def _operand(out: tuple[int, ...], shape: tuple[int, ...], constant: np.ndarray | None) -> str | None:
    """How a second operand of `shape` meets an image of shape `out`."""
    if np.prod(shape, dtype=np.int64) == 1 and constant is not None:
        return "scalar"
    padded = (1,) * (4 - len(shape)) + tuple(shape)
    if len(padded) != 4 or (constant is None and len(shape) != 4):
        return None  # what is computed and no image has no layout to meet the image's
    if padded == out and constant is None:
        return "full"
    if padded[1:] == (out[1], 1, 1) and padded[0] in (1, out[0]) and (padded[0] == out[0] or constant is not None):
        return "channel" if constant is None or padded[0] == 1 else None
    return None
