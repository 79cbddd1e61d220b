"""From nests to a TIR function with vector loops and the plain C ABI."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from edgesparse.fallback import flat as flats
from edgesparse.fallback.folds import emit_fold, fold_plan
from edgesparse.fallback.maps import emit_map
from edgesparse.fallback.nests import STACK, Axis, Function, Group, Nest, Raw, Store, group, shape_of, size_of
from edgesparse.fallback.raw import emit_raw
from edgesparse.fallback.rewrite import substitute
from edgesparse.kernels.builder import fence


@dataclass(frozen=True)
class Kernel:
    """A finished function without a name yet: ``void (p0 .., workspaces .., a, begin, end)``."""

    func: Any
    #: Bytes of each workspace, the pointers after the parameters.
    workspaces: tuple[int, ...]
    #: Extent of the parallel axis: the range of a whole call is ``[0, extent)``.
    extent: int
    #: To be compiled by `codegen.plain`.
    plain: bool = False


@dataclass(frozen=True)
class Form:
    """How much a kernel does at a time: what it computes is the same in all forms, to rounding.

    Attributes
    ----------
    lanes:
        float32 values in a vector; 1 for no vectors.
    tile:
        Rows and vectors of sums that a fold holds at once; None for as many as fill the registers.
    barrier:
        The no-op that ends every round of a loop (see `Target.barrier`), of whose number of rounds LLVM is not told
        either: it neither unrolls the loop nor mixes its rounds. Empty for none.
    stack:
        Bytes that rows of intermediates may take on the stack; the others are workspaces of the caller.
    plain:
        To be compiled by `codegen.plain`.
    apart:
        What is dear in maps has loops of its own (see `fallback.apart`).
    """

    lanes: int
    tile: tuple[int, int] | None = None
    barrier: str = ""
    stack: int = STACK
    plain: bool = False
    apart: bool = False

    def modest(self, barrier: str) -> Iterator[Form]:
        """This form, then those that take fewer and fewer registers."""
        yield self
        yield (fenced := replace(self, barrier=barrier))
        yield (bare := replace(fenced, stack=0))
        yield (plain := replace(bare, plain=True))
        yield (narrow := replace(plain, tile=(1, 1)))
        yield replace(narrow, lanes=2)
        yield (single := replace(narrow, lanes=1))
        yield replace(single, apart=True)


class Scope:
    """What the emitters share: the IR builder, the form, and the range that the caller gives."""

    def __init__(self, form: Form, begin: Any, end: Any, most: int) -> None:
        from tvm.tirx.script import builder

        self.T = builder
        self.form, self.width = form, form.lanes
        self.begin, self.end = begin, end
        #: Zero, as no range has more than `most` elements; LLVM thinks that it may be many things.
        self.nothing = begin >> max(24, most.bit_length())
        self.extent = 1
        self.rows: dict[Any, int] = {}

    def lanes(self, dtype: str) -> int:
        """Elements of a type in one vector."""
        import numpy as np

        if self.width == 1:
            return 1
        size = 1 if dtype == "bool" else np.dtype(dtype).itemsize
        return max(2, self.width * 4 // max(size, 2 if size == 1 else size))

    def tails(self, count: int, *dtypes: str) -> list[int]:
        """Lanes of the vectors for fewer elements, of some types, than a whole one has.

        Small elements are taken by powers of two: of three int64 made uint8, LLVM loses two on 64-bit ARM.
        """
        import numpy as np

        if all(dtype != "bool" and np.dtype(dtype).itemsize >= 4 for dtype in dtypes):
            return [count] if count else []
        return [1 << bit for bit in reversed(range(count.bit_length())) if count >> bit & 1]

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and vectors of accumulators that fit in the registers."""
        return self.form.tile or {16: (8, 3), 8: (6, 2)}.get(self.width, (4, 2))

    @contextmanager
    def serial(self, axes: Sequence[Axis], parallel: bool = False) -> Iterator[dict[Any, Any]]:
        """Loops over axes, outermost first; yields the new variables. The first may run over the caller's range."""
        with ExitStack() as stack:
            at: dict[Any, Any] = {}
            for position, axis in enumerate(axes):
                if parallel and position == 0:
                    self.extent = axis.extent
                    at[axis.var] = stack.enter_context(self.loop(self.begin, self.end))
                else:
                    at[axis.var] = stack.enter_context(self.loop(0, axis.extent))
            yield at

    @contextmanager
    def loop(self, begin: Any, end: Any) -> Iterator[Any]:
        """A loop; yields its variable."""
        if self.form.barrier and isinstance(end, int):
            end = self.T.max(self.T.int32(end) + self.nothing, self.T.int32(1))
        with self.T.serial(begin, end) as index:
            yield index
            fence(self.T, self.form.barrier)

    @contextmanager
    def vector(self, lanes: int) -> Iterator[Any]:
        """A vectorised loop; its variable, or 0 where there is one lane only."""
        if lanes == 1:
            yield self.T.int32(0)
        else:
            with self.T.vectorized(0, lanes) as lane:
                yield lane


