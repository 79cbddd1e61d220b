"""Puts images together pixel by pixel: the last step of transposed convolution, depth to space, nearest resize."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgesparse.kernels.builder import Body, kernel


@dataclass(frozen=True)
class Interleave:
    """``y[c][q * sy + dy][r * sx + dx] = phase[dy, dx][c][q][r]`` for ``sy * sx`` phases of `width` columns.

    Pointers: x (the arena), y. Arguments: rows of a phase, elements from channel to channel in the phases, then for
    each phase (dy outermost) the element offset of its first channel. Range: channels.
    """

    blocks: tuple[int, int]
    width: int
    widest: int
    barrier: str = ""

    @property
    def lanes(self) -> int:
        lanes = self.widest
        while lanes > self.width:
            lanes //= 2
        return lanes

    @property
    def symbol(self) -> str:
        fenced = "b" if self.barrier else ""
        return f"es_interleave{fenced}_f32_{self.blocks[0]}x{self.blocks[1]}_{self.width}_{self.widest}"

    def build(self) -> Any:
        return kernel(self.symbol, [("x", "float32"), ("y", "float32")], self._body, self.barrier)

    def _body(self, body: Body) -> None:
        (down, across), width, lanes = self.blocks, self.width, self.lanes
        rows, step = body.arg(0), body.arg(1)
        with body.loop(body.begin, body.end) as channel, body.loop(0, rows) as row:
            source = body.let(channel * step + row * width)
            for dy in range(down):
                target = body.let((channel * rows + row) * (down * across * width) + dy * across * width)
                starts = [body.let(body.args[2 + dy * across + dx] + source) for dx in range(across)]
                blocks = body.rounds(width // lanes) if self.barrier else width // lanes
                with body.loop(0, blocks) as block:
                    self._block(body, starts, target, block * lanes)
                if width % lanes:
                    self._block(body, starts, target, body.const(width - lanes))

    def _block(self, body: Body, starts: list[Any], target: Any, first: Any) -> None:
        """One vector of each phase of a row; the last one of a row may overlap its neighbour."""
        from tvm import tirx

        across, lanes = self.blocks[1], self.lanes
        body.fence()
        loaded = [body.let(body.load("x", start + first, lanes)) for start in starts]
        for part in range(across):
            places = [divmod(part * lanes + lane, across) for lane in range(lanes)]
            if across == 1 or lanes == 1:
                value = loaded[part]
            else:
                picks = [tirx.IntImm("int32", phase * lanes + lane) for lane, phase in places]
                value = tirx.Shuffle(loaded, picks)
            body.store("y", target + first * across + part * lanes, value, lanes)
