"""`predict --measure`: every predicted point pruned, compiled, and timed against dense in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edgesparse.advice.predict import Prediction
from edgesparse.artifacts.artifact import Artifact
from edgesparse.measuring.bench import Plan, measure
from edgesparse.measuring.contenders import ArtifactContender
from edgesparse.measuring.loads import close_all
from edgesparse.measuring.session import first_sample
from edgesparse.measuring.stats import compare
from edgesparse.pipeline import compile_model
from edgesparse.recipe import Recipe
from edgesparse.target import Target

#: Seconds and runs for each contender.
_SECONDS, _RUNS = 2.0, 30


def confirm(
    found: Prediction,
    model: Path,
    target: Target,
    layers: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]],
    tick: Callable[[float, str], None],
) -> Prediction:
    """The prediction with every point's measured seconds and speedup; weights are pruned by magnitude."""
    with tempfile.TemporaryDirectory(prefix="edgesparse-predict-") as room:
        artifacts: list[Artifact] = []
        for index, point in enumerate((None, *found.points)):
            tick(
                0.6 * index / (1 + len(found.points)),
                f"compiling {point.pattern} {point.density}" if point else "dense",
            )
            recipe = None
            if point is not None and point.density < 1:
                recipe = Recipe.from_dict({"pattern": point.pattern, "density": point.density, "targets": list(layers)})
            artifact = compile_model(
                model,
                target=target,
                output=Path(room) / str(index),
                recipe=recipe,
                shapes=shapes,
                dense=recipe is None,
            )
            assert artifact is not None
            artifacts.append(artifact)

        def load() -> list[ArtifactContender]:
            return [ArtifactContender(str(index), each, first_sample(each)) for index, each in enumerate(artifacts)]

        contenders, plan = load(), Plan(seconds=_SECONDS, runs=_RUNS)
        outcome = measure(contenders, plan, again=load, progress=lambda share, text: tick(0.6 + 0.4 * share, text))
        samples = {item.name: item.samples for item in outcome.measured}
        points = []
        for index, point in enumerate(found.points, 1):
            ratio = compare(samples[str(index)], samples["0"]).ratio
            seconds = next(item.stats.p50 for item in outcome.measured if item.name == str(index))
            points.append(replace(point, measured=seconds, measured_speedup=ratio))
        close_all([contenders])
    return replace(found, points=tuple(points))
