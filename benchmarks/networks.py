"""Networks of many kinds against onnxruntime's dense run of the same network, in one run, in alternation.

    python benchmarks/networks.py [--networks NAME,..] [--densities 1,0.2,0.1] [--pattern group:8x1] [-o out/networks]

writes a table (Markdown) and all figures (JSON). All weights of the kinds a network's row names are pruned by
magnitude to one density, the first convolution aside; density 1 prunes nothing. For each density: the median
of the paired ratios with its 95 % interval, and the ratio of the least times. `--built FOLDER --only-build` compiles
now; the same command without `--only-build` then measures and compiles nothing.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import click

from edgesparse import environment
from edgesparse.artifacts.artifact import open_artifact
from edgesparse.artifacts.feeds import random_feeds
from edgesparse.measuring.bench import Contender, Plan, measure
from edgesparse.measuring.contenders import ArtifactContender, OrtContender
from edgesparse.measuring.stats import compare
from edgesparse.models import model_path
from edgesparse.models import spec as model_spec
from edgesparse.passes import SIMPLIFY, load_model, run_passes, save_model, weight_layers
from edgesparse.pipeline import compile_model
from edgesparse.recipe import Recipe
from edgesparse.target import Target

ORT = "onnxruntime"

#: Network to the kinds of layers that are pruned.
NETWORKS: dict[str, tuple[str, ...]] = {
    "resnet50": ("conv1x1", "conv"),
    "ppocr-rec": ("conv1x1",),
    "minilm-l6": ("gemm", "matmul"),
    "mobilenet-v1": ("conv1x1",),
    "mobilenet-v2": ("conv1x1",),
    "mobilenet-v3": ("conv1x1",),
    "efficientnet-b0": ("conv1x1",),
    "resnet18": ("conv1x1", "conv"),
    "ppocr-det": ("conv1x1", "conv"),
    # Trained sparse: its own zeros are all that is used.
    "face-sparse": (),
}


def recipe_for(model: Path, kinds: tuple[str, ...], pattern: str, density: float) -> Recipe | None:
    """Prune every layer of these kinds but the first layer of the network to one density."""
    if density >= 1 or not kinds:
        return None
    simple = run_passes(load_model(model), SIMPLIFY).model
    layers = weight_layers(simple)
    names = [layer.name for index, layer in enumerate(layers) if layer.kind in kinds and (index or "conv" not in kinds)]
    return Recipe.from_dict({"pattern": pattern, "density": density, "targets": names})


def fixed(model: Path, name: str, folder: Path) -> Path:
    """The model at the shape of its row, so that all contenders run the same."""
    spec = model_spec(name)
    if not spec.dynamic:
        return model
    path = folder / f"{name}.onnx"
    save_model(load_model(model, {spec.input_name: spec.input_shape}), path)
    return path


def build(name: str, densities: list[str], pattern: str, target: Target, threads: int, room: Path) -> None:
    """Put the network and its artifacts, one a density, into a folder, unless they are there."""
    room.mkdir(parents=True, exist_ok=True)
    path = room / "network.onnx"
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            shutil.copyfile(fixed(model_path(name), name, Path(folder)), path)
    for text in densities:
        if not (room / text).exists():
            recipe = recipe_for(path, NETWORKS[name], pattern, float(text))
            compile_model(path, target=target, output=room / text, recipe=recipe, threads=threads)


def rows_of(name: str, densities: list[str], room: Path, plan: Plan) -> list[dict[str, Any]]:
    """Measure one network that was built at all densities beside onnxruntime."""
    artifacts = {text: open_artifact(room / text) for text in densities}
    feeds = random_feeds(artifacts[densities[0]].manifest.inputs)

    def load() -> list[Contender]:
        ours = [ArtifactContender(text, each, feeds, threads=plan.threads) for text, each in artifacts.items()]
        return [OrtContender(ORT, room / "network.onnx", feeds, threads=plan.threads), *ours]

    outcome = measure(load(), plan, again=load)
    base = outcome[ORT]
    rows = []
    for text in densities:
        item = outcome[text]
        ratio = compare(item.samples, base.samples)
        rows.append(
            {
                "network": name,
                "density": float(text),
                "ms": round(item.stats.p50 * 1e3, 3),
                "min_ms": round(item.stats.min * 1e3, 3),
                "onnxruntime_ms": round(base.stats.p50 * 1e3, 3),
                "speedup": round(ratio.ratio, 3),
                "interval": [round(ratio.low, 3), round(ratio.high, 3)],
                "least_speedup": round(base.stats.min / item.stats.min, 3),
                "runs": item.stats.n,
                "unstable": list(item.unstable),
            }
        )
    return rows


def table(report: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = [
        f"{report['pattern']}, {report['target']}, {report['threads']} thread(s), {report['environment']['cpu']}",
        "",
        "| network | density | ms | onnxruntime ms | speedup | 95 % interval | by least times | runs |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["rows"]:
        low, high = row["interval"]
        name = row["network"] + (" (unstable)" if row["unstable"] else "")
        cells = (name, f"{row['density']:g}", row["ms"], row["onnxruntime_ms"], row["speedup"], f"{low} to {high}")
        lines.append("| " + " | ".join(map(str, (*cells, row["least_speedup"], row["runs"]))) + " |")
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--networks", default="resnet50,ppocr-rec,minilm-l6", show_default=True)
@click.option("--densities", default="1,0.2,0.1", show_default=True)
@click.option("--pattern", default="group:8x1", show_default=True)
@click.option("--target", default="native", show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--seconds", default=10.0, show_default=True, help="Timed seconds of each contender.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("out/networks"), show_default=True)
@click.option("--built", type=click.Path(path_type=Path), help="Keep what is built here, and take what is there.")
@click.option("--only-build", is_flag=True, help="Build, measure nothing: that can wait for a quiet machine.")
def main(
    networks: str,
    densities: str,
    pattern: str,
    target: str,
    threads: int,
    seconds: float,
    output: Path,
    built: Path | None,
    only_build: bool,
) -> None:
    """Measure networks at several densities."""
    if only_build and built is None:
        raise click.UsageError("--only-build needs a folder to keep it in: --built FOLDER")
    if not only_build:
        output.mkdir(parents=True, exist_ok=True)
    plan = Plan(seconds=seconds, runs=20, threads=threads)
    report: dict[str, Any] = {
        "schema": "edgesparse.networks/1",
        "pattern": pattern,
        "target": str(Target.parse(target)),
        "threads": threads,
        "environment": environment.record(),
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as room:
        for name in networks.split(","):
            place = (built or Path(room)) / f"{name}-{pattern.replace(':', '-')}-{target}-{threads}"
            build(name, densities.split(","), pattern, Target.parse(target), threads, place)
            if only_build:
                continue
            report["rows"] += rows_of(name, densities.split(","), place, plan)
            (output / "networks.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if only_build:
        return
    text = table(report)
    (output / "networks.md").write_text(text, encoding="utf-8")
    click.echo(text)


if __name__ == "__main__":
    main()
