"""The frontier of accuracy and cost: one model pruned to several budgets, and the cheapest that keeps the accuracy.

What does not depend on the budget (the channels' order, each layer's sensitivity, prices) is found once, by `prepare`.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from edgesparse.advice.evaluate import Evaluation
from edgesparse.budget import Budget
from edgesparse.errors import EdgesparseError, Reason, UsageError
from edgesparse.passes import Pass, run_passes, sparsify_passes
from edgesparse.passes.allocate import GRID
from edgesparse.passes.choose import Weigher
from edgesparse.passes.observe import Feeds, Tick
from edgesparse.passes.sparsify import Measured, Pricer, amount_of, measure, settled, sparsify
from edgesparse.recipe import Recipe
from edgesparse.sections import Allocation

Judge = Callable[[ir.Model], Evaluation]
SCHEMA = "edgesparse.frontier/1"
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
ROUNDS = 6
"""Models that the search for the cheapest one makes; the budget is then known to 1/64 of the range."""


class DropError(EdgesparseError):
    """No budget keeps the accuracy that was asked for."""


@dataclass(frozen=True)
class Ground:
    """A dense model in its final order of channels, and all that is known of its layers; `inputs` are samples."""

    model: ir.Model
    recipe: Recipe
    inputs: Iterable[Feeds]
    kind: str
    measured: Measured


@dataclass(frozen=True)
class Point:
    """One pruned model: the share of the dense cost it may take, the cost by the prices, and how good it is."""

    share: float
    cost: float
    unit: str
    evaluation: Evaluation

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        found = self.evaluation
        return {
            "share": self.share,
            "cost": self.cost,
            "unit": self.unit,
            "drop": found.drop,
            "agreement": vars(found.agreement) if found.agreement else None,
            "top1": found.quality.top1 if found.quality else None,
        }


def prepare(
    model: ir.Model,
    recipe: Recipe,
    inputs: Iterable[Feeds],
    *,
    kind: str = "flops",
    pricer: Pricer | None = None,
    tick: Tick | None = None,
    weigher: Weigher | None = None,
) -> Ground:
    """Simplify and rearrange a loaded model, and measure its layers. `kind` of cost: latency, flops or size.

    Raises UsageError where the recipe leaves no layer to an allocation by budget.
    """
    if recipe.fitting is not None and recipe.fitting.method in ("weights", "channels"):
        raise UsageError("a search does not fit by gradient", why="it makes many models", fix="leave `fitting` out")
    wanted = _budgeted(replace(recipe, fitting=None), kind, 1.0)
    if recipe.rearrangement is not None and recipe.rearrangement.method == "cluster":
        raise UsageError("a search does not cluster channels", why="each model has zeros of its own", fix="take search")
    steps = [step for step in sparsify_passes(wanted, inputs, tick, pricer, weigher=weigher) if step.name != "prune"]
    base = run_passes(model, steps).model
    wanted = settled(wanted, base)
    measured = measure(base, wanted, inputs, tick, pricer, weigher)
    if measured is None:
        raise UsageError("the recipe leaves no layer to the budget", fix="give layers no density of their own")
    return Ground(base, wanted, inputs, kind, measured)


@dataclass(frozen=True)
class Pruned:
    """A model made for a share of the dense cost, why layers were left as they are, and its point."""

    model: ir.Model
    reasons: tuple[Reason, ...]
    point: Point


def prune_to(ground: Ground, share: float, judge: Judge, tick: Tick | None = None) -> Pruned:
    """Prune a copy to a share of the dense cost and judge it. UsageError if the share cannot be met."""
    recipe = _budgeted(ground.recipe, ground.kind, share)
    densities = ground.measured.densities(recipe)
    step = Pass("prune", lambda model: sparsify(model, recipe, ground.inputs, tick, measured=ground.measured))
    made = run_passes(ground.model, [step])
    prices = ground.measured.prices
    point = Point(share, prices.total(densities), prices.unit, judge(made.model))
    return Pruned(made.model, made.reasons, point)


def frontier(
    ground: Ground, judge: Judge, shares: Sequence[float] = SHARES, tick: Tick | None = None
) -> tuple[Point, ...]:
    """A point for each of `shares` of the dense cost, in their order; shares that cannot be met are left out.

    UsageError if none can be met.
    """
    found = []
    lowest = lowest_share(ground)
    for number, share in enumerate(shares):
        if tick:
            tick(number / len(shares), f"{share:.0%} of the dense {ground.kind}")
        if share >= lowest:
            found.append(prune_to(ground, share, judge).point)
    if not found:
        raise UsageError(
            "no budget of the frontier can be met", why=f"the sparsest network takes {lowest:.2f} of dense"
        )
    return tuple(found)


def cheapest(
    ground: Ground, judge: Judge, max_drop: float, *, rounds: int = ROUNDS, tick: Tick | None = None
) -> Pruned:
    """The pruned model of the least cost that loses at most `max_drop` points (`Evaluation.drop`), by bisection.

    Each try is a whole model, pruned, repaired and evaluated; that more cost never loses more is taken for granted.

    Raises
    ------
    DropError
        None of the tries keeps it.
    """
    low, high = lowest_share(ground), 1.0
    best: Pruned | None = None
    nearest: Point | None = None
    for number in range(rounds):
        share = (low + high) / 2
        if tick:
            tick(number / rounds, f"{share:.1%} of the dense {ground.kind}")
        tried = prune_to(ground, share, judge)
        if tried.point.evaluation.drop <= max_drop:
            best, high = tried, share
        else:
            nearest, low = tried.point, share
    if best is None:
        assert nearest is not None
        raise DropError(
            f"no pruned model loses at most {max_drop:g} points",
            why=f"at {nearest.share:.1%} of the dense {ground.kind} it is {nearest.evaluation.drop:.1f} already",
            fix="allow a larger drop, or give more calibration data",
        )
    return best


def lowest_share(ground: Ground) -> float:
    """The share of the dense cost that the sparsest network of this pattern takes."""
    prices = ground.measured.prices
    return prices.total({one.name: min(GRID) for one in ground.measured.layers}) / prices.dense


def share_of(ground: Ground, budget: Budget) -> float:
    """A budget as a share of the dense cost; at most 1."""
    return min(amount_of(str(budget), ground.measured.prices) / ground.measured.prices.dense, 1.0)


def as_json(ground: Ground, points: Sequence[Point]) -> dict[str, Any]:
    """The frontier as JSON values."""
    prices = ground.measured.prices
    head = {"schema": SCHEMA, "kind": ground.kind, "unit": prices.unit, "dense": prices.dense}
    return {**head, "pattern": str(ground.recipe.pattern), "points": [one.as_dict() for one in points]}


def plot(data: Mapping[str, Any]) -> str:
    """The frontier as an SVG picture, from what `as_json` gives: points lost over the share of the dense cost."""
    width, height, left, bottom = 480, 300, 56, 44
    points = sorted((point["cost"] / data["dense"], point["drop"]) for point in data["points"])
    top = max(10.0, *(drop for _, drop in points)) * 1.05
    least = min(0.0, *(drop for _, drop in points))

    def place(share: float, drop: float) -> tuple[float, float]:
        x = left + (width - left - 16) * share
        return x, 16 + (height - bottom - 16) * (drop - least) / (top - least)

    line = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in points)
    marks = []
    for share, drop in points:
        x, y = place(share, drop)
        told = f"{share:.3f} of dense: {drop:.1f} points lost"
        marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#0b6e4f"><title>{told}</title></circle>')
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = place(share, top)
        marks.append(f'<line x1="{x:.1f}" y1="16" x2="{x:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        marks.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{share:g}</text>')
    for part in range(5):
        drop = least + (top - least) * part / 4
        x, y = place(0.0, drop)
        marks.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{drop:.0f}</text>')
    titles = (
        f'<text x="{(width + left) / 2:.0f}" y="{height - 8}" text-anchor="middle">'
        f"{html.escape(data['kind'])} over dense, {html.escape(data['pattern'])}</text>"
        f'<text x="14" y="{height / 2:.0f}" text-anchor="middle" transform="rotate(-90 14 {height / 2:.0f})">'
        "points lost</text>"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="{width}" height="{height}" fill="white"/>'
        f'{"".join(marks)}<polyline points="{line}" fill="none" stroke="#0b6e4f" stroke-width="2"/>{titles}</svg>\n'
    )


def _budgeted(recipe: Recipe, kind: str, share: float) -> Recipe:
    """The recipe with a budget of a share of the dense cost in place of its density."""
    section = recipe.allocation or Allocation()
    budget = str(Budget.parse(f"{kind}={share:.6f}x"))
    # a rule that only repeats the recipe's density has none of its own
    return replace(recipe, density=None, allocation=replace(section, method="sensitivity", budget=budget))
