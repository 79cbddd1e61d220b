"""Accuracy after pruning without training: the tables of docs/accuracy.md in one command.

    python benchmarks/accuracy.py --calibration DIR --evaluation DIR --out out/accuracy.jsonl

EfficientNet-lite0 with its published weights, 1x1 convolutions pruned; pictures named by their ImageNet class. Labels
are used for measuring only. Each row is written as soon as it is measured; rows that are there already are not measured
again, so that a run can be cut short and goes on later. `--table` prints what is there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir as ir

from edgesparse.advice.evaluate import evaluate, onnx_model
from edgesparse.models import pictures
from edgesparse.models.exporting import model_path
from edgesparse.passes import allocate, weight_layers
from edgesparse.passes.base import infer_shapes
from edgesparse.passes.layers import LayerInfo, canonical_weight
from edgesparse.passes.observe import Feeds, input_moments, output_spread
from edgesparse.passes.rearrange import rearrange
from edgesparse.passes.reconstruct import Repair, repair_in_order, scores, uniform
from edgesparse.pattern import SparsePattern
from edgesparse.portable import prepare
from edgesparse.recipe import Choice


@dataclass(frozen=True)
class Stack:
    """One way to prune: criterion, reconstruction, allocation, order of channels, and whether channels are refitted."""

    criterion: str
    method: str
    allocation: str = "uniform"
    order: str = "given"
    recalibrate: bool = True

    def __str__(self) -> str:
        parts = [self.criterion, self.method, self.allocation, self.order]
        return " ".join(parts) + ("" if self.recalibrate else " raw")

    @property
    def repair(self) -> Repair:
        """What it means for each layer."""
        return Repair(self.criterion, self.method, self.recalibrate, self.recalibrate)


CRITERIA = ("magnitude", "wanda", "obs")
METHODS = ("none", "swap", "refit", "projected")
ALLOCATIONS = ("uniform", "erk", "global", "sensitivity")
STACKS = [
    Stack("magnitude", "none", recalibrate=False),
    Stack("obs", "refit", recalibrate=False),
    *(Stack(c, m, a, o) for o in ("given", "search") for a in ALLOCATIONS for c in CRITERIA for m in METHODS),
]


@click.command()
@click.option("--calibration", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--evaluation", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/accuracy.jsonl"), show_default=True)
@click.option("--patterns", default="unstructured,group:4x1,group:8x1", show_default=True)
@click.option("--sparsities", default="0.3,0.5,0.6,0.7", show_default=True)
@click.option("--stacks", help="Only these, by their names, separated by ';'.  [default: all]")
@click.option("--table", is_flag=True, help="Measure nothing; print what is there as Markdown.")
def main(
    calibration: Path, evaluation: Path, out: Path, patterns: str, sparsities: str, stacks: str | None, table: bool
) -> None:
    """Measure and write every combination asked for that is not there yet."""
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    if table:
        click.echo(markdown(rows))
        return
    done = {(row["pattern"], row["sparsity"], row["stack"]) for row in rows}
    wanted = set(stacks.split(";")) if stacks else {str(stack) for stack in STACKS}
    if unknown := wanted - {str(stack) for stack in STACKS}:
        raise click.BadParameter(f"no stack {sorted(unknown)[0]!r}; there are {'; '.join(map(str, STACKS))}")
    out.parent.mkdir(parents=True, exist_ok=True)
    bench = Bench(calibration, evaluation)
    for text in patterns.split(","):
        pattern = SparsePattern.parse(text)
        for stack in (one for one in STACKS if str(one) in wanted):
            if stack.order == "search" and pattern.kind != "group":
                continue
            for sparsity in map(float, sparsities.split(",")):
                if (text, sparsity, str(stack)) in done:
                    continue
                row = bench.measure(pattern, stack, sparsity)
                with out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                click.echo(str(row))


class Bench:
    """Model and pictures, and what several rows share: rearranged networks and sensitivities."""

    def __init__(self, calibration: Path, evaluation: Path) -> None:
        self.samples: list[Feeds] = [{"input": value} for value, _ in pictures.samples(calibration, limit=256)]
        self.labelled = [({"input": value}, label) for value, label in pictures.samples(evaluation)]
        self.dense = prepare(model_path("efficientnet-lite0-imagenet"), None)
        self.rearranged: dict[str, ir.Model] = {}
        self.sensitivities: dict[tuple[str, Stack], list[allocate.Sensitivity]] = {}

    def measure(self, pattern: SparsePattern, stack: Stack, sparsity: float) -> dict[str, Any]:
        """One row: accuracy in per cent, agreement with the dense network, and seconds on one thread."""
        base = self.base(pattern, stack.order)
        layers = pointwise(base)
        prepared = self.prepared(pattern, stack, base, layers)
        started = time.process_time()
        model = base.clone()
        shares = densities(model, layers, stack, 1 - sparsity, prepared, self.samples)
        choices = {name: Choice(pattern, share) for name, share in shares.items() if share < 1}
        repair_in_order(model, choices, self.samples, stack.repair)
        seconds = time.process_time() - started
        found = evaluate(onnx_model(model), self.labelled, against=onnx_model(self.dense))
        assert found.quality is not None
        assert found.dense is not None
        assert found.agreement is not None
        return {
            "pattern": str(pattern),
            "sparsity": sparsity,
            "stack": str(stack),
            "top1": round(100 * found.quality.top1, 2),
            "dense": round(100 * found.dense.top1, 2),
            "agreement": round(100 * found.agreement.top1, 2),
            "kl": round(found.agreement.kl, 4),
            "real": real(model, layers),
            "cpu_seconds": round(seconds, 1),
        }

    def base(self, pattern: SparsePattern, order: str) -> ir.Model:
        """The dense network with its channels in the order that the stack asks for."""
        if order == "given":
            return self.dense
        if str(pattern) not in self.rearranged:
            self.rearranged[str(pattern)] = rearranged(self.dense, pattern, self.samples)
        return self.rearranged[str(pattern)]

    def prepared(
        self, pattern: SparsePattern, stack: Stack, base: ir.Model, layers: Sequence[LayerInfo]
    ) -> list[allocate.Sensitivity]:
        """Sensitivities, measured with the stack's own repair; one measurement serves all sparsities."""
        if stack.allocation != "sensitivity":
            return []
        key = (str(pattern), stack)
        if key not in self.sensitivities:
            self.sensitivities[key] = allocate.sensitivities(base, layers, pattern, self.samples, stack.repair)
        return self.sensitivities[key]


