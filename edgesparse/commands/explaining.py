"""`profile`, `explain` and `predict`: what each layer does, why it is not faster, and what sparsity would bring."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgesparse.commands import common
from edgesparse.console import Console

if TYPE_CHECKING:
    from edgesparse.advice.explain import Explanation
    from edgesparse.advice.predict import Prediction
    from edgesparse.artifacts.artifact import Artifact
    from edgesparse.costing.costs import CostTable
    from edgesparse.target import Target

TEXT = ("layer", "kind", "pattern", "kernel", "runner-up", "bound by", "cause", "why", "what to do")


@click.command()
@common.artifact_argument
@click.option("--runs", type=click.IntRange(5, 10000), default=60, show_default=True, help="Profile runs.")
@common.json_option
@common.verbosity_options
@click.pass_obj
def profile(console: Console, artifact: Path, runs: int, json_to: str | None) -> None:
    """Show what every layer of ARTIFACT does here: time, GFLOP/s, share of the peak, bytes, and what bounds it.

    The core's peak and its bandwidth from each cache level are measured first.
    """
    from edgesparse.artifacts.artifact import open_artifact
    from edgesparse.measuring.layerwork import as_json, profile_artifact
    from edgesparse.measuring.roofline import measure_roofline
    from edgesparse.measuring.session import target_text
    from edgesparse.runtimes.base import check_host
    from edgesparse.target import Target

    opened = open_artifact(artifact)
    check_host(opened)
    with console.progress("profile") as tick:
        tick(0.0, "building the probes")
        chosen = Target.parse(target_text(opened.manifest.target))
        roof = measure_roofline(chosen, lambda share, text: tick(0.6 * share, text))
        rows = profile_artifact(opened, roof, runs=runs, tick=lambda share, text: tick(0.6 + 0.3 * share, text))
    if json_to:
        console.json(as_json(opened, roof, rows), json_to)
        return
    speeds = ", ".join(f"{level} {rate:.0f}" for level, rate in roof.gbytes.items())
    console.result(f"{artifact}: one core's peak {roof.gflops:.0f} GFLOP/s; loads, GB/s: {speeds}")
    cells = [
        (
            row.name,
            f"{1e6 * row.seconds:.1f}",
            f"{100 * row.share:.1f} %",
            f"{row.gflops:.1f}" if row.flops else "",
            f"{100 * row.peak_share:.0f} %" if row.flops else "",
            *(f"{row.moved[level] / 1e3:.0f}" for level in ("l2", "l3", "memory")),
            row.bound,
            row.kernel,
        )
        for row in rows
    ]
    columns = ("layer", "us", "share", "GFLOP/s", "of peak", "kB of L2", "of L3", "of memory", "bound by", "kernel")
    console.table(columns, cells, text_columns=TEXT)


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@common.target_option
@common.shape_option
@click.option("--measure", is_flag=True, help="Also time every layer against the same one compiled dense.")
@common.json_option
@common.verbosity_options
@click.pass_obj
def explain(
    console: Console, path: Path, target: str, shapes: tuple[str, ...], measure: bool, json_to: str | None
) -> None:
    """Say why PATH, a model (.onnx) or an artifact, is as fast as it is, layer by layer, and what to do about it.

    Causes follow from weights, target and cost model, never from the clock: the same model gets the same answer.
    """
    from edgesparse.advice.explain import explain as explained
    from edgesparse.advice.planview import choice_of
    from edgesparse.artifacts.artifact import open_artifact
    from edgesparse.artifacts.verify import PORTABLE
    from edgesparse.graph.recognise import recognise
    from edgesparse.measuring.session import target_text
    from edgesparse.portable import prepare
    from edgesparse.target import Target

    fixed = common.read_shapes(shapes)
    opened = open_artifact(path) if common.is_artifact(path) else None
    chosen = Target.parse(target_text(opened.manifest.target) if opened else target)
    model = opened.file(PORTABLE) if opened else path
    with console.progress("explain") as tick:
        start = 0.9 if measure else 0.3
        ratios = None
        if measure:
            ratios = _measured(model, opened, chosen, fixed, lambda share, text: tick(start * share, text))
        else:
            tick(0.0, "reading the model")
        graph = recognise(prepare(model, None, fixed, None, console.notice))
        layers = opened.manifest.layers if opened else None
        asked = choice_of(opened.manifest.info) if opened else None
        found = explained(
            graph,
            chosen,
            compiled=layers,
            asked=asked,
            measured=ratios,
            tick=lambda share, text: tick(start + (1 - start) * share, text),
        )
    if json_to:
        console.json(found.as_dict(), json_to)
        return
    _show_explanation(console, found, str(path))


def _measured(
    model: Path,
    opened: Artifact | None,
    target: Target,
    shapes: dict[str, tuple[int, ...]],
    tick: Callable[[float, str], None],
) -> dict[str, float]:
    """Each layer's ratio against dense by the clock; compiles what is not there."""
    from edgesparse.errors import UsageError
    from edgesparse.measuring.layerwork import measured_ratios
    from edgesparse.pipeline import compile_model

    if not target.runs_here():
        raise UsageError(f"{target.name} does not run here", fix="leave --measure out: the cost model needs no device")
    with tempfile.TemporaryDirectory(prefix="edgesparse-explain-") as room:
        made = []
        for index, dense in enumerate((False, True)):

            def step(share: float, text: str, first: float = 0.45 * index) -> None:
                tick(first + 0.45 * share, text)

            if opened is not None and not dense:
                made.append(opened)
                continue
            out = Path(room) / ("dense" if dense else "sparse")
            artifact = compile_model(
                model,
                target=target,
                output=out,
                shapes=shapes,
                dense=dense,
                strassen=opened is not None and bool(opened.manifest.info.get("strassen")),
                progress=step,
            )
            assert artifact is not None
            made.append(artifact)
        tick(0.9, "timing layers")
        return measured_ratios(*made)


