"""`bench`: how much faster."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgesparse.commands import common
from edgesparse.console import Console

if TYPE_CHECKING:
    from edgesparse.artifacts.artifact import Artifact
    from edgesparse.measuring.bench import Plan
    from edgesparse.measuring.report import Report
    from edgesparse.measuring.session import Wanted
    from edgesparse.recipe import Recipe


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@common.target_option
@common.recipe_options
@common.shape_option
@click.option("--seconds", type=click.FloatRange(0.01, 3600), help="Time each at least so long.  [default: 10]")
@click.option("--runs", type=click.IntRange(1, 10**7), help="Time each at least so often.  [default: 100]")
@click.option("--quick", is_flag=True, help="1 s and 20 runs: for a first look.")
@click.option("--mlperf", is_flag=True, help="60 s and 1,024 runs at least, every run counted; p90 is told as well.")
@click.option("--no-dense", is_flag=True, help="Leave out the same model compiled dense.")
@click.option("--no-onnxruntime", is_flag=True, help="Leave out onnxruntime.")
@click.option("--no-memory", is_flag=True, help="Leave out peak memory.")
@click.option("--layers", is_flag=True, help="Show the time of every layer as well.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with all of it, layers and masks too.")
@click.option("--model-explorer", type=click.Path(path_type=Path), help="Write layer times as its node data (JSON).")
@click.option("--accuracy", multiple=True, metavar="NAME=VALUE", help="Accuracy to report beside. May be repeated.")
@click.option("--peak", type=click.FloatRange(0.001), help="GFLOP/s of one core, for the layers' share of it.")
@click.option(
    "--fail-below", type=click.FloatRange(0), help="Exit with 5 unless this many times as fast as onnxruntime."
)
@click.option(
    "--device",
    default="local",
    show_default=True,
    help="Where to run: local, node, chromium, wasmtime, qemu, ssh://user@host:port, adb://serial.",
)
@click.option("--cores", default="big", show_default=True, help="On a device: big, little, all, or a hex mask.")
@click.option(
    "--timeout", type=click.FloatRange(1), default=600, show_default=True, help="On a device: seconds for one run."
)
@click.option("--resume", is_flag=True, help="On a device: go on with the files that are there, and keep them.")
@common.threads_option
@common.seed_option
@common.json_option
@common.verbosity_options
@click.pass_obj
def bench(
    console: Console,
    path: Path,
    target: str,
    recipe: Path | None,
    pattern: str | None,
    density: float | None,
    sparsity: float | None,
    shapes: tuple[str, ...],
    seconds: float | None,
    runs: int | None,
    quick: bool,
    mlperf: bool,
    no_dense: bool,
    no_onnxruntime: bool,
    no_memory: bool,
    layers: bool,
    html: Path | None,
    model_explorer: Path | None,
    accuracy: tuple[str, ...],
    peak: float | None,
    fail_below: float | None,
    device: str,
    cores: str,
    timeout: float,
    resume: bool,
    threads: int,
    seed: int,
    json_to: str | None,
) -> None:
    """Measure PATH, an artifact or a model (.onnx), against dense and onnxruntime, in alternation.

    A model is compiled first, by --recipe, or --pattern and --density, if given. In a JavaScript engine, its bundle is
    measured against onnxruntime-web.
    """
    from edgesparse.errors import UsageError
    from edgesparse.measuring.bench import MLPERF, QUICK, Plan
    from edgesparse.measuring.session import Wanted, bench_artifact

    if fail_below is not None and no_onnxruntime:
        raise UsageError("--fail-below needs onnxruntime to compare with", fix="leave --no-onnxruntime out")
    if quick and mlperf:
        raise UsageError("--quick and --mlperf exclude each other")
    plan = replace(MLPERF if mlperf else QUICK if quick else Plan(), threads=threads, seed=seed)
    plan = replace(plan, seconds=seconds or plan.seconds, runs=runs or plan.runs)
    told = _read_accuracy(accuracy)
    rules = common.read_recipe(recipe, pattern, density, sparsity, seed)
    layers = layers or html is not None or model_explorer is not None
    wanted = Wanted(not no_dense, not no_onnxruntime, not no_memory, layers, peak, html is not None, html is not None)
    if device not in ("local", "node", "chromium", "wasmtime"):
        from edgesparse.commands.devices import bench_on
        from edgesparse.measuring import devicebench

        there = devicebench.Wanted(plan, cores, timeout, layers, not no_onnxruntime)
        with _artifact(console, path, target, rules, common.read_shapes(shapes)) as artifact:
            found = bench_on(console, artifact, device, there, told, resume=resume, json_to=json_to, html=html)
            if model_explorer is not None and found.report is not None:
                write_node_data(console, found.report, artifact, model_explorer)
        if fail_below is not None:
            if found.report is None:
                raise UsageError("--fail-below needs times", why=f"{device} is emulated", fix="use a real device")
            check_speed(found.report, fail_below)
        return
    if device != "local":
        if model_explorer is not None:
            raise UsageError("--model-explorer is for artifacts", why=f"{device} runs a bundle", fix="leave it out")
        report = _in_engine(console, path, device, rules, common.read_shapes(shapes), plan, wanted)
        show(console, replace(report, accuracy=told), json_to, html)
        if fail_below is not None:
            check_speed(report, fail_below)
        return
    with (
        _artifact(console, path, target, rules, common.read_shapes(shapes)) as artifact,
        console.progress("bench") as tick,
    ):
        report = bench_artifact(artifact, plan, wanted, progress=tick, notice=console.notice)
        if model_explorer is not None:
            write_node_data(console, report, artifact, model_explorer)
    report = replace(report, accuracy=told)
    show(console, report, json_to, html)
    if fail_below is not None:
        check_speed(report, fail_below)


def show(console: Console, report: Report, json_to: str | None = None, html: Path | None = None) -> None:
    """Print a report: its table, what must be known beside it, and its layers if it has them; write it if asked to."""
    from edgesparse.measuring.report import TEXT_COLUMNS, as_json, latency_table, layer_table, remarks

    if html is not None:
        from edgesparse.measuring.page import bench_page

        console.write(bench_page(as_json(report)), str(html))
    if json_to:
        console.json(as_json(report), json_to)
        if json_to == "-":
            return
    here, settings = report.environment, report.outcome.plan
    console.result(
        f"{report.subject['artifact']} for {report.subject['target']}, on {here['cpu']}, "
        f"{settings.threads} thread{'s' if settings.threads > 1 else ''}"
    )
    columns, rows = latency_table(report)
    console.table(columns, rows, text_columns=TEXT_COLUMNS)
    for text in remarks(report):
        console.result(f"note: {text}")
    if report.layers:
        columns, rows = layer_table(report.layers, report.peak)
        console.table(columns, rows, text_columns=TEXT_COLUMNS)


def write_node_data(console: Console, report: Report, artifact: Artifact, place: Path) -> None:
    """Write the layers' times for Model Explorer, to be shown on the artifact's portable model."""
    import json

    from edgesparse.artifacts.verify import PORTABLE
    from edgesparse.measuring.explorer import layer_nodes, node_data

    nodes, graph = layer_nodes(artifact.manifest.layers, artifact.file(PORTABLE))
    console.write(json.dumps(node_data(report.layers, nodes, graph), indent=2) + "\n", str(place))


def _read_accuracy(texts: tuple[str, ...]) -> dict[str, float]:
    """Read NAME=VALUE, several times. Raises UsageError."""
    from edgesparse.errors import UsageError

    found: dict[str, float] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not name or not equals or not math.isfinite(number):
            raise UsageError(f"--accuracy {text!r} cannot be read", fix="write it as top1=0.712")
        found[name] = number
    return found


def check_speed(report: Report, least: float) -> None:
    """Raise RegressionError unless the artifact is at least `least` times as fast as onnxruntime."""
    from edgesparse.errors import RegressionError
    from edgesparse.measuring.session import ORT

    found = next((item for item in report.outcome.comparisons if item.other.startswith(ORT)), None)
    if found is None:
        raise RegressionError("onnxruntime was not measured", why="see the notes above")
    if found.ratio < least:
        raise RegressionError(
            f"{found.ratio:.2f} times as fast as onnxruntime, not {least:g}",
            why=f"95 % interval {found.low:.2f} to {found.high:.2f}",
            fix="`edgesparse bench --layers` shows which layers take the time",
        )


def _in_engine(
    console: Console,
    path: Path,
    device: str,
    recipe: Recipe | None,
    shapes: dict[str, tuple[int, ...]],
    plan: Plan,
    wanted: Wanted,
) -> Report:
    """Bundle a model and measure it in a JavaScript engine, or in wasmtime."""
    from edgesparse.errors import UsageError
    from edgesparse.measuring.bench import portion
    from edgesparse.measuring.cores import pinned
    from edgesparse.measuring.webbench import bench_engine, built, check_engine
    from edgesparse.runtimes.engines import Engine
    from edgesparse.runtimes.wasm import Wasmtime

    if common.is_artifact(path):
        raise UsageError(f"{path} is not a model", why=f"{device} runs bundles", fix="give the model: MODEL.onnx")
    check_engine(device, plan.threads)
    with (
        console.progress("bench") as tick,
        built(
            path,
            recipe,
            shapes,
            dense=wanted.dense,
            threads=plan.threads,
            progress=portion(tick, 0.0, 0.3),
            notice=console.notice,
        ) as it,
        pinned(plan.threads),
        Wasmtime() if device == Wasmtime.kind else Engine(device) as engine,
    ):
        return bench_engine(
            engine,
            it,
            plan,
            onnxruntime=wanted.onnxruntime,
            layers=wanted.layers,
            masks=wanted.masks,
            peak=wanted.peak,
            progress=portion(tick, 0.3, 1.0),
            notice=console.notice,
        )


@contextmanager
def _artifact(
    console: Console, path: Path, target: str, recipe: Recipe | None, shapes: dict[str, tuple[int, ...]]
) -> Iterator[Artifact]:
    """Open the artifact, or compile the model into a folder that is gone afterwards."""
    from edgesparse.artifacts.artifact import open_artifact
    from edgesparse.errors import UsageError

    if common.is_artifact(path):
        if recipe is not None or shapes:
            raise UsageError(f"{path} is compiled already", fix="leave recipe and shapes out, or give the model")
        yield open_artifact(path)
        return
    from edgesparse.pipeline import compile_model
    from edgesparse.target import Target

    with tempfile.TemporaryDirectory(prefix="edgesparse-") as room:
        with console.progress("compile") as tick:
            artifact = compile_model(
                path,
                target=Target.parse(target),
                recipe=recipe,
                shapes=shapes,
                output=Path(room) / path.stem,
                progress=tick,
                notice=console.notice,
            )
        assert artifact is not None, "only stop_after ends without an artifact"
        yield artifact
