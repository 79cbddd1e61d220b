"""Rules for what comes down to several operations, or is a kernel by itself: recurrences, upsampling, the largest."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgesparse.errors import UnsupportedError
from edgesparse.graph.attributes import constant_of, integer, name_of, node_name
from edgesparse.graph.carve import held
from edgesparse.graph.ops import Op, TopK, Value
from edgesparse.graph.walk import Walk
from edgesparse.kernels import Epilogue
from edgesparse.lowering.recurrent import recurrent
from edgesparse.lowering.upsample import depth_to_space, nearest, transposed


def recurrence(walk: Walk, node: ir.Node) -> Op:
    """LSTM, GRU or RNN: one product for all steps, then the recurrence itself."""
    if name_of(node.inputs[0]) not in walk.values:
        raise UnsupportedError(f"node {node_name(node)!r} ({node.op_type})", why="its input is a constant")
    linear, op, made = recurrent(node, walk.values)
    walk.flush()
    for value in node.inputs:
        array = constant_of(value)
        if value is not None and array is not None and value.name in op.inputs and value.name not in walk.values:
            walk.declare(value, f"node {node_name(node)!r}")
            walk.ops.append(held(walk.model, walk.values[name_of(value)], array))
    walk.values |= {value.name: value for value in made}
    walk.ops.append(linear)
    walk.fusion.taken.add(id(node))
    return op


def upsampled(walk: Walk, node: ir.Node) -> Op | None:
    """Transposed convolution, depth to space, or resizing to the nearest."""
    image, out = walk.image(node.inputs[0]), walk.shape_of(node.outputs[0])
    if image is None or len(out) != 4:
        return None
    x, size = name_of(node.inputs[0]), (out[0], out[1], out[2], out[3])
    if node.op_type != "ConvTranspose":
        output = name_of(node.outputs[0])
        if node.op_type == "Resize":
            return nearest(node, x, image, size, output)
        return depth_to_space(node, x, image, output)
    if transposed(node, x, image, size, Epilogue(), (), "") is None:
        return None
    epilogue, _, chain = walk.fusion.fuse(node, walk.made(), residuals=False)
    made = transposed(node, x, image, size, epilogue, walk.names(chain), walk.output(chain))
    assert made is not None
    convs, join, values = made
    walk.flush()
    walk.values |= {value.name: value for value in values}
    walk.ops += convs if join is not None else convs[:-1]
    return join or convs[-1]


def topk(walk: Walk, node: ir.Node) -> Op | None:
    """The largest or smallest along an axis, and where they are."""
    x, count = node.inputs[0], constant_of(node.inputs[1])
    if x is None or constant_of(x) is not None or count is None or name_of(x) not in walk.values:
        return None
    value = walk.values[name_of(x)]
    if value.dtype not in ("float32", "int32", "int64"):
        return None
    axis = integer(node, "axis", -1) % len(value.shape)
    outer, size, inner = value.shape[:axis], value.shape[axis], value.shape[axis + 1 :]
    wanted = int(count.reshape(-1)[0])
    made = []
    for place, (mark, dtype) in enumerate([("values", value.dtype), ("indices", "int64")]):
        name = node.outputs[place].name if place < len(node.outputs) else ""
        made.append(name or f"{node_name(node)}/{mark}")
        walk.values[made[-1]] = Value(made[-1], (*outer, wanted, *inner), dtype)
    walk.fusion.taken.add(id(node))
    return TopK(
        node_name(node),
        walk.names([node]),
        (value.name,),
        tuple(made),
        wanted,
        size,
        int(np.prod(outer, dtype=np.int64)),
        int(np.prod(inner, dtype=np.int64)),
        bool(integer(node, "largest", 1)),
        value.dtype,
    )
