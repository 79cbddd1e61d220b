"""Fused TIR functions as a list of loop nests, and what is decided on nests: inlining, epilogues, rows.

Relax hands over functions whose root block is a sequence of simple blocks: loops around one store, with an initial
value where some loops reduce. Nothing but the bodies matters; loops are made anew by `edgesparse.fallback.emit`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edgesparse.fallback.rewrite import cost, loads, mentions, narrowed, substitute

#: Bytes that row-local intermediates may take on the stack, all together.
STACK = 16384

#: The largest finite numbers.
_LARGEST = {"float16": 65504.0, "float32": 3.4028234e38, "float64": 1.7976931348623157e308}


@dataclass(frozen=True)
class Axis:
    """A loop: an int32 variable from 0 to `extent`."""

    var: Any
    extent: int


@dataclass(frozen=True)
class Store:
    """One assignment ``buffer[indices] = value``; `init` is the value before the first reduction step."""

    buffer: Any
    indices: tuple[Any, ...]
    value: Any
    init: Any = None


@dataclass(frozen=True)
class Nest:
    """Loops around stores. `lets` are bound before the stores, so that stores see old values."""

    axes: tuple[Axis, ...]
    reduce: tuple[Axis, ...]
    stores: tuple[Store, ...]
    lets: tuple[tuple[Any, Any], ...] = ()
    #: A map that follows a reduction on each finished element: the store, and the variable for the element in it.
    epilogue: tuple[Store, Any] | None = None

    @property
    def steps(self) -> int:
        return math.prod(axis.extent for axis in (*self.axes, *self.reduce))

    @property
    def is_map(self) -> bool:
        return not self.reduce and len(self.stores) == 1 and not self.lets

    @property
    def is_fold(self) -> bool:
        return bool(self.reduce) and len(self.stores) == 1 and not self.lets

    @property
    def written(self) -> tuple[Any, ...]:
        return (self.epilogue[0].buffer,) if self.epilogue else tuple(store.buffer for store in self.stores)

    def reads(self) -> list[Any]:
        """All loads but those of its own accumulator."""
        own = [store.buffer for store in self.stores] if self.reduce else []
        values = [store.value for store in self.stores] + [value for _, value in self.lets]
        values += [self.epilogue[0].value] if self.epilogue else []
        found = [load for value in values for load in loads(value)]
        return [load for load in found if not any(load.source.same_as(buffer) for buffer in own)]


@dataclass(frozen=True)
class Raw:
    """A stage that is no nest: its statement as it is."""

    statement: Any


@dataclass(frozen=True)
class Function:
    """What a fused function does: parameters in order, intermediate buffers, nests in order.

    Where one stage is no nest, `raw` holds all stages in order, and there are no nests.
    """

    params: tuple[Any, ...]
    temps: tuple[Any, ...]
    nests: tuple[Nest, ...]
    raw: tuple[Nest | Raw, ...] = ()


@dataclass(frozen=True)
class Group:
    """Nests that run row by row: their first `depth` axes are one set of loops."""

    nests: tuple[Nest, ...]
    depth: int
    #: Intermediates that live within one row, on the stack.
    local: tuple[Any, ...] = field(default=())


class NotSimple(Exception):
    """A stage or function of a form that is not foreseen."""


def shape_of(buffer: Any) -> tuple[int, ...]:
    return tuple(int(dim) for dim in buffer.shape)


def size_of(buffer: Any, skip: int = 0) -> int:
    """Bytes of a buffer, or of one row of it when `skip` leading dimensions are fixed."""
    import numpy as np

    return int(math.prod(shape_of(buffer)[skip:]) * np.dtype(str(buffer.dtype)).itemsize)


def parse(func: Any) -> Function:
    """Read a PrimFunc whose root block is a sequence of stages. Raises NotSimple for anything else."""
    root = getattr(func.body, "block", None)
    if root is None:
        raise NotSimple("no root block")
    stages = list(root.body.seq) if hasattr(root.body, "seq") else [root.body]
    nests: list[Nest] = []
    mixed: list[Nest | Raw] = []
    for stage in stages:
        try:
            nests.append(_nest(stage))
            mixed.append(nests[-1])
        except NotSimple:
            mixed.append(Raw(stage))
    params, temps = tuple(func.params), tuple(root.alloc_buffers)
    if len(nests) < len(stages):
        return Function(params, temps, (), tuple(mixed))
    return Function(params, temps, tuple(nests))


def _nest(stage: Any) -> Nest:
    from tvm import tirx

    loops: dict[Any, int] = {}
    while type(stage).__name__ == "For":
        if int(stage.kind) != int(tirx.ForKind.SERIAL) or int(stage.min) != 0:
            raise NotSimple("a loop that is not serial")
        loops[stage.loop_var] = int(stage.extent)
        stage = stage.body
    if type(stage).__name__ != "SBlockRealize" or stage.block.alloc_buffers:
        raise NotSimple("no block in the loops")
    if type(stage.predicate).__name__ != "IntImm" or not int(stage.predicate):
        raise NotSimple("a predicate")
    block = stage.block
    axes: list[Axis] = []
    reduce: list[Axis] = []
    fresh: dict[Any, Any] = {}
    for iter_var, value in zip(block.iter_vars, stage.iter_values, strict=True):
        if value not in loops:
            if type(value).__name__ != "IntImm" or int(value) != 0:
                raise NotSimple("an axis that is not a loop")
            fresh[iter_var.var] = tirx.IntImm("int32", 0)
            continue
        axis = Axis(tirx.Var(f"i{len(fresh)}", "int32"), loops[value])
        fresh[iter_var.var] = axis.var
        (reduce if int(iter_var.iter_type) == 2 else axes).append(axis)
    return _body(block, tuple(axes), tuple(reduce), fresh)


def _body(block: Any, axes: tuple[Axis, ...], reduce: tuple[Axis, ...], fresh: Mapping[Any, Any]) -> Nest:
    statements = list(block.body.seq) if hasattr(block.body, "seq") else [block.body]
    inits = [] if block.init is None else list(block.init.seq) if hasattr(block.init, "seq") else [block.init]
    lets, stores = [], []
    for statement in statements:
        kind = type(statement).__name__
        if kind == "Bind":
            lets.append((statement.var, narrowed(statement.value, fresh)))
        elif kind == "BufferStore":
            init = next((_widest(s.value) for s in inits if s.buffer.same_as(statement.buffer)), None)
            indices = _indices(statement.buffer, statement.indices, fresh)
            stores.append(Store(statement.buffer, indices, narrowed(statement.value, fresh), init))
        else:
            raise NotSimple(f"a {kind} in a block")
    if reduce and any(store.init is None for store in stores):
        raise NotSimple("a reduction without initial value")
    return Nest(axes, reduce, tuple(stores), tuple(lets))


def _widest(init: Any) -> Any:
    """A first value for maxima and minima that is below, or above, all others: TVM takes the largest finite number."""
    from tvm import tirx

    kind = str(init.ty.dtype)
    if type(init).__name__ == "FloatImm" and abs(float(init.value)) >= _LARGEST.get(kind, math.inf):
        return tirx.const(math.copysign(math.inf, float(init.value)), kind)
    return init


def _indices(buffer: Any, indices: Sequence[Any], fresh: Mapping[Any, Any]) -> tuple[Any, ...]:
    from tvm import tirx

    return tuple(narrowed(tirx.BufferLoad(buffer, list(indices)), fresh).indices)


def optimise(function: Function) -> Function:
    """Inline cheap intermediates, and let reductions finish their elements."""
    nests = list(function.nests)
    temps = list(function.temps)
    position = 0
    while position < len(nests):
        made = _inlined(nests, position, temps)
        if made is None:
            position += 1
            continue
        temps = [temp for temp in temps if not temp.same_as(nests[position].written[0])]
        nests = made
    position = 0
    while position + 1 < len(nests):
        fused = _finished(nests, position, temps)
        if fused is not None:
            temps = [temp for temp in temps if not temp.same_as(nests[position].written[0])]
            nests[position : position + 2] = [fused]
        else:
            position += 1
    return replace(function, nests=tuple(nests), temps=tuple(temps))


def _readers(nests: Sequence[Nest], buffer: Any) -> list[tuple[int, int]]:
    """Which nests read a buffer, and in how many loads."""
    counts = [(i, sum(load.source.same_as(buffer) for load in nest.reads())) for i, nest in enumerate(nests)]
    return [(i, count) for i, count in counts if count]


def _identity(nest: Nest, store: Store) -> bool:
    """Whether a store writes its axes in order, element by element."""
    axes = iter(nest.axes)
    for index in store.indices:
        if type(index).__name__ == "Var":
            axis = next(axes, None)
            if axis is None or not index.same_as(axis.var):
                return False
        elif type(index).__name__ != "IntImm":
            return False
    return next(axes, None) is None


def _inlined(nests: list[Nest], position: int, temps: Sequence[Any]) -> list[Nest] | None:
    """The nests with the map at `position` computed where it is read, if that pays."""
    nest = nests[position]
    if not nest.is_map or not any(temp.same_as(nest.written[0]) for temp in temps):
        return None
    store = nest.stores[0]
    if not _identity(nest, store) or any(nest.written[0].same_as(other.written[0]) for other in nests[:position]):
        return None
    readers = _readers(nests, store.buffer)
    evaluations = sum(nests[i].steps * count for i, count in readers)
    pays = evaluations <= nest.steps or (
        cost(store.value) == 0 and all(nests[i].is_map or nests[i].steps <= 2 * nest.steps for i, _ in readers)
    )
    if not readers or not pays or any(not (nests[i].is_map or nests[i].is_fold) for i, _ in readers):
        return None

    def load(buffer: Any, indices: list[Any]) -> Any:
        if not buffer.same_as(store.buffer):
            return None
        at = {own: given for own, given in zip(store.indices, indices, strict=True) if type(own).__name__ == "Var"}
        return substitute(store.value, at)

    made = list(nests)
    for i, _ in readers:
        stores = tuple(replace(s, value=substitute(s.value, {}, load)) for s in made[i].stores)
        made[i] = replace(made[i], stores=stores)
    del made[position]
    return made


def _finished(nests: Sequence[Nest], position: int, temps: Sequence[Any]) -> Nest | None:
    """The reduction at `position` with the following map as its epilogue, where the map reads nothing else of it."""
    from tvm import tirx

    fold, after = nests[position], nests[position + 1]
    if not fold.is_fold or fold.epilogue or not after.is_map:
        return None
    store, then = fold.stores[0], after.stores[0]
    if not any(temp.same_as(store.buffer) for temp in temps) or not _identity(fold, store):
        return None
    extents = [axis.extent for axis in fold.axes]
    if extents != [axis.extent for axis in after.axes] or len(_readers(nests, store.buffer)) != 1:
        return None
    own = [load for load in loads(then.value) if load.source.same_as(store.buffer)]
    var_of = {a.var: b.var for a, b in zip(after.axes, fold.axes, strict=True)}
    element = tirx.Var("element", str(store.buffer.dtype))
    for load in own:
        moved = [substitute(index, var_of) for index in load.indices]
        if not all(_equal(a, b) for a, b in zip(moved, store.indices, strict=True)):
            return None

    def replaced(buffer: Any, indices: list[Any]) -> Any:
        return element if buffer.same_as(store.buffer) else None

    value = substitute(then.value, var_of, replaced)
    indices = tuple(substitute(index, var_of) for index in then.indices)
    return replace(fold, epilogue=(Store(then.buffer, indices, value), element))


def _equal(a: Any, b: Any) -> bool:
    if type(a).__name__ == "IntImm" and type(b).__name__ == "IntImm":
        return int(a.value) == int(b.value)
    return bool(a.same_as(b))


def group(function: Function, keep: Mapping[int, int], stack: int = STACK) -> list[Group]:
    """Put all nests in one set of row loops where dependences allow it, else each in a group of its own.

    `keep` says for a nest how many of its leading axes may become row loops at most (its vectors need the rest);
    `stack` how many bytes of intermediates may lie there.
    """
    nests = function.nests
    if len(nests) == 1:
        return [Group(nests, 0)]
    most = max(len(nest.axes) + len(nest.reduce) for nest in nests) - 1
    limit = min([most, *(len(nest.axes) for nest in nests), *keep.values()])
    for depth in range(limit, 0, -1):
        if _rows(nests, depth):
            return [Group(nests, depth, _local(function, depth, stack))]
    return [Group((nest,), 0) for nest in nests]


def _rows(nests: Sequence[Nest], depth: int) -> bool:
    extents = [axis.extent for axis in nests[0].axes[:depth]]
    written: list[Any] = []
    for nest in nests:
        if [axis.extent for axis in nest.axes[:depth]] != extents:
            return False
        rows = [axis.var for axis in nest.axes[:depth]]
        for load in nest.reads():
            if any(load.source.same_as(buffer) for buffer in written) and not _leads(load.indices, rows):
                return False
        stores = [*nest.stores, *([nest.epilogue[0]] if nest.epilogue else [])]
        for store in stores:
            if not _leads(store.indices, rows):
                return False
            written.append(store.buffer)
    return True


def _leads(indices: Sequence[Any], rows: Sequence[Any]) -> bool:
    """Whether the first indices are exactly the row variables, and the others do not mention them."""
    if len(indices) < len(rows):
        return False
    first = all(index.same_as(row) for index, row in zip(indices, rows, strict=False))
    return first and not any(mentions(index, rows) for index in indices[len(rows) :])


def _local(function: Function, depth: int, room: int) -> tuple[Any, ...]:
    local = []
    for temp in sorted(function.temps, key=lambda temp: size_of(temp, depth)):
        room -= max(64, size_of(temp, depth))
        if room >= 0:
            local.append(temp)
    return tuple(local)
