"""Windows where registers are few, as on 32-bit ARM: 16 vectors, 13 addresses, and no multiply-add takes a single lane.

What `rows` unrolls is a loop here, over the rows of the window: its body has the sums of a chunk of outputs, one row's
weights, and the address of one row of input at a time. Edges take no masks: a vector that reaches beyond the image is
loaded where it does not, and slid. `Body.hold` keeps LLVM to the order written here, in which the registers suffice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from edgesparse.kernels.builder import Body
from edgesparse.kernels.tiles import Run
from edgesparse.kernels.window import FIXED, Block, Window, cut_row, row_starts

#: Input vectors that are on their way to their sums.
_LOADED = 2
#: Output rows that are summed at a time, at most: each of their inputs has an address.
_ROWS = 2
#: Columns of a window from which there are rows beside each other, and inputs that are kept, for so few vectors only.
_WIDE, _FEW = 4, 2
#: Vectors of a panel that are on their way.
_COPIED = 4


@lru_cache(maxsize=4096)
def blocks(window: Window, lanes: int, sums: int) -> tuple[Block, ...]:
    """The cut of a band into chunks of at most `sums` vectors: of rows that fill none, several are one."""
    starts = row_starts(window.width_out, lanes)
    most = sums if window.kernel[1] < _WIDE else min(sums, _ROWS * _FEW)
    rows = max(1, min(window.rows, most // len(starts), _ROWS))
    repeat, rest = divmod(window.rows, rows)
    found = [Block(rows, 0, repeat, cut_row(window, starts, lanes, sums // rows))]
    if rest:
        found.append(Block(rest, window.rows - rest, 1, cut_row(window, starts, lanes, sums // rest)))
    return tuple(found)


@dataclass(frozen=True)
class Piece:
    """Output vectors that are summed at once: rows from `first` on (an expression), columns from `base + starts`."""

    window: Window
    first: Any
    base: Any
    rows: int
    starts: tuple[int, ...]

    @property
    def outputs(self) -> list[tuple[int, int]]:
        """(row, first column) of each, as in `rows.Chunk`."""
        return [(row, start) for row in range(self.rows) for start in self.starts]

    def row(self, index: int) -> Any:
        """The band's row of an output vector."""
        return self.first + self.outputs[index][0]

    def pixel(self, index: int) -> Any:
        """The band's pixel where an output vector starts."""
        row, start = self.outputs[index]
        return (self.first + row) * self.window.width_out + (self.base + start)


Step = Callable[[Any, Any], Any]
"""What becomes of a sum: (sum, input)."""


def sums(
    body: Body,
    window: Window,
    cut: tuple[Block, ...],
    lanes: int,
    channel: Any,
    begin: Callable[[], Any],
    tap: Callable[[Any, int], Step],
    *,
    near: bool = False,
) -> Iterator[tuple[Piece, Any]]:
    """The pieces of a channel with their sums, within the loops over them.

    `begin` gives what sums start with, `tap` what the inputs under row `ky` and column `kx` of the window do to them;
    for `near` see `seen`.
    """
    for block in cut:
        with body.loop(0, block.repeat) as index:
            first = body.let(index * block.rows + block.first)
            for run in block.runs:
                with body.loop(0, run.repeat) as tile:
                    piece = Piece(window, first, body.let(tile * run.step), block.rows, run.offsets)
                    found = body.registers(len(piece.outputs), lanes)
                    start = body.let(begin())
                    for at in range(len(piece.outputs)):
                        body.put(found, at, start)
                    with body.loop(0, body.rounds(window.kernel[0])) as ky:
                        _row(body, piece, lanes, channel, ky, found, tap, near)
                    yield piece, found


def _row(
    body: Body,
    piece: Piece,
    lanes: int,
    channel: Any,
    ky: Any,
    found: Any,
    tap: Callable[[Any, int], Step],
    near: bool,
) -> None:
    """One row of the window for all outputs of a piece."""
    window, met = piece.window, 0
    inputs = [(piece.first + row) * window.stride[0] + ky * window.dilation[0] for row in range(piece.rows)]
    sources = [start_of(body, window, body.let(at), channel) for at in inputs]
    for columns, again in _columns(window, piece.starts, lanes, near):
        if again:
            sources = [_anew(body, source) for source in sources]
        steps = [(kx, tap(ky, kx)) for kx in columns]
        for index, (row, start) in enumerate(piece.outputs):
            for kx, step in steps:
                x = seen(body, window, sources[row], start, piece.base, kx, lanes, near=near)
                if x is not None:
                    body.put(found, index, step(found[index], body.let(x)))
            met += len(columns)
            if met % _LOADED < len(columns):
                body.hold(found[index])


def start_of(body: Body, window: Window, at: Any, channel: Any) -> Any:
    """Where the band's input row `at` starts."""
    return body.let(body.args[FIXED + at] + channel * body.args[FIXED + window.rows_in + at])


def _anew(body: Body, source: Any) -> Any:
    """The same place, of which LLVM does not know that it is: offsets are not negative."""
    return body.let(source + body.T.shift_right(source, body.const(31)))


@dataclass(frozen=True)
class _Load:
    """How an input vector is loaded: from which column of its row on, and by how many lanes it is then slid right.

    `lane`: every second pixel, from this lane on; -1 where all are wanted. `apart`: pixel by pixel.
    """

    column: int
    slide: int = 0
    lane: int = -1
    apart: bool = False


