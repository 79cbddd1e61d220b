"""Kernels that touch each value once: elementwise with broadcast, copies between layouts, reductions over pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from edgesparse.errors import UnsupportedError
from edgesparse.kernels.builder import Body, kernel
from edgesparse.kernels.epilogue import Epilogue

#: What `Pointwise.op` may be; "first" takes the first operand alone.
BINARY = ("first", "add", "sub", "mul", "div", "max", "min")

#: How the second operand meets a channel's pixels.
OPERANDS = ("none", "full", "channel", "scalar")


@dataclass(frozen=True)
class Pointwise:
    """``y[c][p] = epilogue(x[c][p] op z)`` over the channels of a band; with op "first" an activation or a copy.

    Pointers: x, z (unless `operand` is "none"), y. Arguments: pitch of x, of z ("channel": distance between channels),
    of y. Range: channels. `swapped` computes ``z op x``. `one` keeps LLVM, where there is a `barrier`, to one vector at
    a time, in a loop that is not unrolled; long activations do so anyway where it does not see the number of rounds.
    """

    op: str
    operand: str
    pixels: int
    epilogue: Epilogue
    lanes: int
    swapped: bool = False
    barrier: str = ""
    one: bool = False

    def __post_init__(self) -> None:
        if self.op not in BINARY or self.operand not in OPERANDS or self.epilogue.residual != "none":
            raise UnsupportedError(f"no kernel {self}")

    @property
    def symbol(self) -> str:
        order = ("r" if self.swapped else "") + ("b" if self._fenced else "") + ("1" if self.one else "")
        return f"es_{order}{self.op}_{self.operand}_f32_{self.pixels}px_{self.lanes}_{self.epilogue.name}"

    @property
    def _copies(self) -> bool:
        return self.operand == "none" and self.epilogue == Epilogue()

    @property
    def _fenced(self) -> bool:
        return bool(self.barrier) and (self.epilogue.long or self._copies or self.one)

    @property
    def modest(self) -> Iterator[Pointwise]:
        """The same with fewer registers, for the same arguments; see `edgesparse.building.registers`."""
        if self.barrier and not self.one:
            yield replace(self, one=True)

    def build(self) -> Any:
        operand = [] if self.operand == "none" else [("z", "float32")]
        barrier = self.barrier if self._fenced else ""
        return kernel(self.symbol, [("x", "float32"), *operand, ("y", "float32")], self._body, barrier)

    def _body(self, body: Body) -> None:
        # Vectors that never overlap, then single pixels: y may be x.
        with body.loop(body.begin, body.end) as index:
            # LLVM calls memcpy for a copy, unrolls the loop around it for some cores, and keeps an address for each.
            channel = body.let(index + body.hidden(0, index)) if body.barrier and self._copies else index
            x_row, y_row = body.let(channel * body.arg(0)), body.let(channel * body.arg(2))
            z_row = channel * body.arg(1)
            whole, rest = divmod(self.pixels, self.lanes)
            if whole:
                with body.loop(0, body.rounds(whole) if self.one else whole) as block:
                    self._step(body, x_row, z_row, y_row, block * self.lanes, self.lanes)
            if rest:
                first = whole * self.lanes
                with body.loop(first, body.rounds(rest) + first if self.one else self.pixels) as pixel:
                    self._step(body, x_row, z_row, y_row, pixel, 1)

    def _step(self, body: Body, x_row: Any, z_row: Any, y_row: Any, pixel: Any, lanes: int) -> None:
        if self.epilogue.long or self.one:
            body.fence()  # LLVM unrolls the loop for some cores
        x = body.let(body.load("x", x_row + pixel, lanes))
        if self.operand == "full":
            x = self._combine(body, x, body.let(body.load("z", z_row + pixel, lanes)))
        elif self.operand == "channel":
            x = self._combine(body, x, body.let(body.spread(body["z"][z_row], lanes)))
        elif self.operand == "scalar":
            x = self._combine(body, x, body.let(body.spread(body["z"][0], lanes)))
        body.store("y", y_row + pixel, self.epilogue.apply(body, x, lanes), lanes)

    def _combine(self, body: Body, x: Any, z: Any) -> Any:
        if self.swapped:
            x, z = z, x
        if self.op in ("max", "min"):
            return getattr(body.T, self.op)(x, z)
        return {"add": lambda: x + z, "sub": lambda: x - z, "mul": lambda: x * z, "div": lambda: x / z}[self.op]()


@dataclass(frozen=True)
class GlobalPool:
    """Mean or maximum over all pixels of each channel; `mode` is "avg" or "max".

    Pointers: x (the arena), y. Arguments: number of pixels in all, number of bands, and for each band its element
    offset, its pitch and its pixels. ``y[c]`` is written. Range: channels.
    """

    mode: str
    lanes: int

    @property
    def symbol(self) -> str:
        return f"es_global_{self.mode}_f32_{self.lanes}"

    def build(self) -> Any:
        return kernel(self.symbol, [("x", "float32"), ("y", "float32")], self._body)

    def _body(self, body: Body) -> None:
        lanes = self.lanes
        start = 0.0 if self.mode == "avg" else float("-inf")
        streams = 4
        acc = body.registers(streams, lanes)
        rest = body.registers(1, 1)
        spill = body.scratch(max(lanes, 2))
        total, bands = body.arg(0), body.arg(1)
        with body.loop(body.begin, body.end) as channel:
            for s in range(streams):
                body.put(acc, s, body.number(start, lanes))
            body.put(rest, 0, body.number(start, 1))
            with body.loop(0, bands) as band:
                row = body.let(body.args[2 + band * 3] + channel * body.args[3 + band * 3])
                count = body.let(body.args[4 + band * 3])
                blocks = body.let(count // (streams * lanes))
                with body.loop(0, blocks) as block:
                    for s in range(streams):
                        x = body.load("x", row + (block * streams + s) * lanes, lanes)
                        body.put(acc, s, self._join(body, acc[s], x))
                done = body.let(blocks * streams)
                with body.loop(done, count // lanes) as block:
                    body.put(acc, 0, self._join(body, acc[0], body.load("x", row + block * lanes, lanes)))
                with body.loop(count // lanes * lanes, count) as pixel:
                    body.put(rest, 0, self._join(body, rest[0], body["x"][row + pixel]))
            joined = self._join(body, self._join(body, acc[0], acc[1]), self._join(body, acc[2], acc[3]))
            body.T.buffer_store(spill, joined, [body.index(0, lanes)])
            values = [spill[lane] for lane in range(lanes)] + [rest[0]]
            while len(values) > 1:
                pairs = [self._join(body, a, b) for a, b in zip(values[::2], values[1::2], strict=False)]
                values = pairs + values[len(pairs) * 2 :]
            result = values[0] if self.mode == "max" else values[0] / body.T.Cast("float32", total)
            body.store("y", channel, result, 1)

    def _join(self, body: Body, a: Any, b: Any) -> Any:
        return a + b if self.mode == "avg" else body.T.max(a, b)


@dataclass(frozen=True)
class Transpose:
    """``y[c][r] = x[r][c]`` for a matrix of floats, in square blocks of one vector, turned within registers.

    Pointers: x, y. Arguments: pitch of x, pitch of y, rows r in all. Range: columns c of x.
    """

    lanes: int

    @property
    def symbol(self) -> str:
        return f"es_transpose_f32_{self.lanes}"

    def build(self) -> Any:
        return kernel(self.symbol, [("x", "float32"), ("y", "float32")], self._body)

    def _body(self, body: Body) -> None:
        x_pitch, y_pitch, rows = body.arg(0), body.arg(1), body.arg(2)
        lanes = self.lanes
        down = body.let(rows // lanes)
        across = body.let((body.end - body.begin) // lanes)
        edge = body.let(body.begin + across * lanes)
        with body.loop(0, down) as block:
            row = body.let(block * lanes)
            with body.loop(0, across) as tile:
                column = body.let(body.begin + tile * lanes)
                lines = [body.let(body.load("x", (row + i) * x_pitch + column, lanes)) for i in range(lanes)]
                for i, line in enumerate(_turned(body, lines)):
                    body.store("y", (column + i) * y_pitch + row, line, lanes)
            with body.loop(edge, body.end) as column:
                value = body.gather("x", [(row + i) * x_pitch + column for i in range(lanes)])
                body.store("y", column * y_pitch + row, value, lanes)
        with body.loop(down * lanes, rows) as row, body.loop(body.begin, body.end) as column:
            body.store("y", column * y_pitch + row, body["x"][row * x_pitch + column], 1)


def _turned(body: Body, lines: list[Any]) -> list[Any]:
    """A square of vectors transposed: blocks of 1, 2, 4, .. lanes change places across the diagonal."""
    lanes, size = len(lines), 1
    while size < lanes:
        upper = [lane if not lane & size else lanes + lane - size for lane in range(lanes)]
        lower = [lane + size if not lane & size else lanes + lane for lane in range(lanes)]
        for i in range(lanes):
            if not i & size:
                a, b = lines[i], lines[i | size]
                lines[i] = body.let(body.pick(a, b, upper))
                lines[i | size] = body.let(body.pick(a, b, lower))
        size *= 2
    return lines
