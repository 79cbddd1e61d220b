"""What sparsity would bring on a target, before anyone trains: latency over density for each pattern.

Every point is the compiler's own program for random masks of that pattern and density, priced by the cost model: masks,
kernels and the order of calls are real, only the clock is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgesparse.costing.costs import CostTable, table_for
from edgesparse.costing.forecast import forecast
from edgesparse.costing.virtual import best_sparse, rows_together
from edgesparse.errors import UsageError
from edgesparse.graph.ops import Conv, Graph, Linear, Op
from edgesparse.measuring import svg
from edgesparse.pattern import SparsePattern
from edgesparse.planning.decide import decide
from edgesparse.planning.place import Placement, place
from edgesparse.planning.plan import Plan
from edgesparse.planning.products import candidates, cost, job_of
from edgesparse.target import Target

SCHEMA = "edgesparse.predict/1"

PATTERNS = ("unstructured", "group:4x1", "group:8x1", "group:16x1")
DENSITIES = (0.7, 0.5, 0.3, 0.2, 0.1, 0.05)


@dataclass(frozen=True)
class Point:
    """One pattern at one density of the pruned layers.

    Attributes
    ----------
    time:
        Of the whole network, in the unit of the price table.
    speedup:
        Over the same network dense, by the same table.
    measured:
        Seconds by the clock, or None.
    measured_speedup:
        Over dense in the same run, or None.
    """

    pattern: str
    density: float
    time: float
    speedup: float
    measured: float | None = None
    measured_speedup: float | None = None


@dataclass(frozen=True)
class Prediction:
    """Latency over density. `dense` is the dense network's time in the table's unit, `layers` those that are pruned."""

    target: str
    table: CostTable
    dense: float
    points: tuple[Point, ...]
    layers: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON values in the schema `SCHEMA`."""
        return {
            "schema": SCHEMA,
            "target": self.target,
            "cost_model": self.table.as_dict(),
            "dense": self.dense,
            "layers": list(self.layers),
            "points": [vars(point) for point in self.points],
        }


def predict(
    graph: Graph,
    target: Target,
    *,
    pruned: Set[str],
    patterns: Sequence[str] = PATTERNS,
    densities: Sequence[float] = DENSITIES,
    seed: int = 0,
    tick: Callable[[float, str], None] | None = None,
) -> Prediction:
    """Predict a recognised dense model's latency.

    Parameters
    ----------
    pruned:
        ONNX nodes whose layers would be pruned.
    patterns, densities:
        To predict for; densities are within 0 and 1.
    seed:
        Of the masks.

    Raises
    ------
    UsageError
        No layer of the model is among `pruned`, or a density is out of range.
    """
    if not all(0 < density <= 1 for density in densities):
        raise UsageError("a density is not within 0 and 1", fix="give shares like 0.3")
    parsed = [SparsePattern.parse(text) for text in patterns]
    for pattern in parsed:
        if pattern.kind not in ("unstructured", "group") or pattern.m > 1:
            raise UsageError(f"predict knows no {pattern}", fix="take unstructured or group:Nx1")
    chosen = [op for op in graph.ops if isinstance(op, (Conv, Linear)) and pruned & set(op.nodes)]
    layout = decide(graph, target, dense=True).plan
    base = place(graph, layout, target, dense=True)
    chosen = [op for op in chosen if base[op.name].product is not None]
    if not chosen:
        raise UsageError("no layer would be pruned", fix="`edgesparse inspect MODEL` lists those that can be")
    table = table_for(target)
    dense = _whole(graph, layout, base, target, table)
    points = []
    cells = [(pattern, density) for pattern in parsed for density in densities]
    for index, (pattern, density) in enumerate(cells):
        if tick:
            tick(index / len(cells), f"{pattern} at {density:g}")
        rng = np.random.default_rng(seed)
        masked = {op.name: masked_op(op, pattern, density, rng) for op in chosen}
        sparse = replace(graph, ops=tuple(masked.get(op.name, op) for op in graph.ops))
        ways = {name: _placed(op, base[name], layout, target, pattern, density) for name, op in masked.items()}
        placements = {**base, **ways}
        time = _whole(sparse, layout, placements, target, table)
        points.append(Point(str(pattern), density, time, dense / time))
    return Prediction(str(target), table, dense, tuple(points), tuple(op.name for op in chosen))


