"""Statistics against known distributions and simulated clocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesparse.errors import UsageError
from edgesparse.measuring.calm import calm_blocks
from edgesparse.measuring.intervals import contrast, median_interval, persistence, ratio_interval
from edgesparse.measuring.stats import (
    Samples,
    as_dict,
    compare,
    fewest_calm,
    goes_on,
    quantiles,
    settled,
    summarize,
    trimmed_mean,
)


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


TRUE_RATIO = 1.3
SIMULATIONS, BLOCKS, RUNS = 1000, 30, 5


def simulated_turns(trouble: str, count: int = BLOCKS) -> np.ndarray:
    """The turns' medians of 1,000 benches of two contenders (A B B A in each of `count` blocks) on one clock with a
    trouble.
    """
    rng = np.random.default_rng(len(trouble))
    shape = (SIMULATIONS, count, 4, RUNS)
    now = np.arange(count * 4 * RUNS).reshape(1, count, 4, RUNS) / (BLOCKS * 4 * RUNS)
    slow = np.ones(shape)
    if trouble == "drift":
        slow = slow + 0.3 * now
    if trouble == "throttling":  # at some moment the clock falls to two thirds, and stays there
        slow = np.where(now > rng.uniform(0.2, 0.8, (SIMULATIONS, 1, 1, 1)), 1.5, 1.0)
    if trouble == "spikes":
        slow = np.where(rng.random(shape) < 0.05, 20.0, 1.0)
    if trouble == "load":  # another process comes and goes, in spells of some turns, and takes half of the core
        spells = rng.random((SIMULATIONS, count * 4 // 6 + 1, 1)) < 0.3
        busy = np.repeat(spells, 6, axis=1)[:, : count * 4].reshape(SIMULATIONS, count, 4, 1)
        slow = np.where(busy, 2.0, 1.0)
    if trouble == "neighbour":  # the same spells, on another core: they slow one contender by 16 %, the other by 5 %
        spells = rng.random((SIMULATIONS, count * 4 // 6 + 1, 1)) < 0.3
        busy = np.repeat(spells, 6, axis=1)[:, : count * 4].reshape(SIMULATIONS, count, 4, 1)
        slow = np.where(busy, np.array([1.16, 1.05, 1.05, 1.16]).reshape(1, 1, 4, 1), 1.0)
    noise = 0.02 if trouble == "neighbour" else 0.05
    turns = np.array([1.0, TRUE_RATIO, TRUE_RATIO, 1.0]).reshape(1, 1, 4, 1)
    return np.asarray(np.median(turns * slow * np.exp(noise * rng.standard_normal(shape)), axis=3))


def simulated_ratios(trouble: str) -> np.ndarray:
    """The paired ratios of all blocks."""
    medians = simulated_turns(trouble)
    return np.asarray((medians[..., 1] + medians[..., 2]) / (medians[..., 0] + medians[..., 3]))


@pytest.mark.parametrize("trouble", ["none", "drift", "throttling", "spikes", "load"])
def test_the_interval_covers_the_true_ratio(trouble: str) -> None:
    bounds = [
        median_interval(ratios, resamples=200, seed=seed) for seed, ratios in enumerate(simulated_ratios(trouble))
    ]
    assert sum(low <= TRUE_RATIO <= high for low, high in bounds) >= 0.95 * SIMULATIONS
    # and is not true by being wide: the block noise of this clock is 3 %, of 30 blocks' median 0.7 %
    assert np.median([high - low for low, high in bounds]) < {"load": 0.25}.get(trouble, 0.08)


@pytest.mark.parametrize("trouble", ["none", "drift", "throttling", "spikes", "load", "neighbour"])
def test_the_comparison_covers_the_true_ratio(trouble: str) -> None:
    """As `bench` compares: from the calm blocks. A neighbour slows one contender more, and moves nothing."""
    found = [
        compare(
            *(Samples(name, tuple(((one[a],), (one[b],)) for one in blocks)) for name, a, b in SIDES), resamples=200
        )
        for blocks in simulated_turns(trouble).tolist()
    ]
    assert sum(each.low <= TRUE_RATIO <= each.high for each in found) >= 0.95 * SIMULATIONS
    # drift leaves few blocks that are alike
    widest = {"drift": 0.12, "throttling": 0.08, "load": 0.08}.get(trouble, 0.05)
    assert np.median([each.high - each.low for each in found]) < widest
    if trouble == "neighbour":
        middles = [np.median(ratios) for ratios in simulated_ratios(trouble)]
        assert np.std([each.ratio for each in found]) < 0.4 * np.std(middles)
        assert abs(np.mean(middles) / TRUE_RATIO - 1) > 0.01
        assert np.mean([each.ratio for each in found]) == pytest.approx(TRUE_RATIO, rel=0.002)


SIDES = (("a", 0, 3), ("b", 1, 2))
"""The contenders' turns in a block."""

