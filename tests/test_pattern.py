"""Patterns: grammar, exact projection against brute force, canonical views."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesparse import pattern as P
from edgesparse.errors import PatternError
from edgesparse.pattern import SparsePattern

sizes = st.integers(1, P.MAX_SIZE)
small = st.integers(1, 5)


def patterns(number: st.SearchStrategy[int] = sizes) -> st.SearchStrategy[SparsePattern]:
    plain = st.sampled_from(["dense", "unstructured", "fanin", "channel"]).map(SparsePattern)
    pair = st.tuples(st.sampled_from(["group", "block"]), number, number).map(lambda t: SparsePattern(*t))
    nm = st.tuples(number, number).filter(lambda t: t[0] < t[1]).map(lambda t: SparsePattern("nm", *t))
    return st.one_of(plain, pair, nm, number.map(lambda k: SparsePattern("kernel", k)))


shapes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 9]))


@given(patterns())
def test_text_round_trips(pattern: SparsePattern) -> None:
    assert SparsePattern.parse(str(pattern)) == pattern


@pytest.mark.parametrize(
    "text",
    [
        "",
        "grup:8x1",
        "group:0x1",
        "group:8",
        "group:65x1",
        "nm:4:4",
        "nm:0:4",
        "kernel:0",
        "dense:1",
        "group:8x1x1",
        "group:-1x1",
        "block:\u0661x1",
        "x" * 1000,
        "group:99999999999999999999999x1",
    ],
)
def test_bad_text_is_one_error(text: str) -> None:
    with pytest.raises(PatternError):
        SparsePattern.parse(text)


def test_a_near_miss_is_suggested() -> None:
    with pytest.raises(PatternError, match="did you mean group:NxM"):
        SparsePattern.parse("grop:8x1")


def _saliency(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    # few distinct values: ties must be as deterministic as the rest
    return np.random.default_rng(seed).integers(0, 20, shape).astype(np.float64)


@given(patterns(small), shapes, st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=200)
def test_best_mask_keeps_pattern_and_count(pattern, shape, density, seed) -> None:
    if pattern.fixed:
        density = P.fixed_density(pattern, shape)
    saliency = _saliency(shape, seed) + 1
    mask = P.best_mask(pattern, saliency, density)
    assert mask.shape == shape
    assert mask.dtype == np.bool_
    assert P.keeps(pattern, mask)
    unit = P._unit(pattern, shape)
    kept = P.kept_units(pattern, shape, density)
    assert np.count_nonzero(P._pool(mask.astype(int), unit)) == kept
    again = P.best_mask(pattern, saliency * mask, density)
    assert np.array_equal(again, mask)  # projecting what is already projected changes nothing


@pytest.mark.parametrize(
    ("text", "density"),
    [
        ("unstructured", 0.4),
        ("group:2x1", 0.5),
        ("group:2x2", 0.5),
        ("nm:1:2", None),
        ("nm:2:3", None),
        ("fanin", 0.5),
        ("kernel:1", None),
        ("block:2x2", 0.5),
        ("channel", 0.5),
    ],
)
@pytest.mark.parametrize("shape", [(3, 4, 1), (2, 3, 2), (3, 2, 2)])
@pytest.mark.parametrize("seed", [0, 1])
def test_best_among_all_masks(text, density, shape, seed) -> None:
    pattern = SparsePattern.parse(text)
    if P.misfit(pattern, shape):
        pytest.skip("the pattern does not fit the shape")
    saliency = _saliency(shape, seed) + 0.5
    mask = P.best_mask(pattern, saliency, density)
    sizes = P._pool(np.ones(shape, int), P._unit(pattern, shape))

    def kept_by_size(one: np.ndarray) -> list[int]:
        """How many units of each size are kept: smaller last ones, too, are as many as the density says."""
        kept = P._pool(one.astype(int), P._unit(pattern, shape)) > 0
        return [np.count_nonzero(kept[sizes == size]) for size in np.unique(sizes)]

    best = 0.0
    for bits in itertools.product((False, True), repeat=int(np.prod(shape))):
        other = np.array(bits).reshape(shape)
        if P.keeps(pattern, other) and kept_by_size(other) == kept_by_size(mask):
            best = max(best, float(saliency[other].sum()))
    assert saliency[mask].sum() == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("text", ["group:8x1", "group:1x8", "block:8x1"])
@pytest.mark.parametrize("weak", [slice(0, 8), slice(8, 10)])
def test_no_channels_are_given_up_for_the_size_of_their_group(text: str, weak: slice) -> None:
    """Ten classes are groups of eight and of two: each keeps the eighth of its own that is best."""
    pattern, scores = SparsePattern.parse(text), np.random.default_rng(0).random((10, 64, 1))
    scores[weak] *= 1e-3
    across = text == "group:1x8"
    mask = P.best_mask(pattern, scores.transpose(1, 0, 2) if across else scores, 0.125)
    assert P.keeps(pattern, mask)
    mask = mask.transpose(1, 0, 2) if across else mask
    assert mask.sum(axis=1)[:, 0].tolist() == [8] * 10
    for part in (slice(0, 8), slice(8, 10)):
        sums = scores[part].sum(axis=0)[:, 0]
        assert set(np.flatnonzero(mask[part][0, :, 0])) == set(np.argsort(-sums)[:8])


@given(st.sampled_from([(8, 1), (4, 4), (3, 2)]), shapes, st.floats(0, 1))
def test_units_of_every_size_are_kept_at_the_density(extent: tuple[int, int], shape: tuple, density: float) -> None:
    pattern, (cout, cin, _) = SparsePattern("group", *extent), shape
    mask = P.best_mask(pattern, _saliency(shape, 0) + 1, density)
    kept = P._pool(mask.astype(int), (*extent, 1)) > 0
    whole = cout // extent[0], cin // extent[1]
    for part in (kept[: whole[0]], kept[whole[0] :]):
        for units in (part[:, : whole[1]], part[:, whole[1] :]):
            assert np.count_nonzero(units) == np.floor(density * units.size + 0.5)


def test_rounding_is_half_up() -> None:
    pattern = SparsePattern.parse("unstructured")
    assert P.kept_units(pattern, (1, 5, 1), 0.5) == 3
    assert P.kept_units(pattern, (1, 5, 1), 0.09) == 0


@pytest.mark.parametrize("bad", [-0.1, 1.5, float("nan")])
def test_density_out_of_range(bad: float) -> None:
    with pytest.raises(PatternError, match="density"):
        P.best_mask(P.UNSTRUCTURED, np.ones((2, 2, 1)), bad)


def test_other_bad_calls() -> None:
    with pytest.raises(PatternError, match="not finite"):
        P.best_mask(P.UNSTRUCTURED, np.full((2, 2, 1), np.nan), 0.5)
    with pytest.raises(PatternError, match="needs a density"):
        P.best_mask(P.UNSTRUCTURED, np.ones((2, 2, 1)))
    with pytest.raises(PatternError, match=r"own density is 0\.5"):
        P.best_mask(SparsePattern("nm", 2, 4), np.ones((2, 4, 1)), 0.3)
    with pytest.raises(PatternError, match="canonical weight"):
        P.best_mask(P.UNSTRUCTURED, np.ones((2, 2)), 0.5)


@pytest.mark.parametrize("size", [2, 4, 8, 16])
@pytest.mark.parametrize("cout", [16, 19, 33])
def test_find_pattern_finds_what_was_pruned(size: int, cout: int) -> None:
    weight = np.random.default_rng(size).normal(size=(cout, 40, 1))
    mask = P.best_mask(SparsePattern("group", size, 1), weight**2, 0.5)
    found, share = P.find_pattern(weight * mask)
    assert found == SparsePattern("group", size, 1)
    assert share == pytest.approx(P.density(mask))


def test_find_pattern_of_the_others() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(32, 32, 9))
    assert P.find_pattern(weight) == (P.DENSE, 1.0)
    assert P.find_pattern(weight * (rng.random(weight.shape) < 0.95))[0] == P.DENSE
    assert P.find_pattern(weight * (rng.random(weight.shape) < 0.5))[0] == P.UNSTRUCTURED
    assert P.find_pattern(np.zeros((32, 8, 1))) == (SparsePattern("group", 16, 1), 0.0)


@pytest.mark.parametrize(
    ("kind", "shape", "groups", "trans_b", "canonical"),
    [
        ("conv", (8, 4, 3, 5), 1, False, (8, 4, 15)),
        ("conv", (8, 4, 3), 2, False, (8, 4, 3)),
        ("conv1x1", (8, 4, 1, 1), 1, False, (8, 4, 1)),
        ("depthwise", (8, 1, 3, 3), 8, False, (8, 1, 9)),
        ("conv_transpose", (8, 3, 2, 2), 4, False, (12, 2, 4)),
        ("gemm", (5, 7), 1, True, (5, 7, 1)),
        ("gemm", (5, 7), 1, False, (7, 5, 1)),
        ("matmul", (5, 7), 1, False, (7, 5, 1)),
    ],
)
def test_canonical_view_and_back(kind, shape, groups, trans_b, canonical) -> None:
    weight = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    view = P.to_canonical(weight, kind, groups=groups, trans_b=trans_b)
    assert view.shape == canonical
    back = P.from_canonical(view, kind, shape, groups=groups, trans_b=trans_b)
    assert np.array_equal(back, weight)
    assert back.flags.c_contiguous


def test_no_canonical_view() -> None:
    for kind, shape in (("lstm", (1, 2, 3)), ("matmul", (2, 3, 4)), ("conv", (2, 3))):
        with pytest.raises(PatternError, match="no canonical view"):
            P.to_canonical(np.zeros(shape), kind)
