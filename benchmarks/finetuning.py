"""Accuracy after finetuning without labels: what docs/training.md says of whole networks.

    python benchmarks/finetuning.py --network page-orientation --pattern group:4x1 --sparsity 0.9 --minutes 15
    python benchmarks/finetuning.py --network efficientnet-lite0-imagenet --sparsity 0.5 --repair \
        --data /pictures/calibration --evaluation /pictures/evaluation

Pages are drawn, as hard to read as the evaluation's; photographs come from two folders, named by their ImageNet class.
Labels are used for measuring only. With `--repair` the run goes on from what `sparsify --calibrate` makes. Each row is
added to a file of JSON lines; `--resume` goes on from a run that was ended.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch

from edgesparse.models import pages, pictures
from edgesparse.models.data import evaluate, onnx_run
from edgesparse.models.exporting import model_path
from edgesparse.recipe import Recipe
from edgesparse.training.finetune import Settings, finetune
from edgesparse.training.inputs import AUGMENTATIONS
from edgesparse.training.memory import keep_freed

SEEDS = (11, 12)
"""Of the pages to train on, and of those to measure on."""


@click.command()
@click.option("--network", type=click.Choice(("page-orientation", "efficientnet-lite0-imagenet")), required=True)
@click.option("--pattern", default="group:4x1", show_default=True)
@click.option("--sparsity", default=0.8, show_default=True)
@click.option("--minutes", default=30.0, show_default=True)
@click.option("--steps", type=int, help="Instead of as many as fit into the minutes.")
@click.option("--batch", default=16, show_default=True)
@click.option("--rate", type=float, help="As the command has it, if not given.")
@click.option("--augment", type=click.Choice(AUGMENTATIONS), default="shift", show_default=True)
@click.option("--crop-size", type=int)
@click.option("--held-back", default=0.15, show_default=True, help="Share of the inputs that judge.")
@click.option("--repair", is_flag=True, help="Begin with the post-training result.")
@click.option("--pages", "count", default=480, show_default=True, help="Pages to train on.")
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="Photographs to train on.")
@click.option("--evaluation", type=click.Path(path_type=Path, exists=True), help="Photographs to measure on.")
@click.option("--resume", is_flag=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/finetuning.jsonl"), show_default=True)
def main(
    network: str,
    pattern: str,
    sparsity: float,
    minutes: float,
    steps: int | None,
    batch: int,
    rate: float | None,
    augment: str,
    crop_size: int | None,
    held_back: float,
    repair: bool,
    count: int,
    data: Path | None,
    evaluation: Path | None,
    resume: bool,
    out: Path,
) -> None:
    """Finetune, measure dense and sparse, and add a row."""
    torch.set_num_threads(1)
    keep_freed()
    out.parent.mkdir(parents=True, exist_ok=True)
    if network == "page-orientation":
        data = out.parent / f"pages-{count}"
        data.mkdir(exist_ok=True)
        if not (data / "pages.npy").is_file():
            drawn = [value for value, _ in pages.samples(count, seed=SEEDS[0], damage=pages.HARD)]
            np.save(data / "pages.npy", np.concatenate(drawn).astype(np.float32))
        labelled = list(pages.samples(240, seed=SEEDS[1], damage=pages.HARD))
    elif data is None or evaluation is None:
        raise click.UsageError("photographs need --data and --evaluation")
    else:
        labelled = list(pictures.samples(evaluation))
    recipe = Recipe.from_dict({"targets": ["conv1x1"], "pattern": pattern, "sparsity": sparsity})
    if repair:
        full = recipe.with_repair()
        recipe = full if pattern.startswith("group") else replace(full, rearrangement=None)
    model = model_path(network)
    target = out.parent / f"{network}-{pattern.replace(':', '')}-{sparsity:g}.onnx"
    settings = Settings(
        minutes=minutes,
        steps=steps,
        batch=batch,
        rate=rate,
        augment=augment,
        crop_size=crop_size,
        held_back=held_back,
    )
    made = finetune(
        model, data, target, recipe, settings, resume=resume, progress=lambda _, text: click.echo(text, err=True)
    )
    right = [round(100 * evaluate(onnx_run(one), labelled).top1, 2) for one in (model, target)]
    row = {"network": network, "pattern": pattern, "sparsity": sparsity, "repair": repair, "augment": augment}
    row |= {"dense": right[0], "top1": right[1], "agreement": round(made.agreement, 4)}
    row |= {"steps": made.steps, "batch": batch, "rate": rate, "crop_size": crop_size}
    row["minutes"] = round(made.seconds / 60, 1)
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    click.echo(str(row))


if __name__ == "__main__":
    main()
