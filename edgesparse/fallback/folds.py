"""Vector code for folds (sums, maxima, products of matrices): accumulators stay in registers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgesparse.fallback.flat import Flat, combiner, merged, steps_of
from edgesparse.fallback.nests import Axis
from edgesparse.fallback.rewrite import loads, steps_of_index, substitute

if TYPE_CHECKING:
    from edgesparse.fallback.emit import Scope


@dataclass(frozen=True)
class Plan:
    """How a fold becomes vectors.

    ``across``: lanes are neighbouring results, along the axis `vector`. ``along``: lanes are partial results along the
    reduction axis `vector`, joined at the end. Else scalar. `tile` is an axis of results that share loads.
    """

    mode: str
    vector: Axis | None = None
    tile: Axis | None = None

    @property
    def kept(self) -> list[Axis]:
        """Axes of results that must stay inside of row loops."""
        across = [self.vector] if self.mode == "across" else []
        return [axis for axis in (*across, self.tile) if axis is not None]


def fold_plan(flat: Flat, width: int) -> Plan:
    """Choose lanes across results if they are contiguous, else along the reduction, else gather across."""
    across: list[tuple[int, Axis]] = []
    for axis in flat.axes:
        if axis.extent >= max(4, width // 2) and steps_of_index(flat.index, axis.var) == 1:
            across.append((sum(step not in (0, 1) for step in steps_of(flat.value, axis.var)), axis))
    best = min(across, key=lambda item: (item[0], -item[1].extent), default=None)
    if best and best[0] == 0:
        return Plan("across", best[1], _shared(flat, best[1]))
    for axis in flat.reduce:
        steps = steps_of(flat.value, axis.var)
        if axis.extent >= width and combiner(flat) and 1 in steps and set(steps) <= {0, 1}:
            return Plan("along", axis, _shared(flat, axis))
    if best:
        return Plan("across", best[1], _shared(flat, best[1]))
    return Plan("plain")


def _shared(flat: Flat, vector: Axis) -> Axis | None:
    """An axis of results along which the loads that vary in the lanes stay the same."""
    variables = [load for load in loads(flat.value) if steps_of_index(load.indices[0], vector.var) != 0]
    best = None
    for axis in flat.axes:
        if axis is vector or axis.extent < 2:
            continue
        if any(steps_of_index(load.indices[0], axis.var) == 0 for load in variables):
            best = axis if best is None or axis.extent >= best.extent else best
    return best


def emit_fold(scope: Scope, flat: Flat, parallel: bool) -> None:
    """Emit a fold after its plan."""
    flat = merged(flat)
    plan = fold_plan(flat, scope.width)
    outer = [axis for axis in flat.axes if axis not in plan.kept]
    if plan.mode == "plain":
        with scope.serial(outer, parallel and bool(outer)) as at:
            _Tile(scope, flat, at, plan, 0).run([1])
        return
    with scope.serial(outer, parallel and bool(outer)) as at:
        tiled = parallel and not outer
        if plan.mode == "across":
            _rows(scope, plan.tile, scope.tile[0], tiled, lambda base, rows: _across(scope, flat, plan, at, base, rows))
        else:
            rows = min(4, scope.tile[0]) if plan.tile else 1
            _rows(scope, plan.tile, rows, tiled, lambda base, rows: _along(scope, flat, plan, at, base, rows))


def _rows(scope: Scope, axis: Axis | None, most: int, parallel: bool, body: Callable[[Any, int], None]) -> None:
    """Call `body(first, count)` for tiles of an axis: full ones in a loop (or the caller's range), then the rest."""
    T = scope.T
    if axis is None:
        body(T.int32(0), 1)
        return
    most = min(most, axis.extent)
    full, rest = divmod(axis.extent, most)
    if not parallel:
        with scope.loop(0, full) as tile:
            body(tile * most, most)
        if rest:
            body(T.int32(full * most), rest)
        return
    scope.extent = full + bool(rest)
    with scope.loop(scope.begin, scope.end) as tile:
        if not rest:
            body(tile * most, most)
            return
        with T.If(tile < full):
            with T.Then():
                body(tile * most, most)
            with T.Else():
                body(T.int32(full * most), rest)


def _across(scope: Scope, flat: Flat, plan: Plan, at: Mapping[Any, Any], base: Any, rows: int) -> None:
    assert plan.vector is not None
    T = scope.T
    at = dict(at)
    lanes = scope.lanes(str(flat.acc.ty.dtype))
    vectors, rest = divmod(plan.vector.extent, lanes)
    most = scope.tile[1] if rows > 1 or scope.form.tile else max(scope.tile[1], 4)
    blocks, left = divmod(vectors, most)
    if blocks:
        with scope.loop(0, blocks) as block:
            tile = _Tile(scope, flat, at, plan, base, block * (most * lanes))
            tile.run([lanes] * most, rows)
    widths = [lanes] * left + scope.tails(rest, str(flat.target.dtype), str(flat.acc.ty.dtype))
    start = blocks * most * lanes
    while widths:
        now, widths = widths[:most], widths[most:]
        _Tile(scope, flat, at, plan, base, T.int32(start)).run(now, rows)
        start += sum(now)


class _Tile:
    """Accumulators of a tile of results, `rows` by several vectors, through the whole reduction."""

    def __init__(self, scope: Scope, flat: Flat, at: Mapping[Any, Any], plan: Plan, base: Any, start: Any = 0) -> None:
        self.scope, self.flat, self.at, self.plan = scope, flat, dict(at), plan
        self.base, self.start = base, start

    def _places(self, widths: Sequence[int], rows: int) -> list[tuple[int, int, int]]:
        """Row, first lane and width of each accumulator."""
        found = []
        for row in range(rows):
            lane = 0
            for width in widths:
                found.append((row, lane, width))
                lane += width
        return found

    def _at(self, row: int, lane: Any) -> dict[Any, Any]:
        at = dict(self.at)
        if self.plan.tile is not None:
            at[self.plan.tile.var] = self.base + row
        if self.plan.vector is not None:
            at[self.plan.vector.var] = self.start + lane
        return at

    def run(self, widths: Sequence[int], rows: int = 1) -> None:
        T, scope, flat = self.scope.T, self.scope, self.flat
        pitch = sum(widths)
        places = self._places(widths, rows)
        acc = T.alloc_buffer((rows * pitch,), str(flat.acc.ty.dtype), scope="local")
        for row, first, width in places:
            with scope.vector(width) as lane:
                T.buffer_store(acc, flat.init, [row * pitch + first + lane])
        with scope.serial(flat.reduce) as inner:
            for row, first, width in places:
                with scope.vector(width) as lane:
                    cell = row * pitch + first + lane
                    at = {**self._at(row, first + lane), **inner, flat.acc: acc[cell]}
                    T.buffer_store(acc, substitute(flat.value, at), [cell])
        for row, first, width in places:
            with scope.vector(width) as lane:
                at = {**self._at(row, first + lane), flat.acc: acc[row * pitch + first + lane]}
                T.buffer_store(flat.target, substitute(flat.finish, at), [substitute(flat.index, at)])


def _along(scope: Scope, flat: Flat, plan: Plan, at: Mapping[Any, Any], base: Any, rows: int) -> None:
    """Partial results in lanes, `rows` results at once, several vectors of each to hide latency."""
    assert plan.vector is not None
    found = combiner(flat)
    assert found is not None
    operation, operand = found
    T, axis = scope.T, plan.vector
    dtype = str(flat.acc.ty.dtype)
    lanes = min(scope.lanes(dtype), 1 << (axis.extent.bit_length() - 1))
    streams = scope.form.tile[1] if scope.form.tile else 4 if rows == 1 else 2
    unroll = max(1, min(streams, axis.extent // lanes))
    pitch = unroll * lanes
    acc = T.alloc_buffer((rows * pitch,), dtype, scope="local")

    def step(row: int, vector: int, width: int, first: Any, inner: Mapping[Any, Any]) -> None:
        with scope.vector(width) as lane:
            cell = row * pitch + vector * lanes + lane
            here = {**at, **inner, axis.var: first + lane}
            if plan.tile is not None:
                here[plan.tile.var] = base + row
            T.buffer_store(acc, operation(acc[cell], substitute(operand, here)), [cell])

    for cell in range(0, rows * pitch, lanes):
        with scope.vector(lanes) as lane:
            T.buffer_store(acc, flat.init, [cell + lane])
    blocks, left = divmod(axis.extent, pitch)
    with scope.serial([other for other in flat.reduce if other is not axis]) as inner:
        with scope.loop(0, blocks) as block:
            for row in range(rows):
                for vector in range(unroll):
                    step(row, vector, lanes, block * pitch + vector * lanes, inner)
        for row in range(rows):
            for vector in range(left // lanes):
                step(row, vector, lanes, T.int32(blocks * pitch + vector * lanes), inner)
            if left % lanes:
                step(row, 0, left % lanes, T.int32(axis.extent - left % lanes), inner)
    for row in range(rows):
        _joined(scope, acc, row * pitch, (unroll, lanes), operation)
        here = {**at, flat.acc: acc[row * pitch]}
        if plan.tile is not None:
            here[plan.tile.var] = base + row
        T.buffer_store(flat.target, substitute(flat.finish, here), [substitute(flat.index, here)])


def _joined(scope: Scope, acc: Any, first: int, shape: tuple[int, int], operation: Callable[..., Any]) -> None:
    """All lanes of one result into its first lane: vectors pairwise, then halves."""
    T = scope.T
    unroll, lanes = shape
    for vector in range(1, unroll):
        with scope.vector(lanes) as lane:
            cell = first + lane
            T.buffer_store(acc, operation(acc[cell], acc[cell + vector * lanes]), [cell])
    half = lanes // 2
    while half:
        with scope.vector(half) as lane:
            cell = first + lane
            T.buffer_store(acc, operation(acc[cell], acc[cell + half]), [cell])
        half //= 2
