"""How many bytes lie between two uses of the same memory, through one run that follows another like it.

Memory is the arena, as buffers were placed in it, followed by the constants. Buffers that never live together share
addresses: what is written lands where something was used before. The distance is the number of bytes, each counted
once, that were used since (Mattson et al., Evaluation techniques for storage hierarchies, 1970): a cache that replaces
the oldest first holds what lies nearer than its size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from edgesparse.costing.caches import mixed, shares
from edgesparse.kernels import KernelSpec
from edgesparse.lowering.program import ARENA, Call, Layout, Program, Ref
from edgesparse.target import Target

#: Bytes that are followed as one.
_PAGE = 4096


@dataclass(frozen=True)
class Operand:
    """What a call uses of memory: `nbytes` in the `span` bytes from `first` on; a constant, written, or read."""

    name: str
    first: int
    span: int
    nbytes: int
    constant: bool = False
    written: bool = False


class Distances:
    """The uses of memory, call after call; `program` has its buffers placed (`arena.assign`)."""

    def __init__(
        self,
        program: Program,
        kernels: Mapping[str, KernelSpec],
        layouts: Mapping[str, Layout],
        target: Target,
        l3: float,
    ) -> None:
        self.program, self.kernels, self.target, self.l3 = program, kernels, target, l3
        self.sizes = {buffer.name: buffer.nbytes for buffer in program.buffers}
        self.layouts = {name: layouts.get(name.partition("#")[2]) for name in self.sizes}
        self.constants: dict[str, int] = {}
        top = _round_up(program.arena_bytes)
        for name, array in program.constants.items():
            self.constants[name] = top
            top += _round_up(array.nbytes)
        self.used = np.full(top // _PAGE + 1, -1, np.int64)
        self.clock = 0
        self.calls = [list(self._operands(call)) for call in program.calls]
        for operands in self.calls:  # the run before
            self._use(operands)

    def levels(self, index: int) -> list[tuple[Operand, dict[str, float]]]:
        """The operands of call `index`, which runs next, and the shares of them that each level holds."""
        found = [(operand, self._levels(operand)) for operand in self.calls[index]]
        self._use(self.calls[index])
        return found

    def _use(self, operands: list[Operand]) -> None:
        for operand in operands:
            self.clock += 1
            self.used[_pages(operand)] = self.clock

    def _levels(self, operand: Operand) -> dict[str, float]:
        pages = self.used[_pages(operand)]
        if pages.min() == pages.max():
            times, counts = pages[:1], np.ones(1, np.int64)
        else:
            times, counts = np.unique(pages, return_counts=True)
        parts = []
        for time, count in zip(times.tolist(), counts.tolist(), strict=True):
            distance = _PAGE * int(np.count_nonzero(self.used > time))
            parts.append((count / int(counts.sum()), shares(distance, self.target, self.l3)))
        return mixed(*parts)

    def _operands(self, call: Call) -> Iterator[Operand]:
        """Constants are used whole, activations band by band, or by rows where a table of rows tells which."""
        for ref in dict.fromkeys(call.refs):
            if ref.name in self.constants:
                size = self.program.constants[ref.name].nbytes
                yield Operand(ref.name, self.constants[ref.name], size, size, constant=True)
            elif ref.name != ARENA:
                first, span = self._band(ref)
                yield Operand(ref.name, first, span, span, written=ref == call.refs[-1])
        rows: dict[tuple[str, int, int], int] = {}
        for arg in dict.fromkeys(arg for arg in call.args if isinstance(arg, Ref)):
            band = (arg.name, *self._band(arg))
            rows[band] = rows.get(band, 0) + self._row(arg.name, call)
        for (name, first, span), nbytes in rows.items():
            yield Operand(name, first, span, min(nbytes, span))

    def _band(self, ref: Ref) -> tuple[int, int]:
        """Address and bytes of the band that a reference points into, or of the whole buffer."""
        layout = self.layouts[ref.name]
        size = self.sizes[ref.name]
        span = min(4 * layout.band_elements, size) if layout else size
        return self.program.offsets[ref.name] + ref.offset // max(span, 1) * span, span

    def _row(self, name: str, call: Call) -> int:
        """Bytes behind one row of a table; a window over a flat plane has one for all of it."""
        layout = self.layouts[name]
        window = getattr(self.kernels.get(call.kernel), "window", None)
        if layout is None or (window is not None and window.flat):
            return self.sizes[name]
        return 4 * layout.channels * layout.width


def _round_up(nbytes: int) -> int:
    return -(-nbytes // _PAGE) * _PAGE


def _pages(operand: Operand) -> slice:
    return slice(operand.first // _PAGE, (operand.first + max(operand.span, 1) - 1) // _PAGE + 1)
