"""Placement: which kernel and tile runs each layer, why, and what it should cost.

A layer's weights may keep groups of any size; a kernel for groups of N runs them as the union of N rows. So every layer
has a few candidates (group, tile, or the dense kernel), ranked by a cost model and, where the host is the target,
measured (`edgesparse.planning.tune`). The choice, the runner-up and the reason go into the artifact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgesparse.costing.costs import table_for
from edgesparse.errors import Reason
from edgesparse.graph.ops import Attention, Conv, Fallback, Graph, Linear, Op, Recurrence
from edgesparse.pattern import SparsePattern, find_pattern
from edgesparse.planning.algorithms import ALGORITHMS, job_name, other_jobs
from edgesparse.planning.plan import Plan
from edgesparse.planning.products import Job, Product, candidates, cost, job_of
from edgesparse.target import Target

#: Candidates that are worth measuring: those the model puts within this factor of the best, and at most so many.
_CLOSE, _MOST = 1.35, 4


@dataclass(frozen=True)
class Placement:
    """What was decided for one operation.

    Attributes
    ----------
    op, nodes, kind:
        The layer's name, its ONNX nodes, and its family ("conv1x1", "conv", "depthwise", "linear", ..).
    pattern, density:
        Found in the weights; None for operations without.
    product, runner_up:
        The chosen way to run the weight matrix and the second best, with times in microseconds where measured.
    macs:
        Multiply-adds of the dense operation.
    stored:
        Bytes of packed weights and indices.
    predicted, measured_us:
        What the product costs by the cost model, in the unit of the target's price table; microseconds as measured when
        tuning.
    unit:
        Of `predicted`: "ns" or "cycles".
    reason:
        Why the layer is not sparse, or not in its own pattern.
    algorithm:
        Of `planning.algorithms`: the product is one of those that this algorithm makes of the layer's; "" for none.
    """

    op: str
    nodes: tuple[str, ...]
    kind: str
    shape: tuple[int, ...] = ()
    pattern: SparsePattern | None = None
    density: float | None = None
    product: Product | None = None
    runner_up: Product | None = None
    macs: int = 0
    stored: int = 0
    predicted: float = 0.0
    unit: str = "cycles"
    measured_us: float | None = None
    runner_up_us: float | None = None
    reason: Reason | None = None
    algorithm: str = ""

    @property
    def kernel(self) -> str:
        """How it runs, as it is told: its family, or its product after the algorithm."""
        return f"{self.algorithm} {self.product}".lstrip() if self.product else self.kind

    def record(self) -> dict[str, Any]:
        """The placement as JSON values, for the manifest and `inspect`."""
        return {
            "name": self.op,
            "nodes": list(self.nodes),
            "kind": self.kind,
            "shape": list(self.shape),
            "pattern": str(self.pattern) if self.pattern else None,
            "density": self.density,
            "kernel": self.kernel,
            "runner_up": str(self.runner_up) if self.runner_up else None,
            "macs": self.macs,
            "bytes": self.stored,
            "predicted_us": round(self.predicted / 1000, 2) if self.unit == "ns" else None,
            "predicted_cycles": round(self.predicted) if self.unit == "cycles" else None,
            "measured_us": self.measured_us,
            "runner_up_us": self.runner_up_us,
            "reason": str(self.reason) if self.reason else None,
        }


def kind_of(op: Op) -> str:
    """The family an operation belongs to, in the words of `inspect`."""
    if isinstance(op, Conv):
        if op.depthwise:
            return "depthwise"
        return "conv1x1" if op.pointwise else "conv"
    return {"GlobalPooling": "global-pool", "Fallback": "relax"}.get(type(op).__name__, type(op).__name__.lower())


Jobs = Mapping[str, tuple[Job, list[Product]]]
"""By layer: its product, and the candidates for it."""

Measure = Callable[[Jobs], Mapping[str, list[float]]]
"""Gives the seconds of every candidate, by layer."""


def place(
    graph: Graph,
    plan: Plan,
    target: Target,
    *,
    dense: bool = False,
    measure: Measure | None = None,
    strassen: bool = False,
) -> dict[str, Placement]:
    """Decide for every operation.

    Parameters
    ----------
    dense:
        Use the dense kernels everywhere, as the baseline of `bench` does.
    measure:
        Gives the seconds of the candidates; without it the cost model decides.
    strassen:
        Measure Strassen's algorithm, too: its rounding is that of the largest values, so nobody gets it unasked.
    """
    jobs: dict[str, tuple[Job, list[Product]]] = {}
    for op in graph.ops:
        job = job_of(op, plan)
        if job is not None:
            ranked = candidates(job, target, dense_only=dense)
            best = cost(job, ranked[0], target)
            close = [product for product in ranked if cost(job, product, target) <= best * _CLOSE][:_MOST]
            jobs[op.name] = (job, _of_all_kinds(job, close if len(close) > 1 else ranked[:2], ranked))
    if measure is None:
        return {op.name: _placement(op, graph, plan, target, dense, jobs.get(op.name), None) for op in graph.ops}
    others = {}
    for op in graph.ops:
        if op.name in jobs:
            density = 1.0 if dense else float(jobs[op.name][0].used.mean())
            for name, job in other_jobs(op, plan, target, density, strassen=strassen).items():
                others[job_name(op.name, name)] = (job, candidates(job, target, dense_only=True)[:_MOST])
    times = measure({**jobs, **others})
    found = {}
    for op in graph.ops:
        usual = _placement(op, graph, plan, target, dense, jobs.get(op.name), times.get(op.name))
        found[op.name] = _by_algorithms(usual, others, times, target, dense)
    return found


def _of_all_kinds(job: Job, taken: list[Product], ranked: list[Product]) -> list[Product]:
    """Candidates to measure, with the best of every kind: the cost model knows tiles better than it knows kinds.

    Kinds are the forms of a convolution, and the group sizes of a single row: whether its weights are bound by memory
    or by what they are multiplied with is near in all of them, and unions of rows store more.
    """
    if ranked[0].dense and job.pixels > 1:
        return taken

    def kind(product: Product) -> tuple[bool, str | int]:
        return product.dense, product.group if job.pixels == 1 else product.form

    best: dict[tuple[bool, str | int], Product] = {}
    for product in ranked:
        best.setdefault(kind(product), product)
    missing = [product for product in best.values() if product not in taken and not product.dense]
    most = max(2, _MOST - len(missing))
    kept = [product for at, product in enumerate(taken) if at < most or product == best[kind(product)]]
    return [*kept, *missing]


def _by_algorithms(
    usual: Placement, others: Jobs, times: Mapping[str, list[float]], target: Target, dense: bool
) -> Placement:
    """The placement by the algorithm with fewer multiplications measured to be the fastest, if any is faster."""
    if usual.product is None or usual.pattern is None or usual.measured_us is None:
        return usual
    least, found = usual.measured_us, usual
    for algorithm in ALGORITHMS.values():
        name = job_name(usual.op, algorithm.name)
        if name not in times:
            continue
        (job, products), measured = others[name], times[name]
        best = min(range(len(products)), key=lambda index: measured[index])
        wanted = measured[best] * 1e6 / algorithm.margin
        if wanted > least:
            continue
        least = wanted
        found = replace(
            usual,
            product=products[best],
            runner_up=usual.product,
            stored=algorithm.products * sum(part.nbytes for part in job.sizes(products[best])),
            predicted=cost(job, products[best], target),
            measured_us=round(measured[best] * 1e6, 2),
            runner_up_us=usual.measured_us,
            reason=_dense_reason(usual.op, usual.pattern, dense),
            algorithm=algorithm.name,
        )
    return found


def _placement(
    op: Op,
    graph: Graph,
    plan: Plan,
    target: Target,
    dense: bool,
    choice: tuple[Job, list[Product]] | None,
    times: list[float] | None,
) -> Placement:
    kind = kind_of(op)
    if choice is None:
        return _plain_placement(op, graph, kind)
    job, ranked = choice
    order = list(range(len(ranked)))
    if times is not None:
        order.sort(key=lambda index: times[index])
    first, second = order[0], (order[1] if len(order) > 1 else None)
    assert isinstance(op, (Conv, Linear, Recurrence))
    pattern, density = find_pattern(op.weight)
    groups = op.groups if isinstance(op, Conv) else 1
    product = ranked[first]
    return Placement(
        op.name,
        op.nodes,
        kind,
        op.weight.shape,
        pattern,
        density,
        product,
        ranked[second] if second is not None else None,
        op.weight.size * (job.pixels * job.bands // groups if not isinstance(op, Conv) else _pixels(graph, op)),
        groups * sum(part.nbytes for part in job.sizes(product)),
        cost(job, product, target),
        table_for(target).unit,
        round(times[first] * 1e6, 2) if times is not None else None,
        round(times[second] * 1e6, 2) if times is not None and second is not None else None,
        _reason(op, pattern, product, dense),
    )


def _pixels(graph: Graph, op: Op) -> int:
    shape = graph.values[op.output].shape
    return shape[0] * shape[2] * shape[3]


def _reason(op: Op, pattern: SparsePattern, product: Product, dense: bool) -> Reason | None:
    """Why a layer runs as it does, where that is not plainly its own pattern."""
    if dense or product.dense:
        return _dense_reason(op.name, pattern, dense)
    if pattern.kind == "unstructured":
        return Reason("row-union", f"unstructured weights run as the union of {product.group} rows", op.name)
    return None


def _dense_reason(name: str, pattern: SparsePattern, dense: bool) -> Reason:
    """Why a layer runs by a dense kernel."""
    if dense:
        return Reason("dense-asked", "compiled as the dense baseline", name)
    if pattern.kind == "dense":
        return Reason("weights-dense", "the weights have too few zeros to skip", name)
    return Reason("dense-faster", f"the dense kernel is faster than the sparse ones for this {pattern}", name)


def _plain_placement(op: Op, graph: Graph, kind: str) -> Placement:
    macs, stored, shape = 0, 0, graph.values[op.output].shape
    density = pattern = None
    if isinstance(op, Conv):
        macs, stored, shape = op.weight.size * _pixels(graph, op), op.weight.nbytes, op.weight.shape
        pattern, density = find_pattern(op.weight)
    if isinstance(op, Attention):
        macs = op.macs
    if isinstance(op, Fallback):
        operators = sorted({node.op_type for node in op.model.graph.node})
        reason = Reason("relax", f"no kernel of ours for {', '.join(operators)}: lowered through Relax", op.name)
    else:
        reason = Reason(
            "depthwise" if isinstance(op, Conv) else "no-weights", _WHY.get(kind, "has no weights to skip"), op.name
        )
    return Placement(op.name, op.nodes, kind, shape, pattern, density, macs=macs, stored=stored, reason=reason)


_WHY = {
    "depthwise": "depthwise kernels use every weight: a channel has only its own few taps",
    "attention": "both factors of its products are activations: there are no weights to skip",
}
