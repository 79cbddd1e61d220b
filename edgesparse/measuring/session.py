"""A whole bench: the contenders made, timed against each other, their memory and layers measured, a
report.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgesparse import environment
from edgesparse.artifacts import samples
from edgesparse.artifacts.artifact import Artifact
from edgesparse.artifacts.verify import PORTABLE
from edgesparse.errors import EdgesparseError
from edgesparse.measuring import memory
from edgesparse.measuring.bench import Contender, Plan, Progress, measure, portion
from edgesparse.measuring.contenders import ArtifactContender, OrtContender
from edgesparse.measuring.loads import close_all
from edgesparse.measuring.masks import mask_pictures
from edgesparse.measuring.memory import Memory
from edgesparse.measuring.report import LayerTime, Report, layer_times

SPARSE, DENSE, ORT = "edgesparse", "edgesparse dense", "onnxruntime"
"""Names of the contenders in every report."""

PROFILE_RUNS = 30


@dataclass(frozen=True)
class Wanted:
    """What to measure beside the latency of the artifact itself.

    Attributes
    ----------
    dense, onnxruntime:
        The contenders to compare with.
    memory, layers, masks:
        Whether to measure peak memory and the time of each layer, and to picture where weights are left.
    peak:
        Peak of one core in GFLOP/s, for the layers' share of it; measured where it is wanted and not given.
    roofline:
        Whether to measure what one core loads from each level as well.
    """

    dense: bool = True
    onnxruntime: bool = True
    memory: bool = True
    layers: bool = False
    peak: float | None = None
    masks: bool = False
    roofline: bool = False


def bench_artifact(
    artifact: Artifact,
    plan: Plan,
    wanted: Wanted | None = None,
    *,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
) -> Report:
    """Measure an artifact against its portable model, compiled dense and in onnxruntime.

    Raises
    ------
    EdgesparseError
        If the artifact cannot run here. What cannot be measured of the others is told through `notice`.
    """
    wanted = wanted or Wanted()
    say = notice or (lambda text: None)
    tell = progress or (lambda share, text: None)
    with tempfile.TemporaryDirectory(prefix="edgesparse-") as room:
        tell(0.0, "compiling dense")
        dense = _dense(artifact, Path(room) / "dense", portion(tell, 0.0, 0.1)) if wanted.dense else None
        contenders = _contenders(artifact, dense, wanted, plan)
        again = functools.partial(_contenders, artifact, dense, wanted, plan)
        outcome = measure(contenders, plan, again=again, progress=portion(tell, 0.1, 0.85))
        tell(0.85, "measuring layers")
        layers = profile(contenders[0], artifact) if wanted.layers else ()
        dense_layers = profile(contenders[1], dense) if wanted.layers and dense is not None else ()
        peak, bandwidth = _machine(artifact, wanted)
        found = _memory(artifact, dense, wanted, plan.threads, say, portion(tell, 0.9, 1.0)) if wanted.memory else {}
        sizes = _sizes(artifact, dense, wanted)
        close_all([contenders])
        tell(1.0, "done")
    pictures = mask_pictures(artifact.file(PORTABLE)) if wanted.masks else ()
    return Report(
        outcome,
        subject(artifact),
        environment.record(),
        found,
        sizes,
        layers,
        peak,
        dense_layers=dense_layers,
        bandwidth=bandwidth,
        masks=pictures,
    )


def first_sample(artifact: Artifact) -> dict[str, np.ndarray] | None:
    """Return the artifact's first sample inputs by name, or None if it carries none."""
    if samples.NAME not in artifact.manifest.files:
        return None
    return dict(samples.load(artifact.file(samples.NAME), artifact.manifest)[0].inputs)


def profile(contender: Contender, artifact: Artifact, runs: int = PROFILE_RUNS) -> tuple[LayerTime, ...]:
    """Return each layer's median time over some profile runs, with what the manifest says of it."""
    if not isinstance(contender, ArtifactContender):
        raise EdgesparseError(f"{contender.name} has no profile by layer")
    taken = [contender.runner.profile() for _ in range(runs)]
    return layer_times(taken, artifact.manifest.layers)


