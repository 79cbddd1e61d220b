"""Rules for pooling, by windows and over the whole image."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgesparse.graph.attributes import constant_of, integer, ints, name_of, node_name, pads_of, pair
from edgesparse.graph.ops import GlobalPooling, Op, Pooling
from edgesparse.graph.walk import Walk


def pooling(walk: Walk, node: ir.Node) -> Op | None:
    """Max or average over windows, where what lies beyond the image counts as kernels count it."""
    image = walk.image(node.inputs[0])
    kernel = ints(node, "kernel_shape", ())
    if image is None or len(kernel) != 2 or len([v for v in node.outputs if v.name]) != 1:
        return None
    strides, dilations = pair(node, "strides"), pair(node, "dilations")
    pads = pads_of(node, image[2:], (kernel[0], kernel[1]), strides, dilations)
    out = walk.shape_of(node.outputs[0])
    floor = [
        (size + before + after - (k - 1) * d - 1) // s + 1
        for size, before, after, k, d, s in zip(image[2:], pads[:2], pads[2:], kernel, dilations, strides, strict=True)
    ]
    if integer(node, "storage_order", 0) or any(p >= k for p, k in zip((*pads,), (*kernel, *kernel), strict=True)):
        return None
    if any((n - 1) * s >= size + p for n, s, size, p in zip(out[2:], strides, image[2:], pads[:2], strict=True)):
        return None  # ceil_mode: ONNX's inference counts a window beyond the image that onnxruntime does not
    if dilations[0] > image[2]:
        return None  # a window may hold no row of the image at all
    mode = "max"
    if node.op_type == "AveragePool":
        counted = integer(node, "count_include_pad", 0) and any(pads)
        ceil = list(out[2:]) != floor
        if ceil and counted:
            return None  # padding counts, what hangs over the padding does not
        mode = "avg" if not ceil and (counted or not any(pads)) else "avg_valid"
        if mode == "avg_valid" and max(dilations) > 1:
            return None
    x = name_of(node.inputs[0])
    walk.fusion.taken.add(id(node))
    outputs = (walk.output([node]),)
    return Pooling(
        node_name(node), walk.names([node]), (x,), outputs, mode, (kernel[0], kernel[1]), strides, dilations, pads
    )


def global_pooling(walk: Walk, node: ir.Node) -> Op | None:
    """The mean or the largest of each channel of an image."""
    if walk.image(node.inputs[0]) is None:
        return None
    return _global(walk, node, "max" if node.op_type == "GlobalMaxPool" else "avg")


def reduce_mean(walk: Walk, node: ir.Node) -> Op | None:
    """ReduceMean over both image axes is a global average pool."""
    if walk.image(node.inputs[0]) is None:
        return None
    axes: Any = constant_of(node.inputs[1]) if len(node.inputs) > 1 else ints(node, "axes", ())
    if axes is None or sorted(int(axis) % 4 for axis in np.asarray(axes).reshape(-1)) != [2, 3]:
        return None
    return _global(walk, node, "avg")


def _global(walk: Walk, node: ir.Node, mode: str) -> Op:
    walk.fusion.taken.add(id(node))
    x = name_of(node.inputs[0])
    return GlobalPooling(node_name(node), walk.names([node]), (x,), (walk.output([node]),), mode)
