"""What a bench found, as a table for people and as JSON for programs.

The JSON's schema is `edgesparse.bench/1`; docs/measuring.md lists its fields. Times are in seconds and
sizes in bytes; a field that could not be found out is null. Fields may be added within a version, never
change their meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from edgesparse import stats
from edgesparse.bench import Measured, Outcome
from edgesparse.memory import Memory

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
    """

    name: str
    seconds: float
    flops: float
    kernel: str
    pattern: str = ""
    density: float | None = None
    reason: str = ""

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
    peak:
        Measured peak of one core in GFLOP/s, if known.
    """

    outcome: Outcome
    subject: Mapping[str, Any]
    environment: Mapping[str, Any]
    memory: Mapping[str, Memory] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    layers: tuple[LayerTime, ...] = ()
    peak: float | None = None


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
        },
        "contenders": [_contender(report, item) for item in outcome.measured],
        "comparisons": [stats.as_dict(item) for item in outcome.comparisons],
        "notes": list(outcome.notes),
        "peak_gflops": report.peak,
        "layers": [_layer(item, report.peak) for item in report.layers],
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
        "warm_up": {"runs": item.warm_up_runs, "settled": item.settled},
        "memory": None if memory is None else vars(memory),
        "size_bytes": report.sizes.get(item.name),
        "block_seconds": [float(value) for value in item.samples.block_times],
    }


def _layer(item: LayerTime, peak: float | None) -> dict[str, Any]:
    return {**vars(item), "gflops": item.gflops, "peak_share": item.peak_share(peak)}


def latency_table(report: Report) -> tuple[Columns, Rows]:
    """Return columns and rows: one row per contender, the first one's speedup over it in the last column."""
    columns = ("", "p50 ms", "p90 ms", "p99 ms", "min ms", "runs", "load ms", "first ms", "peak MB", "disk MB")
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
                megabytes(report.sizes.get(item.name)),
                f"{ratio.ratio:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio else "",
            )
        )
    return (*columns, "speedup over it [95 %]"), rows


def remarks(report: Report) -> list[str]:
    """Return what must be known beside the table: verdicts of instability, notes of the protocol."""
    return [*instability(report.outcome, report.environment), *report.outcome.notes]


def instability(outcome: Outcome, here: Mapping[str, Any]) -> list[str]:
    """Return one line for each contender whose timings should not be trusted, and the machine's
    load if it may be why.
    """
    lines = [f"{item.name} is unstable: {'; '.join(item.unstable)}" for item in outcome.measured if item.unstable]
    load, cores = here.get("load_1min"), here.get("cores_allowed") or here.get("cores") or 1
    if lines and load is not None and load > outcome.plan.threads + cores / 2:
        lines.append(
            f"other work is going on: the load average is {load:.1f} on {cores} cores; measure again when idle"
        )
    return lines


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
            )
        )
    return tuple(rows)


def layer_flops(record: Mapping[str, Any]) -> float:
    """Return the operations that a layer of a manifest really does: 2 per multiply-add that its kernel makes.

    A dense kernel makes all of them, whatever the density.
    """
    macs, density = record.get("macs"), record.get("density")
    if not isinstance(macs, int | float):
        return 0.0
    dense = str(record.get("kernel")).startswith("dense") or not isinstance(density, int | float)
    return 2.0 * macs * (1.0 if dense else float(density or 0.0))


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
