"""How far paired and sequential timing repeat while another process loads a core; and an artifact against itself.

    python benchmarks/repeatability.py ARTIFACT --against DENSE -o out/repeatability.json

Five runs of each of two ways to find the ratio of ARTIFACT to another one, or to onnxruntime on its model, alternating,
while a child process multiplies matrices in spells on the other core. *Paired* is the protocol of `edgesparse bench`;
*sequential* times first one, then the other, each for `--seconds`, with its median by the clock on the wall, as is
usual. All is loaded anew for every run, as by another call of `bench`. Then the A/A test: ARTIFACT against itself, in
twenty runs, without the child. Figures are written after every run, so that a series that is cut short keeps its first.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import click
import numpy as np

from edgesparse import environment
from edgesparse.artifacts.artifact import Artifact, open_artifact
from edgesparse.artifacts.verify import PORTABLE
from edgesparse.measuring.bench import Contender, Outcome, Plan, measure
from edgesparse.measuring.contenders import ArtifactContender, OrtContender
from edgesparse.measuring.cores import pinned, quietest_cores
from edgesparse.measuring.loads import close_all
from edgesparse.measuring.stats import compare

SPELL = 1.5
"""Mean seconds of work, and of rest, of the child."""


def disturb(core: int, seed: int, ready: Event, stop: Event) -> None:
    """Multiply matrices on one core in spells of random length until told to stop."""
    os.sched_setaffinity(0, {core})
    ready.set()
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((700, 700))
    while not stop.is_set():
        end = time.monotonic() + rng.exponential(SPELL)
        while time.monotonic() < end and not stop.is_set():
            matrix = np.tanh(matrix @ matrix.T / 700)
        stop.wait(rng.exponential(SPELL))


@contextmanager
def disturbed(core: int, seed: int) -> Iterator[None]:
    """Have a child work on a core while the block runs."""
    context = multiprocessing.get_context("spawn")
    ready, stop = context.Event(), context.Event()
    child = context.Process(target=disturb, args=(core, seed, ready, stop), daemon=True)
    child.start()
    try:
        if not ready.wait(60):  # its imports would run on any core
            raise click.ClickException("the child that is to load the other core did not start")
        yield
    finally:
        stop.set()
        child.join(10)


def loaded(mine: Artifact, other: Artifact | None) -> list[Contender]:
    """The two that are compared, loaded anew."""
    rival = ArtifactContender("b", other) if other else OrtContender("b", mine.file(PORTABLE))
    return [ArtifactContender("a", mine), rival]


def measured(load: Callable[[], Sequence[Contender]], plan: Plan) -> Outcome:
    """What `bench` would find."""
    contenders = load()
    outcome = measure(contenders, plan, again=load)
    close_all([contenders])
    return outcome


def sequential(contenders: list[Contender], seconds: float) -> float:
    """Time one after the other, as a plain benchmark does: the ratio of the medians of all runs."""
    medians = []
    for item in contenders:
        for _ in range(20):
            item.run_once()
        times: list[float] = []
        while sum(times) < seconds:
            times.append(item.run_once())
        medians.append(float(np.median(times)))
    return medians[1] / medians[0]


def spread(ratios: list[float]) -> float:
    """The largest ratio over the smallest, minus 1."""
    return max(ratios) / min(ratios) - 1


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--against", type=click.Path(path_type=Path, exists=True), help="Another artifact.  [default: onnxruntime]"
)
@click.option(
    "--seconds", default=Plan().seconds, show_default=True, help="For each contender in each run, as `bench` has it."
)
@click.option("--rounds", default=5, show_default=True)
@click.option("--aa", default=20, show_default=True, help="Runs of the artifact against itself.")
@click.option("--plain", type=int, help="Runs one after the other as well.  [default: as many]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write all figures as JSON.")
def main(
    artifact: Path, against: Path | None, seconds: float, rounds: int, aa: int, plain: int | None, output: Path | None
) -> None:
    """Measure and print."""
    opened, rival = open_artifact(artifact), open_artifact(against) if against else None
    plan = Plan(seconds=seconds)
    found: dict[str, Any] = {"artifact": artifact.name, "against": against.name if against else "onnxruntime"}
    found |= {"environment": environment.record(), "seconds": seconds}
    wanted = rounds if plain is None else plain

    def write() -> None:
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    if rounds:
        allowed = os.sched_getaffinity(0)
        other = (set(allowed) - set(quietest_cores(allowed, 1))) or allowed
        paired: list[dict[str, float]] = []
        in_turn: list[float] = []
        with disturbed(min(other), 1):
            for number in range(rounds):
                outcome = measured(partial(loaded, opened, rival), plan)
                one = outcome.comparisons[0]
                everything = compare(*(item.samples for item in outcome.measured), keep_all=True)
                paired.append({"ratio": one.ratio, "low": one.low, "high": one.high, "all_blocks": everything.ratio})
                paired[-1] |= {"calm": one.calm, "blocks": one.blocks, "planned": outcome.planned}
                told = f"calm in {one.calm} of {one.blocks} blocks, {outcome.planned} planned"
                told += f"; {everything.ratio:.3f} over all"
                click.echo(f"paired {one.ratio:.3f} [{one.low:.3f}, {one.high:.3f}], {told}")
                if number < wanted:
                    contenders = loaded(opened, rival)
                    with pinned(1):
                        in_turn.append(sequential(contenders, seconds))
                    close_all([contenders])
                    click.echo(f"sequential {in_turn[-1]:.3f}")
                ratios = [one["ratio"] for one in paired]
                found |= {"paired": paired, "paired_spread": spread(ratios), "sequential": in_turn}
                found |= {"sequential_spread": spread(in_turn)} if in_turn else {}
                write()
        every = spread([one["all_blocks"] for one in paired])
        click.echo(f"paired differ by {100 * spread(ratios):.1f} %, over all blocks by {100 * every:.1f} %")
        if in_turn:
            click.echo(f"sequential differ by {100 * spread(in_turn):.1f} %")
    itself = []
    for _ in range(aa):
        one = measured(lambda: [ArtifactContender(name, opened) for name in ("a", "b")], plan).comparisons[0]
        itself.append({"ratio": one.ratio, "low": one.low, "high": one.high})
        click.echo(f"against itself: {one.ratio:.4f} [{one.low:.4f}, {one.high:.4f}]")
    held = sum(one["low"] <= 1 <= one["high"] for one in itself)
    found |= {"itself": itself, "held": held}
    if aa:
        click.echo(f"the interval held 1 in {held} of {aa} runs")
    write()


if __name__ == "__main__":
    main()
