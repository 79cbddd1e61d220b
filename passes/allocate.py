"""Allocation: which density each layer gets, for one budget over the whole network.

Uniform and ERK (Erdos-Renyi-Kernel, 1911.11134) look at shapes alone; "global" keeps the units with the largest
saliency per multiply-add wherever they are; "sensitivity" measures what pruning one layer alone does to the outputs
(Kullback-Leibler divergence to the dense network's) at several densities, and then solves the knapsack exactly, one
choice per layer, as an integer program (scipy's HiGHS). Its budget is a mean density, or an amount of anything that has
`Prices`: operations here, latency and bytes from those who know a target.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import csr_array

from edgesparse.errors import UsageError
from edgesparse.passes.agreement import divergence
from edgesparse.passes.graph import Array
from edgesparse.passes.layers import LayerInfo, canonical_weight
from edgesparse.passes.observe import Feeds, Tick, advance, input_moments, output_spread, run_values
from edgesparse.passes.reconstruct import Repair, bias_of, prune_layer, store
from edgesparse.pattern import SparsePattern
from edgesparse.recipe import Choice

PROBES = (0.15, 0.3, 0.5, 0.7, 0.85)
"""Densities at which sensitivities are measured."""
GRID = tuple(round(0.05 * i, 2) for i in range(2, 21))
"""Densities that a layer may get."""
PROBE_SAMPLES = 48
"""Samples that sensitivities are measured on."""


@dataclass(frozen=True)
class Sensitivity:
    """What pruning one layer alone costs: mean KL divergence (nats per sample) at each of `densities`, ascending."""

    layer: str
    densities: tuple[float, ...]
    loss: tuple[float, ...]

    def at(self, density: float) -> float:
        """The loss at any density: a straight line over log(1 - density) and log(loss), 0 for dense."""
        if density >= 1.0:
            return 0.0
        x = np.log(1.0 - np.asarray(self.densities[::-1]))
        y = np.log(np.maximum.accumulate(np.maximum(self.loss[::-1], 1e-9)))
        s = float(np.log(1.0 - density))
        if s <= x[0] or len(x) == 1:
            slope = max((y[1] - y[0]) / (x[1] - x[0]), 1.0) if len(x) > 1 else 2.0
            return float(np.exp(y[0] + slope * (s - x[0])))
        if s >= x[-1]:
            return float(np.exp(y[-1] + max((y[-1] - y[-2]) / (x[-1] - x[-2]), 1.0) * (s - x[-1])))
        return float(np.exp(np.interp(s, x, y)))


def sensitivities(
    model: ir.Model,
    layers: Sequence[LayerInfo],
    pattern: SparsePattern,
    inputs: Iterable[Feeds],
    repair: Repair,
    *,
    densities: Sequence[float] = PROBES,
    samples: int = PROBE_SAMPLES,
    tick: Tick | None = None,
) -> list[Sensitivity]:
    """Prune and repair each layer alone, at each density, in a copy of the model that is dense otherwise.

    Layers are fitted to one part of the samples, and what that costs is measured on the others: on samples that it was
    fitted to, a layer with many inputs seems to lose nothing.
    """
    outputs = [str(value.name) for value in model.graph.outputs]
    fitted, probes = split(inputs, samples)
    wanted = [values[0] for values in run_values(model, outputs, probes)]
    dense = output_spread(model, layers, fitted)
    found = []
    for number, layer in enumerate(layers):
        if tick:
            tick(number / len(layers), layer.name)
        fitted, probes = advance(model, layer.name, fitted), advance(model, layer.name, probes)
        moments = input_moments(model, [layer], fitted)[layer.name]
        weight, bias = canonical_weight(model, layer), bias_of(model, layer)
        loss = []
        for density in densities:
            new, shift, _ = prune_layer(
                weight, bias, moments, Choice(pattern, density), dense[layer.name], repair, repair.worth.get(layer.name)
            )
            probe = model.clone()
            store(probe, layer, new, shift)
            got = run_values(probe, outputs, probes)
            loss.append(float(np.mean([divergence(a, b[0]) for a, b in zip(wanted, got, strict=True)])))
        found.append(Sensitivity(layer.name, tuple(densities), tuple(loss)))
    return found


def split(inputs: Iterable[Feeds], count: int) -> tuple[Iterable[Feeds], Iterable[Feeds]]:
    """Samples to fit to, and at most `count` to judge by, spread over all; of four or fewer both are all of them."""
    total = sum(1 for _ in inputs)
    if total <= 4:
        return inputs, inputs
    chosen = {int(i) for i in np.linspace(0, total - 1, min(count, total // 3)).round()}
    judge = [feeds for number, feeds in enumerate(inputs) if number in chosen]
    return _Without(inputs, frozenset(chosen)), judge


@dataclass(frozen=True)
class _Without:
    """Samples but for those of some numbers; reads the others again each time."""

    inputs: Iterable[Feeds]
    out: frozenset[int]

    def __iter__(self) -> Iterator[Feeds]:
        return (feeds for number, feeds in enumerate(self.inputs) if number not in self.out)


def knapsack(costs: Sequence[Sequence[float]], losses: Sequence[Sequence[float]], budget: float) -> list[int]:
    """For each item the index of the choice, so that the losses add up to the least with the costs within budget.

    Exact (a mixed integer program, solved to optimality). UsageError if even the cheapest choices cost more.
    """
    cheapest = sum(min(row) for row in costs)
    if cheapest > budget * (1 + 1e-9):
        raise UsageError(
            "the budget cannot be met",
            why=f"even the sparsest choices take {cheapest / max(sum(map(max, costs)), 1e-30):.3f} of the dense cost",
            fix="allow more, or let more layers be pruned",
        )
    sizes = [len(row) for row in costs]
    total = sum(sizes)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    one_each = csr_array((np.ones(total), (owner, np.arange(total))), shape=(len(sizes), total))
    cost = np.concatenate([np.asarray(row, float) for row in costs]) / budget
    limits = [LinearConstraint(one_each, 1, 1), LinearConstraint(cost[None, :], -np.inf, 1 + 1e-9)]
    loss = np.concatenate([np.asarray(row, float) for row in losses])
    scale = max(float(loss.max()), 1e-30)
    options = {"mip_rel_gap": 0.0, "presolve": True}
    solved = milp(loss / scale, constraints=limits, integrality=np.ones(total), bounds=(0, 1), options=options)
    if solved.x is None:
        raise UsageError("the budget cannot be met", why=str(solved.message))
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return [int(np.argmax(solved.x[s : s + n])) for s, n in zip(starts, sizes, strict=True)]


def by_sensitivity(
    layers: Sequence[LayerInfo], measured: Sequence[Sensitivity], density: float, *, grid: Sequence[float] = GRID
) -> dict[str, float]:
    """Densities by layer name for a mean density over the multiply-adds, exactly solved."""
    prices = flop_prices(layers, [])
    return within(layers, measured, prices, density * prices.dense, grid=grid)


@dataclass(frozen=True)
class Prices:
    """What a network costs with its layers at any density.

    Attributes
    ----------
    unit:
        "FLOP", "bytes", "s", or "cycles" of a target that nobody measured.
    fixed:
        The cost of all that is not among `layers`.
    densities:
        Ascending; the last is 1.
    layers:
        By layer name the cost at each of `densities`.
    """

    unit: str
    fixed: float
    densities: tuple[float, ...]
    layers: Mapping[str, tuple[float, ...]]

    @property
    def dense(self) -> float:
        """The whole network's cost, nothing pruned."""
        return self.fixed + sum(row[-1] for row in self.layers.values())

    def at(self, layer: str, density: float) -> float:
        """The cost of a layer at any density: straight lines between those that are known, and on to the left."""
        row = self.layers[layer]
        if density < self.densities[0] and len(row) > 1:
            slope = (row[1] - row[0]) / (self.densities[1] - self.densities[0])
            return max(row[0] - slope * (self.densities[0] - density), 0.0)
        return float(np.interp(density, self.densities, row))

    def total(self, densities: Mapping[str, float]) -> float:
        """The whole network's cost with these densities; layers that are not named are dense."""
        return self.fixed + sum(self.at(name, densities.get(name, 1.0)) for name in self.layers)


