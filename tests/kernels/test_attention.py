"""Attention of all heads against numpy in float64; what it reads and writes."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from guarded import EPS, Memory, build
from networks import HOST_TARGETS

from edgesparse.kernels import Attention
from edgesparse.target import Target

#: Queries, keys, features of a head in k, in v, mask.
SHAPES = (
    (1, 1, 1, 1, "none"),
    (3, 9, 5, 2, "keys"),
    (37, 20, 8, 11, "none"),
    (64, 33, 16, 16, "keys"),
    (5, 6, 3, 4, "queries"),
    (37, 37, 8, 8, "queries"),
)
HEADS = 3


def spec_of(target: Target, shape: tuple[int, int, int, int, str]) -> Attention:
    queries, keys, width, depth, mask = shape
    return Attention(queries, keys, width, depth, width**-0.5, mask, 4, 3, target.lanes)


@pytest.fixture(scope="module", params=HOST_TARGETS, ids=lambda target: target.name)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Target, ctypes.CDLL]:
    target: Target = request.param
    return target, build([spec_of(target, s) for s in SHAPES], target, tmp_path_factory.mktemp("attention"))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [1.0, 30.0], ids=["flat", "steep"])
def test_attention(library: tuple[Target, ctypes.CDLL], shape: tuple[int, int, int, int, str], size: float) -> None:
    target, code = library
    queries, keys, width, depth, mask = shape
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
    # as the kernel takes it: a value for each key, or for each head keys by queries, here with some between the heads
    extents, m_pitch = ((HEADS, keys, queries) if mask == "queries" else (1, keys, 1)), queries + 5
    added = np.where(rng.random(extents) < 0.3, -np.inf, rng.standard_normal(extents)).astype(np.float32)
    added[:, 0] = 0.0
    m = np.full((HEADS, keys + 1, m_pitch), np.nan, np.float32)
    m[:, :keys, :queries] = added
    if mask == "keys":
        m = added.reshape(-1)
    parts = 2
    y = np.full((HEADS * depth, pitches[3]), np.nan, np.float32)
    s = np.full((parts, spec.workspace), np.nan, np.float32)
    memory = Memory({"q": q, "k": k, "v": v, "m": m, "s": s, "y": y})
    steps = [(width + 1) * pitches[0], width * pitches[1], depth * pitches[2], depth * pitches[3]]
    names = ["q", "k", "v", *(["m"] if mask != "none" else []), "s", "y"]
    for part in range(parts):
        begin, end = (HEADS * each // parts for each in (part, part + 1))
        memory.call(
            code, spec.symbol, names, [*pitches, *steps, HEADS, parts, m_pitch, (keys + 1) * m_pitch], begin, end
        )
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
        scores = exact[1].T @ exact[0] * spec.scale + (added[head % len(added)] if mask != "none" else 0)
        weights = np.exp(scores - scores.max(axis=0))
        weights /= weights.sum(axis=0)
        expected = exact[2] @ weights
        # a score's rounding is a factor on its weight
        largest = np.abs(exact[1]).T @ np.abs(exact[0]) * spec.scale
        finite = np.abs(added[np.isfinite(added)]).max()
        bound = EPS * (np.abs(exact[2]).max() * (2 * (width + 4) * largest.max() + 2 * finite + keys + 16))
        assert np.abs(memory["y"][head * depth : (head + 1) * depth, :queries] - expected).max() <= bound
