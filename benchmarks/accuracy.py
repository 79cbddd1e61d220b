"""Accuracy after pruning without training: the tables of docs/accuracy.md in one command.

    python benchmarks/accuracy.py --calibration DIR --evaluation DIR --out out/accuracy.jsonl
    python benchmarks/accuracy.py --calibration DIR --evaluation DIR --samples 64 --pictures 100 --compare

EfficientNet-lite0 with its published weights, 1x1 convolutions pruned; pictures named by their ImageNet class. Labels
are used for measuring only. Without `--compare` the best stack alone; with it every criterion, reconstruction,
allocation and order, each in place of the best stack's own. Each row is written as soon as it is measured; rows that
are there already are not measured again, so that a run can be cut short and goes on later. `--table` prints what is
there: top-1 in per cent, and in brackets the mean divergence from the dense network in nats, which tells more apart.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir as ir

from edgesparse.advice.evaluate import Model, evaluate, onnx_model
from edgesparse.models import pictures
from edgesparse.models.data import Sample
from edgesparse.models.exporting import model_path
from edgesparse.passes import allocate, weight_layers
from edgesparse.passes.base import infer_shapes
from edgesparse.passes.graph import Array
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
        """What it means for each layer; criterion fisher wants what its channels are worth besides."""
        return Repair(self.criterion, self.method, self.recalibrate, self.recalibrate)


BEST = Stack("fisher", "refit", "sensitivity", "search")
"""What `sparsify --calibrate` does before it fits by gradient. Patterns without groups have no order to search for. All
other stacks have the orders and the sensitivities that this one finds.
"""
STACKS = (
    BEST,
    *(replace(BEST, allocation=one) for one in ("uniform", "erk", "global")),
    *(replace(BEST, criterion=one) for one in ("magnitude", "wanda", "obs")),
    *(replace(BEST, method=one) for one in ("projected", "swap", "none")),
    replace(BEST, recalibrate=False),
    replace(BEST, order="given"),
    Stack("magnitude", "none", recalibrate=False),
)


@click.command()
@click.option("--calibration", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--evaluation", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/accuracy.jsonl"), show_default=True)
@click.option("--patterns", default="unstructured,group:4x1,group:8x1", show_default=True)
@click.option("--sparsities", default="0.3,0.5,0.6,0.7", show_default=True)
@click.option("--samples", default=128, show_default=True, help="Pictures to calibrate on.")
@click.option("--pictures", "judges", default=200, show_default=True, help="Pictures to evaluate on.")
@click.option("--compare", is_flag=True, help="All stacks, not the best one alone.")
@click.option("--stacks", "named", help="These stacks only, by their names in the table, between commas.")
@click.option("--table", is_flag=True, help="Measure nothing; print what is there as Markdown.")
def main(
    calibration: Path,
    evaluation: Path,
    out: Path,
    patterns: str,
    sparsities: str,
    samples: int,
    judges: int,
    compare: bool,
    named: str | None,
    table: bool,
) -> None:
    """Measure and write every combination asked for that is not there yet."""
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    if table:
        click.echo(markdown(rows))
        return
    stacks = [one for one in STACKS if str(one) in named.split(",")] if named else STACKS if compare else (BEST,)
    if not stacks:
        raise click.BadParameter(f"there are only {', '.join(map(str, STACKS))}", param_hint="--stacks")
    done = {(row["pattern"], row["sparsity"], row["stack"], row["samples"], row["pictures"]) for row in rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    bench = Bench(calibration, evaluation, samples, judges)
    sizes = (len(bench.samples), len(bench.labelled))
    wanted = [
        (text, stack, sparsity)
        for sparsity in map(float, sparsities.split(","))
        for stack in stacks
        for text in patterns.split(",")
    ]
    for text, stack, sparsity in wanted:
        pattern = SparsePattern.parse(text)
        if pattern.kind != "group":
            stack = replace(stack, order="given")
        if (text, sparsity, str(stack), *sizes) in done:
            continue
        done.add((text, sparsity, str(stack), *sizes))
        row = bench.measure(pattern, stack, sparsity)
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        click.echo(str(row))


class Bench:
    """Model and pictures, and what several rows share: rearranged networks and sensitivities."""

    def __init__(self, calibration: Path, evaluation: Path, samples: int = 256, judges: int = 10_000) -> None:
        self.samples: list[Feeds] = [{"input": value} for value, _ in some(pictures.samples(calibration), samples)]
        self.labelled = [({"input": value}, label) for value, label in some(pictures.samples(evaluation), judges)]
        self.dense = prepare(model_path("efficientnet-lite0-imagenet"), None)
        self.reference = remembered(onnx_model(self.dense))
        self.rearranged: dict[str, ir.Model] = {}
        self.sensitivities: dict[tuple[str, str], list[allocate.Sensitivity]] = {}
        self.worth: dict[tuple[str, str], Mapping[str, Array]] = {}

    def measure(self, pattern: SparsePattern, stack: Stack, sparsity: float) -> dict[str, Any]:
        """One row: accuracy in per cent, agreement with the dense network, and seconds on one thread."""
        base = self.base(pattern, stack.order)
        layers = pointwise(base)
        prepared = self.prepared(pattern, stack, base, layers)
        started = time.process_time()
        model = base.clone()
        repair = self.weighted(stack, base, pattern)
        shares = densities(model, layers, stack.allocation, 1 - sparsity, prepared, self.samples, repair)
        choices = {name: Choice(pattern, share) for name, share in shares.items() if share < 1}
        repair_in_order(model, choices, self.samples, repair)
        seconds = time.process_time() - started
        found = evaluate(onnx_model(model), self.labelled, against=self.reference)
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
            "samples": len(self.samples),
            "pictures": len(self.labelled),
        }

    def base(self, pattern: SparsePattern, order: str) -> ir.Model:
        """The dense network with its channels in the order that is asked for."""
        if order == "given":
            return self.dense
        key = str(pattern)
        if key not in self.rearranged:
            repair = self.weighted(replace(BEST, order="given"), self.dense, pattern)
            self.rearranged[key] = rearranged(self.dense, pattern, self.samples, repair.worth)
        return self.rearranged[key]

    def weighted(self, stack: Stack, base: ir.Model, pattern: SparsePattern) -> Repair:
        """The stack's repair, for criterion fisher with what the channels of its dense network are worth."""
        if stack.criterion != "fisher":
            return stack.repair
        from edgesparse.training.information import information

        key = ("" if stack.order == "given" else str(pattern), stack.order)
        if key not in self.worth:
            self.worth[key] = information(base, pointwise(base), self.samples)
        return replace(stack.repair, worth=self.worth[key])

    def prepared(
        self, pattern: SparsePattern, stack: Stack, base: ir.Model, layers: Sequence[LayerInfo]
    ) -> list[allocate.Sensitivity]:
        """Sensitivities of the pattern and order, with the best stack's repair: one measurement serves many stacks."""
        if stack.allocation != "sensitivity":
            return []
        key = (str(pattern), stack.order)
        if key not in self.sensitivities:
            repair = self.weighted(replace(BEST, order=stack.order), base, pattern)
            self.sensitivities[key] = allocate.sensitivities(base, layers, pattern, self.samples, repair)
        return self.sensitivities[key]


