"""The order of a plan: stages one after another, each cut into strips that may run at the same time.

A stage makes one value whole. Values that wait are made inside it, band by band, as the rows above ask for them:
making rows of a value first makes the rows of its inputs that they need. A strip makes a run of the value's rows;
what waits is made in every strip anew, with the few rows of overlap that windows need computed twice, so strips share
nothing but what earlier stages made. The longer a chain of windows in a stage, the more rows overlap: `strips` ends
stages where that saves more than it costs. Operations without rows, and values of too few bands, are stages whose
calls are themselves cut by output channels.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from edgesparse.graph.ops import Concat, Conv, Elementwise, Graph, Op, Pooling
from edgesparse.lowering.program import Layout

Layouts = Mapping[str, Layout]
#: Rows ``[first, last)`` by value.
Spans = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Step:
    """Make rows ``[first, last)`` of image `image` of an operation's output; operations without rows have (0, 0, 1)."""

    op: int
    image: int
    first: int
    last: int


@dataclass(frozen=True)
class Stage:
    """Steps by strip. With one strip only, lowering cuts each of its calls into shares of the output channels."""

    strips: tuple[tuple[Step, ...], ...]


def rowwise(op: Op) -> bool:
    """Whether an operation makes its output rows from a few rows of its inputs."""
    return isinstance(op, (Conv, Pooling, Elementwise, Concat))


def needed_rows(op: Op, source: str, height: int, first: int, last: int) -> tuple[int, int]:
    """Rows ``[a, b)`` of an input of `height` rows that output rows ``[first, last)`` read; clipped to the image.

    A residual is read row by row, whatever window its convolution has.
    """
    starts, ends = [], []
    for index, name in enumerate(op.inputs):
        if name != source:
            continue
        if isinstance(op, (Conv, Pooling)) and index == 0:
            starts.append(first * op.strides[0] - op.pads[0])
            ends.append((last - 1) * op.strides[0] - op.pads[0] + (op.kernel[0] - 1) * op.dilations[0] + 1)
        else:
            starts.append(first)
            ends.append(last)
    return max(min(starts), 0), min(max(ends), height)


def waiting(graph: Graph, layouts: Layouts) -> frozenset[str]:
    """Values that are made band by band as their readers, all row-wise over several bands, ask for them."""
    readers = graph.consumers()
    found = set()
    for op in graph.ops:
        name = op.output
        if not rowwise(op) or name in graph.outputs or not readers[name] or layouts[name].bands == 1:
            continue
        if all(rowwise(reader) and layouts[reader.output].bands > 1 for reader in readers[name]):
            found.add(name)
    return frozenset(found)


def order(graph: Graph, layouts: Layouts, lazy: frozenset[str], strips: int) -> tuple[Stage, ...]:
    """The stages of a graph; `lazy` values wait, all others are made whole in topological order."""
    stages = []
    # A chain of values that wait is as deep in calls as it is long.
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 2 * len(graph.ops) + 1000))
    for index, op in enumerate(graph.ops):
        if op.output in lazy:
            continue
        if not rowwise(op):
            stages.append(Stage(((Step(index, 0, 0, 1),),)))
            continue
        bounds = strip_bounds(layouts[op.output], strips)
        made = [_strip(graph, layouts, lazy, index, first, last) for first, last in itertools.pairwise(bounds)]
        stages.append(Stage(tuple(made)))
    return tuple(stages)


