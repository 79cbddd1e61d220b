"""Cluster: order the channels of a model that is sparse already, so that neighbours share their zeros.

A kernel for groups of N output channels runs the union of N rows of non-zeros. No weight changes here; which rows make
a group does. With B `[channels, features]` the 0/1 matrix of all non-zeros that a set of coupled channels writes, and w
a price for each feature (how often a run uses it), an order costs the sum over groups and features of w where any row
of the group has a non-zero. Groups are grown one by one (largest row first, then by the share in common), or taken as
given or as sorted by their number of non-zeros; then any two channels are swapped for the best gain until nothing
gains. Groups of 4 are found first, then pairs within each and, twice, pairs of groups: which size the kernel has is
the compiler's choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgesparse.errors import Reason
from edgesparse.passes.couple import apply_order, couple
from edgesparse.passes.graph import Array
from edgesparse.passes.layers import LayerInfo, canonical_weight, weight_layers
from edgesparse.passes.observe import Tick
from edgesparse.passes.rearrange import output_space
from edgesparse.pattern import DENSE_FROM, density

SIZE = 4
_PAIRINGS = 2
MAX_SWEEPS = 8
WORK = 2e10
"""Products that the sweeps of one set may make; at least two sweeps are made."""


@dataclass(frozen=True)
class Clustered:
    """What an order of one set of channels brought.

    Attributes
    ----------
    layers:
        Sparse layers that write to the set.
    density:
        Share of their multiply-adds whose weight is not zero.
    given, found:
        The share that groups of `SIZE` run, in the given order and in the one found.
    """

    channels: int
    layers: tuple[str, ...]
    density: float
    given: float
    found: float


def cluster_model(model: ir.Model, *, seed: int = 0, tick: Tick | None = None) -> tuple[list[Clustered], list[Reason]]:
    """Permute in place; the function stays the same, and so does every weight but for its place.

    Returns what each set gained, and a Reason for every sparse layer whose channels cannot move.
    """
    coupling = couple(model)
    reasons: list[Reason] = []
    writers: dict[int, list[LayerInfo]] = {}
    for layer in weight_layers(model):
        if not layer.default or density(canonical_weight(model, layer) != 0) >= DENSE_FROM:
            continue
        space = output_space(coupling, layer)
        if isinstance(space, Reason):
            reasons.append(space)
        else:
            writers.setdefault(space, []).append(layer)
    order: dict[int, Array] = {}
    reports = []
    for number, (space, layers) in enumerate(writers.items()):
        if tick:
            tick(number / len(writers), layers[0].name)
        rows, prices = _rows(model, layers)
        given = np.arange(len(rows))
        found = gather(rows, prices, seed=seed)
        order[space] = found
        shares = [union_work(rows, prices, one, size) for one, size in ((given, 1), (given, SIZE), (found, SIZE))]
        whole = len(rows) * float(prices.sum())
        reports.append(
            Clustered(len(rows), tuple(layer.name for layer in layers), *(share / whole for share in shares))
        )
    apply_order(model, coupling, order)
    return reports, reasons


def gather(rows: Array, prices: Array, size: int = SIZE, *, seed: int = 0) -> Array:
    """An order int64 `[channels]` under which groups of `size`, and of half of it, cost at most what they do as given.

    `rows` is bool `[channels, features]`, `prices` float `[features]`.
    """
    channels = len(rows)
    best = np.arange(channels)
    if channels <= size:
        return best
    matrix, weight = _shrunk(rows, prices)
    if not weight.size:
        return best
    rng = np.random.default_rng(seed)
    found = _search(matrix, weight, size, rng)
    found = _nested(matrix, weight, found, size, rng)
    for tried in (size, size // 2):
        if union_work(rows, prices, found, tried) > union_work(rows, prices, best, tried):
            return best
    return found


def union_work(rows: Array, prices: Array, order: Array, size: int) -> float:
    """Multiply-adds, as `prices` has them, of groups of `size` channels in an order; the last group may be smaller."""
    starts = np.arange(0, len(order), size)
    union = np.logical_or.reduceat(rows[order] != 0, starts, axis=0)
    heights = np.diff([*starts, len(order)])
    return float((heights @ union) @ prices)


def _rows(model: ir.Model, layers: Sequence[LayerInfo]) -> tuple[Array, Array]:
    parts = [(canonical_weight(model, layer) != 0).reshape(layer.shape[0], -1) for layer in layers]
    price = [
        np.full(part.shape[1], max(layer.macs, 1) / layer.params) for part, layer in zip(parts, layers, strict=True)
    ]
    return np.concatenate(parts, axis=1), np.concatenate(price)


def _shrunk(rows: Array, prices: Array) -> tuple[Array, Array]:
    """Without features that no order can change; float32 for fast products."""
    mixed = rows.any(axis=0) & ~rows.all(axis=0)
    return np.ascontiguousarray(rows[:, mixed], np.float32), (prices[mixed] / prices.max()).astype(np.float32)


def _search(matrix: Array, weight: Array, size: int, rng: np.random.Generator) -> Array:
    best, least = np.arange(len(matrix)), union_work(matrix, weight, np.arange(len(matrix)), size)
    by_count = np.argsort(-(matrix @ weight), kind="stable")
    for start in (best, by_count, _grown(matrix, weight, size)):
        order = _swap(matrix, weight, start, size, rng)
        work = union_work(matrix, weight, order, size)
        if work < least:
            best, least = order, work
    return best


def _grown(matrix: Array, weight: Array, size: int) -> Array:
    left = list(np.argsort(-(matrix @ weight), kind="stable"))
    order: list[int] = []
    while left:
        group = [left.pop(0)]
        union = matrix[group[0]].copy()
        while len(group) < size and left:
            rows = matrix[left]
            common = rows @ (weight * union)
            either = rows @ weight + float(weight @ union) - common
            pick = left.pop(int((common / np.maximum(either, 1e-9)).argmax()))
            group.append(pick)
            np.maximum(union, matrix[pick], out=union)
        order += group
    return np.asarray(order)


def _swap(matrix: Array, weight: Array, order: Array, size: int, rng: np.random.Generator) -> Array:
    """Swap each channel with the partner that saves most, sweep after sweep, while anything saves."""
    channels = len(matrix)
    group = np.empty(channels, np.int64)
    group[order] = np.arange(channels) // size
    sums = np.zeros((int(group.max()) + 1, matrix.shape[1]), np.float32)
    np.add.at(sums, group, matrix)
    # what a channel alone has in its group, and what is missing in a group without it, both priced
    free = (sums[group] - matrix == 0) * weight
    rest = float(weight.sum()) - free.sum(axis=1)
    work = (sums > 0) @ weight
    sweeps = int(np.clip(WORK / (2 * channels * matrix.size), 2, MAX_SWEEPS))
    for _ in range(sweeps):
        swaps = 0
        for a in rng.permutation(channels):
            own = int(group[a])
            saved = work[own] + work[group] - (rest[a] + matrix @ free[a]) - (rest + free @ matrix[a])
            saved[group == own] = -np.inf
            b = int(saved.argmax())
            if not saved[b] > 1e-4 * float(weight.max()):
                continue
            other = int(group[b])
            sums[own] += matrix[b] - matrix[a]
            sums[other] += matrix[a] - matrix[b]
            group[a], group[b] = other, own
            for one in (own, other):
                work[one] = (sums[one] > 0) @ weight
                members = np.flatnonzero(group == one)
                free[members] = (sums[one] - matrix[members] == 0) * weight
                rest[members] = float(weight.sum()) - free[members].sum(axis=1)
            swaps += 1
        if swaps <= channels // 200:
            break
    return np.argsort(group, kind="stable")


def _nested(matrix: Array, weight: Array, order: Array, size: int, rng: np.random.Generator) -> Array:
    """The same groups, each with the halves that fit best together, and the groups in the best pairs."""
    whole = len(order) // size * size
    groups = [_halved(matrix, weight, order[first : first + size], rng) for first in range(0, whole, size)]
    rest = [np.sort(order[whole:])]
    for _ in range(_PAIRINGS):
        if len(groups) > 2:
            unions = np.stack([matrix[one].max(axis=0) for one in groups])
            order = _search(unions, weight, 2, rng)
            rest = [groups[order[-1]], *rest] if len(groups) % 2 else rest
            pairs = order[: len(groups) // 2 * 2].reshape(-1, 2)
            groups = [np.concatenate([groups[one], groups[other]]) for one, other in pairs]
    return np.concatenate([*groups, *rest]).astype(np.int64)


def _halved(matrix: Array, weight: Array, members: Array, rng: np.random.Generator) -> Array:
    half = len(members) // 2
    if half < 2:
        return np.sort(members)
    found = members[_search(matrix[members], weight, half, rng)]
    return np.concatenate([_halved(matrix, weight, part, rng) for part in (found[:half], found[half:])])
