"""Dense products with seven multiplications for eight: Strassen's algorithm in Winograd's form, of 15 additions.

Inputs, pixels and output channels are each cut in two. Of the four parts of the input four differences are made
(`StrassenIn`), of those of the weights, when compiling, four sums. Seven products of half the size follow; what they
give is added up as it is stored (`StrassenProduct`), so that no pass over the outputs is left. Each product may be cut
again. (Strassen, Gaussian elimination is not optimal, 1969; Winograd, On multiplication of 2x2 matrices, 1971; adding
up in the stores: Huang et al., Strassen's algorithm reloaded, 2016.)

The sums mix a channel of one half with one of the other, of the inputs and of the outputs. Where one of both is much
larger, the other would get its rounding. So both are brought to one size by powers of two, which are exact (scaling
after Ballard et al., Improving the numerical stability of fast matrix multiplication, 2016).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from edgesparse.kernels.builder import Body, kernel
from edgesparse.kernels.spmm import AFFINE_AT, Spmm

#: Products, and parts made of the input, for one that is cut.
PRODUCTS, PARTS = 7, 4

#: Vectors whose differences are written out one after another: in a loop, a whole network took 1.4 % longer.
_AT_ONCE = 8

#: What is done to a result as it is stored: something is added, its row is scaled, the layer's epilogue.
ADDEND, SCALE, EPILOGUE = "a", "s", "e"

#: Place of the pitches of outputs and addends in a product's arguments.
_PITCHES_AT = AFFINE_AT + 2


@dataclass(frozen=True)
class StrassenIn:
    """The four differences of an input's parts: ``b - a``, ``d - (b - a)``, ``d - b``, ``d - (b - a) - c``.

    a and b are the first half of the channels at the first and the last `pixels` pixels, c and d the second half, each
    channel times its factor. Pointers: a, b, c, d, factors ``[channels]``, y ``[4][channels][pitch]``. Arguments: pitch
    of the input and of y, elements from part to part in y. Range: channels, of one half. `few` keeps to one vector
    at a time, in a loop that LLVM does not unroll, with an address for each.
    """

    pixels: int
    lanes: int
    few: bool = False

    @property
    def symbol(self) -> str:
        return f"es_strassen_in{'n' if self.few else ''}_f32_{self.pixels}px_{self.lanes}"

    @property
    def modest(self) -> Iterator[StrassenIn]:
        """The same with fewer registers, for the same arguments; see `edgesparse.building.registers`."""
        if not self.few:
            yield replace(self, few=True)

    @property
    def vectors(self) -> int:
        """Vectors of a channel, of each part: whole ones, and a last that overlaps where many pixels are left."""
        return self.pixels // self.lanes + self._overlaps

    @property
    def _overlaps(self) -> bool:
        return self.pixels > self.lanes and self.pixels % self.lanes > self.lanes // 4

    def build(self) -> Any:
        pointers = [(name, "float32") for name in ("a", "b", "c", "d", "factors", "y")]
        return kernel(self.symbol, pointers, self._body)

    def _body(self, body: Body) -> None:
        pitch, made = body.arg(0), body.arg(1)
        with body.loop(body.begin, body.end) as channel:
            row, out = body.let(channel * pitch), body.let(channel * made)
            factor = body.let(body["factors"][channel])
            at_once = 1 if self.few else _AT_ONCE
            blocks, rest = divmod(self.pixels // self.lanes, at_once)
            if blocks:
                with body.loop(0, body.rounds(blocks) if self.few else blocks) as block:
                    start = body.let(block * (at_once * self.lanes))
                    for vector in range(at_once):
                        self._step(body, row, out, start + vector * self.lanes, self.lanes, factor)
            for vector in range(rest):
                self._step(body, row, out, (blocks * at_once + vector) * self.lanes, self.lanes, factor)
            whole = self.pixels // self.lanes * self.lanes
            if self._overlaps:
                self._step(body, row, out, self.pixels - self.lanes, self.lanes, factor)
            elif whole < self.pixels:
                left = self.pixels - whole
                with body.loop(whole, body.rounds(left) + whole if self.few else self.pixels) as pixel:
                    self._step(body, row, out, pixel, 1, factor)

    def _step(self, body: Body, row: Any, out: Any, start: Any, lanes: int, factor: Any) -> None:
        a, b, c, d = (body.let(body.load(name, row + start, lanes)) for name in "abcd")
        by = body.spread(factor, lanes)
        first = body.let(b - a)
        second = body.let(d * by - first)
        for number, value in enumerate((first, second, d * by - b, second - c * by)):
            body.store("y", out + number * body.arg(2) + start, value, lanes)


@dataclass(frozen=True)
class StrassenProduct(Spmm):
    """A dense product that is stored in several places, in each with something of its own done to it.

    Attributes
    ----------
    forms:
        For each output the steps, in letters: `ADDEND`, `SCALE`, `EPILOGUE`.

    Pointers: x, w, b, then for each output its addends and scales ``[G*N]``, in the order of the steps, and itself.
    Arguments: those of a dense `Spmm`, the first two unused, then for each of these addends and outputs its pitch.
    """

    forms: tuple[str, ...] = ()

    @classmethod
    def of(cls, spec: Spmm, forms: tuple[str, ...]) -> StrassenProduct:
        """The same product with other outputs."""
        return cls(**{field.name: getattr(spec, field.name) for field in fields(spec)}, forms=forms)

    @property
    def symbol(self) -> str:
        return f"{super().symbol}_{'_'.join(f'y{form}' for form in self.forms)}"

    @property
    def stores(self) -> int:
        return len(self.forms)

    @property
    def residuals(self) -> int:
        return "".join(self.forms).count(ADDEND)

    def build(self) -> Any:
        names = ["x", "w", "b"]
        for number, form in enumerate(self.forms):
            names += [_name(number, at) for at, step in enumerate(form) if step != EPILOGUE] + [_name(number)]
        return kernel(self.symbol, [(name, "float32") for name in names], self._body)

    def _finish(self, body: Body, row: Any, pixel: Any, value: Any, lanes: int) -> None:
        pitch_at, value = _PITCHES_AT, body.let(value)
        for number, form in enumerate(self.forms):
            result = value
            for at, step in enumerate(form):
                if step == ADDEND:
                    result = result + body.load(_name(number, at), row * body.arg(pitch_at) + pixel, lanes)
                    pitch_at += 1
                elif step == SCALE:
                    result = result * body.spread(body[_name(number, at)][row], lanes)
                else:
                    result = self.epilogue.apply(body, result, lanes, None, AFFINE_AT)
                result = body.let(result)
            body.store(_name(number), row * body.arg(pitch_at) + pixel, result, lanes)
            pitch_at += 1


def _name(output: int, step: int | None = None) -> str:
    """The pointer of an output, or of one of its steps."""
    return f"y{output}" if step is None else f"r{output}_{step}"