LOADS = 8


@pytest.mark.parametrize("trouble", ["none", "drift", "throttling", "spikes", "load", "neighbour"])
@pytest.mark.parametrize("effect", [0.003, 0.01])
def test_the_interval_covers_the_true_ratio_of_loads_that_differ(trouble: str, effect: float) -> None:
    """Each contender of each of 8 loads is slower or faster by its own share, normally distributed; the blocks
    take turns on them.
    """
    rng = np.random.default_rng(int(1000 * effect))
    shares = np.exp(effect * rng.standard_normal((SIMULATIONS, LOADS, 2)))[:, np.arange(BLOCKS) % LOADS]
    found = []
    for blocks in (simulated_turns(trouble) * shares[..., [0, 1, 1, 0]]).tolist():
        sides = [Samples(name, tuple(((one[a],), (one[b],)) for one in blocks), LOADS) for name, a, b in SIDES]
        found.append(compare(*sides, resamples=200))
    assert sum(each.low <= TRUE_RATIO <= each.high for each in found) >= 0.95 * SIMULATIONS
    widest = {"drift": 0.13, "throttling": 0.09, "load": 0.08}.get(trouble, 0.06)
    assert np.median([each.high - each.low for each in found]) < widest


@pytest.mark.parametrize(
    "trouble",
    ["neighbour", *(pytest.param(each, marks=pytest.mark.long) for each in ("none", "drift", "throttling", "load"))],
)
def test_the_interval_covers_the_true_ratio_where_measuring_goes_on(trouble: str) -> None:
    """After 30 blocks, each time the blocks have gone through 5 loads: stopping for calm prefers no ratio."""
    patience, loads = 3, 5
    rng = np.random.default_rng(6)
    shares = np.exp(0.01 * rng.standard_normal((SIMULATIONS, loads, 2)))[:, np.arange(patience * BLOCKS) % loads]
    found, lengths = [], []
    for blocks in (simulated_turns(trouble, patience * BLOCKS) * shares[..., [0, 1, 1, 0]]).tolist():
        sides = [tuple(((one[a],), (one[b],)) for one in blocks) for _, a, b in SIDES]
        made = BLOCKS
        while goes_on([Samples("", side[:made], loads) for side in sides], BLOCKS, patience):
            made += loads
        lengths.append(made)
        found.append(compare(*(Samples("", side[:made], loads) for side in sides), resamples=200))
    assert sum(each.low <= TRUE_RATIO <= each.high for each in found) >= 0.95 * SIMULATIONS
    assert np.mean([np.log(each.ratio) for each in found]) == pytest.approx(np.log(TRUE_RATIO), abs=0.002)
    if trouble == "none":
        assert np.mean(lengths) < 1.1 * BLOCKS
    elif trouble == "neighbour":
        assert all(each.calm >= BLOCKS or made == patience * BLOCKS for each, made in zip(found, lengths, strict=True))
        assert BLOCKS < np.mean(lengths) < 2 * BLOCKS