def flop_prices(layers: Iterable[LayerInfo], others: Iterable[LayerInfo]) -> Prices:
    """Operations, two for a multiply-add: of `layers` in proportion to their density, of `others` all."""
    rows = {one.name: (0.0, 2.0 * max(one.macs, 1)) for one in layers}
    return Prices("FLOP", 2.0 * sum(one.macs for one in others), (0.0, 1.0), rows)


def within(
    layers: Sequence[LayerInfo],
    measured: Sequence[Sensitivity],
    prices: Prices,
    amount: float,
    *,
    grid: Sequence[float] = GRID,
) -> dict[str, float]:
    """Densities by layer name with the least loss for a whole network that costs at most `amount`, exactly solved.

    UsageError if even the sparsest choices cost more.
    """
    table = [[prices.at(layer.name, share) for share in grid] for layer in layers]
    losses = [[one.at(share) for share in grid] for one in measured]
    left = amount - prices.fixed
    if left <= 0.0:
        raise UsageError(
            "the budget cannot be met",
            why=f"what is not pruned takes {prices.fixed / prices.dense:.2f} of the dense network's cost already",
            fix="allow more, or let more layers be pruned",
        )
    chosen = knapsack(table, losses, left)
    return {layer.name: grid[index] for layer, index in zip(layers, chosen, strict=True)}


def erk(layers: Sequence[LayerInfo], density: float) -> dict[str, float]:
    """Densities in proportion to (outputs + inputs + kernel) / product, clipped at 1, for a mean over multiply-adds."""
    raw = np.array([(sum(layer.shape[:2]) + 2 * layer.shape[2] ** 0.5) / np.prod(layer.shape) for layer in layers])
    return _scaled(layers, raw, density)


def global_threshold(layers: Sequence[LayerInfo], scores: Mapping[str, Array], density: float) -> dict[str, float]:
    """Densities that keep the units with the most saliency per multiply-add, anywhere in the network."""
    worth = np.concatenate([np.asarray(scores[layer.name], float).reshape(-1) for layer in layers])
    price = np.concatenate([np.full(scores[layer.name].size, layer.macs / layer.params) for layer in layers])
    order = np.argsort(-worth / price, kind="stable")
    used = np.cumsum(price[order])
    kept = np.zeros(len(worth), bool)
    kept[order[used <= density * used[-1]]] = True
    found, start = {}, 0
    for layer in layers:
        size = scores[layer.name].size
        found[layer.name] = max(float(kept[start : start + size].mean()), 1.0 / size)
        start += size
    return found


def _scaled(layers: Sequence[LayerInfo], raw: Array, density: float) -> dict[str, float]:
    macs = np.array([max(layer.macs, 1) for layer in layers], float)
    low, high = 0.0, 1.0 / raw.min()
    for _ in range(200):  # bisection: the mean grows with the factor
        middle = (low + high) / 2
        share = (np.minimum(middle * raw, 1.0) * macs).sum() / macs.sum()
        low, high = (middle, high) if share < density else (low, middle)
    return {layer.name: float(min(high * one, 1.0)) for layer, one in zip(layers, raw, strict=True)}
