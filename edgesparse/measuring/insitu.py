"""Seconds of each layer of a model on this machine, in place: compiled, and profiled layer by layer."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from edgesparse.artifacts import samples
from edgesparse.errors import UsageError
from edgesparse.passes import save_model
from edgesparse.pipeline import compile_model
from edgesparse.runtimes.local import LocalRunner
from edgesparse.target import Target

RUNS = 30


def layer_seconds(target: Target, runs: int = RUNS) -> Callable[[ir.Model], dict[str, float]]:
    """A function from a model to the median seconds of each of its layers, over `runs` runs on one thread.

    UsageError for a target that is not this machine.
    """
    if not target.runs_here():
        raise UsageError(f"target {target.name} cannot be measured here", fix="leave --measured out, or take native")

    def measure(model: ir.Model) -> dict[str, float]:
        with tempfile.TemporaryDirectory(prefix="edgesparse-") as room:
            path = Path(room) / "model.onnx"
            save_model(model, path)
            artifact = compile_model(path, target=target, output=Path(room) / "artifact")
            assert artifact is not None, "only stop_after ends without an artifact"
            feeds = samples.load(artifact.file(samples.NAME), artifact.manifest)[0].inputs
            with LocalRunner(artifact) as runner:
                runner.run(feeds)
                taken = [runner.profile() for _ in range(runs)]
        return {row[0][0]: statistics.median(spent for _, spent in row) * 1e-9 for row in zip(*taken, strict=True)}

    return measure
