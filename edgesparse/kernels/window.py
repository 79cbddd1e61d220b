"""Windows that slide over rows: their geometry, and how a band's outputs are cut for them.

For the kernels that produce the rows of one output band: depthwise convolution (`depthwise`), pooling and the gathering
of k x k panels (`gather`); `rows` reads their inputs.

Outputs are cut into blocks of a few rows, and these into chunks of a few vectors. Within a chunk each input vector is
loaded once and used for every output row that sees it. Blocks, and chunks that lie inside of the image, are loops: what
is unrolled stays small, and no input is kept in a register (or spilled) for a later chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

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
    def by_rows(self) -> Window:
        """The same window, its rows one by one."""
        return replace(self, flat=False)

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

    def lanes(self, widest: int, *, wide: bool = False) -> int:
        """Lanes to use: halved until a vector fits the output's rows; `wide`: or while half of it would hold a row."""
        width = self.rows * self.width_out if self.flat else self.width_out
        if wide and not self.flat:
            return min(widest, 1 << (width - 1).bit_length())
        while widest > width:
            widest //= 2
        return max(widest, 1)

    def vectors(self, widest: int, *, wide: bool = False) -> int:
        """Output vectors of the band."""
        lanes = self.lanes(widest, wide=wide)
        if self.flat:
            return len(vector_starts(self.rows * self.width_out, lanes))
        return self.rows * len(row_starts(self.width_out, lanes))

    def blocks(self, lanes: int, sums: int, held: bool = False, most_rows: int = _MOST_ROWS) -> tuple[Block, ...]:
        """The cut of the band's outputs, for chunks of at most `sums` vectors of at most `most_rows` rows.

        `held`: weights stay in registers.
        """
        return _blocks(self, lanes, sums, held, most_rows)

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

    def shares(self, lanes: int) -> bool:
        """Whether neighbouring output vectors read some of the same input vectors."""
        step = self.stride[1]
        return (self.kernel[1] - 1) * self.dilation[1] + (step - 1) * lanes >= step * lanes

    @property
    def halves(self) -> int:
        """Registers beyond one for a row's inputs when every second is wanted: two halves, even and odd."""
        return 2 * self.kernel[1] - 2 if self.stride[1] == 2 else 0

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
def _blocks(window: Window, lanes: int, sums: int, held: bool, most_rows: int) -> tuple[Block, ...]:
    if window.flat:
        starts = vector_starts(window.rows * window.width_out, lanes)
        return (Block(1, 0, 1, tuple(Run(part, 1, 0) for part in _parts(starts, -(-len(starts) // sums)))),)
    starts = row_starts(window.width_out, lanes)

    def work(rows: int) -> int:
        repeat, rest = divmod(window.rows, rows)
        return sum(times * _work(window, size, len(starts), sums, held) for size, times in ((rows, repeat), (rest, 1)))

    rows = min(range(1, min(window.rows, sums, most_rows) + 1), key=work)
    repeat, rest = divmod(window.rows, rows)
    found = [Block(rows, 0, repeat, cut_row(window, starts, lanes, sums // rows))]
    if rest:
        found.append(Block(rest, window.rows - rest, 1, cut_row(window, starts, lanes, sums // rest)))
    return tuple(found)


def row_starts(width: int, lanes: int) -> tuple[int, ...]:
    """First columns of the vectors that cover a row; one that is wider than the row stands alone."""
    return vector_starts(width, lanes) if width >= lanes else (0,)


def cut_row(window: Window, starts: tuple[int, ...], lanes: int, most: int) -> tuple[Run, ...]:
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
