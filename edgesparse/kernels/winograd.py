"""Dense 3x3 convolution of stride 1 with 16 multiplications for four outputs: Winograd's F(2x2, 3x3).

Each 4x4 piece d of the input, two pixels from the next, becomes ``B^T d B``; 16 products of matrices over the input
channels follow, one for each of its places, with the weights ``G g G^T``; ``A^T m A`` of what they give are 2x2 output
pixels (Lavin and Gray, arXiv 1509.09308). All of B and A is 0, 1 and -1: rounding stays that of a few additions.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgesparse.kernels.builder import Body, kernel
from edgesparse.kernels.epilogue import Epilogue
from edgesparse.kernels.rows import chunks
from edgesparse.kernels.spmm import AFFINE_AT
from edgesparse.kernels.tiles import vector_starts
from edgesparse.kernels.window import Window

#: Products of matrices for one convolution.
PLACES = 16

_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])


def transformed(weight: np.ndarray) -> np.ndarray:
    """Weights ``[N, K, 9]`` as 16 matrices ``[16, N, K]``, computed in float64 and rounded once."""
    square = weight.astype(np.float64).reshape(*weight.shape[:2], 3, 3)
    made = np.einsum("ai,nkij,bj->abnk", _G, square, _G)
    return np.ascontiguousarray(made.reshape(PLACES, *weight.shape[:2]), np.float32)


def pieces(top: int, left: int, width_in: int, width: int, rows: int) -> Window:
    """The 4x4 pieces of a band of `rows` output rows of `width` pixels, both even."""
    return Window((4, 4), (2, 2), (1, 1), top, left, width_in, width // 2, rows // 2)


@dataclass(frozen=True)
class WinogradIn:
    """``B^T d B`` of all pieces of a band.

    Pointers: x (the arena), y ``[16][channels][pitch]``. Arguments: pitch of y, elements from place to place in y, the
    two row tables of `window`. Range: channels.
    """

    window: Window
    lanes: int

    @property
    def symbol(self) -> str:
        return f"es_winograd_in_f32_{self.window.name}_{self.lanes}"

    def build(self) -> Any:
        return kernel(self.symbol, [("x", "float32"), ("y", "float32")], self._body)

    def _body(self, body: Body) -> None:
        window, lanes = self.window, self.window.lanes(self.lanes)
        zero = body.number(0.0, lanes)
        with body.loop(body.begin, body.end) as channel:
            for chunk in chunks(body, window, window.blocks(lanes, 1), channel, lanes):
                d = [body.let(zero if x is None else x) for _, _, x in chunk.taps()]
                down = [_spread_out(body, d[kx::4]) for kx in range(4)]
                tile = body.let(channel * body.arg(0) + chunk.pixel(0))
                for ky in range(4):
                    for kx, value in enumerate(_spread_out(body, [down[kx][ky] for kx in range(4)])):
                        body.store("y", tile + (4 * ky + kx) * body.arg(1), value, lanes)


def _spread_out(body: Body, x: list[Any]) -> list[Any]:
    """``B^T x`` along one axis."""
    return [body.let(value) for value in (x[0] - x[2], x[1] + x[2], x[2] - x[1], x[1] - x[3])]


@dataclass(frozen=True)
class WinogradOut:
    """``epilogue(A^T m A + b)`` of all pieces of a band.

    Pointers: m ``[16][channels][pitch]``, b, residual (if any), y. Arguments: pitch of y, of the residual and of m,
    elements from place to place in m, the epilogue's scale and shift. Range: channels.
    """

    columns: int
    rows: int
    epilogue: Epilogue
    lanes: int

    @property
    def symbol(self) -> str:
        return f"es_winograd_out_f32_{self.columns}x{self.rows}_{self.lanes}_{self.epilogue.name}"

    def build(self) -> Any:
        residual = [("r", "float32")] if self.epilogue.residual != "none" else []
        return kernel(self.symbol, [("m", "float32"), ("b", "float32"), *residual, ("y", "float32")], self._body)

    def _body(self, body: Body) -> None:
        lanes = pieces(1, 1, 2 * self.columns, 2 * self.columns, 2 * self.rows).lanes(self.lanes)
        # Each of the two vectors of a row of pixels: pixels of even and odd columns in turn.
        turns = [[(half * lanes + i) // 2 + lanes * (i % 2) for i in range(lanes)] for half in (0, 1)]
        with body.loop(body.begin, body.end) as channel:
            bias = body.let(body.spread(body["b"][channel], lanes))
            for row, start in itertools.product(range(self.rows), vector_starts(self.columns, lanes)):
                tile = body.let(channel * body.arg(2) + row * self.columns + start)
                m = [body.let(body.load("m", tile + place * body.arg(3), lanes)) for place in range(PLACES)]
                down = [_drawn_in(body, m[kx::4]) for kx in range(4)]
                for y in range(2):
                    even, odd = _drawn_in(body, [down[kx][y] for kx in range(4)])
                    pixel = (2 * row + y) * 2 * self.columns + 2 * start
                    for half, turn in enumerate(turns):
                        value = body.pick(even, odd, turn) if lanes > 1 else (even, odd)[half]
                        self._finish(body, channel, pixel + half * lanes, body.let(value) + bias, lanes)

    def _finish(self, body: Body, channel: Any, pixel: int, value: Any, lanes: int) -> None:
        residual = None
        if self.epilogue.residual != "none":
            residual = body.let(body.load("r", channel * body.arg(1) + pixel, lanes))
        value = self.epilogue.apply(body, body.let(value), lanes, residual, AFFINE_AT)
        body.store("y", channel * body.arg(0) + pixel, value, lanes)


def _drawn_in(body: Body, x: list[Any]) -> list[Any]:
    """``A^T x`` along one axis."""
    return [body.let(x[0] + x[1] + x[2]), body.let(x[1] - x[2] - x[3])]
