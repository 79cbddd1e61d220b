"""Fit the cost model's prices to whole networks, layer by layer, on this machine.

    python benchmarks/fit_cost.py build -o out/cost                 # compiles; goes on where it stopped
    python benchmarks/fit_cost.py measure out/cost -o out/cost.jsonl    # profiles; more rounds are appended
    python benchmarks/fit_cost.py fit out/cost.jsonl --write    # prices and errors, into edgesparse/costing/prices/

A layer's time is the lower quartile of the profile runs of a round, and of that the lower quartile over rounds: other
work, on this machine and on those that share its caches, only takes time away. All artifacts have their turn in each
round: a spell of other work, or of another clock, touches all networks and no layer for good. How far a layer's rounds
lie apart is told, too: no model can be nearer to the truth than that. Prices are the non-negative least squares of
relative errors over all layers. Errors are told for each network from prices that were fitted to the other networks
alone, so a network is never judged by what it taught. The sizes and rates of the caches are `_CACHES`; `--vary` shows
what others would bring.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from scipy.optimize import nnls

from edgesparse import environment
from edgesparse.advice.planview import choice_of
from edgesparse.artifacts.artifact import Artifact, open_artifact
from edgesparse.costing.caches import Caches
from edgesparse.costing.costs import SCHEMA, counted
from edgesparse.costing.counts import GROUPS, shape_of
from edgesparse.costing.forecast import gathered_shapes, layer_terms, lowered, placed_as
from edgesparse.graph.ops import Fallback, Graph
from edgesparse.graph.recognise import recognise
from edgesparse.lowering.lower import Lowered
from edgesparse.measuring.cores import pinned
from edgesparse.measuring.session import first_sample, target_text
from edgesparse.models import model_path
from edgesparse.pipeline import compile_model
from edgesparse.planning.decide import decide
from edgesparse.planning.place import Placement
from edgesparse.planning.plan import Plan
from edgesparse.portable import prepare
from edgesparse.recipe import Recipe
from edgesparse.runtimes.local import LocalRunner
from edgesparse.target import Target

#: The networks that the errors are told for, and others that only teach.
JUDGED = ("mobilenet-v1", "mobilenet-v2", "efficientnet-lite0", "resnet50")
TEACHING = ("resnet18", "page-orientation")
VARIANTS = (
    "dense",
    "group:8x1 0.5",
    "group:8x1 0.2",
    "group:8x1 0.1",
    "group:4x1 0.5",
    "group:4x1 0.3",
    "group:4x1 0.1",
    "group:16x1 0.2",
    "unstructured 0.4",
    "unstructured 0.1",
)
#: Layers below this many nanoseconds are timed by the clock's own cost, and left out.
_SHORTEST = 3000.0
_RUNS = 20
#: The levels beyond L1 as this machine shows them.
_CACHES = Caches(10 << 20, {"l2": 40.0, "l3": 21.0, "memory": 9.0}, 3.0, 1.5)
#: The column of the reads of the clock between layers: profiles have it, programs do not.
CLOCK = "clock"
TERMS = (*GROUPS, CLOCK)
#: Prices of waiting for a level, nearest first.
_LEVELS = ("stream.l2", "stream.l3", "stream.memory")
#: Prices in cycles that terms are drawn to, beside those of a core that nobody measured.
_DECLARED = {CLOCK: 80.0}
#: Turns of fitting prices and factors.
_TURNS = 4
#: How hard prices are drawn to the declared ones, against all layers' errors.
_PULL = 1e-4


@click.group()
def main() -> None:
    """Fit the cost model."""


@main.command()
@click.option("--target", default="native", show_default=True)
@click.option("--networks", default=",".join((*JUDGED, *TEACHING)), show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the artifacts.")
def build(target: str, networks: str, output: Path) -> None:
    """Compile every network in every variant; what is there already stays."""
    chosen = Target.parse(target)
    for network in networks.split(","):
        for variant in VARIANTS:
            place = output / network / variant.replace(":", "-").replace(" ", "-")
            if place.is_dir():
                continue
            made = compile_model(
                model_path(network),
                target=chosen,
                output=place,
                recipe=_recipe(variant),
                shapes=_shapes(network),
                tune=False,
                dense=variant == "dense",
            )
            assert made is not None
            click.echo(f"{network} {variant}", err=True)


@main.command()
@click.argument("artifacts", type=click.Path(path_type=Path, exists=True))
@click.option("--networks", default=",".join((*JUDGED, *TEACHING)), show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def measure(artifacts: Path, networks: str, rounds: int, output: Path) -> None:
    """Time every layer of every artifact, all artifacts in turn in each round; more rounds are appended."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with pinned(1):
        for _ in range(rounds):
            for network in networks.split(","):
                for variant in VARIANTS:
                    place = artifacts / network / variant.replace(":", "-").replace(" ", "-")
                    if not place.is_dir():
                        continue
                    made = open_artifact(place)
                    row = {"network": network, "variant": variant, "target": target_text(made.manifest.target)}
                    row |= _profiled(made)
                    with output.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
            click.echo("a round is done", err=True)


