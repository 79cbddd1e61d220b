"""Where stages end when a program is cut into strips for threads.

A strip makes the values that wait for itself, with the rows that its windows need beyond its own: through a chain of
windows and strides these overlaps add up, and are computed twice. A value that is made whole in a stage of its own ends
the chain; it costs a barrier, and its bytes go through a larger cache. Which values to make whole is decided by the
least estimated time of the slowest strip, one value after another.
"""

from __future__ import annotations

import itertools

import numpy as np

from edgesparse.graph.ops import Concat, Conv, Graph, Op
from edgesparse.planning.order import Layouts, pieces, rowwise, spans, strip_bounds
from edgesparse.target import Target

#: Cycles of a barrier with what the slower strip makes the others wait.
_BARRIER = 3000.0
#: Share of the peak that products reach, and other kernels.
_PRODUCTS, _OTHERS = 0.85, 0.4
#: Bytes that a core writes and reads again in a cycle where a value does not stay in its first-level cache.
_REFILL = 16.0


def waiting_in_strips(
    graph: Graph, layouts: Layouts, lazy: frozenset[str], strips: int, target: Target
) -> frozenset[str]:
    """The values of `lazy` that still wait when the program is cut into `strips`: all of them for one strip."""
    if strips == 1:
        return lazy
    costs = [row_cycles(op, layouts, target) if rowwise(op) else 0.0 for op in graph.ops]
    best = _slowest(graph, layouts, lazy, strips, costs)
    candidates = set(lazy)
    while candidates:
        tried = {name: _slowest(graph, layouts, lazy - {name}, strips, costs) for name in sorted(candidates)}
        name = min(tried, key=lambda each: tried[each])
        if tried[name] >= best:
            break
        best, lazy = tried[name], lazy - {name}
        candidates.discard(name)
    return lazy


def row_cycles(op: Op, layouts: Layouts, target: Target) -> float:
    """Roughly the cycles that one output row of a row-wise operation takes."""
    layout = layouts[op.output]
    vectors = layout.width / target.lanes
    if isinstance(op, Conv):
        share = _OTHERS if op.depthwise else _PRODUCTS
        return float(np.count_nonzero(op.weight)) * vectors / (target.pipes * share)
    inputs = 1 if isinstance(op, Concat) else len(op.inputs)
    return layout.channels * vectors * (inputs + 1) / target.loads


def _slowest(graph: Graph, layouts: Layouts, lazy: frozenset[str], strips: int, costs: list[float]) -> float:
    """Cycles of all stages, each as long as its slowest strip, with barriers and what is stored whole."""
    makers = {op.output: index for index, op in enumerate(graph.ops)}
    total = 0.0
    for index, op in enumerate(graph.ops):
        if op.output in lazy or not rowwise(op):
            continue
        layout = layouts[op.output]
        bounds = strip_bounds(layout, strips)
        slowest = 0.0
        for first, last in itertools.pairwise(bounds):
            cycles = 0.0
            for _, low, high in pieces(layout, first, last):
                made = spans(graph, layouts, lazy, index, low, high)
                cycles += sum((end - start) * costs[makers[name]] for name, (start, end) in made.items())
            slowest = max(slowest, cycles if len(bounds) > 2 else cycles / strips)
        total += slowest + _BARRIER + 4.0 * layout.channels * layout.height * layout.width / _REFILL / strips
    return total
