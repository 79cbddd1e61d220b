"""Why a layer, and a network, is as fast as it is and no faster.

Everything here follows from the weights, the target and the cost model: the same model gets the same answer on every
run. What was measured stands beside it and decides nothing. Causes are codes of `CAUSES`, with a sentence that says
what was found and one that says what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from edgesparse.costing.costs import CostTable, table_for
from edgesparse.costing.forecast import Forecast, forecast, placed_as
from edgesparse.costing.virtual import PATTERNS, best_sparse, break_even
from edgesparse.graph.ops import Graph, Op
from edgesparse.pattern import DENSE_FROM, SparsePattern
from edgesparse.planning.decide import Choice, decide
from edgesparse.planning.packing import union_density
from edgesparse.planning.place import Placement, place
from edgesparse.planning.plan import Plan
from edgesparse.planning.products import Job, candidates, cost, job_of
from edgesparse.target import Target

SCHEMA = "edgesparse.explain/1"

#: What keeps a layer or a network from being faster.
CAUSES: Mapping[str, str] = {
    "as-expected": "it gains what its density promises",
    "not-pruned": "it has no zeros to skip",
    "unstructured": "zeros that differ from row to row: rows run as unions, and skip only what all of them lack",
    "above-break-even": "too few zeros: the dense kernel is faster at this density",
    "dense-asked": "it was compiled as the dense baseline",
    "overhead": "what each group and tile costs beside its multiply-adds outweighs the zeros skipped",
    "gather": "gathering the windows costs the same, however many weights are kept",
    "memory": "weights or activations come from beyond L2, at the memory's speed",
    "l2": "activations come from L2, at its speed",
    "tile-padding": "lanes of the tiles hold no pixel",
    "narrow": "the kernel for its groups does less in a cycle than the dense one",
    "depthwise": "depthwise kernels use every weight: a channel has only its own few taps",
    "no-weights": "it has no weights",
    "relax": "no kernel of our own: lowered through Relax",
    "pruned-layers-small": "the layers that were pruned take little of the time",
    "unpruned-layers-remain": "most of the time is left in layers that were not pruned",
}

#: A layer gains what its density promises if it reaches this share of 1/density; a network's pruned layers, this one.
_REACHED, _REACHED_TOGETHER = 0.8, 0.7
#: Below this bound on the whole gain, the pruned layers are too small to matter.
_SMALL = 1.2
#: Another pattern is the cause if it would make an unstructured layer so many times as fast, and worth telling at this.
_PATTERN_PAYS, _WORTH_SAYING = 1.15, 1.05
#: The density at which layers without zeros are told what they could gain.
_EXAMPLE = 0.3


@dataclass(frozen=True)
class Explained:
    """One layer.

    Attributes
    ----------
    pattern, density:
        Found in the weights; "" and None where there are none.
    kernel, runner_up:
        Chosen, and second best.
    share:
        Of the dense network's predicted time.
    predicted, measured:
        How many times as fast as the same layer compiled dense: by the cost model; by the clock, or None.
    break_even:
        Density below which the layer's pattern (group:8x1 where it has no zeros) beats the dense kernel here; None
        for layers that have no sparse kernel.
    bound:
        The kind of work that takes most of the predicted time.
    cause, why, advice:
        A code of `CAUSES`; what was found; what to do, or "".
    """

    name: str
    kind: str
    pattern: str
    density: float | None
    kernel: str
    runner_up: str
    share: float
    predicted: float
    measured: float | None
    break_even: float | None
    bound: str
    cause: str
    why: str
    advice: str

    @property
    def pruned(self) -> bool:
        """Whether it has zeros worth skipping."""
        return self.density is not None and self.density < DENSE_FROM

    @property
    def prunable(self) -> bool:
        """Whether a sparse kernel for it exists."""
        return self.break_even is not None


@dataclass(frozen=True)
class Explanation:
    """A whole network: its layers, and the one cause that matters most; `predicted` is against dense."""

    layers: tuple[Explained, ...]
    predicted: float
    cause: str
    why: str
    advice: str
    table: CostTable
    target: str

    def as_dict(self) -> dict[str, Any]:
        """JSON values in the schema `SCHEMA`."""
        return {
            "schema": SCHEMA,
            "target": self.target,
            "cost_model": self.table.as_dict(),
            "predicted": self.predicted,
            "cause": self.cause,
            "why": self.why,
            "advice": self.advice,
            "layers": [asdict(layer) for layer in self.layers],
        }


def explain(
    graph: Graph,
    target: Target,
    *,
    compiled: Iterable[Mapping[str, Any]] | None = None,
    asked: Choice | None = None,
    measured: Mapping[str, float] | None = None,
    tick: Callable[[float, str], None] | None = None,
) -> Explanation:
    """Explain a recognised model on a target.

    Parameters
    ----------
    compiled:
        An artifact's layers, whose kernels are taken as they are; without, those the cost model chooses.
    asked:
        The plan that was compiled; by default the one that the cost model chooses.
    measured:
        How many times as fast as dense each layer was, by name.
    tick:
        Told the share done, and what comes now.
    """
    say = tick or (lambda share, text: None)
    say(0.0, "choosing the plan")
    table = table_for(target)
    layout = decide(graph, target, asked).plan
    placements = placed_as(graph, layout, target, compiled) if compiled is not None else place(graph, layout, target)
    say(0.2, "predicting")
    sparse = forecast(graph, layout, placements, target, table)
    dense = forecast(graph, layout, place(graph, layout, target, dense=True), target, table)
    total = sum(each.time for each in dense.values()) or 1.0
    found = []
    for done, op in enumerate(graph.ops):
        say(0.4 + 0.6 * done / len(graph.ops), "asking why")
        mine = placements[op.name], sparse[op.name], dense[op.name]
        found.append(_layer(op, layout, target, *mine, total, measured or {}))
    layers = tuple(found)
    gained = total / (sum(each.time for each in sparse.values()) or 1.0)
    cause, why, advice = verdict(layers)
    return Explanation(layers, gained, cause, why, advice, table, str(target))


def _layer(
    op: Op,
    layout: Plan,
    target: Target,
    placement: Placement,
    sparse: Forecast,
    dense: Forecast,
    total: float,
    measured: Mapping[str, float],
) -> Explained:
    job = job_of(op, layout)
    found = Explained(
        op.name,
        placement.kind,
        str(placement.pattern) if placement.pattern else "",
        placement.density,
        placement.kernel,
        str(placement.runner_up or ""),
        dense.time / total,
        dense.time / sparse.time if sparse.time else 1.0,
        measured.get(op.name),
        None,
        sparse.bound,
        placement.reason.code if placement.reason else "no-weights",
        "",
        "",
    )
    if job is None or placement.product is None:
        cause = found.cause if found.cause in CAUSES else "no-weights"
        return replace(found, cause=cause, why=CAUSES[cause], predicted=1.0)
    assert placement.pattern is not None
    assert placement.density is not None
    product = candidates(job, target, dense_only=True)[0]
    pattern = placement.pattern if found.pruned else SparsePattern("group", 8, 1)
    found = replace(found, break_even=break_even(job, product, target, pattern))
    fixed = max(dense.time - cost(job, product, target), 0.0)
    if not found.pruned:
        return replace(found, cause="not-pruned", why=CAUSES["not-pruned"], advice=_example(job, target, dense, fixed))
    if placement.product.dense:
        code = found.cause if found.cause == "dense-asked" else "above-break-even"
        why = f"{CAUSES[code]} (break-even {found.break_even:.2f}, density {placement.density:.2f})"
    else:
        code, why = _shortfall(job, target, placement, sparse, dense, found.predicted)
    gain, best = _other_pattern(job, target, placement, sparse, fixed)
    if pattern.kind == "unstructured" and code not in ("as-expected", "dense-asked") and gain >= _PATTERN_PAYS:
        code, why = "unstructured", _union(job, placement)
    advice = f"{best} at the same density would be {100 * (gain - 1):.0f} % faster" if gain >= _WORTH_SAYING else ""
    if code == "above-break-even" and not advice:
        advice = "prune it further, or leave it dense"
    elif code not in ("as-expected", "dense-asked") and not advice:
        advice = _more_weights(job, target, pattern, placement.density, fixed)
    return replace(found, cause=code, why=why, advice=advice)


def _shortfall(
    job: Job, target: Target, placement: Placement, sparse: Forecast, dense: Forecast, ratio: float
) -> tuple[str, str]:
    """What keeps a sparse layer from 1/density: where its time most exceeds the dense one's times density."""
    assert placement.density is not None
    assert placement.product is not None
    if ratio * placement.density >= _REACHED:
        return "as-expected", f"{ratio:.2f} times as fast as dense; 1/density is {1 / placement.density:.2f}"
    extra = {
        kind: sparse.parts.get(kind, 0.0) - placement.density * dense.parts.get(kind, 0.0)
        for kind in ("overhead", "gather", "l2", "memory")
    }
    padding = padded_share(job, target, placement)
    extra["tile-padding"] = sparse.parts.get("compute", 0.0) * padding
    kept = placement.density * dense.parts.get("compute", 0.0)
    extra["narrow"] = sparse.parts.get("compute", 0.0) * (1 - padding) - kept
    code = max(extra, key=lambda kind: extra[kind])
    said = CAUSES[code]
    if code == "tile-padding":
        said = f"{100 * padding:.0f} % of the tiles' lanes hold no pixel of their own ({job.pixels} pixels)"
    part = extra[code] / sparse.time if sparse.time else 0.0
    return code, f"{said}: {100 * part:.0f} % of its time"


