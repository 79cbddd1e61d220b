"""Kernels that slide a window over rows: depthwise convolution, pooling, and the gathering of k x k panels.

They produce the rows of one output band. Input rows are found through a table of offsets, one per input row that the
band needs, so the rows may lie in any band of any ring buffer, and a row outside the image is a row of zeros. Columns
outside the image are masked lanes, constant at compile time: no padding columns exist anywhere.

Taps are outermost and a chunk of the band's output vectors is summed at once, so that a loaded vector and a weight are
used as often as registers allow (a quarter less time than output after output).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgesparse.kernels.builder import Body, kernel
from edgesparse.kernels.epilogue import Epilogue
from edgesparse.kernels.tiles import vector_starts

_LOWEST = float("-inf")


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
        return _FIXED + 2 * (1 if self.flat else self.rows_in)

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

    def outputs(self, lanes: int) -> list[tuple[int, int]]:
        """The output vectors of a band as (row, first column); flat ones as (0, first pixel)."""
        if self.flat:
            return [(0, start) for start in vector_starts(self.rows * self.width_out, lanes)]
        return [(row, start) for row in range(self.rows) for start in vector_starts(self.width_out, lanes)]

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


#: Taps above which a panel's are looped over, where no column of any window is outside of the image.
_MANY_TAPS = 64

#: Arguments before the row tables.
_FIXED = 2


class _Rows:
    """The input of one channel: where each row starts, and vectors of it as a tap sees them."""

    def __init__(self, body: Body, window: Window, channel: Any) -> None:
        self.body = body
        self.window = window
        count = 1 if window.flat else window.rows_in
        self.starts = [
            body.let(body.args[_FIXED + row] + channel * body.args[_FIXED + count + row]) for row in range(count)
        ]

    def vector(self, at: tuple[int, int], tap: tuple[int, int], lanes: int, fill: float) -> Any | None:
        """The input under `tap` for output vector `at`, `fill` outside the image; None where all lanes are outside."""
        window = self.window
        mask = window.valid(at, tap, lanes)
        if not any(mask):
            return None
        dx = tap[1] * window.dilation[1] - window.left
        if window.flat:
            dy = tap[0] * window.dilation[0] - window.top
            value = self.body.load("x", self.starts[0] + (at[1] + dy * window.width_in + dx), lanes)
        else:
            row = self.starts[at[0] * window.stride[0] + tap[0] * window.dilation[0]]
            value = self._strided(row, at[1] * window.stride[1] + dx, mask, lanes)
        return self.body.where(mask, value, self.body.number(fill, lanes))

    def _strided(self, row: Any, column: int, mask: list[bool], lanes: int) -> Any:
        body, stride = self.body, self.window.stride[1]
        if stride == 1 or lanes == 1:
            return body.load("x", row + column, lanes)
        if stride == 2:
            # Both halves start on an even column, so taps of the same parity share their loads.
            odd = column % 2
            low = body.load("x", row + (column - odd), lanes)
            half = lanes // 2
            if not any(mask[half:]):
                return body.even(body.let(low), body.number(0.0, lanes), lanes, odd)
            high = body.load("x", row + (column - odd + lanes), lanes)
            if not any(mask[:half]):
                return body.even(body.number(0.0, lanes), body.let(high), lanes, odd)
            return body.even(body.let(low), body.let(high), lanes, odd)
        return body.gather("x", [row + (column + lane * stride if mask[lane] else 0) for lane in range(lanes)])


@dataclass(frozen=True)
class Depthwise:
    """Depthwise convolution of one band.

    Pointers: x (the arena), w ``[C][kh*kw]``, b ``[C]``, residual (if any), y.
    Arguments: pitch of y, pitch of the residual, then for each input row its offset and its distance from channel to
    channel, both in elements, and the epilogue's scale and shift. Range: output channels; output channel c reads input
    channel ``c // multiplier``.
    """

    window: Window
    epilogue: Epilogue
    lanes: int
    registers: int
    multiplier: int = 1

    @property
    def symbol(self) -> str:
        many = f"m{self.multiplier}" if self.multiplier > 1 else ""
        return f"es_depthwise{many}_f32_{self.window.name}_{self.registers}x{self.lanes}_{self.epilogue.name}"

    def build(self) -> Any:
        residual = [("r", "float32")] if self.epilogue.residual != "none" else []
        pointers = [("x", "float32"), ("w", "float32"), ("b", "float32"), *residual, ("y", "float32")]
        return kernel(self.symbol, pointers, self._body)

    def _body(self, body: Body) -> None:
        window, lanes = self.window, self.window.lanes(self.lanes)
        taps = window.taps
        with body.loop(body.begin, body.end) as channel:
            rows = _Rows(body, window, body.let(channel // self.multiplier))
            for chunk in chunks(window.outputs(lanes), self.registers):
                acc = body.registers(len(chunk), lanes)
                bias = body.let(body.spread(body["b"][channel], lanes))
                for index in range(len(chunk)):
                    body.put(acc, index, bias)
                for t, tap in enumerate(taps):
                    w = body.let(body.spread(body["w"][channel * len(taps) + t], lanes))
                    for index, at in enumerate(chunk):
                        x = rows.vector(at, tap, lanes, 0.0)
                        if x is not None:
                            body.put(acc, index, acc[index] + w * x)
                for index, at in enumerate(chunk):
                    _finish(body, self.epilogue, window, channel, at, acc[index], lanes)


@dataclass(frozen=True)
class Pool:
    """Max or average pooling of one band.

    `mode` is "max", "avg" (divides by the window) or "avg_valid" (divides by the pixels inside the image).
    Pointers: x (the arena), y. Arguments: pitch of y, one unused, the two row tables, and for "avg_valid" the number of
    rows inside the image for each output row. Rows outside the image are zeros for averages; for "max" the table
    repeats the nearest row, which lies in the same window. Range: channels.
    """

    window: Window
    mode: str
    lanes: int
    registers: int

    @property
    def symbol(self) -> str:
        return f"es_pool_{self.mode}_f32_{self.window.name}_{self.registers}x{self.lanes}"

    def build(self) -> Any:
        return kernel(self.symbol, [("x", "float32"), ("y", "float32")], self._body)

    def _body(self, body: Body) -> None:
        window, lanes = self.window, self.window.lanes(self.lanes)
        fill = _LOWEST if self.mode == "max" else 0.0
        with body.loop(body.begin, body.end) as channel:
            rows = _Rows(body, window, channel)
            for chunk in chunks(window.outputs(lanes), self.registers):
                acc = body.registers(len(chunk), lanes)
                for index in range(len(chunk)):
                    body.put(acc, index, body.number(fill, lanes))
                for tap in window.taps:
                    for index, at in enumerate(chunk):
                        x = rows.vector(at, tap, lanes, fill)
                        if x is not None:
                            body.put(acc, index, body.T.max(acc[index], x) if self.mode == "max" else acc[index] + x)
                for index, at in enumerate(chunk):
                    value = acc[index] if self.mode == "max" else acc[index] * self._scale(body, at, lanes)
                    _finish(body, Epilogue(), window, channel, at, value, lanes)

    def _scale(self, body: Body, at: tuple[int, int], lanes: int) -> Any:
        """One over the number of pixels under the window, per lane."""
        window = self.window
        area = window.kernel[0] * window.kernel[1]
        if self.mode == "avg":
            return body.number(1.0 / area, lanes)
        columns = [window.valid(at, (0, kx), lanes) for kx in range(window.kernel[1])]
        counts = body.lanes([float(sum(valid[lane] for valid in columns)) for lane in range(lanes)])
        row_count = body.args[window.after_rows + at[0]]
        inside = body.let(body.spread(body.T.Cast("float32", row_count), lanes))
        return body.number(1.0, lanes) / (inside * counts)


@dataclass(frozen=True)
class Panel:
    """Gathers the window of every output pixel of a band into a panel ``[C*kh*kw][pitch]`` (im2col of one band).

    Pointers: x (the arena), y. Arguments: pitch of y, one unused, the two row tables. Range: input channels.
    """

    window: Window
    lanes: int

    @property
    def symbol(self) -> str:
        return f"es_panel_f32_{self.window.name}_{self.lanes}"

    def build(self) -> Any:
        return kernel(self.symbol, [("x", "float32"), ("y", "float32")], self._body)

    def _body(self, body: Body) -> None:
        window, lanes = self.window, self.window.lanes(self.lanes)
        with body.loop(body.begin, body.end) as channel:
            if len(window.taps) > _MANY_TAPS and window.inside and not window.flat:
                self._patches(body, channel, lanes)
            else:
                self._unrolled(body, channel, lanes)

    def _unrolled(self, body: Body, channel: Any, lanes: int) -> None:
        window, taps = self.window, self.window.taps
        rows = _Rows(body, window, channel)
        for t, tap in enumerate(taps):
            for at in window.outputs(lanes):
                x = rows.vector(at, tap, lanes, 0.0)
                x = body.number(0.0, lanes) if x is None else x
                _finish(body, Epilogue(), window, channel * len(taps) + t, at, x, lanes)

    def _patches(self, body: Body, channel: Any, lanes: int) -> None:
        """A loop over the taps: the windows of a patch embedding have hundreds, far too many to unroll."""
        window = self.window
        (_, width), (sy, sx), (dy, dx) = window.kernel, window.stride, window.dilation
        with body.loop(0, len(window.taps)) as tap:
            ky, kx = body.let(tap // width), body.let(tap % width)
            for at in window.outputs(lanes):
                row = body.let(at[0] * sy + ky * dy)
                start = body.let(
                    body.args[_FIXED + row] + channel * body.args[_FIXED + window.rows_in + row] + at[1] * sx + kx * dx
                )
                if sx == 1 or lanes == 1:
                    x = body.load("x", start, lanes)
                else:
                    x = body.gather("x", [start + lane * sx for lane in range(lanes)])
                _finish(body, Epilogue(), window, channel * len(window.taps) + tap, at, x, lanes)


def _finish(
    body: Body, epilogue: Epilogue, window: Window, row: Any, at: tuple[int, int], value: Any, lanes: int
) -> None:
    """Epilogue and store of one output vector of channel `row`."""
    pixel = at[0] * window.width_out + at[1]
    residual = None
    if epilogue.residual != "none":
        residual = body.let(body.load("r", row * body.arg(1) + pixel, lanes))
    result = epilogue.apply(body, value, lanes, residual, window.after_rows)
    body.store("y", row * body.arg(0) + pixel, result, lanes)


def chunks(items: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    """Pieces of nearly equal length, none above `size`."""
    count = -(-len(items) // size)
    for index in range(count):
        yield items[index * len(items) // count : (index + 1) * len(items) // count]
