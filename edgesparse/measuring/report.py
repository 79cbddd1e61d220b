"""What a bench found, as a table for people and as JSON for programs.

The JSON's schema is `edgesparse.bench/1`: docs/report-schema.md explains its fields, schemas/bench-1.json describes
them to programs. Times are in seconds and sizes in bytes; a field that could not be found out is null. Fields may
be added within a version, never change their meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from edgesparse.measuring import stats
from edgesparse.measuring.bench import Measured, Outcome
from edgesparse.measuring.memory import Memory
from edgesparse.planning.algorithms import algorithm_of

SCHEMA = "edgesparse.bench/1"

Columns = tuple[str, ...]
Rows = list[tuple[str, ...]]


@dataclass(frozen=True)
class LayerTime:
    """One layer of the profile run.

    Attributes
    ----------
    seconds:
        Median over the profile's runs.
    flops:
        Operations that the layer's kernel really does, 2 per multiply-add; 0 where it is not counted.
    kernel, pattern, density, reason:
        What the placement chose, and why; density is the share of the weights kept, None where there are
        none.
    nbytes:
        Bytes that it reads and writes at least: packed weights, and each activation once; None where not known.
    """

    name: str
    seconds: float
    flops: float
    kernel: str
    pattern: str = ""
    density: float | None = None
    reason: str = ""
    nbytes: int | None = None

    @property
    def gflops(self) -> float | None:
        """10^9 operations per second, or None where operations are not counted."""
        return self.flops / self.seconds / 1e9 if self.flops and self.seconds else None

    def peak_share(self, peak: float | None) -> float | None:
        """Share of `peak` (GFLOP/s of one core), or None where either is not known."""
        return self.gflops / peak if peak and self.gflops is not None else None


@dataclass(frozen=True)
class Report:
    """A whole bench: the timings, and all that is needed to judge or repeat them.

    Attributes
    ----------
    subject:
        What was measured: names and hashes of model, recipe and artifact, target.
    sizes:
        Bytes on disk of what each contender loads, by name.
    layers, dense_layers:
        The profile of the first contender, and of its dense form; runs of their own.
    peak:
        Measured peak of one core in GFLOP/s, if known.
    bandwidth:
        Measured GB/s of one core by level ("L1", "L2", "memory"), if known.
    masks:
        Pictures of where weights are left; see `edgesparse.measuring.masks`.
    accuracy:
        What was told of accuracy, by name.
    device, errors:
        Of a bench elsewhere: what the device says of itself, and the largest relative error of each contender there.
    """

    outcome: Outcome
    subject: Mapping[str, Any]
    environment: Mapping[str, Any]
    memory: Mapping[str, Memory] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    layers: tuple[LayerTime, ...] = ()
    peak: float | None = None
    dense_layers: tuple[LayerTime, ...] = ()
    bandwidth: Mapping[str, float] = field(default_factory=dict)
    masks: tuple[Mapping[str, Any], ...] = ()
    accuracy: Mapping[str, float] = field(default_factory=dict)
    device: Mapping[str, Any] | None = None
    errors: Mapping[str, float] = field(default_factory=dict)


def as_json(report: Report) -> dict[str, Any]:
    """Return the report as plain values, in the schema named on top."""
    outcome, plan = report.outcome, report.outcome.plan
    return {
        "schema": SCHEMA,
        "subject": dict(report.subject),
        "environment": dict(report.environment),
        "settings": {
            "seconds": plan.seconds,
            "runs": plan.runs,
            "threads": plan.threads,
            "cores": list(outcome.cores),
            "seed": plan.seed,
            "percentile": plan.percentile,
            "keep_all": plan.keep_all,
            "loads": outcome.measured[0].samples.loads,
            "patience": plan.patience,
            "planned_blocks": outcome.planned,
        },
        "contenders": [_contender(report, item) for item in outcome.measured],
        "comparisons": [stats.as_dict(item) for item in outcome.comparisons],
        "conditions": outcome.conditions.as_dict(),
        "causes": [vars(item) for item in outcome.causes],
        "notes": list(outcome.notes),
        "peak_gflops": report.peak,
        "bandwidth_gbps": dict(report.bandwidth),
        "layers": [_layer(item, report.peak) for item in report.layers],
        "dense_layers": [_layer(item, report.peak) for item in report.dense_layers],
        "masks": [dict(item) for item in report.masks],
        "accuracy": dict(report.accuracy),
        "device": None if report.device is None else dict(report.device),
    }


def _contender(report: Report, item: Measured) -> dict[str, Any]:
    memory = report.memory.get(item.name)
    return {
        "name": item.name,
        "latency": stats.as_dict(item.stats),
        "unstable": list(item.unstable),
        "load_seconds": item.load_seconds,
        "first_seconds": item.first_seconds,
        "disturbed_runs": item.disturbed,
        "interrupted_runs": item.interrupted,
        "warm_up": {"runs": item.warm_up_runs, "settled": item.settled},
        "memory": None if memory is None else vars(memory),
        "size_bytes": report.sizes.get(item.name),
        "error": report.errors.get(item.name),
        "block_seconds": [float(value) for value in item.samples.block_times],
        "quantile_seconds": list(stats.quantiles(item.samples)),
    }


def _layer(item: LayerTime, peak: float | None) -> dict[str, Any]:
    return {**vars(item), "gflops": item.gflops, "peak_share": item.peak_share(peak)}


#: What every table of contenders begins with.
LATENCY_COLUMNS = (
    "",
    *(f"{key} ms" for key in ("p50", "p90", "p99", "min")),
    "runs",
    "load ms",
    "first ms",
    "peak MB",
    "arena MB",
)


def latency_table(report: Report) -> tuple[Columns, Rows]:
    """Return columns and rows: one row per contender, the first one's speedup over it in the last column."""
    columns = (*LATENCY_COLUMNS, "disk MB")
    versus = {item.other: item for item in report.outcome.comparisons}
    rows: Rows = []
    for item in report.outcome.measured:
        memory = report.memory.get(item.name)
        ratio = versus.get(item.name)
        rows.append(
            (
                item.name,
                *(millis(getattr(item.stats, key)) for key in ("p50", "p90", "p99", "min")),
                str(item.stats.n),
                millis(item.load_seconds),
                millis(item.first_seconds),
                megabytes(memory.peak_bytes if memory else None),
                megabytes(memory.arena_bytes if memory else None),
                megabytes(report.sizes.get(item.name)),
                f"{ratio.ratio:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio else "",
            )
        )
    return (*columns, "speedup over it [95 %]"), rows