def padded_share(job: Job, target: Target, placement: Placement) -> float:
    """Share of the lanes of a layer's tiles that compute a pixel a second time."""
    product = placement.product
    assert product is not None
    spec = job.spec(product, product.group, target)
    cut = spec.cut
    lanes = cut.vectors * spec.lanes
    singles = cut.tail + sum(run.singles * run.repeat for run in cut.runs)
    return (lanes - (spec.pixels - singles)) / lanes if lanes else 0.0


def _example(job: Job, target: Target, dense: Forecast, fixed: float) -> str:
    """What pruning a dense layer would bring."""
    pattern = SparsePattern("group", 8, 1)
    gain = dense.time / (fixed + best_sparse(job, target, pattern, _EXAMPLE)[0]) if dense.time else 1.0
    if gain < 1.1:
        return f"pruning it brings little: {gain:.2f} times as fast at density {_EXAMPLE} in {pattern}"
    return f"prune it: {gain:.2f} times as fast at density {_EXAMPLE} in {pattern}"


def _other_pattern(
    job: Job, target: Target, placement: Placement, sparse: Forecast, fixed: float
) -> tuple[float, SparsePattern]:
    """How many times as fast the layer would be in the best other pattern of the same density, and which that is."""
    density = placement.density or 0.0
    found = [(best_sparse(job, target, each, density)[0], each) for each in PATTERNS if each != placement.pattern]
    time, best = min(found, key=lambda item: item[0])
    return sparse.time / (fixed + time) if fixed + time else 1.0, best


