"""Speedup over density: one network at several densities against onnxruntime, all in one run, in alternation.

    python benchmarks/density.py --model mobilenet-v1 --pattern group:8x1 -o out/density

writes a table (Markdown), all figures (JSON) and a plot (SVG). 1x1 convolutions are pruned by magnitude; the first
convolution, depthwise and fully connected layers stay dense, as is usual in the literature. Density 1 runs the dense
kernels. OpenVINO joins where it is installed (`pip install openvino`).

Beside the speedup stands what bounds it: the share of the cores' peak at which a program makes its multiply-adds, all
other work included, and the speedup that it would have if that were all of the peak (least times, as the peak is one).
"""

from __future__ import annotations

import functools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from edgesparse import environment
from edgesparse.artifacts.artifact import open_artifact
from edgesparse.measuring import memory
from edgesparse.measuring.bench import Contender, Plan, measure
from edgesparse.measuring.contenders import ArtifactContender, OrtContender
from edgesparse.measuring.peak import peak_gflops
from edgesparse.measuring.report import layer_flops
from edgesparse.measuring.stats import compare
from edgesparse.models import model_path
from edgesparse.models import spec as model_spec
from edgesparse.passes import SIMPLIFY, load_model, run_passes, weight_layers
from edgesparse.pipeline import compile_model
from edgesparse.recipe import Recipe
from edgesparse.target import Target

ORT = "onnxruntime"


class OpenVinoContender:
    """OpenVINO's CPU plugin for latency, on as many threads as the others, inputs bound once."""

    def __init__(self, model: Path, feeds: dict[str, np.ndarray], threads: int) -> None:
        import openvino

        started = time.perf_counter()
        core = openvino.Core()
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        self._request = core.compile_model(str(model), "CPU", hints).create_infer_request()
        for name, value in feeds.items():
            self._request.set_tensor(name, openvino.Tensor(np.ascontiguousarray(value)))
        self.load_seconds = time.perf_counter() - started
        self.name = "openvino"

    def run_once(self) -> float:
        """Run once and return the seconds it took."""
        started = time.perf_counter_ns()
        self._request.infer()
        return (time.perf_counter_ns() - started) / 1e9


def recipe_for(model: Path, pattern: str, density: float) -> Recipe | None:
    """Prune all 1x1 convolutions to one density."""
    if density >= 1:
        return None
    simple = run_passes(load_model(model), SIMPLIFY).model
    names = [layer.name for layer in weight_layers(simple) if layer.kind == "conv1x1"]
    return Recipe.from_dict({"pattern": pattern, "density": density, "targets": names})


def openvino_beside(model: Path, feeds: dict[str, np.ndarray], threads: int) -> list[Contender]:
    """OpenVINO as one more contender, where it is installed."""
    try:
        return [OpenVinoContender(model, feeds, threads)]
    except ImportError:
        _tell("openvino is not installed: left out")
        return []


@functools.cache
def _tell(text: str) -> None:
    """Say it once, however often it is found."""
    click.echo(text, err=True)


