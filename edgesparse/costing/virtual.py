"""Virtual sparsity: what a layer would cost with zeros that it does not have, by the cost model alone.

A random mask in groups of n rows at density d, run by a kernel for groups of g rows, stores a pair of an input channel
and a group where any of the g rows has a weight: the share ``1 - (1 - d) ** (g / n)`` of all, or d where g divides n.
"""

from __future__ import annotations

from edgesparse.costing.costs import table_for
from edgesparse.costing.counts import Terms, count
from edgesparse.pattern import SparsePattern
from edgesparse.planning.gathering import PANEL, forms
from edgesparse.planning.products import (
    GROUPS,
    Job,
    Product,
    accumulators,
    cost,
    gather_cost,
    gather_factor,
    tile_widths,
)
from edgesparse.target import Target

#: The patterns that are worth comparing: those that kernels exist for, and what most tools make.
PATTERNS = tuple(SparsePattern.parse(text) for text in ("unstructured", "group:4x1", "group:8x1", "group:16x1"))


def rows_together(pattern: SparsePattern) -> int:
    """Output channels that keep or drop an input channel together."""
    return pattern.n if pattern.kind in ("group", "block") else 1


def stored_share(pattern: SparsePattern, density: float, group: int) -> float:
    """Share of pairs that a kernel for groups of `group` rows stores of a random mask."""
    own = rows_together(pattern)
    return density if own % group == 0 else 1 - (1 - density) ** max(group / own, 1.0)


def virtual_cost(job: Job, product: Product, target: Target, pattern: SparsePattern, density: float) -> float:
    """What the product of a layer costs with such a mask, in the unit of the target's price table.

    Where a k x k convolution's product reads something else than a panel, with what gathering that takes more.
    """
    rows, depth = job.weight.shape
    whole, rest = divmod(rows, product.group)
    terms, caches = Terms(), table_for(target).caches
    inputs, more = depth, 0.0
    if job.window is not None:
        inputs = job.gathering(product.form).inputs(depth, product.vectors * target.lanes)
        more = gather_cost(job, product.form, target) - gather_cost(job, PANEL, target)
    for groups, size in ((whole, product.group), (1, rest)):
        if groups and size:
            share = 1.0 if product.dense else stored_share(pattern, density, size)
            spec = job.spec(product, size, target)
            pairs = round(groups * depth * share)
            for level, times in job.calls_from(product.form):
                one = count(spec, target, groups, pairs, {level: 1.0}, inputs=inputs, columns=depth, caches=caches)
                terms.update({term: times * value for term, value in one.items()})
    return table_for(target).price(terms) * gather_factor(job, product.form, target) + more


def sparse_products(job: Job, target: Target) -> list[Product]:
    """The sparse kernels that a layer may run with."""
    most = accumulators(target)
    groups = [group for group in GROUPS if group <= most or job.pixels == 1]
    tiles = [(group, wide) for group in groups for wide in tile_widths(group, most)]
    return [Product(group, wide, False, form) for form in forms(job.window) for group, wide in tiles]


def best_sparse(job: Job, target: Target, pattern: SparsePattern, density: float) -> tuple[float, Product]:
    """The cheapest sparse kernel for such a mask, and its cost."""
    costs = [(virtual_cost(job, each, target, pattern, density), each) for each in sparse_products(job, target)]
    return min(costs, key=lambda item: item[0])


def break_even(job: Job, dense: Product, target: Target, pattern: SparsePattern) -> float:
    """The density below which the best sparse kernel costs less than the dense one; 0 if none does, at most 1."""
    goal = cost(job, dense, target)
    low, high = 0.0, 1.0
    if best_sparse(job, target, pattern, high)[0] <= goal:
        return 1.0
    if best_sparse(job, target, pattern, 1 / max(job.weight.shape[1], 1))[0] > goal:
        return 0.0
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (middle, high) if best_sparse(job, target, pattern, middle)[0] <= goal else (low, middle)
    return low
