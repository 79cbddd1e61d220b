"""`inspect --plan`: how a model will run, for people: stages, rings, buffers, and the bytes that each level moves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edgesparse.costing.caches import LEVELS
from edgesparse.costing.costs import table_for
from edgesparse.costing.forecast import layer_terms, lowered, placed_as
from edgesparse.graph.ops import Graph
from edgesparse.lowering.arena import lower_bound
from edgesparse.lowering.describe import describe_plan
from edgesparse.planning.decide import Choice, decide
from edgesparse.planning.place import place
from edgesparse.target import Target

SCHEMA = "edgesparse.plan/1"

Columns = tuple[str, ...]
Rows = list[tuple[str, ...]]


@dataclass(frozen=True)
class PlanView:
    """A plan and what follows from it.

    Attributes
    ----------
    plan:
        As `describe_plan` gives it.
    decision:
        Order and band height taken, and those considered with their predicted times.
    moved:
        By operation, bytes that it loads from each level, by the cost model's count.
    arena, least:
        Bytes of the arena, and the most that live at once: no arena can be smaller.
    """

    plan: Mapping[str, Any]
    decision: Mapping[str, Any]
    moved: Mapping[str, Mapping[str, float]]
    arena: int
    least: int

    def as_dict(self) -> dict[str, Any]:
        """JSON values in the schema `SCHEMA`."""
        return {
            "schema": SCHEMA,
            "decision": dict(self.decision),
            "plan": dict(self.plan),
            "bytes_by_level": {name: dict(levels) for name, levels in self.moved.items()},
            "arena_bytes": self.arena,
            "least_bytes": self.least,
        }


def choice_of(info: Mapping[str, Any]) -> Choice:
    """The plan that an artifact was compiled with, from the info in its manifest; older ones ran depth-first."""
    made = info.get("plan") or {}
    return Choice(made.get("order", "depth-first") == "depth-first", made.get("band_pixels"))


def view(
    graph: Graph,
    target: Target,
    *,
    asked: Choice | None = None,
    compiled: Iterable[Mapping[str, Any]] | None = None,
    threads: int = 1,
    dense: bool = False,
) -> PlanView:
    """Plan a recognised model; with `asked` and `compiled` (its layers), as an artifact was planned."""
    decision = decide(graph, target, asked, strips=threads, dense=dense)
    placements = (
        place(graph, decision.plan, target, dense=dense)
        if compiled is None
        else placed_as(graph, decision.plan, target, compiled, dense=dense)
    )
    made = lowered(graph, decision.plan, placements, target)
    terms = layer_terms(made, graph, decision.plan, target, table_for(target).caches)
    moved = {name: {level: float(each[f"moved.{level}"]) for level in LEVELS} for name, each in terms.items()}
    described = describe_plan(graph, decision.plan)
    return PlanView(described, decision.as_dict(), moved, made.program.arena_bytes, lower_bound(made.program))


def stage_table(found: PlanView) -> tuple[Columns, Rows]:
    """One row a stage: what it makes, what is made inside of it band by band, and the bytes of both by level."""
    rows: Rows = []
    for number, stage in enumerate(found.plan["stages"], 1):
        names = [*stage["inside"], stage["makes"]]
        kilobytes = [f"{sum(found.moved[name][level] for name in names) / 1e3:.0f}" for level in LEVELS]
        inside = ", ".join(stage["inside"])
        rows.append((str(number), stage["makes"], inside, str(stage["strips"]), str(stage["steps"]), *kilobytes))
    return ("", "makes", "inside, band by band", "strips", "steps", "kB of L1", "of L2", "of L3", "of memory"), rows


def value_table(found: PlanView) -> tuple[Columns, Rows]:
    """One row an image: its bands, how many of them are resident, and its bytes."""
    rows: Rows = []
    for name, value in found.plan["values"].items():
        held = "ring" if value["waits"] else "whole"
        layout = "plane" if value["bands"] == value["shape"][0] else f"bands of {value['rows_per_band']} rows"
        rows.append(
            (
                name,
                "x".join(map(str, value["shape"])),
                layout,
                str(value["bands"]),
                f"{held} of {value['resident_bands']}" if value["waits"] else held,
                str(value["pitch"]),
                f"{value['bytes'] / 1e3:.0f}",
            )
        )
    return ("image", "shape", "layout", "bands", "resident", "pitch", "kB"), rows
