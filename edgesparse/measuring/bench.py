"""The measuring protocol: warm-up until times settle, then short blocks of all contenders in alternation.

A contender is anything with a name that can run once and say how many seconds that took. All are timed in
one process, on the same cores, forth and back (A B C C B A), a few runs at each turn. The first run of a
turn is not counted: the caches still hold another contender's weights. Nor is a run during which the
system gave the core to somebody else: it would tell of them, and hit long runs harder than short ones. Where
hardly a run of a contender is left alone, its processor time counts, which does not run while others do.
Where they can be made again, the blocks go through several loads of all contenders in turn (see `loads`).
Where the machine was not calm, the blocks go on until as many are calm as were planned, or patience ends: what stops
them is the time that contenders take together, never their ratio.
`stats` turns the timings into statements.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from edgesparse.errors import UsageError
from edgesparse.measuring.conditions import Cause, Conditions, between, diagnose, look
from edgesparse.measuring.cores import pinned, preemptions
from edgesparse.measuring.loads import close_all, load_again
from edgesparse.measuring.stats import Comparison, Samples, Stats, compare, fewest_calm, goes_on, settled, summarize

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


@runtime_checkable
class Elsewhere(Contender, Protocol):
    """A contender that runs in another process, and so tells itself how often the system interrupted it."""

    def interruptions(self) -> int:
        """Return how often the system has taken a core away from it so far."""
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
    keep_all:
        Whether interrupted runs and blocks that are not calm count as well: what a user would have waited, rather than
        what the code takes.
    percentile:
        The one that reports name first.
    loads:
        How often each contender is loaded, where it can be made again.
    patience:
        Times as many blocks as were planned that are made at most, until that many are calm; 1 for what is planned.
        Nothing goes on where all blocks count.
    """

    seconds: float = 10.0
    runs: int = 100
    warm_up: float = 5.0
    turn: float = 0.05
    limit: float = 120.0
    threads: int = 1
    seed: int = 0
    keep_all: bool = False
    percentile: int = 50
    loads: int = 8
    patience: float = 3.0

    def __post_init__(self) -> None:
        least = min(self.runs, self.threads, self.loads, self.patience)
        if not (0 < self.seconds < math.inf) or not 1 <= least < math.inf:
            raise UsageError(
                "the bench's settings make no sense",
                why=f"seconds {self.seconds}, runs {self.runs}, threads {self.threads}, loads {self.loads}, "
                f"patience {self.patience}",
                fix="seconds must be positive, all others at least 1",
            )


QUICK = Plan(seconds=1.0, runs=20, warm_up=1.0, loads=4)
"""For a first look: shows large differences only."""

MLPERF = Plan(seconds=60.0, runs=1024, limit=3600.0, keep_all=True, percentile=90)
"""As long as MLPerf Inference's single-stream scenario asks for, and its percentile; every run counts."""

MIN_TURN_RUNS, MAX_TURN_RUNS = 3, 1000
"""Bounds of the runs in a turn."""

_WATCH = 5.0
"""A fifth of a contender's seconds is spent on finding cores that stay quiet, up to 1 s: who works there in spells
would have some of the blocks, and another part of them each time."""

_PLANNED_PART = 0.9
"""How far progress is when measuring could end, were the machine calm."""

ENOUGH_RUNS = 100_000
"""Runs of every contender after which measuring ends before its seconds are over: a model of microseconds."""


@dataclass(frozen=True)
class Measured:
    """One contender's outcome. `settled` says whether warm-up ended by itself, after `warm_up_runs` runs;
    `disturbed` counts the runs that were left out because the system gave the core to somebody else
    meanwhile, `interrupted` those that had to be kept although it did.
    """

    samples: Samples
    stats: Stats
    load_seconds: float
    first_seconds: float
    settled: bool
    warm_up_runs: int
    disturbed: int = 0
    interrupted: int = 0

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
    """All contenders, and the first one's speedup over each of the others.

    After `planned` blocks each had its seconds and runs, or the limit came; what is beyond was made for want of calm.
    """

    plan: Plan
    measured: tuple[Measured, ...]
    comparisons: tuple[Comparison, ...]
    cores: tuple[int, ...] = ()
    notes: tuple[str, ...] = field(default=())
    conditions: Conditions = field(default=Conditions())
    planned: int = 0

    def __getitem__(self, name: str) -> Measured:
        return next(item for item in self.measured if item.name == name)

    @property
    def causes(self) -> tuple[Cause, ...]:
        """Why times are unstable; empty where none are."""
        if not any(item.unstable for item in self.measured):
            return ()
        left_out = sum(item.disturbed for item in self.measured)
        all_runs = left_out + sum(item.stats.n for item in self.measured)
        share = (left_out + sum(item.interrupted for item in self.measured)) / all_runs
        drifts = [item.stats.drift for item in self.measured]
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return diagnose(drifts, share, self.conditions, threads=self.plan.threads, cores_allowed=allowed)