@click.command()
@click.option("--model", default="mobilenet-v1", show_default=True, help="A model of edgesparse.models.")
@click.option("--pattern", default="group:8x1", show_default=True)
@click.option("--densities", default="1,0.7,0.5,0.3,0.2,0.1,0.05", show_default=True)
@click.option("--target", default="native", show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--strassen", is_flag=True, help="As `compile --strassen`.")
@click.option("--seconds", default=10.0, show_default=True, help="Timed seconds of each contender.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("out/density"), show_default=True)
def main(
    model: str,
    pattern: str,
    densities: str,
    target: str,
    threads: int,
    strassen: bool,
    seconds: float,
    output: Path,
) -> None:
    """Measure speedup over density."""
    path, spec = model_path(model), model_spec(model)
    feeds = {spec.input_name: np.random.default_rng(0).standard_normal(spec.input_shape).astype(np.float32)}
    chosen = Target.parse(target)
    output.mkdir(parents=True, exist_ok=True)
    work: dict[str, float] = {}
    fastest = [peak_gflops(chosen)]
    with tempfile.TemporaryDirectory() as room:
        peaks = {ORT: memory.measure("onnx", path, threads=threads).peak_bytes}
        for text in densities.split(","):
            place = Path(room) / text
            compile_model(
                path,
                target=chosen,
                output=place,
                recipe=recipe_for(path, pattern, float(text)),
                threads=threads,
                strassen=strassen,
            )
            peaks[text] = memory.measure("artifact", place, threads=threads).peak_bytes
            work[text] = sum(layer_flops(layer) for layer in open_artifact(place).manifest.layers) / 1e9

        def load() -> list[Contender]:
            made: list[Contender] = [OrtContender(ORT, path, feeds, threads=threads)]
            made += openvino_beside(path, feeds, threads)
            made += [
                ArtifactContender(text, Path(room) / text, feeds, threads=threads) for text in densities.split(",")
            ]
            return made

        outcome = measure(load(), Plan(seconds=seconds, threads=threads), again=load)
    fastest.append(peak_gflops(chosen))
    peak = threads * max(fastest)
    base = outcome[ORT]
    rows: list[dict[str, Any]] = []
    for item in outcome.measured:
        ratio = compare(item.samples, base.samples)
        rows.append(
            {
                "name": item.name,
                "ms": round(item.stats.p50 * 1e3, 3),
                "min_ms": round(item.stats.min * 1e3, 3),
                "speedup": round(ratio.ratio, 3),
                "interval": [round(ratio.low, 3), round(ratio.high, 3)],
                "runs": item.stats.n,
                "peak_mb": round(peaks[item.name] / 1e6, 1) if item.name in peaks else None,
                "unstable": list(item.unstable),
                **_bound(work.get(item.name), item.stats.min, base.stats.min, peak),
            }
        )
    report = {
        "schema": "edgesparse.density/1",
        "model": model,
        "pattern": pattern,
        "target": str(chosen),
        "threads": threads,
        "strassen": strassen,
        "peak_gflops": round(peak, 1),
        "environment": environment.record(),
        "rows": rows,
    }
    (output / "density.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = table(report)
    (output / "density.md").write_text(text, encoding="utf-8")
    plot(report, output / "density.svg")
    click.echo(text)


def _bound(gflop: float | None, seconds: float, base: float, peak: float) -> dict[str, float | None]:
    """The work of a program in 10^9 operations, its share of the peak, and its speedup at all of the peak."""
    if not gflop:
        return {"gflop": None, "of_peak": None, "at_peak": None}
    at_peak = gflop / peak
    return {"gflop": round(gflop, 4), "of_peak": round(at_peak / seconds, 3), "at_peak": round(base / at_peak, 2)}


def table(report: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = [
        f"{report['model']}, {report['pattern']} on 1x1 layers, {report['target']}, {report['threads']} thread(s), "
        f"{report['environment']['cpu']}, peak {report['peak_gflops']} GFLOP/s",
        "",
        "| | median ms | least ms | speedup over onnxruntime | 95 % interval | of peak | at peak | peak MB | runs |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["rows"]:
        name = row["name"] if row["name"][0].isalpha() else f"density {row['name']}"
        peak = row["peak_mb"] if row["peak_mb"] is not None else "-"
        low, high = row["interval"]
        mark = " (unstable)" if row["unstable"] else ""
        share, bound = ("-", "-") if row["of_peak"] is None else (f"{100 * row['of_peak']:.0f} %", row["at_peak"])
        times = (row["ms"], row["min_ms"], row["speedup"], f"{low} to {high}")
        cells = (name + mark, *times, share, bound, peak, row["runs"])
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def plot(report: dict[str, Any], path: Path) -> None:
    """Speedup over density with intervals, readable in black and white."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "edgesparse"
    from matplotlib import pyplot

    points = [(float(row["name"]), row) for row in report["rows"] if not row["name"][0].isalpha()]
    x = [density for density, _ in points]
    y = [row["speedup"] for _, row in points]
    error = [
        [row["speedup"] - row["interval"][0] for _, row in points],
        [row["interval"][1] - row["speedup"] for _, row in points],
    ]
    figure, axes = pyplot.subplots(figsize=(6.4, 3.6))
    axes.errorbar(x, y, yerr=error, marker="o", color="black", capsize=3, label=f"edgesparse, {report['pattern']}")
    for index, row in enumerate(row for row in report["rows"] if row["name"][0].isalpha()):
        axes.axhline(row["speedup"], color="grey", linestyle=("--", ":")[index % 2], label=row["name"])
    axes.set_xscale("log")
    axes.set_xticks(x, [f"{density:g}" for density in x])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("density of the 1x1 layers")
    axes.set_ylabel("speedup over onnxruntime")
    axes.set_title(f"{report['model']}, {report['threads']} thread, batch 1")
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
