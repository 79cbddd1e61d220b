"""How far two models' outputs are apart, row by row: pure functions of arrays.

A row is the last axis of an output: the scores of one picture, of one time step, of one pixel. Rows that are no
probabilities already are taken as logits.
"""

from __future__ import annotations

import numpy as np

from edgesparse.passes.graph import Array

TINY = 1e-12
"""Least probability that a logarithm is taken of."""


def rows(values: Array) -> Array:
    """The output as float64 `[rows, classes]`; a scalar or a vector is one row."""
    wide = np.asarray(values, dtype=np.float64)
    return wide.reshape(1, -1) if wide.ndim < 2 else wide.reshape(-1, wide.shape[-1])


def log_probabilities(values: Array) -> Array:
    """Natural logarithms of the class probabilities, of the shape of `values`, float64."""
    values = values.astype(np.float64)
    if values.min() >= 0.0 and np.allclose(values.sum(axis=-1), 1.0, atol=1e-3):
        return np.log(np.maximum(values, TINY))
    top = values - values.max(axis=-1, keepdims=True)
    return np.asarray(top - np.log(np.exp(top).sum(axis=-1, keepdims=True)))


def divergences(dense: Array, sparse: Array) -> Array:
    """KL(dense || sparse) of each row in nats, float64 of the shape without the last axis."""
    p, q = log_probabilities(dense), log_probabilities(sparse)
    return np.asarray(np.sum(np.exp(p) * (p - q), axis=-1))


def divergence(dense: Array, sparse: Array) -> float:
    """Mean KL(dense || sparse) over all rows, in nats."""
    return float(np.mean(divergences(dense, sparse)))


def cosines(dense: Array, sparse: Array) -> Array:
    """Cosine of the angle between each pair of rows, float64; 1 where both are zero, 0 where one is."""
    a, b = (np.asarray(one, dtype=np.float64) for one in (dense, sparse))
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    same = (lengths == 0.0) & (np.linalg.norm(a, axis=-1) == np.linalg.norm(b, axis=-1))
    found = np.sum(a * b, axis=-1) / np.where(lengths > 0.0, lengths, 1.0)
    return np.where(same, 1.0, np.clip(found, -1.0, 1.0))