def _load(window: Window, start: int, kx: int, lanes: int, *, near: bool) -> _Load | None:
    """What the outputs from column `start` on see under column `kx` of the window; None if that is nothing."""
    slide, step = _slide(window, start, kx, lanes), window.stride[1]
    if slide is None:
        return None
    first = start * step + kx * window.dilation[1] - window.left
    column = first + slide * step
    across = column < 0 or column + (lanes - 1) * step >= window.width_in
    if across or (near and slide and window.dilation[1] > 1) or (step > 1 and lanes == 1) or step > 2:
        return _Load(first, apart=True)
    if step == 1:
        return _Load(column, slide)
    # Pixels that are wanted without their neighbours are the second ones of pairs: LLVM takes a load apart whose last
    # pixel nobody wants.
    beside = next(group for group in _groups(window) if kx in group)
    alone = all(other == kx or _slide(window, start, other, lanes) != slide for other in beside)
    lane = 1 if alone and column else column % 2
    return _Load(column - lane, slide, lane)


def _slide(window: Window, start: int, kx: int, lanes: int) -> int | None:
    """By how many lanes the input of a vector of outputs must be slid right to be inside; None if all are outside."""
    mask = window.valid((0, start), (0, kx), lanes)
    return mask.index(True) or -mask[::-1].index(True) if any(mask) else None


def _groups(window: Window) -> list[list[int]]:
    """The window's columns, those together that come out of the same loads: with a stride of two, neighbours do."""
    step = 2 if window.stride[1] == 2 else 1
    found: dict[int, list[int]] = {}
    for kx in range(window.kernel[1]):
        found.setdefault((kx * window.dilation[1] - window.left) // step, []).append(kx)
    return list(found.values())


@lru_cache(maxsize=4096)
def _columns(window: Window, starts: tuple[int, ...], lanes: int, near: bool) -> list[tuple[list[int], bool]]:
    """`_groups`, and whether each loads much of what was loaded before: LLVM must not know that, or it keeps it."""
    found, known = [], set[int]()
    room = window.stride[1] == 1 and (window.kernel[1] < _WIDE or len(starts) <= _FEW)
    for group in _groups(window):
        loads = [_load(window, start, kx, lanes, near=near) for start in starts for kx in group]
        columns = {load.column for load in loads if load}
        again = len(columns & known) > (2 if room else 0)
        known = columns if again else known | columns
        found.append((group, again))
    return found


def seen(
    body: Body, window: Window, row: Any, start: int, base: Any, kx: int, lanes: int, *, near: bool = False
) -> Any | None:
    """The input under column `kx` of the window, of the row that starts at `row`, for the outputs from column
    `base + start` on; outside of the image zeros or, where `near`, a pixel that the same window sees, and if there is
    none minus infinity. None if all lanes are outside.
    """
    load, step = _load(window, start, kx, lanes, near=near), window.stride[1]
    if load is None:
        return None
    origin = row + base * step
    if load.apart:
        places = [load.column + lane * step for lane in range(lanes)]
        inside = [min(max(place, 0), window.width_in - 1) for place in places]
        mask = [place == clamped for place, clamped in zip(places, inside, strict=True)]
        value = body.gather("x", [origin + place for place in inside])
        value = body.where(mask, value, body.number(LOWEST if near else 0.0, lanes))
    elif load.lane < 0:
        value = body.load("x", origin + load.column, lanes)
    else:
        pairs = body.let(body.load("x", origin + load.column, 2 * lanes))
        value = body.lanes_of(pairs, range(load.lane, 2 * lanes, 2))
    return _slid(body, value, load.slide, lanes, near) if load.slide else value


def _slid(body: Body, value: Any, by: int, lanes: int, near: bool) -> Any:
    """A vector slid right by some lanes (left where they are less than none): zeros come in, or what was at the end."""
    value = body.let(value)
    if near:
        return body.pick(value, value, [min(max(lane - by, 0), lanes - 1) for lane in range(lanes)])
    zero = body.number(0.0, lanes)
    low, high, first = (zero, value, lanes - by) if by > 0 else (value, zero, -by)
    return body.pick(low, high, range(first, first + lanes))


#: What is less than any pixel.
LOWEST = float("-inf")


def panel(body: Body, window: Window, pitch: int, channel: Any, lanes: int, runs: Sequence[Run], planes: int) -> None:
    """A channel's windows, written row by row of the window and of the output: its vectors lie side by side in both.

    `runs` cut a row; of the window's columns `planes` at a time (pairs, as `_groups`), as each has an address.
    """
    (high, wide), starts = window.kernel, row_starts(window.width_out, lanes)
    first = body.let(channel * (high * wide * pitch))
    columns = _columns(window, starts, lanes, near=False)
    for at in range(0, len(columns), planes):
        with body.loop(0, high) as ky, body.loop(0, body.rounds(window.rows)) as row:
            start = start_of(body, window, body.let(row * window.stride[0] + ky * window.dilation[0]), channel)
            target = body.let(first + ky * (wide * pitch) + row * window.width_out)
            for run in runs:
                with body.repeated(run.repeat) as tile:
                    base = tile * run.step
                    here = start, target if run.repeat == 1 else body.let(target + base), base
                    _copy(body, window, columns[at : at + planes], run.offsets, here, pitch, lanes)


def _copy(
    body: Body,
    window: Window,
    columns: list[tuple[list[int], bool]],
    starts: tuple[int, ...],
    places: tuple[Any, Any, Any],
    pitch: int,
    lanes: int,
) -> None:
    """Some columns of the window for vectors of a row: `places` are its start, where it goes, and the first pixel."""
    (source, target, base), copied = places, 0
    for group, again in columns:
        if again:
            source = _anew(body, source)
        for start, kx in itertools.product(starts, group):
            x = seen(body, window, source, start, base, kx, lanes)
            x = body.let(body.number(0.0, lanes) if x is None else x)
            body.store("y", target + (kx * pitch + start), x, lanes)
            copied += 1
            if copied % _COPIED == 0:
                body.hold(x)
