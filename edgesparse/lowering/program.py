"""The lowered form of a model: a static table of kernel calls over one arena.

A program is data. `plan` and `lower` make it with symbolic buffers, `arena` gives every buffer its place, `emit` writes
it as tables for the C runtime, which walks them. Nothing here knows ONNX, TVM or a device.

Every kernel has the plain C signature ``void k(void *p0, .., void *pn, const int32_t *a, int32_t begin, int32_t end)``:
`refs` give the pointers, `args` the 32-bit table behind `a`, and ``[begin, end)`` the range of the kernel's parallel
axis (output groups, channels or bands), so that threads can share one call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

#: Bytes to which buffers and constants are aligned: one cache line, and the widest vector.
ALIGNMENT = 64

#: Pointer arguments a kernel may take; the runtime has one call form for each number.
MAX_REFS = 16


@dataclass(frozen=True)
class Ref:
    """A place in a named buffer or constant, `offset` bytes from its start.

    As an item of `Call.args` it stands for the distance from the start of the arena in 4-byte elements: kernels that
    gather rows of several bands take the arena as one pointer and such offsets.
    """

    name: str
    offset: int = 0


#: Threads, and so strips, that a program may have at most; the runtime has room for so many.
MOST_STRIPS = 64

#: The arena itself, for kernels that take row offsets.
ARENA = "@arena"


@dataclass(frozen=True)
class Buffer:
    """A stretch of the arena. `pinned` buffers (inputs, outputs, zeros) live through the whole run."""

    name: str
    nbytes: int
    pinned: bool = False


@dataclass(frozen=True)
class Layout:
    """How an activation ``[N, C, H, W]`` lies in its buffer: bands of `rows` image rows, each ``[C][pitch]``.

    A band holds ``rows * width`` pixels of every channel, channel after channel `pitch` elements apart; bands follow
    each other `C * pitch` elements apart, images after images. `ring` bands are resident: band `b` lies in slot
    ``b % ring``. One band of all rows with ``pitch == H * W`` is ONNX's own layout (`plain`).
    """

    channels: int
    height: int
    width: int
    rows: int
    pitch: int
    ring: int
    images: int = 1

    @property
    def bands(self) -> int:
        """Bands of one image; the last one may hold fewer rows."""
        return -(-self.height // self.rows)

    @property
    def band_elements(self) -> int:
        return self.channels * self.pitch

    @property
    def nbytes(self) -> int:
        """Bytes of the resident bands, for 4-byte elements."""
        return 4 * self.ring * self.band_elements

    @property
    def is_plain(self) -> bool:
        return self.bands == 1 and self.pitch == self.height * self.width and self.ring == self.images

    def rows_of(self, band: int) -> tuple[int, int]:
        """First row of a band (counted within its image) and the row after its last."""
        first = (band % self.bands) * self.rows
        return first, min(first + self.rows, self.height)

    def band_offset(self, band: int) -> int:
        """Byte offset of a band (numbered through all images) in the buffer."""
        return 4 * (band % self.ring) * self.band_elements

    @classmethod
    def plain(cls, shape: tuple[int, int, int, int]) -> Layout:
        images, channels, height, width = shape
        return cls(channels, height, width, height, height * width, images, images)


@dataclass(frozen=True)
class Call:
    """One kernel call: symbol, pointers, 32-bit arguments, range, and the layer it belongs to (an index)."""

    kernel: str
    refs: tuple[Ref, ...]
    args: tuple[int | Ref, ...] = ()
    begin: int = 0
    end: int = 1
    layer: int = 0


@dataclass(frozen=True)
class Port:
    """A model input or output: its ONNX name, dtype (numpy's name) and shape, and the pinned buffer it lives in."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    buffer: str

    @property
    def nbytes(self) -> int:
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Program:
    """A whole model as calls.

    `constants` are the packed weights and tables, in the order in which they are stored; `offsets` gives each buffer
    its byte offset in the arena once `arena.assign` has run; `layers` names what the calls belong to, for profiles.
    `stages` cuts the calls for threads: a stage is a range of calls ``[first, last)`` per strip; strips of a stage may
    run at the same time, stages follow each other. `strips` is the most threads; with one there are no stages.
    """

    calls: tuple[Call, ...]
    buffers: tuple[Buffer, ...]
    constants: Mapping[str, np.ndarray]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    layers: tuple[str, ...]
    stages: tuple[tuple[tuple[int, int], ...], ...] = ()
    offsets: Mapping[str, int] = field(default_factory=dict)
    arena_bytes: int = 0
    strips: int = 1

    def moments(self) -> list[int]:
        """A time for each call such that calls that may run together have the same: the stage, or the call itself."""
        if self.strips == 1:
            return list(range(len(self.calls)))
        times = [0] * len(self.calls)
        for time, stage in enumerate(self.stages):
            for first, last in stage:
                times[first:last] = [time] * (last - first)
        return times
