"""From timings to statements: Samples -> Stats -> Comparison. Pure functions, times in seconds.

Contenders are timed in alternation. A block runs every contender once forth and once back (A B C C B A),
a few runs at each turn, so that anything that drifts linearly hits all contenders of a block alike. One
block yields one time per contender, hence one ratio per pair; the speedup is the median of these ratios,
and its interval comes from resampling the blocks, which keeps what is correlated together.

Who works beside takes bandwidth and clock, and slows one model more than another: the ratio has two values, and their
median lies nearer to whichever had more blocks this time. So only calm blocks count. Both contenders' times together
tell which those are, so that none of them is favoured (see `calm_blocks`).

The plain percentile bootstrap of a median covers the truth too seldom with few blocks (90 % instead of 95 % at
8 blocks), and whenever neighbouring blocks are alike. So it is widened twice: to the interval of order statistics,
which is right for any distribution (W. J. Conover, Practical Nonparametric Statistics, ch. 3), and by the blocks'
measured autocorrelation, as an autoregressive series of first order would need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from edgesparse.errors import UsageError

Floats = NDArray[np.float64]

TRIM = 0.1
"""Share of the fastest, and of the slowest, runs that the trimmed mean leaves out."""

MAX_SPREAD = 0.15
"""Interquartile range over median above which timings count as unstable."""

MAX_DRIFT = 0.10
"""Change from the first to the last third of the blocks, over the median, above which timings count
as unstable.
"""

MAX_TAIL = 3.0
"""p99 over p50 above which timings count as unstable."""

QUANTILES = 101
"""Percentiles of the runs that a report keeps, from 0 to 100 %: enough to draw the distribution."""

MIN_BLOCKS = 6
"""Blocks below which an order statistic of blocks cannot give a 95 % interval."""

CALMEST, CALM_WITHIN, CALM_NOISE, CALM_LEAST = 10, 0.04, 3.0, 0.2
"""A block is calm if it took at most `CALM_WITHIN` longer than the calmest `CALMEST` per cent of blocks, or
`CALM_NOISE` standard deviations of a block where that is more; and in any case the share `CALM_LEAST` of them is."""


@dataclass(frozen=True)
class Samples:
    """Timings of one contender: for each block its turns (forth and back), each the times of its
    runs in seconds.
    """

    name: str
    blocks: tuple[tuple[tuple[float, ...], ...], ...]

    def __post_init__(self) -> None:
        if not self.blocks or any(not turn for block in self.blocks for turn in block):
            raise UsageError(f"there are no timings of {self.name}")
        if not all(0 < value < np.inf for value in self.flat):
            raise UsageError(f"timings of {self.name} are not all positive and finite")

    @property
    def flat(self) -> Floats:
        """All runs, in the order in which they were made."""
        return np.array([value for block in self.blocks for turn in block for value in turn], dtype=np.float64)

    @property
    def block_times(self) -> Floats:
        """One time per block: the mean of its turns' medians, so spikes drop out and linear drift cancels."""
        return np.array([fmean(map(median, block)) for block in self.blocks])

    @property
    def block_swings(self) -> Floats:
        """By how much, as a logarithm, each block's last turn took longer than its first; 0 where it has but one."""
        return np.log([median(block[-1]) / median(block[0]) for block in self.blocks])

    @classmethod
    def of(cls, name: str, seconds: Sequence[float]) -> Samples:
        """Return samples of runs that were made one after the other: every run is a block of its own."""
        return cls(name, tuple(((float(value),),) for value in seconds))


@dataclass(frozen=True)
class Stats:
    """What is said about one contender; times in seconds.

    Attributes
    ----------
    spread:
        Interquartile range over median.
    drift:
        Median of the last third of the blocks over that of the first third, minus 1. 0 with fewer than 6
        blocks.
    unstable:
        Why the timings should not be trusted; empty if they may be.
    """

    n: int
    min: float
    p50: float
    p90: float
    p99: float
    trimmed_mean: float
    spread: float
    drift: float
    unstable: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """How much faster `base` is than `other`: a ratio above 1 says that `base` is faster.

    `low` and `high` bound the ratio with `confidence`; `blocks` is the number of pairs that were measured, and `calm`
    of them count.
    """

    base: str
    other: str
    ratio: float
    low: float
    high: float
    confidence: float
    blocks: int
    calm: int

    @property
    def verdict(self) -> str:
        """Return "faster", "slower" or, where the interval holds 1, "no difference"."""
        if self.low > 1:
            return "faster"
        return "slower" if self.high < 1 else "no difference"


