"""Finding attention: two products of activations with a softmax between, however the exporter spelt the turning.

Queries, keys and values come out of wide matrices ``[.., rows, features]`` through reshapes, transposes, slices and
splits. Instead of a list of spellings, that way is followed for the indices of the matrix's elements: it is attention
over features if what arrives has the order ``[batch, head, row, feature]``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgesparse.graph.attributes import constant_of, integer, ints, is_float, name_of, node_name
from edgesparse.graph.ops import Attention, Mask

_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
_MOVES = (*_RESHAPES, "Transpose", "Slice", "Gather", "Split")
#: Elements of a matrix beyond which its order is not followed.
_MOST = 1 << 24


@dataclass(frozen=True)
class Found:
    """An attention, and the nodes that are part of it; it runs where `last` stands."""

    op: Attention
    nodes: tuple[ir.Node, ...]
    last: ir.Node


@dataclass(frozen=True)
class _Side:
    """What a product reads: a matrix, where each element comes from in it, a constant factor; the nodes between."""

    source: ir.Value
    places: np.ndarray
    scale: float
    nodes: tuple[ir.Node, ...]


def attentions(graph: ir.Graph) -> list[Found]:
    """All attentions of a graph with static shapes."""
    outputs = {value.name for value in graph.outputs}
    found = (_attention(node, outputs) for node in graph if node.op_type == "Softmax")
    return [each for each in found if each is not None]


def _shape(value: ir.Value | None) -> tuple[int, ...] | None:
    if value is None or value.shape is None or any(not isinstance(dim, int) for dim in value.shape):
        return None
    return tuple(int(dim) for dim in value.shape)  # type: ignore[arg-type]


def _attention(softmax: ir.Node, outputs: set[str | None]) -> Found | None:
    shape = _shape(softmax.outputs[0])
    if shape is None or integer(softmax, "axis", -1) not in (-1, len(shape) - 1) or not is_float(softmax.inputs[0]):
        return None
    above = _scores(softmax)
    below = _sole(softmax.outputs[0], outputs)
    chain = [softmax]
    while below is not None and below.op_type in _RESHAPES:
        chain.append(below)
        below = _sole(below.outputs[0], outputs)
    if above is None or below is None or below.op_type != "MatMul" or below.inputs[0] is not chain[-1].outputs[0]:
        return None
    first, scale, added, scored = above
    scores = _shape(first.outputs[0])
    if scores is None or len(scores) != 4 or _shape(below.inputs[0]) != scores:
        return None
    q, k, v = (_side(value) for value in (first.inputs[0], first.inputs[1], below.inputs[1]))
    if (
        q is None
        or k is None
        or v is None
        or v.scale != 1.0
        or not q.places.ndim == k.places.ndim == v.places.ndim == 4
    ):
        return None
    batch, heads, rows, keys = scores
    k_places = k.places.transpose(0, 1, 3, 2)
    starts = [_head_major(side.source, places) for side, places in ((q, q.places), (k, k_places), (v, v.places))]
    if q.places.shape[:3] != (batch, heads, rows) or any(start is None for start in starts):
        return None
    if any(places.shape[:3] != (batch, heads, keys) for places in (k_places, v.places)):
        return None
    mask = _mask(added, scores) if added is not None else None
    if added is not None and mask is None:
        return None
    end = _feature_major(below, batch, heads, rows, v.places.shape[3], outputs)
    if end is None:
        return None
    own = [*scored, *chain, below, *end]
    if any(name_of(each.outputs[0]) in outputs for each in own[:-1]):
        return None
    extra = _inside([*q.nodes, *k.nodes, *v.nodes], own, outputs)
    members = [*extra, *own]
    names = tuple(dict.fromkeys(node.name or node.op_type for node in members))
    inputs = [name_of(side.source) for side in (q, k, v)]
    if mask is not None and mask.values is None:
        inputs.append(mask.name)
    op = Attention(
        node_name(first),
        names,
        tuple(inputs),
        (name_of(end[-1].outputs[0]),),
        tuple(start for start in starts if start is not None),
        batch,
        heads,
        rows,
        keys,
        q.places.shape[3],
        v.places.shape[3],
        scale * q.scale * k.scale,
        mask,
    )
    return Found(op, tuple(members), end[-1])


def _sole(value: ir.Value, outputs: set[str | None]) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and value.name not in outputs else None


def _scores(softmax: ir.Node) -> tuple[ir.Node, float, ir.Value | None, list[ir.Node]] | None:
    """The product that a softmax is of: its node, a constant factor, what is added, the nodes up to it."""
    value, scale, mask, nodes = softmax.inputs[0], 1.0, None, []
    while value is not None:
        node = value.producer()
        if node is None or len(list(value.uses())) != 1:
            return None
        nodes.append(node)
        if node.op_type == "MatMul":
            return node, scale, mask, nodes[::-1]
        if node.op_type in _RESHAPES:
            before, after = _shape(node.inputs[0]), _shape(value)
            if before is None or after is None or before[-1] != after[-1]:
                return None
            value = node.inputs[0]
            continue
        factor = _factor(node)
        if factor is not None:
            value, scale = factor[0], scale * factor[1]
        elif node.op_type == "Add" and mask is None and scale == 1.0:
            one, two = node.inputs
            mask, value = (two, one) if _shape(one) == _shape(value) and _is_product(one) else (one, two)
            dims, whole = _shape(mask), _shape(value)
            if dims is None or whole is None or whole != _shape(node.outputs[0]) or not is_float(mask):
                return None
            if len(whole) != 4 and int(np.prod(dims[:-1])) != 1:
                return None
        else:
            return None
    return None


def _is_product(value: ir.Value | None) -> bool:
    """Whether a value is a product, reshaped or times a number."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "MatMul":
            return True
        factor = _factor(node)
        if factor is None and node.op_type not in _RESHAPES:
            return False
        value = factor[0] if factor is not None else node.inputs[0]
    return False


