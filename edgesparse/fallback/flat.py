"""A nest over flat buffers: every access is one 32-bit index, so that axes can be merged, cut and made vectors."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgesparse.fallback.nests import Axis, Nest, Store, shape_of
from edgesparse.fallback.rewrite import children, linear, loads, mentions, simplified, substitute, walk

#: Most pieces a nest is cut into where its value is chosen by comparing an axis with constants (pad, concat).
_MOST_BOXES = 48

_FOLDS = {"Add": 0, "Mul": 1, "Max": None, "Min": None}


@dataclass(frozen=True)
class Flat:
    """One store ``target[index] = value`` in loops; in a fold `value` holds `acc`, and `finish` follows."""

    axes: tuple[Axis, ...]
    reduce: tuple[Axis, ...]
    target: Any
    index: Any
    value: Any
    init: Any = None
    acc: Any = None
    #: What is stored when a fold is done: an expression of `acc`.
    finish: Any = None

    def indices(self) -> list[Any]:
        """All indices: of the store, and of the loads."""
        found = [load.indices[0] for load in loads(self.value)]
        if self.finish is not None:
            found += [load.indices[0] for load in loads(self.finish)]
        return [self.index, *found]

    def with_vars(self, at: Mapping[Any, Any]) -> Flat:
        """Replace variables everywhere; the loops are the caller's."""
        finish = None if self.finish is None else substitute(self.finish, at)
        return replace(self, index=substitute(self.index, at), value=substitute(self.value, at), finish=finish)


def offset(buffer: Any, indices: Sequence[Any], skip: int, extents: Mapping[Any, int]) -> Any:
    """The flat element offset of an access, `skip` leading dimensions left out."""
    from tvm import tirx

    total: Any = tirx.IntImm("int32", 0)
    stride = 1
    for size, index in list(zip(shape_of(buffer), indices, strict=True))[: skip - 1 if skip else None : -1]:
        total = total + index * tirx.IntImm("int32", stride)
        stride *= size
    return simplified(total, extents)


def flatten(nest: Nest, made: Mapping[Any, Any], local: Mapping[Any, int]) -> Flat:
    """A nest of one store over the flat buffers `made`; `local` buffers lack that many leading dimensions."""
    from tvm import tirx

    extents = {axis.var: axis.extent for axis in (*nest.axes, *nest.reduce)}
    store = nest.stores[0]
    acc = tirx.Var("acc", str(store.buffer.dtype)) if nest.reduce else None

    def load(buffer: Any, indices: list[Any]) -> Any:
        if acc is not None and buffer.same_as(store.buffer):
            return acc
        return made[buffer][offset(buffer, indices, local.get(buffer, 0), extents)]

    last, finish = store, acc
    if nest.epilogue:
        last = nest.epilogue[0]
        finish = substitute(last.value, {nest.epilogue[1]: acc}, load)
    return Flat(
        nest.axes,
        nest.reduce,
        made[last.buffer],
        offset(last.buffer, last.indices, local.get(last.buffer, 0), extents),
        substitute(store.value, {}, load),
        store.init,
        acc,
        finish,
    )


def flat_store(store: Store, made: Mapping[Any, Any], local: Mapping[Any, int], extents: Mapping[Any, int]) -> Store:
    """A store of a nest that keeps its accumulators in memory, over flat buffers."""

    def load(buffer: Any, indices: list[Any]) -> Any:
        return made[buffer][offset(buffer, indices, local.get(buffer, 0), extents)]

    index = offset(store.buffer, store.indices, local.get(store.buffer, 0), extents)
    return Store(made[store.buffer], (index,), substitute(store.value, {}, load), store.init)


def _loose(expr: Any, variables: Sequence[Any]) -> bool:
    """Whether variables appear outside the indices of loads."""
    if type(expr).__name__ == "TensorLoad":
        return False
    if type(expr).__name__ == "Var":
        return any(expr.same_as(v) for v in variables)
    return any(_loose(child, variables) for child in children(expr))


def _mergeable(flat: Flat, a: Axis, b: Axis) -> bool:
    values = [flat.value] + ([] if flat.finish is None else [flat.finish])
    if any(_loose(value, [a.var, b.var]) for value in values):
        return False
    for index in flat.indices():
        found = linear(index, [a.var, b.var])
        if found is None or found[0][0] != found[0][1] * b.extent:
            return False
    return True


def merged(flat: Flat) -> Flat:
    """Without axes of extent 1, and with neighbouring axes made one where all accesses allow it."""
    from tvm import tirx

    for which in ("axes", "reduce"):
        axes: list[Axis] = []
        for axis in getattr(flat, which):
            if axis.extent == 1:
                flat = flat.with_vars({axis.var: tirx.IntImm("int32", 0)})
            else:
                axes.append(axis)
        position = len(axes) - 2
        while position >= 0:
            a, b = axes[position : position + 2]
            if _mergeable(flat, a, b):
                both = Axis(tirx.Var(f"m{position}", "int32"), a.extent * b.extent)
                flat = flat.with_vars({a.var: tirx.IntImm("int32", 0), b.var: both.var})
                axes[position : position + 2] = [both]
            position -= 1
        flat = replace(flat, **{which: tuple(axes)})
    return resimplified(flat)


