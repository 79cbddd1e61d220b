"""What each operator says about its axes: which of its inputs' and outputs' are the same. See `couple`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from edgesparse.errors import Reason
from edgesparse.passes.graph import constant, ints
from edgesparse.passes.spaces import Axis, Clash, Spaces

Axes = list[Axis]

SAME = tuple(
    "Relu Clip HardSwish HardSigmoid Sigmoid Tanh Erf Gelu Exp Log Sqrt Neg Abs LeakyRelu Elu Selu Celu Softplus "  # noqa: SIM905
    "Softsign Mish ThresholdedRelu Cast Identity Dropout Round Floor Ceil Reciprocal Sign Sin Cos Not Softmax "
    "LogSoftmax".split()
)
BROADCAST = tuple(
    "Add Sub Mul Div Pow Min Max Sum Mean Where PRelu And Or Xor Equal Less Greater LessOrEqual GreaterOrEqual".split()  # noqa: SIM905
)
_POOLS = ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "MaxPool", "AveragePool", "LpPool")
_NORMS = ("BatchNormalization", "InstanceNormalization")
REDUCE = tuple(f"Reduce{name}" for name in ("Mean", "Sum", "Max", "Min", "L1", "L2", "Prod", "LogSum", "LogSumExp"))
REDUCE = (*REDUCE, "ReduceSumSquare")
RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


class AxisWork:
    """Axes of the values seen so far."""

    def __init__(self) -> None:
        self.spaces = Spaces()
        self.known: dict[ir.Value, Axes] = {}

    def axes(self, value: ir.Value) -> Axes:
        """The value's axes, fresh ones at first sight. An open dimension is an axis of no entries."""
        if value not in self.known:
            dims: list[object] = [] if value.shape is None else list(value.shape)
            if value.shape is None and value.const_value is not None:
                dims = list(value.const_value.shape)
            self.known[value] = [self.spaces.new(d) if isinstance(d, int) and d > 0 else () for d in dims]
        return self.known[value]

    def unite(self, one: Axis, other: Axis, node: ir.Node) -> None:
        try:
            self.spaces.unite(one, other)
        except Clash:
            why = f"{node.op_type} joins channels that are laid out differently"
            for axis in (one, other):
                self.spaces.pin(axis, Reason("layout-clash", why, node.name or ""))

    def pin_value(self, value: ir.Value | None, reason: Reason) -> None:
        if value is not None:
            for axis in self.axes(value):
                self.spaces.pin(axis, reason)

    def pin_node(self, node: ir.Node, reason: Reason) -> None:
        for value in (*node.inputs, *node.outputs, *_captured(node)):
            self.pin_value(value, reason)

    def visit(self, node: ir.Node) -> None:
        handler = _HANDLERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        shapes = [value.shape for value in (*node.inputs, *node.outputs) if value is not None]
        name = node.name or ""
        if handler is None:
            self.pin_node(node, Reason("not-understood", f"{node.op_type} is not known to keep channels whole", name))
        elif any(shape is None for shape in shapes) or node.overload:
            self.pin_node(node, Reason("no-shape", "a shape around it is not known", name))
        else:
            try:
                handler(self, node)
                if node.op_type in _FIRST_ONLY:
                    why = f"a parameter of {node.op_type}"
                    for value in node.inputs[1:]:
                        self.pin_value(value, Reason("parameter", why, name))
            except Clash:
                self.pin_node(node, Reason("layout-clash", f"{node.op_type} mixes channels with other axes", name))
            for value in node.outputs[1:]:
                if node.op_type != "Split":
                    self.pin_value(value, Reason("not-understood", f"second output of {node.op_type}", name))

    def at(self, node: ir.Node, index: int) -> Axes | None:
        """Axes of an input; None where it is absent."""
        value = node.inputs[index] if index < len(node.inputs) else None
        return None if value is None else self.axes(value)

    def needed(self, node: ir.Node, index: int) -> Axes:
        found = self.at(node, index)
        if found is None:
            raise Clash
        return found

    def out(self, node: ir.Node) -> Axes:
        return self.axes(node.outputs[0])

    def pin_axis(self, axis: Axis, node: ir.Node, why: str) -> None:
        self.spaces.pin(axis, Reason("fixed-order", why, node.name or ""))


