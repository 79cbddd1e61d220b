"""Search for the order of channels under which groups cost least.

A view is a matrix A `[channels, features]` of saliencies of one layer: features are what a channel competes with in
its group, position by position. Groups are `size` consecutive channels, G = sums of A over them, and the pattern
keeps the k largest entries of G over the whole view. Retained saliency is their sum; with the k-th largest value t,
it is k t + sum of max(G - t, 0), so for fixed t each channel's place can be judged alone. The search goes uphill
only: greedy groups, then balanced assignment against the groups' present masks (scipy's `linear_sum_assignment`),
then swaps of two channels, with t renewed between; then a tenth of the channels is shuffled and the swaps are made
anew, a few times, and the best is kept. The sum over max(G - t, 0) is convex in G, so its slope at the present groups
bounds a swap's gain from below: partners are ranked by that bound, and the gains of the first ones are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from edgesparse.passes.graph import Array

MAX_SWEEPS = 16
WORK = 4e9
"""Sums that the sweeps of one set may make; at least three sweeps are made."""
_ASSIGNMENTS = 4
_PARTNERS = 48
"""Partners whose gain is computed exactly, for each channel; more were not measured to find better orders."""
_KICKS, _KICKED = 4, 0.1
"""How often an order is shaken, and the share of its channels that then change places."""


@dataclass(frozen=True)
class View:
    """Saliencies float32 `[channels, features]` of one layer, and the share of its units that is kept."""

    matrix: Array
    density: float


def retained(views: Sequence[View], order: Array, size: int) -> float:
    """Mean over the views of the share of saliency that groups of `size` keep when channels are in `order`."""
    shares = []
    for view in views:
        sums = _pooled(view.matrix[order], size)
        shares.append(_top_sum(sums, view.density) / max(float(view.matrix.sum(dtype=np.float64)), 1e-30))
    return float(np.mean(shares))


def by_norm(views: Sequence[View]) -> Array:
    """Channels sorted by their whole saliency, largest first: the known method (1xN), as a baseline."""
    return np.argsort(-_normalised(views).sum(axis=1), kind="stable")


def search(views: Sequence[View], size: int, *, seed: int = 0) -> Array:
    """A permutation int64 `[channels]` under which groups of `size` retain at least what the given order does.

    `views` all have the same channels. The result follows from the views and the seed: what bounds the time is the
    number of sweeps (`WORK`), not a clock.
    """
    matrix = _normalised(views)
    channels = len(matrix)
    best = np.arange(channels)
    if size < 2 or channels <= size:
        return best
    widths = [view.matrix.shape[1] for view in views]
    densities = [view.density for view in views]
    rng = np.random.default_rng(seed)
    top = _objective(matrix, best, size, widths, densities)
    for start in (by_norm(views), _greedy(matrix, size, widths, densities)):
        order = _assign(matrix, start, size, widths, densities)
        order = _swap(matrix, order, size, widths, densities, rng)
        value = _objective(matrix, order, size, widths, densities)
        if value > top:
            best, top = order, value
    for _ in range(_KICKS):
        order = best.copy()
        moved = rng.choice(channels, max(2, int(_KICKED * channels)), replace=False)
        order[moved] = order[rng.permutation(moved)]
        order = _swap(matrix, order, size, widths, densities, rng)
        value = _objective(matrix, order, size, widths, densities)
        if value > top:
            best, top = order, value
    return _canonical_order(best, size)


def _normalised(views: Sequence[View]) -> Array:
    """All views side by side, each divided by its sum: layers count alike."""
    parts = [view.matrix / max(float(view.matrix.sum(dtype=np.float64)), 1e-30) for view in views]
    return np.ascontiguousarray(np.concatenate(parts, axis=1), dtype=np.float32)


def _pooled(rows: Array, size: int) -> Array:
    return np.add.reduceat(rows, np.arange(0, len(rows), size), axis=0)


def _top_sum(sums: Array, density: float) -> float:
    kept = int(np.floor(density * sums.size + 0.5))
    flat = np.sort(sums.reshape(-1))[::-1]
    return float(flat[:kept].sum(dtype=np.float64))


def _thresholds(sums: Array, widths: Sequence[int], densities: Sequence[float]) -> Array:
    """Per feature, the smallest unit sum that its view keeps; float32 `[features]`."""
    found, start = [], 0
    for width, density in zip(widths, densities, strict=True):
        flat = sums[:, start : start + width].reshape(-1)
        kept = min(max(int(np.floor(density * flat.size + 0.5)), 1), flat.size)
        found.append(np.full(width, np.partition(flat, flat.size - kept)[flat.size - kept], np.float32))
        start += width
    return np.concatenate(found)


def _objective(matrix: Array, order: Array, size: int, widths: Sequence[int], densities: Sequence[float]) -> float:
    sums, start, total = _pooled(matrix[order], size), 0, 0.0
    for width, density in zip(widths, densities, strict=True):
        total += _top_sum(sums[:, start : start + width], density)
        start += width
    return total


def _greedy(matrix: Array, size: int, widths: Sequence[int], densities: Sequence[float]) -> Array:
    """Groups grown one by one: the largest channel left, then those that add most above the threshold."""
    threshold = _thresholds(_pooled(matrix[np.argsort(-matrix.sum(axis=1), kind="stable")], size), widths, densities)
    left = np.argsort(-matrix.sum(axis=1), kind="stable")
    order: list[int] = []
    while left.size:
        total, left, group = matrix[left[0]], left[1:], [int(left[0])]
        while len(group) < size and left.size:
            share = threshold * ((len(group) + 1) / size)
            gain = np.maximum(total + matrix[left] - share, 0).sum(axis=1)
            pick = int(gain.argmax())
            group.append(int(left[pick]))
            total, left = total + matrix[left[pick]], np.delete(left, pick)
        order += group
    return np.asarray(order)


def _assign(matrix: Array, order: Array, size: int, widths: Sequence[int], densities: Sequence[float]) -> Array:
    """Balanced assignment of channels to the groups' masks, renewed until it gains nothing."""
    value = _objective(matrix, order, size, widths, densities)
    for _ in range(_ASSIGNMENTS):
        sums = _pooled(matrix[order], size)
        masks = (sums >= _thresholds(sums, widths, densities)).astype(np.float32)
        profit = matrix @ masks.T
        places = np.arange(len(matrix)) // size
        _, column = linear_sum_assignment(profit[:, places], maximize=True)
        fresh = np.argsort(column, kind="stable")
        better = _objective(matrix, fresh, size, widths, densities)
        if better <= value * (1 + 1e-7):
            break
        order, value = fresh, better
    return order


