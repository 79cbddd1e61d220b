"""MobileNet-v1 in a JavaScript engine: speed against onnxruntime-web, two threads against one, start, and sizes.

    python benchmarks/wasm.py chromium            # or node
    python benchmarks/wasm.py node --program /path/to/node24/bin/node

Needs `npm install onnxruntime-web` here (`make test` puts it into build/web). All contenders of a table are timed in
turn in one process; a speedup is the median of the paired ratios with its 95 % interval. Where other work goes on, the
least times are the better guide: noise only adds. A start is timed in a process of its own, to the first result: from
files that are in memory, the choice of the variant and the check of the weights included; in a page also from the last
byte that came.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from edgesparse.cli import ending_cleanly
from edgesparse.commands.common import read_recipe
from edgesparse.measuring.bench import Contender, Measured, Outcome, Plan, measure
from edgesparse.measuring.stats import Comparison, compare
from edgesparse.measuring.webbench import ORT_WEB, Built, EngineContender, size_of
from edgesparse.models.exporting import export
from edgesparse.runtimes.engines import Engine, find_package
from edgesparse.web.bundle import THREADS, VARIANTS, Bundle, bundle_model, open_bundle

#: Speedups over onnxruntime-web that the project set itself, by variant and density.
TARGETS = {("relaxed", 1.0): 1.6, ("relaxed", 0.3): 4.5, ("relaxed", 0.1): 8.0}
TARGETS |= {("simd", 1.0): 1.1, ("simd", 0.3): 3.2, ("simd", 0.1): 6.0}

PARTS = ("speed", "threads", "start", "size")

#: Starts that are timed of each bundle.
STARTS = 9

#: Bytes per second at which pages are served.
NETWORKS = {"loopback": 0.0, "100 Mbit/s": 12.5e6}

Bundles = dict[float, Bundle]


@click.command()
@click.argument("kind", type=click.Choice(("node", "chromium")))
@click.option("--program", help="The engine's program, if it is not the one on the path.")
@click.option("--model", default="mobilenet-v1", show_default=True)
@click.option("--pattern", default="group:8x1", show_default=True)
@click.option("--density", "densities", type=float, multiple=True, default=(0.3, 0.1), show_default=True)
@click.option("--seconds", type=float, default=10.0, show_default=True)
@click.option("--runs", type=int, default=100, show_default=True, help="Of each contender at least.")
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, default=PARTS, show_default=True)
@click.option("--bundles", "place", type=click.Path(path_type=Path), help="Keep the bundles here, or take those there.")
def main(
    kind: str,
    program: str | None,
    model: str,
    pattern: str,
    densities: tuple[float, ...],
    seconds: float,
    runs: int,
    parts: tuple[str, ...],
    place: Path | None,
) -> None:
    """Print the tables."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(ending_cleanly())
        room = place or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        room.mkdir(parents=True, exist_ok=True)
        onnx = room / "model.onnx"
        if not onnx.exists():
            export(model, onnx)
        bundles = _bundles(onnx, room, pattern, densities)
        with Engine(kind, program=program) as engine:
            plan = Plan(seconds=seconds, runs=runs)
            click.echo(f"{engine.told['engine']}; {model}, {pattern}")
            if "speed" in parts:
                portable = room / f"portable-{densities[0]:g}.onnx"
                _speed(engine, bundles, portable, plan)
            if "threads" in parts:
                _threads(engine, bundles, plan)
        if "start" in parts:
            _starts(kind, program, bundles)
        if "size" in parts:
            _sizes(bundles, onnx.stat().st_size)


def _bundles(onnx: Path, room: Path, pattern: str, densities: Sequence[float]) -> Bundles:
    """The bundles by density; 1 is dense, the same model that the first density makes."""

    def made(name: str, source: Path, **options: object) -> Bundle:
        path = room / name
        return open_bundle(path) if path.exists() else bundle_model(source, output=path, **options)  # type: ignore[arg-type]

    found: Bundles = {}
    for density in densities:
        recipe, portable = read_recipe(None, pattern, density, None), room / f"portable-{density:g}.onnx"
        found[density] = made(f"density-{density:g}", onnx, recipe=recipe, portable=portable)
    first = room / f"portable-{densities[0]:g}.onnx"
    return {1.0: made("dense", first, dense=True), **found}


def _speed(engine: Engine, bundles: Bundles, portable: Path, plan: Plan) -> None:
    """One thread: both variants at each density, against onnxruntime-web and against the own dense form."""
    dense = bundles[1.0]
    built = Built(dense, None, portable)
    found: dict[tuple[str, float], Contender] = {}
    base = engine.load_onnx(find_package(ORT_WEB), portable, built.inputs, built.outputs)
    told = _load(engine, dense, threads=1).model.told["variant"]
    for variant in reversed(VARIANTS):
        for density, bundle in bundles.items():
            try:
                found[variant, density] = _load(engine, bundle, variant=variant, threads=1)
            except Exception as error:
                click.echo(f"{variant}: {error}", err=True)
                break
    outcome = measure([EngineContender(ORT_WEB, base), *found.values()], plan)
    click.echo(f"\nOne thread; a session picks {told} SIMD here\n")
    click.echo("| variant | density | p50 ms | min ms | speedup, paired [95 %] | by the least | aim | over own dense |")
    click.echo("|---|---|---|---|---|---|---|---|")
    least = outcome[ORT_WEB].stats
    click.echo(f"| {ORT_WEB} | 1 | {least.p50 * 1e3:.2f} | {_least(outcome[ORT_WEB]) * 1e3:.2f} | 1 | 1 | | |")
    for (variant, density), item in found.items():
        own = f"{_over(outcome, found[variant, 1.0].name, item.name).ratio:.2f}" if density != 1 else ""
        aim = TARGETS.get((variant, density), "")
        click.echo(f"| {variant} | {density:g} | {_row(outcome, ORT_WEB, item.name)} | {aim} | {own} |")


