"""Kernels that only look through a window: pooling, and the gathering of k x k panels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from edgesparse.kernels import narrow
from edgesparse.kernels.builder import LINE, Body, kernel
from edgesparse.kernels.epilogue import Epilogue
from edgesparse.kernels.narrow import LOWEST
from edgesparse.kernels.rows import Chunk, chunks, finish
from edgesparse.kernels.tiles import Run, vector_starts
from edgesparse.kernels.window import FIXED, Block, Window, cut_row, row_starts

#: Output vectors of a panel that are copied at a time, and columns of the window.
_PANEL_CHUNK, _PLANES = 8, 3
#: Taps above which a panel's are looped over, where no column of any window is outside of the image.
_MANY_TAPS = 64


@dataclass(frozen=True)
class Pool:
    """Max or average pooling of one band.

    `mode` is "max", "avg" (divides by the window) or "avg_valid" (divides by the pixels inside the image).
    Pointers: x (the arena), y. Arguments: pitch of y, one unused, the two row tables, and for "avg_valid" the number of
    rows inside the image for each output row. Rows outside the image are zeros for averages; for "max" the table
    repeats the nearest row, which lies in the same window. Range: channels. `few`: see `Target.few`.
    """

    window: Window
    mode: str
    lanes: int
    registers: int
    barrier: str = ""
    few: bool = False

    @property
    def symbol(self) -> str:
        fenced = ("b" if self.barrier else "") + ("n" if self.few else "")
        return f"es_pool{fenced}_{self.mode}_f32_{self.window.name}_{self.registers}x{self.lanes}"

    @property
    def cut(self) -> tuple[Block, ...]:
        """How the band is cut."""
        if self.few:
            return narrow.blocks(self.window, self.window.lanes(self.lanes), self.registers)
        halves = self.window.halves if self.barrier else 0
        sums = max(self.registers // 3, self.registers - halves)
        return self.window.blocks(self.window.lanes(self.lanes), sums)

    @property
    def modest(self) -> Iterator[Pool]:
        """As `Depthwise.modest`."""
        if not self.few:
            yield replace(self, registers=self.registers // 2)
        yield from (replace(self, registers=sums, few=True) for sums in (8, 4, 2, 1))

    def build(self) -> Any:
        return kernel(self.symbol, [("x", "float32"), ("y", "float32")], self._body, self.barrier)

    def _body(self, body: Body) -> None:
        window, lanes = self.window, self.window.lanes(self.lanes)
        with body.loop(body.begin, body.end) as channel:
            for chunk, acc in self._sums(body, channel, lanes):
                for index in range(len(chunk.outputs)):
                    value = acc[index] if self.mode == "max" else acc[index] * self._scale(body, chunk, index, lanes)
                    finish(body, Epilogue(), window, channel, chunk.pixel(index), value, lanes)

    def _sums(self, body: Body, channel: Any, lanes: int) -> Iterator[tuple[Chunk | narrow.Piece, Any]]:
        """The chunks of a channel, with the sum (or the largest) of each output's window."""
        window, fill = self.window, LOWEST if self.mode == "max" else 0.0
        if self.few:
            largest = self.mode == "max"

            def joined(total: Any, x: Any) -> Any:
                return body.T.max(total, x) if largest else total + x

            start = body.number(fill, lanes)
            parts = narrow.sums(
                body, window, self.cut, lanes, channel, lambda: start, lambda _ky, _kx: joined, near=largest
            )
            yield from parts
            return
        for chunk in chunks(body, window, self.cut, channel, lanes):
            acc = body.registers(len(chunk.outputs), lanes)
            for index in range(len(chunk.outputs)):
                body.put(acc, index, body.number(fill, lanes))
            for x, uses in chunk.inputs(fill, by_column=bool(self.barrier)):
                if x is not None:
                    x = body.let(x)
                    for index, _ in uses:
                        body.put(acc, index, body.T.max(acc[index], x) if self.mode == "max" else acc[index] + x)
            yield chunk, acc

    def _scale(self, body: Body, chunk: Chunk | narrow.Piece, index: int, lanes: int) -> Any:
        """One over the number of pixels under the window, per lane."""
        window, at = self.window, chunk.outputs[index]
        if self.mode == "avg":
            return body.number(1.0 / len(window.taps), lanes)
        columns = [window.valid(at, (0, kx), lanes) for kx in range(window.kernel[1])]
        counts = body.lanes([float(sum(valid[lane] for valid in columns)) for lane in range(lanes)])
        row_count = body.args[window.after_rows + chunk.row(index)]
        inside = body.let(body.spread(body.T.Cast("float32", row_count), lanes))
        return body.number(1.0, lanes) / (inside * counts)