def remarks(report: Report) -> list[str]:
    """Return what must be known beside the table: verdicts of instability, notes of the protocol."""
    return [*instability(report.outcome), *report.outcome.notes, *_calm(report.outcome), *_scenario(report.outcome)]


def _calm(outcome: Outcome) -> list[str]:
    """Return what is said where speedups stand on less than half of the blocks."""
    found = [(item.calm, item.blocks) for item in outcome.comparisons if 2 * item.calm < item.blocks]
    if not found:
        return []
    calm, blocks = min(found)
    return [f"the machine was calm in {calm} of {blocks} blocks only: speedups are those of calm blocks"]


def _scenario(outcome: Outcome) -> list[str]:
    """Return what is said of a percentile that was asked for, as MLPerf's 90th."""
    plan = outcome.plan
    if plan.percentile == 50:
        return []
    found = [
        f"{item.name} {millis(float(stats.quantiles(item.samples)[plan.percentile]))} ms "
        f"({item.stats.n} runs, {item.samples.flat.sum():.0f} s)"
        for item in outcome.measured
    ]
    return [f"p{plan.percentile} of all runs, interrupted ones too: {', '.join(found)}"]


def instability(outcome: Outcome) -> list[str]:
    """Return one line for each contender whose timings should not be trusted, and why that may be."""
    lines = [f"{item.name} is unstable: {'; '.join(item.unstable)}" for item in outcome.measured if item.unstable]
    return [*lines, *(str(cause) for cause in outcome.causes)]


