"""What a network costs with its layers at any density, for budgets: `passes.allocate.Prices` of a target.

The network is pruned to the pattern at a few densities, placed as `compile` would place it, and priced by the cost
model (`costing.forecast`) or by what a caller measures. A layer that no sparse kernel speeds up costs as much as its
dense kernel, so that no budget is spent on zeros that bring nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgesparse.budget import Budget
from edgesparse.costing.costs import table_for
from edgesparse.costing.forecast import forecast
from edgesparse.errors import UsageError
from edgesparse.graph.ops import Op
from edgesparse.graph.recognise import recognise
from edgesparse.passes.allocate import Prices, flop_prices
from edgesparse.passes.layers import LayerInfo, canonical_weight, set_canonical_weight, weight_layers
from edgesparse.pattern import SparsePattern, best_mask
from edgesparse.planning.place import Placement, place
from edgesparse.planning.plan import plan
from edgesparse.target import Target

DENSITIES = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
"""Where costs are looked at; between them they follow straight lines."""

Costs = Mapping[str, float]
Timer = Callable[[ir.Model], Costs]
"""Seconds of each layer of a model, by the name of its ONNX node; what takes time beside them under other names."""


def pricer_for(target: Target | None, timer: Timer | None = None) -> Callable[..., Prices]:
    """The function that `passes.sparsify_passes` asks for prices.

    `timer` measures latencies instead of predicting them. UsageError is raised, when asked, for a budget of latency or
    size without a `target`.
    """

    def prices(model: ir.Model, layers: Sequence[LayerInfo], pattern: SparsePattern, budget: Budget) -> Prices:
        if budget.kind == "flops":
            names = {one.name for one in layers}
            return flop_prices(layers, [one for one in weight_layers(model) if one.name not in names])
        if target is None:
            raise UsageError(f"budget {budget} needs a target", why="what it costs there must be known", fix="--target")
        return price_layers(model, layers, pattern, target, kind=budget.kind, timer=timer)

    return prices


def price_layers(
    model: ir.Model,
    layers: Sequence[LayerInfo],
    pattern: SparsePattern,
    target: Target,
    *,
    kind: str = "latency",
    timer: Timer | None = None,
    densities: Sequence[float] = DENSITIES,
) -> Prices:
    """Prices of a simplified dense model whose `layers` are pruned to `pattern`.

    Parameters
    ----------
    kind:
        "latency" (seconds where the target was measured or `timer` measures, else cycles) or "size" (bytes of the
        weights as they are packed for the target).
    densities:
        Ascending; the last must be 1.
    """
    names = {one.name for one in layers}
    rows: dict[str, list[float]] = {name: [] for name in names}
    fixed, unit = 0.0, "s"
    for density in densities:
        pruned = _pruned(model, layers, pattern, density)
        if kind == "latency" and timer is not None:
            costs: Costs = timer(pruned)
        else:
            costs, unit = _predicted(pruned, target, kind)
        missing = sorted(names - costs.keys())
        if missing:
            raise UsageError(
                f"layer {missing[0]!r} has no price of its own",
                why="it is computed together with others",
                fix="put it under `ignore` in the recipe, or give a budget of flops",
            )
        for name in names:
            rows[name].append(costs[name])
        fixed = sum(cost for name, cost in costs.items() if name not in names)
    # fewer weights are never dearer: the compiler may run what is sparse with the dense kernel
    layered = {name: tuple(np.minimum.accumulate(row[::-1])[::-1].tolist()) for name, row in rows.items()}
    return Prices(unit, fixed, tuple(densities), layered)


def _pruned(model: ir.Model, layers: Sequence[LayerInfo], pattern: SparsePattern, density: float) -> ir.Model:
    if density >= 1.0:
        return model
    copy = model.clone()
    for layer in layers:
        weight = canonical_weight(model, layer)
        mask = best_mask(pattern, np.square(weight.astype(np.float64)), density)
        set_canonical_weight(copy, layer, np.where(mask, weight, weight.dtype.type(0)))
    return copy


def _predicted(model: ir.Model, target: Target, kind: str) -> tuple[Costs, str]:
    """Costs by layer name, of one run or of the packed weights, and their unit."""
    graph = recognise(model)
    layout = plan(graph, target)
    placed = place(graph, layout, target)
    if kind == "size":
        return {op.name: _bytes(op, placed[op.name]) for op in graph.ops}, "bytes"
    table = table_for(target)
    told = forecast(graph, layout, placed, target, table)
    scale = 1e-9 if table.measured else 1.0
    return {name: one.time * scale for name, one in told.items()}, "s" if table.measured else "cycles"


def _bytes(op: Op, placement: Placement) -> float:
    bias = getattr(op, "bias", None)
    return float(placement.stored + (bias.nbytes if bias is not None else 0))