def _whole(graph: Graph, layout: Plan, placements: Mapping[str, Placement], target: Target, table: CostTable) -> float:
    return sum(each.time for each in forecast(graph, layout, placements, target, table).values())


def masked_op(op: Conv | Linear, pattern: SparsePattern, density: float, rng: np.random.Generator) -> Conv | Linear:
    """The layer with ones in the places of a random mask of exactly the density, rounded to whole groups."""
    rows, *rest = op.weight.shape
    together = rows_together(pattern)
    units = -(-rows // together) * int(np.prod(rest))
    keep = np.zeros(units, np.float32)
    keep[rng.permutation(units)[: max(1, round(density * units))]] = 1.0
    mask = np.repeat(keep.reshape(-1, *rest), together, axis=0)[:rows]
    return replace(op, weight=np.ascontiguousarray(mask))


def _placed(op: Op, base: Placement, layout: Plan, target: Target, pattern: SparsePattern, density: float) -> Placement:
    """The cheapest kernel for a layer with such a mask, sparse or dense."""
    job = job_of(op, layout)
    assert job is not None
    dense = candidates(job, target, dense_only=True)[0]
    sparse_cost, sparse = best_sparse(job, target, pattern, density)
    return replace(base, product=sparse if sparse_cost < cost(job, dense, target) else dense)


def plot(found: Prediction) -> str:
    """Speedup over density, a line for each pattern, as a picture in SVG; measured points are marked."""
    left, top, wide, high = 70.0, 40.0, 640.0, 360.0
    densities = sorted({point.density for point in found.points})
    fastest = max([1.0, *(max(point.speedup, point.measured_speedup or 0.0) for point in found.points)])
    low, span = np.log(densities[0]), max(float(np.log(1.0 / densities[0])), 1e-9)

    def place_of(density: float, speedup: float) -> tuple[float, float]:
        return left + wide * float(np.log(density) - low) / span, top + high * (1 - speedup / (1.1 * fastest))

    parts = [svg.line(left, top + high, left + wide, top + high), svg.line(left, top, left, top + high)]
    for density in [*densities, 1.0]:
        x, _ = place_of(density, 0.0)
        parts.append(svg.text(x, top + high + 18, f"{density:g}", anchor="middle"))
    for step in range(0, int(1.1 * fastest) + 1, max(1, round(fastest / 6))):
        _, y = place_of(1.0, float(step))
        parts += [
            svg.line(left, y, left + wide, y, stroke=svg.LIGHT),
            svg.text(left - 8, y + 4, f"{step}", anchor="end"),
        ]
    for index, pattern in enumerate(dict.fromkeys(point.pattern for point in found.points)):
        mine = sorted((p for p in found.points if p.pattern == pattern), key=lambda p: p.density)
        corners = [place_of(point.density, point.speedup) for point in mine]
        path = " ".join(f"{svg.number(x)},{svg.number(y)}" for x, y in corners)
        dash = svg.DASHES[index % len(svg.DASHES)]
        more = {"stroke_dasharray": dash} if dash else {}
        parts.append(svg.tag("polyline", points=path, fill="none", stroke=svg.INK, stroke_width=1.5, **more))
        parts.append(svg.line(left + wide - 170, top + 16 * index, left + wide - 130, top + 16 * index, dash=dash))
        parts.append(svg.text(left + wide - 122, top + 16 * index + 4, pattern))
        for point in mine:
            if point.measured_speedup is not None:
                x, y = place_of(point.density, point.measured_speedup)
                parts.append(svg.tag("circle", cx=x, cy=y, r=4, fill="none", stroke=svg.INK))
    parts.append(svg.text(left + wide / 2, top + high + 38, "density of the pruned layers", anchor="middle"))
    title = f"speedup over dense on {found.target}"
    parts.append(
        svg.text(left, top - 14, f"{title}: {'predicted' if found.table.measured else 'counted, not measured'}")
    )
    drawn = svg.picture(title, top + high + 60, parts)
    return drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"
