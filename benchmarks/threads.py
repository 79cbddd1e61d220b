"""Threads: one program on one thread and on several, in one run, in alternation.

    python benchmarks/threads.py --model mobilenet-v1 --pattern group:8x1

Both run the same artifact, compiled for that many threads, and give the same bits; onnxruntime stands beside them on as
many threads, and on one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import click
import numpy as np
from density import recipe_for

from edgesparse.artifacts import samples
from edgesparse.artifacts.artifact import Artifact
from edgesparse.measuring.bench import Contender, Plan, measure
from edgesparse.measuring.contenders import ArtifactContender, OrtContender
from edgesparse.measuring.stats import compare
from edgesparse.models import model_path
from edgesparse.pipeline import compile_model
from edgesparse.target import Target


def contenders(artifact: Artifact, feeds: Mapping[str, np.ndarray], threads: int) -> list[Contender]:
    """Both programs on one thread and on several."""
    return [
        ArtifactContender("one", artifact.path, feeds, threads=1),
        ArtifactContender("several", artifact.path, feeds, threads=threads),
        OrtContender("their one", artifact.file("model.onnx"), feeds, threads=1),
        OrtContender("their several", artifact.file("model.onnx"), feeds, threads=threads),
    ]


@click.command()
@click.option("--model", default="mobilenet-v1", show_default=True)
@click.option("--pattern", default="group:8x1", show_default=True)
@click.option("--densities", default="1,0.5,0.1", show_default=True, help="Comma separated.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(min=2))
@click.option("--seconds", default=5.0, show_default=True, help="Measured seconds of each contender.")
def main(model: str, pattern: str, densities: str, threads: int, seconds: float) -> None:
    """Measure and print a table."""
    path = model_path(model)
    click.echo(f"{model}, {pattern} on 1x1 layers\n")
    click.echo(f"| density | 1 thread, ms | {threads} threads, ms | times as fast | 95 % interval | onnxruntime's |")
    click.echo("| --- | --- | --- | --- | --- | --- |")
    for text in densities.split(","):
        with tempfile.TemporaryDirectory() as room:
            artifact = compile_model(
                path,
                target=Target.parse("native"),
                output=Path(room) / "artifact",
                recipe=recipe_for(path, pattern, float(text)),
                threads=threads,
            )
            assert artifact is not None
            feeds = samples.load(artifact.file(samples.NAME), artifact.manifest)[0].inputs
            load = partial(contenders, artifact, feeds, threads)
            outcome = measure(load(), Plan(seconds=seconds, threads=threads), again=load)
        one, several = outcome["one"], outcome["several"]
        ours = compare(several.samples, one.samples)
        theirs = compare(outcome["their several"].samples, outcome["their one"].samples)
        cells = (
            text,
            f"{one.stats.p50 * 1e3:.2f}",
            f"{several.stats.p50 * 1e3:.2f}",
            f"{ours.ratio:.2f}",
            f"{ours.low:.2f} to {ours.high:.2f}",
            f"{theirs.ratio:.2f}",
        )
        click.echo("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
