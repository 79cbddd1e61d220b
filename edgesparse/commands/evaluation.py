"""`eval`: how good a model or an artifact is, against the dense model and against labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgesparse.commands import common
from edgesparse.console import Console
from edgesparse.errors import UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgesparse.advice.evaluate import Evaluation, Model, Quality
    from edgesparse.sections import Calibration

WORST = 5
"""Classes that the table of the worst shows."""


@click.command("eval")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder of pictures or .npy/.npz files.")
@click.option("--labels", help="`names` (files begin with their class), a .csv of file,class, or a .npy of classes.")
@click.option("--against", type=click.Path(path_type=Path), help="The dense model to agree with: ONNX or an artifact.")
@click.option("--output", "output", metavar="NAME", help="The output to look at.  [default: the first]")
@click.option("--recipe", type=click.Path(path_type=Path), help="Its `calibration` section scales pictures.")
@common.shape_option
@common.threads_option
@common.json_option
@common.verbosity_options
@click.pass_obj
def evaluation(
    console: Console,
    model: Path,
    data: Path,
    labels: str | None,
    against: Path | None,
    output: str | None,
    recipe: Path | None,
    shapes: tuple[str, ...],
    threads: int,
    json_to: str | None,
) -> None:
    """Evaluate MODEL (ONNX or an artifact): agreement with a dense one, accuracy on labels, or both.

    Pictures are scaled as --recipe says, else as the recipe in MODEL's metadata does.
    """
    from edgesparse.advice.evaluate import evaluate
    from edgesparse.advice.labels import read_labelled

    if labels is None and against is None:
        raise UsageError("there is nothing to compare with", fix="give --against DENSE.onnx, --labels, or both")
    sizes = common.read_shapes(shapes)
    run, loaded = opened(model, sizes, threads, console)
    reference = None if against is None else opened(against, sizes, threads, console)[0]
    samples = read_labelled(data, loaded, picture_settings(recipe, loaded), labels)
    with console.progress("eval") as tick:
        found = evaluate(
            run, samples, against=reference, output=output, tick=lambda count: tick(0.0, f"{count} samples")
        )
    if json_to is not None:
        console.json({"schema": "edgesparse.eval/1", "model": model.name, **as_dict(found)}, json_to)
        return
    show(console, found)


def opened(path: Path, shapes: dict[str, tuple[int, ...]], threads: int, console: Console) -> tuple[Model, ir.Model]:
    """A function that runs what is at `path`, and its portable model with shapes and metadata."""
    from edgesparse.advice.evaluate import onnx_model
    from edgesparse.passes import load_model

    if not common.is_artifact(path):
        loaded = load_model(path, shapes, console.notice)
        return onnx_model(loaded, threads=threads), loaded
    from edgesparse.artifacts.artifact import open_artifact
    from edgesparse.artifacts.verify import PORTABLE
    from edgesparse.runtimes.local import LocalRunner

    artifact = open_artifact(path)
    return LocalRunner(artifact, threads=threads).run, load_model(artifact.file(PORTABLE), {}, console.notice)


def picture_settings(recipe: Path | None, model: ir.Model) -> Calibration | None:
    """How pictures become inputs: by a recipe file, else by the recipe in the model's metadata, else as ever."""
    from edgesparse.passes.prune import RECIPE_KEY
    from edgesparse.recipe import Recipe, load_recipe

    if recipe is not None:
        return load_recipe(recipe).calibration
    text = model.metadata_props.get(RECIPE_KEY)
    return Recipe.from_yaml(text).calibration if text else None


def as_dict(found: Evaluation) -> dict[str, Any]:
    """The evaluation as JSON values."""

    def told(quality: Quality | None) -> dict[str, Any] | None:
        if quality is None:
            return None
        classes = {str(label): vars(score) for label, score in quality.per_class.items()}
        return {**vars(quality), "per_class": classes, "worst_class": quality.worst}

    return {
        "samples": found.samples,
        "agreement": None if found.agreement is None else vars(found.agreement),
        "quality": told(found.quality),
        "dense": told(found.dense),
        "drop": found.drop if found.agreement is not None else None,
    }


def show(console: Console, found: Evaluation) -> None:
    """Print the tables."""
    if found.agreement is not None:
        one = found.agreement
        console.result(
            f"{found.samples} samples: agrees with the dense model on {one.top1:.1%} of {one.rows} rows, "
            f"KL {one.kl:.4g} nats, cosine {one.cosine:.4f} (least {one.worst_cosine:.4f})"
        )
    if found.quality is None:
        return
    both = [(name, one) for name, one in (("model", found.quality), ("dense", found.dense)) if one is not None]
    cells = [
        (name, f"{one.top1:.1%}", f"{one.top5:.1%}", f"{one.worst}: {one.per_class[one.worst].top1:.1%}",
         f"{one.calibration_error:.3f}")
        for name, one in both
    ]  # fmt: skip
    console.table(("", "top-1", "top-5", "worst class", "calibration error"), cells, text_columns=("", "worst class"))
    if found.dense is not None:
        console.result(f"drop from dense: {found.drop:.1f} points of top-1")
    _worst_classes(console, found.quality, found.dense)


def _worst_classes(console: Console, own: Quality, dense: Quality | None) -> None:
    """The classes that lost most; classes of a single row say nothing, and are not shown."""
    told = [label for label, score in own.per_class.items() if score.rows > 1]

    def lost(label: int) -> tuple[float, int]:
        before = 1.0 if dense is None else dense.per_class[label].top1
        return own.per_class[label].top1 - before, label

    if not told:
        return
    cells = []
    for label in sorted(told, key=lost)[:WORST]:
        before = "" if dense is None else f"{dense.per_class[label].top1:.1%}"
        cells.append((str(label), str(own.per_class[label].rows), f"{own.per_class[label].top1:.1%}", before))
    console.table(("class", "rows", "top-1", "dense"), cells)
