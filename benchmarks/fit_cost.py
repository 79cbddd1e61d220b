"""Fit the cost model's prices to whole networks, layer by layer, on this machine.

    python benchmarks/fit_cost.py build -o out/cost                 # compiles; goes on where it stopped
    python benchmarks/fit_cost.py measure out/cost -o out/cost.jsonl    # profiles; more rounds are appended
    python benchmarks/fit_cost.py fit out/cost.jsonl --write    # prices and errors, into edgesparse/costing/prices/

A layer's time is the lower quartile of the profile runs of a round, and of that the median over rounds. All artifacts
have their turn in each round: a spell of other work, or of another clock, touches all networks and no layer for good.
Prices are the non-negative least squares of relative errors over all layers. Errors are told for each network from
prices that were fitted to the other networks alone, so a network is never judged by what it taught.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
from scipy.optimize import nnls

from edgesparse import environment
from edgesparse.artifacts.artifact import Artifact, open_artifact
from edgesparse.costing.costs import SCHEMA, counted
from edgesparse.costing.counts import GROUPS, Terms
from edgesparse.costing.forecast import layer_terms, lowered, placed_as
from edgesparse.graph.recognise import recognise
from edgesparse.measuring.cores import pinned
from edgesparse.measuring.roofline import host_l3
from edgesparse.measuring.session import first_sample, target_text
from edgesparse.models import model_path
from edgesparse.pipeline import compile_model
from edgesparse.planning.plan import plan
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
#: How hard prices are drawn to the declared ones, against all layers' errors.
_PULL = 1e-3


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
    """One row for each artifact: of each layer the median over all rounds."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault((row["network"], row["variant"]), []).append(row)
    return [rows[0] | {"ns": np.median([row["ns"] for row in rows], axis=0).tolist()} for rows in found.values()]


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
    return {"layers": layers, "ns": np.percentile(np.array(taken), 25, axis=0).tolist()}


@main.command()
@click.argument("samples", type=click.Path(path_type=Path, exists=True))
@click.option("--write", is_flag=True, help="Write the prices into the package.")
@click.option("--show", type=int, default=0, help="Show so many of the layers that are missed most.")
def fit(samples: Path, write: bool, show: int) -> None:
    """Fit prices, and print how far they are off."""
    rows = _rows(samples)
    targets = {row["target"] for row in rows}
    if len(targets) != 1:
        raise click.ClickException(f"the samples are of several targets: {', '.join(sorted(targets))}")
    target = Target.parse(targets.pop())
    names, variants, labels, terms, ns = _table(rows, target)
    _fit(
        np.array([[each[term] for term in GROUPS] for each in terms]), ns, names, variants, labels, target, write, show
    )


def _fit(
    matrix: np.ndarray,
    ns: np.ndarray,
    names: list[str],
    variants: list[str],
    labels: list[str],
    target: Target,
    write: bool,
    show: int,
) -> None:
    prices = solve(matrix, ns)
    missed = np.zeros(len(ns))
    for network in dict.fromkeys(names):
        mine = np.array([name == network for name in names])
        missed[mine] = matrix[mine] @ solve(matrix[~mine], ns[~mine]) / ns[mine] - 1
    errors = report(names, missed)
    if show:
        kinds = [label.partition(" ")[2].replace(" tile", "").rsplit(" ", 1)[0] for label in labels]
        for kind in sorted(set(kinds)):
            mine = missed[np.array([each == kind for each in kinds])]
            spread = " ".join(f"{value:+.2f}" for value in np.percentile(mine, [5, 25, 50, 75, 95]))
            click.echo(f"  {kind}: {len(mine)} layers, {spread}")
    for order in np.argsort(-np.abs(missed))[:show]:
        mine = {term: round(prices[i] * matrix[order, i]) for i, term in enumerate(GROUPS) if matrix[order, i]}
        click.echo(
            f"{names[order]} {variants[order]} {labels[order]}: {missed[order]:+.2f} of {ns[order]:.0f} ns {mine}"
        )
    click.echo(" ".join(f"{term}={price:.4g}" for term, price in zip(GROUPS, prices, strict=True)))
    if write:
        here = environment.record()
        data = {
            "schema": SCHEMA,
            "target": target.name,
            "basis": f"measured on {here['cpu']}, one thread",
            "l3": host_l3(),
            "layers": len(ns),
            "errors": errors,
            "prices": {term: float(f"{price:.4g}") for term, price in zip(GROUPS, prices, strict=True)},
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
    declared = np.array([counted().prices[term] for term in GROUPS])
    issue = [index for index, term in enumerate(GROUPS) if term.endswith(".issue")]
    clock = np.linalg.lstsq(matrix[:, issue].sum(axis=1)[:, None] / ns[:, None], np.ones(len(ns)), rcond=None)[0][0]
    goal = np.maximum(declared * min(clock, 1.0), 1e-4)
    pull = np.diag(1 / goal) * np.sqrt(_PULL * len(ns))
    weight = 1 / ns
    for _ in range(6):
        rows = np.vstack([matrix * weight[:, None], pull])
        scale = np.linalg.norm(rows, axis=0)
        prices = nnls(rows / scale, np.concatenate([ns * weight, pull @ goal]))[0] / scale
        weight = 1 / ns / np.sqrt(np.maximum(np.abs(matrix @ prices / ns - 1), 0.05))
    return prices


def report(names: list[str], missed: np.ndarray) -> dict[str, Any]:
    """Print and return the errors by network, each from prices fitted to the others."""
    errors = {}
    for network in dict.fromkeys(names):
        mine = np.abs(missed[np.array([name == network for name in names])])
        errors[network] = {
            "median": round(float(np.median(mine)), 4),
            "p90": round(float(np.percentile(mine, 90)), 4),
            "worst": round(float(mine.max()), 4),
            "layers": len(mine),
        }
        click.echo(f"{network}: " + ", ".join(f"{key} {value}" for key, value in errors[network].items()))
    return errors


def _table(
    rows: list[dict[str, Any]], target: Target
) -> tuple[list[str], list[str], list[str], list[Terms], np.ndarray]:
    names, variants, labels, terms, ns = [], [], [], [], []
    for row in rows:
        graph = recognise(prepare(model_path(row["network"]), _recipe(row["variant"]), _shapes(row["network"])))
        layout = plan(graph, target)
        placements = placed_as(graph, layout, target, row["layers"], dense=row["variant"] == "dense")
        made = lowered(graph, layout, placements, target)
        for (name, found), time in zip(
            layer_terms(made, graph, layout, target, host_l3()).items(), row["ns"], strict=True
        ):
            if time >= _SHORTEST and not found["relax.value"]:
                names.append(row["network"])
                variants.append(row["variant"])
                labels.append(f"{name} {placements[name].kind} {placements[name].product or ''}")
                terms.append(found)
                ns.append(time)
    return names, variants, labels, terms, np.array(ns)


if __name__ == "__main__":
    main()
