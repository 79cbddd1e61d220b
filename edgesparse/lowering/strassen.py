"""Lowering of dense 1x1 convolutions and linear layers by Strassen's algorithm; see `kernels.strassen`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgesparse.graph.ops import Conv, Linear, Op, Recurrence
from edgesparse.kernels import Epilogue, StrassenIn, StrassenProduct
from edgesparse.kernels.strassen import ADDEND, EPILOGUE, PARTS, SCALE
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
    """Where a product goes, and the steps before: additions, scales of its rows, the epilogue."""

    y: _Part
    steps: tuple[tuple[str, _Part], ...] = ()

    @property
    def form(self) -> str:
        return "".join(step for step, _ in self.steps)

    @property
    def places(self) -> list[_Part]:
        """What its kernel takes: the parts of the steps that have one, and where it goes."""
        return [*(part for step, part in self.steps if step != EPILOGUE), self.y]

    @property
    def pitches(self) -> list[int]:
        return [*(part.pitch for step, part in self.steps if step == ADDEND), self.y.pitch]

    def at(self, row: int, pixel: int) -> _Output:
        """A part of it."""
        steps = ((step, part.at(row, pixel if step == ADDEND else 0)) for step, part in self.steps)
        return _Output(self.y.at(row, pixel), tuple(steps))

    def after(self, *steps: tuple[str, _Part]) -> _Output:
        """The same with steps before its own."""
        return _Output(self.y, (*steps, *self.steps))


@dataclass(frozen=True)
class _Strassen:
    emitter: Emitter
    op: Conv | Linear | Recurrence
    product: Product

    def multiply(
        self,
        key: str,
        weight: np.ndarray,
        bias: np.ndarray | None,
        x: _Part,
        pixels: int,
        outputs: list[_Output],
        levels: int,
    ) -> None:
        """The product of `weight` ``[N, K]`` with `pixels` pixels of x and the bias (float64), cut `levels` times."""
        if not levels:
            self._multiply(key, weight, bias, x, pixels, outputs)
            return
        rows, depth = weight.shape[0] // 2, weight.shape[1] // 2
        half = -(-pixels // 2)
        last = pixels - half  # of an odd number of pixels the one in the middle is computed twice
        (a, b), (c, d) = ((x.at(row, 0), x.at(row, last)) for row in (0, depth))
        # Second channels as large as the first, of the weights and so, on the whole, of the input; then second rows.
        columns = _factors(weight[:, depth:], weight[:, :depth], 0)
        even = weight / np.concatenate([np.ones(depth), columns])
        scales = _factors(even[rows:], even[:rows], 1)
        even = even / np.concatenate([np.ones(rows), scales])[:, None]
        t1, t2, t3, t4 = self._differences(f"{key}/columns", levels, columns, (a, b, c, d), half)
        p1, u2, u3, u4 = ((ADDEND, self._room(levels, name, rows, half)) for name in ("p1", "u2", "u3", "u4"))
        w11, w12, w21, w22 = even[:rows, :depth], even[:rows, depth:], even[rows:, :depth], even[rows:, depth:]
        s1 = w21 + w22
        s2 = s1 - w11
        high, low = (None, None) if bias is None else (bias[:rows], bias[rows:] / scales)
        back = (SCALE, self._constant(f"{key}/scales", scales))

        def multiply(number: int, w: np.ndarray, b: np.ndarray | None, x: _Part, *outputs: _Output) -> None:
            self.multiply(f"{key}.{number}", w, b, x, half, list(outputs), levels - 1)

        multiply(1, w11, None, a, _Output(p1[1]))
        multiply(2, w12 * columns, high, c, *(each.at(0, 0).after(p1) for each in outputs))
        multiply(3, s2, None, t2, _Output(u2[1], (p1,)))
        multiply(4, s1, None, t1, _Output(u4[1], (u2,)))
        multiply(5, (w12 - s2) * columns, high, d, *(each.at(0, last).after(u4) for each in outputs))
        below = (each.at(rows, last).after(u4, back) for each in outputs)
        multiply(6, w11 - w21, low, t3, _Output(u3[1], (u2,)), *below)
        multiply(7, -w22, None, t4, *(each.at(rows, 0).after(u3, back) for each in outputs))

    def _differences(
        self, name: str, level: int, factors: np.ndarray, parts: tuple[_Part, ...], pixels: int
    ) -> list[_Part]:
        channels = len(factors)
        made = self._room(level, "differences", PARTS * channels, pixels)
        spec = StrassenIn(pixels, self.emitter.target.lanes)
        refs = [*(part.ref for part in parts), self._constant(name, factors).ref, made.ref]
        self.emitter.call(spec, refs, [parts[0].pitch, made.pitch, channels * made.pitch], channels)
        return [made.at(number * channels, 0) for number in range(PARTS)]

    def _room(self, level: int, what: str, rows: int, pixels: int) -> _Part:
        pitch = pitch_of(pixels)
        name = f"strassen{self.emitter.strip}:{self.op.name}:{level}:{what}"
        return _Part(Ref(self.emitter.buffer(name, 4 * rows * pitch)), pitch)

    def _constant(self, name: str, values: np.ndarray) -> _Part:
        return _Part(self.emitter.constant(name, lambda: values.astype(np.float32)), 1)

    def _multiply(
        self, key: str, weight: np.ndarray, bias: np.ndarray | None, x: _Part, pixels: int, outputs: list[_Output]
    ) -> None:
        emitter, op = self.emitter, self.op
        if key not in emitter.packs:
            emitter.packs[key] = pack(weight.astype(np.float32), self.product.group, dense=True)
        rows = len(weight)
        start = self._constant(
            f"nothing{rows}" if bias is None else f"{key}/bias", np.zeros(rows) if bias is None else bias
        )
        forms = tuple(output.form for output in outputs)
        # In one kernel only what has the layer's epilogue: the others are then the same for all layers.
        epilogue = replace(op.epilogue, residual="none") if EPILOGUE in "".join(forms) else Epilogue()
        affine = bits_of(op.affine) if isinstance(op, Conv) and op.epilogue.affine else [0, 0]
        for number, part in enumerate(emitter.packs[key]):
            usual = kernel_of(self.product, part.group, pixels, weight.shape[1], epilogue, emitter.target)
            places = [place for output in outputs for place in output.at(part.first, 0).places]
            refs = [
                x.ref,
                emitter.constant(f"{key}/values{number}", lambda part=part: part.values),  # type: ignore[misc]
                start.at(part.first, 0).ref,
                *(place.ref for place in places),
            ]
            pitches = [pitch for output in outputs for pitch in output.pitches]
            args: list[int | Ref] = [0, 0, x.pitch, part.depth, *affine, *pitches]
            # A thread's share of the rows reads and adds up nothing but its own rows of other products.
            along = f"{_SHARES}{op.name}" if len(emitter.packs[key]) == 1 else ""
            emitter.call(StrassenProduct.of(usual, forms), refs, args, part.groups, along=along)
            if along and emitter.cut is not None:
                emitter.cut = replace(emitter.cut, value=along)


def _factors(large: np.ndarray, small: np.ndarray, axis: int) -> np.ndarray:
    """Powers of two by which one half of the rows (`axis` 1) or columns is larger than the other, by their norms."""
    norms = [np.linalg.norm(each, axis=axis) for each in (large, small)]
    known = (norms[0] > 0) & (norms[1] > 0) & np.isfinite(norms[0] + norms[1])
    ratio = np.divide(norms[0], norms[1], out=np.ones_like(norms[0]), where=known)
    found: np.ndarray = np.exp2(np.clip(np.round(np.log2(ratio)), -_MOST, _MOST))
    return found


#: Powers of two by which two channels are brought together: beyond it, the smaller is nothing beside the larger.
_MOST = 24

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
    bias = op.bias.astype(np.float64)
    weight = op.weight[:, :, 0].astype(np.float64)
    steps = [*([(ADDEND, _Part(*residual))] if residual else []), (EPILOGUE, _Part(*y))]
    output = _Output(_Part(*y), tuple(steps))
    strassen = _Strassen(emitter, op, product)
    strassen.multiply(f"{op.name}/strassen{levels}", weight, bias, _Part(*x), pixels, [output], levels)
