"""Windows that slide over rows: their geometry, how a band's outputs are cut for them, and the rows they read.

For the kernels that produce the rows of one output band: depthwise convolution (`depthwise`), pooling and the gathering
of k x k panels (`gather`). Input rows are found through a table of offsets, one per input row that the band needs, so
the rows may lie in any band of any ring buffer, and a row outside the image is a row of zeros. Columns outside the
image are masked lanes, constant at compile time: no padding columns exist anywhere.

Outputs are cut into blocks of a few rows, and these into chunks of a few vectors. Within a chunk each input vector is
loaded once and used for every output row that sees it. Blocks, and chunks that lie inside of the image, are loops: what
is unrolled stays small, and no input is kept in a register (or spilled) for a later chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from edgesparse.kernels.builder import Body
from edgesparse.kernels.epilogue import Epilogue
from edgesparse.kernels.tiles import Run, runs_of, vector_starts

#: Arguments before the row tables.
FIXED = 2

#: Output rows of a block, at most: beyond it, sharing input rows brings less than the registers it takes are worth.
_MOST_ROWS = 4


@dataclass(frozen=True)
class Block:
    """`repeat` like blocks of `rows` output rows from row `first` on, each cut into the chunks of `runs`."""

    rows: int
    first: int
    repeat: int
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Window:
    """Geometry of a window over a band.

    Attributes
    ----------
    kernel, stride, dilation:
        (rows, columns).
    top, left:
        Rows and columns of padding before the image.
    width_in, width_out:
        Columns of input and output.
    rows:
        Output rows of the band.
    flat:
        The band is the whole image, input and output have the same size and stride is one: vectors run across row
        ends, and the table of row offsets is replaced by the offset and pitch of the input plane.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    top: int
    left: int
    width_in: int
    width_out: int
    rows: int
    flat: bool = False

    @property
    def name(self) -> str:
        kh, kw = self.kernel
        (sh, sw), (dh, dw) = self.stride, self.dilation
        return (
            f"{kh}x{kw}_s{sh}x{sw}_d{dh}x{dw}_p{self.top}x{self.left}"
            f"_{self.width_in}to{self.width_out}x{self.rows}{'flat' if self.flat else ''}"
        )

    @property
    def rows_in(self) -> int:
        """Input rows that the band needs, and the length of the two row tables."""
        return (self.rows - 1) * self.stride[0] + (self.kernel[0] - 1) * self.dilation[0] + 1

    @property
    def after_rows(self) -> int:
        """The first argument behind the row tables."""
        return FIXED + 2 * (1 if self.flat else self.rows_in)

    @property
    def taps(self) -> list[tuple[int, int]]:
        return [(ky, kx) for ky in range(self.kernel[0]) for kx in range(self.kernel[1])]

    def first_row(self, row_out: int) -> int:
        """First input row (negative in the padding) that a band starting at output row `row_out` needs."""
        return row_out * self.stride[0] - self.top

    def lanes(self, widest: int) -> int:
        """Lanes to use: halved until a vector fits the output's rows."""
        width = self.rows * self.width_out if self.flat else self.width_out
        while widest > width:
            widest //= 2
        return max(widest, 1)

    def vectors(self, widest: int) -> int:
        """Output vectors of the band."""
        lanes = self.lanes(widest)
        if self.flat:
            return len(vector_starts(self.rows * self.width_out, lanes))
        return self.rows * len(vector_starts(self.width_out, lanes))

    def blocks(self, lanes: int, sums: int, held: bool = False) -> tuple[Block, ...]:
        """The cut of the band's outputs, for chunks of at most `sums` vectors; `held`: weights stay in registers."""
        return _blocks(self, lanes, sums, held)

    def whole(self, start: int, lanes: int) -> bool:
        """Whether all lanes of the vector of outputs from column `start` on see the image through every tap."""
        return all(all(self.valid((0, start), (0, kx), lanes)) for kx in range(self.kernel[1]))

    def seen(self, rows: int) -> list[tuple[int, list[tuple[int, int]]]]:
        """For a block of `rows` output rows: each input row that is seen, and the (output row, ky) that see it."""
        step, reach = self.stride[0], self.dilation[0]
        found = []
        for at in range((rows - 1) * step + (self.kernel[0] - 1) * reach + 1):
            pairs = [(row, divmod(at - row * step, reach)) for row in range(rows)]
            uses = [(row, ky) for row, (ky, rest) in pairs if rest == 0 and 0 <= ky < self.kernel[0]]
            if uses:
                found.append((at, uses))
        return found

    @property
    def inside(self) -> bool:
        """Whether every column of every window lies in the image."""
        last = (self.width_out - 1) * self.stride[1] + (self.kernel[1] - 1) * self.dilation[1]
        return self.left == 0 and last < self.width_in

    def valid(self, at: tuple[int, int], tap: tuple[int, int], lanes: int) -> list[bool]:
        """Which lanes of the output vector `at` see a column (flat: a pixel) of the image through `tap`."""
        dx = tap[1] * self.dilation[1] - self.left
        if not self.flat:
            columns = [(at[1] + lane) * self.stride[1] + dx for lane in range(lanes)]
            return [0 <= column < self.width_in for column in columns]
        dy = tap[0] * self.dilation[0] - self.top
        pixels = [divmod(at[1] + lane, self.width_out) for lane in range(lanes)]
        return [0 <= y + dy < self.rows and 0 <= x + dx < self.width_in for y, x in pixels]