def summarize(samples: Samples) -> Stats:
    """Return the statistics of one contender's timings."""
    flat = samples.flat
    p25, p50, p75, p90, p99 = (float(value) for value in np.percentile(flat, [25, 50, 75, 90, 99]))
    spread = (p75 - p25) / p50
    drift = _drift(samples.block_times)
    causes = []
    if spread > MAX_SPREAD:
        causes.append(f"spread: the middle half of the runs spans {100 * spread:.0f} % of the median")
    if abs(drift) > MAX_DRIFT:
        word = "slower" if drift > 0 else "faster"
        causes.append(f"drift: the last third of the runs is {100 * abs(drift):.0f} % {word} than the first")
    if p99 > MAX_TAIL * p50:
        causes.append(f"spikes: one run in a hundred takes {p99 / p50:.1f} times the median")
    return Stats(
        n=len(flat),
        min=float(flat.min()),
        p50=p50,
        p90=p90,
        p99=p99,
        trimmed_mean=trimmed_mean(flat),
        spread=spread,
        drift=drift,
        unstable=tuple(causes),
    )


def quantiles(samples: Samples) -> tuple[float, ...]:
    """Return the runs' percentiles 0, 1, .. 100, in seconds."""
    return tuple(float(value) for value in np.percentile(samples.flat, np.linspace(0, 100, QUANTILES)))


def trimmed_mean(values: Floats, share: float = TRIM) -> float:
    """Return the mean without the lowest and highest `share` (0 to below 0.5) of the values."""
    cut = int(share * len(values))
    return float(np.sort(values)[cut : len(values) - cut].mean())


def compare(
    base: Samples,
    other: Samples,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    keep_all: bool = False,
) -> Comparison:
    """Return how much faster `base` is than `other`, from their paired blocks.

    The ratio is the median over the blocks that are calm, or over all of them with `keep_all`; its interval is that of
    `median_interval`.

    Raises
    ------
    UsageError
        If the two were not timed in the same number of blocks.
    """
    if len(base.blocks) != len(other.blocks):
        raise UsageError(
            f"cannot pair {base.name} with {other.name}",
            why=f"they have {len(base.blocks)} and {len(other.blocks)} blocks",
        )
    ours, theirs = base.block_times, other.block_times
    calm = np.ones(len(ours), bool)
    if not keep_all:
        swings = (base.block_swings + other.block_swings) / 2
        calm = calm_blocks(ours, theirs, noise=float(np.median(np.abs(swings))) * _SIGMAS_OF_MEDIAN / 2)
    ratios = (theirs / ours)[calm]
    low, high = median_interval(ratios, confidence=confidence, resamples=resamples, seed=seed)
    ratio = float(np.median(ratios))
    return Comparison(base.name, other.name, ratio, low, high, confidence, len(ours), len(ratios))


#: The standard deviation of a normal distribution, in medians of its distance to the middle.
_SIGMAS_OF_MEDIAN = 1.4826


def calm_blocks(*times: Floats, noise: float = 0.0) -> NDArray[np.bool_]:
    """Return which blocks had the machine to themselves, from the contenders' times in each.

    The geometric mean of all contenders' times tells it, as `CALMEST` and what stands with it say; at least
    `MIN_BLOCKS` are. On a quiet machine all blocks count.

    Parameters
    ----------
    noise:
        Standard deviation of a block's mean, as a share. What it would take for disturbed is only noise, and leaving
        that out favours the contender that has less of it.
    """
    together = np.mean(np.log(times), axis=0)
    least = min(max(int(np.ceil(CALM_LEAST * len(together))), MIN_BLOCKS), len(together))
    within = max(float(np.log1p(CALM_WITHIN)), CALM_NOISE * noise)
    limit = float(np.percentile(together, CALMEST)) + within
    return np.asarray(together <= max(limit, float(np.sort(together)[least - 1])))


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
    before: Floats, after: Floats, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Return median(after) / median(before) and its interval, for two series that were not measured together.

    The two intervals' widths, as logarithms, are added as independent errors are.
    """
    middles = float(np.median(before)), float(np.median(after))
    spans = [
        np.log(median_interval(values, confidence=confidence, resamples=resamples, seed=seed)) - np.log(middle)
        for values, middle in zip((before, after), middles, strict=True)
    ]
    ratio = middles[1] / middles[0]
    below = float(np.hypot(spans[1][0], spans[0][1]))
    above = float(np.hypot(spans[1][1], spans[0][0]))
    return ratio, ratio * float(np.exp(-below)), ratio * float(np.exp(above))


def settled(seconds: Sequence[float], *, window: int = 10, tolerance: float = 0.02) -> bool:
    """Return whether warm-up is over: the medians of the last two windows of runs differ by at most
    `tolerance`.
    """
    if len(seconds) < 2 * window:
        return False
    last = float(np.median(seconds[-window:]))
    before = float(np.median(seconds[-2 * window : -window]))
    return abs(last - before) <= tolerance * before


def _drift(block_times: Floats) -> float:
    third = len(block_times) // 3
    if len(block_times) < MIN_BLOCKS:
        return 0.0
    return float(np.median(block_times[-third:]) / np.median(block_times[:third]) - 1)


def as_dict(value: Stats | Comparison) -> dict[str, Any]:
    """Return the fields as plain values for a JSON report; a comparison also says its verdict."""
    fields = {key: list(item) if isinstance(item, tuple) else item for key, item in vars(value).items()}
    if isinstance(value, Comparison):
        fields["verdict"] = value.verdict
    return fields