def _captured(node: ir.Node) -> list[ir.Value]:
    found: list[ir.Value] = []
    for attribute in node.attributes.values():
        graphs: list[ir.Graph] = []
        if attribute.type == ir.AttributeType.GRAPH:
            graphs = [attribute.as_graph()]
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs = list(attribute.as_graphs())
        for graph in graphs:
            for inner in ir.traversal.RecursiveGraphIterator(graph):
                found += [value for value in inner.inputs if value is not None]
    return found


def _same(work: AxisWork, node: ir.Node) -> None:
    for one, other in zip(work.needed(node, 0), work.out(node), strict=True):
        work.unite(one, other, node)


def _broadcast(work: AxisWork, node: ir.Node) -> None:
    out = work.out(node)
    for index in range(len(node.inputs)):
        axes = work.needed(node, index)
        for one, other in zip(reversed(axes), reversed(out), strict=False):
            if work.spaces.extent(one) != 1 or work.spaces.extent(other) == 1:
                work.unite(one, other, node)


def _conv(work: AxisWork, node: ir.Node) -> None:
    x, w, out, bias = work.needed(node, 0), work.needed(node, 1), work.out(node), work.at(node, 2)
    groups = node.attributes.get_int("group", 1) or 1
    extent = work.spaces.extent
    transposed = node.op_type == "ConvTranspose"
    w_out, w_in = (w[1], w[0]) if transposed else (w[0], w[1])
    work.unite(x[0], out[0], node)
    for axis in (*x[2:], *out[2:], *w[2:]):
        work.pin_axis(axis, node, "pixels and taps keep their order")
    if bias is not None:
        work.unite(bias[0], out[1], node)
    if groups == 1:
        work.unite(w_in, x[1], node)
        work.unite(w_out, out[1], node)
    elif groups == extent(x[1]) == extent(out[1]) and extent(w[1]) == 1:
        work.unite(w[0], x[1], node)
        work.unite(w[0], out[1], node)
    else:
        for axis in (x[1], w[0], w[1], out[1]):
            reason = Reason("convolution-groups", f"{groups} groups bind channels to places", node.name or "")
            work.spaces.pin(axis, reason)


def _gemm(work: AxisWork, node: ir.Node) -> None:
    a, b, out = work.needed(node, 0), work.needed(node, 1), work.out(node)
    a = a[::-1] if node.attributes.get_int("transA", 0) else a
    b = b[::-1] if node.attributes.get_int("transB", 0) else b
    work.unite(a[1], b[0], node)
    work.unite(a[0], out[0], node)
    work.unite(b[1], out[1], node)
    c = work.at(node, 2)
    for one, other in zip(reversed(c or []), reversed(out), strict=False):
        if work.spaces.extent(one) != 1 or work.spaces.extent(other) == 1:
            work.unite(one, other, node)


def _matmul(work: AxisWork, node: ir.Node) -> None:
    a, b, out = work.needed(node, 0), work.needed(node, 1), work.out(node)
    if len(a) < 2 or len(b) < 2:
        raise Clash
    work.unite(a[-1], b[-2], node)
    work.unite(a[-2], out[-2], node)
    work.unite(b[-1], out[-1], node)
    for axes in (a, b):
        for one, other in zip(reversed(axes[:-2]), reversed(out[:-2]), strict=False):
            if work.spaces.extent(one) != 1 or work.spaces.extent(other) == 1:
                work.unite(one, other, node)


def _pool(work: AxisWork, node: ir.Node) -> None:
    x, out = work.needed(node, 0), work.out(node)
    for one, other in zip(x[:2], out[:2], strict=True):
        work.unite(one, other, node)
    for axis in (*x[2:], *out[2:]):
        work.pin_axis(axis, node, "pixels keep their order")


