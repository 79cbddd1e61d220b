"""Attention of all heads against numpy in float64; what it reads and writes."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from guarded import EPS, Memory, build
from networks import HOST_TARGETS

from edgesparse.kernels import Attention
from edgesparse.target import Target

#: Queries, keys, features of a head in k, in v, masked.
SHAPES = ((1, 1, 1, 1, False), (3, 9, 5, 2, True), (37, 20, 8, 11, False), (64, 33, 16, 16, True))
HEADS = 3


def spec_of(target: Target, shape: tuple[int, int, int, int, bool]) -> Attention:
    queries, keys, width, depth, masked = shape
    return Attention(queries, keys, width, depth, width**-0.5, masked, 4, 3, target.lanes)


@pytest.fixture(scope="module", params=HOST_TARGETS, ids=lambda target: target.name)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Target, ctypes.CDLL]:
    target: Target = request.param
    return target, build([spec_of(target, s) for s in SHAPES], target, tmp_path_factory.mktemp("attention"))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [1.0, 30.0], ids=["flat", "steep"])
def test_attention(library: tuple[Target, ctypes.CDLL], shape: tuple[int, int, int, int, bool], size: float) -> None:
    target, code = library
    queries, keys, width, depth, masked = shape
    spec, rng = spec_of(target, shape), np.random.default_rng(queries)
    pitches = (queries + 3, keys + 1, keys + 2, queries + 1)

    def matrix(features: int, rows: int, pitch: int) -> np.ndarray:
        array = np.full((features, pitch), np.nan, np.float32)
        array[:, :rows] = rng.standard_normal((features, rows)) * size
        return array

    # q has a feature between its heads that nobody may read, v lies head by head
    q = matrix(HEADS * (width + 1), queries, pitches[0])
    q[width :: width + 1] = np.nan
    k, v = matrix(HEADS * width, keys, pitches[1]), matrix(HEADS * depth, keys, pitches[2])
    m = np.where(rng.random(keys) < 0.3, -np.inf, 0).astype(np.float32)
    m[0] = 0.0
    parts = 2
    y = np.full((HEADS * depth, pitches[3]), np.nan, np.float32)
    s = np.full((parts, spec.workspace), np.nan, np.float32)
    memory = Memory({"q": q, "k": k, "v": v, "m": m, "s": s, "y": y})
    steps = [(width + 1) * pitches[0], width * pitches[1], depth * pitches[2], depth * pitches[3]]
    names = ["q", "k", "v", *(["m"] if masked else []), "s", "y"]
    for part in range(parts):
        begin, end = (HEADS * each // parts for each in (part, part + 1))
        memory.call(code, spec.symbol, names, [*pitches, *steps, HEADS, parts], begin, end)
        assert np.isfinite(memory["s"][part, 0])
        assert np.isnan(memory["s"][1 - part]).all(), "each part has scores of its own"
        memory["s"][:] = np.nan
    written = np.zeros(y.shape, bool)
    written[:, :queries] = True
    memory.check_only("y", written)
    for head in range(HEADS):
        exact = [
            a[first : first + n, :rows].astype(np.float64)
            for a, first, n, rows in (
                (q, head * (width + 1), width, queries),
                (k, head * width, width, keys),
                (v, head * depth, depth, keys),
            )
        ]
        scores = exact[1].T @ exact[0] * spec.scale + (m[:, None] if masked else 0)
        weights = np.exp(scores - scores.max(axis=0))
        weights /= weights.sum(axis=0)
        expected = exact[2] @ weights
        # a score's rounding is a factor on its weight
        largest = np.abs(exact[1]).T @ np.abs(exact[0]) * spec.scale
        bound = EPS * (np.abs(exact[2]).max() * (2 * (width + 4) * largest.max() + keys + 16))
        assert np.abs(memory["y"][head * depth : (head + 1) * depth, :queries] - expected).max() <= bound