def _more_weights(job: Job, target: Target, pattern: SparsePattern, density: float, fixed: float) -> str:
    """What to do where no pattern helps: how little it would cost to keep twice the weights, for the accuracy."""
    more = min(1.0, 2 * density)
    now, then = (fixed + best_sparse(job, target, pattern, each)[0] for each in (density, more))
    slower = 100 * (then / now - 1) if now else 0.0
    return f"no other pattern of this density gains 5 %; at density {more:.2g} it would take {slower:.0f} % longer"


def _union(job: Job, placement: Placement) -> str:
    """How an unstructured layer runs."""
    product = placement.product
    assert product is not None
    if product.dense:
        return "zeros that differ from row to row: no sparse kernel is faster than the dense one at this density"
    if product.group == 1:
        return "zeros that differ from row to row: rows run one by one, and each loaded vector meets one weight only"
    stored = union_density(job.weight, product.group)
    return f"in unions of {product.group} rows it computes {stored:.2f} of the products, not {placement.density:.2f}"


def verdict(layers: Sequence[Explained]) -> tuple[str, str, str]:
    """The cause that matters most for a whole network, why, and what to do.

    In this order: nothing was pruned; the zeros are in depthwise layers; the pruned layers take too little time; the
    layers that were not pruned take most of what is left; else what holds the pruned layers back.
    """
    pruned = [layer for layer in layers if layer.pruned]
    if not pruned:
        best = max((layer for layer in layers if layer.prunable), key=lambda layer: layer.share, default=None)
        advice = f"prune it first where most time is: {best.name}" if best else ""
        return "not-pruned", "no layer has zeros to skip", advice and f"{advice}; `edgesparse predict` shows the gain"
    share = sum(layer.share for layer in pruned)
    useless = sum(layer.share for layer in pruned if layer.cause == "depthwise")
    if useless > share / 2:
        return "depthwise", CAUSES["depthwise"], "prune the 1x1 convolutions instead"
    if 1 / max(1 - share, 1e-9) < _SMALL:
        why = f"the {len(pruned)} pruned layers take {100 * share:.0f} % of the dense time"
        return "pruned-layers-small", why, _where_time_is(layers)
    left = sum(layer.share / layer.predicted for layer in layers)
    dense = sum(layer.share for layer in layers if layer.prunable and not layer.pruned)
    if dense > left / 2:
        why = f"layers that were not pruned take {100 * dense / left:.0f} % of the time that is left"
        return "unpruned-layers-remain", why, _where_time_is(layers)
    time = sum(layer.share / layer.predicted for layer in pruned)
    ideal = sum(layer.share * (layer.density or 0.0) for layer in pruned)
    said = (
        f"the pruned layers are {share / time:.2f} times as fast as dense; their density promises {share / ideal:.2f}"
    )
    if ideal / time >= _REACHED_TOGETHER:
        return "as-expected", said, ""
    lost: dict[str, float] = {}
    for layer in pruned:
        if layer.cause != "as-expected":
            excess = layer.share / layer.predicted - layer.share * (layer.density or 0.0)
            lost[layer.cause] = lost.get(layer.cause, 0.0) + excess
    cause = max(sorted(lost), key=lambda code: lost[code]) if lost else "as-expected"
    worst = max((layer for layer in pruned if layer.cause == cause), key=lambda layer: layer.share)
    advice = f"{worst.name}: {worst.advice}" if worst.advice else ""
    return cause, f"{said}: {CAUSES[cause]}", advice


def _where_time_is(layers: Sequence[Explained]) -> str:
    """The kind of unpruned layer with most of the time."""
    kinds: dict[str, float] = {}
    for layer in layers:
        if layer.prunable and not layer.pruned:
            kinds[layer.kind] = kinds.get(layer.kind, 0.0) + layer.share
    if not kinds:
        return ""
    most = max(sorted(kinds), key=lambda kind: kinds[kind])
    return f"prune the {most} layers too: {100 * kinds[most]:.0f} % of the dense time"