def some(items: Iterable[Sample], count: int) -> list[Sample]:
    """At most `count` of the items, spread over all."""
    found = list(items)
    return [found[i] for i in np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int)]


def remembered(model: Model) -> Model:
    """The same function of the same sample objects, each run once."""
    found: dict[int, Any] = {}

    def run(feeds: Feeds) -> Any:
        if id(feeds) not in found:
            found[id(feeds)] = model(feeds)
        return found[id(feeds)]

    return run


def densities(
    model: ir.Model,
    layers: Sequence[LayerInfo],
    allocation: str,
    density: float,
    measured: list[allocate.Sensitivity],
    samples: Iterable[Feeds],
    repair: Repair,
) -> Mapping[str, float]:
    """Density by layer name."""
    if allocation == "erk":
        return allocate.erk(layers, density)
    if allocation == "sensitivity":
        return allocate.by_sensitivity(layers, measured, density)
    if allocation == "global":
        moments, spread = input_moments(model, layers, samples), output_spread(model, layers, samples)
        found = {}
        for one in layers:
            worth = repair.worth.get(one.name)
            saliency = scores(canonical_weight(model, one), moments[one.name], spread[one.name], repair, worth)
            scale = 1.0 if worth is not None else float(np.sum(spread[one.name].variance))
            found[one.name] = saliency / scale * one.macs
        return allocate.global_threshold(layers, found, density)
    return {layer.name: density for layer in layers}


def pointwise(model: ir.Model) -> list[LayerInfo]:
    """The layers that are pruned."""
    return [one for one in weight_layers(model) if one.kind == "conv1x1"]


def rearranged(
    model: ir.Model, pattern: SparsePattern, samples: Iterable[Feeds], worth: Mapping[str, Array]
) -> ir.Model:
    """A copy with channels in an order found for the pattern at half density."""
    copy = model.clone()
    layers = pointwise(copy)
    rearrange(copy, uniform(layers, pattern, 0.5), input_moments(copy, layers, samples), worth=worth)
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
    """The rows as a table: a line for each pattern and stack, a column for each sparsity; top-1 and nats."""
    columns = sorted({row["sparsity"] for row in rows})
    lines: dict[tuple[int, int, str, str], dict[float, str]] = {}
    for row in rows:
        key = (row["samples"], row["pictures"], row["pattern"], row["stack"])
        lines.setdefault(key, {})[row["sparsity"]] = f"{row['top1']:.1f} ({row['kl']:.2f})"
    head = ["pictures", "pattern", "criterion, reconstruction, allocation, order"]
    text = [f"| {' | '.join([*head, *(f'{share:.0%}' for share in columns)])} |"]
    text.append(f"|{' --- |' * (len(head) + len(columns))}")
    for (samples, judges, pattern, stack), cells in sorted(lines.items()):
        start = [f"{samples} / {judges}", pattern, stack]
        text.append(f"| {' | '.join([*start, *(cells.get(share, '') for share in columns)])} |")
    return "\n".join(text)


if __name__ == "__main__":
    main()