def _rows(path: Path) -> list[dict[str, Any]]:
    """One row for each artifact: of each layer the lower quartile over all rounds, and half their distance to 3/4."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault((row["network"], row["variant"]), []).append(row)
    merged = []
    for rows in found.values():
        low, high = np.percentile([row["ns"] for row in rows], [25, 75], axis=0)
        merged.append(rows[0] | {"ns": low.tolist(), "spread": (high - low).tolist(), "rounds": len(rows)})
    return merged


def _recipe(variant: str) -> Recipe | None:
    pattern, _, density = variant.partition(" ")
    return Recipe.from_dict({"pattern": pattern, "density": float(density)}) if density else None


def _shapes(network: str) -> dict[str, tuple[int, ...]]:
    from edgesparse.models import spec

    found = spec(network)
    return {found.input_name: found.input_shape} if found.dynamic else {}


def _profiled(artifact: Artifact) -> dict[str, Any]:
    with LocalRunner(artifact) as runner:
        feeds = first_sample(artifact)
        assert feeds is not None
        for _ in range(4):
            runner.run(feeds)
        taken = [[ns for _, ns in runner.profile()] for _ in range(_RUNS)]
    layers = [{"name": layer["name"], "kernel": layer["kernel"]} for layer in artifact.manifest.layers]
    return {
        "layers": layers,
        "plan": artifact.manifest.info.get("plan"),
        "ns": np.percentile(np.array(taken), 25, axis=0).tolist(),
    }


@dataclass(frozen=True)
class Table:
    """Layers: network, variant, what they are, counts of `TERMS`, nanoseconds, how far their rounds lie apart; and of
    layers with windows their shape.
    """

    names: list[str]
    variants: list[str]
    labels: list[str]
    shapes: list[str]
    matrix: np.ndarray
    ns: np.ndarray
    spread: np.ndarray


@main.command()
@click.argument("samples", type=click.Path(path_type=Path, exists=True))
@click.option("--write", is_flag=True, help="Write the prices into the package.")
@click.option("--show", type=int, default=0, help="Show so many of the layers that are missed most.")
@click.option("--vary", is_flag=True, help="Also fit with smaller and larger caches, rates and overlap.")
def fit(samples: Path, write: bool, show: int, vary: bool) -> None:
    """Fit prices, and print how far they are off."""
    rows = _rows(samples)
    targets = {row["target"] for row in rows}
    if len(targets) != 1:
        raise click.ClickException(f"the samples are of several targets: {', '.join(sorted(targets))}")
    target = Target.parse(targets.pop())
    programs = [_program(row, target) for row in rows]
    if vary:
        for caches in _varied(_CACHES):
            table = _table(rows, programs, target, caches)
            missed = np.abs(told(table, *fitted(table)) / table.ns - 1)
            click.echo(f"{caches}: median {np.median(missed):.4f}, rms {np.sqrt(np.mean(missed**2)):.4f}")
    table = _table(rows, programs, target, _CACHES)
    prices, factors = fitted(table)
    missed = left_out(table)
    own = told(table, prices, factors) / table.ns - 1
    click.echo("fitted to all: " + _summary(own))
    report(table, own)
    click.echo("the rounds of a layer lie apart by: " + _summary(table.spread / table.ns))
    click.echo("each network by prices fitted to the others:")
    errors = report(table, missed)
    if show:
        _show(table, prices, missed, show)
    click.echo(" ".join(f"{term}={price:.4g}" for term, price in zip(TERMS, prices, strict=True)))
    click.echo(", ".join(f"{shape}: {factor:.2f}" for shape, factor in factors.items()))
    if write:
        _write(prices, factors, target, errors, len(table.ns))


def left_out(table: Table) -> np.ndarray:
    """By how much each layer is missed, as a share, by prices that were fitted to the other networks."""
    missed = np.zeros(len(table.ns))
    for network in dict.fromkeys(table.names):
        mine = np.array([name == network for name in table.names])
        prices, factors = fitted(table, ~mine)
        missed[mine] = (told(table, prices, factors) / table.ns - 1)[mine]
    return missed


def fitted(table: Table, taught: np.ndarray | None = None) -> tuple[np.ndarray, dict[str, float]]:
    """Prices, and factors of the shapes of windows, from the layers that are `taught` (all).

    In turn: prices of the counts as they are multiplied; then for each shape the middle, over networks, of what its
    layers take against their forecast.
    """
    taught = np.ones(len(table.ns), bool) if taught is None else taught
    factors: dict[str, float] = {}
    prices = np.zeros(len(TERMS))
    for _ in range(_TURNS):
        prices = solve(_multiplied(table, factors)[taught], table.ns[taught])
        plain = table.matrix[:, :-1] @ prices[:-1]
        clock = table.matrix[:, -1] * prices[-1]
        found: dict[str, dict[str, list[float]]] = {}
        for order in np.flatnonzero(taught):
            if table.shapes[order]:
                ratio = max(table.ns[order] - clock[order], 1.0) / plain[order]
                found.setdefault(table.shapes[order], {}).setdefault(table.names[order], []).append(ratio)
        factors = {
            shape: float(np.exp(np.mean([np.log(np.median(ratios)) for ratios in networks.values()])))
            for shape, networks in sorted(found.items())
        }
    return prices, factors


def told(table: Table, prices: np.ndarray, factors: Mapping[str, float]) -> np.ndarray:
    """Nanoseconds of every layer by prices and factors."""
    return _multiplied(table, factors) @ prices


def _multiplied(table: Table, factors: Mapping[str, float]) -> np.ndarray:
    """The counts as they are priced; the clock's reads stay as they are."""
    by = np.array([factors.get(shape, 1.0) for shape in table.shapes])[:, None]
    return np.hstack([table.matrix[:, :-1] * by, table.matrix[:, -1:]])


