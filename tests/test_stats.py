"""Statistics against known distributions and simulated clocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesparse.errors import UsageError
from edgesparse.stats import Samples, as_dict, compare, median_interval, settled, summarize, trimmed_mean


class Machine:
    """A simulated clock: a run takes its own time, times noise, times drift over the session, with
    rare spikes.
    """

    def __init__(self, seed: int, *, noise: float = 0.03, drift: float = 0.0, spikes: float = 0.0) -> None:
        self.rng = np.random.default_rng(seed)
        self.noise, self.drift, self.spikes, self.now = noise, drift, spikes, 0

    def run(self, seconds: float) -> float:
        self.now += 1
        spike = 20.0 if self.rng.random() < self.spikes else 1.0
        noise = float(np.exp(self.noise * self.rng.standard_normal()))
        return seconds * noise * spike * (1 + self.drift * self.now)

    def blocks(self, costs: dict[str, float], count: int, runs: int = 3) -> list[Samples]:
        turns: dict[str, list[tuple[tuple[float, ...], ...]]] = {name: [] for name in costs}
        for _ in range(count):
            block: dict[str, list[tuple[float, ...]]] = {name: [] for name in costs}
            for name in [*costs, *reversed(costs)]:
                block[name].append(tuple(self.run(costs[name]) for _ in range(runs)))
            for name, both in block.items():
                turns[name].append(tuple(both))
        return [Samples(name, tuple(blocks)) for name, blocks in turns.items()]


def test_stats_of_a_known_sequence() -> None:
    stats = summarize(Samples.of("a", np.linspace(1.0, 2.0, 101)[np.random.default_rng(0).permutation(101)]))
    assert (stats.n, stats.min) == (101, 1.0)
    assert stats.p50 == pytest.approx(1.5)
    assert stats.p90 == pytest.approx(1.9)
    assert stats.p99 == pytest.approx(1.99)
    assert stats.trimmed_mean == pytest.approx(1.5)
    assert stats.spread == pytest.approx(0.5 / 1.5)


def test_quantiles_of_a_known_distribution() -> None:
    rng = np.random.default_rng(1)
    stats = summarize(Samples.of("a", np.exp(0.1 * rng.standard_normal(20_000))))
    assert stats.p50 == pytest.approx(1.0, rel=0.01)
    assert stats.p90 == pytest.approx(np.exp(0.1 * 1.2816), rel=0.01)
    assert stats.p99 == pytest.approx(np.exp(0.1 * 2.3263), rel=0.02)
    assert stats.unstable == ()


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=50))
def test_order_of_the_quantiles(values: list[float]) -> None:
    stats = summarize(Samples.of("a", values))
    assert stats.min <= stats.p50 <= stats.p90 <= stats.p99 <= max(values)
    assert stats.min <= stats.trimmed_mean * (1 + 1e-12)


def test_trimmed_mean_leaves_spikes_out() -> None:
    assert trimmed_mean(np.array([1.0] * 19 + [1000.0])) == 1.0


@pytest.mark.parametrize(
    ("machine", "cause"),
    [
        (Machine(2, noise=0.25), "spread"),
        (Machine(3, drift=0.001), "drift"),
        (Machine(4, drift=-0.0005), "drift"),
        (Machine(5, spikes=0.03), "spikes"),
    ],
)
def test_an_unstable_clock_is_called_so(machine: Machine, cause: str) -> None:
    [samples] = machine.blocks({"a": 1e-3}, 60)
    assert any(text.startswith(cause) for text in summarize(samples).unstable)


def test_a_steady_clock_is_not_called_unstable() -> None:
    [samples] = Machine(6).blocks({"a": 1e-3}, 60)
    assert summarize(samples).unstable == ()


def test_linear_drift_cancels_in_the_paired_ratio() -> None:
    base, _, other = Machine(7, noise=0.0, drift=0.002).blocks({"a": 1.0, "x": 7.0, "b": 2.0}, 40)
    found = compare(base, other)
    assert found.ratio == pytest.approx(2.0, rel=1e-6)
    assert abs(np.median(other.flat[-60:]) / np.median(base.flat[:60]) - 2.0) > 0.5


def test_spikes_do_not_move_the_ratio() -> None:
    base, other = Machine(8, spikes=0.05).blocks({"a": 1.0, "b": 1.7}, 60)
    assert compare(base, other).ratio == pytest.approx(1.7, rel=0.03)


@pytest.mark.parametrize("trouble", [{}, {"drift": 0.001}, {"spikes": 0.02}])
def test_the_interval_covers_the_true_ratio(trouble: dict[str, float]) -> None:
    hits = 0
    for seed in range(200):
        base, other = Machine(seed, noise=0.05, **trouble).blocks({"a": 1.0, "b": 1.3}, 25)
        found = compare(base, other, resamples=400, seed=seed)
        hits += found.low <= 1.3 <= found.high
    assert hits >= 182  # 95 % of 200 is 190; a true 95 % interval falls below 182 once in a hundred times


def test_a_contender_against_itself() -> None:
    base, other = Machine(9).blocks({"a": 1.0, "b": 1.0}, 50)
    found = compare(base, other)
    assert found.verdict == "no difference"
    assert found.low < 1 < found.high


def test_verdicts() -> None:
    base, other = Machine(10).blocks({"a": 1.0, "b": 2.0}, 20)
    assert compare(base, other).verdict == "faster"
    assert compare(other, base).verdict == "slower"
    assert as_dict(compare(base, other))["verdict"] == "faster"


def test_the_interval_is_reproducible_and_narrows() -> None:
    values = 1 + 0.1 * np.random.default_rng(0).standard_normal(400)
    assert median_interval(values, seed=3) == median_interval(values, seed=3)
    wide, narrow = median_interval(values[:20]), median_interval(values)
    assert narrow[1] - narrow[0] < wide[1] - wide[0]


def test_few_blocks_give_the_whole_range() -> None:
    assert median_interval(np.array([1.0, 3.0, 2.0])) == (1.0, 3.0)


def test_settling() -> None:
    warming = [3 - 0.05 * i for i in range(40)] + [1.0] * 40
    first = next(i for i in range(1, 81) if settled(warming[:i]))
    assert 41 <= first <= 60
    assert not settled([1.0] * 19)


def test_bad_samples_are_refused() -> None:
    with pytest.raises(UsageError, match="no timings of a"):
        Samples.of("a", [])
    with pytest.raises(UsageError, match="not all positive"):
        Samples.of("a", [1.0, float("nan")])
    with pytest.raises(UsageError, match="cannot pair a with b"):
        compare(Samples.of("a", [1.0]), Samples.of("b", [1.0, 2.0]))
