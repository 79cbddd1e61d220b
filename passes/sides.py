"""Sides: where a pattern's groups of a layer meet a set of channels, and what the layer has at stake there.

Groups of output channels (the N of group:NxM and block:NxM) bind the order of a layer's outputs, groups of input
channels (their M, and n:m) that of its inputs. A pattern with both has two sides, and what one is worth depends on the
order of the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgesparse.errors import Reason
from edgesparse.passes.couple import Coupling
from edgesparse.passes.graph import Array
from edgesparse.passes.layers import LayerInfo
from edgesparse.passes.permute import View
from edgesparse.recipe import Choice


@dataclass(frozen=True)
class Place:
    """The channels of one axis of a weight: which set they are, and how often the axis runs through it.

    Attributes
    ----------
    space:
        The leaf that is permuted.
    size:
        Its channels.
    repeat:
        How many heads the axis has; 1 where it is no product.
    own:
        Whether each head may have an order of its own.
    """

    space: int
    size: int
    repeat: int = 1
    own: bool = False

    @property
    def block(self) -> int:
        """Channels within which an order stays, for `permute.search`; 0 where there is no such limit."""
        return self.size if self.own else 0


@dataclass(frozen=True)
class Side:
    """One side of a layer whose saliencies are `scores` float32 `[Cout, Cin, taps]`, in the model's given order."""

    layer: LayerInfo
    place: Place
    output: bool
    choice: Choice
    scores: Array

    @property
    def group(self) -> int:
        """Consecutive channels of a group on this side."""
        return group_sizes(self.choice)[0 if self.output else 1]

    def view(self, coupling: Coupling, order: Mapping[int, Array]) -> View:
        """What the layer has at stake when all channels are in `order`."""
        along = [output_axis(self.layer), 1 - output_axis(self.layer)]
        rows, columns = (coupling.spaces.indices(coupling.axis(self.layer.weight, i), dict(order)) for i in along)
        scores = self.scores[rows][:, columns]
        high, wide = group_sizes(self.choice)
        if self.output:
            scores = _pooled(scores, 1, wide)
        else:
            scores = np.moveaxis(_pooled(scores, 0, high), 1, 0)
        matrix: Array = scores.reshape(len(scores), -1)
        if self.place.repeat > 1 and not self.place.own:  # heads in one order: each is more features of a channel
            matrix = matrix.reshape(self.place.repeat, self.place.size, -1)
            matrix = np.moveaxis(matrix, 0, 1).reshape(self.place.size, -1)
        pattern = self.choice.pattern
        share = 1.0 if self.choice.density is None else self.choice.density
        return View(np.ascontiguousarray(matrix), share, self.group, pattern.n if pattern.kind == "nm" else 0)


def group_sizes(choice: Choice) -> tuple[int, int]:
    """Consecutive output and input channels that a pattern binds; 1 where it does not."""
    pattern = choice.pattern
    if pattern.kind in ("group", "block"):
        return pattern.n, pattern.m
    return 1, pattern.m if pattern.kind == "nm" else 1


def output_axis(layer: LayerInfo) -> int:
    """The dimension of a layer's stored weight that holds its output channels, of the first two."""
    return 0 if layer.op_type == "Conv" or (layer.op_type == "Gemm" and layer.trans_b) else 1


def place_of(coupling: Coupling, layer: LayerInfo, *, output: bool = True, group: int = 1) -> Place | Reason:
    """The set of a layer's output (or input) channels, or why they stay where they are for groups of so many."""
    end = output_axis(layer) if output else 1 - output_axis(layer)
    axis, what = coupling.axis(layer.weight, end), "output" if output else "input"
    if len(axis) != 1:
        return Reason("not-rearranged", f"its {what} channels fall into several sets", layer.name)
    *outer, space = axis[0]
    reason = coupling.spaces.reason(space)
    if reason is not None:
        return Reason("not-rearranged", f"{reason.message} ({reason.node})", layer.name)
    size = coupling.spaces.size[space]
    if outer and (size % group or size == group):
        return Reason("not-rearranged", f"heads of {size} channels do not hold groups of {group}", layer.name)
    repeat = int(np.prod([coupling.spaces.size[one] for one in outer])) if outer else 1
    return Place(space, size, repeat, bool(outer) and len(outer) == 1 and coupling.heads.get(space) == outer[0])


def _pooled(scores: Array, axis: int, size: int) -> Array:
    """What is kept or dropped together competes as one."""
    if size == 1:
        return scores
    return np.asarray(np.add.reduceat(scores, np.arange(0, scores.shape[axis], size), axis=axis))
