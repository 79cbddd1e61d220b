"""Projected gradient: weights under any pattern by steps down the layer's error, each followed by the exact projection.

Iterative hard thresholding as AWP uses it (2506.10205): V <- P(V + step (V0 - V) C), with P the projection onto the
pattern. It runs in columns scaled by the inputs' standard deviations, so that C is a correlation matrix, one step size
fits all columns, and the projection keeps what matters to the outputs, not what is merely large.
"""

from __future__ import annotations

import numpy as np

from edgesparse.passes.graph import Array
from edgesparse.passes.observe import Moments
from edgesparse.passes.surgeon import DAMPING, damped, refit
from edgesparse.pattern import Mask, SparsePattern, best_mask

STEPS = 50


def projected(
    weight: Array,
    mask: Mask,
    moments: Moments,
    pattern: SparsePattern,
    density: float | None,
    *,
    damping: float = DAMPING,
    steps: int = STEPS,
) -> tuple[Array, Mask]:
    """Weights (float64) and mask under the pattern; their error is never larger than that of the refit on `mask`.

    `weight` and `mask` are canonical, `[Cout, Cin / groups, taps]`. The weights are the least-squares ones on it.
    """
    parts = len(moments.mean)
    rows = weight.astype(np.float64).reshape(parts, weight.shape[0] // parts, -1)
    h = np.stack([damped(one, damping) for one in moments.covariance])
    scale = np.sqrt(np.einsum("gkk->gk", h))[:, None, :]
    correlation = h / scale.transpose(0, 2, 1) / scale
    step = np.array([1.0 / np.linalg.eigvalsh(one)[-1] for one in correlation])[:, None, None]
    want = rows * scale

    def error(now: Array) -> float:
        off = want - now
        return float(np.sum(np.matmul(off, correlation) * off))

    start = refit(weight, mask, moments, damping)
    now, kept = start.reshape(rows.shape) * scale, mask
    for _ in range(steps):
        moved = now + step * np.matmul(want - now, correlation)
        kept = best_mask(pattern, np.square(moved).reshape(weight.shape), density)
        now = np.where(kept.reshape(rows.shape), moved, 0.0)
    # the steps have found a mask; what its weights should be is known exactly
    end = refit(weight, kept, moments, damping)
    if error(end.reshape(rows.shape) * scale) < error(start.reshape(rows.shape) * scale):
        return end, kept
    return start, mask