def test_one_load_says_nothing_of_the_next() -> None:
    """With many blocks the blocks alone tell what these loads are, and miss what loads are."""
    rng = np.random.default_rng(4)
    alone = together = 0
    for _ in range(300):
        loads = np.exp(0.01 * rng.standard_normal(LOADS))
        load_of = np.arange(200) % LOADS
        ratios = loads[load_of] * np.exp(0.01 * rng.standard_normal(200))
        low, high = median_interval(ratios, resamples=200)
        alone += low <= 1 <= high
        _, low, high = ratio_interval(ratios, load_of, resamples=200)
        together += low <= 1 <= high
    assert alone < 0.7 * 300
    assert together >= 0.95 * 300


def test_the_interval_over_loads_is_students() -> None:
    """Against scipy's, where the blocks of a load are all alike and loads lie far apart."""
    from scipy.stats import t as student

    rng = np.random.default_rng(5)
    loads = 0.1 * rng.standard_normal(5)
    middle, low, high = ratio_interval(np.exp(np.tile(loads, 40)), np.tile(np.arange(5), 40))
    expected = student.interval(0.95, 4, loads.mean(), loads.std(ddof=1) / np.sqrt(5))
    assert np.log([middle, low, high]) == pytest.approx([loads.mean(), *expected])
    values = np.exp(rng.standard_normal(20))
    assert ratio_interval(values, np.full(20, 3)) == (np.median(values), *median_interval(values))


def test_loads_of_blocks() -> None:
    both = Samples("a", (((1.0,),),) * 5, 2), Samples("b", tuple(((x,),) for x in (1.0, 4.0, 1.0, 4.0, 1.0)), 2)
    assert both[0].load_of.tolist() == [0, 1, 0, 1, 0]
    found = compare(*both, keep_all=True)
    assert found.load_ratios == (1.0, 4.0)
    assert found.ratio == pytest.approx(2.0)
    with pytest.raises(UsageError, match="5 blocks of 2 loads and 5 blocks of 1 loads"):
        compare(both[0], Samples("b", both[1].blocks))
    with pytest.raises(UsageError, match="loaded 0 times"):
        Samples("a", both[0].blocks, 0)


def test_calm_blocks() -> None:
    quiet = np.linspace(1.0, 1.03, 20)
    assert calm_blocks(quiet, 2 * quiet).all()
    busy = np.arange(20) % 2 == 1
    assert (calm_blocks(np.where(busy, 1.2, 1.0), np.where(busy, 3.15, 3.0)) == ~busy).all()
    # who is the slow one does not matter, and where hardly any block is calm the calmest are taken
    assert (calm_blocks(np.where(busy, 3.15, 3.0), np.where(busy, 1.2, 1.0)) == ~busy).all()
    falling = np.linspace(2.0, 1.0, 40)
    assert (calm_blocks(falling, falling) == (np.arange(40) >= 32)).all()
    assert calm_blocks(falling, falling, noise=0.5).all()
    assert calm_blocks(np.array([1.0, 2.0, 9.0])).all()


def test_a_slow_load_is_not_a_busy_one() -> None:
    """Where each load has blocks enough; the busy ones of either are left out."""
    load_of, busy = np.arange(24) % 2, np.arange(24) % 3 == 0
    times = np.where(load_of == 1, 1.3, 1.0) * np.where(busy, 1.2, 1.0)
    assert (calm_blocks(times, times, load_of=load_of) == ~busy).all()
    assert (calm_blocks(times, times) == (~busy & (load_of == 0))).all()
    few = calm_blocks(times[:10], times[:10], load_of=load_of[:10])
    assert (few == calm_blocks(times[:10], times[:10])).all()


def test_all_blocks_count_where_they_are_to() -> None:
    times = [1.0] * 10 + [1.4] * 20
    base, other = Samples.of("a", times), Samples.of("b", [2.0] * 10 + [2.1] * 20)
    calm, everything = compare(base, other), compare(base, other, keep_all=True)
    assert (calm.ratio, calm.blocks, calm.calm) == (2.0, 30, 10)
    assert (everything.blocks, everything.calm) == (30, 30)
    assert everything.ratio == pytest.approx(1.5)