def _show_explanation(console: Console, found: Explanation, path: str) -> None:
    timed = any(layer.measured is not None for layer in found.layers)
    columns = (
        "layer",
        "kind",
        "pattern",
        "density",
        "kernel",
        "runner-up",
        "of time",
        "x dense",
        *(("measured",) if timed else ()),
        "even at",
    )
    cells = [
        (
            layer.name,
            layer.kind,
            layer.pattern,
            "" if layer.density is None else f"{layer.density:.2f}",
            layer.kernel,
            layer.runner_up,
            f"{100 * layer.share:.1f} %",
            f"{layer.predicted:.2f}",
            *(("" if layer.measured is None else f"{layer.measured:.2f}",) if timed else ()),
            "" if layer.break_even is None else f"{layer.break_even:.2f}",
            layer.cause,
        )
        for layer in found.layers
    ]
    console.table((*columns, "cause"), cells, text_columns=TEXT)
    for layer in found.layers:
        if layer.pruned and (layer.advice or layer.cause != "as-expected"):
            console.result(f"{layer.name}: {layer.why}{'; ' + layer.advice if layer.advice else ''}")
    console.result(f"{path} on {found.target}: {found.predicted:.2f} times as fast as dense, predicted")
    console.result(f"cause: {found.cause}: {found.why}")
    if found.advice:
        console.result(f"what to do: {found.advice}")
    _show_basis(console, found.table)


def _show_basis(console: Console, table: CostTable) -> None:
    """What the cost model stands on, and how far it was off."""
    console.result(f"cost model: {table.basis}")
    for network, error in table.errors.items():
        console.detail(
            f"  {network}: missed by {100 * error['median']:.0f} % in the median, {100 * error['worst']:.0f} % at worst"
        )
    if table.errors:
        medians = [error["median"] for error in table.errors.values()]
        worst = max(error["worst"] for error in table.errors.values())
        far = sum(error["over_30"] for error in table.errors.values())
        layers = sum(error["layers"] for error in table.errors.values())
        console.result(
            f"  a layer's time was missed by {100 * min(medians):.0f} to {100 * max(medians):.0f} % in the median of "
            f"{len(medians)} networks, by over 30 % for {far} of {layers} layers, by {100 * worst:.0f} % at worst"
        )


