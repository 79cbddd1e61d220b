"""How a k x k convolution finds the pixels under its taps: three forms of one product kernel.

A column of the weight matrix is a pair of an input channel and a tap; the kernel looks up where the pixels of a column
begin. What it finds there is one of

- a **panel**: every tap has a row of its own, so each pixel of the input lies there once for each tap that sees it;
- the input **shifted** by each tap's column and padded with rows of zeros: taps one above the other read the same rows,
  each beginning at another (SkimCaffe, arXiv 1608.01409, has such offsets into a padded input);
- the input **padded** with rows and columns of zeros, once: every tap is an offset, but the rows of the result lie
  closer together than those that are read, so each takes a call of its own.

With strides, rows and columns that one tap reads lie side by side: in so many planes as the stride has phases.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np

from edgesparse.graph.ops import Conv, Pooling
from edgesparse.kernels.window import Window
from edgesparse.lowering.program import Layout
from edgesparse.planning.packing import COLUMNS_AHEAD, Ints, Packed
from edgesparse.planning.plan import pitch_of

#: The forms, by the word in a kernel's name; the panel has none.
PANEL, SHIFTED, PADDED = "", "shifted", "padded"


@dataclass(frozen=True)
class Gathering:
    """What the product of one band reads, in one of the forms.

    Attributes
    ----------
    window:
        The convolution's window over the band.
    form:
        PANEL, SHIFTED or PADDED.
    """

    window: Window
    form: str = PANEL

    @functools.cached_property
    def copied(self) -> Window:
        """The window by which the input is gathered: its taps become rows of the block, ``[C * taps][pitch]``."""
        window = self.window
        if self.form == PANEL:
            return window
        step, reach = window.stride[1], window.dilation[1]
        rows = replace(window, stride=(1, step), top=0, rows=window.rows_in, flat=False)
        if self.form == SHIFTED:
            return replace(rows, kernel=(1, window.kernel[1]))
        wide = window.width_out + (window.kernel[1] - 1) * reach // step
        return replace(rows, kernel=(1, step), dilation=(1, 1), width_out=wide)

    @property
    def pitch(self) -> int:
        """Elements from row to row of the block."""
        return pitch_of(self.copied.rows * self.copied.width_out)

    @property
    def calls(self) -> int:
        """Calls of the product for one band."""
        return self.window.rows if self.form == PADDED else 1

    @property
    def pixels(self) -> int:
        """Pixels of one call."""
        return self.window.rows * self.window.width_out // self.calls

    def start(self, call: int) -> int:
        """Where a call's pixels begin in the block, in elements."""
        return call * self.copied.width_out

    @functools.cached_property
    def order(self) -> tuple[int, ...]:
        """The input rows of the band as they are gathered: by phase of the stride, but for a panel."""
        step = 1 if self.form == PANEL else self.window.stride[0]
        return tuple(sorted(range(self.window.rows_in), key=lambda row: (row % step, row)))

    @functools.cached_property
    def taps(self) -> Ints:
        """Where the pixels of each tap of one channel begin, in elements, int32 ``[taps]``."""
        window = self.window
        if self.form == PANEL:
            return (np.arange(len(window.taps)) * self.pitch).astype(np.int32)
        place = {row: at for at, row in enumerate(self.order)}
        found = []
        for ky, kx in window.taps:
            plane, column = kx, 0
            if self.form == PADDED:
                column, plane = divmod(kx * window.dilation[1], window.stride[1])
            found.append(plane * self.pitch + place[ky * window.dilation[0]] * self.copied.width_out + column)
        return np.array(found, np.int32)

    def offsets(self, part: Packed) -> Ints:
        """Where each non-zero's pixels begin, in elements, int32; `COLUMNS_AHEAD` zeros follow.

        Raises OverflowError beyond 32 bits.
        """
        assert part.column is not None
        channel, tap = np.divmod(part.column.astype(np.int64), len(self.window.taps))
        found = channel * (len(self.copied.taps) * self.pitch) + self.taps[tap]
        if found.size and found.max() >= 2**31:
            raise OverflowError("an input offset does not fit 32 bits")
        return np.pad(found, (0, COLUMNS_AHEAD)).astype(np.int32)

    def inputs(self, depth: int, pixels: int) -> int:
        """Rows of `pixels` pixels that `depth` columns take in memory: fewer than those where taps share pixels."""
        distinct = self._distinct(min(pixels, self.pixels))
        return -(-depth * distinct // (len(self.window.taps) * min(pixels, self.pixels)))

    def _distinct(self, pixels: int) -> int:
        """Elements that all taps of a channel read together for the first `pixels` pixels of a call."""
        gaps = np.diff(np.sort(self.taps))
        return int(np.minimum(gaps, pixels).sum()) + pixels


def window_of(op: Conv | Pooling, source: Layout, layout: Layout, rows: int) -> Window:
    """The window of a layer over a band of `rows` output rows."""
    same = (source.height, source.width) == (layout.height, layout.width)
    flat = op.strides == (1, 1) and same and rows == layout.height and source.bands == 1 and isinstance(op, Conv)
    return Window(op.kernel, op.strides, op.dilations, *op.pads[:2], source.width, layout.width, rows, flat)


def forms(window: Window | None) -> tuple[str, ...]:
    """The forms that a sparse layer with this window may take; the panel alone where there is nothing to share."""
    if window is None or len(window.taps) == 1:
        return (PANEL,)
    return (PANEL, SHIFTED, PADDED)
