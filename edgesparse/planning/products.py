"""Products: the matrix that a layer comes down to, the kernels that could run it, and what each should cost."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace

import numpy as np

from edgesparse.costing.costs import table_for
from edgesparse.costing.counts import Terms, count, shape_of
from edgesparse.graph.ops import Conv, Linear, Op, Recurrence
from edgesparse.kernels import Epilogue, Panel, Spmm, StrassenIn, StrassenProduct, Window
from edgesparse.kernels.strassen import ADDEND
from edgesparse.planning.gathering import PANEL, Gathering, forms, window_of
from edgesparse.planning.packing import COLUMNS_AHEAD, Size, sizes
from edgesparse.planning.plan import Plan
from edgesparse.target import Target

#: Group sizes the product kernel is built for.
GROUPS = (1, 2, 4, 8, 16)

#: Bytes of L1 where a target does not tell.
_L1 = 32 << 10
#: Groups from which fetching weights ahead was measured to gain: smaller ones have no load to spare for it.
_STREAMED = 4


@dataclass(frozen=True)
class Product:
    """How a weight matrix is run: groups of `group` rows, tiles of `vectors` vectors, dense or by its non-zeros.

    `form` says what a k x k convolution's product reads, see `gathering`.
    """

    group: int
    vectors: int
    dense: bool
    form: str = PANEL

    def __str__(self) -> str:
        return f"{self.form} {'dense' if self.dense else 'group'}:{self.group} tile {self.vectors}".lstrip()


@dataclass(frozen=True)
class Job:
    """A weight matrix ``[N, K]`` and the bands it meets: pixels of a band, and how many such bands.

    Those of a k x k convolution are seen through a `window`. With `levels` it is one of the products that a larger one
    was made of by Strassen's algorithm, as often as it was halved.
    """

    weight: np.ndarray
    pixels: int
    bands: int
    epilogue: Epilogue
    window: Window | None = None
    levels: int = 0
    _sizes: dict[tuple[int, bool], tuple[Size, ...]] = field(default_factory=dict, compare=False, repr=False)

    @functools.cached_property
    def used(self) -> np.ndarray:
        """Where the weights are not zero."""
        used: np.ndarray = self.weight != 0
        return used

    def calls_from(self, form: str) -> tuple[tuple[str, int], ...]:
        """The cache levels that the weights come from when a call begins, and for how many calls."""
        calls = self.bands * (self.gathering(form).calls if form != PANEL else 1)
        return (("l3", 1), ("l2", calls - 1)) if calls > 1 else (("l3", calls),)

    def gathering(self, form: str) -> Gathering:
        """What the product reads; of a convolution with a window."""
        assert self.window is not None
        return Gathering(self.window, form)

    def spec(self, product: Product, group: int, target: Target) -> Spmm:
        """The kernel of a product for groups of `group` rows."""
        depth = self.weight.shape[1]
        where = self.gathering(product.form) if self.window else None
        spec = kernel_of(product, group, self.pixels, depth, self.epilogue, target, where)
        return StrassenProduct.of(spec, (ADDEND,)) if self.levels else spec  # most have one addend

    def differences(self, target: Target) -> list[tuple[StrassenIn, int]]:
        """Of a product with `levels`: what makes its input, and that of those it is a part of, with their channels."""
        return [
            (StrassenIn(self.pixels << level, target.lanes), self.weight.shape[1] << level)
            for level in range(self.levels)
        ]

    def sizes(self, product: Product) -> tuple[Size, ...]:
        """What the weights take when packed for a product."""
        key = (product.group, product.dense)
        if key not in self._sizes:
            self._sizes[key] = sizes(self.used, product.group, dense=product.dense)
        return self._sizes[key]


def job_of(op: Op, plan: Plan) -> Job | None:
    """The product that an operation comes down to, if it does (one group of a grouped convolution)."""
    if isinstance(op, Linear):
        return Job(op.weight[:, :, 0], op.rows, 1, op.epilogue)
    if isinstance(op, Recurrence):
        return Job(op.weight[:, :, 0], 1, op.steps * op.batch, op.epilogue)
    if isinstance(op, Conv) and not op.depthwise:
        layout = plan.layouts[op.output]
        rows = op.weight.shape[0] // op.groups
        matrix = op.weight.reshape(op.weight.shape[0], -1)[:rows]
        bands = layout.bands * layout.images * op.groups
        window = None if op.pointwise else window_of(op, plan.layouts[op.inputs[0]], layout, layout.rows)
        return Job(matrix, layout.rows * layout.width, bands, op.epilogue, window)
    return None


def candidates(job: Job, target: Target, *, dense_only: bool) -> list[Product]:
    """Ways to run a product on a target, best first by the cost model."""
    found = []
    most = accumulators(target)
    groups = [4 * target.lanes, 2 * target.lanes, target.lanes] if job.pixels == 1 else [4, 8, 16]
    for group in groups:
        if group <= most or job.pixels == 1:
            found += [Product(group, vectors, True) for vectors in tile_widths(group, most)]
    if not dense_only and job.used.mean() < 0.95:
        for group in GROUPS:
            if group <= most or job.pixels == 1:
                widths = tile_widths(group, most)
                found += [Product(group, vectors, False, form) for form in forms(job.window) for vectors in widths]
    costs = {product: cost(job, product, target) for product in found}
    if job.window is not None:
        gathered = {form: gather_cost(job, form, target) for form in forms(job.window)}
        costs = {product: price + gathered[product.form] for product, price in costs.items()}
    return sorted(found, key=lambda product: (costs[product], product.group, product.vectors, product.form))


def tile_widths(group: int, most: int) -> list[int]:
    """Vectors per tile worth trying for a group: what fills the accumulators, at most 8, and one less."""
    widest = max(1, min(most // group, 6))
    return [widest, widest - 1] if widest > 2 else [widest]


def accumulators(target: Target) -> int:
    """Vector registers that may hold sums: the rest are for the loaded vectors and a weight."""
    return target.accumulators or target.registers * 3 // 4


def kernel_of(
    product: Product,
    group: int,
    pixels: int,
    depth: int,
    epilogue: Epilogue,
    target: Target,
    where: Gathering | None = None,
) -> Spmm:
    """The kernel for a part of a product: its rows are in groups of `group`, of `depth` inputs each.

    `where` tells what a k x k convolution's product reads: its calls may have fewer pixels than the band.
    """
    vectors = max(1, min(product.vectors, accumulators(target) // group))
    ahead = target.ahead if group >= _STREAMED else 0
    if pixels == 1:  # it waits for nothing but weights, from the outer caches or memory
        ahead *= 2
    if where is not None:
        pixels, depth = where.pixels, where.inputs(depth, vectors * target.lanes)
    deep = 4 * depth * vectors * target.lanes > (target.l1d or _L1)
    columns_ahead = COLUMNS_AHEAD if deep and ahead and not product.dense else 0
    # With its columns fetched ahead, a tile need not stay in L1; but each tile streams all weights once more.
    tiles = pixels / (vectors * target.lanes)
    outer = deep and (1 < tiles < 2 if columns_ahead else tiles > 1)
    spec = Spmm(
        group,
        pixels,
        vectors,
        target.lanes,
        product.dense,
        epilogue,
        target.by_lane,
        outer,
        ahead,
        columns_ahead,
        few=target.few,
    )
    joined = replace(spec, joined=True)
    # Not on ARM: LLVM there has sums and pointers of such a tile on the stack.
    fits = any(run.singles for run in joined.cut.runs) and joined.live <= target.registers and not spec.by_lane
    return joined if fits else spec


def near(pixels: int, target: Target) -> int:
    """Input channels of which L1 holds the pixels of a usual tile, beside weights and results: for `packing.pack`.

    The same for all tiles, so that results do not depend on them. A single pixel of every channel fits.
    """
    return 0 if pixels == 1 else (target.l1d or _L1) * 3 // 4 // (4 * _TILE * target.lanes)


#: Vectors of a usual tile.
_TILE = 5


def cost(job: Job, product: Product, target: Target) -> float:
    """What the product of a whole layer costs, in the unit of the target's price table.

    The first call finds the weights beyond L2, as all others were used since the run before; the next find them there.
    """
    terms, columns, caches = Terms(), job.weight.shape[1], table_for(target).caches
    inputs = columns
    if job.window is not None:
        inputs = job.gathering(product.form).inputs(columns, product.vectors * target.lanes)
    for part in job.sizes(product):
        spec = job.spec(product, part.group, target)
        for level, times in job.calls_from(product.form):
            reads = {"inputs": inputs, "columns": columns}
            one = count(spec, target, part.groups, part.nnz, {level: 1.0}, **reads, caches=caches)
            terms.update({term: times * value for term, value in one.items()})
    return table_for(target).price(terms) * gather_factor(job, product.form, target)


def gather_factor(job: Job, form: str, target: Target) -> float:
    """What a k x k convolution was measured to take of what its counts tell: the table's factor for its windows."""
    factors = table_for(target).factors
    if job.window is None or not factors:
        return 1.0
    return factors.get(shape_of(Panel(job.gathering(form).copied, target.lanes)), 1.0)


def gather_cost(job: Job, form: str, target: Target) -> float:
    """What gathering the pixels of a k x k convolution costs beside its product, in the same unit."""
    where = job.gathering(form)
    channels = job.weight.shape[1] // len(where.window.taps)
    terms = count(Panel(where.copied, target.lanes), target, channels)
    return job.bands * table_for(target).price(terms) * gather_factor(job, form, target)