@lru_cache(maxsize=4096)
def _blocks(window: Window, lanes: int, sums: int, held: bool) -> tuple[Block, ...]:
    if window.flat:
        starts = vector_starts(window.rows * window.width_out, lanes)
        return (Block(1, 0, 1, tuple(Run(part, 1, 0) for part in _parts(starts, -(-len(starts) // sums)))),)
    starts = vector_starts(window.width_out, lanes)

    def work(rows: int) -> int:
        repeat, rest = divmod(window.rows, rows)
        return sum(times * _work(window, size, len(starts), sums, held) for size, times in ((rows, repeat), (rest, 1)))

    rows = min(range(1, min(window.rows, sums, _MOST_ROWS) + 1), key=work)
    repeat, rest = divmod(window.rows, rows)
    found = [Block(rows, 0, repeat, _runs(window, starts, lanes, sums // rows))]
    if rest:
        found.append(Block(rest, window.rows - rest, 1, _runs(window, starts, lanes, sums // rest)))
    return tuple(found)


def _runs(window: Window, starts: tuple[int, ...], lanes: int, most: int) -> tuple[Run, ...]:
    """Chunks of at most `most` of a row's vectors; those inside of the image that are alike are one run."""
    tiles = _parts(starts, _chunks(len(starts), most))
    inner = [tile for tile in tiles if all(window.whole(start, lanes) for start in tile)]
    before = tiles[: tiles.index(inner[0])] if inner else tiles
    after = tiles[len(before) + len(inner) :]
    edges = [[Run(tile, 1, 0) for tile in side] for side in (before, after)]
    return (*edges[0], *runs_of(inner), *edges[1])


def _chunks(vectors: int, most: int) -> int:
    """Chunks for a row's vectors: of one size where that can be, as they are one loop then, but not too small."""
    most = min(most, vectors)
    sizes = [size for size in range(most, most // 2, -1) if vectors % size == 0]
    return vectors // sizes[0] if sizes else -(-vectors // most)


def _work(window: Window, rows: int, vectors: int, sums: int, held: bool) -> int:
    """Instructions of a block, roughly."""
    if rows == 0:
        return 0
    taps, seen = len(window.taps), len(window.seen(rows))
    again = 0 if held else rows * taps * _chunks(vectors, sums // rows)
    return vectors * (rows * (taps + 3) + seen * window.kernel[1] * window.stride[1]) + again + _ROW * seen


#: Instructions that find where a row starts.
_ROW = 10


def _parts(starts: Sequence[int], count: int) -> list[tuple[int, ...]]:
    """`count` pieces of nearly equal length."""
    return [tuple(starts[n * len(starts) // count : (n + 1) * len(starts) // count]) for n in range(count)]


Uses = list[tuple[int, int]]
"""Of an input vector: the (output of the chunk, tap) that see it."""


class Chunk:
    """Some output vectors of a band that are summed at once: their places, and the inputs they see.

    Attributes
    ----------
    outputs:
        (row, first column) of each vector as the masks see them: a place inside of the image stands for all that a
        loop brings there.
    """

    def __init__(self, rows: _Rows, first: Any, base: Any, count: int, starts: tuple[int, ...]) -> None:
        self.rows, self.first, self.base, self.starts = rows, first, base, starts
        self.count = count
        self.outputs = [(row, start) for row in range(count) for start in starts]

    def row(self, index: int) -> Any:
        """The band's row of an output vector."""
        return self.first + self.outputs[index][0]

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
                for index, start in enumerate(self.starts):
                    yield self.rows.pixels(start, place, fill), [(index, tap)]
            return
        for at, uses in window.seen(self.count):
            columns: dict[int, Any] = {}
            places = [(kx, n) for kx in range(width) for n in range(len(self.starts))]
            for kx, n in sorted(places, key=lambda place: place[::-1]) if by_column else places:
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


def chunks(body: Body, window: Window, cut: Sequence[Block], channel: Any, lanes: int) -> Iterator[Chunk]:
    """The chunks of a band's outputs, within loops over those that are alike. Write each before the next."""
    for block in cut:
        with _repeated(body, block.repeat) as index:
            first = block.first if block.repeat == 1 else body.let(index * block.rows)
            rows = _Rows(body, window, channel, first, block.rows, lanes)
            for run in block.runs:
                with _repeated(body, run.repeat) as tile:
                    base = 0 if run.repeat == 1 else body.let(tile * run.step)
                    yield Chunk(rows, first, base, block.rows, run.offsets)


@contextmanager
def _repeated(body: Body, count: int) -> Iterator[Any]:
    """A loop, or once with 0."""
    if count == 1:
        yield 0
    else:
        with body.loop(0, count) as index:
            yield index


class _Rows:
    """The input of one channel for a block: where each row starts, and vectors of it as a tap sees them."""

    def __init__(self, body: Body, window: Window, channel: Any, first: Any, rows: int, lanes: int) -> None:
        self.body, self.window, self.lanes = body, window, lanes
        seen, count = ([0], 1) if window.flat else ([at for at, _ in window.seen(rows)], window.rows_in)
        above = first * window.stride[0]
        self.starts = {
            at: body.let(body.args[FIXED + above + at] + channel * body.args[FIXED + count + above + at]) for at in seen
        }

    def pixels(self, start: int, tap: tuple[int, int], fill: float) -> Any | None:
        """Of a flat window: the input under `tap` for the outputs from pixel `start` on."""
        window = self.window
        dy, dx = (tap[axis] * window.dilation[axis] - (window.top, window.left)[axis] for axis in (0, 1))
        mask = window.valid((0, start), tap, self.lanes)
        if not any(mask):
            return None
        value = self.body.load("x", self.starts[0] + (start + dy * window.width_in + dx), self.lanes)
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
        row = self.starts[at] + base * stride
        column = start * stride + kx * window.dilation[1] - window.left
        if stride == 1 or lanes == 1:
            value = body.load("x", row + column, lanes)
        elif stride == 2:
            value = self._second(row, column, mask, columns)
        else:
            value = body.gather("x", [row + (column + lane * stride if mask[lane] else 0) for lane in range(lanes)])
        return body.where(mask, value, body.number(fill, lanes))

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
