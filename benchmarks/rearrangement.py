"""What rearranging brings in retained saliency, and how long it takes: the tables of docs/rearrangement.md.

    python benchmarks/rearrangement.py --pictures DIR --out out/rearrangement.jsonl
    python benchmarks/rearrangement.py --networks resnet50 --patterns group:4x1

EfficientNet-lite0 with its published weights and the page-orientation network are judged by the surgeon's saliency on
calibration samples, over their 1x1 layers; other reference networks by magnitude, over all layers that are pruned by
default. Shares are of the gap between the given order and unstructured weights, in the mean over the layers; *alone* is
what the same search finds where every layer has an order of its own, coupled to no other; *ceiling* is what no order
exceeds, legal or not, for groups that compete (`passes.ceiling`). *uneven* is how well groups are balanced: for each
number of threads, what the thread with the most non-zeros has more than an equal share of them, in per cent, in the
mean over the layers, in the given order and in the one found; with `--no-balance` groups stay where the search has
them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

import click
import numpy as np
import onnx_ir as ir

from edgesparse.lowering.emitter import _shares
from edgesparse.models import pages, pictures
from edgesparse.models.exporting import model_path
from edgesparse.passes import weight_layers
from edgesparse.passes.ceiling import ceiling
from edgesparse.passes.couple import couple
from edgesparse.passes.graph import Array
from edgesparse.passes.layers import canonical_weight
from edgesparse.passes.observe import Feeds, Moments, input_moments
from edgesparse.passes.permute import View, retained, search
from edgesparse.passes.rearrange import rearrange, stakes_of
from edgesparse.passes.score import magnitude
from edgesparse.passes.sides import group_sizes
from edgesparse.passes.surgeon import obs
from edgesparse.pattern import SparsePattern, best_mask
from edgesparse.portable import prepare
from edgesparse.recipe import Choice

PAGES, PHOTOS = "page-orientation", "efficientnet-lite0-imagenet"
SAMPLES = 64
THREADS = (2, 4)


@click.command()
@click.option("--networks", default=f"{PAGES},{PHOTOS}", show_default=True)
@click.option("--patterns", default="group:4x1,group:8x1,group:1x4,group:2x2,nm:2:4", show_default=True)
@click.option("--density", default=0.5, show_default=True, help="Of patterns that do not say it themselves.")
@click.option("--pictures", "folder", type=click.Path(path_type=Path), help=f"Photographs, for {PHOTOS}.")
@click.option("--alone/--no-alone", default=True, help="Search for each layer alone, too.")
@click.option("--balance/--no-balance", default=True, help="Put whole groups in an order that balances non-zeros.")
@click.option("--out", type=click.Path(path_type=Path), help="Append a line of JSON for each row.")
def main(
    networks: str, patterns: str, density: float, folder: Path | None, alone: bool, balance: bool, out: Path | None
) -> None:
    """Measure each network under each pattern."""
    for name in networks.split(","):
        model, samples = _network(name, folder)
        layers = [one for one in weight_layers(model) if (one.kind == "conv1x1" if samples else one.default)]
        moments = input_moments(model, layers, samples) if samples else {}
        for text in patterns.split(","):
            pattern = SparsePattern.parse(text)
            choices = {one.name: Choice(pattern, None if pattern.fixed else density) for one in layers}
            row = {"network": name, "pattern": text, **_row(model, choices, samples, moments, alone, balance)}
            click.echo(json.dumps(row))
            if out:
                out.parent.mkdir(parents=True, exist_ok=True)
                with out.open("a") as file:
                    file.write(json.dumps(row) + "\n")


def _network(name: str, folder: Path | None) -> tuple[ir.Model, list[Feeds]]:
    if name == PAGES:
        samples: Iterable[Feeds] = ({"x": one} for one, _ in pages.samples(32, seed=11, damage=pages.HARD))
        return prepare(model_path(name), None, {"x": (1, 3, 224, 224)}), list(samples)
    model = prepare(model_path(name), None)
    if name != PHOTOS:
        return model, []
    if folder is None:
        raise click.UsageError(f"{PHOTOS} needs --pictures")
    return model, [{"input": one} for one, _ in pictures.samples(folder, limit=SAMPLES)]


def _row(
    model: ir.Model,
    choices: dict[str, Choice],
    samples: list[Feeds],
    moments: dict[str, Moments],
    alone: bool,
    balance: bool,
) -> dict[str, object]:
    copy = model.clone()
    wall, cpu = time.perf_counter(), time.process_time()
    reports, reasons = rearrange(copy, choices, moments, balance=balance)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    count = [len(one.layers) for one in reports]
    given, norm, found, free = (
        float(np.average([getattr(one, key) for one in reports], weights=count))
        for key in ("given", "sorted", "found", "free")
    )
    row: dict[str, object] = {
        "sets": len(reports), "layers": sum(count), "pinned": len(reasons),
        "given": round(given, 4), "unstructured": round(free, 4),
        "sorted": round((norm - given) / (free - given), 3),
        "found": round((found - given) / (free - given), 3),
    }  # fmt: skip
    if alone:
        views = _views(model, choices, moments)
        own = float(np.mean([retained([view], search([view], block=block)) for view, block in views]))
        row["alone"] = round((own - given) / (free - given), 3)
        if all(view.summed for view, _ in views):
            most = float(np.mean([ceiling(view) for view, _ in views]))
            row["ceiling"] = round((most - given) / (free - given), 3)
    after = input_moments(copy, [one for one in weight_layers(copy) if one.name in moments], samples) if samples else {}
    given_work, found_work = _work(model, choices, moments), _work(copy, choices, after)
    for count in THREADS:
        row[f"uneven{count}"] = [round(100 * _uneven(one, count), 2) for one in (given_work, found_work)]
    return row | {"seconds": round(wall, 1), "cpu": round(cpu, 1), "load": round(os.getloadavg()[0], 1)}


def _work(model: ir.Model, choices: dict[str, Choice], moments: dict[str, Moments]) -> list[Array]:
    """Of each layer, the non-zeros of each group of outputs after pruning."""
    found = []
    for layer in (one for one in weight_layers(model) if one.name in choices):
        weight, choice = canonical_weight(model, layer), choices[layer.name]
        scores = obs(weight, moments[layer.name]) if moments else magnitude(weight)
        rows = best_mask(choice.pattern, scores, choice.density).reshape(len(weight), -1).sum(axis=1)
        found.append(np.add.reduceat(rows, np.arange(0, len(rows), group_sizes(choice)[0])))
    return found


def _uneven(work: list[Array], count: int) -> float:
    """What the largest of `count` shares has more than an equal one, cut as calls are; mean over the layers."""
    more = []
    for groups in work:
        sums = np.concatenate([[0], np.cumsum(groups)])
        shares = np.diff(sums[_shares(len(groups), count, sums)])
        more.append(float(shares.max()) * count / max(float(shares.sum()), 1.0) - 1.0)
    return float(np.mean(more))


def _views(model: ir.Model, choices: dict[str, Choice], moments: dict[str, Moments]) -> list[tuple[View, int]]:
    """What each layer has at stake by itself, and the channels that keep together."""
    coupling = couple(model)
    sets = stakes_of(model, coupling, choices, moments).sets
    return [(side.view(coupling, {}), side.place.block) for sides in sets.values() for side in sides]


if __name__ == "__main__":
    main()
