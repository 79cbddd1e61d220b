"""What a kernel call does, counted: the terms of the cost model.

A call's time is taken as a sum of terms, each a count (multiply-add cycles, tiles, stores, bytes from a cache level ..)
times a price. The counts follow from the kernel's spec and the work it is given, as the generators in `kernels` write
it; the prices are fitted from measured layers, or, where nothing was measured, are those of a core that issues
everything at its declared width (`costing.costs`). The time of overlapping work is less than the sum of its parts: so
multiply-adds, loads and the latency of an accumulator are joined in one term, "issue", and what fetching from beyond L1
adds to it stands under "stream" (`caches.Caches`).
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from edgesparse.costing.caches import Caches, mixed, reused, shares, together
from edgesparse.kernels import (
    Depthwise,
    GlobalPool,
    KernelSpec,
    Panel,
    Pointwise,
    Pool,
    Spmm,
    StrassenIn,
    Transpose,
    Window,
)
from edgesparse.kernels.strassen import PARTS
from edgesparse.kernels.window import Block
from edgesparse.target import Target

Terms = Counter[str]
"""Counts by term; all are 0 or more. Beside the terms that have a price stand "flops" (those done, zeros that are
stored among them) and "moved.l1" to "moved.memory": bytes that come from each level."""

#: The terms that have a price, and what they are: for telling where a layer's time goes.
GROUPS: dict[str, str] = {
    "product.issue": "compute",
    "sparse.pair": "overhead",
    "product.tile": "overhead",
    "product.store": "overhead",
    "product.residual": "overhead",
    "product.special": "overhead",
    "tail.issue": "compute",
    "tail.group": "overhead",
    "tail.store": "overhead",
    "depthwise.tap": "compute",
    "depthwise.load": "compute",
    "depthwise.mask": "compute",
    "depthwise.stride": "compute",
    "depthwise.store": "overhead",
    "depthwise.channel": "overhead",
    "panel.tap": "gather",
    "panel.load": "gather",
    "panel.mask": "gather",
    "panel.stride": "gather",
    "panel.store": "gather",
    "panel.channel": "gather",
    "pool.tap": "compute",
    "pool.load": "compute",
    "pool.mask": "compute",
    "pool.stride": "compute",
    "pool.store": "overhead",
    "pool.channel": "overhead",
    "point.vector": "compute",
    "point.single": "compute",
    "point.channel": "overhead",
    "global.vector": "compute",
    "global.channel": "overhead",
    "transpose.value": "gather",
    "relax.value": "compute",
    "other.unit": "compute",
    "stream.l2": "l2",
    "stream.l3": "memory",
    "stream.memory": "memory",
    "product.read.l2": "l2",
    "product.read.l3": "memory",
    "product.write.l2": "l2",
    "product.write.l3": "memory",
    "call": "overhead",
}

#: The levels beyond L1 of a target that nobody measured.
_USUAL = Caches()

#: A cache line in bytes, of which a float is the least that is used.
_LINE, _FLOAT = 64, 4
#: How many times as long memory takes where nobody asked ahead, and nothing hides it: for a long stream, of which the
#: hardware foresees some, and for rows that end before it does. From the layers that `benchmarks/fit_cost.py` times.
_UNASKED_STREAM, _UNASKED_ROWS = 2.5, 5.5

#: How many times as long as its rate tells a level takes for a sparse product's inputs: where they are asked for ahead,
#: and how much that grows with the share of channels that a group reads, so with how close together they lie; and where
#: nobody asks. From the same layers.
_ASKED, _CROWDED, _UNASKED_INPUTS = 0.7, 1.2, 1.3

#: Cycles from one multiply-add into an accumulator to the next into the same one.
_LATENCY = 4.0


def count(
    spec: KernelSpec,
    target: Target,
    extent: int,
    pairs: int = 0,
    weights: Mapping[str, float] | None = None,
    *,
    inputs: int = 0,
    columns: int = 0,
    caches: Caches = _USUAL,
) -> Terms:
    """The terms of one call, but for the bytes that come from beyond L1 before it starts.

    Parameters
    ----------
    extent:
        Length of the call's range: output groups or channels.
    pairs:
        Of a product: stored (input channel, group) pairs in the range.
    weights:
        Where a product's weights come from when the call starts: shares by level; by default all from L2.
    inputs:
        Of a product: input channels that any of the pairs reads, fewer where columns share pixels; 0 if each group
        reads the same ones.
    columns:
        Of a product: columns that any of the pairs reads; more than `inputs` where they share pixels (as 0 tells).
    caches:
        The levels beyond L1, as the cost table has them.

    Families that no network of the fit uses (recurrences, TopK) have one coarse term for each unit of their range.
    """
    if isinstance(spec, Spmm):
        apart = 0 < columns <= inputs
        terms = _product(spec, target, extent, pairs, inputs, apart, weights or {"l2": 1.0}, caches)
    elif isinstance(spec, (Depthwise, Panel, Pool)):
        terms = _scaled(_window(spec), extent)
    elif isinstance(spec, Pointwise):
        whole, rest = divmod(spec.pixels, spec.lanes)
        terms = Terms({"point.vector": extent * whole, "point.single": extent * rest, "point.channel": extent})
        terms["flops"] += extent * spec.pixels
    elif isinstance(spec, StrassenIn):
        terms = Terms({"point.vector": extent * PARTS * spec.vectors, "point.channel": extent})
        terms["flops"] += extent * PARTS * spec.pixels
    elif isinstance(spec, GlobalPool):
        terms = Terms({"global.channel": extent})
    elif isinstance(spec, Transpose):
        terms = Terms()
    else:
        terms = Terms({"other.unit": extent})
    terms["call"] += 1
    return terms


def shape_of(spec: KernelSpec) -> str:
    """The class of a window kernel that a table may have a factor for: family, window, stride and output width."""
    if not isinstance(spec, (Depthwise, Panel, Pool)):
        return ""
    window: Window = spec.window
    (rows, columns), (down, across) = window.kernel, window.stride
    flat = " flat" if window.flat else ""
    return f"{type(spec).__name__.lower()} {rows}x{columns} stride {down}x{across} to {window.width_out}{flat}"


#: Cycles of a window's counts, for telling how much of what it fetches hides behind them.
_ISSUED = {"tap": 0.5, "load": 0.25, "mask": 0.5, "stride": 0.5, "store": 1.0, "issue": 1.0}


def fetched(spec: KernelSpec, terms: Terms, far: Mapping[str, float], caches: Caches) -> dict[str, float]:
    """Cycles that a call takes longer because of so many bytes that come from each level, by level.

    The counts are those of the call. What is fetched here lies apart, in several bands or in memory: less of that hides
    than of a product's long runs. Behind a pooling's sums all of L2 and L3 hides, and nothing from memory.
    """
    issue = sum(
        value * (1.0 if term.startswith("stream.") else _ISSUED.get(term.partition(".")[2], 0.0))
        for term, value in terms.items()
    )
    waits = {level: nbytes / caches.rates[level] for level, nbytes in far.items() if level in caches.rates}
    overlap = caches.scattered
    if isinstance(spec, Pool) and not math.isinf(overlap):
        waits = {"memory": waits.get("memory", 0.0) * _UNASKED_ROWS}
        overlap = 1.0
    fetch = sum(waits.values())
    if not fetch:
        return {}
    longer = together(overlap, issue, fetch) - issue
    return {level: longer * wait / fetch for level, wait in waits.items()}


def total(parts: Iterable[Terms]) -> Terms:
    """The sum of several calls' terms."""
    found = Terms()
    for part in parts:
        found.update(part)
    return found


