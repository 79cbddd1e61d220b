"""Heads: where every head of an attention may have a permutation of its own.

A product of heads and channels, h x d, is permuted alike in every head by what `spaces` knows. More is legal where no
step ever joins different heads channel by channel: then the permutation of d may depend on the head. That holds if
every value that has d has h too, once each, so that the head of every entry is known; if weights have both on one
axis, h before d; and if no step mixes along h while d stays, or pairs d of one head with d of another.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import onnx_ir as ir

from edgesparse.passes.axes import BROADCAST, REDUCE, RESHAPES, SAME, AxisWork
from edgesparse.passes.spaces import Axis

_ALONG = ("Softmax", "LogSoftmax", "LayerNormalization")
_PLAIN = ("Transpose", "MatMul", "Gemm", "Split", "Slice", "Concat", "LayerNormalization")
_KNOWN = frozenset((*SAME, *BROADCAST, *RESHAPES, *REDUCE, *_PLAIN))


def own_orders(work: AxisWork, graph: ir.Graph) -> dict[int, int]:
    """The spaces of channels of which each head may have its own permutation, with the space of their heads."""
    values = {value: [work.spaces.leaves(axis) for axis in axes] for value, axes in list(work.known.items())}
    pairs: dict[int, int] = {}
    for axes in values.values():
        for segment in (segment for axis in axes for segment in axis):
            for heads, space in itertools.pairwise(segment):
                if work.spaces.size[heads] > 1 and work.spaces.reason(space) is None:
                    pairs.setdefault(space, heads)
    return {
        space: heads
        for space, heads in pairs.items()
        if all(_told(value, axes, space, heads) for value, axes in values.items())
        and all(_apart(node, values, space, heads) for node in graph)
    }


def _flat(axes: list[Axis]) -> Iterator[int]:
    for axis in axes:
        for segment in axis:
            yield from segment


def _told(value: ir.Value, axes: list[Axis], space: int, heads: int) -> bool:
    """Whether the head of every channel of a value is known, and for a weight lies on the same axis."""
    spaces = list(_flat(axes))
    if space not in spaces:
        return True
    if spaces.count(space) != 1 or spaces.count(heads) != 1:
        return False
    if value.const_value is None:
        return True
    pairs = [pair for axis in axes for segment in axis for pair in itertools.pairwise(segment)]
    return (heads, space) in pairs


def _apart(node: ir.Node, values: dict[ir.Value, list[Axis]], space: int, heads: int) -> bool:
    """Whether a step keeps heads apart."""
    touched = [values[value] for value in (*node.inputs, *node.outputs) if value is not None and value in values]
    if not any(space in _flat(axes) for axes in touched):
        return True
    if node.op_type not in _KNOWN:
        return False
    inputs = [values[value] for value in node.inputs if value is not None]
    first = inputs[0]
    if node.op_type in _ALONG:
        at = (node.attributes.get_int("axis", -1) or 0) % len(first)
        spans = [first[at:]]
        if node.op_type != "LayerNormalization":  # one axis; before opset 13 all from there on: both must do
            spans.append(first[at : at + 1])
        return all(heads not in _flat(span) or space in _flat(span) for span in spans)
    if node.op_type in ("MatMul", "Gemm"):
        flipped = node.op_type == "Gemm" and bool(node.attributes.get_int("transA", 0))
        summed = set(_flat([first[0 if flipped else -1]]))
        if heads in summed or space in summed:
            return (heads in summed and space in summed) or (space in summed and _aligned(inputs, heads))
    return True


def _aligned(inputs: list[list[Axis]], heads: int) -> bool:
    """Whether both factors have the heads as the same axis of the batch."""
    places = [
        [len(axes) - number for number, axis in enumerate(axes[:-2]) if heads in _flat([axis])] for axes in inputs[:2]
    ]
    return len(places[0]) == 1 and places[0] == places[1]
