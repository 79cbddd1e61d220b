"""The time of every layer of a lowered program, by the cost model.

Each call's own work is counted from its kernel (`counts`). What it reads and writes for the first time comes from the
cache level that can still hold it, by how much else was used since (`distances`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from edgesparse.costing.caches import Caches
from edgesparse.costing.costs import CostTable
from edgesparse.costing.counts import GROUPS, Terms, count, fetched, shape_of
from edgesparse.costing.distances import Distances, Operand
from edgesparse.graph.ops import Fallback, Graph
from edgesparse.kernels import Depthwise, GlobalPool, KernelSpec, Panel, Pool, Spmm, Transpose
from edgesparse.lowering import arena
from edgesparse.lowering.lower import Lowered, Part, lower
from edgesparse.lowering.program import Call, Program
from edgesparse.planning.algorithms import algorithm_of
from edgesparse.planning.gathering import PADDED, PANEL, SHIFTED
from edgesparse.planning.place import Placement, place
from edgesparse.planning.plan import Plan
from edgesparse.planning.products import Product
from edgesparse.target import Target


@dataclass(frozen=True)
class Forecast:
    """What a layer is expected to cost.

    Attributes
    ----------
    time:
        In the table's unit: nanoseconds where it was fitted, cycles where it only counts.
    terms:
        What was counted.
    parts:
        The time by kind: "compute", "overhead", "gather", "l2", "memory".
    """

    name: str
    time: float
    terms: Mapping[str, float]
    parts: Mapping[str, float]

    @property
    def bound(self) -> str:
        """The kind of work that takes most of the time."""
        return max(sorted(self.parts), key=lambda kind: self.parts[kind]) if self.parts else "overhead"


def forecast(
    graph: Graph, plan: Plan, placements: Mapping[str, Placement], target: Target, table: CostTable
) -> dict[str, Forecast]:
    """What each operation of a placed graph is expected to cost, by name, in the graph's order."""
    made = lowered(graph, plan, placements, target)
    return price(layer_terms(made, graph, plan, target, table.caches, table.factors), table)


def lowered(graph: Graph, plan: Plan, placements: Mapping[str, Placement], target: Target) -> Lowered:
    """The program without the code of its fallback parts: enough to count what it does."""
    parts = {op.name: Part((), {}, {}, ()) for op in graph.ops if isinstance(op, Fallback)}
    made = lower(graph, plan, placements, parts, target)
    return replace(made, program=arena.assign(made.program))


def price(terms: Mapping[str, Terms], table: CostTable) -> dict[str, Forecast]:
    """Counts of layers times the prices of a table."""
    found = {}
    for name, counted in terms.items():
        parts: dict[str, float] = {}
        for term, value in counted.items():
            if term in GROUPS:
                parts[GROUPS[term]] = parts.get(GROUPS[term], 0.0) + value * table.prices[term]
        found[name] = Forecast(name, sum(parts.values()), dict(counted), parts)
    return found


def layer_terms(
    made: Lowered,
    graph: Graph,
    plan: Plan,
    target: Target,
    caches: Caches,
    factors: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, Terms]:
    """The counts of every layer over one whole run; all strips together. `caches` and `factors` are a cost table's."""
    program = made.program
    found = {op.name: Terms() for op in graph.ops}
    distances = Distances(program, made.kernels, plan.layouts, target, caches.l3)
    shapes = gathered_shapes(made)
    for index, call in enumerate(program.calls):
        levels = distances.levels(index)
        spec = made.kernels.get(call.kernel)
        if spec is None:
            continue
        terms = found[program.layers[call.layer]]
        extent = call.end - call.begin
        pairs, inputs, columns, weights = 0, 0, 0, None
        if isinstance(spec, Spmm):
            pairs, inputs, columns = _pairs(spec, call, program)
            weights = next(held for operand, held in levels if operand.name == call.refs[1].name)
        counted = count(spec, target, extent, pairs, weights, inputs=inputs, columns=columns, caches=caches)
        _by_arguments(counted, spec, call, extent)
        _moved(counted, spec, levels, caches)
        factor: Any = factors.get(shape_of(spec) or shapes.get(program.layers[call.layer], ""), 1.0)
        for term, value in counted.items():
            terms[term] += value * factor if term in GROUPS else value
    for op in graph.ops:
        if isinstance(op, Fallback):
            values = sum(graph.values[name].elements for name in (*op.inputs, *op.outputs) if name in graph.values)
            found[op.name]["relax.value"] += values
    return found


