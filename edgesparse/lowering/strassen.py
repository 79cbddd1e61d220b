"""Lowering of dense 1x1 convolutions and linear layers by Strassen's algorithm; see `kernels.strassen`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgesparse.graph.ops import Conv, Linear, Op, Recurrence
from edgesparse.kernels import Epilogue, StrassenIn, StrassenProduct
from edgesparse.kernels.strassen import PARTS
from edgesparse.lowering.emitter import Emitter, bits_of
from edgesparse.lowering.program import Ref
from edgesparse.planning.algorithms import ALGORITHMS, halved, levels_for
from edgesparse.planning.packing import pack
from edgesparse.planning.place import Placement
from edgesparse.planning.plan import Plan, pitch_of
from edgesparse.planning.products import Product, job_of, kernel_of

Spot = tuple[Ref, int]


@dataclass(frozen=True)
class _Part:
    """Some channels and pixels of a matrix: where it begins, and its pitch."""

    ref: Ref
    pitch: int

    def at(self, row: int, pixel: int) -> _Part:
        return _Part(Ref(self.ref.name, self.ref.offset + 4 * (row * self.pitch + pixel)), self.pitch)


@dataclass(frozen=True)
class _Output:
    """Where a product goes, what is added to it there, and whether that is the layer's output."""

    y: _Part
    addends: tuple[_Part, ...] = ()
    finished: bool = False

    def at(self, row: int, pixel: int, *more: _Part) -> _Output:
        """A part of it, with `more` added."""
        return _Output(self.y.at(row, pixel), (*more, *(each.at(row, pixel) for each in self.addends)), self.finished)


