"""What lowering writes with: where values lie, how rows are found, and calls that are cut for threads."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from edgesparse.graph.ops import Graph
from edgesparse.kernels import Epilogue, KernelSpec, Pointwise, Transpose, Window
from edgesparse.lowering.program import Buffer, Call, Layout, Ref
from edgesparse.planning.order import Stage, Step
from edgesparse.planning.packing import Packed
from edgesparse.planning.place import Placement
from edgesparse.planning.plan import Plan
from edgesparse.target import Target

#: A row of zeros for the rows outside of an image.
ZEROS = "@zeros"


@dataclass(frozen=True)
class Place:
    """Where a value lies: its buffer, and its layout if it is an image."""

    buffer: str
    layout: Layout | None


@dataclass(frozen=True)
class Cut:
    """How the last shared stage was cut: the channels of `value` that each strip made, from bound to bound."""

    value: str
    bounds: tuple[int, ...]


@dataclass
class Emitter:
    """What lowering has produced so far, and the words in which it is told: places, rows, constants, calls."""

    graph: Graph
    plan: Plan
    target: Target
    placements: Mapping[str, Placement]
    calls: list[Call] = field(default_factory=list)
    buffers: dict[str, Buffer] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    kernels: dict[str, KernelSpec] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    stages: list[tuple[tuple[int, int], ...]] = field(default_factory=list)
    strip: int = 0
    shared: bool = False
    cut: Cut | None = None
    plains: dict[str, str] = field(default_factory=dict)
    #: Buffer and pitch of values that lie feature-major, see `columns`.
    columns: dict[str, tuple[str, int]] = field(default_factory=dict)
    #: Buffers that wait to be written from a feature-major form: its buffer, pitch, features, rows.
    owed: dict[str, tuple[str, int, int, int]] = field(default_factory=dict)
    packs: dict[str, tuple[Packed, ...]] = field(default_factory=dict)
    layer: int = 0

    def call(
        self,
        spec: KernelSpec,
        refs: list[Ref],
        args: list[int | Ref],
        extent: int,
        work: np.ndarray | None = None,
        along: str = "",
    ) -> None:
        """Emit a call over ``[0, extent)``; see `emit`."""
        if extent > 0:
            self.kernels[spec.symbol] = spec
            self.emit(spec.symbol, tuple(refs), tuple(args), extent, work, along)

    def emit(
        self,
        symbol: str,
        refs: tuple[Ref, ...],
        args: tuple[int | Ref, ...],
        extent: int,
        work: np.ndarray | None = None,
        along: str = "",
    ) -> None:
        """Append a call: whole, or in a shared stage cut into shares for the strips.

        Parameters
        ----------
        work:
            What each unit of the extent costs, added up from zero: shares are cut where the work is equal.
        along:
            A value whose channels are the extent, and of which a share reads its own channels only. Where the stage
            before made that value in shares of channels, the same thread goes on with them: there is nothing to wait
            for, and they are in its cache.
        """
        if not self.shared:
            self.calls.append(Call(symbol, refs, args, 0, extent, self.layer))
            return
        joins = bool(along) and self.cut is not None and self.cut.value == along
        assert not joins or (self.cut is not None and self.cut.bounds[-1] == extent)
        bounds = self.cut.bounds if joins and self.cut else _shares(extent, self.plan.strips, work)
        shares = [Call(symbol, refs, args, first, last, self.layer) for first, last in itertools.pairwise(bounds)]
        strips: list[list[Call]] = [[] for _ in shares]
        if joins:
            strips = [self.calls[first:last] for first, last in self.stages.pop()]
            del self.calls[len(self.calls) - sum(map(len, strips)) :]
        ranges = []
        for strip, share in zip(strips, shares, strict=True):
            start = len(self.calls)
            self.calls += [*strip, *([share] if share.end > share.begin else [])]
            ranges.append((start, len(self.calls)))
        self.stages.append(tuple(ranges))
        self.cut = Cut("", tuple(bounds))

    def made(self, value: str, per_unit: int) -> None:
        """Say that the shares emitted last made this value, all of it, `per_unit` channels a unit of the extent."""
        if self.shared and self.cut is not None:
            channels = self.plan.layouts[value].channels
            self.cut = Cut(value, tuple(min(bound * per_unit, channels) for bound in self.cut.bounds))

    def run(self, stage: Stage, lower_step: Callable[[Step], None]) -> None:
        """Emit a stage, strip by strip, or shared call by call."""
        self.shared = self.plan.strips > 1 and len(stage.strips) == 1
        ranges = []
        for strip, steps in enumerate(stage.strips):
            self.strip = strip
            first = len(self.calls)
            for step in steps:
                lower_step(step)
            ranges.append((first, len(self.calls)))
        if not self.shared:
            self.stages.append(tuple(ranges))
            self.cut = None
        self.strip, self.shared = 0, self.plan.strips > 1

    def constant(self, name: str, make: Callable[[], np.ndarray]) -> Ref:
        name = f"constant:{name}"
        if name not in self.constants:
            self.constants[name] = make()
        return Ref(name)

    def buffer(self, name: str, nbytes: int, *, pinned: bool = False) -> str:
        known = self.buffers.get(name)
        size = max(nbytes, known.nbytes if known else 0)
        self.buffers[name] = Buffer(name, size, pinned or (known is not None and known.pinned))
        return name

    def place_of(self, name: str) -> Place:
        """The place of a value, made when it is first asked for; a value that waits has one in each strip."""
        own = self.own(name) if name in self.plan.waiting else name
        if own not in self.places:
            value, layout = self.graph.values[name], self.plan.layouts.get(name)
            nbytes = layout.nbytes if layout is not None else value.nbytes
            # A number and a mark: no value's own name can then be taken for a buffer of ours, or of another strip.
            buffer = f"{self.strip if own != name else 0}#{name}"
            self.places[own] = Place(self.buffer(buffer, max(nbytes, 4)), layout)
        return self.places[own]

    def own(self, name: str) -> str:
        """The name of this strip's own buffer."""
        return f"{name}#{self.strip}" if self.strip else name

    def image(self, name: str) -> tuple[str, Layout]:
        place = self.place_of(name)
        assert place.layout is not None
        return place.buffer, place.layout

    def span(self, name: str, image: int, first: int, last: int) -> tuple[Ref, int] | None:
        """Rows ``[first, last)`` as (pointer, pitch), if they lie side by side in one band."""
        buffer, layout = self.image(name)
        band = first // layout.rows
        start, end = layout.rows_of(band)
        if last > end:
            return None
        index = (image if layout.images > 1 else 0) * layout.bands + band
        return Ref(buffer, layout.band_offset(index) + 4 * (first - start) * layout.width), layout.pitch

    def row(self, name: str, image: int, row: int, channel: int = 0) -> tuple[int | Ref, int]:
        """Offset of a row from the arena's start and its distance from channel to channel; zeros outside."""
        buffer, layout = self.image(name)
        if not 0 <= row < layout.height:
            return Ref(self.buffer(ZEROS, 4 * (layout.width + 4 * self.target.lanes), pinned=True)), 0
        spot = self.span(name, image, row, row + 1)
        assert spot is not None
        return Ref(buffer, spot[0].offset + 4 * channel * spot[1]), spot[1]

    def rows(self, name: str, image: int, window: Window, first: int, *, clamp: bool = False) -> list[int | Ref]:
        """The two row tables of a window kernel whose band starts at output row `first`."""
        _, layout = self.image(name)
        if window.flat:
            offset, pitch = self.row(name, image, 0)
            return [offset, pitch]
        start = window.first_row(first)
        if not clamp:
            return self.rows_from(name, image, start, window.rows_in)
        wanted = range(start, start + window.rows_in)
        found = [self.row(name, image, _nearest(row, layout.height, window.dilation[0])) for row in wanted]
        return [*(offset for offset, _ in found), *(pitch for _, pitch in found)]

    def rows_from(self, name: str, image: int, start: int, count: int) -> list[int | Ref]:
        """The two row tables for `count` rows from row `start` on, zeros outside of the image."""
        found = [self.row(name, image, row) for row in range(start, start + count)]
        return [*(offset for offset, _ in found), *(pitch for _, pitch in found)]

    def plain(self, name: str) -> str:
        """Buffer of a value in ONNX's own layout: its own where it is plain, else a copy."""
        place = self.place_of(name)
        if place.buffer in self.owed:
            source, pitch, features, rows = self.owed.pop(place.buffer)
            turn = Transpose(self.target.lanes)
            self.call(turn, [Ref(source), Ref(place.buffer)], [pitch, features, features], rows)
        if place.layout is None or place.layout.is_plain:
            return place.buffer
        if name not in self.plains:
            target = self.buffer(f"plain:{name}", self.graph.values[name].nbytes)
            self._copy_plain(name, target)
            self.plains[name] = target
        return self.plains[name]

    def copy(self, pixels: int) -> Pointwise:
        """The kernel that copies so many pixels of each channel."""
        barrier = "" if self.target.few else self.target.barrier  # LLVM unrolls no loop for those
        return Pointwise("first", "none", pixels, Epilogue(), self.target.lanes, barrier=barrier)

    def _copy_plain(self, name: str, target: str) -> None:
        _, layout = self.image(name)
        size = layout.height * layout.width
        for image in range(layout.images):
            for band in range(layout.bands):
                first, last = layout.rows_of(band)
                spot = self.span(name, image, first, last)
                assert spot is not None
                spec = self.copy((last - first) * layout.width)
                offset = 4 * (image * layout.channels * size + first * layout.width)
                self.call(spec, [spot[0], Ref(target, offset)], [spot[1], 0, size], layout.channels)


def bits_of(numbers: tuple[float, ...]) -> list[int]:
    """Numbers as arguments: the bits of float32."""
    return [int(bits) for bits in np.array(numbers, np.float32).view(np.int32)]


def _shares(extent: int, count: int, work: np.ndarray | None) -> list[int]:
    """Bounds of `count` shares of ``[0, extent)`` with nearly equal work, each cut where the sum is nearest to it."""
    if work is None:
        return [extent * part // count for part in range(count + 1)]
    goals = [work[-1] * part / count for part in range(1, count)]
    return [0, *(int(np.argmin(np.abs(work - goal))) for goal in goals), extent]


def _nearest(row: int, height: int, step: int) -> int:
    """The image row nearest to `row` among those `step` apart: a dilated window holds no others."""
    if row < 0:
        return row % step
    return row if row < height else height - 1 - (height - 1 - row) % step
