"""MobileNet-v1 in a JavaScript engine: both variants of the code at some densities, against onnxruntime-web.

    python benchmarks/wasm.py chromium            # or node
    python benchmarks/wasm.py node --program /path/to/node24/bin/node

Needs `npm install onnxruntime-web` here (`make test` puts it into build/web). All contenders are timed in turn in one
process; the speedup is the median of the paired ratios with its 95 % interval. Where other work goes on, the least
times are the better guide: noise only adds.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import click

from edgesparse.commands.common import read_recipe
from edgesparse.measuring.bench import Contender, Measured, Plan, measure
from edgesparse.measuring.webbench import ORT_WEB, Built, EngineContender, built, size_of
from edgesparse.models.exporting import export
from edgesparse.runtimes.engines import Engine, find_package

#: Speedups over onnxruntime-web that the project set itself, by variant and density.
TARGETS = {("relaxed", 1.0): 1.6, ("relaxed", 0.3): 4.5, ("relaxed", 0.1): 8.0}
TARGETS |= {("simd", 1.0): 1.1, ("simd", 0.3): 3.2, ("simd", 0.1): 6.0}


@click.command()
@click.argument("kind", type=click.Choice(("node", "chromium")))
@click.option("--program", help="The engine's program, if it is not the one on the path.")
@click.option("--model", default="mobilenet-v1", show_default=True)
@click.option("--pattern", default="group:8x1", show_default=True)
@click.option("--density", "densities", type=float, multiple=True, default=(0.3, 0.1), show_default=True)
@click.option("--seconds", type=float, default=10.0, show_default=True)
def main(
    kind: str, program: str | None, model: str, pattern: str, densities: tuple[float, ...], seconds: float
) -> None:
    """Print the table."""
    with contextlib.ExitStack() as stack:
        room = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        onnx = export(model, room / "model.onnx")
        made: dict[float, Built] = {}
        for density in densities:
            recipe = read_recipe(None, pattern, density, None)
            made[density] = stack.enter_context(built(onnx, recipe, dense=not made))
        engine = stack.enter_context(Engine(kind, program=program))
        found = _contenders(engine, made)
        outcome = measure([item for _, _, item in found], Plan(seconds=seconds))
        click.echo(f"{engine.told['engine']}; {model}, {pattern}; one thread")
        click.echo("| variant | density | p50 ms | min ms | speedup, paired [95 %] | by the least | aim |")
        click.echo("|---|---|---|---|---|---|---|")
        base = outcome[ORT_WEB]
        for (variant, density, item), comparison in zip(found, (None, *outcome.comparisons), strict=True):
            it = outcome[item.name]
            paired = "1"
            if comparison:  # of onnxruntime-web over this one
                paired = f"{1 / comparison.ratio:.2f} [{1 / comparison.high:.2f}, {1 / comparison.low:.2f}]"
            least = min(_times(base)) / min(_times(it))
            aim = TARGETS.get((variant, density), "")
            p50, fastest = it.stats.p50 * 1e3, min(_times(it)) * 1e3
            click.echo(f"| {variant} | {density:g} | {p50:.2f} | {fastest:.2f} | {paired} | {least:.2f} | {aim} |")
        for density, each in made.items():
            weights = each.sparse.manifest["files"]["weights.bin"]["size"]
            share = weights / onnx.stat().st_size
            click.echo(
                f"density {density:g}: code {each.sparse.code_gzipped / 1e3:.1f} kB gzipped, weights {share:.3f} of "
                f"the dense file, download {size_of(each.sparse) / 1e6:.2f} MB"
            )


def _contenders(engine: Engine, made: dict[float, Built]) -> list[tuple[str, float, Contender]]:
    """onnxruntime-web first: variant, density, contender."""
    first = next(iter(made.values()))
    other = engine.load_onnx(find_package(ORT_WEB), first.portable, first.inputs, first.outputs)
    found: list[tuple[str, float, Contender]] = [(ORT_WEB, 1.0, EngineContender(ORT_WEB, other))]
    told = engine.load_bundle(first.sparse.path, first.inputs, first.outputs).told["variant"]
    click.echo(f"a session picks {told} SIMD here", err=True)
    for variant in ("relaxed", "simd"):
        bundles = {1.0: first.dense, **{density: it.sparse for density, it in made.items()}}
        for density, bundle in bundles.items():
            assert bundle is not None
            try:
                loaded = engine.load_bundle(bundle.path, first.inputs, first.outputs, variant=variant)
            except Exception as error:
                click.echo(f"{variant}: {error}", err=True)
                break
            found.append((variant, density, EngineContender(f"{variant} {density:g}", loaded)))
    return found


def _times(measured: Measured) -> list[float]:
    return [float(value) for value in measured.samples.flat]


if __name__ == "__main__":
    main()
