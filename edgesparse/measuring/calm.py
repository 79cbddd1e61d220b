"""Which blocks had the machine to themselves. Pure functions.

Who works beside takes bandwidth and clock, and slows one contender more than another: the ratio has one value with them
and another without. The contenders' times together tell the blocks apart, and favour none of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgesparse.measuring.intervals import MIN_BLOCKS, Floats

CALMEST, CALM_WITHIN, CALM_NOISE, CALM_LEAST = 10, 0.04, 3.0, 0.2
"""A block is calm if it took at most `CALM_WITHIN` longer than the calmest `CALMEST` per cent of blocks, or
`CALM_NOISE` standard deviations of a block where that is more; and in any case the share `CALM_LEAST` of them is."""

#: The standard deviation of a normal distribution, in medians of its distance to the middle.
_SIGMAS_OF_MEDIAN = 1.4826


def noise_of(*swings: Floats) -> float:
    """Return the standard deviation of a block's mean, as a share, from how each contender's turns differ in each block
    (as logarithms). The middle one of all blocks tells: few disturbed ones do not count.
    """
    return float(np.median(np.abs(np.mean(swings, axis=0)))) * _SIGMAS_OF_MEDIAN / 2


def calm_blocks(*times: Floats, load_of: NDArray[np.intp] | None = None, noise: float = 0.0) -> NDArray[np.bool_]:
    """Return which blocks had the machine to themselves, from the contenders' times in each.

    The geometric mean of all contenders' times tells it, as `CALMEST` and what stands with it say; at least
    `MIN_BLOCKS` are. On a quiet machine all blocks count.

    Parameters
    ----------
    load_of:
        The load that each block was timed on. A load that is slow by itself is not disturbed: where every load has
        `MIN_BLOCKS` blocks, they are compared with blocks of their own load only.
    noise:
        Standard deviation of a block's mean, as a share. What it would take for disturbed is only noise, and leaving
        that out favours the contender that has less of it.
    """
    together = np.mean(np.log(times), axis=0)
    loads, counts = np.unique(np.zeros(len(together), np.intp) if load_of is None else load_of, return_counts=True)
    if load_of is None or len(loads) == 1 or counts.min() < MIN_BLOCKS:
        return _calm(together, noise, MIN_BLOCKS)
    calm = np.zeros(len(together), bool)
    for load in loads:
        calm[load_of == load] = _calm(together[load_of == load], noise, -(-MIN_BLOCKS // len(loads)))
    return calm


def _calm(together: Floats, noise: float, least: int) -> NDArray[np.bool_]:
    """Return which blocks were calm by the logarithms of their times, at least `least`."""
    least = min(max(int(np.ceil(CALM_LEAST * len(together))), least), len(together))
    within = max(float(np.log1p(CALM_WITHIN)), CALM_NOISE * noise)
    limit = float(np.percentile(together, CALMEST)) + within
    return np.asarray(together <= max(limit, float(np.sort(together)[least - 1])))