@dataclass(frozen=True)
class _Strassen:
    emitter: Emitter
    op: Conv | Linear | Recurrence
    product: Product

    def multiply(
        self, key: str, weight: np.ndarray, bias: Ref | None, x: _Part, pixels: int, outputs: list[_Output], levels: int
    ) -> None:
        """The product of `weight` ``[N, K]`` (float64) with `pixels` pixels of x and the bias, cut `levels` times."""
        if not levels:
            self._multiply(key, weight, bias, x, pixels, outputs)
            return
        rows, depth = weight.shape[0] // 2, weight.shape[1] // 2
        half = -(-pixels // 2)
        last = pixels - half  # of an odd number of pixels the one in the middle is computed twice
        (a, b), (c, d) = ((x.at(row, 0), x.at(row, last)) for row in (0, depth))
        t1, t2, t3, t4 = self._differences(levels, (a, b, c, d), depth, half)
        p1, u2, u3, u4 = (self._room(levels, name, rows, half) for name in ("p1", "u2", "u3", "u4"))
        w11, w12, w21, w22 = weight[:rows, :depth], weight[:rows, depth:], weight[rows:, :depth], weight[rows:, depth:]
        s1 = w21 + w22
        s2 = s1 - w11
        low = Ref(bias.name, bias.offset + 4 * rows) if bias else None

        def multiply(number: int, w: np.ndarray, b: Ref | None, x: _Part, *outputs: _Output) -> None:
            self.multiply(f"{key}.{number}", w, b, x, half, list(outputs), levels - 1)

        multiply(1, w11, None, a, _Output(p1))
        multiply(2, w12, bias, c, *(each.at(0, 0, p1) for each in outputs))
        multiply(3, s2, None, t2, _Output(u2, (p1,)))
        multiply(4, s1, None, t1, _Output(u4, (u2,)))
        multiply(5, w12 - s2, bias, d, *(each.at(0, last, u4) for each in outputs))
        multiply(6, w11 - w21, low, t3, _Output(u3, (u2,)), *(each.at(rows, last, u4) for each in outputs))
        multiply(7, -w22, None, t4, *(each.at(rows, 0, u3) for each in outputs))

    def _differences(self, level: int, parts: tuple[_Part, ...], channels: int, pixels: int) -> list[_Part]:
        made = self._room(level, "differences", PARTS * channels, pixels)
        spec = StrassenIn(pixels, self.emitter.target.lanes)
        refs = [*(part.ref for part in parts), made.ref]
        self.emitter.call(spec, refs, [parts[0].pitch, made.pitch, channels * made.pitch], channels)
        return [made.at(number * channels, 0) for number in range(PARTS)]

    def _room(self, level: int, what: str, rows: int, pixels: int) -> _Part:
        pitch = pitch_of(pixels)
        name = f"strassen{self.emitter.strip}:{self.op.name}:{level}:{what}"
        return _Part(Ref(self.emitter.buffer(name, 4 * rows * pitch)), pitch)

    def _multiply(
        self, key: str, weight: np.ndarray, bias: Ref | None, x: _Part, pixels: int, outputs: list[_Output]
    ) -> None:
        emitter, op = self.emitter, self.op
        if key not in emitter.packs:
            emitter.packs[key] = pack(weight.astype(np.float32), self.product.group, dense=True)
        rows = weight.shape[0]
        bias = bias or emitter.constant(f"nothing{rows}", lambda: np.zeros(rows, np.float32))
        finished = tuple(output.finished for output in outputs)
        # In one kernel only what has the layer's epilogue: the others are then the same for all layers.
        epilogue = replace(op.epilogue, residual="none") if any(finished) else Epilogue()
        affine = bits_of(op.affine) if isinstance(op, Conv) and op.epilogue.affine else [0, 0]
        for number, part in enumerate(emitter.packs[key]):
            spec = StrassenProduct.of(
                kernel_of(self.product, part.group, pixels, weight.shape[1], epilogue, emitter.target),
                tuple(len(output.addends) for output in outputs),
                finished,
            )
            places = [place.at(part.first, 0) for output in outputs for place in (*output.addends, output.y)]
            refs = [
                x.ref,
                emitter.constant(f"{key}/values{number}", lambda part=part: part.values),  # type: ignore[misc]
                Ref(bias.name, bias.offset + 4 * part.first),
                *(place.ref for place in places),
            ]
            args: list[int | Ref] = [0, 0, x.pitch, part.depth, *affine, *(place.pitch for place in places)]
            # A thread's share of the rows reads and adds up nothing but its own rows of other products.
            along = f"{_SHARES}{op.name}" if len(emitter.packs[key]) == 1 else ""
            emitter.call(spec, refs, args, part.groups, along=along)
            if along and emitter.cut is not None:
                emitter.cut = replace(emitter.cut, value=along)


#: Before a layer's name: the rows that each thread has of all of its products. No value is called so.
_SHARES = "@strassen:"


def strassen_levels(plan: Plan, op: Op, placement: Placement, pixels: int) -> int:
    """How often a call of `pixels` is halved; 0 where the layer is not placed by Strassen's algorithm."""
    algorithm = ALGORITHMS.get(placement.algorithm)
    if algorithm is None or not algorithm.levels:
        return 0
    usual = job_of(op, plan)
    assert usual is not None
    return levels_for(pixels, algorithm.levels, halved(usual.pixels, algorithm.levels))


def lower_strassen(
    emitter: Emitter,
    op: Conv | Linear | Recurrence,
    product: Product,
    levels: int,
    pixels: int,
    x: Spot,
    y: Spot,
    residual: Spot | None,
) -> None:
    """The product of one band, or of all rows of a linear layer: differences of the input, and 7 products, or 49."""
    bias = emitter.constant(f"{op.name}/bias", lambda: np.ascontiguousarray(op.bias, np.float32))
    weight = op.weight[:, :, 0].astype(np.float64)
    output = _Output(_Part(*y), (_Part(*residual),) if residual else (), finished=True)
    strassen = _Strassen(emitter, op, product)
    strassen.multiply(f"{op.name}/strassen{levels}", weight, bias, _Part(*x), pixels, [output], levels)