def _threads(engine: Engine, bundles: Bundles, plan: Plan) -> None:
    """Two threads against one, with the code that a session picks."""
    pairs = {
        density: (_load(engine, bundle, threads=1), _load(engine, bundle, threads=2))
        for density, bundle in bundles.items()
    }
    click.echo("\nTwo threads against one\n")
    click.echo("| density | p50 ms on one | p50 ms | min ms | speedup, paired [95 %] | by the least |")
    click.echo("|---|---|---|---|---|---|")
    for density, (one, two) in pairs.items():
        assert two.model.told["threads"] == 2, "no threads here"
        outcome = measure([one, two], plan)
        alone = outcome[one.name].stats.p50 * 1e3
        click.echo(f"| {density:g} | {alone:.2f} | {_row(outcome, one.name, two.name)} |")


def _starts(kind: str, program: str | None, bundles: Bundles) -> None:
    """To the first result, each time in a fresh process: from files in memory, and after a page has loaded them."""
    click.echo(f"\nFrom the files in memory to the first result, one thread, {STARTS} fresh processes each\n")
    click.echo("| density | session ms | first run ms | both: median ms | both: worst ms |")
    click.echo("|---|---|---|---|---|")
    for density, bundle in bundles.items():
        job = {"deed": "start", "names": bundle.manifest["modules"], "options": {"threads": 1}}
        told = _fresh(kind, program, bundle, job)
        both = [each["made"] + each["run"] for each in told]
        click.echo(
            f"| {density:g} | {_median(each['made'] for each in told)} | {_median(each['run'] for each in told)} | "
            f"{_median(both)} | {max(both) * 1e3:.1f} |"
        )
    if kind != "chromium":
        return
    click.echo(f"\nFrom the last byte to the first result, as pages load bundles, {STARTS} fresh browsers each\n")
    click.echo("| density | network | whole ms | after the last byte: median ms | worst ms |")
    click.echo("|---|---|---|---|---|")
    for density, bundle in bundles.items():
        for network, pace in NETWORKS.items():
            told = _fresh(kind, program, bundle, {"deed": "open", "options": {"threads": 1}}, pace=pace)
            after = [each["after"] for each in told]
            whole = _median(each["whole"] for each in told)
            click.echo(f"| {density:g} | {network} | {whole} | {_median(after)} | {max(after) * 1e3:.1f} |")


def _fresh(
    kind: str, program: str | None, bundle: Bundle, job: dict[str, object], **options: float
) -> list[dict[str, float]]:
    """What processes of their own tell of a bundle."""
    told = []
    for _ in range(STARTS):
        with Engine(kind, program=program, **options) as engine:  # type: ignore[arg-type]
            told.append(engine.ask({**job, "url": engine.address(bundle.path)}))
    return told


def _median(seconds: Iterable[float]) -> str:
    return f"{statistics.median(seconds) * 1e3:.1f}"


def _sizes(bundles: Bundles, onnx_bytes: int) -> None:
    click.echo(f"\nSizes; the ONNX file has {onnx_bytes / 1e6:.2f} MB; made for {THREADS} threads\n")
    click.echo("| density | code kB, gzipped | weights MB | of the ONNX file | download MB |")
    click.echo("|---|---|---|---|---|")
    for density, bundle in bundles.items():
        weights = bundle.manifest["files"]["weights.bin"]["size"]
        click.echo(
            f"| {density:g} | {bundle.code_gzipped / 1e3:.1f} | {weights / 1e6:.2f} | {weights / onnx_bytes:.3f} | "
            f"{size_of(bundle) / 1e6:.2f} |"
        )


def _load(engine: Engine, bundle: Bundle, **options: object) -> EngineContender:
    built = Built(bundle, None, bundle.path)
    model = engine.load_bundle(bundle.path, built.inputs, built.outputs, **options)
    return EngineContender(model.name, model)


def _row(outcome: Outcome, base: str, name: str) -> str:
    """Median and least time in ms, and how many times as fast as the base."""
    it, ratio = outcome[name], _over(outcome, base, name)
    least = _least(outcome[base]) / _least(it)
    paired = f"{ratio.ratio:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"{it.stats.p50 * 1e3:.2f} | {_least(it) * 1e3:.2f} | {paired} | {least:.2f}"


def _over(outcome: Outcome, base: str, name: str) -> Comparison:
    """How many times as fast as the base a contender is."""
    return compare(outcome[name].samples, outcome[base].samples, seed=outcome.plan.seed)


def _least(measured: Measured) -> float:
    return min(float(value) for value in measured.samples.flat)


if __name__ == "__main__":
    main()