def _mask(value: ir.Value, scores: tuple[int, ...]) -> Mask | None:
    """What is added to scores ``[batch, heads, queries, keys]``; None where it is no mask for each key or query."""
    dims = _shape(value)
    if dims is None or len(dims) > 4 or dims[-1:] != scores[-1:]:
        return None
    batch, heads, rows = (*(1,) * (4 - len(dims)), *dims[:-1])
    if heads > 1 and rows != scores[2]:
        return None  # a row for each head
    array = constant_of(value)
    values = np.asarray(array).reshape(-1, scores[3]) if array is not None else None
    return Mask(name_of(value), batch, heads, rows, values)


def _factor(node: ir.Node) -> tuple[ir.Value, float] | None:
    """The computed input of a node that multiplies by a constant number, and that number."""
    if node.op_type not in ("Mul", "Div"):
        return None
    one, two = node.inputs
    constant = constant_of(two)
    if constant is None and node.op_type == "Mul":
        one, two, constant = two, one, constant_of(one)
    if one is None or constant is None or constant.size != 1 or constant_of(one) is not None or not is_float(one):
        return None
    number = float(constant.reshape(-1)[0])
    if node.op_type == "Div":
        return (one, 1.0 / number) if number else None
    return one, number


def _side(value: ir.Value | None) -> _Side | None:
    """Follow a value up to the matrix it is a rearrangement of."""
    way: list[tuple[ir.Node, int]] = []
    scale = 1.0
    while value is not None:
        node, output = value.producer(), value.index() or 0
        factor = _factor(node) if node is not None else None
        if node is not None and factor is not None:
            scale, value = scale * factor[1], factor[0]
        elif node is not None and node.op_type in _MOVES and constant_of(node.inputs[0]) is None:
            value = node.inputs[0]
        else:
            break
        way.append((node, output))
    shape = _shape(value)
    if value is None or shape is None or len(shape) < 2 or constant_of(value) is not None or not is_float(value):
        return None
    if int(np.prod(shape, dtype=np.int64)) > _MOST:
        return None
    places: np.ndarray | None = np.arange(np.prod(shape, dtype=np.int64)).reshape(shape)
    assert places is not None
    for node, output in reversed(way):
        if node.op_type in _MOVES:
            places = _moved(node, places, output)
            if places is None:
                return None
    return _Side(value, places, scale, tuple(node for node, _ in way))


