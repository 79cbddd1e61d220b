"""`demo`: the whole way, shown on a really trained network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgesparse.commands import common
from edgesparse.console import Console

if TYPE_CHECKING:
    from edgesparse.demonstration import Demonstration


@click.command()
@common.target_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("out/demo"),
    show_default=True,
    help="Folder for the artifacts.",
)
@click.option("--seconds", type=click.FloatRange(0.01, 3600), default=5.0, show_default=True, help="Time each so long.")
@common.seed_option
@common.json_option
@common.verbosity_options
@click.pass_obj
def demo(console: Console, target: str, output: Path, seconds: float, seed: int, json_to: str | None) -> None:
    """Prune, compile, verify and measure a network that tells how a page is turned."""
    from edgesparse.demonstration import demonstrate
    from edgesparse.measuring.bench import Plan
    from edgesparse.target import Target

    plan = Plan(seconds=seconds, seed=seed)
    with console.progress("demo") as tick:
        found = demonstrate(output, Target.parse(target), plan, progress=tick, say=console.detail)
    if json_to:
        console.json(as_json(found), json_to)
    if json_to != "-":
        show(console, found)


def show(console: Console, found: Demonstration) -> None:
    """Print the demo as a newcomer reads it: before and after, then every layer with its reason."""
    from edgesparse.measuring.report import TEXT_COLUMNS, instability, layer_table, megabytes, millis, percent

    rows: list[tuple[str, ...]] = []
    for row in found.rows:
        timing = found.outcome[row.name].stats
        versus = found.speedups.get(row.name)
        rows.append(
            (
                row.name,
                percent(row.density),
                percent(row.easy.top1),
                percent(row.hard.top1),
                megabytes(row.size_bytes),
                millis(timing.p50),
                f"{versus.ratio:.2f}x [{versus.low:.2f}, {versus.high:.2f}]" if versus else "1",
            )
        )
    first = found.rows[0]
    console.result("A network that tells by how many quarter turns a page is rotated; 1 page, 1 thread, this machine.")
    console.result(
        f"Accuracy: share of {first.easy.count} clean and {first.hard.count} noisy, skewed pages told right."
    )
    columns: tuple[str, ...] = ("", "weights kept", "clean pages", "noisy pages", "size MB", "p50 ms", "speed [95 %]")
    console.table(columns, rows, text_columns=TEXT_COLUMNS)
    console.result(f"All programs agree with onnxruntime to {found.worst_error:.1g} of the largest output.")
    console.result("careful: half the multiply-adds of the 1x1 layers go, in groups of 4 weights, and what is left is")
    console.result("repaired on other pages without labels. hard: a tenth of all weights stays, by magnitude alone: it")
    console.result("shows the speed of that density, which needs training to be accurate.")
    for text in instability(found.outcome):
        console.result(f"note: {text}")
    columns, rows = layer_table(found.layers, found.peak)
    console.table(columns, rows, title="edgesparse, careful: every layer", text_columns=TEXT_COLUMNS)
    for place in found.artifacts.values():
        console.notice(f"artifact: {place}")


def as_json(found: Demonstration) -> dict[str, object]:
    """Return the demo as plain values: schema `edgesparse.demo/1`."""
    from edgesparse import environment
    from edgesparse.measuring import stats

    return {
        "schema": "edgesparse.demo/1",
        "environment": environment.record(),
        "worst_error": found.worst_error,
        "rows": [
            {
                "name": row.name,
                "density": row.density,
                "accuracy_clean": row.easy.top1,
                "accuracy_noisy": row.hard.top1,
                "size_bytes": row.size_bytes,
                "latency": stats.as_dict(found.outcome[row.name].stats),
                "speedup": stats.as_dict(found.speedups[row.name]) if row.name in found.speedups else None,
            }
            for row in found.rows
        ],
        "peak_gflops": found.peak,
        "layers": [vars(item) for item in found.layers],
    }
