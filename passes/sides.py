"""Sides: where a pattern's groups of a layer meet a set of channels, and what the layer has at stake there.

Groups of output channels (the N of group:NxM and block:NxM) bind the order of a layer's outputs, groups of input
channels (their M, and n:m) that of its inputs. A pattern with both has two sides, and what one is worth depends on the
order of the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgesparse.errors import Reason
from edgesparse.passes.couple import Coupling
from edgesparse.passes.graph import Array
from edgesparse.passes.layers import LayerInfo
from edgesparse.passes.permute import View, contests, least_kept
from edgesparse.pattern import Mask
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
    starts:
        Where on the axis the set begins, if the axis is several sets one after another; it may be there many times.
    """

    space: int
    size: int
    repeat: int = 1
    own: bool = False
    starts: tuple[int, ...] = ()

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

    def whole(self, coupling: Coupling, order: Mapping[int, Array]) -> View:
        """What all the layer's channels on this side retain when they are in `order`."""
        along = [output_axis(self.layer), 1 - output_axis(self.layer)]
        rows, columns = (coupling.spaces.indices(coupling.axis(self.layer.weight, i), dict(order)) for i in along)
        scores = self.scores[rows][:, columns]
        high, wide = group_sizes(self.choice)
        other, extent = (1, wide) if self.output else (0, high)
        smaller = scores.shape[other] % extent > 0
        scores = np.moveaxis(_pooled(scores, other, extent), other, 1)
        apart = np.zeros(scores.shape[1:], np.bool_)
        apart[-1] = True
        pattern = self.choice.pattern
        share = 1.0 if self.choice.density is None else self.choice.density
        keep = pattern.n if pattern.kind == "nm" else 0
        matrix = np.ascontiguousarray(scores.reshape(len(scores), -1))
        return View(matrix, share, self.group, keep, apart=apart.reshape(-1) if smaller else None)

    def view(self, coupling: Coupling, order: Mapping[int, Array]) -> View:
        """What the set's channels have at stake when all channels are in `order`: as `whole`, in the set's own rows.

        Of a set that is one of several its groups compete with all others; here they have the share that they keep.
        """
        whole, place = self.whole(coupling, order), self.place
        matrix = whole.matrix
        mine = [slice(start, start + place.size * place.repeat) for start in place.starts]
        parts = [matrix[part] for part in mine] or [matrix]
        if place.repeat > 1 and not place.own:  # heads in one order: each is more features of a channel
            parts = [part.reshape(place.repeat, place.size, -1) for part in parts]
            parts = [np.moveaxis(part, 0, 1).reshape(place.size, -1) for part in parts]
        share = _share_kept(whole, mine) if mine else whole.density
        matrix = np.ascontiguousarray(np.concatenate(parts, axis=1))
        apart = whole.apart if whole.apart is None else np.tile(whole.apart, matrix.shape[1] // len(whole.apart))
        return replace(whole, matrix=matrix, density=share, apart=apart)


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
    return _place(coupling, space, outer)


def _place(coupling: Coupling, space: int, outer: Sequence[int]) -> Place:
    """The channels of a set, once for each head of the `outer` sets of a product."""
    repeat = int(np.prod([coupling.spaces.size[one] for one in outer])) if outer else 1
    own = len(outer) == 1 and coupling.heads.get(space) == outer[0]
    return Place(space, coupling.spaces.size[space], repeat, own)


def places_of(coupling: Coupling, layer: LayerInfo, *, output: bool, group: int) -> tuple[list[Place], list[Reason]]:
    """As `place_of`; of several sets, one after another, each that is whole groups has a place of its own."""
    end = output_axis(layer) if output else 1 - output_axis(layer)
    axis, what = coupling.axis(layer.weight, end), "output" if output else "input"
    if len(axis) == 1:
        place = place_of(coupling, layer, output=output, group=group)
        return ([], [place]) if isinstance(place, Reason) else ([place], [])
    found: dict[int, Place] = {}
    unfit: set[int] = set()
    at = 0
    for *outer, space in axis:
        place = _place(coupling, space, outer)
        place = replace(place, starts=(*found.get(space, place).starts, at))
        if coupling.spaces.reason(space) or at % group or place.size % group or place.size == group:
            unfit.add(space)
        if space in found and found[space].repeat != place.repeat:
            unfit.add(space)
        found[space] = place
        at += place.size * place.repeat
    places = [place for space, place in found.items() if space not in unfit]
    why = f"its {what} channels fall into several sets, and none is free and whole groups of {group}"
    return places, [] if places else [Reason("not-rearranged", why, layer.name)]


def spaces_of(coupling: Coupling, layer: LayerInfo, *, output: bool) -> set[int]:
    """All sets that a layer's output (or input) channels are made of, pinned or free, alone or in products."""
    end = output_axis(layer) if output else 1 - output_axis(layer)
    return {space for segment in coupling.axis(layer.weight, end) for space in segment}


def kept_sums(view: View) -> Mask:
    """Which groups' entries are kept where whole groups compete, bool `[groups, features]`."""
    sums = np.add.reduceat(view.matrix, np.arange(0, len(view.matrix), view.size), axis=0)
    kept = np.empty(sums.shape, np.bool_)
    for contest in contests(view, len(view.matrix)):
        kept[contest] = sums[contest] >= least_kept(sums[contest], view.density)
    return kept


def _share_kept(view: View, parts: Iterable[slice]) -> float:
    """The share of the groups' entries that is kept among these rows when all rows of the view compete."""
    kept = kept_sums(view)
    return float(np.mean([kept[rows.start // view.size : rows.stop // view.size].mean() for rows in parts]))


def _pooled(scores: Array, axis: int, size: int) -> Array:
    """What is kept or dropped together competes as one."""
    if size == 1:
        return scores
    return np.asarray(np.add.reduceat(scores, np.arange(0, scores.shape[axis], size), axis=axis))
