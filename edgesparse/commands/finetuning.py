"""`finetune`: train a model sparse from inputs alone, its dense form as the teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from edgesparse.commands import common
from edgesparse.console import Console
from edgesparse.errors import UsageError


@click.command()
@common.model_argument
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder of pictures or .npy; no labels.")
@common.recipe_options
@click.option("--repair", is_flag=True, help="Prune and repair before training, as sparsify --calibrate does.")
@common.shape_option
@click.option("-o", "--output", type=click.Path(path_type=Path), help="ONNX file.  [default: MODEL.finetuned.onnx]")
@common.force_option
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=30.0, show_default=True, help="To spend.")
@click.option("--steps", type=click.IntRange(1), help="Training steps, instead of as many as fit into --minutes.")
@click.option("--batch", type=click.IntRange(1, 4096), default=16, show_default=True, help="Inputs in a step.")
@click.option("--rate", type=click.FloatRange(0, min_open=True),
              help="Of each step, relative.  [default: 0.005; 0.002 if the recipe has repaired]")  # fmt: skip
@click.option("--method", help="How weights become sparse.  [default: gradual; given if the recipe has repaired]")
@click.option("--allocation", default="lamp", show_default=True, help="Of the layers' densities: uniform, erk or lamp.")
@click.option("--augment", type=click.Choice(("none", "shift", "crop", "strong")), default="shift",
              show_default=True, help="How inputs are changed; crop and strong are for photographs.")  # fmt: skip
@click.option("--crop-size", type=click.IntRange(1), help="Side of crops in pixels; smaller ones make more steps fit.")
@click.option("--teach", type=click.Choice(("features", "both")),
              help="By the dense model's values at sparse layers, or by its outputs too.  "
                   "[default: features if there are fewer inputs than classes]")  # fmt: skip
@click.option("--held-back", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.15, show_default=True,
              help="Share of the inputs that judge, and are not trained on.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on from the checkpoint of a run that was ended.")
@common.threads_option
@common.seed_option
@common.json_option
@common.verbosity_options
@click.pass_obj
def finetune(
    console: Console,
    model: Path,
    data: Path,
    recipe: Path | None,
    pattern: str | None,
    density: float | None,
    sparsity: float | None,
    repair: bool,
    shapes: tuple[str, ...],
    output: Path | None,
    force: bool,
    minutes: float,
    steps: int | None,
    batch: int,
    rate: float | None,
    method: str | None,
    allocation: str,
    augment: str,
    crop_size: int | None,
    teach: str | None,
    held_back: float,
    resume: bool,
    threads: int,
    seed: int,
    json_to: str | None,
) -> None:
    """Prune MODEL (ONNX) while training it to agree with its dense self, on inputs without labels.

    A checkpoint is kept beside the output; --resume goes on from it, also after a crash.
    """
    chosen = common.read_recipe(recipe, pattern, density, sparsity, seed)
    if chosen is None:
        raise UsageError("finetune needs to know what to prune", fix="give --recipe, or --pattern and --density")
    if repair:
        if chosen.needs_data or chosen.rearrangement is not None:
            why = "the recipe says itself how the model is pruned and repaired"
            raise UsageError(
                "--repair has nothing to add", why=why, fix="leave the option out, or the recipe's sections"
            )
        chosen = replace(chosen.with_repair(), fitting=None)  # training takes its place
    place = output or model.with_suffix(".finetuned.onnx")
    if place.exists() and not force:
        raise UsageError(f"{place} is there already", fix="choose another --output, or --force")
    import edgesparse.training  # says what to install without torch
    from edgesparse.training.finetune import Settings
    from edgesparse.training.finetune import finetune as train

    assert edgesparse.training
    import torch

    from edgesparse.training.memory import keep_freed

    keep_freed()
    torch.set_num_threads(threads)
    settings = Settings(
        minutes,
        steps,
        batch,
        rate,
        seed,
        method,
        allocation,
        held_back=held_back,
        augment=augment,
        crop_size=crop_size,
        teach=teach,
    )
    with console.progress("finetune") as tick:
        made = train(
            model,
            data,
            place,
            chosen,
            settings,
            shapes=common.read_shapes(shapes),
            resume=resume,
            progress=tick,
            notice=console.notice,
        )
    if json_to is not None:
        layers = [vars(one) for one in made.layers]
        facts = {"output": str(made.output), "agreement": made.agreement, "steps": made.steps, "seconds": made.seconds}
        console.json({**facts, "layers": layers}, json_to)
        return
    kept = sum(one.density * one.weights for one in made.layers) / sum(one.weights for one in made.layers)
    console.result(
        f"{made.output}: {len(made.layers)} layers at density {kept:.3f}; agrees with the dense model on "
        f"{made.agreement:.1%} of the inputs held back ({made.steps} steps, {made.seconds / 60:.1f} min)"
    )
