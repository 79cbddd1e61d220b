"""The largest difference between compiled networks and onnxruntime, as a share of the largest output.

    python benchmarks/correctness.py [--models NAME,..] [--targets NAME,..] [--groups 1,4,8] [--densities 1,0.5,0.1]

Each network is pruned at each density in groups of each size (at density 1 once), compiled for each target that this
machine runs, and run on seeded inputs; the portable model of the artifact runs in onnxruntime on the same. Tiles are
chosen by the cost model, so that the table does not depend on the machine. Ends with 3 if any is above 1e-5.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime

from edgesparse.measuring.contenders import random_feeds
from edgesparse.pipeline import compile_model
from edgesparse.recipe import Recipe
from edgesparse.runtimes.local import LocalRunner
from edgesparse.target import TARGETS, Target

MODELS = ("mobilenet-v1", "mobilenet-v2", "efficientnet-lite0", "resnet50", "page-orientation")
BOUND = 1e-5


def difference(model: Path, target: Target, recipe: Recipe | None, out: Path, seed: int = 1) -> float:
    """Compile into `out`; the largest difference over all outputs, each as a share of its largest value."""
    artifact = compile_model(model, target=target, output=out, recipe=recipe, tune=False)
    assert artifact is not None
    feeds = random_feeds(artifact.manifest.inputs, seed)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(artifact.file("model.onnx")), options, ["CPUExecutionProvider"])
    names = [info.name for info in artifact.manifest.outputs]
    expected = dict(zip(names, session.run(names, feeds), strict=True))
    with LocalRunner(artifact) as runner:
        found = runner.run(feeds)
    worst = 0.0
    for name, value in expected.items():
        if not np.isfinite(found[name]).all():
            return float("inf")
        scale = max(float(np.abs(value).max()), 1e-30)
        worst = max(worst, float(np.abs(found[name].astype(np.float64) - value).max()) / scale)
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = [target.name for target in TARGETS if target.runner == "local" and target.runs_here()]
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--targets", default=",".join(here))
    parser.add_argument("--groups", default="1,4,8")
    parser.add_argument("--densities", default="1,0.5,0.1")
    given = parser.parse_args()
    from edgesparse.models import model_path

    targets = [Target.parse(name) for name in given.targets.split(",")]
    cases = itertools.product(map(float, given.densities.split(",")), map(int, given.groups.split(",")))
    unique = dict.fromkeys((density, group if density < 1 else 1) for density, group in cases)
    print(f"{'network':<20}{'density':>8}{'group':>6}" + "".join(f"{target.name:>14}" for target in targets))
    worst, started = 0.0, time.monotonic()
    for name in given.models.split(","):
        path = model_path(name)
        for density, group in unique:
            recipe = Recipe.from_dict({"pattern": f"group:{group}x1", "density": density}) if density < 1 else None
            row = f"{name:<20}{density:>8}{group:>6}"
            for target in targets:
                with tempfile.TemporaryDirectory() as folder:
                    found = difference(path, target, recipe, Path(folder) / "artifact")
                worst = max(worst, found)
                row += f"{found:>14.2e}"
            print(row, flush=True)
    print(f"largest {worst:.2e}, bound {BOUND:.0e}, {time.monotonic() - started:.0f} s")
    return 0 if worst <= BOUND else 3


if __name__ == "__main__":
    sys.exit(main())
