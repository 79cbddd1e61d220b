"""The measuring protocol, on contenders with a simulated clock."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesparse import environment
from edgesparse.errors import EdgesparseError, UsageError
from edgesparse.measuring import bench, cores, loads
from edgesparse.measuring.bench import MLPERF, QUICK, Plan, measure, portion
from edgesparse.measuring.conditions import Look
from edgesparse.measuring.cores import pinned, quietest_cores


class Fake:
    """A contender that takes `seconds` of simulated time, three times as long at first, and logs
    its turns.
    """

    load_seconds = 0.25

    def __init__(self, name: str, seconds: float, log: list[str], *, never_settles: bool = False) -> None:
        self.name, self.seconds, self.log, self.never_settles = name, seconds, log, never_settles
        self.calls = 0
        self.rng = np.random.default_rng(len(name))

    def run_once(self) -> float:
        self.calls += 1
        self.log.append(self.name)
        if self.never_settles:
            return self.seconds * self.calls
        warm = 1 + 2 * float(np.exp(-(self.calls - 1) / 6))
        return self.seconds * warm * float(np.exp(0.01 * self.rng.standard_normal()))


def turns(log: list[str]) -> str:
    return "".join(name for i, name in enumerate(log) if i == 0 or log[i - 1] != name)


def test_blocks_go_forth_and_back_after_warm_up() -> None:
    log: list[str] = []
    contenders = [Fake("a", 1e-3, log), Fake("b", 2e-3, log), Fake("c", 5e-3, log)]
    outcome = measure(contenders, Plan(seconds=0.5, runs=100))
    assert turns(log).startswith("abc" + "abcba" + "bcba" * 3)
    assert [item.name for item in outcome.measured] == ["a", "b", "c"]
    by_name = {item.other: item for item in outcome.comparisons}
    assert by_name["b"].ratio == pytest.approx(2.0, rel=0.02)
    assert by_name["c"].ratio == pytest.approx(5.0, rel=0.02)
    for item in outcome.measured:
        assert item.stats.n >= 100
        assert sum(item.samples.flat) >= 0.5
        assert item.settled
        assert item.first_seconds == pytest.approx(3 * item.stats.p50, rel=0.1)
        assert item.load_seconds == 0.25
        assert item.warm_up_runs > 20
        assert max(item.samples.flat) < 2 * item.stats.p50, "warm-up must not be in the samples"
    assert outcome["b"].stats.p50 == pytest.approx(2e-3, rel=0.02)


def test_a_slow_contender_ends_at_the_limit() -> None:
    log: list[str] = []
    outcome = measure([Fake("a", 1.0, log), Fake("b", 2.0, log)], Plan(limit=20.0, warm_up=3.0))
    assert "ended after 20 s" in outcome.notes[0]
    assert outcome["a"].stats.n < 100


def test_a_model_of_microseconds_ends_after_enough_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "ENOUGH_RUNS", 5000)
    outcome = measure([Fake("a", 1e-7, [])], Plan(warm_up=1e-4))
    assert outcome.notes == ("ended after 5000 runs each",)
    assert 5000 <= outcome["a"].stats.n <= 5000 + 2 * bench.MAX_TURN_RUNS


def test_disturbed_runs_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    switches = 0

    class Disturbed(Fake):
        def run_once(self) -> float:
            nonlocal switches
            seconds = super().run_once()
            if self.calls % 3 == 0:
                switches += 1
                return 9 * seconds
            return seconds

    monkeypatch.setattr(bench, "preemptions", lambda _threads: switches)
    outcome = measure([Disturbed("a", 1e-3, [])], Plan(seconds=0.1, runs=50))
    assert outcome["a"].stats.p99 < 1.5e-3
    assert outcome["a"].disturbed > 10


def test_where_every_run_is_disturbed_all_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = iter(range(10**9))
    monkeypatch.setattr(bench, "preemptions", lambda _threads: next(counter))
    outcome = measure([Fake("a", 1e-3, [])], Plan(seconds=0.1, runs=50))
    assert (outcome["a"].disturbed, outcome["a"].stats.n >= 50) == (0, True)
    assert outcome["a"].interrupted == outcome["a"].stats.n


def test_interrupted_runs_count_by_the_processors_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long model under load: the clock on the wall says three times what its code takes."""
    counter, spent = iter(range(10**9)), 0

    class Long(Fake):
        def run_once(self) -> float:
            nonlocal spent
            spent += 10_000_000
            return 3 * super().run_once()

    monkeypatch.setattr(bench, "preemptions", lambda _threads: next(counter))
    monkeypatch.setattr(bench.time, "process_time_ns", lambda: spent)
    assert measure([Long("a", 0.01, [])], Plan(seconds=0.5, runs=20))["a"].stats.p50 == 0.01
    two = measure([Long("a", 0.01, [])], Plan(seconds=0.5, runs=20, threads=2))
    assert two["a"].stats.p50 == pytest.approx(0.03, rel=0.05), "several threads: their sum would say nothing"


