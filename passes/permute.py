"""Search for the order of channels under which a pattern costs least.

A view is a matrix A `[channels, features]` of saliencies of one layer, seen from the channels that move: outputs
for groups Nx1, inputs for groups 1xM and n:m. Groups are `size` consecutive channels. Either groups compete: G = sums
of A over them, and the k largest entries of G over the whole view are kept. With the k-th largest value t, what is
retained is k t + sum of max(G - t, 0), so for fixed t a channel is worth max(R - t + a, 0) in a group whose others sum
to R; a smaller last group competes with itself only, and has a t of its own. Or, in n:m, channels compete within each
group, feature by feature, and a channel is worth max(a - r, 0) where r is the n-th largest of the others. Or the zeros
are there already, entries are the price p of a feature or zero, and a channel saves max(a + u - p, 0) in a group where
the largest entry of the others is u.

All are max(R + a, 0), and so is the search: take one channel out of each group, and give all of them back to the
groups by the assignment that is best of all (scipy's `linear_sum_assignment`); again with other channels, until nothing
gains; then shake a tenth of the channels, and keep what is better. One such exchange weighs every swap and every cycle
of swaps between the channels taken out, at the cost of one product of matrices.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from edgesparse.passes.graph import Array
from edgesparse.pattern import Mask, equal_spans, rounded

WORK = 3e9
"""Sums that exchanges in one set may make: a few seconds; at least `_LEAST` exchanges are made."""
_LEAST, _MOST = 40, 1500
_PATIENCE = 20
"""Exchanges in a row that gain nothing before an order is shaken."""
_SHAKINGS = 10
"""Shakings in a row that gain nothing before the search ends."""
_TOGETHER = 128
"""Groups that take part in one assignment."""
_KICKED = 0.1
"""Share of the channels that change places when an order is shaken."""


@dataclass(frozen=True)
class View:
    """What one layer has at stake in an order of channels.

    Attributes
    ----------
    matrix:
        Saliencies float32 `[channels, features]`, not negative.
    density:
        Share of the groups' entries that is kept, of all sums of equally many; without a meaning where there is
        `keep`.
    size:
        Consecutive channels of a group.
    keep:
        For n:m, how many channels of each group every feature keeps; 0 where whole groups compete.
    shared:
        For zeros that are there already: entries are a feature's price or zero, and what counts is the work that
        channels of a group have in common. `density` then has no meaning.
    apart:
        Where whole groups compete, bool `[features]`: features that are sums of fewer than the others, as the last
        group of the layer's other side may be; None where all are alike.
    """

    matrix: Array
    density: float
    size: int
    keep: int = 0
    shared: bool = False
    apart: Mask | None = None

    @property
    def summed(self) -> bool:
        """Whether whole groups compete."""
        return not self.keep and not self.shared


def retained(views: Sequence[View], order: Array) -> float:
    """Mean over the views of the share of saliency that is kept when channels are in `order`."""
    return float(np.mean([_kept(view.matrix[order], view) / _total(view) for view in views]))


def unstructured(views: Sequence[View]) -> float:
    """Mean share of saliency in as many entries, chosen one by one, as groups keep: no order can reach more."""
    return float(np.mean([_largest(view.matrix, _entries(view)) / _total(view) for view in views]))


def contests(view: View, channels: int) -> list[tuple[slice, slice | Mask]]:
    """Which sums `[groups, features]` of so many channels compete with each other: all that are of equally many."""
    features = [slice(None)] if view.apart is None else [~view.apart, view.apart]
    return [(groups, part) for groups in equal_spans(channels, view.size) for part in features]


def least_kept(sums: Array, density: float) -> float:
    """The smallest of those sums that are kept when all compete; infinite where none is."""
    dropped = sums.size - rounded(density * sums.size)
    return float(np.partition(sums.reshape(-1), dropped)[dropped]) if dropped < sums.size else np.inf


def by_norm(views: Sequence[View], block: int = 0) -> Array:
    """Channels sorted by their whole saliency, largest first, within each block: the known method (1xN), a baseline."""
    norms = np.add.reduce([view.matrix.sum(axis=1, dtype=np.float64) / _total(view) for view in views])
    places = np.arange(len(norms)) // (block or len(norms))
    return np.lexsort((-norms, places))


def search(views: Sequence[View], *, block: int = 0, seed: int = 0) -> Array:
    """A permutation int64 `[channels]` under which the views retain at least what they do in the given order.

    `views` all have the same channels. Their sizes may differ: the largest groups are found first, smaller ones within
    them. With a `block`, channels stay within their block of so many (a head of attention, say). The result follows
    from the views and the seed: what bounds the time is the number of exchanges (`WORK`), not a clock.
    """
    channels = len(views[0].matrix)
    order, fence, sizes = np.arange(channels), block, []
    rng = np.random.default_rng(seed)
    for size in sorted({view.size for view in views}, reverse=True):
        if not 2 <= size < channels or (fence and (fence % size or fence == size)):
            continue
        task = _Task([view for view in views if view.size == size], size, fence)
        order = task.solve(order, rng)
        fence = size
        sizes.append(size)
    order = _told(order, [block, *sizes] if block else sizes, keep=bool(block))
    return order if retained(views, order) > retained(views, np.arange(channels)) else np.arange(channels)


class _Task:
    """Views of one group size, and exchanges of channels between groups; groups int64 `[G, size]` hold the state.

    Rows that fill up the last group are zeros and stay there. With a `fence`, channels stay among the groups of their
    block of so many channels.
    """

    def __init__(self, views: Sequence[View], size: int, fence: int) -> None:
        self.size, self.count = size, len(views[0].matrix)
        self.missing = -self.count % size
        self.number = (self.count + self.missing) // size
        self.views = sorted(views, key=lambda view: not view.summed)
        parts = [view.matrix / _total(view) for view in self.views]
        zeros = np.zeros((self.missing, sum(view.matrix.shape[1] for view in views)))
        self.matrix = np.ascontiguousarray(np.concatenate([np.concatenate(parts, axis=1), zeros]), np.float32)
        bounds = np.cumsum([0, *(view.matrix.shape[1] for view in self.views)])
        self.spans = [slice(*pair) for pair in itertools.pairwise(bounds)]
        self.summed = slice(0, int(sum(v.matrix.shape[1] for v in self.views if v.summed)))
        self.per_block = fence // size if fence else 1
        self.fenced = bool(fence)
        together = min(self.number, _TOGETHER)
        self.budget = int(np.clip(WORK / max(together * self.number * self.matrix.shape[1], 1), _LEAST, _MOST))

    def solve(self, order: Array, rng: np.random.Generator) -> Array:
        """The best order found from `order`, from it sorted by saliency, and from shakings of the better one."""
        given = np.concatenate([order, np.arange(self.count, self.count + self.missing)]).reshape(-1, self.size)
        starts = [given] if self.fenced else [given, self._sorted()]
        best, top, left = given, self.value(given), self.budget
        for number, start in enumerate(starts):
            groups, value, used = self._climb(start, rng, left // (len(starts) + 1 - number))
            left -= used
            if value > top:
                best, top = groups, value
        idle = 0
        while left > 0 and idle < _SHAKINGS:
            groups, value, used = self._climb(self._shaken(best, rng), rng, left)
            left, idle = left - used, idle + 1
            if value > top * (1 + 1e-6):
                best, top, idle = groups, value, 0
        found = best.reshape(-1)
        return found[found < self.count]

    def value(self, groups: Array) -> float:
        """Retained saliency, the sum over the views of their shares."""
        rows = self.matrix[groups.reshape(-1)]
        return sum(_kept(rows[: self.count, span], view) for view, span in zip(self.views, self.spans, strict=True))

    def _climb(self, groups: Array, rng: np.random.Generator, most: int) -> tuple[Array, float, int]:
        best, top = groups.copy(), self.value(groups)
        groups, idle = groups.copy(), 0
        for used in range(most):
            self._exchange(groups, rng)
            value = self.value(groups)
            if value > top * (1 + 1e-6):
                best, top, idle = groups.copy(), value, 0
                continue
            idle += 1
            if idle >= _PATIENCE:
                return best, top, used + 1
        return best, top, most

    def _exchange(self, groups: Array, rng: np.random.Generator) -> None:
        """Take one channel out of each group and give all of them back in the best way, subset by subset."""
        thresholds = self._thresholds(groups)
        blocks = -(-self.number // self.per_block)
        ranked = (rng.permutation(blocks)[:, None] * self.per_block + np.arange(self.per_block)).reshape(-1)
        ranked = ranked[ranked < self.number]
        step = max(_TOGETHER // self.per_block, 1) * self.per_block
        for first in range(0, len(ranked), step):
            chosen = ranked[first : first + step]
            if len(chosen) > 1:
                self._reassign(groups, chosen, thresholds, rng)

    def _reassign(self, groups: Array, chosen: Array, thresholds: Array, rng: np.random.Generator) -> None:
        width = np.where(chosen == self.number - 1, self.size - self.missing, self.size)
        place = rng.integers(0, width)
        out = groups[chosen, place]
        rest = self._rest(groups[chosen], place, width, thresholds)
        rows = self.matrix[out]
        gain = rows.sum(axis=1)[:, None] + _above(rest, -rows)
        if self.fenced:
            block = chosen // self.per_block
            gain = np.where(block[:, None] == block, gain, -1e9)
        row, column = linear_sum_assignment(gain, maximize=True)
        groups[chosen[column], place[column]] = out[row]

    def _rest(self, members: Array, place: Array, width: Array, thresholds: Array) -> Array:
        """What a channel's entries are added to in each group, `[g, features]`: it is worth max(rest + a, 0)."""
        rows = self.matrix[members]
        rows[np.arange(len(members)), place] = 0.0
        rest = np.empty((len(members), self.matrix.shape[1]), np.float32)
        rest[:, self.summed] = rows[:, :, self.summed].sum(axis=1) - thresholds[(width < self.size).astype(np.intp)]
        for view, span in zip(self.views, self.spans, strict=True):
            if view.shared:
                rest[:, span] = rows[:, :, span].max(axis=1) - self.matrix[:, span].max(axis=0)
            elif view.keep:  # the place that was emptied counts as a zero, so the n-th largest is that of the others
                quota = -(-width * view.keep // self.size)
                ranks = np.sort(rows[:, :, span], axis=1)
                rest[:, span] = -ranks[np.arange(len(members)), self.size - quota]
        return rest

    def _thresholds(self, groups: Array) -> Array:
        """The smallest sum that is kept per feature of views whose groups compete, float32 `[2, features]`.

        First among whole groups, then in a smaller last one.
        """
        found = [np.zeros((2, 0), np.float32)]
        for view, span in zip(self.views, self.spans, strict=True):
            if view.summed:
                sums = self.matrix[groups.reshape(-1), span].reshape(self.number, self.size, -1).sum(axis=1)
                found.append(np.zeros((2, sums.shape[1]), np.float32))
                for part, features in contests(view, self.count):
                    found[-1][int(part.start > 0), features] = least_kept(sums[part, features], view.density)
        return np.concatenate(found, axis=1)

    def _sorted(self) -> Array:
        order = np.argsort(-self.matrix[: self.count].sum(axis=1), kind="stable")
        return np.concatenate([order, np.arange(self.count, self.count + self.missing)]).reshape(-1, self.size)

    def _shaken(self, groups: Array, rng: np.random.Generator) -> Array:
        order = groups.reshape(-1).copy()
        many = max(2, int(_KICKED * self.count))
        if not self.fenced:
            places = rng.choice(self.count, many, replace=False)
            order[places] = order[rng.permutation(places)]
        else:
            wide = self.per_block * self.size
            for first in rng.integers(0, -(-self.count // wide), -(-self.count // wide)) * wide:
                places = rng.permutation(np.arange(first, min(first + wide, self.count)))[:2]
                order[places] = order[places[::-1]]
        return order.reshape(-1, self.size)


def _above(rest: Array, negated: Array) -> Array:
    """sum over features of max(rest, -a), float32 `[rows, groups]`: max(rest + a, 0) less the sum of a."""
    found = np.empty((len(negated), len(rest)), np.float32)
    room = np.empty_like(rest)
    ones = np.ones(rest.shape[1], np.float32)
    for number, row in enumerate(negated):
        np.maximum(rest, row, out=room)
        np.matmul(room, ones, out=found[number])
    return found


def _total(view: View) -> float:
    return max(float(view.matrix.sum(dtype=np.float64)), 1e-30)


def _entries(view: View) -> int:
    """How many entries of its matrix a view's pattern keeps, in whatever order."""
    channels, features = view.matrix.shape
    if view.keep:
        whole, left = divmod(channels, view.size)
        return int((whole * view.keep - (-left * view.keep // view.size)) * features)
    heights = np.minimum(channels - np.arange(0, channels, view.size), view.size)
    entries = 0
    for groups, part in contests(view, channels):
        sums = len(heights[groups]) * len(np.arange(features)[part])
        entries += rounded(view.density * sums) * int(heights[groups][0])
    return entries


def _kept(rows: Array, view: View) -> float:
    """Saliency that the pattern keeps of rows in their order."""
    starts = np.arange(0, len(rows), view.size)
    if view.shared:
        return float((rows.sum(axis=0) - np.maximum.reduceat(rows, starts, axis=0).sum(axis=0)).sum(dtype=np.float64))
    if not view.keep:
        sums = np.add.reduceat(rows, starts, axis=0)
        parts = [sums[contest] for contest in contests(view, len(rows))]
        return sum(_largest(part, rounded(view.density * part.size)) for part in parts)
    total = 0.0
    whole = len(rows) // view.size * view.size
    for part, size in ((rows[:whole], view.size), (rows[whole:], len(rows) - whole)):
        if len(part):
            quota = -(-size * view.keep // view.size)
            ranks = np.sort(part.reshape(-1, size, part.shape[1]), axis=1)
            total += float(ranks[:, size - quota :].sum(dtype=np.float64))
    return total


def _largest(entries: Array, many: int) -> float:
    """The sum of so many of the entries, the largest ones."""
    flat = entries.reshape(-1)
    return float(np.partition(flat, flat.size - many)[flat.size - many :].sum(dtype=np.float64)) if many else 0.0


def _told(order: Array, sizes: Sequence[int], *, keep: bool = False) -> Array:
    """Equal groups told in one way: by first channel, within each size; `keep` leaves the largest in place."""
    if not sizes:
        return np.sort(order)
    chunks = [order[first : first + sizes[0]] for first in range(0, len(order), sizes[0])]
    chunks = [_told(chunk, sizes[1:]) for chunk in chunks]
    whole = [chunk for chunk in chunks if len(chunk) == sizes[0]]
    if not keep:
        whole.sort(key=lambda chunk: int(chunk.min()))
    return np.concatenate([*whole, *chunks[len(whole) :]]).astype(np.int64)
