"""The planner: the layout of every image, the order in which pieces of it are made, and how many stay in memory.

Images with wide maps are kept in bands of a few rows, small maps as whole planes; all images of one size share their
band height, so that 1x1 convolutions, residuals and elementwise steps always meet band to band. `order` says what is
made when; the rings of images that wait follow from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgesparse.errors import UnsupportedError
from edgesparse.graph.ops import GlobalPooling, Graph, Value
from edgesparse.lowering.program import Layout
from edgesparse.planning.order import Stage, order, rings, rowwise, waiting
from edgesparse.planning.strips import waiting_in_strips
from edgesparse.target import Target

#: Pixels a band should have: enough to amortise a pass over the weights, few enough that the panel stays in cache.
BAND_PIXELS = 112
#: Largest map that is kept as a whole plane.
_PLANE_PIXELS = 256
#: Vectors that a thread's share of a plane must have to be a band of its own. Sharing a plane by rows, each thread goes
#: on with what is in its cache; by channels, each layer would fetch half of its input from the other core.
_STRIP_VECTORS = 5
#: Elements per cache line.
_LINE = 16
#: Most bands of all maps of a network: a program lists what is done to each. 4K pictures have some hundred thousand.
_MOST_BANDS = 2**20


@dataclass(frozen=True)
class Plan:
    """How a graph will run.

    Attributes
    ----------
    layouts:
        By value name, images only.
    stages:
        What is made when, cut into `strips` parts that may run at the same time.
    waiting:
        Values that are made band by band as their readers ask; each strip has a ring of its own.
    """

    layouts: Mapping[str, Layout]
    stages: tuple[Stage, ...]
    waiting: frozenset[str]
    depth_first: bool
    strips: int
    band_pixels: int


def plan(
    graph: Graph, target: Target, *, depth_first: bool = True, strips: int = 1, band_pixels: int = BAND_PIXELS
) -> Plan:
    """Lay out and order a graph.

    Parameters
    ----------
    depth_first:
        Chains of wide maps run band by band through ring buffers instead of layer by layer. With the same kernels,
        which the same bands have unless they are measured, the results are bitwise the same.
    strips:
        Parts of each stage that may run on threads of their own; results are bitwise the same for any number.
    band_pixels:
        Pixels that a band should have about.

    Raises UnsupportedError for maps of more bands than a program can list.
    """
    layouts = _layouts(graph, target, strips, band_pixels)
    _check_bands(layouts)
    lazy = waiting(graph, layouts) if depth_first else frozenset()
    lazy = waiting_in_strips(graph, layouts, lazy, strips, target)
    stages = order(graph, layouts, lazy, strips)
    resident = rings(graph, layouts, stages, lazy)
    final = {name: replace(layout, ring=resident.get(name, layout.ring)) for name, layout in layouts.items()}
    return Plan(final, stages, lazy, depth_first, strips, band_pixels)


def _check_bands(layouts: Mapping[str, Layout]) -> None:
    bands = {name: layout.bands * layout.images for name, layout in layouts.items()}
    total = sum(bands.values())
    if total > _MOST_BANDS:
        most = max(bands, key=lambda name: bands[name])
        raise UnsupportedError(
            f"{most!r} is {layouts[most].images} maps of {layouts[most].height} x {layouts[most].width}",
            why=f"all maps together have {total} bands of rows, and a program lists at most {_MOST_BANDS}",
            fix="give the model smaller inputs, or fewer at a time",
        )


def band_rows(height: int, width: int, lanes: int, pixels: int = BAND_PIXELS) -> int:
    """Rows of a band for maps of this size.

    Among the heights around `pixels` pixels, the one that wastes the fewest lanes and leaves no short last band.
    """
    if height * width <= _PLANE_PIXELS:
        return height

    def cost(rows: int) -> tuple[float, int]:
        def vectors(count: int) -> int:
            return -(-count * width // lanes)

        bands, rest = divmod(height, rows)
        work = (bands * vectors(rows) + (vectors(rest) if rest else 0)) * lanes / (height * width)
        size = rows * width / pixels
        return work + 0.05 * max(size, 1 / size) + (0.05 if rest else 0.0), rows

    return min(range(1, min(height, max(2 * pixels // width, 1)) + 1), key=cost)


def pitch_of(pixels: int) -> int:
    """Distance between channels: whole cache lines, and for wide bands an odd number of them, against aliasing."""
    lines = -(-pixels // _LINE)
    if lines >= 8 and lines % 2 == 0:
        lines += 1
    return lines * _LINE if pixels > 1 else 1


def _layouts(graph: Graph, target: Target, strips: int, band_pixels: int) -> dict[str, Layout]:
    """Every image's layout with all bands resident; inputs, and what no row-wise operation makes, are plain."""
    made_by = {name: op for op in graph.ops for name in op.outputs}
    # A sum over all pixels must not depend on the number of threads: not in its order either.
    sums = [graph.values[op.inputs[0]].image for op in graph.ops if isinstance(op, GlobalPooling)]
    pooled = {image[2:] for image in sums if image is not None}
    layouts: dict[str, Layout] = {}
    for name, value in graph.values.items():
        if value.image is None:
            continue
        if name in made_by and rowwise(made_by[name]):
            layouts[name] = _banded(value, target, 1 if value.image[2:] in pooled else strips, band_pixels)
        else:
            layouts[name] = Layout.plain(value.image)
    return layouts


def _banded(value: Value, target: Target, strips: int, band_pixels: int) -> Layout:
    assert value.image is not None
    images, channels, height, width = value.image
    rows = band_rows(height, width, target.lanes, band_pixels)
    share = -(-height // strips)
    if rows == height and share * width >= _STRIP_VECTORS * target.lanes:
        rows = share
    layout = Layout(channels, height, width, rows, pitch_of(rows * width), 1, images)
    return Layout(channels, height, width, rows, layout.pitch, layout.bands * images, images)