def _swap(
    matrix: Array,
    order: Array,
    size: int,
    widths: Sequence[int],
    densities: Sequence[float],
    rng: np.random.Generator,
) -> Array:
    """Swap each channel with the partner that gains most, sweep after sweep, while anything gains."""
    group = np.empty(len(matrix), np.int64)
    group[order] = np.arange(len(matrix)) // size
    sweeps = int(np.clip(WORK / (len(matrix) * matrix.size), 3, MAX_SWEEPS))
    for _ in range(sweeps):
        sums = np.zeros((int(group.max()) + 1, matrix.shape[1]), np.float32)
        np.add.at(sums, group, matrix)
        threshold = _thresholds(sums, widths, densities)
        state = _State(matrix, group, sums, threshold)
        swaps = sum(state.swap(int(a)) for a in rng.permutation(len(matrix)))
        if swaps <= len(matrix) // 200:
            break
    return np.argsort(group, kind="stable")


class _State:
    """Groups under a fixed threshold: their sums, what these have above it, and what each channel has in each mask."""

    def __init__(self, matrix: Array, group: Array, sums: Array, threshold: Array) -> None:
        self.matrix, self.group, self.sums, self.threshold = matrix, group, sums, threshold
        self.over = np.maximum(sums - threshold, 0).sum(axis=1)
        self.inside = matrix @ (sums >= threshold).astype(np.float32).T
        self.at_home = self.inside[np.arange(len(matrix)), group]

    def swap(self, a: int) -> bool:
        """Swap channel `a` with the best partner of another group, in place; whether there was one."""
        group, matrix, sums = self.group, self.matrix, self.sums
        own = int(group[a])
        bound = self.inside[:, own] + self.inside[a][group] - self.at_home
        bound[group == own] = -np.inf
        few = min(_PARTNERS, len(bound) - 1)
        partners = np.argpartition(-bound, few)[:few]
        partners = partners[group[partners] != own]
        if not partners.size:
            return False
        theirs, rows = group[partners], matrix[partners]
        gain = np.maximum(sums[own] - matrix[a] - self.threshold + rows, 0).sum(axis=1)
        gain += np.maximum(sums[theirs] - rows + (matrix[a] - self.threshold), 0).sum(axis=1)
        gain -= self.over[own] + self.over[theirs]
        best = int(gain.argmax())
        if not gain[best] > 1e-7 * max(float(self.over[own]), 1e-12):
            return False
        self._exchange(a, int(partners[best]))
        return True

    def _exchange(self, a: int, b: int) -> None:
        both = [int(self.group[a]), int(self.group[b])]
        step = self.matrix[b] - self.matrix[a]
        self.sums[both[0]] += step
        self.sums[both[1]] -= step
        self.group[a], self.group[b] = both[1], both[0]
        above = self.sums[both] - self.threshold
        self.over[both] = np.maximum(above, 0).sum(axis=1)
        self.inside[:, both] = self.matrix @ (above >= 0).astype(np.float32).T
        members = np.flatnonzero((self.group == both[0]) | (self.group == both[1]))
        self.at_home[members] = self.inside[members, self.group[members]]


def _canonical_order(order: Array, size: int) -> Array:
    """Equal groups, told in one way: channels ascending within a group, whole groups by their first channel."""
    whole = len(order) // size * size
    groups = np.sort(order[:whole].reshape(-1, size), axis=1)
    groups = groups[np.argsort(groups[:, 0], kind="stable")]
    return np.concatenate([groups.reshape(-1), np.sort(order[whole:])]).astype(np.int64)