def _varied(caches: Caches) -> list[Caches]:
    found = [caches]
    for factor in (0.7, 1.4):
        found.append(replace(caches, l3=round(caches.l3 * factor)))
        found.append(replace(caches, overlap=caches.overlap * factor))
        for level, rate in caches.rates.items():
            found.append(replace(caches, rates={**caches.rates, level: rate * factor}))
    return found


def _show(table: Table, prices: np.ndarray, missed: np.ndarray, most: int) -> None:
    kinds = [label.partition(" ")[2].replace(" tile", "").rsplit(" ", 1)[0] for label in table.labels]
    for kind in sorted(set(kinds)):
        mine = missed[np.array([each == kind for each in kinds])]
        spread = " ".join(f"{value:+.2f}" for value in np.percentile(mine, [0, 5, 25, 50, 75, 95, 100]))
        click.echo(f"  {kind}: {len(mine)} layers, {spread}")
    for order in np.argsort(-np.abs(missed))[:most]:
        counts = table.matrix[order]
        mine = {term: round(prices[i] * counts[i]) for i, term in enumerate(TERMS) if prices[i] * counts[i] >= 1}
        click.echo(
            f"{table.names[order]} {table.variants[order]} {table.labels[order]}: {missed[order]:+.2f} of"
            f" {table.ns[order]:.0f} ns (rounds apart by {table.spread[order] / table.ns[order]:.2f}) {mine}"
        )


def _write(
    prices: np.ndarray, factors: Mapping[str, float], target: Target, errors: dict[str, Any], layers: int
) -> None:
    here = environment.record()
    data = {
        "schema": SCHEMA,
        "target": target.name,
        "basis": f"measured on {here['cpu']}, one thread",
        "caches": {
            "l3": _CACHES.l3,
            "rates": dict(_CACHES.rates),
            "overlap": _CACHES.overlap,
            "scattered": _CACHES.scattered,
        },
        "layers": layers,
        "errors": errors,
        "prices": {term: float(f"{price:.4g}") for term, price in zip(TERMS, prices, strict=True) if term != CLOCK},
        "factors": {shape: float(f"{factor:.4g}") for shape, factor in factors.items()},
    }
    path = Path(__file__).parent.parent / "edgesparse" / "costing" / "prices" / f"{target.name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    click.echo(f"wrote {path.name}")


def solve(matrix: np.ndarray, ns: np.ndarray) -> np.ndarray:
    """Prices of 0 or more with the least squares of relative errors, of which large ones count less.

    Terms that always come together have no price of their own in the data: all are drawn slightly to those of a core
    that issues what it is declared to, at the clock that the multiply-adds show.
    """
    declared = np.array([_DECLARED.get(term, counted().prices.get(term, 0.0)) for term in TERMS])
    issue = [index for index, term in enumerate(TERMS) if term.endswith(".issue")]
    clock = np.linalg.lstsq(matrix[:, issue].sum(axis=1)[:, None] / ns[:, None], np.ones(len(ns)), rcond=None)[0][0]
    goal = np.maximum(declared * min(clock, 1.0), 1e-4)
    pull = np.diag(1 / goal) * np.sqrt(_PULL * len(ns))
    # What is solved for is by how much a level costs more than the nearer one: fetching from farther is never cheaper.
    steps = np.eye(len(TERMS))
    for nearer, farther in itertools.pairwise(_LEVELS):
        steps[TERMS.index(farther)] += steps[TERMS.index(nearer)]
    weight = 1 / ns
    for _ in range(6):
        rows = np.vstack([matrix * weight[:, None], pull]) @ steps
        scale = np.linalg.norm(rows, axis=0)
        prices = steps @ (nnls(rows / scale, np.concatenate([ns * weight, pull @ goal]))[0] / scale)
        weight = 1 / ns / np.sqrt(np.maximum(np.abs(matrix @ prices / ns - 1), 0.05))
    return prices


