"""Balance: whole groups in an order that gives threads equal work, among all orders that retain the same.

Calls that are cut for threads get consecutive groups, as many as hold an equal share of the non-zeros; how equal they
can be depends on which groups stand next to each other. Groups may change places at no loss, so they are put in an
order in which, from the first on, the work done grows as evenly as it can: any cut is then a good one, for any number
of threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgesparse.passes.couple import Coupling
from edgesparse.passes.graph import Array
from edgesparse.passes.permute import View
from edgesparse.passes.sides import Side, kept_sums


def even_order(work: Array) -> Array:
    """An order int64 `[groups]` in which every layer's sums grow evenly; `work` is float `[groups, layers]`.

    Greedy: next comes the group that brings the sums nearest to the line. For one layer no sum is further from it than
    the group furthest from the mean.
    """
    mean = np.maximum(work.mean(axis=0), 1e-30)
    off = work / mean - 1.0
    left, now, found = np.arange(len(work)), np.zeros(work.shape[1]), []
    while len(left):
        after = np.square(now + off[left]).sum(axis=1)
        chosen = int(np.argmin(after))
        now = now + off[left[chosen]]
        found.append(left[chosen])
        left = np.delete(left, chosen)
    return np.asarray(found, np.int64)


def balanced(coupling: Coupling, order: Mapping[int, Array], sides: Sequence[Side]) -> Array | None:
    """The set's channels in an order as `order` has it but for the places of whole groups; None if there is no choice.

    Int64 `[channels]`. Heads that have orders of their own stay, and so do patterns whose groups are all alike.
    """
    place = sides[0].place
    unit = max(side.group for side in sides)
    views = [side.view(coupling, order) for side in sides if side.output]
    views = [view for view in views if view.summed]
    if place.own or not views or any(unit % side.group for side in sides) or place.size < 2 * unit:
        return None
    whole = place.size // unit
    work = np.stack([_work(view, unit)[:whole] for view in views], axis=1)
    groups = even_order(work)[:, None] * unit + np.arange(unit)
    moved = np.concatenate([groups.reshape(-1), np.arange(whole * unit, place.size)])
    present = order.get(place.space)
    return moved if present is None else present[moved]


def _work(view: View, unit: int) -> Array:
    """Entries kept in each `unit` of consecutive channels, float64; the last may be smaller."""
    kept = kept_sums(view).sum(axis=1, dtype=np.float64) * view.size
    return np.asarray(np.add.reduceat(kept, np.arange(0, len(kept), unit // view.size)))