def _norm(work: AxisWork, node: ir.Node) -> None:
    _same(work, node)
    for index in range(1, len(node.inputs)):
        axes = work.at(node, index)
        if axes:
            work.unite(axes[0], work.needed(node, 0)[1], node)


def _layer_norm(work: AxisWork, node: ir.Node) -> None:
    _same(work, node)
    x = work.needed(node, 0)
    for index in range(1, len(node.inputs)):
        for one, other in zip(reversed(work.at(node, index) or []), reversed(x), strict=False):
            if work.spaces.extent(one) != 1 or work.spaces.extent(other) == 1:
                work.unite(one, other, node)


def _resize(work: AxisWork, node: ir.Node) -> None:
    x, out = work.needed(node, 0), work.out(node)
    crops = node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    for number, (one, other) in enumerate(zip(x, out, strict=True)):
        if number < 2 and not crops and work.spaces.extent(one) == work.spaces.extent(other):
            work.unite(one, other, node)
        else:
            work.pin_axis(one, node, "pixels keep their order")
            work.pin_axis(other, node, "pixels keep their order")


def _axis_list(work: AxisWork, node: ir.Node, index: int, rank: int) -> tuple[int, ...] | None:
    """Axes as attribute or constant input, not negative; None for not given. Raises Clash if not constant."""
    listed = [int(axis) for axis in ints(node, "axes", ())]
    if not listed:
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            return None
        array = constant(value)
        if array is None:
            raise Clash
        listed = [int(axis) for axis in array.reshape(-1)]
    return tuple(axis % rank for axis in listed)


def _reduce(work: AxisWork, node: ir.Node) -> None:
    x, out = work.needed(node, 0), work.out(node)
    axes = _axis_list(work, node, 1, len(x))
    if axes is None:
        axes = () if node.attributes.get_int("noop_with_empty_axes", 0) else tuple(range(len(x)))
    left = [axis for number, axis in enumerate(x) if number not in axes]
    kept = node.attributes.get_int("keepdims", 1)
    for one, other in zip(left, [a for i, a in enumerate(out) if i not in axes] if kept else out, strict=True):
        work.unite(one, other, node)


def _transpose(work: AxisWork, node: ir.Node) -> None:
    x, out = work.needed(node, 0), work.out(node)
    for number, other in zip(ints(node, "perm", tuple(reversed(range(len(x))))), out, strict=True):
        work.unite(x[number], other, node)


def _along(node: ir.Node, rank: int, default: int = 0) -> int:
    return (node.attributes.get_int("axis", default) or 0) % rank


def _concat(work: AxisWork, node: ir.Node) -> None:
    out = work.out(node)
    at = _along(node, len(out))
    joined: Axis = ()
    for index in range(len(node.inputs)):
        axes = work.needed(node, index)
        joined += axes[at]
        for number, (one, other) in enumerate(zip(axes, out, strict=True)):
            if number != at:
                work.unite(one, other, node)
    work.unite(joined, out[at], node)


def _split(work: AxisWork, node: ir.Node) -> None:
    x = work.needed(node, 0)
    at = _along(node, len(x))
    rest = x[at]
    for value in node.outputs:
        axes = work.axes(value)
        first, rest = work.spaces.cut_at(rest, work.spaces.extent(axes[at]))
        for number, (one, other) in enumerate(zip(x, axes, strict=True)):
            work.unite(first if number == at else one, other, node)


def _slice(work: AxisWork, node: ir.Node) -> None:
    x, out = work.needed(node, 0), work.out(node)
    starts = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    steps = constant(node.inputs[4]) if len(node.inputs) > 4 else None
    if starts is None or (steps is not None and (steps != 1).any()):
        raise Clash
    listed = _axis_list(work, node, 3, len(x)) or tuple(range(starts.size))
    for number, (one, other) in enumerate(zip(x, out, strict=True)):
        if number not in listed or work.spaces.extent(one) == work.spaces.extent(other):
            work.unite(one, other, node)
            continue
        size = work.spaces.extent(one)
        start = int(starts.reshape(-1)[listed.index(number)])
        start = min(max(start + size if start < 0 else start, 0), size)
        _, rest = work.spaces.cut_at(one, start)
        first, _ = work.spaces.cut_at(rest, work.spaces.extent(other))
        work.unite(first, other, node)