def _summary(missed: np.ndarray) -> str:
    median, p90, worst = np.percentile(np.abs(missed), [50, 90, 100])
    return f"median {median:.3f}, p90 {p90:.3f}, worst {worst:.3f} of {len(missed)} layers"


def report(table: Table, missed: np.ndarray) -> dict[str, Any]:
    """Print and return the errors by network."""
    errors = {}
    for network in dict.fromkeys(table.names):
        mine = np.array([name == network for name in table.names])
        off = np.abs(missed[mine])
        errors[network] = {
            "median": round(float(np.median(off)), 4),
            "p90": round(float(np.percentile(off, 90)), 4),
            "worst": round(float(off.max()), 4),
            "over_30": int((off > 0.3).sum()),
            "layers": len(off),
        }
        click.echo(f"{network}: " + ", ".join(f"{key} {value}" for key, value in errors[network].items()))
    return errors


@dataclass(frozen=True)
class Placed:
    """A network as it was compiled, its weights without their values."""

    graph: Graph
    layout: Plan
    made: Lowered
    labels: dict[str, str]
    shapes: dict[str, str]
    reads: dict[str, int]


def _program(row: dict[str, Any], target: Target) -> Placed:
    dense = row["variant"] == "dense"
    graph = recognise(prepare(model_path(row["network"]), _recipe(row["variant"]), _shapes(row["network"])))
    layout = decide(graph, target, choice_of(row), dense=dense).plan
    placements = placed_as(graph, layout, target, row["layers"], dense=dense)
    made = lowered(graph, layout, placements, target)
    if [op.name for op in graph.ops] != [layer["name"] for layer in row["layers"]]:
        raise click.ClickException(f"{row['network']} has other layers in this version: build and measure it again")
    labels = {op.name: f"{op.name} {placements[op.name].kind} {placements[op.name].product or ''}" for op in graph.ops}
    layers = [made.program.layers[call.layer] for call in made.program.calls]
    reads = Counter(layer for before, layer in zip([None, *layers], layers, strict=False) if layer != before)
    # All networks at once are held: of the weights only their size is asked for.
    constants = {
        name: array if array.dtype.kind == "i" else np.broadcast_to(array.dtype.type(0), array.shape)
        for name, array in made.program.constants.items()
    }
    program = replace(made.program, constants=constants)
    return Placed(graph, layout, replace(made, program=program), labels, _shapes_of(made, placements), dict(reads))


def _shapes_of(made: Lowered, placements: Mapping[str, Placement]) -> dict[str, str]:
    """Of layers that are window kernels and nothing else the shape that most calls have; of others what they gather."""
    found: dict[str, Counter[str]] = {}
    for call in made.program.calls:
        name, spec = made.program.layers[call.layer], made.kernels.get(call.kernel)
        if spec is not None and name in placements and placements[name].kind in ("depthwise", "pooling"):
            found.setdefault(name, Counter())[shape_of(spec)] += call.end - call.begin
    return gathered_shapes(made) | {name: shapes.most_common(1)[0][0] for name, shapes in found.items()}


def _table(rows: list[dict[str, Any]], programs: list[Placed], target: Target, caches: Caches) -> Table:
    names, variants, labels, shapes, counts, times, spreads = [], [], [], [], [], [], []
    for row, each in zip(rows, programs, strict=True):
        found = layer_terms(each.made, each.graph, each.layout, target, caches)
        for op, time, spread in zip(each.graph.ops, row["ns"], row["spread"], strict=True):
            if time >= _SHORTEST and not isinstance(op, Fallback):
                names.append(row["network"])
                variants.append(row["variant"])
                labels.append(each.labels[op.name])
                shapes.append(each.shapes.get(op.name, ""))
                counts.append([*(found[op.name][term] for term in GROUPS), each.reads.get(op.name, 0)])
                times.append(time)
                spreads.append(spread)
    return Table(names, variants, labels, shapes, np.array(counts, float), np.array(times), np.array(spreads))


if __name__ == "__main__":
    main()