def test_by_mlperfs_rule_every_run_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = iter(range(10**9))
    monkeypatch.setattr(bench, "preemptions", lambda _threads: next(counter))
    assert (MLPERF.seconds, MLPERF.runs, MLPERF.percentile) == (60.0, 1024, 90)
    log: list[str] = []
    found = measure([Fake("a", 0.1, log), Fake("b", 0.02, log)], MLPERF)
    for item in found.measured:
        assert item.stats.n >= 1024
        assert item.samples.flat.sum() >= 60
        assert item.disturbed == 0
    assert found.notes == ()


def test_a_contender_elsewhere_tells_its_own_interruptions() -> None:
    class Remote(Fake):
        def interruptions(self) -> int:
            return self.calls // 4

    outcome = measure([Remote("a", 1e-3, []), Fake("b", 1e-3, [])], Plan(seconds=0.1, runs=50))
    assert outcome["a"].disturbed > 10
    assert outcome.conditions.others_share is None, "what another process takes cannot be told from other work"


@pytest.mark.parametrize(
    ("before", "after", "cause"),
    [
        ({"frequency_mhz": 2400.0}, {"frequency_mhz": 1600.0}, "throttling"),
        ({"temperature_c": 60.0}, {"temperature_c": 91.0}, "throttling"),
        ({}, {}, "throttling"),
        ({"frequency_mhz": 2400.0}, {"frequency_mhz": 2400.0}, "unknown"),
        ({"frequency_mhz": 2400.0}, {"frequency_mhz": 2400.0, "governor": "schedutil"}, "governor"),
        ({"busy": 0.0}, {"busy": 5.0, "own": 5.0, "frequency_mhz": 2400.0}, "unknown"),
        ({"busy": 0.0}, {"busy": 5.0, "own": 2.5}, "load"),
        ({"stolen": 1.0}, {"stolen": 3.0}, "load"),
    ],
)
def test_a_clock_that_slows_down_is_unstable_with_its_cause(
    before: dict[str, Any], after: dict[str, Any], cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slowing(Fake):
        def run_once(self) -> float:
            return super().run_once() * (1.3 if len(self.log) > 400 else 1.0)

    looks = iter([Look(0.0, **before), Look(5.0, **after)])
    monkeypatch.setattr(bench, "look", lambda _cores: next(looks))
    log: list[str] = []
    outcome = measure([Slowing("a", 1e-3, log), Slowing("b", 2e-3, log)], Plan(seconds=0.6, runs=100))
    assert all(any(text.startswith("drift") for text in item.unstable) for item in outcome.measured)
    assert [found.code for found in outcome.causes] == [cause]
    assert outcome.comparisons[0].ratio == pytest.approx(2.0, rel=0.02), "the pairs do not mind"


def test_a_steady_clock_needs_no_cause() -> None:
    assert measure([Fake("a", 1e-3, [])], Plan(seconds=0.2, runs=50)).causes == ()


def test_portions_of_progress() -> None:
    told: list[tuple[float, str]] = []
    tell = portion(lambda share, text: told.append((share, text)), 0.2, 0.6)
    for share in (-1.0, 0.0, 0.5, 2.0):
        tell(share, "x")
    assert told == [(pytest.approx(share), "x") for share in (0.2, 0.2, 0.4, 0.6)]


def test_this_system_counts_preemptions() -> None:
    assert cores.preemptions(1) >= 0
    assert cores.preemptions(2) >= 0
    assert cores.preemptions_of(os.getpid()) >= 0
    assert cores.preemptions_of(2**22 + 1) == 0


def test_times_that_never_settle_are_called_unstable() -> None:
    outcome = measure([Fake("a", 1e-4, [], never_settles=True)], Plan(seconds=0.2, runs=20, warm_up=0.1))
    assert not outcome["a"].settled
    assert outcome["a"].unstable[0].startswith("warm-up")


class Neighboured(Fake):
    """Slower by `share` through the part `busy` of every second of the time that all of them spend."""

    now = 0.0

    def __init__(self, name: str, seconds: float, share: float, busy: float) -> None:
        super().__init__(name, seconds, [])
        self.share, self.busy = share, busy

    def run_once(self) -> float:
        seconds = super().run_once() * (1 + self.share * (Neighboured.now % 1 < self.busy))
        Neighboured.now += seconds
        return seconds


@pytest.mark.parametrize("loads", [1, 4])
def test_measuring_goes_on_until_enough_blocks_are_calm(loads: int) -> None:
    def load(busy: float = 0.5) -> list[Neighboured]:
        return [Neighboured("a", 1e-3, 0.16, busy), Neighboured("b", 6e-3, 0.05, busy)]

    Neighboured.now = 0.0
    plan = Plan(seconds=1, runs=20, warm_up=0.1, turn=0.01, loads=loads)
    found = measure(load(), plan, again=load)
    [ratio] = found.comparisons
    assert ratio.calm >= found.planned > 20
    assert ratio.blocks % loads == 0, "whole rounds"
    assert 1.5 * found.planned < ratio.blocks < 3 * found.planned
    assert ratio.ratio == pytest.approx(6.0, rel=0.01)
    [note] = found.notes
    assert f"for want of calm: {ratio.calm} of {ratio.blocks} blocks were calm, {found.planned} were planned" in note
    # as planned: no patience, every block counts, nothing to compare, or hardly a calm moment
    for other in (replace(plan, patience=1), replace(plan, keep_all=True)):
        found = measure(load(), other, again=load)
        assert (found.comparisons[0].blocks, found.notes) == (found.planned, ())
    alone = measure(load()[:1], plan, again=lambda: load()[:1])
    assert (len(alone["a"].samples.blocks), alone.notes) == (alone.planned, ())
    disturbed = measure(load(0.8), plan, again=lambda: load(0.8))
    assert 0 <= disturbed.comparisons[0].blocks - 3 * disturbed.planned < loads
    assert disturbed.comparisons[0].calm < disturbed.planned
    assert "measured 3.0 times as long as planned" in disturbed.notes[0]


def test_a_limit_ends_patience() -> None:
    Neighboured.now = 0.0
    plan = Plan(seconds=1, runs=20, warm_up=0.1, turn=0.01, limit=2.5)
    found = measure([Neighboured("a", 1e-3, 0.16, 0.8), Neighboured("b", 6e-3, 0.05, 0.8)], plan)
    assert 2.5 <= max(item.samples.flat.sum() for item in found.measured) < 2.7
    assert found.planned < found.comparisons[0].blocks < 2 * found.planned


def test_blocks_go_through_several_loads() -> None:
    """Each is made once, warmed up, has its block in every round, and is closed; who comes last changes."""
    log: list[str] = []
    made: list[Loaded] = []

    class Loaded(Fake):
        closed = False

        def close(self) -> None:
            self.closed = True

    def load() -> list[Loaded]:
        number = len(made) // 2
        made.extend(Loaded(name, seconds, log) for name, seconds in (("a", 1e-3), ("b", 2e-3 * (1 + number / 50))))
        return made[-2:]

    plan = Plan(seconds=0.7, runs=100, loads=3, warm_up=0.3)
    outcome = measure(load(), plan, again=load)
    assert len(made) == 6
    assert [each.closed for each in made] == [False, False, True, True, True, True]
    assert all(each.calls > 40 for each in made)
    assert "abba" + "baab" + "abba" + "baab" + "abba" + "baab" in "".join(alternating(log))
    [found] = outcome.comparisons
    assert found.load_ratios == pytest.approx([2.0, 2.04, 2.08], rel=0.005)
    assert found.ratio == pytest.approx((2.0 * 2.04 * 2.08) ** (1 / 3), rel=0.005)
    assert found.low < 2.0
    assert found.high > 2.08
    assert {item.samples.loads for item in outcome.measured} == {3}
    assert {item.samples.loads for item in measure(load(), plan).measured} == {1}


def alternating(log: list[str]) -> list[str]:
    """The turns: 51 or 26 runs are one, twice as many two."""
    found: list[str] = []
    for name, group in itertools.groupby(log):
        count = len(list(group)) / {"a": 51, "b": 26}[name]
        found += [name] * max(round(count), 1)
    return found


@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_contender_turns_as_often(count: int) -> None:
    loads: Any = ["abcd"[:count]] * 8
    orders = [bench.in_order(loads, block) for block in range(8 * 4 * 3)]
    lasts = [order[-1] for order in orders]
    assert {lasts.count(name) for name in loads[0]} == {len(lasts) // count}
    assert len({orders[8 * turn][-1] for turn in range(count)}) == count, "on one load too"
    assert bench.in_order(loads[:1], 5) == list(loads[0])


def test_memory_bounds_the_loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan = Plan(seconds=0.05, runs=20, warm_up=0.01)
    free = iter([0.9, 0.9, 0.2])
    monkeypatch.setattr(loads, "free_memory", lambda: next(free))
    found = measure([Fake("a", 1e-3, [])], plan, again=lambda: [Fake("a", 1e-3, [])])
    assert found.notes == ("3 loads of each instead of 8: memory",)
    assert found["a"].samples.loads == 3
    monkeypatch.setattr(loads, "free_memory", lambda: 1.0)
    taken = itertools.count(0, 600 << 20)
    monkeypatch.setattr(loads, "resident", lambda: next(taken))
    assert measure([Fake("a", 1e-3, [])], plan, again=lambda: [Fake("a", 1e-3, [])])["a"].samples.loads == 2
    monkeypatch.undo()
    told = tmp_path / "meminfo"
    told.write_text("MemTotal:     1000 kB\nMemFree:       100 kB\nMemAvailable:  400 kB\nHugePages_Total:   0\n")
    assert loads.free_memory(told) == 0.4
    assert loads.free_memory(tmp_path / "none") == 1.0
    assert 0 < loads.free_memory() <= 1


def test_a_further_load_that_fails_leaves_none_behind() -> None:
    closed: list[str] = []

    class Loaded(Fake):
        def close(self) -> None:
            closed.append(self.name)

    def load() -> list[Fake]:
        if calls.pop():
            raise EdgesparseError("no more")
        return [Loaded("a", 1e-3, [])]

    calls = [True, False, False]
    with pytest.raises(EdgesparseError, match="no more"):
        measure([Fake("a", 1e-3, [])], again=load)
    assert closed == ["a", "a"]
    with pytest.raises(UsageError, match="has other contenders"):
        measure([Fake("a", 1e-3, [])], again=lambda: [Loaded("b", 1e-3, [])])
    assert closed == ["a", "a", "b"]


def test_progress_rises_to_one() -> None:
    told: list[float] = []
    measure(
        [Fake("a", 1e-3, [])],
        QUICK,
        again=lambda: [Fake("a", 1e-3, [])],
        progress=lambda share, _text: told.append(share),
    )
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_settings_and_names_are_checked() -> None:
    with pytest.raises(UsageError, match="make no sense"):
        Plan(seconds=0)
    with pytest.raises(UsageError, match="names of their own"):
        measure([])
    with pytest.raises(UsageError, match="names of their own"):
        measure([Fake("a", 1.0, []), Fake("a", 1.0, [])])


def test_pinning_is_undone() -> None:
    before = os.sched_getaffinity(0)
    with pinned(1) as taken:
        assert os.sched_getaffinity(0) == set(taken)
        assert len(taken) == 1
    assert os.sched_getaffinity(0) == before


def test_where_the_system_does_not_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    with pinned(1) as taken:
        assert taken == ()


def test_the_quietest_core_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([{0: 100, 1: 500, 2: 7}, {0: 110, 1: 501, 2: 8}])
    monkeypatch.setattr(cores, "busy_ticks", lambda: next(ticks))
    assert quietest_cores({0, 1, 2}, 1, watch=0.0) == (2,)
    monkeypatch.setattr(cores, "busy_ticks", dict)
    assert quietest_cores({0, 1, 2}, 5, watch=0.0) == (0, 1, 2)


def test_ticks_of_this_machine() -> None:
    assert set(cores.busy_ticks()) >= os.sched_getaffinity(0) or not Path("/proc/stat").exists()
    assert cores.busy_ticks("/does/not/exist") == {}


def test_the_environment_is_read_from_files(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": "model name\t: Maker X1\ncpu MHz\t: 2400.5\nflags\t: fpu avx2 fma hypervisor\n"
        "model name\t: other\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
        "sys/class/thermal/thermal_zone0/temp": "45500\n",
        "sys/class/thermal/thermal_zone1/temp": "61000\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = environment.record(tmp_path)
    assert found["cpu"] == "Maker X1"
    assert found["features"] == ["avx2", "fma"]
    assert found["governor"] == "powersave"
    assert found["frequency_mhz"] == 2400.5
    assert found["temperature_c"] == 61.0
    assert found["virtual"] is True
    assert found["tools"]["numpy"] == np.__version__
    (tmp_path / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq").write_text("1800000")
    assert environment.frequency(tmp_path) == 1800.0


def test_an_environment_that_tells_nothing(tmp_path: Path) -> None:
    found = environment.record(tmp_path)
    assert (found["governor"], found["frequency_mhz"], found["temperature_c"]) == (None, None, None)
    assert environment.version("no-such-package") is None


def test_digest(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert environment.sha256(tmp_path / "x").startswith("ba7816bf")