@click.command()
@common.model_argument
@common.target_option
@common.shape_option
@click.option(
    "--patterns", default="unstructured,group:4x1,group:8x1,group:16x1", show_default=True, help="Patterns to compare."
)
@click.option("--densities", default="0.7,0.5,0.3,0.2,0.1,0.05", show_default=True, help="Shares of weights kept.")
@click.option("--layers", default="", help="Names or kinds of layers to prune, e.g. conv1x1.  [default: as recipes do]")
@click.option("--measure", is_flag=True, help="Also prune, compile and time every point, against dense in one run.")
@click.option("--plot", type=click.Path(path_type=Path), help="FILE.svg: speedup over density.")
@common.seed_option
@common.force_option
@common.json_option
@common.verbosity_options
@click.pass_obj
def predict(
    console: Console,
    model: Path,
    target: str,
    shapes: tuple[str, ...],
    patterns: str,
    densities: str,
    layers: str,
    measure: bool,
    plot: Path | None,
    seed: int,
    force: bool,
    json_to: str | None,
) -> None:
    """Predict what pruning MODEL would bring on a target: latency over density for each pattern.

    Nothing is trained, and without --measure nothing is compiled.
    """
    from edgesparse.advice import predict as predicting
    from edgesparse.errors import UsageError
    from edgesparse.graph.recognise import recognise
    from edgesparse.passes.write import write_atomic
    from edgesparse.portable import prepare
    from edgesparse.target import Target

    if plot is not None and plot.suffix != ".svg":
        raise UsageError(f"--plot {plot} does not end in .svg", fix="plots are written as SVG")
    if plot is not None and plot.exists() and not force:
        raise UsageError(f"{plot} is there already", fix="choose another --plot, or --force")
    chosen = Target.parse(target)
    if measure and not chosen.runs_here():
        raise UsageError(f"{chosen.name} does not run here", fix="leave --measure out")
    fixed = common.read_shapes(shapes)
    wanted = _shares(densities)
    with console.progress("predict") as tick:
        prepared = prepare(model, None, fixed, None, console.notice)
        names = _pruned(prepared, layers)
        found = predicting.predict(
            recognise(prepared),
            chosen,
            pruned=names,
            patterns=[text.strip() for text in patterns.split(",")],
            densities=wanted,
            seed=seed,
            tick=lambda share, text: tick(share * (0.1 if measure else 1.0), text),
        )
        if measure:
            from edgesparse.advice.confirm import confirm

            found = confirm(
                found, model, chosen, sorted(names), fixed, lambda share, text: tick(0.1 + 0.9 * share, text)
            )
    if plot is not None:
        write_atomic(plot, predicting.plot(found).encode())
        console.notice(f"wrote {plot}")
    if json_to:
        console.json(found.as_dict(), json_to)
        return
    _show_prediction(console, found, model.name)


def _shares(text: str) -> list[float]:
    from edgesparse.errors import UsageError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--densities {text!r} cannot be read", fix="write them as 0.5,0.3,0.1") from error


def _pruned(model: object, text: str) -> set[str]:
    """Names of the layers to prune: by selectors, or those that a recipe takes without naming them."""
    import onnx_ir as ir

    from edgesparse.errors import UsageError
    from edgesparse.passes import weight_layers
    from edgesparse.select import Candidate, Selector

    assert isinstance(model, ir.Model)
    found = weight_layers(model)
    if not text:
        return {layer.name for layer in found if layer.default}
    options = [Candidate(layer.name, layer.op_type, layer.default, layer.kind) for layer in found]
    names: set[str] = set()
    for part in text.split(","):
        mine = Selector(part.strip()).match(options)
        if not mine:
            raise UsageError(
                f"--layers: nothing is called {part.strip()!r}", fix="`edgesparse inspect MODEL` lists layers"
            )
        names |= mine
    return names


def _show_prediction(console: Console, found: Prediction, name: str) -> None:
    unit, scale = ("ms", 1e6) if found.table.measured else ("Mcycles", 1e6)
    columns = ["pattern", "density", f"predicted {unit}", "x dense"]
    timed = any(point.measured is not None for point in found.points)
    columns += ["measured ms", "x dense, measured"] if timed else []
    rows = [("dense", "1", f"{found.dense / scale:.3f}", "1.00", *(["", ""] if timed else []))]
    for point in found.points:
        row = (point.pattern, f"{point.density:g}", f"{point.time / scale:.3f}", f"{point.speedup:.2f}")
        more = (f"{1e3 * (point.measured or 0):.3f}", f"{point.measured_speedup or 0:.2f}") if timed else ()
        rows.append((*row, *more))
    console.table(columns, rows, text_columns=("pattern",))
    console.result(f"{name} on {found.target}, {len(found.layers)} layers pruned")
    _show_basis(console, found.table)
