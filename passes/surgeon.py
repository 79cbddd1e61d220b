"""One layer at a time: which weights to drop, and what the others become. Pure functions of weights and moments.

For one output channel with weights w and centred second moments H of its inputs, dropping weight j and adjusting
the others optimally costs w_j^2 / [H^-1]_jj of output variance (optimal brain surgeon). With kept columns S, the
best weights are the least-squares solution W_S = W H_:S H_SS^-1. The mean of the inputs does not matter: the bias
takes it. Rows that share their kept columns (groups) share one factorisation.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve, cholesky, solve_triangular

from edgesparse.passes.graph import Array
from edgesparse.passes.observe import Moments, Spread
from edgesparse.pattern import Mask, SparsePattern, best_mask

DAMPING = 0.03
"""Share of the mean diagonal added to H: it bounds the weights where inputs are dependent or few. With the few inputs
that there are, less fits their chance, and more holds the weights back (docs/accuracy.md has what was measured).
"""


def damped(covariance: Array, damping: float = DAMPING) -> Array:
    """`[K, K]` positive definite: H + damping * mean(diag H) I; the identity where H is zero (constant inputs)."""
    scale = float(np.trace(covariance)) / len(covariance)
    if not scale > 0.0:
        return np.eye(len(covariance))
    return np.asarray(covariance + damping * scale * np.eye(len(covariance)))


def inverse_diagonal(h: Array) -> Array:
    """diag(H^-1), `[K]`, of a positive definite H, by its Cholesky factor."""
    factor = cholesky(h, lower=True)
    half = solve_triangular(factor, np.eye(len(h)), lower=True)
    return np.asarray(np.einsum("ij,ij->j", half, half))


def wanda(weight: Array, moments: Moments) -> Array:
    """Wanda (2306.11695): w^2 times the mean square of the input that the weight meets.

    `weight` is canonical, `[Cout, Cin / groups, taps]`; so is the result, float64. The square of the paper's score:
    summed over a unit it orders units by their L2 norm.
    """
    rows = _grouped(weight, moments)
    square = np.einsum("gkk->gk", moments.covariance) + moments.mean**2
    return np.asarray((rows**2 * square[:, None, :]).reshape(weight.shape))


def obs(weight: Array, moments: Moments, damping: float = DAMPING) -> Array:
    """Optimal brain surgeon's w^2 / [H^-1]_jj, float64, canonical: the variance lost when the rest adjusts."""
    rows = _grouped(weight, moments)
    diagonal = np.stack([inverse_diagonal(damped(h, damping)) for h in moments.covariance])
    return np.asarray((rows**2 / diagonal[:, None, :]).reshape(weight.shape))


def refit(weight: Array, mask: Mask, moments: Moments, damping: float = DAMPING) -> Array:
    """The least-squares weights on `mask` for the outputs of `weight` on the same inputs; float64, canonical.

    `weight` and `mask` are `[Cout, Cin / groups, taps]`. Rows with equal masks are solved together, by whichever of
    kept and dropped columns are fewer; a row without any kept weight is zero.
    """
    rows = _grouped(weight, moments)
    kept = mask.reshape(rows.shape)
    out = np.zeros_like(rows)
    for g in range(len(rows)):
        h = damped(moments.covariance[g], damping)
        right = rows[g] @ h
        inverse: Array | None = None
        same: dict[bytes, list[int]] = {}
        for r in range(rows.shape[1]):
            same.setdefault(kept[g, r].tobytes(), []).append(r)
        for members in same.values():
            stays = kept[g, members[0]]
            s, d = np.flatnonzero(stays), np.flatnonzero(~stays)
            if not s.size:
                continue
            if d.size >= s.size:
                solved = cho_solve(cho_factor(h[np.ix_(s, s)], check_finite=False), right[members][:, s].T)
                out[g][np.ix_(np.asarray(members), s)] = solved.T
                continue
            if inverse is None:
                inverse = cho_solve(cho_factor(h, check_finite=False), np.eye(len(h)), check_finite=False)
            new = rows[g, members]
            if d.size:  # dropped weights w_D change the others by -w_D [H^-1]_DD^-1 [H^-1]_DS
                block = cho_factor(inverse[np.ix_(d, d)], check_finite=False)
                new = new - cho_solve(block, new[:, d].T, check_finite=False).T @ inverse[d]
            out[g, members] = np.where(stays, new, 0.0)
    return out.reshape(weight.shape)


def surgeon_mask(
    weight: Array,
    moments: Moments,
    pattern: SparsePattern,
    density: float | None,
    *,
    row_weight: Array | None = None,
    damping: float = DAMPING,
) -> Mask:
    """The pattern's best mask for the surgeon's saliency; `row_weight` `[Cout]` says what each output is worth."""
    scores = obs(weight, moments, damping)
    if row_weight is not None:
        scores = scores * row_weight[:, None, None]
    return best_mask(pattern, scores, density)


def output_of(weight: Array, bias: Array, moments: Moments) -> Spread:
    """Mean and variance `[Cout]` of a layer's outputs, from the moments of its inputs."""
    rows = _grouped(weight, moments)
    mean = np.einsum("grk,gk->gr", rows, moments.mean).reshape(-1) + bias
    variance = np.einsum("grk,grk->gr", np.matmul(rows, moments.covariance), rows).reshape(-1)
    return Spread(mean, np.maximum(variance, 0.0))


def rescale(have: Spread, want: Spread, limit: float = 4.0) -> tuple[Array, Array]:
    """Per output channel the factor and the new bias offset that turn `have` into `want`: y' = scale y + shift.

    The factor is sqrt(want / have) within 1 / `limit` and `limit`; 1 for channels that do not vary.
    """
    floor = 1e-12 * max(float(want.variance.max(initial=0.0)), 1e-30)
    varies = (have.variance > floor) & (want.variance > floor)
    ratio = np.ones_like(have.variance)
    ratio[varies] = np.sqrt(want.variance[varies] / have.variance[varies])
    scale = np.clip(ratio, 1.0 / limit, limit)
    return scale, want.mean - scale * have.mean


def _grouped(weight: Array, moments: Moments) -> Array:
    """`[groups, Cout / groups, K]` float64."""
    groups = len(moments.mean)
    return weight.astype(np.float64).reshape(groups, weight.shape[0] // groups, -1)