def subject(artifact: Artifact) -> dict[str, Any]:
    """Return what a report says it is about: names and hashes, nothing of where files lie."""
    manifest = artifact.manifest
    model = manifest.files.get(PORTABLE)
    return {
        "artifact": artifact.path.name,
        "artifact_sha256": environment.sha256(artifact.folder / "manifest.json"),
        "model_sha256": model.sha256 if model else None,
        "target": manifest.target.get("name"),
        "recipe": manifest.recipe,
        "info": dict(manifest.info),
    }


def target_text(fields: Mapping[str, Any]) -> str:
    """Return a manifest's target as `Target.parse` reads it, cache sizes included."""
    sizes = [f"{key}={fields[key]}" for key in ("l1d", "l2") if isinstance(fields.get(key), int)]
    return ",".join([str(fields.get("name")), *sizes])


def _machine(artifact: Artifact, wanted: Wanted) -> tuple[float | None, Mapping[str, float]]:
    """Measure one core with the artifact's instructions, where this machine has them: GFLOP/s, GB/s by level."""
    from edgesparse.measuring.peak import peak_gflops
    from edgesparse.measuring.roofline import measure_roofline
    from edgesparse.target import Target

    if not wanted.layers or (wanted.peak is not None and not wanted.roofline):
        return wanted.peak, {}
    target = Target.parse(target_text(artifact.manifest.target))
    if not target.runs_here():
        return wanted.peak, {}
    if not wanted.roofline:
        return peak_gflops(target), {}
    found = measure_roofline(target)
    return wanted.peak or found.gflops, found.gbytes


def _dense(artifact: Artifact, place: Path, progress: Progress) -> Artifact:
    """Compile the portable model for the same target with every layer in the dense kernel family.

    It may have the algorithms that the artifact was allowed: neither side is to be the weaker one for that.
    """
    from edgesparse.pipeline import compile_model
    from edgesparse.target import Target

    target = Target.parse(target_text(artifact.manifest.target))
    threads = int(artifact.manifest.info.get("threads", 1))
    made = compile_model(
        artifact.file(PORTABLE),
        target=target,
        output=place,
        dense=True,
        threads=threads,
        strassen=bool(artifact.manifest.info.get("strassen")) and target.runs_here(),
        progress=progress,
    )
    assert made is not None, "only stop_after ends without an artifact"
    return made


def _contenders(artifact: Artifact, dense: Artifact | None, wanted: Wanted, plan: Plan) -> list[Contender]:
    feeds = first_sample(artifact)
    found: list[Contender] = [ArtifactContender(SPARSE, artifact, feeds, threads=plan.threads)]
    if dense is not None:
        found.append(ArtifactContender(DENSE, dense, feeds, threads=plan.threads))
    if wanted.onnxruntime:
        found.append(OrtContender(ORT, artifact.file(PORTABLE), feeds, threads=plan.threads))
    return found


def _memory(
    artifact: Artifact,
    dense: Artifact | None,
    wanted: Wanted,
    threads: int,
    say: Callable[[str], None],
    progress: Progress,
) -> dict[str, Memory]:
    jobs = [(SPARSE, "artifact", artifact.path)]
    if dense is not None:
        jobs.append((DENSE, "artifact", dense.path))
    if wanted.onnxruntime:
        jobs.append((ORT, "onnx", artifact.file(PORTABLE)))
    found = {}
    for index, (name, kind, path) in enumerate(jobs):
        progress(index / len(jobs), f"measuring the memory of {name}")
        try:
            found[name] = memory.measure(kind, path, threads=threads)
        except EdgesparseError as error:
            say(f"{name}: {error}")
    return found


def _sizes(artifact: Artifact, dense: Artifact | None, wanted: Wanted) -> dict[str, int]:
    """Return the bytes that each contender needs on the device: code and weights, or the model."""
    sizes = {}
    for name, item in ((SPARSE, artifact), (DENSE, dense)):
        if item is not None:
            files = item.manifest.files
            sizes[name] = files["weights.bin"].size + files[item.manifest.module].size
    if wanted.onnxruntime:
        sizes[ORT] = artifact.portable_bytes
    return sizes
