"""Cluster: order the channels of a model that is sparse already, so that neighbours share their zeros.

A kernel for groups of N output channels runs the union of N rows of non-zeros. No weight changes here; which rows make
a group does. With B `[channels, features]` the 0/1 matrix of all non-zeros that a set of coupled channels writes, and w
a price for each feature (how often a run uses it), an order costs the sum over groups and features of w where any row
of the group has a non-zero. The order is found by `permute.search`: groups of 4 first and pairs within each, then,
twice, pairs of groups. Which size the kernel has is the compiler's choice. Where every head of an attention may have an
order of its own, each is a matrix B of its own; where heads must have one order, each is more features of a channel.
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
from edgesparse.passes.permute import View, search
from edgesparse.passes.sides import Place, places_of
from edgesparse.pattern import DENSE_FROM, density

SIZE = 4
_PAIRINGS = 2


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
    writers: dict[int, list[tuple[LayerInfo, Place]]] = {}
    for layer in weight_layers(model):
        if not layer.default or density(canonical_weight(model, layer) != 0) >= DENSE_FROM:
            continue
        places, more = places_of(coupling, layer, output=True, group=SIZE)
        reasons += more
        for place in places:
            writers.setdefault(place.space, []).append((layer, place))
    order: dict[int, Array] = {}
    reports = []
    for number, (space, members) in enumerate(writers.items()):
        if tick:
            tick(number / len(writers), members[0][0].name)
        own = all(place.own for _, place in members)
        parts = _parts(model, members, own=own)
        found = [gather(rows, prices, seed=seed) for rows, prices in parts]
        order[space] = np.stack(found) if own else found[0]
        reports.append(_report([layer.name for layer, _ in members], parts, found))
    apply_order(model, coupling, order)
    return reports, reasons


def gather(rows: Array, prices: Array, size: int = SIZE, *, seed: int = 0) -> Array:
    """An order int64 `[channels]` under which groups of `size`, and of half of it, cost at most what they do as given.

    `rows` is bool `[channels, features]`, `prices` float `[features]`.
    """
    channels = len(rows)
    best = np.arange(channels)
    matrix = _priced(rows, prices)
    if channels <= size or not matrix.size:
        return best
    found = _in_pairs(matrix, search(_views(matrix, size, size // 2), seed=seed), size, seed)
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


def _parts(model: ir.Model, members: Sequence[tuple[LayerInfo, Place]], *, own: bool) -> list[tuple[Array, Array]]:
    """Non-zeros bool `[channels, features]` and prices `[features]` of all layers of a set, for each order to be found:
    one for each head if they may have their `own`, else one.
    """
    rows, prices = [], []
    for layer, place in members:
        kept = canonical_weight(model, layer) != 0
        for start in place.starts or (0,):
            heads = kept[start : start + place.repeat * place.size].reshape(place.repeat, place.size, -1)
            if not own:
                heads = np.moveaxis(heads, 0, 1).reshape(1, place.size, -1)
            rows.append(heads)
            prices.append(np.full(heads.shape[2], max(layer.macs, 1) / layer.params))
    price = np.concatenate(prices)
    return [(head, price) for head in np.concatenate(rows, axis=2)]


def _report(names: Sequence[str], parts: Sequence[tuple[Array, Array]], orders: Sequence[Array]) -> Clustered:
    work = np.zeros(3)
    for (rows, prices), found in zip(parts, orders, strict=True):
        given = np.arange(len(rows))
        work += [union_work(rows, prices, one, size) for one, size in ((given, 1), (given, SIZE), (found, SIZE))]
    whole = sum(len(rows) * float(prices.sum()) for rows, prices in parts)
    return Clustered(len(parts[0][0]), tuple(names), *(float(one) / whole for one in work))


def _priced(rows: Array, prices: Array) -> Array:
    """The price of each non-zero, float32, without features that no order can change."""
    mixed = rows.any(axis=0) & ~rows.all(axis=0)
    return np.ascontiguousarray(rows[:, mixed] * (prices[mixed] / prices.max()), np.float32)


def _views(matrix: Array, *sizes: int) -> list[View]:
    return [View(matrix, 1.0, size, shared=True) for size in sizes]


def _in_pairs(matrix: Array, order: Array, size: int, seed: int) -> Array:
    """The same groups in another order, so that two of them, and four, have much in common as well."""
    whole = len(order) // size * size
    groups = list(order[:whole].reshape(-1, size))
    rest = [order[whole:]]
    for _ in range(_PAIRINGS):
        if len(groups) > 2:
            pairs = search(_views(np.stack([matrix[one].max(axis=0) for one in groups]), 2), seed=seed)
            rest = [groups[pairs[-1]], *rest] if len(groups) % 2 else rest
            groups = [np.concatenate([groups[a], groups[b]]) for a, b in pairs[: len(groups) // 2 * 2].reshape(-1, 2)]
    return np.concatenate([*groups, *rest]).astype(np.int64)
