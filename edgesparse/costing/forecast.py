"""The time of every layer of a lowered program, by the cost model.

Each call's own work is counted from its kernel (`counts`). What it reads and writes for the first time comes from the
cache level that can still hold it: the distance is the number of bytes that other calls touched since.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgesparse.costing.costs import CostTable
from edgesparse.costing.counts import GROUPS, Terms, count, shares
from edgesparse.graph.ops import Fallback, Graph
from edgesparse.kernels import GlobalPool, KernelSpec, Spmm, Transpose
from edgesparse.lowering import arena
from edgesparse.lowering.lower import Lowered, Part, lower
from edgesparse.lowering.program import ARENA, Call, Program, Ref
from edgesparse.planning.place import Placement, Product, place
from edgesparse.planning.plan import Plan
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
    return price(layer_terms(lowered(graph, plan, placements, target), graph, plan, target, table.l3), table)


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


def layer_terms(made: Lowered, graph: Graph, plan: Plan, target: Target, l3: int) -> dict[str, Terms]:
    """The counts of every layer over one whole run; all strips together."""
    program = made.program
    found = {op.name: Terms() for op in graph.ops}
    distances = _Distances(program, plan, target, l3)
    for call in program.calls:
        spec = made.kernels.get(call.kernel)
        if spec is None:
            continue
        terms = found[program.layers[call.layer]]
        extent = call.end - call.begin
        product = isinstance(spec, Spmm)
        weights = distances.weights(call) if product else None
        terms.update(count(spec, target, extent, _pairs(spec, call, program), weights))
        _by_arguments(terms, spec, call, extent)
        distances.touch(terms, call, product)
    for op in graph.ops:
        if isinstance(op, Fallback):
            values = sum(graph.values[name].elements for name in (*op.inputs, *op.outputs) if name in graph.values)
            found[op.name]["relax.value"] += values
    return found


def _pairs(spec: KernelSpec, call: Call, program: Program) -> int:
    """Stored (input channel, group) pairs that a product's call works through."""
    if not isinstance(spec, Spmm):
        return 0
    if spec.dense:
        depth = call.args[3]
        assert isinstance(depth, int)
        return depth * (call.end - call.begin)
    start = program.constants[call.refs[2].name]
    return int(start[call.end] - start[call.begin])


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


class _Distances:
    """How many bytes lie between two uses of the same memory, through one run that follows another like it.

    Constants are touched whole, activations band by band, or row by row where a table of rows tells which.
    """

    def __init__(self, program: Program, plan: Plan, target: Target, l3: int) -> None:
        self.constants = {name: array.nbytes for name, array in program.constants.items()}
        self.sizes = {buffer.name: buffer.nbytes for buffer in program.buffers}
        layouts = {name: plan.layouts.get(name.partition("#")[2]) for name in self.sizes}
        self.bands = {
            name: 4 * layout.band_elements if layout else self.sizes[name] for name, layout in layouts.items()
        }
        self.rows = {name: 4 * layout.channels * layout.width for name, layout in layouts.items() if layout}
        self.whole = sum(self.constants.values()) + program.arena_bytes
        self.target, self.l3 = target, l3
        self.clock = 0
        self.seen: dict[tuple[str, int], int] = {}

    def weights(self, call: Call) -> dict[str, float]:
        """The levels that a product's weights come from."""
        return self._shares((call.refs[1].name, 0), (call.refs[1].name, 0))

    def touch(self, terms: Terms, call: Call, product: bool) -> None:
        """Add the bytes of a call's operands to the level they come from; a product's weights count as its stream."""
        for key, band, nbytes in self._operands(call):
            levels = self._shares(key, band)
            self.clock += nbytes
            self.seen[key] = self.clock
            if product and key[0] in self.constants:
                continue
            for level, share in levels.items():
                part: Any = nbytes * share  # a counter's values may well be no whole numbers
                terms[f"moved.{level}"] += part
                if level != "l1":
                    terms[f"bytes.{level}"] += part

    def _shares(self, key: tuple[str, int], band: tuple[str, int]) -> dict[str, float]:
        last = max(self.seen.get(key, -1), self.seen.get(band, -1))
        distance = min(self.clock - last, self.whole) if last >= 0 else self.whole
        return shares(distance, self.target, self.l3)

    def _operands(self, call: Call) -> Iterator[tuple[tuple[str, int], tuple[str, int], int]]:
        """What a call touches: a key, the key of the band it lies in, and its bytes."""
        for ref in dict.fromkeys(call.refs):
            if ref.name in self.constants:
                yield (ref.name, 0), (ref.name, 0), self.constants[ref.name]
            elif ref.name != ARENA:
                band = (ref.name, ref.offset // max(self.bands[ref.name], 1))
                yield band, band, min(self.bands[ref.name], self.sizes[ref.name])
        for arg in dict.fromkeys(arg for arg in call.args if isinstance(arg, Ref)):
            band = (arg.name, arg.offset // max(self.bands[arg.name], 1))
            yield (arg.name, -1 - arg.offset), band, self.rows.get(arg.name, self.sizes[arg.name])


def placed_as(
    graph: Graph, plan: Plan, target: Target, records: Iterable[Mapping[str, Any]], *, dense: bool = False
) -> dict[str, Placement]:
    """Placements with the kernels that an artifact's layers were compiled with, by the text in their records."""
    found = place(graph, plan, target, dense=dense)
    for record in records:
        mine = found.get(str(record.get("name")))
        text = str(record.get("kernel"))
        product = read_product(text.removeprefix("winograd "))
        if mine is not None and mine.product is not None and product is not None:
            other = read_product(str(record.get("runner_up")))
            found[mine.op] = replace(mine, product=product, runner_up=other, winograd=text.startswith("winograd "))
    return found


def read_product(text: str) -> Product | None:
    """The product that `str` wrote, or None for other kernels."""
    match = re.fullmatch(r"(dense|group):(\d+) tile (\d+)", text)
    return Product(int(match[2]), int(match[3]), match[1] == "dense") if match else None
