"""Spaces of channels: which axes must be permuted together, as a union-find whose members can be cut and factored.

An axis of n entries is a list of segments, one after another; a segment is a tuple of spaces, the product of which
it spans (heads x channels of a head; channels x pixels). Making two axes equal unites their spaces, and cuts or
factors them where their borders differ. A space is free until it is pinned. This is exact: permuting every free
space by any permutation of its own is legal, and the axes say what that does to each tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edgesparse.errors import Reason
from edgesparse.passes.graph import Array

Segment = tuple[int, ...]
Axis = tuple[Segment, ...]


class Clash(Exception):
    """Two axes that cannot be made equal with what spaces can express; both are to be pinned."""


@dataclass
class Spaces:
    """All spaces of a graph by number. `size[i]` is for leaves what they permute; see `leaves` for the others."""

    size: list[int] = field(default_factory=list)
    _parent: dict[int, int] = field(default_factory=dict)
    _cut: dict[int, tuple[int, ...]] = field(default_factory=dict)
    _factors: dict[int, tuple[int, ...]] = field(default_factory=dict)
    _pins: dict[int, Reason] = field(default_factory=dict)
    _inside: set[int] = field(default_factory=set)  # leaves within a product somewhere: they cannot be cut any more

    def new(self, size: int) -> Axis:
        """An axis of one fresh free space; axes of one entry have none at all to permute."""
        self.size.append(size)
        return ((len(self.size) - 1,),)

    def extent(self, axis: Axis) -> int:
        """Entries of an axis."""
        return sum(int(np.prod([self.size[space] for space in segment])) for segment in axis)

    def leaves(self, axis: Axis) -> Axis:
        """The axis in terms of spaces that are neither united, cut nor factored any more."""
        found: list[Segment] = []
        for segment in axis:
            found += self._segment(segment)
        return tuple(found)

    def reason(self, space: int) -> Reason | None:
        """Why a leaf is pinned; None if it is free."""
        return self._pins.get(self._find(space))

    def pin(self, axis: Axis, reason: Reason) -> None:
        """Pin all spaces of an axis; the first reason stays."""
        for segment in self.leaves(axis):
            for space in segment:
                self._pins.setdefault(space, reason)

    def unite(self, first: Axis, second: Axis) -> None:
        """Make two axes of equal extent permute alike. Raises Clash, with nothing but cuts made."""
        if self.extent(first) != self.extent(second):
            raise Clash
        for _ in range(100_000):  # every round cuts, factors or moves on
            a, b = self.leaves(first), self.leaves(second)
            changed = False
            for one, other in zip(a, b, strict=False):
                if one == other:
                    continue
                self._match(one, other)
                changed = True
                break
            if not changed:
                return
        raise Clash

    def cut_at(self, axis: Axis, index: int) -> tuple[Axis, Axis]:
        """The axis before and from an index, its space cut there if need be. Raises Clash inside of a product."""
        seen = 0
        leaves = self.leaves(axis)
        for number, segment in enumerate(leaves):
            if seen == index:
                return leaves[:number], leaves[number:]
            size = self.extent((segment,))
            if seen + size > index:
                if len(segment) > 1:
                    raise Clash
                parts = self._divide(segment[0], index - seen)
                return (*leaves[:number], (parts[0],)), ((parts[1],), *leaves[number + 1 :])
            seen += size
        return leaves, ()

    def factor(self, axis: Axis, sizes: tuple[int, ...]) -> list[Axis]:
        """The axis as a product of axes of these sizes (reshape that splits). Raises Clash where that is not one."""
        leaves = self.leaves(axis)
        if len(leaves) != 1:
            raise Clash
        spaces = list(leaves[0])
        found: list[Axis] = []
        for size in sizes:
            taken: list[int] = []
            left = size
            while left > 1:
                if not spaces:
                    raise Clash
                head = self.size[spaces[0]]
                if left % head == 0:
                    left //= head
                    taken.append(spaces.pop(0))
                    continue
                if head % left:
                    raise Clash
                inner = self._factor(spaces.pop(0), left)
                taken.append(inner[0])
                spaces.insert(0, inner[1])
                left = 1
            found.append((tuple(taken),) if taken else self.new(1))
        if any(self.size[space] > 1 for space in spaces):
            raise Clash
        return found

    def indices(self, axis: Axis, order: dict[int, Array]) -> Array:
        """Where each entry of the permuted axis comes from, int64 `[n]`.

        `order` has a permutation per free leaf, `[size]`; or one for each head, `[heads, size]`, told by the head's
        place before it was moved, where the leaf follows the heads' in every segment of the axis (see `heads`).
        """
        parts, start = [], 0
        for segment in self.leaves(axis):
            index = np.zeros(1, np.int64)
            for space in segment:
                own = order.get(space)
                own = np.arange(self.size[space]) if own is None else own
                own = own[None, :] if own.ndim == 1 else own[index % len(own)]
                index = (index[:, None] * self.size[space] + own).reshape(-1)
            parts.append(index + start)
            start += len(index)
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _find(self, space: int) -> int:
        while space in self._parent:
            space = self._parent[space]
        return space

    def _segment(self, segment: Segment) -> list[Segment]:
        out: list[int] = []
        for space in segment:
            root = self._find(space)
            if root in self._cut:
                if len(segment) > 1:
                    raise AssertionError("a space inside of a product was cut")
                return [part for child in self._cut[root] for part in self._segment((child,))]
            if root in self._factors:
                inner = self._segment(self._factors[root])
                out += inner[0]
            elif self.size[root] > 1 or len(segment) == 1:
                out.append(root)
        return [tuple(out)] if out else [segment[:1]]

    def _match(self, one: Segment, other: Segment) -> None:
        sizes = self.extent((one,)), self.extent((other,))
        if sizes[0] != sizes[1]:
            long, at = (one, sizes[1]) if sizes[0] > sizes[1] else (other, sizes[0])
            if len(long) > 1:
                raise Clash
            self._divide(long[0], at)
            return
        if len(one) == 1 and len(other) == 1:
            self._merge(one[0], other[0])
            return
        for a, b in zip(one, other, strict=False):
            if a == b:
                continue
            small, large = sorted((a, b), key=lambda space: self.size[space])
            if self.size[small] == self.size[large]:
                self._merge(small, large)
            elif self.size[large] % self.size[small] == 0:
                self._factor(large, self.size[small])
            else:
                raise Clash
            return
        raise Clash

    def _merge(self, one: int, other: int) -> None:
        keep, drop = min(one, other), max(one, other)
        if drop in self._inside and keep not in self._inside:
            self._inside.add(keep)
        if drop in self._pins:
            self._pins.setdefault(keep, self._pins[drop])
        self._parent[drop] = keep

    def product(self, axes: list[Axis]) -> Axis:
        """One axis that runs over the product of axes, the last one fastest (reshape that joins).

        Raises Clash where one of them is a concatenation.
        """
        spaces: list[int] = []
        for axis in axes:
            leaves = self.leaves(axis)
            if self.extent(leaves) == 1:
                continue
            if len(leaves) != 1:
                raise Clash
            spaces += leaves[0]
        if not spaces:
            return self.new(1)
        if len(spaces) > 1:
            self._inside.update(spaces)
        return (tuple(spaces),)

    def _divide(self, space: int, at: int) -> tuple[int, int]:
        if space in self._inside:
            raise Clash
        parts = self._children(space, (at, self.size[space] - at))
        self._cut[space] = parts
        return parts

    def _factor(self, space: int, outer: int) -> tuple[int, int]:
        parts = self._children(space, (outer, self.size[space] // outer))
        self._factors[space] = parts
        self._inside.update(parts)
        return parts

    def _children(self, space: int, sizes: tuple[int, int]) -> tuple[int, int]:
        parts = (self.new(sizes[0])[0][0], self.new(sizes[1])[0][0])
        if space in self._pins:
            for part in parts:
                self._pins[part] = self._pins[space]
        return parts
