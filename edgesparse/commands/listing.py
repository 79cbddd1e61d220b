"""`targets`, `patterns` and `cache`: what there is."""

from __future__ import annotations

import click

from edgesparse.commands.common import json_option, verbosity_options
from edgesparse.console import Console


@click.command()
@json_option
@verbosity_options
@click.pass_obj
def targets(console: Console, json_to: str | None) -> None:
    """List what can be compiled for."""
    from edgesparse.errors import UsageError
    from edgesparse.target import TARGETS, native

    try:
        host = native().name
    except UsageError:
        host = ""
    if json_to:
        rows = [
            {
                "name": target.name,
                "triple": target.triple,
                "cpu": target.cpu,
                "features": list(target.features),
                "lanes": target.lanes,
                "registers": target.registers,
                "runner": target.runner,
                "runs_here": target.runs_here(),
                "native": target.name == host,
            }
            for target in TARGETS
        ]
        console.json({"schema": "edgesparse.targets/1", "targets": rows}, json_to)
        return
    cells = [
        (
            target.name,
            target.triple,
            str(target.lanes),
            str(target.registers),
            target.runner,
            "yes (native)" if target.name == host else "yes" if target.runs_here() else "no",
        )
        for target in TARGETS
    ]
    columns = ("target", "triple", "f32 lanes", "registers", "runner", "runs here")
    console.table(columns, cells, text_columns=("target", "triple", "runner", "runs here"))


@click.command()
@json_option
@verbosity_options
@click.pass_obj
def patterns(console: Console, json_to: str | None) -> None:
    """List the sparsity patterns that layers can be pruned to."""
    from edgesparse.pattern import PATTERNS

    if json_to:
        rows = [
            {
                "name": kind.name,
                "grammar": kind.grammar,
                "meaning": kind.meaning,
                "fixed_density": kind.fixed,
            }
            for kind in PATTERNS
        ]
        console.json({"schema": "edgesparse.patterns/1", "patterns": rows}, json_to)
        return
    cells = [
        (
            kind.grammar,
            kind.meaning,
            "its own" if kind.fixed else "--density",
        )
        for kind in PATTERNS
    ]
    columns = ("pattern", "meaning", "density")
    console.table(columns, cells, text_columns=columns)


@click.command()
@click.option("--clear", is_flag=True, help="Remove everything in it.")
@json_option
@verbosity_options
@click.pass_obj
def cache(console: Console, clear: bool, json_to: str | None) -> None:
    """Show the cache of compiled layers: where it is and how full; --clear empties it."""
    from edgesparse import cache as store

    found = store.clear() if clear else store.stats()
    data = {
        "path": str(found.root),
        "entries": found.entries,
        "bytes": found.nbytes,
        "limit_bytes": found.limit,
        "cleared": clear,
    }
    if json_to:
        console.json({"schema": "edgesparse.cache/1", **data}, json_to)
        return
    size = f"{found.entries} entries, {found.nbytes / 1e6:.1f} MB"
    if clear:
        console.result(f"removed {size} from {found.root}")
    else:
        console.result(f"{found.root}: {size} of at most {found.limit / 1e6:.0f} MB")
