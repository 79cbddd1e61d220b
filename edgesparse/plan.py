"""The planner: the layout of every image, the order in which pieces of it are made, and how many stay in memory.

Images with wide maps are kept in bands of a few rows, small maps as whole planes; all images of one size share their
band height, so that 1x1 convolutions, residuals and elementwise steps always meet band to band. Production is driven
by demand: making rows of a value first makes the rows of its inputs that they need. Layer by layer, every value is
demanded whole when its turn comes; depth-first, a value waits until a consumer asks, and then only the bands between
the oldest row still needed and the newest stay resident, in a ring.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgesparse.ops import (
    Concat,
    Conv,
    Elementwise,
    Graph,
    Op,
    Pooling,
    Value,
)
from edgesparse.program import Layout
from edgesparse.target import Target

#: Pixels a band should have: enough to amortise a pass over the weights, few enough that the panel stays in cache.
_BAND_PIXELS = 112
#: Largest map that is kept as a whole plane.
_PLANE_PIXELS = 256
#: Elements per cache line.
_LINE = 16


@dataclass(frozen=True)
class Step:
    """Make rows ``[first, last)`` of image `image` of an operation's output; operations without rows have (0, 0, 1)."""

    op: int
    image: int
    first: int
    last: int


@dataclass(frozen=True)
class Plan:
    """Layouts by value name (images only), and the steps in order."""

    layouts: Mapping[str, Layout]
    steps: tuple[Step, ...]
    depth_first: bool


def plan(graph: Graph, target: Target, *, depth_first: bool = True) -> Plan:
    """Lay out and order a graph.

    Parameters
    ----------
    depth_first:
        Chains of wide maps run band by band through ring buffers instead of layer by layer. The results are bitwise
        the same.
    """
    layouts = _layouts(graph, target)
    steps = _order(graph, layouts, depth_first)
    rings = _rings(graph, layouts, steps)
    final = {
        name: Layout(
            layout.channels,
            layout.height,
            layout.width,
            layout.rows,
            layout.pitch,
            rings.get(name, layout.ring),
            layout.images,
        )
        for name, layout in layouts.items()
    }
    return Plan(final, tuple(steps), depth_first)


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


def band_rows(height: int, width: int, lanes: int) -> int:
    """Rows of a band for maps of this size.

    Among the heights around `_BAND_PIXELS` pixels, the one that wastes the fewest lanes and leaves no short last band.
    """
    if height * width <= _PLANE_PIXELS:
        return height

    def cost(rows: int) -> tuple[float, int]:
        def vectors(count: int) -> int:
            return -(-count * width // lanes)

        bands, rest = divmod(height, rows)
        work = (bands * vectors(rows) + (vectors(rest) if rest else 0)) * lanes / (height * width)
        size = rows * width / _BAND_PIXELS
        return work + 0.05 * max(size, 1 / size) + (0.05 if rest else 0.0), rows

    return min(range(1, min(height, max(2 * _BAND_PIXELS // width, 1)) + 1), key=cost)


def pitch_of(pixels: int) -> int:
    """Distance between channels: whole cache lines, and for wide bands an odd number of them, against aliasing."""
    lines = -(-pixels // _LINE)
    if lines >= 8 and lines % 2 == 0:
        lines += 1
    return lines * _LINE if pixels > 1 else 1


def _layouts(graph: Graph, target: Target) -> dict[str, Layout]:
    """Every image's layout with all bands resident; inputs, and what no row-wise operation makes, are plain."""
    made_by = {name: op for op in graph.ops for name in op.outputs}
    layouts: dict[str, Layout] = {}
    for name, value in graph.values.items():
        if value.image is None:
            continue
        if name in made_by and rowwise(made_by[name]):
            layouts[name] = _banded(value, target)
        else:
            layouts[name] = Layout.plain(value.image)
    return layouts


def _banded(value: Value, target: Target) -> Layout:
    assert value.image is not None
    images, channels, height, width = value.image
    rows = band_rows(height, width, target.lanes)
    layout = Layout(channels, height, width, rows, pitch_of(rows * width), 1, images)
    return Layout(channels, height, width, rows, layout.pitch, layout.bands * images, images)


def _order(graph: Graph, layouts: Mapping[str, Layout], depth_first: bool) -> list[Step]:
    """The steps, by demand."""
    index_of = {name: index for index, op in enumerate(graph.ops) for name in op.outputs}
    made: dict[tuple[str, int], int] = {}
    steps: list[Step] = []

    def demand(name: str, image: int, rows: int) -> None:
        """Make rows of an image until `rows` of them are there."""
        if name not in index_of:
            return
        index = index_of[name]
        op = graph.ops[index]
        if not rowwise(op):
            whole(index)
            return
        layout = layouts[name]
        while made.get((name, image), 0) < rows:
            first = made.get((name, image), 0)
            last = min(first + layout.rows, layout.height)
            for source in dict.fromkeys(op.inputs):
                if source in layouts:
                    at = layouts[source]
                    shared = image if at.images > 1 else 0
                    demand(source, shared, needed_rows(op, source, at.height, first, last)[1])
                else:
                    whole(index_of.get(source, -1))
            made[name, image] = last
            steps.append(Step(index, image, first, last))

    done: set[int] = set()

    def whole(index: int) -> None:
        """Run an operation that has no rows, after all of its inputs."""
        if index < 0 or index in done:
            return
        op = graph.ops[index]
        done.add(index)
        if rowwise(op):
            for image in range(layouts[op.output].images):
                demand(op.output, image, layouts[op.output].height)
            return
        for source in dict.fromkeys(op.inputs):
            if source in index_of:
                whole(index_of[source])
        steps.append(Step(index, 0, 0, 1))

    consumers = graph.consumers()
    for index, op in enumerate(graph.ops):
        if depth_first and _may_wait(graph, layouts, op, consumers[op.output]):
            continue
        whole(index)
    return steps


def _may_wait(graph: Graph, layouts: Mapping[str, Layout], op: Op, readers: list[Op]) -> bool:
    """Whether a value is made band by band as its readers, all row-wise over several bands, ask for it."""
    if not rowwise(op) or op.output in graph.outputs or not readers:
        return False
    if layouts[op.output].bands == 1:
        return False
    return all(rowwise(reader) and layouts[reader.output].bands > 1 for reader in readers)


def _rings(graph: Graph, layouts: Mapping[str, Layout], steps: list[Step]) -> dict[str, int]:
    """Fewest resident bands of each value such that none is overwritten before its last use."""
    made: dict[str, dict[int, int]] = {}
    used: dict[str, dict[int, int]] = {}
    for time, step in enumerate(steps):
        op = graph.ops[step.op]
        if rowwise(op):
            layout = layouts[op.output]
            band = step.image * layout.bands + step.first // layout.rows
            made.setdefault(op.output, {})[band] = time
        for source in op.inputs:
            at = layouts.get(source)
            if at is None:
                continue
            first, last = (0, at.height)
            image = step.image if at.images > 1 else 0
            if rowwise(op):
                first, last = needed_rows(op, source, at.height, step.first, step.last)
            images = [image] if rowwise(op) else range(at.images)
            for each in images:
                for band in range(first // at.rows, -(-last // at.rows)):
                    used.setdefault(source, {})[each * at.bands + band] = time
    rings = {}
    for name, times in made.items():
        if name in graph.outputs:
            continue
        last_use = used.get(name, {})
        ring = 1
        while any(last_use.get(band, -1) >= times.get(band + ring, len(steps)) for band in times):
            ring += 1
        rings[name] = ring
    return rings
