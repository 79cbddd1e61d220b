"""`sweep`: models x recipes x targets x devices, measured and put on one page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgesparse.commands import common
from edgesparse.console import Console

if TYPE_CHECKING:
    from edgesparse.errors import Reason
    from edgesparse.sweeping.engine import Done, Runner
    from edgesparse.sweeping.grid import Cell
    from edgesparse.sweeping.store import Store


@click.command()
@click.argument("path", metavar="SWEEP.yaml", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder of cells and report.  [default: SWEEP.sweep]"
)
@click.option("--jobs", type=click.IntRange(1, 1024), help="Cells at a time.  [default: as many as there are cores]")
@click.option("--scheduler", metavar="tcp://HOST:PORT", help="Run the cells on this dask.distributed cluster.")
@click.option("--dry-run", is_flag=True, help="List the cells and what is there of them; measure nothing.")
@common.json_option
@common.verbosity_options
@click.pass_obj
def sweep(
    console: Console,
    path: Path,
    output: Path | None,
    jobs: int | None,
    scheduler: str | None,
    dry_run: bool,
    json_to: str | None,
) -> int:
    """Measure all combinations of models, recipes, targets and devices that SWEEP.yaml names.

    Finished cells are kept: started again, a sweep goes on where it ended. It ends in report.json and report.html.
    """
    from edgesparse.passes.write import write_atomic
    from edgesparse.sweeping.engine import run_cells
    from edgesparse.sweeping.frontier import as_json, panels_of
    from edgesparse.sweeping.grid import cells_of
    from edgesparse.sweeping.page import page
    from edgesparse.sweeping.spec import load_sweep
    from edgesparse.sweeping.store import Store

    wanted = load_sweep(path)
    cells, left_out = cells_of(wanted, cluster=scheduler is not None)
    store = Store(output or path.with_suffix(".sweep"))
    for reason in left_out:
        console.notice(f"left out: {reason}")
    if dry_run:
        _show_plan(console, cells, store)
        return 0
    with _runner(scheduler, jobs, wanted.timing.threads) as runner, console.progress("sweep") as tick:
        done = run_cells(cells, store, runner, progress=tick)
    data = as_json(cells, done, left_out)
    html = page(path.stem, panels_of(cells, done), cells, done, left_out)
    console.json(data, str(store.root / "report.json"))
    write_atomic(store.root / "report.html", html.encode())
    console.notice(f"wrote {store.root / 'report.html'}")
    if json_to:
        console.json(data, json_to)
    if json_to != "-":
        show(console, cells, done, left_out)
    return 1 if done.errors else 0


def show(console: Console, cells: list[Cell], done: Done, left_out: list[Reason]) -> None:
    """Print a table for each panel, then what failed."""
    from edgesparse.sweeping.frontier import panels_of
    from edgesparse.sweeping.page import table

    for panel in panels_of(cells, done):
        columns, rows = table(panel)
        console.table(columns, rows, title=panel.title, text_columns=("recipe", "on the frontier"))
    new = len(done.results) - done.kept
    console.result(f"{new} cells measured, {done.kept} were there, {len(done.errors)} failed, {len(left_out)} left out")
    for cell in cells:
        if error := done.errors.get(cell.key):
            console.notice(f"failed: {cell.name}: {error['what']}" + (f": {error['why']}" if error["why"] else ""))


def _show_plan(console: Console, cells: list[Cell], store: Store) -> None:
    rows = [(*cell.names().values(), "there" if store.get(cell) is not None else "to do") for cell in cells]
    columns = ("model", "recipe", "target", "device", "state")
    console.table(columns, rows, text_columns=columns)


@contextmanager
def _runner(scheduler: str | None, jobs: int | None, threads: int) -> Iterator[Runner]:
    from dataclasses import replace

    from edgesparse.sweeping.engine import cluster, here, local_slots

    if scheduler is None:
        yield here(min(jobs or 1024, local_slots(threads)))
        return
    with cluster(scheduler) as runner:
        yield replace(runner, slots=min(jobs or runner.slots, runner.slots))
