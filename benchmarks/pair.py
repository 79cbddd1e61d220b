"""Two artifacts of the same inputs, timed in pairs: how many times as fast the second is as the first.

python benchmarks/pair.py BEFORE AFTER --seconds 20
"""

from __future__ import annotations

from pathlib import Path

import click

from edgesparse.artifacts.artifact import open_artifact
from edgesparse.measuring.bench import Plan, measure
from edgesparse.measuring.contenders import ArtifactContender


@click.command()
@click.argument("before", type=click.Path(path_type=Path, exists=True))
@click.argument("after", type=click.Path(path_type=Path, exists=True))
@click.option("--seconds", default=10.0, show_default=True, help="For each.")
def main(before: Path, after: Path, seconds: float) -> None:
    """Print the ratio of the times, with its interval of 95 %."""
    opened = [open_artifact(path) for path in (after, before)]

    def load() -> list[ArtifactContender]:
        return [ArtifactContender(str(artifact.path), artifact) for artifact in opened]

    outcome = measure(load(), Plan(seconds=seconds, runs=20, warm_up=1.0), again=load)
    found = outcome.comparisons[0]
    click.echo(f"{after} is {found.ratio:.4f} [{found.low:.4f}, {found.high:.4f}] times as fast as {before}")
    for one in outcome.measured:
        click.echo(f"{one.name}: median {1e3 * one.stats.p50:.3f} ms, least {1e3 * one.stats.min:.3f} ms")


if __name__ == "__main__":
    main()
