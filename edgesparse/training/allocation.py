"""Allocation: how one budget of weights is split over the layers.

- `uniform`: every layer its own density, as the recipe says.
- `erk`: Erdős-Rényi-Kernel (RigL, 1911.11134): a layer's density goes with (Cin + Cout + k...) / (Cin * Cout * k...),
  so small layers stay denser.
- `lamp`: layer-adaptive magnitude (LAMP, 2010.07611): a unit's score is its energy over the energy of all units of its
  layer that are at least as strong; the units with the highest scores of all layers stay. Every layer keeps one.

The budget is the sum of what the layers would keep under `uniform`. Layers with a pattern of fixed density (`nm`,
`kernel`) keep that and take no part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgesparse.errors import UsageError
from edgesparse.pattern import Array, Shape3, SparsePattern, equal_spans

ALLOCATIONS = ("uniform", "erk", "lamp")


def check_allocation(name: str) -> None:
    """Raise UsageError for an unknown allocation."""
    if name not in ALLOCATIONS:
        raise UsageError(f"unknown allocation {name!r}", fix=f"take {', '.join(ALLOCATIONS)}")


def allocate(
    name: str, patterns: Sequence[SparsePattern], densities: Sequence[float], scores: Sequence[Array]
) -> list[float]:
    """Densities per layer, within 0 and 1.

    Parameters
    ----------
    name:
        One of `ALLOCATIONS`.
    patterns, densities:
        Of each layer: what `uniform` gives, and what the budget is counted from.
    scores:
        Canonical saliency `[Cout, Cin, taps]` of each layer, not negative.
    """
    check_allocation(name)
    free = [i for i, pattern in enumerate(patterns) if not pattern.fixed]
    if name == "uniform" or not free:
        return list(densities)
    sizes = np.array([scores[i].size for i in free], dtype=np.float64)
    budget = float(sizes @ np.array([densities[i] for i in free]))
    if name == "erk":
        found = _erk([scores[i].shape for i in free], sizes, budget)
    else:
        found = _lamp([unit_energy(patterns[i], scores[i]) for i in free], sizes, budget)
    result = list(densities)
    for i, density in zip(free, found, strict=True):
        result[i] = float(density)
    return result


def unit_energy(pattern: SparsePattern, scores: Array) -> NDArray[np.float64]:
    """Sums of the scores over the pattern's units, flat; single weights where units are no rectangles."""
    table = np.asarray(scores, np.float64)
    if pattern.kind in ("group", "block"):
        table = np.add.reduceat(table, np.arange(0, table.shape[0], pattern.n), axis=0)
        table = np.add.reduceat(table, np.arange(0, table.shape[1], pattern.m), axis=1)
    if pattern.kind in ("block", "channel"):
        table = table.sum(axis=2)
    if pattern.kind == "channel":
        table = table.sum(axis=1)
    return table.reshape(-1)


def unit_numbers(pattern: SparsePattern, shape: Shape3) -> NDArray[np.int64]:
    """Of each weight of canonical `shape`, the index of its unit in `unit_energy`."""
    grouped, apart = pattern.kind in ("group", "block"), pattern.kind not in ("block", "channel")
    n, m = (pattern.n, pattern.m) if grouped else (1, 1)
    rows, columns, taps = (np.arange(length) for length in shape)
    rows, columns = rows // n, columns // m
    if pattern.kind == "channel":
        columns = columns * 0
    taps = taps if apart else taps * 0
    across, deep = columns[-1] + 1, taps[-1] + 1
    return np.asarray((rows[:, None, None] * across + columns[:, None]) * deep + taps, np.int64)


def even_tails(pattern: SparsePattern, scores: Array) -> NDArray[np.float64]:
    """Scores `[Cout, Cin, taps]` by which smaller last groups are worth what whole ones of such weights are."""
    table = np.array(scores, np.float64)
    if pattern.kind in ("group", "block"):
        for axis, extent in enumerate((pattern.n, pattern.m)):
            length = table.shape[axis]
            if left := length % extent:
                last = np.arange(length) >= length - left
                table *= np.expand_dims(np.where(last, extent / left, 1.0), [i for i in range(3) if i != axis])
    return table


def leftovers(pattern: SparsePattern, shape: Shape3) -> list[tuple[slice, slice]]:
    """Output and input channels of a layer's smaller last groups, which compete apart (`best_mask`)."""
    if pattern.kind not in ("group", "block"):
        return []
    rows, columns = (
        [slice(span.start * extent, min(span.stop * extent, length)) for span in equal_spans(length, extent)]
        for length, extent in zip(shape, (pattern.n, pattern.m), strict=False)
    )
    return [(high, wide) for high in rows for wide in columns][1:]


def _erk(shapes: Sequence[Shape3], sizes: NDArray[np.float64], budget: float) -> NDArray[np.float64]:
    """Raw ERK densities scaled to the budget; layers that would get more than all of theirs are full."""
    raw = np.array([(a + b + (taps**0.5) * 2 * (taps > 1)) / (a * b * taps) for a, b, taps in shapes])
    full = np.zeros(len(raw), dtype=np.bool_)
    while True:
        scale = (budget - sizes[full].sum()) / max(float((raw * sizes)[~full].sum()), 1e-30)
        over = ~full & (raw * scale > 1.0)
        if not over.any():
            return np.where(full, 1.0, np.clip(raw * scale, 0.0, 1.0))
        full |= over


def _lamp(energies: Sequence[NDArray[np.float64]], sizes: NDArray[np.float64], budget: float) -> NDArray[np.float64]:
    """Take units by LAMP score, best first, until the budget of weights is spent."""
    scores, layers, weights = [], [], []
    for index, energy in enumerate(energies):
        ordered = np.sort(energy)
        beyond = np.cumsum(ordered[::-1])[::-1]  # of this unit and all stronger ones
        scores.append(np.divide(ordered, beyond, out=np.zeros_like(ordered), where=beyond > 0))
        scores[-1][-1] = 1.0  # the strongest unit, also of a layer of zeros
        layers.append(np.full(energy.size, index))
        weights.append(np.full(energy.size, sizes[index] / energy.size))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    # the first units, down to the one that brings the count nearest to the budget
    spent = np.cumsum(np.concatenate(weights)[order])
    count = int(np.searchsorted(spent, budget + 0.5 * float(spent[0]), side="right"))
    chosen = np.concatenate(layers)[order][: max(count, len(energies))]
    kept = np.bincount(chosen, minlength=len(energies))
    return np.asarray(kept / np.array([energy.size for energy in energies]), np.float64)