@dataclass(frozen=True)
class Panel:
    """Gathers the window of every output pixel of a band into a panel ``[C*kh*kw][pitch]`` (im2col of one band).

    Pointers: x (the arena), y. Arguments: pitch of y, one unused, the two row tables. Range: input channels.

    With `ahead`, rows lie one after another, as a model's input has them, and those that the next band needs anew are
    fetched: an input comes from far, in pieces too short for the processor to see where they go on.

    With a `barrier` (see `Body.fence`) each input is written to all of its places when it is loaded, and these lie at
    constant distances: the `pitch` is known then, and not read from the arguments. So it is with `few` (see
    `Target.few`), where each tap of a row is loaded by itself. `vectors` of outputs are copied at a time: nothing is
    summed, they are as many as keep the code small. With `few` it is whole rows, and some columns of the window, unless
    they are made fewer.
    """

    window: Window
    lanes: int
    ahead: bool = False
    barrier: str = ""
    pitch: int = 0
    few: bool = False
    vectors: int = _PANEL_CHUNK

    @property
    def symbol(self) -> str:
        fenced = f"b{self.pitch}" if self.barrier else ""
        fenced += "n" if self.few else ""
        at_once = f"{self.vectors}x" if self.vectors != _PANEL_CHUNK else ""
        return f"es_panel{fenced}_f32_{self.window.name}_{at_once}{self.lanes}{'a' if self.ahead else ''}"

    @property
    def cut(self) -> tuple[Block, ...]:
        """How the band is cut."""
        window, lanes = self.window, self.window.lanes(self.lanes)
        if self.few:
            starts = row_starts(window.width_out, lanes)
            row = (Run(starts, 1, 0),) if self._whole else cut_row(window, starts, lanes, self.vectors)
            return (Block(1, 0, window.rows, row),)
        return window.blocks(lanes, self.vectors)

    @property
    def _whole(self) -> bool:
        return self.vectors >= _PANEL_CHUNK // 2

    @property
    def modest(self) -> Iterator[Panel]:
        """As `Depthwise.modest`."""
        if not self.few:
            yield from (replace(self, vectors=self.vectors // by) for by in (2, 4))
        if not self.window.flat:
            yield from (replace(self, vectors=vectors, few=True) for vectors in (8, 4, 2, 1))

    def build(self) -> Any:
        return kernel(self.symbol, [("x", "float32"), ("y", "float32")], self._body, self.barrier)

    def _body(self, body: Body) -> None:
        window, lanes = self.window, self.window.lanes(self.lanes)
        with body.loop(body.begin, body.end) as channel:
            if self.ahead:
                self._fetch(body, channel)
            if len(window.taps) > _MANY_TAPS and window.inside and not window.flat:
                self._patches(body, channel, lanes)
            elif self.few:
                planes = _PLANES if self.vectors == _PANEL_CHUNK else 1
                narrow.panel(body, window, self.pitch, channel, lanes, self.cut[0].runs, planes)
            else:
                self._unrolled(body, channel, lanes)

    def _fetch(self, body: Body, channel: Any) -> None:
        window = self.window
        fresh = min(window.rows * window.stride[0], window.rows_in)
        with body.loop(window.rows_in - fresh, window.rows_in) as row:
            start = body.let(body.args[FIXED + row] + channel * body.args[FIXED + window.rows_in + row])
            for column in range(0, window.width_in, LINE):
                body.prefetch("x", start + (fresh * window.width_in + column))

    def _unrolled(self, body: Body, channel: Any, lanes: int) -> None:
        window = self.window
        row = body.let(channel * len(window.taps))
        for chunk in chunks(body, window, self.cut, channel, lanes):
            if self.barrier:
                self._as_loaded(body, chunk, row, lanes)
                continue
            for tap, index, x in chunk.taps():
                value = body.number(0.0, lanes) if x is None else x
                finish(body, Epilogue(), window, row + tap, chunk.pixel(index), value, lanes)

    def _as_loaded(self, body: Body, chunk: Chunk, row: Any, lanes: int) -> None:
        """The chunk's part of the panel, each input written to all of its places when it is loaded."""
        first = body.let(row * self.pitch + chunk.pixel(0))
        for x, uses in chunk.inputs(by_column=True):
            value = body.let(body.number(0.0, lanes) if x is None else x)
            for index, tap in uses:
                body.store("y", first + (tap * self.pitch + chunk.distance(index)), value, lanes)

    def _patches(self, body: Body, channel: Any, lanes: int) -> None:
        """A loop over the taps: the windows of a patch embedding have hundreds, far too many to unroll."""
        window = self.window
        (_, width), (sy, sx), (dy, dx) = window.kernel, window.stride, window.dilation
        with body.loop(0, len(window.taps)) as tap:
            ky, kx = body.let(tap // width), body.let(tap % width)
            for at in [(row, start) for row in range(window.rows) for start in vector_starts(window.width_out, lanes)]:
                body.fence()
                row = body.let(at[0] * sy + ky * dy)
                start = body.let(
                    body.args[FIXED + row] + channel * body.args[FIXED + window.rows_in + row] + at[1] * sx + kx * dx
                )
                if sx == 1 or lanes == 1:
                    x = body.load("x", start, lanes)
                else:
                    x = body.gather("x", [start + lane * sx for lane in range(lanes)])
                pixel = at[0] * window.width_out + at[1]
                finish(body, Epilogue(), window, channel * len(window.taps) + tap, pixel, x, lanes)