def resimplified(flat: Flat) -> Flat:
    """Indices and conditions folded under the ranges of the axes."""
    extents = {axis.var: axis.extent for axis in (*flat.axes, *flat.reduce)}

    def load(buffer: Any, indices: list[Any]) -> Any:
        return buffer[simplified(indices[0], extents)]

    finish = None if flat.finish is None else substitute(flat.finish, {}, load)
    return replace(flat, index=simplified(flat.index, extents), value=substitute(flat.value, {}, load), finish=finish)


def cuts(flat: Flat) -> dict[Any, list[int]]:
    """For each axis the places where a comparison inside a choice changes its truth."""
    variables = [axis.var for axis in flat.axes]
    found: dict[Any, set[int]] = {}
    for node in walk(flat.value):
        kind = type(node).__name__
        if kind == "Select":
            condition = node.condition
        elif kind == "Call" and node.op.name == "prim.if_then_else":
            condition = node.args[0]
        else:
            continue
        for comparison in walk(condition):
            if type(comparison).__name__ not in ("LT", "LE", "GT", "GE", "EQ", "NE") or loads(comparison):
                continue
            for axis in flat.axes:
                if mentions(comparison, [axis.var]):
                    found.setdefault(axis.var, set()).update(_changes(comparison, variables, axis))
    return {var: sorted(places) for var, places in found.items() if places}


def _changes(comparison: Any, variables: Sequence[Any], axis: Axis) -> list[int]:
    """Where ``c * axis + d <op> 0`` changes, for comparisons of that form."""
    if any(str(side.ty.dtype) != "int32" for side in (comparison.a, comparison.b)):
        return []
    found = linear(comparison.a - comparison.b, variables)
    if found is None or type(found[1]).__name__ != "IntImm":
        return []
    scales = {var: scale for var, scale in zip(variables, found[0], strict=True) if scale}
    if list(scales) != [axis.var]:
        return []
    scale, shift = scales[axis.var], int(found[1].value)
    root = -shift / scale
    near = [int(root) + step for step in (-1, 0, 1, 2)]
    return [
        x
        for x in near
        if 0 < x < axis.extent and _truth(comparison, scale * x + shift) != _truth(comparison, scale * (x - 1) + shift)
    ]


def _truth(comparison: Any, x: int) -> bool:
    kind = type(comparison).__name__
    return {"LT": x < 0, "LE": x <= 0, "GT": x > 0, "GE": x >= 0, "EQ": x == 0, "NE": x != 0}[kind]


def boxes(flat: Flat) -> list[Flat]:
    """The nest cut at its comparisons, so that each piece takes one side of every choice."""
    from tvm import tirx

    places = cuts(flat)
    ranges = []
    count = 1
    for axis in flat.axes:
        edges = [0, *places.get(axis.var, []), axis.extent]
        ranges.append(list(itertools.pairwise(edges)))
        count *= len(edges) - 1
    if count == 1 or count > _MOST_BOXES:
        return [flat]
    made = []
    for corner in itertools.product(*ranges):
        axes, at = [], {}
        for axis, (low, high) in zip(flat.axes, corner, strict=True):
            fresh = Axis(tirx.Var(axis.var.name, "int32"), high - low)
            axes.append(fresh)
            at[axis.var] = fresh.var + tirx.IntImm("int32", low) if low else fresh.var
        piece = replace(flat.with_vars(at), axes=tuple(axes))
        extents = {axis.var: axis.extent for axis in axes}
        made.append(resimplified(replace(piece, value=simplified(piece.value, extents))))
    return made


def combiner(flat: Flat) -> tuple[type, Any] | None:
    """``(operation, other operand)`` of a fold whose initial value is neutral, else None."""
    kind = type(flat.value).__name__
    if kind not in _FOLDS or flat.acc is None:
        return None
    first, second = flat.value.a, flat.value.b
    if second.same_as(flat.acc):
        first, second = second, first
    if not first.same_as(flat.acc) or mentions(second, [flat.acc]):
        return None
    neutral = _FOLDS[kind]
    if neutral is not None and float(getattr(flat.init, "value", -1)) != neutral:
        return None
    return type(flat.value), second


def steps_of(expr: Any, variable: Any) -> list[int | None]:
    """The distance in memory between neighbours along an axis, for each load (None where there is none)."""
    found = [linear(load.indices[0], [variable]) for load in loads(expr)]
    return [None if item is None else item[0][0] for item in found]
