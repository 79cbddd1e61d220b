"""`inspect`: every layer of a model or an artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from edgesparse.commands import common
from edgesparse.console import Console

TEXT = ("layer", "op", "kind", "shape", "pattern", "kernel", "runner-up", "reason")
PLAN_TEXT = ("makes", "inside, band by band", "image", "shape", "layout", "resident")


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@common.shape_option
@click.option("--coupling", is_flag=True, help="Of a model: which channels must be permuted together, or why not.")
@click.option("--plan", "planned", is_flag=True, help="Stages, rings, buffers, and bytes moved by each cache level.")
@common.target_option
@common.threads_option
@common.json_option
@common.verbosity_options
@click.pass_obj
def inspect(
    console: Console,
    path: Path,
    shapes: tuple[str, ...],
    coupling: bool,
    planned: bool,
    target: str,
    threads: int,
    json_to: str | None,
) -> None:
    """Show every layer of PATH, a model (.onnx) or an artifact.

    Shape, pattern, density, operations and bytes; of an artifact also which kernel runs it, and why.
    """
    fixed = common.read_shapes(shapes)
    if planned:
        _inspect_plan(console, path, fixed, target, threads, json_to)
    elif coupling:
        _inspect_coupling(console, path, fixed, json_to)
    elif common.is_artifact(path):
        _inspect_artifact(console, path, json_to)
    else:
        _inspect_model(console, path, fixed, json_to)


def _inspect_model(console: Console, path: Path, shapes: Mapping[str, tuple[int, ...]], json_to: str | None) -> None:
    from edgesparse.graph.survey import survey

    with console.progress("inspect") as tick:
        tick(0.0, "reading the model")
        layers = survey(path, shapes, console.notice)
    if json_to:
        data = {"schema": "edgesparse.inspect/1", "model": str(path), "layers": [item.as_dict() for item in layers]}
        console.json(data, json_to)
        return
    rows = [
        (
            item.name,
            item.op,
            "x".join(map(str, item.shape)),
            item.pattern,
            f"{item.density:.3f}",
            f"{item.flops / 1e6:.2f}",
            f"{item.nbytes / 1e3:.1f}",
            "yes" if item.default else "by name",
        )
        for item in layers
    ]
    columns = ("layer", "op", "shape", "pattern", "density", "MFLOP dense", "kB dense", "pruned")
    console.table(columns, rows, text_columns=TEXT)
    weights = sum(item.weights for item in layers) or 1
    kept = sum(item.weights * item.density for item in layers)
    console.result(
        f"{len(layers)} layers with weights, {weights / 1e6:.2f} M weights, density {kept / weights:.3f}, "
        f"{sum(item.flops for item in layers) / 1e6:.0f} MFLOP dense"
    )


def _inspect_coupling(console: Console, path: Path, shapes: Mapping[str, tuple[int, ...]], json_to: str | None) -> None:
    from edgesparse.errors import UsageError
    from edgesparse.passes import SIMPLIFY, load_model, run_passes
    from edgesparse.passes.couple import couple

    if common.is_artifact(path):
        raise UsageError("--coupling is for models", why=f"{path} is an artifact", fix="give the .onnx file")
    model = run_passes(load_model(path, shapes, console.notice), SIMPLIFY).model
    sets = couple(model).sets
    if json_to:
        console.json({"schema": "edgesparse.coupling/1", "sets": [one.as_dict() for one in sets]}, json_to)
        return
    for one in sets:
        kind = "free" if one.reason is None else f"pinned: {one.reason}"
        heads = f" in each of {one.heads} heads on its own" if one.heads > 1 else ""
        console.result(f"set {one.space}  {one.size} channels{heads}, {kind}")
        for member in one.members:
            console.result(
                f"    {member.constant} axis {member.axis}" + (f" from {member.start}" if member.start else "")
            )
    free = [one for one in sets if one.reason is None]
    console.result(f"{len(free)} of {len(sets)} sets can be permuted, {sum(one.size for one in free)} channels")


def _inspect_plan(
    console: Console,
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    target: str,
    threads: int,
    json_to: str | None,
) -> None:
    """How a model would run on a target, or how an artifact runs on its own."""
    from edgesparse.advice.planview import choice_of, stage_table, value_table, view
    from edgesparse.artifacts.artifact import open_artifact
    from edgesparse.artifacts.verify import PORTABLE
    from edgesparse.graph.recognise import recognise
    from edgesparse.measuring.session import target_text
    from edgesparse.portable import prepare
    from edgesparse.target import Target

    opened = open_artifact(path) if common.is_artifact(path) else None
    chosen = Target.parse(target_text(opened.manifest.target) if opened else target)
    with console.progress("inspect") as tick:
        tick(0.0, "reading the model")
        graph = recognise(prepare(opened.file(PORTABLE) if opened else path, None, shapes, None, console.notice))
        tick(0.4, "planning")
        if opened is None:
            found = view(graph, chosen, threads=threads)
        else:
            info = opened.manifest.info
            found = view(
                graph,
                chosen,
                asked=choice_of(info),
                compiled=opened.manifest.layers,
                threads=int(info.get("threads", 1)),
                dense=bool(info.get("dense", False)),
            )
    if json_to:
        console.json(found.as_dict(), json_to)
        return
    for columns, rows in (stage_table(found), value_table(found)):
        console.table(columns, rows, text_columns=PLAN_TEXT)
    taken = found.decision
    console.result(f"{path} on {chosen}: {taken['order']}, bands of about {taken['band_pixels']} pixels")
    for rival in taken["considered"]:
        time = f"{rival['predicted'] / 1e6:.3f} {'ms' if taken['unit'] == 'ns' else 'Mcycles'}"
        console.result(f"  {rival['order']}, {rival['band_pixels']} pixels: {time} predicted")
    console.result(f"arena {found.arena / 1e3:.0f} kB; at most {found.least / 1e3:.0f} kB live at once")


def _inspect_artifact(console: Console, path: Path, json_to: str | None) -> None:
    from edgesparse.artifacts.artifact import open_artifact

    manifest = open_artifact(path).manifest
    if json_to:
        data = {
            "schema": "edgesparse.inspect/1",
            "artifact": str(path),
            "target": dict(manifest.target),
            "inputs": [str(item) for item in manifest.inputs],
            "outputs": [str(item) for item in manifest.outputs],
            "recipe": manifest.recipe,
            "tools": dict(manifest.tools),
            "info": dict(manifest.info),
            "layers": [dict(layer) for layer in manifest.layers],
        }
        console.json(data, json_to)
        return
    console.result(f"{path}  for {manifest.target.get('name')}")
    for label, ports in (("input ", manifest.inputs), ("output", manifest.outputs)):
        for port in ports:
            console.result(f"  {label} {port}")
    columns, rows = artifact_rows(manifest.layers)
    console.table(columns, rows, text_columns=TEXT)


def artifact_rows(layers: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return columns and rows of a manifest's layers; what a layer does not tell stays empty."""
    from edgesparse.measuring.report import layer_flops, reason_text

    columns: tuple[str, ...] = (
        "layer",
        "kind",
        "shape",
        "pattern",
        "density",
        "MFLOP",
        "kB",
        "kernel",
        "runner-up",
        "reason",
    )
    rows: list[tuple[str, ...]] = [
        (
            _text(layer.get("name")),
            _text(layer.get("kind")),
            _text(layer.get("shape")),
            _text(layer.get("pattern")),
            _scaled(layer.get("density"), 1, 3),
            _scaled(layer_flops(layer) or None, 1e6, 2),
            _scaled(layer.get("bytes"), 1e3, 1),
            _text(layer.get("kernel")),
            _text(layer.get("runner_up")),
            reason_text(layer),
        )
        for layer in layers
    ]
    return columns, rows


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "x".join(map(str, value))
    return "" if value is None else str(value)


def _scaled(value: Any, unit: float, digits: int) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value / unit:.{digits}f}" if number else ""
