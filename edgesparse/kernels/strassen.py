"""Dense products with seven multiplications for eight: Strassen's algorithm in Winograd's form, of 15 additions.

Inputs, pixels and output channels are each cut in two. Of the four parts of the input four differences are made
(`StrassenIn`), of those of the weights, when compiling, four sums. Seven products of half the size follow; what they
give is added up as it is stored (`StrassenProduct`), so that no pass over the outputs is left. Each product may be cut
again. (Strassen, Gaussian elimination is not optimal, 1969; Winograd, On multiplication of 2x2 matrices, 1971; adding
up in the stores: Huang et al., Strassen's algorithm reloaded, 2016.)
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from edgesparse.kernels.builder import Body, kernel
from edgesparse.kernels.spmm import AFFINE_AT, Spmm
from edgesparse.kernels.tiles import vector_starts

#: Products, and parts made of the input, for one that is cut.
PRODUCTS, PARTS = 7, 4

#: Place of the pitches of outputs and addends in a product's arguments.
_PITCHES_AT = AFFINE_AT + 2


@dataclass(frozen=True)
class StrassenIn:
    """The four differences of an input's parts: ``b - a``, ``d - (b - a)``, ``d - b``, ``d - (b - a) - c``.

    a and b are the first half of the channels at the first and the last `pixels` pixels, c and d the second half.
    Pointers: a, b, c, d, y ``[4][channels][pitch]``. Arguments: pitch of the input and of y, elements from part to part
    in y. Range: channels, of one half.
    """

    pixels: int
    lanes: int

    @property
    def symbol(self) -> str:
        return f"es_strassen_in_f32_{self.pixels}px_{self.lanes}"

    @property
    def starts(self) -> tuple[tuple[int, int], ...]:
        """Vectors of a channel, (first pixel, lanes): a last one overlaps, a few pixels go one by one."""
        rest = self.pixels % self.lanes
        whole = self.pixels - rest if rest <= self.lanes // 4 or self.pixels < self.lanes else self.pixels
        vectors = vector_starts(whole, self.lanes) if whole else ()
        return (*((start, self.lanes) for start in vectors), *((pixel, 1) for pixel in range(whole, self.pixels)))

    def build(self) -> Any:
        pointers = [(name, "float32") for name in ("a", "b", "c", "d", "y")]
        return kernel(self.symbol, pointers, self._body)

    def _body(self, body: Body) -> None:
        pitch, made, part = body.arg(0), body.arg(1), body.arg(2)
        with body.loop(body.begin, body.end) as channel:
            row, out = body.let(channel * pitch), body.let(channel * made)
            for start, lanes in self.starts:
                a, b, c, d = (body.let(body.load(name, row + start, lanes)) for name in "abcd")
                first = body.let(b - a)
                second = body.let(d - first)
                for number, value in enumerate((first, second, d - b, second - c)):
                    body.store("y", out + (number * part + start), value, lanes)


@dataclass(frozen=True)
class StrassenProduct(Spmm):
    """A dense product that is stored in several places, with something else added in each.

    Attributes
    ----------
    addends:
        For each output, how many addends it has.
    finished:
        For each output, whether it is one of the layer's, and gets the epilogue; the others are parts of such.

    Pointers: x, w, b, then for each output its addends and itself. Arguments: those of a dense `Spmm`, the first two
    unused, then for each of these pointers its pitch.
    """

    addends: tuple[int, ...] = ()
    finished: tuple[bool, ...] = ()

    @classmethod
    def of(cls, spec: Spmm, addends: tuple[int, ...], finished: tuple[bool, ...]) -> StrassenProduct:
        """The same product with other outputs."""
        return cls(
            **{field.name: getattr(spec, field.name) for field in fields(spec)}, addends=addends, finished=finished
        )

    @property
    def symbol(self) -> str:
        outputs = "".join(
            f"{'y' if done else 'p'}{count}" for count, done in zip(self.addends, self.finished, strict=True)
        )
        return f"{super().symbol}_{outputs}"

    @property
    def outputs(self) -> int:
        return len(self.addends)

    @property
    def residuals(self) -> int:
        return sum(self.addends)

    def build(self) -> Any:
        names = [name for output in self._names for name in output]
        return kernel(self.symbol, [(name, "float32") for name in ("x", "w", "b", *names)], self._body)

    @property
    def _names(self) -> list[list[str]]:
        """For each output, the names of its addends, then its own."""
        return [[*(f"r{at}_{number}" for number in range(count)), f"y{at}"] for at, count in enumerate(self.addends)]

    def _finish(self, body: Body, row: Any, pixel: Any, value: Any, lanes: int) -> None:
        at = _PITCHES_AT
        value = body.let(value)
        for (*addends, output), finished in zip(self._names, self.finished, strict=True):
            result = value
            for name in addends:
                result = body.let(result + body.load(name, row * body.arg(at) + pixel, lanes))
                at += 1
            if finished:
                result = self.epilogue.apply(body, result, lanes, None, AFFINE_AT)
            body.store(output, row * body.arg(at) + pixel, result, lanes)
            at += 1