def emit(function: Function, form: Form) -> Kernel:
    """Schedule a function: nests in row loops where possible, vectors inside, one parallel axis where simple."""
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx.script import builder as T

    groups = _groups(function, form) if function.nests else []
    local = {temp: item.depth for item in groups for temp in item.local}
    spilled = [temp for temp in function.temps if temp not in local]
    with IRBuilder() as build, T.prim_func():
        T.func_name("kernel")
        T.func_attr({"tirx.noalias": True})
        buffers = [*function.params, *spilled]
        handles = [T.arg(f"p{i}", T.handle(str(b.dtype))) for i, b in enumerate(buffers)]
        T.arg("a", T.handle("int32"))
        most = max((_elements(buffer) for buffer in (*function.params, *function.temps)), default=1)
        scope = Scope(form, T.arg("begin", T.int32()), T.arg("end", T.int32()), most)
        made = {
            buffer: T.decl_buffer((_elements(buffer),), str(buffer.dtype), data=handle)
            for buffer, handle in zip(buffers, handles, strict=True)
        }
        for item in groups:
            _emit_group(scope, item, made, local, len(groups) == 1)
        for stage in function.raw:
            if isinstance(stage, Raw):
                emit_raw(scope, stage, made)
            else:
                _emit_nest(scope, stage, 0, {}, (made, {}), False)
    return Kernel(build.get(), tuple(size_of(temp) for temp in spilled), scope.extent, form.plain)


def _elements(buffer: Any, skip: int = 0) -> int:
    count = 1
    for dim in shape_of(buffer)[skip:]:
        count *= dim
    return count


def _groups(function: Function, form: Form) -> list[Group]:
    from tvm import tirx

    if form.apart:
        return [Group((nest,), 0) for nest in function.nests]
    plain = {
        buffer: tirx.decl_buffer((_elements(buffer),), str(buffer.dtype))
        for buffer in (*function.params, *function.temps)
    }
    keep: dict[int, int] = {}
    for number, nest in enumerate(function.nests):
        if nest.is_fold:
            flat = flats.flatten(nest, plain, {})
            used = [axis for axis in fold_plan(flat, form.lanes).kept if axis in nest.axes]
            if used:
                keep[number] = min(nest.axes.index(axis) for axis in used)
    groups = group(function, keep, form.stack)
    if len(function.nests) == 1 and function.nests[0].is_map:
        flat = flats.flatten(function.nests[0], plain, {})
        cut = flats.cuts(flat)
        uncut = next((i for i, axis in enumerate(flat.axes) if axis.var in cut), 0)
        if len(flats.boxes(flat)) > 1:
            return [replace(groups[0], depth=uncut)]
    return groups


def _emit_group(scope: Scope, item: Group, made: Mapping[Any, Any], local: Mapping[Any, int], alone: bool) -> None:
    from tvm import tirx

    rows = [axis for axis in item.nests[0].axes[: item.depth] if axis.extent > 1]
    with scope.serial(rows, parallel=alone and bool(rows)) as at:
        inside = dict(made)
        for temp in item.local:
            inside[temp] = scope.T.alloc_buffer((_elements(temp, item.depth),), str(temp.dtype), scope="local")
        for nest in item.nests:
            fixed = {}
            for own, first in zip(nest.axes[: item.depth], item.nests[0].axes, strict=False):
                fixed[own.var] = at.get(first.var, tirx.IntImm("int32", 0))
            _emit_nest(scope, nest, item.depth, fixed, (inside, local), alone and not rows and len(item.nests) == 1)


def _emit_nest(
    scope: Scope,
    nest: Nest,
    depth: int,
    fixed: Mapping[Any, Any],
    buffers: tuple[Mapping[Any, Any], Mapping[Any, int]],
    parallel: bool,
) -> None:
    if not (nest.is_map or nest.is_fold):
        _emit_plain(scope, nest, depth, fixed, buffers)
        return
    flat = flats.flatten(nest, *buffers).with_vars(fixed)
    flat = replace(flat, axes=nest.axes[depth:])
    if nest.is_fold:
        emit_fold(scope, flat, parallel)
        return
    pieces = flats.boxes(flat)
    for piece in pieces:
        emit_map(scope, flats.merged(piece), parallel and len(pieces) == 1)


def _emit_plain(
    scope: Scope,
    nest: Nest,
    depth: int,
    fixed: Mapping[Any, Any],
    buffers: tuple[Mapping[Any, Any], Mapping[Any, int]],
) -> None:
    """Several stores at once (arg-max): loops as they come, accumulators in memory."""
    T = scope.T
    extents = {axis.var: axis.extent for axis in (*nest.axes, *nest.reduce)}

    def stored(store: Store, at: Mapping[Any, Any]) -> Store:
        flat = flats.flat_store(store, *buffers, extents)
        return Store(flat.buffer, (substitute(flat.indices[0], at),), substitute(flat.value, at), flat.init)

    with scope.serial(nest.axes[depth:]) as outer:
        at = {**fixed, **outer}
        for store in nest.stores if nest.reduce else ():
            flat = stored(store, at)
            T.buffer_store(flat.buffer, flat.init, list(flat.indices))
        with scope.serial(nest.reduce) as inner:
            at = {**at, **inner}
            for var, value in nest.lets:
                named = Store(nest.stores[0].buffer, nest.stores[0].indices, value)
                at[var] = T.Bind(stored(named, at).value)
            for store in nest.stores:
                flat = stored(store, at)
                T.buffer_store(flat.buffer, flat.value, list(flat.indices))
