"""Depthwise convolution of one band: every output channel sees one input channel through a window of its own.

All outputs of a chunk are summed at once, and each input vector meets every output row that sees it right after it was
loaded: a row is loaded once for a block and not once for each of its taps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from edgesparse.kernels import narrow
from edgesparse.kernels.builder import Body, kernel
from edgesparse.kernels.epilogue import Epilogue
from edgesparse.kernels.rows import Chunk, activate, chunks, finish
from edgesparse.kernels.window import Block, Window

#: Output rows of a block, at most, where there are registers for them: more sums at a time hide more latency.
_WIDE_ROWS = 7


@dataclass(frozen=True)
class Depthwise:
    """Depthwise convolution of one band.

    Pointers: x (the arena), w ``[C][kh*kw]``, b ``[C]``, residual (if any), y.
    Arguments: pitch of y, pitch of the residual, then for each input row its offset and its distance from channel to
    channel, both in elements, and the epilogue's scale and shift. Range: output channels; output channel c reads input
    channel ``c // multiplier``.
    `by_lane`: a channel's weights are held as vectors and multiplied by their lanes. `wide`: a vector may be wider than
    a row, blocks have more rows, and what a tap sees is slid together from the row's vectors (see `rows`).
    `barrier`: see `Body.fence`. `few`: see `Target.few` and `narrow`.
    """

    window: Window
    epilogue: Epilogue
    lanes: int
    registers: int
    multiplier: int = 1
    by_lane: bool = False
    wide: bool = False
    barrier: str = ""
    few: bool = False

    @property
    def symbol(self) -> str:
        many = f"m{self.multiplier}" if self.multiplier > 1 else ""
        lane = ("l" if self.by_lane else "") + ("w" if self.wide else "") + ("b" if self.barrier else "")
        lane += "n" if self.few else ""
        return f"es_depthwise{many}{lane}_f32_{self.window.name}_{self.registers}x{self.lanes}_{self.epilogue.name}"

    @property
    def cut(self) -> tuple[Block, ...]:
        """How the band is cut. Weights that are held take registers beyond the three that are counted free."""
        if self.few:
            return narrow.blocks(self.window, self.width, self.registers)
        taken = -(-len(self.window.taps) // self.lanes) if self._holds_weights else 0
        if self.barrier:
            taken += self.window.halves + 3 * (self.window.kernel[1] // 4) + self.epilogue.numbers + 1
        sums = max(self.registers // (3 if self.barrier else 2), self.registers - max(0, taken - 3))
        if not self.wide:
            return self.window.blocks(self.width, sums, self._holds_weights)
        whole = self.width >= self.window.width_out and self.window.rows <= sums
        return self.window.blocks(self.width, sums, self._holds_weights, self.window.rows if whole else _WIDE_ROWS)

    @property
    def modest(self) -> Iterator[Depthwise]:
        """The same with ever fewer registers, for the same arguments; see `edgesparse.building.registers`."""
        if not self.few:
            yield from (replace(self, registers=self.registers // by) for by in (2, 4))
        if not self.window.flat:
            yield from (replace(self, registers=sums, few=True) for sums in (8, 4, 2, 1))

    @property
    def slides(self) -> bool:
        """Whether taps see vectors that were slid, not loaded."""
        return self.wide and not self.window.flat and self.window.stride[1] <= 2

    @property
    def width(self) -> int:
        """Lanes of the vectors that are summed."""
        return self.window.lanes(self.lanes, wide=self.wide)

    @property
    def _holds_weights(self) -> bool:
        return self.by_lane and self.width == self.lanes <= len(self.window.taps)

    def build(self) -> Any:
        residual = [("r", "float32")] if self.epilogue.residual != "none" else []
        pointers = [("x", "float32"), ("w", "float32"), ("b", "float32"), *residual, ("y", "float32")]
        return kernel(self.symbol, pointers, self._body, self.barrier)

    def _body(self, body: Body) -> None:
        window, lanes = self.window, self.width
        apart = bool(self.barrier) and self.epilogue.long
        epilogue = Epilogue() if apart else self.epilogue
        with body.loop(body.begin, body.end) as channel:
            for chunk, acc in self._sums(body, channel, body.let(channel // self.multiplier)):
                for index in range(len(chunk.outputs)):
                    if epilogue.numbers > 2 and index % 4 == 0:
                        body.fence()
                    for first, value, count in self._parts(body, acc[index], lanes):
                        finish(body, epilogue, window, channel, chunk.pixel(index) + first, value, count)
            if apart:
                activate(body, self.epilogue, window, channel, lanes)

    def _sums(self, body: Body, channel: Any, source: Any) -> Iterator[tuple[Chunk | narrow.Piece, Any]]:
        """The chunks of an output channel and their sums; `source`: the input channel."""
        window, lanes = self.window, self.width
        if self.few:
            first, wide = body.let(channel * len(window.taps)), window.kernel[1]

            def step(ky: Any, kx: int) -> narrow.Step:
                weight = body.let(body.spread(body["w"][first + ky * wide + kx], lanes))
                return lambda total, x: total + weight * x

            bias = functools.partial(body.spread, body["b"][channel], lanes)
            yield from narrow.sums(body, window, self.cut, lanes, source, bias, step)
            return
        bias = body.let(body.spread(body["b"][channel], lanes))
        weight = self._weights(body, channel, lanes)
        for chunk in chunks(body, window, self.cut, source, lanes, slide=self.slides):
            acc = body.registers(len(chunk.outputs), lanes)
            for index in range(len(chunk.outputs)):
                body.put(acc, index, bias)
            for x, uses in chunk.inputs(by_column=self._holds_weights):
                if x is not None:
                    x = body.let(x)
                    for index, tap in uses:
                        body.put(acc, index, acc[index] + weight(tap) * x)
            yield chunk, acc

    def _parts(self, body: Body, value: Any, lanes: int) -> list[tuple[int, Any, int]]:
        """(first pixel, vector, lanes) to be stored: two halves that overlap where a vector is wider than the row."""
        width, half = self.window.width_out, lanes // 2
        if self.window.flat or width >= lanes:
            return [(0, value, lanes)]
        value = body.let(value)
        return [(at, body.let(body.pick(value, value, range(at, at + half))), half) for at in (0, width - half)]

    def _weights(self, body: Body, channel: Any, lanes: int) -> Callable[[int], Any]:
        """What gives a tap's weight in all lanes."""
        taps = len(self.window.taps)
        first = body.let(channel * taps)
        if not self._holds_weights:
            return lambda tap: body.spread(body["w"][first + tap], lanes)
        # The last vector overlaps the one before: nothing is read behind the channel.
        starts = [min(start, taps - lanes) for start in range(0, taps, lanes)]
        held = [body.let(body.load("w", first + start, lanes)) for start in starts]
        return lambda tap: body.splat(held[tap // lanes], tap - starts[tap // lanes], lanes)
