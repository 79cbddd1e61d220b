"""The search for orders: the best of all orders on small cases, never worse than given, against plain arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesparse.passes.ceiling import ceiling
from edgesparse.passes.permute import View, by_norm, retained, search, unstructured
from edgesparse.pattern import SparsePattern, best_mask


def partitions(channels: Sequence[int], size: int) -> Iterator[list[int]]:
    """Every way to part channels into groups of `size`, each once, one after another; the last may be smaller."""
    if len(channels) <= size:
        yield list(channels)
        return
    spare = len(channels) % size
    if spare:  # any channels may be those of the smaller group, at the end
        for left in _choices(channels, spare):
            for order in partitions([one for one in channels if one not in left], size):
                yield [*order, *left]
        return
    for others in _choices(channels[1:], size - 1):
        for order in partitions([one for one in channels[1:] if one not in others], size):
            yield [channels[0], *others, *order]


def _choices(channels: Sequence[int], many: int) -> Iterator[tuple[int, ...]]:
    import itertools

    yield from itertools.combinations(channels, many)


def by_mask(views: Sequence[View], order: np.ndarray) -> float:
    """Retained saliency by the masks that the pruner makes."""
    shares = []
    for view in views:
        rows = view.matrix[order].astype(np.float64)
        if view.keep:
            mask = best_mask(SparsePattern("nm", view.keep, view.size), rows.T[:, :, None])[:, :, 0].T
        else:
            mask = best_mask(SparsePattern("group", view.size, 1), rows[:, :, None], view.density)[:, :, 0]
        shares.append((rows * mask).sum() / rows.sum())
    return float(np.mean(shares))


def view(seed: int, channels: int, features: int, size: int, keep: int = 0, density: float = 0.5) -> View:
    rng = np.random.default_rng(seed)
    return View(rng.gamma(0.3, size=(channels, features)).astype(np.float32), density, size, keep)


@pytest.mark.parametrize(("channels", "size"), [(6, 2), (8, 2), (8, 4), (9, 3), (7, 2), (10, 4)])
@pytest.mark.parametrize("kind", ["groups", "nm", "both", "two layers"])
@pytest.mark.parametrize("seed", range(2))
def test_the_best_of_all_orders(channels: int, size: int, kind: str, seed: int) -> None:
    views = {
        "groups": [view(seed, channels, 7, size)],
        "nm": [view(seed, channels, 7, size, size // 2)],
        "both": [view(seed, channels, 5, size), view(seed + 9, channels, 6, size, size // 2)],
        "two layers": [view(seed, channels, 5, size, density=0.3), view(seed + 9, channels, 4, size)],
    }[kind]
    best = max(retained(views, np.asarray(order)) for order in partitions(range(channels), size))
    assert retained(views, search(views)) == pytest.approx(best, abs=1e-6)


@given(
    st.integers(0, 2**31),
    st.integers(2, 21),
    st.integers(1, 9),
    st.lists(st.sampled_from([(2, 0), (4, 0), (4, 2), (8, 0), (3, 0), (2, 1)]), min_size=1, max_size=3),
    st.floats(0.1, 0.9),
)
@settings(max_examples=25, deadline=None)
def test_never_worse_than_given(
    seed: int, channels: int, features: int, kinds: list[tuple[int, int]], share: float
) -> None:
    """Layers with groups of different sizes at one set, an odd number of channels."""
    views = [view(seed + i, channels, features, size, keep, share) for i, (size, keep) in enumerate(kinds)]
    found, plain = search(views, seed=1), np.arange(channels)
    assert sorted(found) == list(plain)
    assert np.array_equal(found, search(views, seed=1))
    for order in (plain, found, by_norm(views)):
        assert retained(views, order) == pytest.approx(by_mask(views, order), abs=1e-5)
        assert retained(views, order) <= unstructured(views) + 1e-6
    assert retained(views, found) >= retained(views, plain)


@pytest.mark.parametrize("keep", [0, 2])
def test_channels_stay_in_their_block(keep: int) -> None:
    """Three heads of eight channels: each order is the best of those within the heads."""
    one = view(2, 24, 4, 4, keep)
    found = search([one], block=8)
    assert [sorted(head) for head in (found // 8).reshape(3, 8)] == [[0] * 8, [1] * 8, [2] * 8]
    ways = [np.asarray(order) for order in partitions(range(8), 4)]
    best = max(
        retained([one], np.concatenate([a, b + 8, c + 16])) for a in ways for b in ways for c in ways
    ) if not keep else sum(
        max(
            retained([View(one.matrix[8 * h : 8 * h + 8], 0.5, 4, keep)], order) * one.matrix[8 * h : 8 * h + 8].sum()
            for order in ways
        )
        for h in range(3)
    ) / one.matrix.sum()  # fmt: skip
    assert retained([one], found) == pytest.approx(best, abs=1e-6)


def test_planted_groups_are_found_again() -> None:
    rng = np.random.default_rng(0)
    rows = np.repeat(np.where(rng.random((30, 50)) < 0.4, 1.0, 0.01), 4, axis=0)[rng.permutation(120)]
    one = View(rows.astype(np.float32), float((rows == 1).mean()), 4)
    assert retained([one], search([one])) == pytest.approx(unstructured([one]), abs=1e-6)
    assert retained([one], by_norm([one])) < 0.9


# -- the ceiling: what no order exceeds -------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.sampled_from([(6, 2), (8, 2), (6, 3), (8, 4)]), st.sampled_from([0.25, 0.5, 0.8]))
@settings(max_examples=40, deadline=None)
def test_no_order_exceeds_the_ceiling(seed: int, shape: tuple[int, int], density: float) -> None:
    """Against every way to part the channels into groups."""
    channels, size = shape
    rng = np.random.default_rng(seed)
    matrix = (rng.standard_normal((channels, 5)) ** 2 * rng.uniform(0.1, 3, (channels, 1))).astype(np.float32)
    view = View(matrix, density, size)
    best = max(retained([view], np.array(order)) for order in partitions(range(channels), size))
    assert best <= ceiling(view) * (1 + 1e-6)


def test_the_ceiling_is_reached_where_channels_come_in_equal_pairs() -> None:
    """Equal pairs lose nothing as a group of two; there the bound is what the best order retains."""
    rows = np.random.default_rng(3).exponential(size=(8, 40)).astype(np.float32)
    view = View(np.concatenate([rows, rows]), 0.5, 2)
    paired = np.arange(16).reshape(2, 8).T.reshape(-1)
    assert ceiling(view) == pytest.approx(retained([view], paired), rel=1e-5)
    assert retained([view], np.arange(16)) < ceiling(view) - 0.02


def test_the_ceiling_lies_below_unstructured_where_all_channels_differ() -> None:
    """Every channel has its saliency in features of its own: any pair pays for one that is not there."""
    view = View(np.kron(np.eye(8, dtype=np.float32), np.ones((1, 4), np.float32)), 0.125, 2)
    assert unstructured([view]) == 1.0
    assert retained([view], np.arange(8)) == 0.5  # 16 of the 128 sums are kept, 32 are not zero
    assert 0.5 <= ceiling(view) < 0.56


def test_a_ceiling_is_for_groups_that_compete() -> None:
    with pytest.raises(ValueError, match="compete"):
        ceiling(View(np.ones((4, 4), np.float32), 0.5, 4, keep=2))