def _scaled(terms: Terms, times: float) -> Terms:
    return Terms({name: value * times for name, value in terms.items()})


def _product(
    spec: Spmm,
    target: Target,
    groups: int,
    pairs: int,
    inputs: int,
    apart: bool,
    weights: Mapping[str, float],
    caches: Caches,
) -> Terms:
    terms = Terms()
    cut = spec.cut
    loads = spec.group / spec.lanes if spec.by_lane and spec.group % spec.lanes == 0 else spec.group
    pair_bytes = 4 * (spec.group + (not spec.dense))
    # After the first tile the weights come from where that pass left them; a group's own are still in L1.
    again = {"l1": 1.0} if spec.groups_outer else shares(pairs * pair_bytes, target, caches.l3)
    depth = pairs / max(groups, 1)
    inputs = max(inputs or round(depth), 1)
    # A channel follows the one before: unless it fills whole cache lines, most of its vectors lie across two.
    crossing = 1 - math.gcd(spec.pixels, spec.lanes) / spec.lanes
    measured = not math.isinf(caches.overlap)
    # Whole lines come: of one at each end of a channel's vectors only a part is used.
    ends = (_LINE - _FLOAT) * crossing if measured else 0.0
    foreseen = spec.dense or spec.ahead or not measured
    slower = _slower(spec, depth / inputs) if measured and apart else 1.0
    passes = 0
    for run in cut.runs:
        wide = len(run.offsets)
        sums, seen = spec.group * wide / target.pipes, wide * (1 + crossing)
        # These hide behind each other better than fetching does, but not wholly: larger tiles are a little better.
        issue = together(2 * caches.overlap, sums, (seen + loads + (not spec.dense)) / target.loads, _LATENCY)
        # From one group to the next: a tile's columns, or, with groups outermost, those of all tiles.
        panel = 4 * inputs * (spec.pixels if spec.groups_outer else wide * spec.lanes)
        near = reused(panel, depth / inputs, target, caches.l3)
        for repeat, level in ((1, weights if passes == 0 else again), (run.repeat - 1, again)):
            if repeat:
                nbytes = wide * spec.lanes * 4 + ends
                moved, far = (mixed((read, near), (pair_bytes, level)) for read in (nbytes, nbytes * slower))
                _moved(terms, repeat * pairs, moved)
                if not foreseen:
                    waited: Any = far.pop("memory", 0.0)
                    terms["stream.memory"] += repeat * pairs * waited * _UNASKED_STREAM / caches.rates["memory"]
                _issue(terms, "product.issue", repeat * pairs, issue, far, caches)
                passes += repeat
        stores = run.repeat * groups * spec.group * wide
        terms["sparse.pair"] += run.repeat * pairs * (not spec.dense)
        terms["product.tile"] += run.repeat * groups
        terms["product.store"] += stores * spec.stores
        terms["product.residual"] += stores * spec.residuals
        if spec.epilogue.activation not in _CHEAP:
            terms["product.special"] += stores
        if run.singles:  # the tile has the column and the weights already
            terms.update(_scaled(_singles(spec, target, run.singles, groups, pairs, {}, caches), run.repeat))
    if cut.tail:
        far = mixed((pair_bytes, weights if passes == 0 else again))
        terms.update(_singles(spec, target, cut.tail, groups, pairs, far, caches))
    terms["flops"] += 2 * pairs * spec.group * spec.pixels
    return terms