def gathered_shapes(made: Lowered) -> dict[str, str]:
    """Of every layer that gathers windows: their class (`counts.shape_of`), which its product goes by as well."""
    found = {}
    for call in made.program.calls:
        spec = made.kernels.get(call.kernel)
        if isinstance(spec, Panel):
            found[made.program.layers[call.layer]] = shape_of(spec)
    return found


def _moved(
    terms: Terms, spec: KernelSpec, levels: Iterable[tuple[Operand, Mapping[str, float]]], caches: Caches
) -> None:
    """Add the bytes of a call's operands by the level they come from; a product's constants count as its stream."""
    window = isinstance(spec, (Depthwise, Panel, Pool))
    far: dict[str, float] = {}
    for operand, held in levels:
        if operand.constant and isinstance(spec, Spmm):
            continue
        for level, share in held.items():
            part: Any = operand.nbytes * share  # a counter's values may well be no whole numbers
            terms[f"moved.{level}"] += part
            if window:
                far[level] = far.get(level, 0.0) + part * (_WRITTEN if operand.written else 1.0)
            elif level == "memory":
                far[level] = far.get(level, 0.0) + part
            elif level != "l1":
                terms[f"product.{'write' if operand.written else 'read'}.{level}"] += part
    for level, longer in fetched(spec, terms, far, caches).items():
        cycles: Any = longer
        terms[f"stream.{level}"] += cycles


#: What a byte that a window writes takes of what one takes that it reads: nothing waits for it.
_WRITTEN = 0.5


def _pairs(spec: Spmm, call: Call, program: Program) -> tuple[int, int, int]:
    """Stored (input channel, group) pairs that a product's call works through; the input rows and columns they read.

    Columns that begin within a tile of another share what lies in both.
    """
    if spec.dense:
        depth = call.args[3]
        assert isinstance(depth, int)
        return depth * (call.end - call.begin), depth, depth
    start, column = (program.constants[call.refs[at].name] for at in (2, 3))
    first, last = int(start[call.begin]), int(start[call.end])
    used = np.unique(column[first:last])
    wide = spec.pixels if spec.groups_outer else min(spec.vectors * spec.lanes, spec.pixels)
    inputs = -(-int(np.minimum(np.diff(used), wide).sum() + wide * min(len(used), 1)) // wide)
    return last - first, inputs, len(used)


def _by_arguments(terms: Terms, spec: KernelSpec, call: Call, extent: int) -> None:
    """Counts that follow from a call's arguments, not from its kernel."""
    if isinstance(spec, GlobalPool):
        pixels = call.args[0]
        assert isinstance(pixels, int)
        terms["global.vector"] += extent * -(-pixels // spec.lanes)
    elif isinstance(spec, Transpose):
        rows = call.args[2]
        assert isinstance(rows, int)
        terms["transpose.value"] += extent * rows


def placed_as(
    graph: Graph, plan: Plan, target: Target, records: Iterable[Mapping[str, Any]], *, dense: bool = False
) -> dict[str, Placement]:
    """Placements with the kernels that an artifact's layers were compiled with, by the text in their records."""
    found = place(graph, plan, target, dense=dense)
    for record in records:
        mine = found.get(str(record.get("name")))
        text = str(record.get("kernel"))
        algorithm = algorithm_of(text)
        product = read_product(text.partition(" ")[2] if algorithm else text)
        if mine is not None and mine.product is not None and product is not None:
            other = read_product(str(record.get("runner_up")))
            found[mine.op] = replace(
                mine, product=product, runner_up=other, algorithm=algorithm.name if algorithm else ""
            )
    return found


def read_product(text: str) -> Product | None:
    """The product that `str` wrote, or None for other kernels."""
    match = re.fullmatch(rf"(?:({SHIFTED}|{PADDED}) )?(dense|group):(\d+) tile (\d+)", text)
    return Product(int(match[3]), int(match[4]), match[2] == "dense", match[1] or PANEL) if match else None
