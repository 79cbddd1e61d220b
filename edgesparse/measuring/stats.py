"""From timings to statements: Samples -> Stats -> Comparison. Pure functions, times in seconds.

Contenders are timed in alternation. A block runs every contender once forth and once back (A B C C B A),
a few runs at each turn, so that anything that drifts linearly hits all contenders of a block alike. One
block yields one time per contender, hence one ratio per pair; of one load, the speedup is the median of these
ratios, and its interval comes from resampling the blocks, which keeps what is correlated together.

Who works beside takes bandwidth and clock, and slows one model more than another: the ratio has two values, and their
median lies nearer to whichever had more blocks this time. So only calm blocks count. Both contenders' times together
tell which those are, so that none of them is favoured (see `calm_blocks`).

Where the contenders were loaded several times, each block belongs to one of the loads, which take turns. A load is not
like another one: its memory lies elsewhere. So the loads are the sample, of which blocks are only repetitions: the
speedup is the mean over loads, and its interval comes from how they differ (see `intervals`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesparse.errors import UsageError
from edgesparse.measuring.calm import calm_blocks, noise_of
from edgesparse.measuring.intervals import MIN_BLOCKS, Floats, load_medians, ratio_interval

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


@dataclass(frozen=True)
class Samples:
    """Timings of one contender: for each block its turns (forth and back), each the times of its
    runs in seconds. Of several `loads`, block i was timed on load i modulo `loads`.
    """

    name: str
    blocks: tuple[tuple[tuple[float, ...], ...], ...]
    loads: int = 1

    def __post_init__(self) -> None:
        if self.loads < 1:
            raise UsageError(f"{self.name} cannot have been loaded {self.loads} times")
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
    def load_of(self) -> NDArray[np.intp]:
        """The load that each block was timed on."""
        return np.arange(len(self.blocks)) % self.loads

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
    of them count. `load_ratios` has the ratio of each load that any of these belong to.
    """

    base: str
    other: str
    ratio: float
    low: float
    high: float
    confidence: float
    blocks: int
    calm: int
    load_ratios: tuple[float, ...] = ()

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

    The blocks that are calm count, or all of them with `keep_all`; ratio and interval are those of `ratio_interval`.

    Raises
    ------
    UsageError
        If the two were not timed in the same number of blocks and loads.
    """
    shapes = [f"{len(each.blocks)} blocks of {each.loads} loads" for each in (base, other)]
    if shapes[0] != shapes[1]:
        raise UsageError(f"cannot pair {base.name} with {other.name}", why=f"they have {shapes[0]} and {shapes[1]}")
    ours, theirs = base.block_times, other.block_times
    calm = np.ones(len(ours), bool)
    if not keep_all:
        calm = calm_pairs(base, other)
    ratios, load_of = (theirs / ours)[calm], base.load_of[calm]
    ratio, low, high = ratio_interval(ratios, load_of, confidence=confidence, resamples=resamples, seed=seed)
    by_load = tuple(float(each) for each in load_medians(ratios, load_of))
    return Comparison(base.name, other.name, ratio, low, high, confidence, len(ours), len(ratios), by_load)


def calm_pairs(base: Samples, other: Samples) -> NDArray[np.bool_]:
    """Return which blocks of two contenders, timed in the same ones, were calm, as `calm_blocks` tells it."""
    noise = noise_of(base.block_swings, other.block_swings)
    return calm_blocks(base.block_times, other.block_times, load_of=base.load_of, noise=noise)


def fewest_calm(samples: Sequence[Samples]) -> int:
    """Return how many blocks are calm for the first contender and another one, of the other that has fewest.

    Alone, the first one has no ratio, and all of its blocks count.
    """
    base, *others = samples
    return min((int(calm_pairs(base, other).sum()) for other in others), default=len(base.blocks))


def goes_on(samples: Sequence[Samples], planned: int, patience: float) -> bool:
    """Return whether blocks are to be made beyond those that were `planned`: until as many are calm, or there are
    `patience` times as many.

    Calm is told by contenders' times together, which say nothing of their ratio: none is liked better than another, and
    so the interval holds what it says (`tests/test_stats.py`).
    """
    return len(samples[0].blocks) < patience * planned and fewest_calm(samples) < planned


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
