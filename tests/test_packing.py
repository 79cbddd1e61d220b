"""Packing has an exact inverse, stores no more than it must, and keeps its promises to the kernels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesparse.planning.packing import Packed, pack, union_density, unpack

matrices = st.tuples(
    st.integers(1, 40), st.integers(1, 30), st.sampled_from([0.0, 0.05, 0.5, 1.0]), st.integers(0, 2**32 - 1)
)
groups = st.sampled_from([1, 2, 3, 4, 8, 16, 64])


def matrix(rows: int, columns: int, density: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, columns)).astype(np.float32)
    return values * (rng.random((rows, columns)) < density).astype(np.float32)


@given(matrices, groups, st.booleans())
def test_unpacking_gives_the_matrix_back(shape: tuple[int, int, float, int], group: int, dense: bool) -> None:
    weight = matrix(*shape)
    parts = pack(weight, group, dense=dense)
    np.testing.assert_array_equal(unpack(parts), weight)


@given(matrices, groups)
def test_what_the_kernels_rely_on(shape: tuple[int, int, float, int], group: int) -> None:
    weight = matrix(*shape)
    row = 0
    for part in pack(weight, group):
        assert part.first == row
        assert part.start is not None
        assert part.column is not None
        assert part.start.dtype == part.column.dtype == np.int32
        assert part.values.dtype == np.float32
        assert part.values.flags.c_contiguous
        assert part.start[0] == 0
        assert part.start[-1] == part.nnz == len(part.column)
        assert (np.diff(part.start) >= 0).all()
        for a, b in zip(part.start[:-1], part.start[1:], strict=True):
            assert (np.diff(part.column[a:b]) > 0).all()
        assert ((part.column >= 0) & (part.column < weight.shape[1])).all()
        assert (part.values != 0).any(axis=1).all(), "a stored column is zero in every row"
        assert part.nbytes == part.values.nbytes + part.start.nbytes + part.column.nbytes
        row += part.groups * part.group
    assert row == weight.shape[0]


def hits(part: Packed, held: int) -> float:
    """Share of reads that a cache of `held` channels has, which drops the one used longest ago."""
    assert part.column is not None
    cache: list[int] = []
    found = 0
    for channel in part.column.tolist():
        found += channel in cache
        cache = [*(one for one in cache if one != channel), channel][-held:]
    return found / len(part.column)


@given(matrices, groups, st.integers(1, 40))
def test_turned_groups_hold_the_same(shape: tuple[int, int, float, int], group: int, near: int) -> None:
    weight = matrix(*shape)
    parts = pack(weight, group, near=near)
    np.testing.assert_array_equal(unpack(parts), weight)
    for part, plain in zip(parts, pack(weight, group), strict=True):
        assert part.start is not None
        assert part.column is not None
        assert plain.column is not None
        np.testing.assert_array_equal(part.start, plain.start)
        for a, b in zip(part.start[:-1], part.start[1:], strict=True):
            there = part.column[a:b]
            assert (np.diff(there) > 0).all() or (np.diff(there) < 0).all()
            np.testing.assert_array_equal(np.sort(there), plain.column[a:b])


def directions(weight: np.ndarray, group: int, near: int) -> list[int]:
    """For each row, 1 where its channels ascend, -1 where they descend."""
    found = []
    for part in pack(weight, group, near=near):
        assert part.start is not None
        assert part.column is not None
        for a, b in zip(part.start[:-1], part.start[1:], strict=True):
            found += [int(np.sign(part.column[b - 1] - part.column[a]))] * part.group
    return found


def test_the_order_of_additions_is_that_of_the_weights() -> None:
    """Whatever groups rows are packed in, each goes through its channels in the same direction."""
    weight = matrix(44, 64, 0.5, 7)
    known = directions(weight, 1, 20)
    assert {-1, 1} == set(known)
    for group in (2, 4, 8):
        assert directions(weight, group, 20) == known


@pytest.mark.parametrize("lengths", [(128,) * 32, (200, 56) * 16], ids=["alike", "long and short"])
def test_turned_groups_meet_what_was_read_last(lengths: tuple[int, ...]) -> None:
    """Groups of 8, 256 channels, of which 120 are held: in one direction next to none of them are met
    again, turned almost a third are.
    """
    rng = np.random.default_rng(0)
    weight = np.zeros((8 * len(lengths), 256), np.float32)
    for row, length in enumerate(lengths):
        weight[8 * row : 8 * row + 8, rng.permutation(256)[:length]] = 1
    (plain,), (turned,) = pack(weight, 8), pack(weight, 8, near=120)
    assert hits(plain, 120) < 0.2
    assert hits(turned, 120) > 0.3


@given(matrices, groups)
def test_union_density(shape: tuple[int, int, float, int], group: int) -> None:
    weight = matrix(*shape)
    found = union_density(weight, group)
    assert (weight != 0).mean() - 1e-9 <= found <= 1
    if group == 1:
        assert found == pytest.approx((weight != 0).mean())


def test_negative_zeros_and_special_values_are_kept_or_dropped_alike() -> None:
    weight = np.array([[0.0, -0.0, np.inf, 1e-45], [1.0, 0.0, 0.0, 0.0]], np.float32)
    np.testing.assert_array_equal(unpack(pack(weight, 2)), weight)
    assert [part.nnz for part in pack(weight, 1)] == [3]


def test_rows_that_fill_no_group_form_a_smaller_one() -> None:
    parts = pack(np.ones((11, 3), np.float32), 4)
    assert [(part.first, part.group, part.groups) for part in parts] == [(0, 4, 2), (8, 3, 1)]
    assert [(part.first, part.group) for part in pack(np.ones((3, 3), np.float32), 64)] == [(0, 3)]
