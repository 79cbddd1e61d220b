"""Calls cut for threads: shares of equal work, in whatever order the groups are."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgesparse.lowering.emitter import _shares


@given(st.lists(st.integers(0, 500), min_size=1, max_size=60), st.integers(1, 8))
def test_shares_differ_by_less_than_a_group(groups: list[int], count: int) -> None:
    """`groups` are the non-zeros of each output group."""
    work = np.concatenate([[0], np.cumsum(groups)])
    bounds = _shares(len(groups), count, work)
    assert bounds[0] == 0
    assert bounds[-1] == len(groups)
    assert len(bounds) == count + 1
    assert bounds == sorted(bounds)
    for first, last in itertools.pairwise(bounds):
        assert abs(sum(groups[first:last]) - sum(groups) / count) <= max(groups)
