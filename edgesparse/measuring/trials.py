"""Tuning in place: variants of the whole program, profiled layer by layer on the device that will run it.

`tune` times kernels alone, on this machine. A layer inside its network meets caches as its neighbours leave them, and
another machine has other caches: here every variant is a complete program. First the plans that the cost model puts
close together are run in turn, then, for the plan taken, programs in which every layer runs its first, its second, its
third candidate. A layer's time is the least of all rounds, since noise only adds; rounds go through all variants in
turn, so that a machine that slows down slows all of them. Results are kept, keyed by all that they depend on.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesparse import cache, environment
from edgesparse.artifacts.artifact import Artifact
from edgesparse.building.build import toolchain
from edgesparse.errors import UsageError
from edgesparse.graph.recognise import recognise
from edgesparse.passes.load import data_files
from edgesparse.pipeline import compile_model
from edgesparse.planning.algorithms import split_name
from edgesparse.planning.decide import Choice, Considered, decide
from edgesparse.planning.place import Jobs, Measure, place
from edgesparse.planning.products import Job, Product
from edgesparse.planning.tune import job_key
from edgesparse.portable import fingerprint, prepare
from edgesparse.recipe import Recipe
from edgesparse.runtimes import links
from edgesparse.runtimes.device import DeviceRunner, describe, open_device
from edgesparse.runtimes.local import LocalRunner
from edgesparse.target import Target

#: Plans that are worth a run: within this factor of the best by the cost model, and at most so many.
_CLOSE, _MOST = 1.15, 3
#: Share of the budget for plans, and rounds to make at least.
_FOR_PLANS, _ROUNDS = 0.4, 5

Progress = Callable[[float, str], None]
Profile = Callable[[], Sequence[tuple[str, int]]]


@dataclass(frozen=True)
class Tuned:
    """What measuring found: the plan to take, the candidates' times for `compile_model`, and the plans' seconds."""

    plan: Choice
    measure: Measure
    plans: tuple[tuple[Considered, float], ...]


@dataclass(frozen=True)
class Subject:
    """What is tuned: everything `compile_model` needs but the choices."""

    path: Path
    target: Target
    recipe: Recipe | None = None
    shapes: Mapping[str, tuple[int, ...]] | None = None
    threads: int = 1
    strassen: bool = False


def tune_in_place(
    subject: Subject,
    seconds: float,
    *,
    device: str | None = None,
    asked: Choice | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """Measure plans and candidates for a model.

    Parameters
    ----------
    seconds:
        To spend on measuring; building the variants comes on top.
    device:
        Where to measure, as `devices` names it; None for this machine.
    asked:
        What of the plan is decided already.

    Raises
    ------
    UsageError
        The target's code does not run on this machine and no device is given, or the device is emulated.
    EdgesparseError
        As `compile_model` and the device raise.
    """
    tick = progress or (lambda share, text: None)
    target = subject.target
    machine = _machine(target, device)
    graph = recognise(prepare(subject.path, subject.recipe, subject.shapes))
    decision = decide(graph, target, asked, strips=subject.threads)
    best = decision.considered[0].time if decision.considered else 0.0
    rivals = [each for each in decision.considered if each.time <= best * _CLOSE][:_MOST]
    taken = Considered(decision.plan.depth_first, decision.plan.band_pixels, best)
    with tempfile.TemporaryDirectory(prefix="edgesparse-trials-") as room:
        plans: list[tuple[Considered, float]] = []
        if len(rivals) > 1:
            plans = _measure_plans(subject, machine, device, rivals, Path(room), seconds * _FOR_PLANS, tick)
            taken = plans[0][0]
        choice = Choice(taken.depth_first, taken.band_pixels)
        jobs: dict[str, tuple[Job, list[Product]]] = {}

        def note(found: Jobs) -> Mapping[str, list[float]]:
            jobs.update(found)
            return {}

        layout = decide(graph, target, choice, strips=subject.threads).plan
        place(graph, layout, target, measure=note, strassen=subject.strassen)
        left = seconds * (1 - _FOR_PLANS) if plans else seconds
        times = _measure_candidates(subject, machine, device, choice, jobs, Path(room), left, tick)
    return Tuned(choice, lambda wanted: {name: times[name] for name in wanted if name in times}, tuple(plans))


def _machine(target: Target, device: str | None) -> str:
    """What names the machine in the keys of results. Raises UsageError where nothing can be measured."""
    if device is None:
        if not target.runs_here():
            raise UsageError(
                f"target {target.name} cannot be measured here",
                why="this machine does not run its code",
                fix="name a device with --tune-on, or leave --tune out: the cost model decides",
            )
        return str(environment.record()["cpu"])
    link = links.parse(device)
    with contextlib.closing(link):
        if link.emulated:
            raise UsageError(
                f"{device} cannot be tuned for", why="an emulated device has no times", fix="use a real one"
            )
        return json.dumps(describe(link).record(), sort_keys=True, default=str)


def _measure_plans(
    subject: Subject,
    machine: str,
    device: str | None,
    rivals: Sequence[Considered],
    room: Path,
    seconds: float,
    tick: Progress,
) -> list[tuple[Considered, float]]:
    """Whole-network seconds of plans, best first."""
    model = fingerprint(subject.path, data_files(subject.path))[0]
    recipe = json.dumps(subject.recipe.to_dict(), sort_keys=True) if subject.recipe else ""
    shapes = str(sorted((subject.shapes or {}).items()))
    about = [model, recipe, shapes, str(subject.target), str(subject.threads), machine, toolchain()]
    key = cache.key_of("trial-plans", *about, *(f"{each.depth_first} {each.band_pixels}" for each in rivals))
    known = cache.get(key)
    if known is None:
        made = []
        for index, each in enumerate(rivals):
            tick(0.3 * index / len(rivals), f"building plan {index + 1} of {len(rivals)}")
            options = {"depth_first": each.depth_first, "band_pixels": each.band_pixels}
            made.append(_compiled(subject, room / f"plan{index}", **options))
        tick(0.3, "measuring plans")
        totals = [sum(layers.values()) for layers in _profiles(made, device, seconds)]
        cache.put(key, json.dumps(totals).encode())
    else:
        totals = [float(value) for value in json.loads(known)]
    order = sorted(range(len(rivals)), key=lambda index: totals[index])
    return [(rivals[index], totals[index]) for index in order]


def _measure_candidates(
    subject: Subject,
    machine: str,
    device: str | None,
    choice: Choice,
    jobs: Jobs,
    room: Path,
    seconds: float,
    tick: Progress,
) -> dict[str, list[float]]:
    """Seconds of every candidate of every layer, from programs that run the first, second, .. of all layers."""
    keys = {name: job_key("trial", job, products, subject.target, machine) for name, (job, products) in jobs.items()}
    found = {name: [float(value) for value in json.loads(data)] for name in jobs if (data := cache.get(keys[name]))}
    unknown = {name: job for name, job in jobs.items() if name not in found}
    if not unknown:
        return found
    ranks: dict[str, int] = {}
    for name, (_, products) in unknown.items():
        _, algorithm = split_name(name)
        ranks[algorithm] = max(ranks.get(algorithm, 0), len(products))
    variants = [(algorithm, rank) for algorithm, count in sorted(ranks.items()) for rank in range(count)]
    made = []
    for index, (algorithm, rank) in enumerate(variants):
        tick(0.5 + 0.3 * index / len(variants), f"building variant {index + 1} of {len(variants)}")
        options: dict[str, Any] = {"depth_first": choice.depth_first, "band_pixels": choice.band_pixels}
        options |= {"measure": _take(rank, algorithm), "strassen": subject.strassen}
        made.append(_compiled(subject, room / f"variant{index}", **options))
    tick(0.8, "measuring kernels")
    profiles = dict(zip(variants, _profiles(made, device, seconds), strict=True))
    for name, (_, products) in unknown.items():
        layer, algorithm = split_name(name)
        found[name] = [profiles[algorithm, rank][layer] for rank in range(len(products))]
        cache.put(keys[name], json.dumps(found[name]).encode())
    return found


def _take(rank: int, algorithm: str) -> Measure:
    """Makes every layer run its candidate of this rank, or its last one; by an algorithm, where it can have it."""

    def measure(jobs: Jobs) -> Mapping[str, list[float]]:
        return {
            name: [float(index != min(rank, len(products) - 1)) for index in range(len(products))]
            for name, (_, products) in jobs.items()
            if split_name(name)[1] in ("", algorithm)
        }

    return measure


def _compiled(subject: Subject, output: Path, **options: Any) -> Artifact:
    artifact = compile_model(
        subject.path,
        target=subject.target,
        output=output,
        recipe=subject.recipe,
        shapes=subject.shapes,
        threads=subject.threads,
        **options,
    )
    assert artifact is not None, "only stop_after ends without an artifact"
    return artifact


def _profiles(artifacts: Sequence[Artifact], device: str | None, seconds: float) -> list[dict[str, float]]:
    """The least seconds of every layer, by artifact; rounds in turn until the time is up."""
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(_profiler(artifact, device)) for artifact in artifacts]
        least: list[dict[str, float]] = [{} for _ in runs]
        deadline = time.monotonic() + seconds
        rounds = 0
        while rounds < _ROUNDS or time.monotonic() < deadline:
            for best, run in zip(least, runs, strict=True):
                for name, spent in run():
                    best[name] = min(best.get(name, float("inf")), spent * 1e-9)
            rounds += 1
    return least


@contextlib.contextmanager
def _profiler(artifact: Artifact, device: str | None) -> Iterator[Profile]:
    """A function that runs an artifact once and gives the nanoseconds of its layers."""
    if device is None:
        with LocalRunner(artifact) as runner:
            yield runner.profile
    else:
        with open_device(device, artifact) as opened:
            yield DeviceRunner(opened).profile
