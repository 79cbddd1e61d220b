"""Vector code for maps: element by element, in any order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgesparse.fallback import rounding
from edgesparse.fallback.flat import Flat
from edgesparse.fallback.nests import Axis
from edgesparse.fallback.rewrite import children, mentions, rebuilt, steps_of_index, substitute, walk

if TYPE_CHECKING:
    from edgesparse.fallback.emit import Scope

#: Vectors that a copying loop moves in one step.
_COPY_UNROLL = 4

#: Elements of one share of the work where a map has one axis only.
_CHUNK = 4096


def emit_map(scope: Scope, flat: Flat, parallel: bool) -> None:
    """Vectors along the axis that is contiguous in the result, loops over the others."""
    axis = _vector_axis(flat)
    flat = replace(flat, value=_unfolded(scope, flat.value))
    if axis is None:
        with scope.serial(flat.axes, parallel and bool(flat.axes)) as at:
            _store(scope, flat, at)
        return
    flat = _with_reciprocals(flat, axis)
    outer = [other for other in flat.axes if other is not axis]
    if outer or not parallel or axis.extent <= _CHUNK:
        with scope.serial(outer, parallel and bool(outer)) as at:
            _run(scope, flat, axis, at, 0, axis.extent)
        return
    _chunks(scope, flat, axis)


def _chunks(scope: Scope, flat: Flat, axis: Axis) -> None:
    T = scope.T
    full, rest = divmod(axis.extent, _CHUNK)
    scope.extent = full + bool(rest)
    with scope.loop(scope.begin, scope.end) as chunk:
        if not rest:
            _run(scope, flat, axis, {}, chunk * _CHUNK, _CHUNK)
            return
        with T.If(chunk < full):
            with T.Then():
                _run(scope, flat, axis, {}, chunk * _CHUNK, _CHUNK)
            with T.Else():
                _run(scope, flat, axis, {}, T.int32(full * _CHUNK), rest)


def _vector_axis(flat: Flat) -> Axis | None:
    """The axis along which the result is contiguous; of several the longest."""
    best = None
    for axis in flat.axes:
        if steps_of_index(flat.index, axis.var) == 1 and (best is None or axis.extent > best.extent):
            best = axis
    return best


def _run(scope: Scope, flat: Flat, axis: Axis, at: Mapping[Any, Any], start: Any, count: int) -> None:
    """`count` elements from `start` on along the axis: full vectors in a loop, then one shorter vector."""
    lanes = scope.lanes(str(flat.target.dtype))
    full, rest = divmod(count, lanes)
    # A loop that copies one vector a step would become a call of memcpy: nothing is linked that has it. A barrier keeps
    # LLVM from that too.
    unroll = _COPY_UNROLL if type(flat.value).__name__ == "TensorLoad" and not scope.form.barrier else 1
    blocks, left = divmod(full, unroll)

    def vectors(first: Any, how_many: int) -> None:
        for vector in range(how_many):
            with scope.vector(lanes) as lane:
                _store(scope, flat, {**at, axis.var: start + first + vector * lanes + lane})

    if blocks:
        with scope.loop(0, blocks) as block:
            vectors(block * (unroll * lanes), unroll)
    vectors(blocks * unroll * lanes, left)
    first = full * lanes
    for width in scope.tails(rest, str(flat.target.dtype)):
        with scope.vector(width) as lane:
            _store(scope, flat, {**at, axis.var: start + first + lane})
        first += width


def _store(scope: Scope, flat: Flat, at: Mapping[Any, Any]) -> None:
    scope.T.buffer_store(flat.target, substitute(flat.value, at), [substitute(flat.index, at)])


def _with_reciprocals(flat: Flat, axis: Axis) -> Flat:
    """Divisions by what is the same in all lanes become products, so that the division leaves the loop.

    Not where the result is rounded: there the last bit decides.
    """
    from tvm import tirx

    if any(_decides(node) for node in walk(flat.value)):
        return flat

    def visit(node: Any) -> Any:
        if type(node).__name__ == "TensorLoad":
            return node
        made = rebuilt(node, [visit(child) for child in children(node)])
        if type(made).__name__ != "Div" or str(made.ty.dtype) != "float32":
            return made
        if not mentions(made.a, [axis.var]) or mentions(made.b, [axis.var]):
            return made
        if type(made.b).__name__ == "FloatImm":
            return made
        return made.a * (tirx.const(1.0, "float32") / made.b)

    return replace(flat, value=visit(flat.value))


def _decides(node: Any) -> bool:
    kind = type(node).__name__
    if kind == "Cast":
        return "int" in str(node.ty.dtype) and "float" in str(node.value.ty.dtype)
    return kind == "Call" and str(getattr(node.op, "name", "")).rpartition(".")[2] in rounding.NAMES


def _unfolded(scope: Scope, value: Any) -> Any:
    """A constant that LLVM does not see as one (``begin >> 31`` is zero), lest a fill become a call of memset."""
    from tvm import tirx

    if type(value).__name__ not in ("IntImm", "FloatImm"):
        return value
    zero = scope.begin >> 31
    kind = str(value.ty.dtype)
    if kind == "bool":
        return zero.equal(0) if int(value.value) else zero != 0
    if kind == "float32":
        bits = int(np.float32(value.value).view(np.int32))
        return tirx.reinterpret("float32", zero + tirx.IntImm("int32", bits))
    return value + tirx.Cast(kind, zero)
