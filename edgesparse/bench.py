"""The measuring protocol: warm-up until times settle, then short blocks of all contenders in alternation.

A contender is anything with a name that can run once and say how many seconds that took. All are timed in
one process, on the same cores, forth and back (A B C C B A), a few runs at each turn. The first run of a
turn is not counted: the caches still hold another contender's weights. Nor is a run during which the
system gave the core to somebody else: it would tell of them, and hit long runs harder than short ones.
`stats` turns the timings into statements.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from edgesparse.errors import UsageError
from edgesparse.stats import Comparison, Samples, Stats, compare, settled, summarize

Progress = Callable[[float, str], None]
"""Told the share done (0 to 1) and what is being done."""


class Contender(Protocol):
    """One of those that are compared.

    Attributes
    ----------
    name:
        What reports call it.
    load_seconds:
        What creating it took: session or mapping, before the first run.
    """

    @property
    def name(self) -> str: ...

    @property
    def load_seconds(self) -> float: ...

    def run_once(self) -> float:
        """Run the model once and return the seconds it took."""
        ...


@dataclass(frozen=True)
class Plan:
    """How long and how often to measure.

    Attributes
    ----------
    seconds, runs:
        Each contender is timed for at least so long and so often.
    warm_up:
        Seconds after which warm-up ends even if times have not settled.
    turn:
        Seconds that one turn of a contender should last: short against drift, long against the switch.
    limit:
        Seconds of timed runs per contender after which measuring ends, whatever is missing.
    threads:
        Threads of every contender, and cores they are pinned to.
    seed:
        Of the bootstrap.
    """

    seconds: float = 10.0
    runs: int = 100
    warm_up: float = 5.0
    turn: float = 0.05
    limit: float = 120.0
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.seconds < math.inf) or self.runs < 1 or self.threads < 1:
            raise UsageError(
                "the bench's settings make no sense",
                why=f"seconds {self.seconds}, runs {self.runs}, threads {self.threads}",
                fix="all of them must be positive",
            )


QUICK = Plan(seconds=1.0, runs=20, warm_up=1.0)
"""For a first look: shows large differences only."""

MIN_TURN_RUNS, MAX_TURN_RUNS = 3, 1000
"""Bounds of the runs in a turn."""

ENOUGH_RUNS = 100_000
"""Runs of every contender after which measuring ends before its seconds are over: a model of microseconds."""


@dataclass(frozen=True)
class Measured:
    """One contender's outcome. `settled` says whether warm-up ended by itself, after `warm_up_runs` runs;
    `disturbed` counts the runs that were left out because the system gave the core to somebody else
    meanwhile.
    """

    samples: Samples
    stats: Stats
    load_seconds: float
    first_seconds: float
    settled: bool
    warm_up_runs: int
    disturbed: int = 0

    @property
    def name(self) -> str:
        return self.samples.name

    @property
    def unstable(self) -> tuple[str, ...]:
        """Why its timings should not be trusted; empty if they may be."""
        cause = () if self.settled else ("warm-up: times had not settled when measuring began",)
        return (*cause, *self.stats.unstable)


@dataclass(frozen=True)
class Outcome:
    """All contenders, and the first one's speedup over each of the others."""

    plan: Plan
    measured: tuple[Measured, ...]
    comparisons: tuple[Comparison, ...]
    cores: tuple[int, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __getitem__(self, name: str) -> Measured:
        return next(item for item in self.measured if item.name == name)


def measure(contenders: Sequence[Contender], plan: Plan | None = None, *, progress: Progress | None = None) -> Outcome:
    """Time the contenders against each other; the first is the one the others are compared with.

    Raises
    ------
    UsageError
        If there is no contender, or two have the same name.
    """
    plan = plan or Plan()
    names = [item.name for item in contenders]
    if not names or len(set(names)) != len(names):
        raise UsageError("the contenders need names of their own", why=f"given: {', '.join(names) or 'none'}")
    report = progress or (lambda share, text: None)
    with pinned(plan.threads) as cores:
        first, warm = _warm_up_all(contenders, plan, report)
        samples, disturbed, notes = _blocks(contenders, plan, warm, report)
    measured = tuple(
        Measured(
            samples[item.name],
            summarize(samples[item.name]),
            item.load_seconds,
            first[item.name],
            settled(warm[item.name]),
            len(warm[item.name]) + 1,
            disturbed[item.name],
        )
        for item in contenders
    )
    base = samples[names[0]]
    comparisons = tuple(compare(base, samples[name], seed=plan.seed) for name in names[1:])
    return Outcome(plan, measured, comparisons, cores, notes)


def _warm_up_all(
    contenders: Sequence[Contender], plan: Plan, report: Progress
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Return each contender's first time, and the times of its runs until they settled."""
    first, warm = {}, {}
    for item in contenders:
        report(0.0, f"warming up {item.name}")
        first[item.name] = item.run_once()
        times: list[float] = []
        spent = first[item.name]
        while spent < plan.warm_up and not settled(times):
            times.append(item.run_once())
            spent += times[-1]
        warm[item.name] = times or [item.run_once()]
    return first, warm


def _blocks(
    contenders: Sequence[Contender], plan: Plan, warm: dict[str, list[float]], report: Progress
) -> tuple[dict[str, Samples], dict[str, int], tuple[str, ...]]:
    """Run blocks until every contender has its runs and seconds, or one reaches the limit."""
    turn_runs = {name: _turn_runs(times, plan) for name, times in warm.items()}
    blocks: dict[str, list[tuple[tuple[float, ...], ...]]] = {item.name: [] for item in contenders}
    spent = dict.fromkeys(blocks, 0.0)
    runs = dict.fromkeys(blocks, 0)
    disturbed = dict.fromkeys(blocks, 0)
    notes: tuple[str, ...] = ()
    while True:
        block: dict[str, list[tuple[float, ...]]] = {name: [] for name in blocks}
        for item in [*contenders, *reversed(contenders)]:
            times, left_out = _turn(item, turn_runs[item.name], plan.threads)
            block[item.name].append(times)
            disturbed[item.name] += left_out
        for name, turns in block.items():
            blocks[name].append(tuple(turns))
            spent[name] += sum(map(sum, turns))
            runs[name] += sum(map(len, turns))
        share = min(min(spent[name] / plan.seconds, runs[name] / plan.runs) for name in blocks)
        report(min(share, 1.0), "measuring in alternation")
        if share >= 1:
            break
        if min(runs.values()) >= ENOUGH_RUNS:
            notes = (f"ended after {ENOUGH_RUNS} runs each",)
            report(1.0, "measuring in alternation")
            break
        if max(spent.values()) >= plan.limit:
            notes = (f"ended after {plan.limit:g} s of one contender, with {min(runs.values())} runs each",)
            break
    return {name: Samples(name, tuple(turns)) for name, turns in blocks.items()}, disturbed, notes


def _turn(item: Contender, count: int, threads: int) -> tuple[tuple[float, ...], int]:
    """Return the times of `count` undisturbed runs, and how many disturbed ones were left out.

    Where nearly all runs are disturbed (longer than the system's time slices) they are kept as they are.
    """
    item.run_once()  # the caches hold another contender's weights
    good: list[float] = []
    bad: list[float] = []
    while len(good) < count and len(bad) < 2 * count:
        before = _preemptions(threads)
        seconds = item.run_once()
        (bad if _preemptions(threads) != before else good).append(seconds)
    if len(good) < MIN_TURN_RUNS:
        return tuple(good + bad), 0
    return tuple(good), len(bad)


def _preemptions(threads: int) -> int:
    """Return how often the system has taken a core away from this thread (of all threads, if runs
    use several).
    """
    who = resource.RUSAGE_THREAD if threads == 1 else resource.RUSAGE_SELF
    return resource.getrusage(who).ru_nivcsw


def _turn_runs(times: Sequence[float], plan: Plan) -> int:
    typical = sorted(times)[len(times) // 2]
    return min(max(MIN_TURN_RUNS, math.ceil(plan.turn / typical)), MAX_TURN_RUNS)


@contextlib.contextmanager
def pinned(count: int) -> Iterator[tuple[int, ...]]:
    """Keep this process on its `count` quietest cores; yields them, or () where the system does not pin.

    Threads that are made inside inherit the cores. With fewer cores than wanted, all of them are taken.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield ()
        return
    before = os.sched_getaffinity(0)
    cores = quietest_cores(before, count)
    try:
        os.sched_setaffinity(0, cores)
    except OSError:
        yield ()
        return
    try:
        yield cores
    finally:
        os.sched_setaffinity(0, before)


def quietest_cores(allowed: set[int], count: int, *, watch: float = 0.1) -> tuple[int, ...]:
    """Return up to `count` of the allowed cores: those that were least busy during `watch` seconds."""
    before = _busy_ticks()
    if before and count < len(allowed):
        time.sleep(watch)
    after = _busy_ticks()
    busy = {core: after.get(core, 0) - before.get(core, 0) for core in allowed}
    # of equally quiet cores the last: the system's own work prefers the first
    return tuple(sorted(sorted(allowed, key=lambda core: (busy[core], -core))[:count]))


def _busy_ticks(path: str = "/proc/stat") -> dict[int, int]:
    """Return how long each core has been busy, in ticks; {} where the system does not tell."""
    ticks = {}
    with contextlib.suppress(OSError, ValueError):
        for line in Path(path).read_text(encoding="ascii").splitlines():
            name, *values = line.split()
            if name.startswith("cpu") and name != "cpu":
                user, nice, system, _idle, _wait, *rest = map(int, values)
                ticks[int(name[3:])] = user + nice + system + sum(rest)
    return ticks
