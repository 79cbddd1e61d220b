"""`profile`: what each layer of an artifact does in its time, and what it is bound by.

Times are measured, layer by layer; operations and bytes are counted from the program that was compiled; the roofline
says how fast this core could do either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgesparse.advice.planview import choice_of
from edgesparse.artifacts.artifact import Artifact
from edgesparse.artifacts.verify import PORTABLE
from edgesparse.costing.caches import LEVELS
from edgesparse.costing.costs import table_for
from edgesparse.costing.counts import Terms
from edgesparse.costing.forecast import layer_terms, lowered, placed_as
from edgesparse.errors import UsageError
from edgesparse.graph.recognise import recognise
from edgesparse.measuring.contenders import ArtifactContender
from edgesparse.measuring.roofline import Roofline
from edgesparse.measuring.session import first_sample, target_text
from edgesparse.planning.decide import decide
from edgesparse.portable import prepare
from edgesparse.target import Target

SCHEMA = "edgesparse.profile/1"
RUNS = 60


@dataclass(frozen=True)
class LayerWork:
    """One layer of a profile.

    Attributes
    ----------
    seconds:
        Median over the runs.
    flops:
        That its kernels do, a multiply-add counting as two; stored zeros are among them.
    gflops, peak_share:
        Per second, in 10^9, and as share of the core's measured peak.
    moved:
        Bytes that it loads from "l1", "l2", "l3" and "memory", by the cost model's count.
    bound:
        "compute", a level, or "overhead" where none of them is busy for a third of the time.
    """

    name: str
    kernel: str
    seconds: float
    share: float
    flops: float
    gflops: float
    peak_share: float
    moved: Mapping[str, float]
    bound: str


def profile_artifact(
    artifact: Artifact, roof: Roofline, *, runs: int = RUNS, tick: Callable[[float, str], None] | None = None
) -> tuple[LayerWork, ...]:
    """Time and count every layer of an artifact on this machine, one thread; `tick` is told the share done.

    Raises
    ------
    UsageError
        The artifact was compiled for several threads: its calls are cut, and no layer's work stands alone.
    """
    if int(artifact.manifest.info.get("threads", 1)) != 1:
        raise UsageError(
            f"{artifact.path} was compiled for several threads",
            why="a profile tells what one core does",
            fix="compile it with --threads 1",
        )
    contender = ArtifactContender("profile", artifact, first_sample(artifact))
    try:
        contender.run_once()
        taken = []
        for done in range(runs + 1):
            taken.append([ns for _, ns in contender.runner.profile()])
            if tick is not None:
                tick((done + 1) / (runs + 1), "timing layers")
    finally:
        contender.close()
    seconds = np.median(np.array(taken[1:]), axis=0) / 1e9
    return combine(artifact.manifest.layers, seconds.tolist(), artifact_terms(artifact), roof)


def combine(
    records: Sequence[Mapping[str, Any]], seconds: Sequence[float], terms: Mapping[str, Terms], roof: Roofline
) -> tuple[LayerWork, ...]:
    """Join a manifest's layers with their seconds and counts."""
    total = sum(seconds) or 1.0
    rows = []
    for record, time in zip(records, seconds, strict=True):
        name = str(record["name"])
        counted = terms.get(name, Terms())
        moved = {level: float(counted[f"moved.{level}"]) for level in LEVELS}
        gflops = counted["flops"] / time / 1e9 if time else 0.0
        rows.append(
            LayerWork(
                name,
                str(record.get("kernel")),
                time,
                time / total,
                float(counted["flops"]),
                gflops,
                gflops / roof.gflops,
                moved,
                roof.bound(time, counted["flops"], moved),
            )
        )
    return tuple(rows)


def artifact_terms(artifact: Artifact) -> dict[str, Terms]:
    """What the artifact's layers do, counted: its portable model, planned again, with the kernels of its manifest."""
    manifest = artifact.manifest
    target = Target.parse(target_text(manifest.target))
    graph = recognise(prepare(artifact.file(PORTABLE), None))
    layout = decide(graph, target, choice_of(manifest.info)).plan
    dense = bool(manifest.info.get("dense", False))
    placements = placed_as(graph, layout, target, manifest.layers, dense=dense)
    return layer_terms(lowered(graph, layout, placements, target), graph, layout, target, table_for(target).caches)


def measured_ratios(sparse: Artifact, dense: Artifact, *, runs: int = RUNS) -> dict[str, float]:
    """How many times as fast as dense each layer is: the median of ratios of runs in alternation."""
    pair = [ArtifactContender(name, each, first_sample(each)) for name, each in (("sparse", sparse), ("dense", dense))]
    ratios = []
    try:
        names = [name for name, _ in pair[0].runner.profile()]
        for _ in range(runs):
            taken = []
            for contender in pair:
                contender.run_once()  # the caches hold the other's weights
                taken.append(dict(contender.runner.profile()))
            ratios.append([taken[1].get(name, 0) / max(taken[0][name], 1) for name in names])
    finally:
        for contender in pair:
            contender.close()
    return dict(zip(names, np.median(np.array(ratios), axis=0).tolist(), strict=True))


def as_json(artifact: Artifact, roof: Roofline, rows: Sequence[LayerWork]) -> dict[str, Any]:
    """A profile as JSON values in the schema `SCHEMA`."""
    return {
        "schema": SCHEMA,
        "artifact": artifact.path.name,
        "target": artifact.manifest.target.get("name"),
        "roofline": roof.as_dict(),
        "layers": [asdict(row) for row in rows],
    }
