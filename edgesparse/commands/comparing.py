"""`compare`: two benches beside each other, for people and for continuous integration."""

from __future__ import annotations

from pathlib import Path

import click

from edgesparse.commands import common
from edgesparse.console import Console


@click.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 0.5),
    default=0.03,
    show_default=True,
    help="Smaller changes count as no difference.",
)
@click.option("--anyway", is_flag=True, help="Compare although the reports are of different machines or settings.")
@common.json_option
@common.verbosity_options
@click.pass_obj
def compare(console: Console, before: Path, after: Path, tolerance: float, anyway: bool, json_to: str | None) -> None:
    """Compare two reports that `bench --json` wrote: BEFORE and AFTER.

    Judged is the first contender, by its ratio to onnxruntime where both have it. Exit code 5 if it became slower.
    """
    from edgesparse.errors import RegressionError, UsageError
    from edgesparse.measuring.regression import compare_reports
    from edgesparse.measuring.report import TEXT_COLUMNS, millis
    from edgesparse.measuring.schema import read_report

    found = compare_reports(read_report(before), read_report(after), tolerance=tolerance)
    if found.obstacles and not anyway:
        raise UsageError(
            "these two reports are not comparable",
            why="; ".join(found.obstacles),
            fix="measure both on one machine with one setting, or compare --anyway",
        )
    if json_to:
        console.json(found.as_dict(), json_to)
    if json_to != "-":
        columns = ("", "before ms", "after ms", "speed [95 %]", "judged by", "verdict")
        rows = [
            (
                row.name,
                millis(row.before),
                millis(row.after),
                f"{row.speed:.3f}x [{row.low:.3f}, {row.high:.3f}]",
                f"ratio to {row.reference}" if row.reference else "its own times",
                row.verdict,
            )
            for row in found.rows
        ]
        console.table(columns, rows, text_columns=(*TEXT_COLUMNS, "judged by", "verdict"))
        for text in (*found.missing, *found.obstacles, *found.notes):
            console.result(f"note: {text}")
    first = found.rows[0]
    if found.regressed:
        raise RegressionError(
            f"{first.name} became slower: {first.speed:.3f} times as fast as before",
            why=f"95 % interval {first.low:.3f} to {first.high:.3f}, beyond {100 * tolerance:g} %",
            fix="`edgesparse bench --layers` shows which layers take the time",
        )
    if json_to != "-":
        console.result(f"verdict: {first.name}: {first.verdict}")
