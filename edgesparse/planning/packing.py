"""Weights as the product kernel wants them: groups of output channels, each with its non-zero input channels.

Packing is exact and has an exact inverse. Output channels that do not fill a last group form a smaller group of their
own, run by a kernel of that size.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


#: Rows that go through their input channels in one direction.
UNIT = 8

#: Entries that a table of offsets has after its last one.
COLUMNS_AHEAD = 8


@dataclass(frozen=True)
class Packed:
    """The groups of `group` output channels from channel `first` on.

    `values` is ``[nnz, group]``; `start` ``[G + 1]`` bounds each group's non-zeros; `column` ``[nnz]`` holds input
    channels, in each group in ascending or in descending order. Dense weights have neither start nor column, and values
    ``[G * K, group]``.
    """

    first: int
    group: int
    depth: int
    values: Floats
    start: Ints | None = None
    column: Ints | None = None

    @property
    def groups(self) -> int:
        return len(self.start) - 1 if self.start is not None else len(self.values) // max(self.depth, 1)

    @property
    def nnz(self) -> int:
        """Stored (input channel, group) pairs."""
        return len(self.values)

    def offsets(self, pitch: int) -> Ints:
        """Where each non-zero's pixels begin, in elements, for a distance of `pitch` between input channels, int32.

        `COLUMNS_AHEAD` entries more follow, zeros: kernels look so far ahead. Raises OverflowError beyond 32 bits.
        """
        assert self.column is not None
        found = self.column.astype(np.int64) * pitch
        if found.size and found.max() >= 2**31:
            raise OverflowError("an input offset does not fit 32 bits")
        return np.pad(found, (0, COLUMNS_AHEAD)).astype(np.int32)

    @property
    def nbytes(self) -> int:
        """Bytes of weights and indices."""
        tables = [self.values, *(table for table in (self.start, self.column) if table is not None)]
        return sum(table.nbytes for table in tables)


def pack(weight: Floats, group: int, *, dense: bool = False, near: int = 0) -> tuple[Packed, ...]:
    """Pack a matrix ``[N, K]`` (float32): the whole groups, then the rest of the rows.

    An input channel is stored for a group when any of the group's rows has a non-zero there; the other rows of the
    group then store explicit zeros (the union of rows).

    Parameters
    ----------
    near:
        Input channels whose pixels the nearest cache holds. Where rows read more, every `UNIT` of them goes through its
        channels in the direction in which it meets more of those read last; in one direction only, none would still be
        there. So the order of additions of a row depends on the weights alone, not on the groups that they are packed
        in. Only groups that divide a unit can be turned.
    """
    rows = weight.shape[0]
    whole = rows // group * group
    bounds = [(0, whole, group)] if whole else []
    if whole < rows:
        bounds.append((whole, rows, rows - whole))
    turned = _turned(weight, near) if 0 < near < weight.shape[1] and UNIT % group == 0 and not dense else ()
    return tuple(_pack(weight[first:last], first, size, dense, turned) for first, last, size in bounds)


@dataclass(frozen=True)
class Size:
    """What a part of a packed matrix would hold: groups of `group` rows, `nnz` stored (channel, group) pairs."""

    group: int
    groups: int
    nnz: int
    nbytes: int


def sizes(used: NDArray[np.bool_], group: int, *, dense: bool = False) -> tuple[Size, ...]:
    """The sizes of the parts that `pack` makes of a matrix with non-zeros at `used` ``[N, K]``."""
    rows, depth = used.shape
    whole = rows // group * group
    found = []
    for first, last, size in ((0, whole, group), (whole, rows, rows - whole)):
        if first == last:
            continue
        groups = (last - first) // size
        if dense:
            found.append(Size(size, groups, groups * depth, 4 * (last - first) * depth))
            continue
        nnz = int(np.count_nonzero(np.logical_or.reduceat(used[first:last], np.arange(0, last - first, size), axis=0)))
        found.append(Size(size, groups, nnz, 4 * (nnz * size + nnz + groups + 1)))
    return tuple(found)


def _pack(weight: Floats, first: int, group: int, dense: bool, turned: Sequence[bool]) -> Packed:
    blocks = np.ascontiguousarray(weight.reshape(-1, group, weight.shape[1]).transpose(0, 2, 1), np.float32)
    depth = weight.shape[1]
    if dense:
        return Packed(first, group, depth, blocks.reshape(-1, group))
    used = (blocks != 0).any(axis=2)
    start = np.concatenate([[0], np.cumsum(used.sum(axis=1))]).astype(np.int32)
    column, values = np.nonzero(used)[1].astype(np.int32), np.ascontiguousarray(blocks[used])
    for number, (begin, end) in enumerate(itertools.pairwise(start.tolist()) if turned else ()):
        if turned[(first + number * group) // UNIT]:
            column[begin:end], values[begin:end] = column[begin:end][::-1].copy(), values[begin:end][::-1].copy()
    return Packed(first, group, depth, values, start, column)


def _turned(weight: Floats, near: int) -> list[bool]:
    """For each unit of rows, whether it meets more of the `near` channels read last from the other end.

    Reads in between are counted with those that come again: an estimate of the distances in a cache that drops what was
    used longest ago (Mattson et al., Evaluation techniques for storage hierarchies, 1970).
    """
    last, now, found = np.full(weight.shape[1], -near), 0, []
    for first in range(0, len(weight), UNIT):
        there = np.flatnonzero((weight[first : first + UNIT] != 0).any(axis=0))
        step = np.arange(len(there))
        since = now - last[there]
        found.append(bool(np.count_nonzero(since + step[::-1] < near) > np.count_nonzero(since + step < near)))
        last[there] = now + (step[::-1] if found[-1] else step)
        now += len(there)
    return found


def unpack(parts: tuple[Packed, ...]) -> Floats:
    """The matrix that was packed."""
    pieces = []
    for part in parts:
        blocks = np.zeros((part.groups, part.depth, part.group), np.float32)
        if part.start is None or part.column is None:
            blocks = part.values.reshape(blocks.shape)
        else:
            group = np.repeat(np.arange(part.groups), np.diff(part.start))
            blocks[group, part.column] = part.values
        pieces.append(blocks.transpose(0, 2, 1).reshape(-1, part.depth))
    return np.concatenate(pieces)


def union_density(weight: Floats, group: int) -> float:
    """Share of (input channel, group) pairs that packing in groups of `group` stores."""
    parts = pack(weight, group)
    stored = sum(part.nnz * part.group for part in parts)
    return stored / weight.size if weight.size else 0.0
