"""Accuracy after pruning without training on drawn pages and lines: what docs/accuracy.md says of both networks.

    python benchmarks/accuracy_text.py --network page-orientation --out out/accuracy_text.jsonl

The whole recipe of `sparsify --calibrate` on 1x1 convolutions: hard pages for the page-orientation network, worn lines
for PP-OCRv4 recognition (whole lines right). Calibration and evaluation are drawn from different seeds; labels are used
for measuring only. Rows that are there already are not measured again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import onnx_ir as ir

from edgesparse.models import ocr, pages
from edgesparse.models.data import Label, Sample, evaluate, onnx_run, ranked_classes
from edgesparse.models.exporting import model_path
from edgesparse.models.registry import spec
from edgesparse.passes import load_model, run_passes, sparsify_passes
from edgesparse.recipe import Recipe

SEEDS = (101, 202)
"""Of the calibration and the evaluation samples."""


@click.command()
@click.option("--network", type=click.Choice(("page-orientation", "ppocr-rec")), required=True)
@click.option("--patterns", default="unstructured,group:4x1", show_default=True)
@click.option("--sparsities", default="0.3,0.5,0.7", show_default=True)
@click.option("--calibration", default=96, show_default=True, help="Samples without labels.")
@click.option("--evaluation", default=240, show_default=True, help="Samples to measure on.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/accuracy_text.jsonl"), show_default=True)
def main(network: str, patterns: str, sparsities: str, calibration: int, evaluation: int, out: Path) -> None:
    """Measure and write every combination asked for that is not there yet."""
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    done = {(row["network"], row["pattern"], row["sparsity"]) for row in rows}
    draw, decode = _data(network)
    port = spec(network)
    dense = load_model(model_path(network), {port.input_name: port.input_shape})
    inputs = [{port.input_name: value} for value, _ in draw(calibration, SEEDS[0])]
    labelled = draw(evaluation, SEEDS[1])
    out.parent.mkdir(parents=True, exist_ok=True)
    wanted = [("dense", 0.0)] + [
        (text, float(share)) for text in patterns.split(",") for share in sparsities.split(",")
    ]
    for text, sparsity in wanted:
        if (network, text, sparsity) in done:
            continue
        started, model = time.process_time(), dense
        if text != "dense":
            recipe = Recipe.from_dict({"pattern": text, "sparsity": sparsity, "targets": ["conv1x1"]}).with_repair()
            model = run_passes(dense, sparsify_passes(recipe, inputs)).model
        seconds = round(time.process_time() - started, 1)
        run = onnx_run(ir.serde.serialize_model(model).SerializeToString())
        right = round(100 * evaluate(run, labelled, decode=decode).top1, 2)
        row = {"network": network, "pattern": text, "sparsity": sparsity, "right": right, "cpu_seconds": seconds}
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        click.echo(str(row))


def _data(network: str) -> tuple[Callable[[int, int], list[Sample]], Callable[[Any], list[Label]]]:
    """What draws so many samples of a seed, and what reads the network's output."""
    if network == "page-orientation":
        return lambda count, seed: list(pages.samples(count, seed=seed, damage=pages.HARD)), ranked_classes
    alphabet = ocr.characters(model_path(network))
    return lambda count, seed: list(ocr.samples(count, seed=seed, damage=ocr.WORN)), ocr.decoder(alphabet)


if __name__ == "__main__":
    main()