def strip_bounds(layout: Layout, strips: int) -> list[int]:
    """Rows, numbered through all images, at which a value is cut into strips. Planes are cut between images only."""
    unit = layout.height if layout.bands == 1 else 1
    units = layout.height * layout.images // unit
    parts = strips if units >= 2 * strips else 1
    return [units * part // parts * unit for part in range(parts + 1)]


def pieces(layout: Layout, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The rows ``[begin, end)``, numbered through all images, as (image, first, last)."""
    for image in range(layout.images):
        first = max(begin - image * layout.height, 0)
        last = min(end - image * layout.height, layout.height)
        if first < last:
            yield image, first, last


def spans(graph: Graph, layouts: Layouts, lazy: frozenset[str], sink: int, first: int, last: int) -> Spans:
    """The rows of each waiting value that rows ``[first, last)`` of operation `sink` need, and of the sink itself.

    At the edges of the image whole bands are made; within, a strip makes no row more than it needs.
    """
    found: Spans = {graph.ops[sink].output: (first, last)}
    for op in reversed(graph.ops[: sink + 1]):
        if op.output not in found:
            continue
        for source in dict.fromkeys(op.inputs):
            if source not in lazy:
                continue
            at = layouts[source]
            low, high = needed_rows(op, source, at.height, *found[op.output])
            if first == 0:
                low = low // at.rows * at.rows
            if last == layouts[graph.ops[sink].output].height:
                high = min(-(-high // at.rows) * at.rows, at.height)
            known = found.get(source, (low, high))
            found[source] = (min(known[0], low), max(known[1], high))
    return found


def _strip(graph: Graph, layouts: Layouts, lazy: frozenset[str], sink: int, begin: int, end: int) -> tuple[Step, ...]:
    """The steps that make the rows ``[begin, end)`` of one operation, numbered through all images."""
    layout = layouts[graph.ops[sink].output]
    steps: list[Step] = []
    for image, first, last in pieces(layout, begin, end):
        _Demand(graph, layouts, lazy, image, steps).make(sink, spans(graph, layouts, lazy, sink, first, last))
    return tuple(steps)


class _Demand:
    """Makes rows on demand, for one image of one strip."""

    def __init__(self, graph: Graph, layouts: Layouts, lazy: frozenset[str], image: int, steps: list[Step]) -> None:
        self.graph = graph
        self.layouts = layouts
        self.image = image
        self.steps = steps
        self.maker = {op.output: index for index, op in enumerate(graph.ops) if op.output in lazy}
        self.made: dict[str, int] = {}
        self.ends: dict[str, int] = {}

    def make(self, sink: int, wanted: Spans) -> None:
        """Steps for the wanted rows of operation `sink` and of all that waits for it."""
        self.made = {name: first for name, (first, _) in wanted.items()}
        self.ends = {name: last for name, (_, last) in wanted.items()}
        self._rows(sink, self.ends[self.graph.ops[sink].output])

    def _rows(self, index: int, wanted: int) -> None:
        op = self.graph.ops[index]
        layout = self.layouts[op.output]
        while self.made[op.output] < wanted:
            first = self.made[op.output]
            last = min((first // layout.rows + 1) * layout.rows, self.ends[op.output])
            for source in dict.fromkeys(op.inputs):
                if source in self.maker:
                    height = self.layouts[source].height
                    self._rows(self.maker[source], needed_rows(op, source, height, first, last)[1])
            self.made[op.output] = last
            self.steps.append(Step(index, self.image, first, last))


def rings(graph: Graph, layouts: Layouts, stages: tuple[Stage, ...], lazy: frozenset[str]) -> dict[str, int]:
    """Fewest resident bands of each waiting value such that none is overwritten before its last use."""
    found = dict.fromkeys(lazy, 1)
    for stage in stages:
        for steps in stage.strips:
            made, used = _times(graph, layouts, steps, lazy)
            for name, times in made.items():
                last_use = used.get(name, {})
                ring = found[name]
                while any(last_use.get(band, -1) >= times.get(band + ring, len(steps)) for band in times):
                    ring += 1
                found[name] = ring
    return found


Times = dict[str, dict[int, int]]


def _times(graph: Graph, layouts: Layouts, steps: tuple[Step, ...], lazy: frozenset[str]) -> tuple[Times, Times]:
    """When each band of each waiting value is made, and last used; bands are numbered through all images."""
    made: Times = {}
    used: Times = {}
    for time, step in enumerate(steps):
        op = graph.ops[step.op]
        if op.output in lazy:
            layout = layouts[op.output]
            made.setdefault(op.output, {})[step.image * layout.bands + step.first // layout.rows] = time
        for source in op.inputs:
            if source in lazy:
                at = layouts[source]
                first, last = needed_rows(op, source, at.height, step.first, step.last)
                for band in range(first // at.rows, -(-last // at.rows)):
                    used.setdefault(source, {})[step.image * at.bands + band] = time
    return made, used