def layer_table(layers: Sequence[LayerTime], peak: float | None = None) -> tuple[Columns, Rows]:
    """Return columns and rows of the profile, in the order of the program."""
    total = sum(item.seconds for item in layers) or 1.0
    rows: Rows = [
        (
            item.name,
            f"{1e6 * item.seconds:.0f}",
            percent(item.seconds / total),
            item.pattern,
            "" if item.density is None else f"{item.density:.2f}",
            "" if item.gflops is None else f"{item.gflops:.1f}",
            percent(item.peak_share(peak)),
            item.kernel,
            item.reason,
        )
        for item in layers
    ]
    columns = ("layer", "us", "share", "pattern", "density", "GFLOP/s", "of peak", "kernel", "reason")
    return columns, rows


def layer_times(
    runs: Sequence[Sequence[tuple[str, int]]], records: Sequence[Mapping[str, Any]]
) -> tuple[LayerTime, ...]:
    """Join profile runs (name and nanoseconds of each layer) with a manifest's layers, by name."""
    by_name = {str(record.get("name")): record for record in records}
    rows = []
    for index, (name, _) in enumerate(runs[0]):
        record = by_name.get(name, {})
        density = record.get("density")
        rows.append(
            LayerTime(
                name,
                median(run[index][1] for run in runs) / 1e9,
                layer_flops(record),
                str(record.get("kernel") or ""),
                str(record.get("pattern") or ""),
                float(density) if isinstance(density, int | float) else None,
                reason_text(record),
                layer_bytes(record),
            )
        )
    return tuple(rows)


def layer_flops(record: Mapping[str, Any]) -> float:
    """Return the operations that a layer of a manifest really does: 2 per multiply-add that its kernel makes.

    A dense kernel makes all of them, whatever the density, or by an algorithm with fewer the share that this has.
    """
    macs, density = record.get("macs"), record.get("density")
    if not isinstance(macs, int | float):
        return 0.0
    kernel = str(record.get("kernel"))
    algorithm = algorithm_of(kernel)
    if algorithm is not None:
        return 2.0 * macs * algorithm.share
    dense = kernel.startswith("dense") or not isinstance(density, int | float)
    return 2.0 * macs * (1.0 if dense else float(density or 0.0))


def layer_bytes(record: Mapping[str, Any]) -> int | None:
    """Return the bytes that a layer of a manifest reads and writes at least: packed weights, inputs and outputs once.

    Inputs are counted at the output's size, so layers with a stride read more than this. None where the manifest
    does not tell enough.
    """
    macs, shape, packed = record.get("macs"), record.get("shape"), record.get("bytes")
    if not macs or not isinstance(shape, list | tuple) or len(shape) != 3 or not isinstance(packed, int):
        return None
    outputs, inputs, taps = (int(size) for size in shape)
    pixels = int(macs) // max(outputs * inputs * taps, 1)
    channels = outputs if record.get("kind") == "depthwise" else inputs
    return packed + 4 * pixels * (outputs + channels)


def reason_text(record: Mapping[str, Any]) -> str:
    """Return the reason of a layer of a manifest as text, without the layer's own name; empty if it
    has none.
    """
    return str(record.get("reason") or "").removeprefix(f"{record.get('name')}: ")


TEXT_COLUMNS = ("", "layer", "pattern", "kernel", "reason")
"""Columns of the tables above that hold words."""


def millis(seconds: float | None) -> str:
    """Return seconds as milliseconds with three significant digits; empty for None."""
    if seconds is None:
        return ""
    value = 1e3 * seconds
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def megabytes(size: int | None) -> str:
    """Return bytes as 10^6 bytes with a decimal; empty for None."""
    return "" if size is None else f"{size / 1e6:.1f}"


def percent(share: float | None) -> str:
    """Return a share as per cent; empty for None."""
    return "" if share is None else f"{100 * share:.1f} %"
