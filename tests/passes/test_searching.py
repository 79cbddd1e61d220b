"""Swaps and projected gradient: masks found by search, against plain arithmetic."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgesparse import pattern as P
from edgesparse.errors import UsageError
from edgesparse.passes.observe import Moments
from edgesparse.passes.projected import projected
from edgesparse.passes.surgeon import damped, obs, refit
from edgesparse.passes.swaps import swapped

DAMPING = 1e-9


def problem(seed: int, rows: int = 8, width: int = 12) -> tuple[np.ndarray, Moments]:
    rng = np.random.default_rng(seed)
    data = rng.normal(size=(100, width)) @ rng.normal(size=(width, width)) * rng.uniform(0.2, 3, width)
    return rng.normal(size=(rows, width, 1)), Moments(100, data.mean(axis=0)[None], np.cov(data.T, bias=True)[None])


def error(weight: np.ndarray, now: np.ndarray, moments: Moments) -> float:
    off = (weight - now)[:, :, 0]
    return float(np.sum((off @ damped(moments.covariance[0], DAMPING)) * off))


@pytest.mark.parametrize("text", ["unstructured", "fanin", "group:2x1", "group:3x1"])
@pytest.mark.parametrize("seed", range(4))
def test_swaps_lower_the_error(text: str, seed: int) -> None:
    pattern, (weight, moments) = P.SparsePattern.parse(text), problem(seed)
    mask = P.best_mask(pattern, np.square(weight), 0.5)
    found = swapped(weight, mask, moments, pattern, damping=DAMPING)
    assert P.keeps(pattern, found)
    assert found.sum(axis=1).tolist() == mask.sum(axis=1).tolist(), "every row keeps as many"
    assert error(weight, weight * found, moments) < error(weight, weight * mask, moments)


@pytest.mark.parametrize("seed", range(6))
def test_one_swap_is_the_best_from_either_side(seed: int) -> None:
    weight, moments = problem(seed, rows=2)
    pattern = P.SparsePattern("group", 2, 1)
    mask = P.best_mask(pattern, np.square(weight), 0.5)
    columns, before = mask[0, :, 0], error(weight, weight * mask, moments)

    def change(out: int | None, back: int | None) -> float:
        other = mask.copy()
        for column, kept in ((out, False), (back, True)):
            if column is not None:
                other[:, column] = kept
        return error(weight, weight * other, moments) - before

    kept, dropped = np.flatnonzero(columns), np.flatnonzero(~columns)
    out, back = min(kept, key=lambda i: change(i, None)), min(dropped, key=lambda j: change(None, j))
    pairs = [(i, j) for i, j in itertools.product(kept, dropped) if i == out or j == back]
    best = min(0.0, *(change(i, j) for i, j in pairs))
    found = swapped(weight, mask, moments, pattern, damping=DAMPING, rounds=1)
    assert error(weight, weight * found, moments) - before == pytest.approx(best, rel=1e-6)


def test_patterns_without_swaps() -> None:
    weight, moments = problem(0)
    pattern = P.SparsePattern("nm", 2, 4)
    with pytest.raises(UsageError, match="pattern nm:2:4 has no swaps"):
        swapped(weight, P.best_mask(pattern, np.square(weight)), moments, pattern)


@pytest.mark.parametrize("text", ["unstructured", "group:2x1", "nm:2:4", "block:2x2"])
def test_projected_gradient_is_never_worse(text: str) -> None:
    pattern = P.SparsePattern.parse(text)
    density = None if pattern.fixed else 0.5
    gains = []
    for seed in range(6):
        weight, moments = problem(seed)
        mask = P.best_mask(pattern, obs(weight, moments, DAMPING), density)
        start = error(weight, refit(weight, mask, moments, DAMPING), moments)
        found, kept = projected(weight, mask, moments, pattern, density, damping=DAMPING)
        assert P.keeps(pattern, kept)
        assert kept.sum() == mask.sum()
        assert not found[~kept].any()
        assert np.array_equal(found, refit(weight, kept, moments, DAMPING))
        gains.append(1 - error(weight, found, moments) / start)
    assert min(gains) >= -1e-9
    assert max(gains) > 0.02 or text == "block:2x2", "and sometimes better"