def densities(
    model: ir.Model,
    layers: Sequence[LayerInfo],
    stack: Stack,
    density: float,
    measured: list[allocate.Sensitivity],
    samples: Iterable[Feeds],
) -> Mapping[str, float]:
    """Density by layer name."""
    if stack.allocation == "erk":
        return allocate.erk(layers, density)
    if stack.allocation == "sensitivity":
        return allocate.by_sensitivity(layers, measured, density)
    if stack.allocation == "global":
        moments, spread = input_moments(model, layers, samples), output_spread(model, layers, samples)
        found = {}
        for one in layers:
            saliency = scores(canonical_weight(model, one), moments[one.name], spread[one.name], stack.repair)
            found[one.name] = saliency / float(np.sum(spread[one.name].variance)) * one.macs
        return allocate.global_threshold(layers, found, density)
    return {layer.name: density for layer in layers}


def pointwise(model: ir.Model) -> list[LayerInfo]:
    """The layers that are pruned."""
    return [one for one in weight_layers(model) if one.kind == "conv1x1"]


def rearranged(model: ir.Model, pattern: SparsePattern, samples: Iterable[Feeds]) -> ir.Model:
    """A copy with channels in an order found for the pattern at half density."""
    copy = model.clone()
    layers = pointwise(copy)
    rearrange(copy, uniform(layers, pattern, 0.5), input_moments(copy, layers, samples))
    infer_shapes(copy)
    return copy


def real(model: ir.Model, layers: Sequence[LayerInfo]) -> float:
    """Sparsity over the multiply-adds of the layers, counted in the weights as they are."""
    zero = total = 0.0
    for layer in layers:
        zero += layer.macs * float(np.mean(canonical_weight(model, layer) == 0))
        total += layer.macs
    return round(zero / total, 4)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table: a line for each pattern and stack, a column for each sparsity; top-1."""
    columns = sorted({row["sparsity"] for row in rows})
    lines: dict[tuple[str, str], dict[float, str]] = {}
    for row in rows:
        lines.setdefault((row["pattern"], row["stack"]), {})[row["sparsity"]] = f"{row['top1']:.1f}"
    head = ["pattern", "criterion, reconstruction, allocation, order", *(f"{share:.0%}" for share in columns)]
    text = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for (pattern, stack), cells in sorted(lines.items()):
        text.append(f"| {' | '.join([pattern, stack, *(cells.get(share, '') for share in columns)])} |")
    return "\n".join(text)


if __name__ == "__main__":
    main()