def _singles(
    spec: Spmm, target: Target, count: int, groups: int, pairs: int, far: Mapping[str, float], caches: Caches
) -> Terms:
    """`count` single pixels of all groups, with vectors along the group."""
    terms = Terms()
    vectors, index = -(-spec.group // spec.lanes), bool(far) and not spec.dense
    sums, fetches = vectors * count / target.pipes, (vectors + count + index) / target.loads
    _moved(terms, pairs, far)
    _issue(terms, "tail.issue", pairs, caches.together(sums, fetches), far, caches)
    terms["tail.group"] += groups
    terms["tail.store"] += groups * spec.group * count
    return terms


#: Activations that cost an instruction or two for each vector.
_CHEAP = ("none", "relu", "clip", "leaky")


def _issue(terms: Terms, term: str, times: Any, cycles: float, far: Mapping[str, float], caches: Caches) -> None:
    """Add `times` times issuing for `cycles` while fetching what takes as long as `far` bytes from each level."""
    for part, spent in caches.cycles(cycles, far).items():
        terms[term if part == "issue" else f"stream.{part}"] += times * spent


def _moved(terms: Terms, times: Any, far: Mapping[str, float]) -> None:
    """Add the bytes that come from each level `times` times."""
    for level, nbytes in far.items():
        terms[f"moved.{level}"] += times * nbytes


def _slower(spec: Spmm, kept: float) -> float:
    """How many times as long inputs take as their rates tell where a group reads the share `kept` of them, and columns
    share no pixels. With groups outermost they are in L1 for the tiles that follow.
    """
    if spec.dense or spec.groups_outer:
        return 1.0
    return _ASKED + _CROWDED * min(kept, 1.0) if spec.columns_ahead else _UNASKED_INPUTS


#: Operations of a window's tap on each pixel.
_FLOPS = {"depthwise": 2, "panel": 0, "pool": 1}


def _pieces(cut: Iterable[Block]) -> list[tuple[int, int, tuple[int, ...]]]:
    """The chunks of a band: (output rows, how often, first columns)."""
    return [(block.rows, block.repeat * run.repeat, run.offsets) for block in cut for run in block.runs]


@functools.lru_cache(maxsize=4096)
def _window(spec: Depthwise | Panel | Pool) -> Terms:
    """The terms of one channel. Within a chunk of sums, output rows share the vectors they both see."""
    window: Window = spec.window
    lanes = spec.width if isinstance(spec, Depthwise) else window.lanes(spec.lanes)
    slides = isinstance(spec, Depthwise) and spec.slides
    family = {"Depthwise": "depthwise", "Panel": "panel", "Pool": "pool"}[type(spec).__name__]
    terms = Terms({f"{family}.channel": 1})
    for rows, times, starts in _pieces(spec.cut):
        outputs = [(row, start) for row in range(rows) for start in starts]
        halves = 1 if window.flat or lanes <= window.width_out else 2  # of a vector that is wider than its row
        terms[f"{family}.store"] += times * len(outputs) * halves
        loads: dict[tuple[int, int, int], int] = {}  # input vectors, and the shuffles that each of them takes
        slid = set()
        for at in outputs:
            for tap in window.taps:
                mask = window.valid(at, tap, lanes)
                if not any(mask):
                    continue
                terms[f"{family}.tap"] += times
                terms["flops"] += times * _FLOPS[family] * sum(mask if window.flat else mask[: window.width_out])
                row = at[0] * window.stride[0] + tap[0] * window.dilation[0]
                if slides:
                    shift, phase = divmod(tap[1] * window.dilation[1] - window.left, window.stride[1])
                    again = shift < 0 and window.stride[1] == 1
                    loads[row, at[1], shift if again else phase] = int(window.stride[1] == 2)
                    if shift and not again:
                        slid.add((row, at[1], tap[1]))
                else:
                    column = at[1] * window.stride[1] + tap[1] * window.dilation[1]
                    loads[row, column, all(mask)] = {1: 0, 2: 1}.get(window.stride[1], lanes) if lanes > 1 else 0
        terms["moved.l1"] += times * 4 * lanes * (len(loads) + len(outputs))
        terms[f"{family}.load"] += times * len(loads)
        terms[f"{family}.stride"] += times * (sum(loads.values()) + len(slid) + (halves - 1) * len(outputs))
        masked = len(loads) * (halves - 1) if slides else sum(not whole for *_, whole in loads)
        terms[f"{family}.mask"] += times * masked
    if family == "panel":
        terms["panel.store"] *= len(window.taps)
    return +terms