def measure(
    contenders: Sequence[Contender],
    plan: Plan | None = None,
    *,
    again: Callable[[], Sequence[Contender]] | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Time the contenders against each other; the first is the one the others are compared with.

    Parameters
    ----------
    again:
        Makes all contenders anew, for the further loads that the plan wants; what it makes is closed at the end.
        Without it there is one load.

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
    further: Sequence[Sequence[Contender]] = ()
    scarce: tuple[str, ...] = ()
    with pinned(plan.threads, watch=min(max(0.1, plan.seconds / _WATCH), 1.0)) as cores:
        try:
            first, warm = _warm_up_all(contenders, plan, portion(report, 0.0, 0.05))
            if again is not None:
                further, scarce = load_again(contenders, again, plan.loads, portion(report, 0.05, 0.08))
                _warm_up_further(further, plan, portion(report, 0.08, 0.1))
            before = look(cores)
            samples, counts, planned, notes = _blocks([contenders, *further], plan, warm, portion(report, 0.1, 1.0))
            elsewhere = any(isinstance(item, Elsewhere) for item in contenders)
            own = not elsewhere and bool(cores)
            seen = between(before, look(cores), len(cores) or (os.cpu_count() or 1), own=own)
        finally:
            close_all(further)
    measured = [
        Measured(
            samples[item.name],
            summarize(samples[item.name]),
            item.load_seconds,
            first[item.name],
            settled(warm[item.name]),
            len(warm[item.name]) + 1,
            counts[item.name].disturbed,
            counts[item.name].interrupted,
        )
        for item in contenders
    ]
    return conclude(plan, measured, planned=planned, cores=cores, notes=(*scarce, *notes), conditions=seen)


def conclude(
    plan: Plan,
    measured: Sequence[Measured],
    *,
    planned: int | None = None,
    cores: tuple[int, ...] = (),
    notes: tuple[str, ...] = (),
    conditions: Conditions | None = None,
) -> Outcome:
    """Return the outcome of contenders that were timed in the same blocks, here or elsewhere; the first is the base.

    After `planned` blocks (all of them) it would have ended on a calm machine; a note says where it went on.
    """
    first, *others = measured
    made = len(first.samples.blocks)
    planned = planned or made
    if made > planned:
        calm = fewest_calm([item.samples for item in measured])
        longer = f"measured {made / planned:.1f} times as long as planned"
        notes = (*notes, f"{longer}, for want of calm: {calm} of {made} blocks were calm, {planned} were planned")
    comparisons = tuple(compare(first.samples, item.samples, seed=plan.seed, keep_all=plan.keep_all) for item in others)
    return Outcome(plan, tuple(measured), comparisons, cores, notes, conditions or Conditions(), planned)


def portion(progress: Progress, low: float, high: float) -> Progress:
    """Return what tells the progress of a part that lasts from `low` to `high` of the whole."""
    return lambda share, text: progress(low + (high - low) * min(max(share, 0.0), 1.0), text)


def _warm_up_all(
    contenders: Sequence[Contender], plan: Plan, report: Progress
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Return each contender's first time, and the times of its runs until they settled."""
    first, warm = {}, {}
    for index, item in enumerate(contenders):
        report(index / len(contenders), f"warming up {item.name}")
        first[item.name] = item.run_once()
        warm[item.name] = _settling(item, plan.warm_up - first[item.name]) or [item.run_once()]
    return first, warm


def _warm_up_further(loads: Sequence[Sequence[Contender]], plan: Plan, report: Progress) -> None:
    """Run what was loaded again until its times settle, for as long in all as the first load may take at most."""
    for index, contenders in enumerate(loads):
        report(index / len(loads), "warming up further loads")
        for item in contenders:
            _settling(item, plan.warm_up / len(loads))


def _settling(item: Contender, seconds: float) -> list[float]:
    """Run until times settle, or they come to so many seconds; returns them."""
    times: list[float] = []
    spent = 0.0
    while spent < seconds and not settled(times):
        times.append(item.run_once())
        spent += times[-1]
    return times


def _blocks(
    loads: Sequence[Sequence[Contender]], plan: Plan, warm: dict[str, list[float]], report: Progress
) -> tuple[dict[str, Samples], dict[str, _Counts], int, tuple[str, ...]]:
    """Run blocks, on one load after the other, until all have their runs and seconds, or one reaches the limit; then
    whole rounds of loads until as many are calm. The number is that of the blocks that were planned.
    """
    turn_runs = {name: _turn_runs(times, plan) for name, times in warm.items()}
    blocks: dict[str, list[tuple[tuple[float, ...], ...]]] = {item.name: [] for item in loads[0]}
    spent = dict.fromkeys(blocks, 0.0)
    runs = dict.fromkeys(blocks, 0)
    counts = {name: _Counts() for name in blocks}
    notes: tuple[str, ...] = ()
    patience = 1.0 if plan.keep_all or len(blocks) < 2 else plan.patience
    planned = 0

    def samples() -> dict[str, Samples]:
        return {name: Samples(name, tuple(turns), len(loads)) for name, turns in blocks.items()}

    for number in itertools.count():
        contenders = in_order(loads, number)
        block: dict[str, list[tuple[float, ...]]] = {name: [] for name in blocks}
        for item in [*contenders, *reversed(contenders)]:
            block[item.name].append(_turn(item, turn_runs[item.name], plan, counts[item.name]))
        for name, turns in block.items():
            blocks[name].append(tuple(turns))
            spent[name] += sum(map(sum, turns))
            runs[name] += sum(map(len, turns))
        share = min(min(spent[name] / plan.seconds, runs[name] / plan.runs) for name in blocks)
        done, late = number + 1, max(spent.values()) >= plan.limit
        if not planned:
            report(_PLANNED_PART * min(share, 1.0), "measuring in alternation")
            if share < 1 and min(runs.values()) >= ENOUGH_RUNS:
                notes = (f"ended after {ENOUGH_RUNS} runs each",)
                break
            if share < 1 and late:
                notes = (f"ended after {plan.limit:g} s of one contender, with {min(runs.values())} runs each",)
                break
            planned = done if share >= 1 else 0
        if planned and (done == planned or done % len(loads) == 0):
            if late or not goes_on(list(samples().values()), planned, patience):
                break
            gone = (done / planned - 1) / (patience - 1)
            report(_PLANNED_PART + (1 - _PLANNED_PART) * gone, "measuring on until more blocks are calm")
    report(1.0, "measuring in alternation")
    return samples(), counts, planned or done, notes


def in_order(loads: Sequence[Sequence[Contender]], block: int) -> list[Contender]:
    """Return the contenders of a block, in the order in which they have their first turns.

    Who turns round in the middle of a block finds the caches as it left them; everybody else comes after another
    contender, or after another load of itself. So with several loads each contender is the last in as many blocks.
    """
    contenders = list(loads[block % len(loads)])
    if len(loads) == 1:  # who begins a block has ended the one before, and is as well off
        return contenders
    turned = (block % len(loads) + block // len(loads)) % len(contenders)
    return contenders[turned:] + contenders[:turned]


@dataclass
class _Counts:
    """Runs that were left out, and interrupted ones that were kept."""

    disturbed: int = 0
    interrupted: int = 0


def _turn(item: Contender, count: int, plan: Plan, counts: _Counts) -> tuple[float, ...]:
    """Return the times of `count` undisturbed runs.

    Where nearly all runs are disturbed (longer than the system's time slices), they are kept: at their processor time
    where one thread of this process did the work, else (or if all are to count) as they are.
    """
    item.run_once()  # the caches hold another contender's weights
    if plan.keep_all:
        return tuple(item.run_once() for _ in range(count))
    elsewhere = isinstance(item, Elsewhere)
    interruptions = item.interruptions if isinstance(item, Elsewhere) else lambda: preemptions(plan.threads)
    good: list[float] = []
    bad: list[float] = []
    while len(good) < count and len(bad) < 2 * count:
        before, spent = interruptions(), time.process_time_ns()
        seconds = item.run_once()
        spent = time.process_time_ns() - spent
        if interruptions() == before:
            good.append(seconds)
        else:
            told = elsewhere or plan.threads > 1 or spent <= 0  # the processor's clock may stand still for a short run
            bad.append(seconds if told else min(seconds, spent / 1e9))
    if len(good) < MIN_TURN_RUNS:
        counts.interrupted += len(bad)
        return tuple(good + bad)
    counts.disturbed += len(bad)
    return tuple(good)


def _turn_runs(times: Sequence[float], plan: Plan) -> int:
    typical = sorted(times)[len(times) // 2]
    return min(max(MIN_TURN_RUNS, math.ceil(plan.turn / typical)), MAX_TURN_RUNS)
