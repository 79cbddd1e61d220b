"""Accuracy after pruning without training: the table of docs/accuracy.md in one command.

    python benchmarks/accuracy.py --calibration DIR --evaluation DIR --out out/accuracy.json

EfficientNet-lite0 with its published weights, 1x1 convolutions pruned; pictures named by their ImageNet class. Each
row is written as soon as it is measured, so that a run can be cut short. Labels are used for measuring only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
import numpy as np
import onnx_ir as ir

from edgesparse.models import pictures
from edgesparse.models.data import Sample, evaluate, onnx_run
from edgesparse.models.exporting import model_path
from edgesparse.passes import allocate, weight_layers
from edgesparse.passes.base import infer_shapes
from edgesparse.passes.layers import LayerInfo
from edgesparse.passes.observe import Feeds, input_moments
from edgesparse.passes.rearrange import rearrange
from edgesparse.passes.reconstruct import Repair, repair_in_order, uniform
from edgesparse.pattern import SparsePattern
from edgesparse.portable import prepare
from edgesparse.recipe import Choice

NONE = Repair(criterion="magnitude", refit=False, recalibrate=False, others=False)
STACKS: dict[str, tuple[Repair, str, bool]] = {
    "magnitude": (NONE, "uniform", False),
    "magnitude, recalibrated": (Repair(criterion="magnitude", refit=False), "uniform", False),
    "wanda, recalibrated": (Repair(criterion="wanda", refit=False), "uniform", False),
    "obs, refit": (Repair(recalibrate=False, others=False), "uniform", False),
    "obs, refit, recalibrated": (Repair(), "uniform", False),
    "+ erk": (Repair(), "erk", False),
    "+ sensitivity": (Repair(), "sensitivity", False),
    "+ rearranged": (Repair(), "uniform", True),
    "+ rearranged, sensitivity": (Repair(), "sensitivity", True),
}
"""Name to repair, allocation and whether channels are rearranged."""


@click.command()
@click.option("--calibration", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--evaluation", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/accuracy.json"), show_default=True)
@click.option("--patterns", default="unstructured,group:4x1,group:8x1", show_default=True)
@click.option("--sparsities", default="0.3,0.5,0.6,0.7", show_default=True)
@click.option("--stacks", default=";".join(STACKS), help="Names separated by ';'.")
def main(calibration: Path, evaluation: Path, out: Path, patterns: str, sparsities: str, stacks: str) -> None:
    """Measure and write every combination asked for."""
    samples = [{"input": value} for value, _ in pictures.samples(calibration, limit=256)]
    labelled = list(pictures.samples(evaluation))
    dense = prepare(model_path("efficientnet-lite0-imagenet"), None)
    rows: list[dict[str, object]] = [{"stack": "dense", "top1": top1(dense, labelled)}]
    for text in patterns.split(","):
        pattern = SparsePattern.parse(text)
        for moved in (False, True):
            names = [name for name in stacks.split(";") if STACKS[name][2] == moved]
            if not names or (moved and pattern.kind != "group"):
                continue
            base = rearranged(dense, pattern, samples) if moved else dense
            layers = [one for one in weight_layers(base) if one.kind == "conv1x1"]
            measured = None
            for name in names:
                repair, method, _ = STACKS[name]
                if method == "sensitivity" and measured is None:
                    measured = allocate.sensitivities(base.clone(), layers, pattern, samples, repair)
                for sparsity in map(float, sparsities.split(",")):
                    started = time.monotonic()
                    model = base.clone()
                    shares = densities(layers, method, 1 - sparsity, measured)
                    repair_in_order(model, {k: Choice(pattern, v) for k, v in shares.items() if v < 1}, samples, repair)
                    row = {"pattern": text, "sparsity": sparsity, "stack": name, "top1": top1(model, labelled)}
                    rows.append(row | {"real": real(model, layers), "seconds": round(time.monotonic() - started, 1)})
                    out.parent.mkdir(parents=True, exist_ok=True)
                    out.write_text(json.dumps(rows, indent=1))
                    click.echo(str(rows[-1]))


def densities(
    layers: Sequence[LayerInfo], method: str, density: float, measured: list[allocate.Sensitivity] | None
) -> dict[str, float]:
    """Density by layer name."""
    if method == "erk":
        return allocate.erk(layers, density)
    if method == "sensitivity" and measured is not None:
        return allocate.by_sensitivity(layers, measured, density)
    return {layer.name: density for layer in layers}


def rearranged(model: ir.Model, pattern: SparsePattern, samples: Iterable[Feeds]) -> ir.Model:
    """A copy with channels in an order found for the pattern at half density."""
    copy = model.clone()
    layers = [one for one in weight_layers(copy) if one.kind == "conv1x1"]
    rearrange(copy, uniform(layers, pattern, 0.5), input_moments(copy, layers, samples))
    infer_shapes(copy)
    return copy


def real(model: ir.Model, layers: Sequence[LayerInfo]) -> float:
    """Sparsity over the multiply-adds of the layers, counted in the weights as they are."""
    zero = total = 0.0
    for layer in layers:
        tensor = model.graph.initializers[layer.weight].const_value
        assert tensor is not None
        zero += layer.macs * float(np.mean(tensor.numpy() == 0))
        total += layer.macs
    return round(zero / total, 4)


def top1(model: ir.Model, labelled: Sequence[Sample]) -> float:
    """Per cent right in onnxruntime."""
    return round(100 * evaluate(onnx_run(ir.serde.serialize_model(model).SerializeToString()), labelled).top1, 2)


if __name__ == "__main__":
    main()
