"""Probes of a core: nothing but multiply-adds on registers, or nothing but loads, on enough independent sums to hide
their latency.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgesparse.kernels.builder import Body, kernel

#: Independent sums: enough for any core's latency times throughput, few enough for 16 registers.
SUMS = 12


@dataclass(frozen=True)
class Probe:
    """``sum = sum * x + y`` on `SUMS` vectors of `lanes`, over and over.

    Pointers: x and y (one vector each), out (`SUMS` vectors, so that nothing is optimised away). Arguments: none.
    Range: repetitions, each ``2 * SUMS * lanes`` floating-point operations.
    """

    lanes: int

    @property
    def symbol(self) -> str:
        return f"es_probe_f32_{SUMS}x{self.lanes}"

    def build(self) -> Any:
        return kernel(self.symbol, [("x", "float32"), ("y", "float32"), ("out", "float32")], self._body)

    def _body(self, body: Body) -> None:
        x, y = (body.let(body.load(name, body.const(0), self.lanes)) for name in ("x", "y"))
        sums = body.registers(SUMS, self.lanes)
        for index in range(SUMS):
            body.put(sums, index, body.number(float(index), self.lanes))
        with body.loop(body.begin, body.end):
            for index in range(SUMS):
                body.put(sums, index, sums[index] * x + y)
        for index in range(SUMS):
            body.store("out", body.const(index * self.lanes), sums[index], self.lanes)


@dataclass(frozen=True)
class LoadProbe:
    """``sum = sum + x[..]`` on `SUMS` vectors of `lanes` over a stretch of memory, over and over.

    Pointers: x, out (`SUMS` vectors). Arguments: blocks of ``SUMS * lanes`` elements in the stretch. Range:
    repetitions, each of which loads the whole stretch.
    """

    lanes: int

    @property
    def symbol(self) -> str:
        return f"es_load_probe_f32_{SUMS}x{self.lanes}"

    def build(self) -> Any:
        return kernel(self.symbol, [("x", "float32"), ("out", "float32")], self._body)

    def _body(self, body: Body) -> None:
        blocks = body.arg(0)
        sums = body.registers(SUMS, self.lanes)
        for index in range(SUMS):
            body.put(sums, index, body.number(0.0, self.lanes))
        with body.loop(body.begin, body.end), body.loop(0, blocks) as block:
            for index in range(SUMS):
                at = (block * SUMS + index) * self.lanes
                body.put(sums, index, sums[index] + body.load("x", at, self.lanes))
        for index in range(SUMS):
            body.store("out", body.const(index * self.lanes), sums[index], self.lanes)