def _moved(node: ir.Node, places: np.ndarray, output: int) -> np.ndarray | None:
    """What a node makes of its input, for any elements."""
    shape = _shape(node.outputs[output])
    if shape is None:
        return None
    if node.op_type in _RESHAPES:
        return places.reshape(shape)
    if node.op_type == "Transpose":
        return places.transpose(ints(node, "perm", tuple(reversed(range(places.ndim)))))
    if node.op_type == "Split":
        axis = integer(node, "axis", 0)
        sizes = [(_shape(value) or (0,) * places.ndim)[axis] for value in node.outputs]
        return np.split(places, np.cumsum(sizes)[:-1].tolist(), axis)[output]
    constants = [constant_of(value) for value in node.inputs[1:]]
    if any(constant is None for constant in constants):
        return None
    if node.op_type == "Gather":
        return np.take(places, np.asarray(constants[0]), integer(node, "axis", 0))
    flat = [np.asarray(constant).reshape(-1).tolist() for constant in constants]
    starts, ends = flat[0], flat[1]
    axes = flat[2] if len(flat) > 2 else list(range(len(starts)))
    steps = flat[3] if len(flat) > 3 else [1] * len(starts)
    cut = [slice(None)] * places.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 1:
            return None
        cut[axis] = slice(start, end, step)
    return places[tuple(cut)]


def _head_major(source: ir.Value, places: np.ndarray) -> tuple[int, int] | None:
    """First feature of head 0 and features from head to head, if the order is that of heads of rows."""
    shape = _shape(source)
    if shape is None or places.ndim != 4:
        return None
    batch, heads, rows, width = places.shape
    features = shape[-1]
    if int(np.prod(shape[:-1], dtype=np.int64)) != batch * rows:
        return None
    first = int(places[0, 0, 0, 0])
    step = int(places[0, 1, 0, 0]) - first if heads > 1 else width
    b, h, t, d = np.ogrid[:batch, :heads, :rows, :width]
    fits = first >= 0 and step > 0 and first + (heads - 1) * step + width <= features
    return (first, step) if fits and np.array_equal(places, (b * rows + t) * features + first + h * step + d) else None


def _feature_major(
    node: ir.Node, batch: int, heads: int, rows: int, depth: int, outputs: set[str | None]
) -> list[ir.Node] | None:
    """The nodes after the second product that put the heads of a row side by side again."""
    places = np.arange(batch * heads * rows * depth).reshape(batch, heads, rows, depth)
    wanted = places.transpose(0, 2, 1, 3).reshape(-1)
    nodes: list[ir.Node] = []
    while True:
        after = _sole(node.outputs[0], outputs)
        if after is None or after.op_type not in (*_RESHAPES, "Transpose"):
            return None
        moved = _moved(after, places, 0)
        if moved is None:
            return None
        nodes.append(after)
        node, places = after, moved
        if moved.ndim >= 2 and moved.shape[-1] == heads * depth and np.array_equal(moved.reshape(-1), wanted):
            return nodes


def _inside(nodes: Iterable[ir.Node], own: list[ir.Node], outputs: set[str | None]) -> list[ir.Node]:
    """Those nodes that nobody but the attention needs."""
    members = {id(node) for node in own}
    waiting = list({id(node): node for node in nodes}.values())
    found: list[ir.Node] = []
    while True:
        more = [
            node
            for node in waiting
            if all(
                value.name not in outputs and all(id(use.node) in members for use in value.uses())
                for value in node.outputs
            )
        ]
        if not more:
            return found
        found += more
        members |= {id(node) for node in more}
        waiting = [node for node in waiting if id(node) not in members]