def test_when_measuring_goes_on() -> None:
    """While fewer blocks are calm than were planned, and patience lasts; of several pairs the less calm one tells."""
    busy = np.arange(30) % 3 == 0
    base = Samples.of("a", np.where(busy, 1.2, 1.0))
    calm, other = Samples.of("b", np.where(busy, 1.7, 2.0)), Samples.of("c", np.where(busy, 3.6, 3.0))
    assert fewest_calm([base]) == fewest_calm([base, calm]) == 30
    assert fewest_calm([base, calm, other]) == 20
    assert [goes_on([base, other], planned, 3) for planned in (10, 20, 21, 30)] == [False, False, True, True]
    assert [goes_on([base, other], 25, patience) for patience in (1, 1.2, 1.21)] == [False, False, True]
    assert not goes_on([base, calm], 30, 3)


def test_swings_of_blocks() -> None:
    blocks = (((1.0, 9.0, 1.0), (2.0,)), ((3.0,),))
    assert Samples("a", blocks).block_swings == pytest.approx([np.log(2), 0.0])


def test_sequential_timing_misses_where_pairs_hold() -> None:
    """What the pairs are for: one contender after the other, under throttling, is wrong by the throttling."""
    rng = np.random.default_rng(3)
    before, after = (np.exp(0.05 * rng.standard_normal(100)) * slow for slow in (1.0, 1.5))
    assert abs(np.median(TRUE_RATIO * after) / np.median(before) - TRUE_RATIO) > 0.5
    assert abs(np.median(simulated_ratios("throttling")[0]) - TRUE_RATIO) < 0.05


@pytest.mark.parametrize("count", [6, 8, 20, 60])
def test_the_interval_holds_with_neighbours_alike(count: int) -> None:
    """Blocks of which each resembles the last (autocorrelation 0.3): the plain bootstrap covers 82 to 88 % here."""
    rng = np.random.default_rng(count)
    noise = rng.standard_normal((SIMULATIONS, count))
    noise[:, 0] /= np.sqrt(1 - 0.3**2)
    for index in range(1, count):
        noise[:, index] += 0.3 * noise[:, index - 1]
    hits = 0
    for ratios in np.exp(0.05 * noise):
        low, high = median_interval(ratios, resamples=200)
        hits += low <= 1 <= high
    assert hits >= 0.915 * SIMULATIONS


@pytest.mark.parametrize("count", [6, 9, 25, 100])
def test_order_statistics_against_the_binomial(count: int) -> None:
    """The interval of a series without ties holds the order statistics that scipy's binomial names."""
    from scipy.stats import binom

    values = np.random.default_rng(count).permutation(np.arange(1.0, count + 1))
    k = max(k for k in range(count) if k == 0 or binom.cdf(k - 1, count, 0.5) <= 0.025)
    low, high = median_interval(values)
    assert low <= k
    assert high >= count + 1 - k


def test_persistence_is_the_autocorrelation() -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(5000)
    chain = np.zeros(5000)
    for index in range(1, 5000):
        chain[index] = 0.5 * chain[index - 1] + noise[index]
    assert persistence(noise) < 0.05
    assert persistence(chain) == pytest.approx(0.5, abs=0.05)
    assert persistence(-np.cos(np.pi * np.arange(50))) == 0.0
    assert persistence(np.ones(10)) == 0.0
    assert persistence(np.arange(100.0)) == 0.9


def test_two_series_that_were_not_paired() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(300):
        before, after = np.exp(0.03 * rng.standard_normal((2, 40)))
        ratio, low, high = contrast(before, 1.1 * after, resamples=200, seed=seed)
        assert low < ratio < high
        hits += low <= 1.1 <= high
    assert hits >= 0.95 * 300
    assert contrast(np.array([2.0]), np.array([3.0])) == (1.5, 1.5, 1.5)


def test_percentiles_of_the_runs() -> None:
    found = quantiles(Samples.of("a", np.linspace(1.0, 2.0, 1001)[::-1]))
    assert len(found) == 101
    np.testing.assert_allclose(found, np.linspace(1, 2, 101))


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
