"""Tiles cover every pixel of a band, and nothing beyond it."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from edgesparse.kernels.tiles import cut_pixels, join_tail, vector_starts

lanes_of = st.sampled_from([1, 4, 8, 16])


@given(st.integers(1, 400), lanes_of, st.integers(1, 8), st.integers(0, 4))
def test_every_pixel_once_or_by_an_overlapping_last_vector(pixels: int, lanes: int, vectors: int, limit: int) -> None:
    cut = cut_pixels(pixels, lanes, vectors, min(limit, lanes // 4))
    touched = [0] * pixels
    starts = []
    for run in cut.runs:
        assert 1 <= len(run.offsets) <= vectors
        assert run.repeat >= 1
        for tile in range(run.repeat):
            for offset in run.offsets:
                start = offset + tile * run.step
                starts.append(start)
                assert 0 <= start <= pixels - lanes
                for pixel in range(start, start + lanes):
                    touched[pixel] += 1
    for pixel in range(cut.tail_start, cut.tail_start + cut.tail):
        touched[pixel] += 1
    assert all(touched)
    assert cut.vectors == len(starts)
    assert starts == sorted(starts)
    assert sum(touched) - pixels < lanes, "more than one vector overlaps"
    if cut.tail and pixels >= lanes:
        assert cut.tail <= limit


@given(st.integers(1, 400), lanes_of, st.integers(1, 8), st.integers(0, 4))
def test_single_pixels_are_spread_over_the_tiles(pixels: int, lanes: int, vectors: int, limit: int) -> None:
    cut = cut_pixels(pixels, lanes, vectors, min(limit, lanes // 4))
    joined = join_tail(cut)
    tiles = [[offset + tile * run.step for offset in run.offsets] for run in cut.runs for tile in range(run.repeat)]
    if not tiles:
        assert joined == cut
        return
    found, singles, numbers = [], [], []
    for run in joined.runs:
        for tile in range(run.repeat):
            found.append([offset + tile * run.step for offset in run.offsets])
            first = run.first_single + tile * run.singles
            singles += range(first, first + run.singles)
            numbers.append(run.singles)
    assert found == tiles
    assert singles == list(range(cut.tail_start, cut.tail_start + cut.tail))
    assert numbers == sorted(numbers)
    assert max(numbers) - min(numbers) <= 1
    assert joined.tail == 0


@given(st.integers(1, 300), lanes_of, st.integers(1, 6))
def test_no_tile_is_left_with_a_lone_vector(pixels: int, lanes: int, vectors: int) -> None:
    sizes = [len(run.offsets) for run in cut_pixels(pixels, lanes, vectors, 0).runs]
    if sizes:
        assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 300), lanes_of)
def test_vector_starts(pixels: int, lanes: int) -> None:
    if pixels >= lanes:
        starts = vector_starts(pixels, lanes)
        assert starts[0] == 0
        assert starts[-1] == pixels - lanes
        assert all(0 < b - a <= lanes for a, b in itertools.pairwise(starts))


def test_the_examples_of_the_text() -> None:
    assert cut_pixels(49, 16, 3, 4).tail == 1
    assert [len(run.offsets) for run in cut_pixels(7 * 16, 16, 3, 0).runs for _ in range(run.repeat)] == [3, 2, 2]
    assert cut_pixels(5, 16, 3, 4) == cut_pixels(5, 16, 3, 0)
    assert cut_pixels(5, 16, 3, 0).tail == 5
