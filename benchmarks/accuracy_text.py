"""Accuracy after pruning without training on pages, lines and sentences: what docs/accuracy.md says of the networks.

    python benchmarks/accuracy_text.py --network page-orientation --out out/accuracy_text.jsonl

The whole recipe of `sparsify --calibrate`: hard pages for the page-orientation network and worn lines for PP-OCRv4
recognition (per cent right, whole lines), on 1x1 convolutions; pairs of sentences for MiniLM-L6 (Spearman correlation
of their cosines with the dense network's), on all products with weights. Calibration and evaluation are drawn from
different seeds; labels are used for measuring only. Rows that are there already are not measured again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import onnx_ir as ir
from scipy.stats import spearmanr

from edgesparse.models import ocr, pages, sentences
from edgesparse.models.data import Run, evaluate, onnx_run, ranked_classes
from edgesparse.models.exporting import model_path
from edgesparse.models.registry import spec
from edgesparse.passes import load_model, run_passes, sparsify_passes
from edgesparse.passes.sparsify import CRITERION_KEY, FITTING_KEY
from edgesparse.recipe import Recipe
from edgesparse.sections import ALLOCATIONS, Allocation
from edgesparse.training.fitting import fitter
from edgesparse.training.information import information

SEEDS = (101, 202)
"""Of the calibration and the evaluation samples."""


@dataclass(frozen=True)
class Task:
    """A network's inputs without labels, what is pruned (all that can be if nothing is named), and what is measured."""

    inputs: Sequence[Any]
    targets: tuple[str, ...]
    score: Callable[[Run], float]


@click.command()
@click.option("--network", type=click.Choice(("page-orientation", "ppocr-rec", "minilm-l6-sentences")), required=True)
@click.option("--patterns", default="unstructured,group:4x1", show_default=True)
@click.option("--sparsities", default="0.3,0.5,0.7", show_default=True)
@click.option("--allocation", type=click.Choice(ALLOCATIONS), default="sensitivity", show_default=True)
@click.option("--calibration", default=96, show_default=True, help="Samples without labels.")
@click.option("--evaluation", default=240, show_default=True, help="Samples, or pairs, to measure on.")
@click.option("--fit", is_flag=True, help="Fit by gradient too, as `sparsify --calibrate` does.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/accuracy_text.jsonl"), show_default=True)
def main(
    network: str,
    patterns: str,
    sparsities: str,
    allocation: str,
    calibration: int,
    evaluation: int,
    fit: bool,
    out: Path,
) -> None:
    """Measure and write every combination asked for that is not there yet."""
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    done = {(row["network"], row["pattern"], row["sparsity"], row["allocation"], "fitting" in row) for row in rows}
    port = spec(network)
    dense = load_model(model_path(network), {port.input_name: port.input_shape})
    make = sentences_task if network == "minilm-l6-sentences" else drawn_task
    task = make(network, calibration, evaluation)
    inputs = [{port.input_name: value} for value in task.inputs]
    out.parent.mkdir(parents=True, exist_ok=True)
    wanted = [(text, float(share)) for text in patterns.split(",") for share in sparsities.split(",")]
    for text, sparsity in [("dense", 0.0), *wanted]:
        how = "" if text == "dense" else allocation
        if (network, text, sparsity, how, fit and text != "dense") in done:
            continue
        started, model = time.process_time(), dense
        if text != "dense":
            rules = {"pattern": text, "sparsity": sparsity, "targets": list(task.targets)}
            recipe = replace(Recipe.from_dict(rules).with_repair(), allocation=Allocation(allocation))
            model = run_passes(
                dense, sparsify_passes(recipe, inputs, fitter=fitter() if fit else None, weigher=information)
            ).model
        seconds = round(time.process_time() - started, 1)
        score = task.score(onnx_run(ir.serde.serialize_model(model).SerializeToString()))
        row = {"network": network, "pattern": text, "sparsity": sparsity, "allocation": how, "score": round(score, 4)}
        if CRITERION_KEY in model.metadata_props:
            row["criterion"] = json.loads(model.metadata_props[CRITERION_KEY])
        if FITTING_KEY in model.metadata_props:
            row["fitting"] = json.loads(model.metadata_props[FITTING_KEY])
        with out.open("a") as file:
            file.write(json.dumps(row | {"cpu_seconds": seconds}) + "\n")
        click.echo(str(row))


def drawn_task(network: str, calibration: int, evaluation: int) -> Task:
    """Pages or lines: per cent right."""
    if network == "page-orientation":
        drawn, labelled = (
            list(pages.samples(count, seed=seed, damage=pages.HARD))
            for count, seed in zip((calibration, evaluation), SEEDS, strict=True)
        )
        decode = ranked_classes
    else:
        drawn, labelled = (
            list(ocr.samples(count, seed=seed, damage=ocr.WORN))
            for count, seed in zip((calibration, evaluation), SEEDS, strict=True)
        )
        decode = ocr.decoder(ocr.characters(model_path(network)))
    inputs = [value for value, _ in drawn]
    return Task(inputs, ("conv1x1",), lambda run: 100 * evaluate(run, labelled, decode=decode).top1)


def sentences_task(network: str, calibration: int, evaluation: int) -> Task:
    """Sentences: Spearman correlation of the pairs' cosines with the dense network's."""
    inputs = [one for pair in sentences.pairs(calibration, seed=SEEDS[0]) for one in pair]
    judged = sentences.pairs(evaluation, seed=SEEDS[1])
    wanted = sentences.cosines(onnx_run(model_path(network)), judged)
    return Task(inputs, (), lambda run: float(spearmanr(sentences.cosines(run, judged), wanted).statistic))


if __name__ == "__main__":
    main()
