"""The rows that windows slide over: chunks of a band's outputs, and the input vectors that each of their taps sees.

How a band is cut is `window`'s. Input rows are found through a table of offsets, one for each input row that the band
needs, so the rows may lie in any band of any ring buffer, and a row outside the image is a row of zeros. Columns
outside the image are masked lanes, constant at compile time: no padding columns exist anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from edgesparse.kernels.builder import Body
from edgesparse.kernels.epilogue import Epilogue
from edgesparse.kernels.window import FIXED, Block, Window

#: Rows whose addresses may stay in registers from channel to channel, and rows whose addresses may do so at all.
_ROWS_KEPT, _MOST_KEPT = 7, 12
#: Multiply-adds of an output row between two fences; half as many where inputs come in halves.
_AT_ONCE = 36

Uses = list[tuple[int, int]]
"""Of an input vector: the (output of the chunk, tap) that see it."""


class Chunk:
    """Some output vectors of a band that are summed at once: their places, and the inputs they see.

    Attributes
    ----------
    outputs:
        (row, first column) of each vector as the masks see them: a place inside of the image stands for all that a
        loop brings there.
    by:
        An index that changes from chunk to chunk or, where they are unrolled, from channel to channel.
    """

    def __init__(self, rows: _Rows, first: Any, base: Any, count: int, starts: tuple[int, ...], by: Any) -> None:
        self.rows, self.first, self.base, self.starts = rows, first, base, starts
        self.by = by
        self.count = count
        self.outputs = [(row, start) for row in range(count) for start in starts]

    def row(self, index: int) -> Any:
        """The band's row of an output vector."""
        return self.first + self.outputs[index][0]

    def distance(self, index: int) -> int:
        """Pixels from where the first output vector starts to where another does."""
        (row, start), (_, first) = self.outputs[index], self.outputs[0]
        return row * self.rows.window.width_out + start - first

    def pixel(self, index: int) -> Any:
        """The band's pixel where an output vector starts."""
        row, start = self.outputs[index]
        return (self.first + row) * self.rows.window.width_out + (self.base + start)

    def inputs(
        self, fill: float = 0.0, *, by_column: bool = False
    ) -> Iterator[tuple[Any | None, list[tuple[int, int]]]]:
        """Each input vector once, with the (output, tap) that see it; None where all of its lanes are outside.

        Every output meets its taps in ascending order, however the band was cut: sums are the same to the bit.
        `by_column`: all taps of a column follow one another, for weights that stay in registers.
        """
        window, width = self.rows.window, self.rows.window.kernel[1]
        if window.flat:
            for tap, place in enumerate(window.taps):
                if place[1] == 0:
                    self.rows.body.fence()
                    shift = self.rows.body.hidden(0, self.by)
                for index, start in enumerate(self.starts):
                    yield self.rows.pixels(start, place, fill, shift), [(index, tap)]
            return
        for at, uses in window.seen(self.count):
            self.rows.body.fence()
            columns: dict[int, Any] = {}
            places = [(kx, n) for kx in range(width) for n in range(len(self.starts))]
            for done, (kx, n) in enumerate(sorted(places, key=lambda place: place[::-1]) if by_column else places):
                if done and done % (width * max(_AT_ONCE // (width**2 * window.stride[1]), 1)) == 0:
                    self.rows.body.fence()
                if self.rows.slide:
                    x = self.rows.slid(at, n, self.starts, self.base, kx, columns)
                else:
                    x = self.rows.vector(at, self.starts[n], self.base, kx, fill, columns)
                yield x, [(row * len(self.starts) + n, ky * width + kx) for row, ky in uses]

    def taps(self, fill: float = 0.0) -> Iterator[tuple[int, int, Any | None]]:
        """(tap, output, input vector), tap after tap: the order in which a panel is written."""
        window = self.rows.window
        for tap, (ky, kx) in enumerate(window.taps):
            for index, (row, start) in enumerate(self.outputs):
                if window.flat:
                    yield tap, index, self.rows.pixels(start, (ky, kx), fill)
                else:
                    at = row * window.stride[0] + ky * window.dilation[0]
                    yield tap, index, self.rows.vector(at, start, self.base, kx, fill, {})


def chunks(
    body: Body, window: Window, cut: Sequence[Block], channel: Any, lanes: int, *, slide: bool = False
) -> Iterator[Chunk]:
    """The chunks of a band's outputs, within loops over those that are alike. Write each before the next."""
    for block in cut:
        with body.repeated(block.repeat) as index:
            if block.repeat > 1:
                first = body.let(index * block.rows)
            else:
                many = len(window.seen(block.rows)) > _ROWS_KEPT and not window.flat
                first = body.hidden(block.first, channel) if body.barrier and (block.first or many) else block.first
            rows = _Rows(body, window, channel, first, block.rows, lanes, slide and not window.flat)
            for number, run in enumerate(block.runs):
                with body.repeated(run.repeat) as tile:
                    if run.repeat > 1:
                        base = body.let(tile * run.step)
                    else:
                        base = body.hidden(0, channel) if body.barrier and number and window.shares(lanes) else 0
                    body.fence()
                    yield Chunk(rows, first, base, block.rows, run.offsets, channel if run.repeat == 1 else tile)


class _Rows:
    """The input of one channel for a block: where each row starts, and vectors of it as a tap sees them."""

    def __init__(
        self, body: Body, window: Window, channel: Any, first: Any, rows: int, lanes: int, slide: bool
    ) -> None:
        self.body, self.window, self.lanes, self.slide = body, window, lanes, slide
        seen, count = ([0], 1) if window.flat else ([at for at, _ in window.seen(rows)], window.rows_in)
        above = first * window.stride[0]

        def start(at: int) -> Any:
            return body.let(body.args[FIXED + above + at] + channel * body.args[FIXED + count + above + at])

        self._start = start
        self._starts = {} if body.barrier and len(seen) > _MOST_KEPT else {at: start(at) for at in seen}

    def start(self, at: int) -> Any:
        """Where an input row starts."""
        return self._starts[at] if at in self._starts else self._start(at)

    def pixels(self, start: int, tap: tuple[int, int], fill: float, shift: Any = 0) -> Any | None:
        """Of a flat window: the input under `tap` for the outputs from pixel `start` on; `shift` is a hidden zero."""
        window = self.window
        dy, dx = (tap[axis] * window.dilation[axis] - (window.top, window.left)[axis] for axis in (0, 1))
        mask = window.valid((0, start), tap, self.lanes)
        if not any(mask):
            return None
        value = self.body.load("x", self.start(0) + shift + (start + dy * window.width_in + dx), self.lanes)
        return self.body.where(mask, value, self.body.number(fill, self.lanes))

    def vector(self, at: int, start: int, base: Any, kx: int, fill: float, columns: dict[int, Any]) -> Any | None:
        """The input of row `at` under column `kx` of the window, for the outputs from column `base + start` on.

        `fill` outside of the image, None where all lanes are. `columns` keeps what was loaded of the row.
        """
        window, body, lanes = self.window, self.body, self.lanes
        mask = window.valid((0, start), (0, kx), lanes)
        if not any(mask):
            return None
        stride = window.stride[1]
        row = self.start(at) + base * stride
        column = start * stride + kx * window.dilation[1] - window.left
        if stride == 1 or lanes == 1:
            value = body.load("x", row + column, lanes)
        elif stride == 2:
            value = self._second(row, column, mask, columns)
        else:
            value = body.gather("x", [row + (column + lane * stride if mask[lane] else 0) for lane in range(lanes)])
        return body.where(mask, value, body.number(fill, lanes))

    def slid(self, at: int, n: int, starts: tuple[int, ...], base: Any, kx: int, columns: dict[Any, Any]) -> Any | None:
        """As `vector` with zeros outside, for vector `n` of a chunk: out of what was loaded of the row, if it can be.

        What a tap sees is lanes of two neighbouring vectors, or of one and zeros. With stride 1, taps left of their
        output are loaded all the same: a core shuffles and loads at the same time, and would wait for either alone.
        """
        window, lanes, start, step = self.window, self.lanes, starts[n], self.window.stride[1]
        if not any(window.valid((0, start), (0, kx), lanes)):
            return None
        shift, phase = divmod(kx * window.dilation[1] - window.left, step)
        beside = self._beside(n, starts, base, shift, phase)
        if lanes == 1 or (shift and beside is None) or (shift < 0 and step == 1):
            return self.vector(at, start, base, kx, 0.0, columns)
        here = self._phase(at, start, base, phase, columns)
        if beside is None:
            return here
        there, outside = beside
        other = self.body.nothing(lanes) if outside else self._phase(at, there, base, phase, columns)
        wanted = range(start + shift, start + shift + lanes)
        if shift < 0:
            return self.body.pick(other, here, [p - there if p < start else lanes + p - start for p in wanted])
        return self.body.pick(here, other, [p - start if p < start + lanes else lanes + p - there for p in wanted])

    def _beside(self, n: int, starts: tuple[int, ...], base: Any, shift: int, phase: int) -> tuple[int, bool] | None:
        """Where the vector starts that holds what vector `n`, slid by `shift`, wants besides itself; and whether it is
        zeros, outside of the image. None if there is none such, or no need.
        """
        start, lanes, step = starts[n], self.lanes, self.window.stride[1]
        edge = isinstance(base, int) and abs(shift) <= lanes  # within loops, columns are not known
        if shift < 0:
            if edge and start == 0:
                return -lanes, True
            if n and starts[n - 1] <= start + shift and starts[n - 1] + lanes >= start:
                return starts[n - 1], False
        elif shift > 0:
            if edge and (start + lanes) * step + phase >= self.window.width_in:
                return start + lanes, True
            if n + 1 < len(starts) and starts[n + 1] <= start + lanes and start + shift <= starts[n + 1]:
                return starts[n + 1], False
        return None

    def _phase(self, at: int, start: int, base: Any, phase: int, columns: dict[Any, Any]) -> Any:
        """Of row `at`, pixel `phase` of each step of the stride from output column `base + start` on; zeros outside."""
        key = (start, phase)
        if key not in columns:
            window, body, lanes, step = self.window, self.body, self.lanes, self.window.stride[1]
            row, column = self.start(at) + base * step, start * step + phase
            inside = [not isinstance(base, int) or column + lane * step < window.width_in for lane in range(lanes)]
            value = body.load("x", row + column, lanes) if step == 1 else self._second(row, column, inside, columns)
            columns[key] = body.let(body.where(inside, value, body.nothing(lanes)))
        return columns[key]

    def _second(self, row: Any, column: int, mask: list[bool], columns: dict[int, Any]) -> Any:
        """Every second pixel from `column` on; halves with no valid lane are not read."""
        body, lanes, half = self.body, self.lanes, self.lanes // 2
        # Both halves start on an even column, so taps of the same parity share their loads.
        odd = column % 2

        def load(start: int, wanted: list[bool]) -> Any:
            if not any(wanted):
                return body.number(0.0, lanes)
            if start not in columns:
                columns[start] = body.let(body.load("x", row + start, lanes))
            return columns[start]

        return body.even(load(column - odd, mask[:half]), load(column - odd + lanes, mask[half:]), lanes, odd)


def finish(body: Body, epilogue: Epilogue, window: Window, row: Any, pixel: Any, value: Any, lanes: int) -> None:
    """Epilogue and store of one output vector of channel `row`."""
    residual = None
    if epilogue.residual != "none":
        residual = body.let(body.load("r", row * body.arg(1) + pixel, lanes))
    result = epilogue.apply(body, value, lanes, residual, window.after_rows)
    body.store("y", row * body.arg(0) + pixel, result, lanes)


def activate(body: Body, epilogue: Epilogue, window: Window, channel: Any, lanes: int) -> None:
    """The epilogue of a whole channel on the sums that were stored: in a loop of its own, as its polynomial has so many
    constants that it leaves no registers for sums.
    """
    whole = window.rows * window.width_out // lanes
    with body.loop(0, whole) as block:
        _again(body, epilogue, window, channel, body.let(block * lanes), lanes)
    if window.rows * window.width_out % lanes:  # one by one: no pixel is activated twice
        with body.loop(whole * lanes, window.rows * window.width_out) as pixel:
            _again(body, epilogue, window, channel, pixel, 1)


def _again(body: Body, epilogue: Epilogue, window: Window, channel: Any, pixel: Any, lanes: int) -> None:
    body.fence()  # LLVM unrolls such loops for some cores
    value = body.let(body.load("y", channel * body.arg(0) + pixel, lanes))
    finish(body, epilogue, window, channel, pixel, value, lanes)
