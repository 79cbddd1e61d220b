"""How sure a median of paired ratios is: intervals from blocks, and from loads. Pure functions.

The plain percentile bootstrap of a median covers the truth too seldom with few blocks (90 % instead of 95 % at
8 blocks), and whenever neighbouring blocks are alike. So it is widened twice: to the interval of order statistics,
which is right for any distribution (W. J. Conover, Practical Nonparametric Statistics, ch. 3), and by the blocks'
measured autocorrelation, as an autoregressive series of first order would need.

Blocks of one load tell nothing of what the next load would give. With several loads their medians are the sample, and
Student's t gives the mean's interval (blocks within loads, as in two-stage sampling: W. G. Cochran, Sampling
Techniques, ch. 10). As few loads may happen to be alike, it is never narrower than what the blocks alone give.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, stdtrit

Floats = NDArray[np.float64]

MIN_BLOCKS = 6
"""Blocks below which an order statistic of blocks cannot give a 95 % interval."""


def ratio_interval(
    values: Floats, load_of: NDArray[np.intp], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Return the middle of positive values that were measured in this order on several loads, and its interval.

    Of one load the middle is the median, with the interval of `median_interval`. Of several it is the geometric mean of
    the loads' medians, with the hull of that interval and of Student's t over the loads.

    Parameters
    ----------
    load_of:
        The load that each value belongs to.
    """
    low, high = median_interval(values, confidence=confidence, resamples=resamples, seed=seed)
    loads = np.log(load_medians(values, load_of))
    if len(loads) < 2:
        return float(np.median(values)), low, high
    middle = float(loads.mean())
    reach = float(stdtrit(len(loads) - 1, (1 + confidence) / 2) * loads.std(ddof=1) / np.sqrt(len(loads)))
    return float(np.exp(middle)), min(low, float(np.exp(middle - reach))), max(high, float(np.exp(middle + reach)))


def load_medians(values: Floats, load_of: NDArray[np.intp]) -> Floats:
    """Return the median of each load's values, in the order of the loads; those without a value are left out."""
    return np.array([np.median(values[load_of == load]) for load in np.unique(load_of)], dtype=np.float64)


def median_interval(
    values: Floats, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return an interval of the median of positive values in the order in which they were measured.

    The hull of the percentile bootstrap and of the order statistics, stretched by what `persistence` tells; the
    same for the same seed. With fewer than `MIN_BLOCKS` values it is their whole range, as no narrower one could
    be defended.
    """
    if len(values) < MIN_BLOCKS:
        return float(values.min()), float(values.max())
    tail = (1 - confidence) / 2
    low, high = np.percentile(bootstrap_medians(values, resamples, seed), [100 * tail, 100 - 100 * tail])
    ordered = np.sort(values)
    # the k-th value from below exceeds the median with the chance that fewer than k of n fair coins show heads
    k = int(np.searchsorted(bdtr(np.arange(len(values)), len(values), 0.5), tail, side="right"))
    low, high = min(low, ordered[max(k - 1, 0)]), max(high, ordered[min(len(values) - k, len(values) - 1)])
    middle, rho = float(np.median(values)), persistence(values)
    stretch = float(np.sqrt((1 + rho) / (1 - rho)))
    return middle * (float(low) / middle) ** stretch, middle * (float(high) / middle) ** stretch


def bootstrap_medians(values: Floats, resamples: int, seed: int) -> Floats:
    """Return the medians of `resamples` samples drawn from the values with replacement."""
    picks = np.random.default_rng(seed).integers(0, len(values), size=(resamples, len(values)))
    return np.asarray(np.median(values[picks], axis=1), dtype=np.float64)


def persistence(values: Floats) -> float:
    """Return how much a value tells of the next one: the autocorrelation at lag 1, from 0 to 0.9.

    The outer tenths are clipped first, so that single spikes do not hide it.
    """
    clipped = np.clip(values, *np.percentile(values, [10, 90]))
    centred = clipped - clipped.mean()
    power = float((centred**2).sum())
    return min(max(float((centred[1:] * centred[:-1]).sum()) / power, 0.0), 0.9) if power > 0 else 0.0


def contrast(
    before: Floats,
    after: Floats,
    *,
    loads: tuple[NDArray[np.intp] | None, NDArray[np.intp] | None] = (None, None),
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Return how many times as large `after` is as `before`, and the interval, for two that were not measured together.

    Each has the middle and the interval of `ratio_interval`, by the load of each of its values (one load if None); the
    intervals' widths, as logarithms, are added as independent errors are.
    """
    bounds = [
        ratio_interval(
            values,
            np.zeros(len(values), np.intp) if load_of is None else load_of,
            confidence=confidence,
            resamples=resamples,
            seed=seed,
        )
        for values, load_of in zip((before, after), loads, strict=True)
    ]
    spans = [np.log([low, high]) - np.log(middle) for middle, low, high in bounds]
    ratio = bounds[1][0] / bounds[0][0]
    below = float(np.hypot(spans[1][0], spans[0][1]))
    above = float(np.hypot(spans[1][1], spans[0][0]))
    return ratio, ratio * float(np.exp(-below)), ratio * float(np.exp(above))