def _reshape(work: AxisWork, node: ir.Node) -> None:
    """Join or split runs of axes that span the same number of entries on both sides."""
    x, out = work.needed(node, 0), work.out(node)
    extent = work.spaces.extent
    if any(extent(axis) == 0 for axis in (*x, *out)):
        raise Clash
    i = j = 0
    while i < len(x) or j < len(out):
        left, right = [x[i]] if i < len(x) else [], [out[j]] if j < len(out) else []
        i, j = i + len(left), j + len(right)
        while (a := _many(extent, left)) != (b := _many(extent, right)):
            if a < b:
                left.append(x[i])
                i += 1
            else:
                right.append(out[j])
                j += 1
        left, right = [a for a in left if extent(a) > 1], [a for a in right if extent(a) > 1]
        if len(left) == 1 and len(right) > 1:
            left, right = right, left
        if len(right) == 1 and left:
            work.unite(work.spaces.product(left) if len(left) > 1 else left[0], right[0], node)
        elif left or right:
            whole = work.spaces.product(left)
            for one, other in zip(work.spaces.factor(whole, tuple(map(extent, right))), right, strict=True):
                work.unite(one, other, node)


def _many(extent: Callable[[Axis], int], axes: Sequence[Axis]) -> int:
    return int(np.prod([extent(axis) for axis in axes])) if axes else 1


def _pad(work: AxisWork, node: ir.Node) -> None:
    for one, other in zip(work.needed(node, 0), work.out(node), strict=True):
        if work.spaces.extent(one) == work.spaces.extent(other):
            # equal sizes may still be a shift by a crop and a pad
            pads = constant(node.inputs[1]) if len(node.inputs) > 1 else None
            if pads is not None and (pads >= 0).all():
                work.unite(one, other, node)
                continue
        for axis in (one, other):
            work.pin_axis(axis, node, "padding binds the order")


def _gather(work: AxisWork, node: ir.Node) -> None:
    """A look-up along one axis, as of embeddings: the others stay whole."""
    data, indices, out = work.needed(node, 0), work.needed(node, 1), work.out(node)
    at = _along(node, len(data))
    work.pin_axis(data[at], node, "a look-up by index keeps its order")
    for axis in out[at : at + len(indices)]:
        work.pin_axis(axis, node, "a look-up by index keeps its order")
    for one, other in zip((*data[:at], *data[at + 1 :]), (*out[:at], *out[at + len(indices) :]), strict=True):
        work.unite(one, other, node)


def _expand(work: AxisWork, node: ir.Node) -> None:
    for one, other in zip(reversed(work.needed(node, 0)), reversed(work.out(node)), strict=False):
        if work.spaces.extent(one) != 1 or work.spaces.extent(other) == 1:
            work.unite(one, other, node)


_HANDLERS: dict[str, Callable[[AxisWork, ir.Node], None]] = {
    **dict.fromkeys(SAME, _same),
    **dict.fromkeys(BROADCAST, _broadcast),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(_NORMS, _norm),
    **dict.fromkeys(REDUCE, _reduce),
    **dict.fromkeys(("Conv", "ConvTranspose"), _conv),
    **dict.fromkeys(RESHAPES, _reshape),
    "Gemm": _gemm,
    "MatMul": _matmul,
    "LayerNormalization": _layer_norm,
    "Resize": _resize,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Expand": _expand,
    "Gather": _gather,
}

_FIRST_ONLY = frozenset(
    (*SAME, *_POOLS, *REDUCE, *RESHAPES, "Resize", "Transpose", "Split", "Slice", "Pad", "Expand", "Gather")
)
"""Operators whose other inputs are numbers that say what to do: these are pinned."""
