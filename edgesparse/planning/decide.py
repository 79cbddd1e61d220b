"""Which plan to take: band heights and orders, priced by the cost model on the target's caches.

Every plan computes the same numbers, to the order of sums in the last bits, so the choice is one of time alone. Each is
laid out and lowered without code, and its calls are priced (`forecast`): longer bands read the weights less often but
fall out of the caches sooner; layer by layer needs no rings but sends whole maps through the outer caches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgesparse.costing.costs import table_for
from edgesparse.costing.forecast import forecast
from edgesparse.graph.ops import Graph
from edgesparse.planning.place import place
from edgesparse.planning.plan import BAND_PIXELS, Plan, plan
from edgesparse.target import Target

#: Pixels of a band that are worth a look.
_PIXELS = (BAND_PIXELS, BAND_PIXELS // 2, 2 * BAND_PIXELS)


@dataclass(frozen=True)
class Choice:
    """What a user asked for; None leaves it to the cost model."""

    depth_first: bool | None = None
    band_pixels: int | None = None


@dataclass(frozen=True)
class Considered:
    """A plan that was priced: `time` in the unit of the target's price table, over all strips."""

    depth_first: bool
    band_pixels: int
    time: float

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        order = "depth-first" if self.depth_first else "layers"
        return {"order": order, "band_pixels": self.band_pixels, "predicted": round(self.time)}


@dataclass(frozen=True)
class Decision:
    """The plan taken, and all that were considered, best first. `unit`: "ns", or "cycles" that were only counted."""

    plan: Plan
    considered: tuple[Considered, ...]
    unit: str

    def as_dict(self) -> dict[str, Any]:
        """As JSON values, for the manifest."""
        taken = Considered(self.plan.depth_first, self.plan.band_pixels, 0.0).as_dict()
        del taken["predicted"]
        return {**taken, "unit": self.unit, "considered": [each.as_dict() for each in self.considered]}


def decide(
    graph: Graph, target: Target, asked: Choice | None = None, *, dense: bool = False, strips: int = 1
) -> Decision:
    """Take the plan with the least predicted time among those that the user leaves open.

    Ties go to the usual band. With nothing open nothing is priced.
    """
    asked = asked or Choice()
    orders = (True, False) if asked.depth_first is None else (asked.depth_first,)
    pixels = _PIXELS if asked.band_pixels is None else (asked.band_pixels,)
    plans = [
        plan(graph, target, depth_first=order, strips=strips, band_pixels=each) for order in orders for each in pixels
    ]
    plans = [each for index, each in enumerate(plans) if all(not _same(each, other) for other in plans[:index])]
    table = table_for(target)
    if len(plans) == 1:
        return Decision(plans[0], (), table.unit)
    # How weights are run matters little for the comparison, and choosing it takes longer than the rest.
    placements = place(graph, plans[0], target, dense=dense)
    priced = []
    for index, each in enumerate(plans):
        time = sum(layer.time for layer in forecast(graph, each, placements, target, table).values())
        priced.append((time, index, each))
    priced.sort(key=lambda item: item[:2])
    considered = tuple(Considered(each.depth_first, each.band_pixels, time) for time, _, each in priced)
    return Decision(priced[0][2], considered, table.unit)


def _same(one: Plan, other: Plan) -> bool:
    """Whether two plans do the same; orders differ only where something waits."""
    return one.layouts == other.layouts and one.waiting == other.waiting
