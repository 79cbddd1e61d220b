"""Swaps of kept and dropped weights that lower a layer's error, and no other change of weights.

The idea of DSnoT (2310.08915), which swaps by the expected change of the error; here the change is exact, as the second
moments H of the inputs are known. With e the weights that are dropped (zero where kept) a row's error is e H e, and its
gradient half is g = e H. Dropping kept weight i costs 2 w_i g_i + w_i^2 H_ii, taking dropped j back costs
w_j^2 H_jj - 2 w_j g_j, and doing both 2 w_i w_j H_ij less. Rows of a group swap together: their costs add up.
"""

from __future__ import annotations

import numpy as np

from edgesparse.errors import UsageError
from edgesparse.passes.graph import Array
from edgesparse.passes.observe import Moments
from edgesparse.passes.surgeon import DAMPING, damped
from edgesparse.pattern import Mask, SparsePattern

ROUNDS = 100
"""Swaps that one group of rows may make."""
_GAIN = 1e-9
"""Least gain of a swap, as a share of the error that it is part of."""


def can_swap(pattern: SparsePattern) -> bool:
    """Whether single units of the pattern can change places within their rows: all columns compete alike."""
    return pattern.kind in ("unstructured", "fanin") or (pattern.kind == "group" and pattern.m == 1)


def swapped(
    weight: Array,
    mask: Mask,
    moments: Moments,
    pattern: SparsePattern,
    *,
    damping: float = DAMPING,
    rounds: int = ROUNDS,
) -> Mask:
    """A mask with as many units in each group of rows, and an error that is no larger.

    Parameters
    ----------
    weight, mask:
        Canonical, `[Cout, Cin / groups, taps]`; the mask keeps the pattern.

    Raises
    ------
    UsageError
        A pattern whose units cannot change places freely (see `can_swap`).
    """
    if not can_swap(pattern):
        raise UsageError(
            f"pattern {pattern} has no swaps", why="its units are bound to places", fix="take method refit"
        )
    parts = len(moments.mean)
    rows = weight.astype(np.float64).reshape(parts, weight.shape[0] // parts, -1)
    kept = mask.reshape(rows.shape).copy()
    size = pattern.n if pattern.kind == "group" else 1
    for part in range(parts):
        h = damped(moments.covariance[part], damping)
        for first in range(0, rows.shape[1], size):
            block = slice(first, first + size)
            kept[part, block] = _swap_rows(rows[part, block], kept[part, block][0], h, rounds)
    return kept.reshape(mask.shape)


def _swap_rows(weight: Array, kept: Mask, h: Array, rounds: int) -> Mask:
    """The kept columns of rows `[n, K]` that share them, after swaps; `kept` and the result are `[K]`."""
    kept = kept.copy()
    dropped = np.where(kept, 0.0, weight)
    half = dropped @ h
    own = np.square(weight).sum(axis=0) * np.diagonal(h)
    for _ in range(rounds):
        if kept.all() or not kept.any():
            break
        cross = 2.0 * (weight * half).sum(axis=0)
        cost = np.where(kept, own + cross, own - cross)
        out, back = (np.flatnonzero(side)[np.argmin(cost[side])] for side in (kept, ~kept))
        # the pair is chosen twice, from either side: the best to drop may be worth less beside the best to take back
        with_out = cost - 2.0 * (weight[:, out] @ weight) * h[out]
        with_back = cost - 2.0 * (weight[:, back] @ weight) * h[back]
        take = int(np.flatnonzero(~kept)[np.argmin(with_out[~kept])])
        drop = int(np.flatnonzero(kept)[np.argmin(with_back[kept])])
        if cost[out] + with_out[take] <= with_back[drop] + cost[back]:
            gain, i, j = cost[out] + with_out[take], int(out), take
        else:
            gain, i, j = with_back[drop] + cost[back], drop, int(back)
        if gain >= -_GAIN * float((dropped * half).sum()):
            break
        half += np.outer(weight[:, i], h[i]) - np.outer(weight[:, j], h[j])
        dropped[:, i], dropped[:, j] = weight[:, i], 0.0
        kept[i], kept[j] = False, True
    return kept
