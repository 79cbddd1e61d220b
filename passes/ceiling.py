"""What no order of channels can exceed: a bound on the saliency that groups retain.

Groups of S channels compete for the k largest of their sums. For any price t of a group's entry, what an order retains
is at most k t + sum of max(G - t, 0) over all groups' entries G (equal for the right t). A sum of S entries less t is
the mean over the group's pairs of (S/2) (a + b) - t, so that max(G - t, 0) is at most

    1 / (S - 1) x sum over the pairs of the group of max(a + b - 2t/S, 0)

and a pair, summed over the features, is worth the same in every order. In an order each channel has S - 1 partners, and
is one for as many; such a choice of partners falls into S - 1 choices of one partner each (König), of which none is
worth more than the best assignment. So half the worth of the best assignment, plus k t, is the bound. Where orders of
several layers are coupled it holds for each of them alone.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from edgesparse.passes.graph import Array
from edgesparse.passes.permute import View, unstructured
from edgesparse.pattern import rounded

#: Prices that are tried, as multiples of the least entry that is kept in the given order. Any price gives a bound.
_PRICES = (0.5, 0.7, 0.9)


def ceiling(view: View) -> float:
    """A share of a layer's saliency that no order of its channels exceeds, for groups that compete; 0 to 1.

    Never more than unstructured weights retain. Takes time like the cube of the channels: seconds for a thousand.

    Raises
    ------
    ValueError
        The view is not one of groups that compete (n:m, or zeros that are there already).
    """
    if not view.summed:
        raise ValueError("only groups that compete have such a ceiling")
    matrix = view.matrix.astype(np.float64)
    total = float(matrix.sum())
    if view.size < 2 or len(matrix) % view.size or view.apart is not None or total <= 0:
        return unstructured([view])
    sums = np.sort(matrix.reshape(-1, view.size, matrix.shape[1]).sum(axis=1), axis=None)[::-1]
    kept = rounded(view.density * sums.size)
    if not 0 < kept < sums.size:
        return float(kept > 0)
    alone = float(np.sort(matrix, axis=None)[::-1][: kept * view.size].sum())
    bounds = [_paired(matrix, 2 * price / view.size) + kept * price for price in sums[kept] * np.array(_PRICES)]
    return float(min(alone, *bounds)) / total


def _paired(matrix: Array, price: float) -> float:
    """Half the worth of the best choice of a partner for each channel, each the partner of one."""
    worth = np.stack([np.maximum(matrix + row - price, 0).sum(axis=1) for row in matrix])
    np.fill_diagonal(worth, -worth.sum())  # nobody is its own partner
    chosen = linear_sum_assignment(worth, maximize=True)
    return float(worth[chosen].sum()) / 2
