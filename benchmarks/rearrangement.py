"""What rearranging brings in retained saliency, and how long it takes: the tables of docs/rearrangement.md.

    python benchmarks/rearrangement.py --pictures DIR --out out/rearrangement.jsonl
    python benchmarks/rearrangement.py --networks resnet50 --patterns group:4x1

EfficientNet-lite0 with its published weights and the page-orientation network are judged by the surgeon's saliency on
calibration samples, over their 1x1 layers; other reference networks by magnitude, over all layers that are pruned by
default. Shares are of the gap between the given order and unstructured weights, in the mean over the layers; *alone* is
what the same search finds where every layer has an order of its own, coupled to no other: no legal order is known to
reach more.
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

from edgesparse.models import pages, pictures
from edgesparse.models.exporting import model_path
from edgesparse.passes import weight_layers
from edgesparse.passes.couple import couple
from edgesparse.passes.observe import Feeds, Moments, input_moments
from edgesparse.passes.permute import retained, search
from edgesparse.passes.rearrange import rearrange, stakes_of
from edgesparse.pattern import SparsePattern
from edgesparse.portable import prepare
from edgesparse.recipe import Choice

PAGES, PHOTOS = "page-orientation", "efficientnet-lite0-imagenet"
SAMPLES = 64


@click.command()
@click.option("--networks", default=f"{PAGES},{PHOTOS}", show_default=True)
@click.option("--patterns", default="group:4x1,group:8x1,group:1x4,group:2x2,nm:2:4", show_default=True)
@click.option("--density", default=0.5, show_default=True, help="Of patterns that do not say it themselves.")
@click.option("--pictures", "folder", type=click.Path(path_type=Path), help=f"Photographs, for {PHOTOS}.")
@click.option("--alone/--no-alone", default=True, help="Search for each layer alone, too.")
@click.option("--out", type=click.Path(path_type=Path), help="Append a line of JSON for each row.")
def main(networks: str, patterns: str, density: float, folder: Path | None, alone: bool, out: Path | None) -> None:
    """Measure each network under each pattern."""
    for name in networks.split(","):
        model, samples = _network(name, folder)
        layers = [one for one in weight_layers(model) if (one.kind == "conv1x1" if samples else one.default)]
        moments = input_moments(model, layers, samples) if samples else {}
        for text in patterns.split(","):
            pattern = SparsePattern.parse(text)
            choices = {one.name: Choice(pattern, None if pattern.fixed else density) for one in layers}
            row = {"network": name, "pattern": text, **_row(model, choices, moments, alone=alone)}
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


def _row(model: ir.Model, choices: dict[str, Choice], moments: dict[str, Moments], *, alone: bool) -> dict[str, object]:
    copy = model.clone()
    wall, cpu = time.perf_counter(), time.process_time()
    reports, reasons = rearrange(copy, choices, moments)
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
        own = float(np.mean(_alone(model, choices, moments)))
        row["alone"] = round((own - given) / (free - given), 3)
    return row | {"seconds": round(wall, 1), "cpu": round(cpu, 1), "load": round(os.getloadavg()[0], 1)}


def _alone(model: ir.Model, choices: dict[str, Choice], moments: dict[str, Moments]) -> list[float]:
    coupling = couple(model)
    sets = stakes_of(model, coupling, choices, moments).sets
    found = []
    for side in (side for sides in sets.values() for side in sides):
        view = side.view(coupling, {})
        found.append(retained([view], search([view], block=side.place.block)))
    return found


if __name__ == "__main__":
    main()
