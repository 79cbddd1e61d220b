"""`compile` and `sparsify`: from a model to an artifact, or to a sparse model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgesparse.commands import common
from edgesparse.console import Console

if TYPE_CHECKING:
    from edgesparse.artifact import Artifact

F = TypeVar("F", bound=Callable[..., Any])


def step_options(function: F) -> F:
    """Add --stop-after and --dump-after."""
    function = click.option("--stop-after", metavar="STEP", help="Stop after this step.")(function)
    return click.option(
        "--dump-after", metavar="STEP", multiple=True, help="Write what this step made, beside the output."
    )(function)


@click.command("compile")
@common.model_argument
@common.target_option
@common.recipe_options
@common.shape_option
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder, or FILE.esp.  [default: MODEL.TARGET]")
@common.force_option
@click.option(
    "--threads", type=click.IntRange(1, 64), default=1, show_default=True, help="The most threads a run may use."
)
@step_options
@common.seed_option
@common.json_option
@common.verbosity_options
@click.pass_obj
def compile_(
    console: Console,
    model: Path,
    target: str,
    recipe: Path | None,
    pattern: str | None,
    density: float | None,
    sparsity: float | None,
    shapes: tuple[str, ...],
    output: Path | None,
    force: bool,
    threads: int,
    stop_after: str | None,
    dump_after: tuple[str, ...],
    seed: int,
    json_to: str | None,
) -> None:
    """Compile MODEL (ONNX) into an artifact for a target.

    With --recipe, or --pattern and --density, it is pruned first; without, the zeros that are there are used.
    """
    from edgesparse.pipeline import compile_model
    from edgesparse.target import Target

    chosen = Target.parse(target)
    place = output or Path(f"{model.stem}.{chosen.name}")
    with console.progress("compile") as tick:
        artifact = compile_model(
            model,
            target=chosen,
            recipe=common.read_recipe(recipe, pattern, density, sparsity, seed),
            shapes=common.read_shapes(shapes),
            output=place,
            force=force,
            progress=tick,
            notice=console.notice,
            stop_after=stop_after,
            dump_after=dump_after,
            seed=seed,
            threads=threads,
        )
    if artifact is None:
        console.result(f"stopped after {stop_after}; no artifact was written")
    else:
        show_artifact(console, artifact, model, json_to)


def show_artifact(console: Console, artifact: Artifact, model: Path, json_to: str | None) -> None:
    """Print what was made: sizes, target, and how many layers run which kernels."""
    manifest = artifact.manifest
    path = artifact.path
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    weights = manifest.files["weights.bin"].size
    total = sum(entry.size for entry in manifest.files.values())
    kernels = [str(layer.get("kernel", "")) for layer in manifest.layers]
    if json_to:
        data = {
            "schema": "edgesparse.compile/1",
            "artifact": str(path),
            "target": dict(manifest.target),
            "weights_bytes": weights,
            "model_bytes": model.stat().st_size,
            "layers": [dict(layer) for layer in manifest.layers],
        }
        console.json(data, json_to)
        return
    console.result(f"{path}  for {manifest.target.get('name')}, {len(kernels)} layers")
    console.result(
        f"  weights {weights / 1e6:.2f} MB (model {model.stat().st_size / 1e6:.2f} MB), all files {total / 1e6:.2f} MB"
    )
    console.notice(f"next: edgesparse inspect {path}, edgesparse bench {path}")


@click.command()
@common.model_argument
@common.recipe_options
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Samples without labels: a folder of pictures or .npy/.npz files. With --pattern: all that keeps accuracy.",
)
@common.shape_option
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File.  [default: MODEL.sparse.onnx]")
@common.force_option
@step_options
@common.seed_option
@common.json_option
@common.verbosity_options
@click.pass_obj
def sparsify(
    console: Console,
    model: Path,
    recipe: Path | None,
    pattern: str | None,
    density: float | None,
    sparsity: float | None,
    calibrate: Path | None,
    shapes: tuple[str, ...],
    output: Path | None,
    force: bool,
    stop_after: str | None,
    dump_after: tuple[str, ...],
    seed: int,
    json_to: str | None,
) -> None:
    """Prune MODEL: ONNX in, ONNX out, with the zeros in place; it runs anywhere.

    With --calibrate and --pattern, channels are rearranged for the pattern, densities follow each layer's measured
    sensitivity, and weights are repaired layer by layer; a recipe can choose each of these.
    """
    from edgesparse.errors import UsageError
    from edgesparse.passes import load_model, run_passes, save_model, sparsify_passes
    from edgesparse.passes.calibration import read_samples

    rules = common.read_recipe(recipe, pattern, density, sparsity, seed)
    if rules is not None and calibrate is not None and recipe is None:
        rules = rules.with_repair()
    if rules is None:
        raise UsageError("nothing says what to prune", fix="give --recipe, or --pattern group:8x1 --density 0.5")
    place = output or Path(f"{model.stem}.sparse.onnx")
    if place.exists() and (place.is_dir() or not force or place.samefile(model)):
        raise UsageError(f"{place} is there already", fix="choose another --output, or --force to replace a file")
    loaded = load_model(model, common.read_shapes(shapes), console.notice)
    samples = None if calibrate is None else read_samples(calibrate, loaded, rules.calibration)
    with console.progress("sparsify") as tick:
        steps = sparsify_passes(rules, samples, tick)
        names = [step.name for step in steps]
        for name in dump_after:
            if name not in names:
                raise UsageError(f"unknown step {name!r}", fix=f"steps are {', '.join(names)}")
        result = run_passes(
            loaded,
            steps,
            on_step=lambda name, _result: tick((1 + names.index(name)) / len(names), name),
            stop_after=stop_after,
            dump=lambda name, made: (
                save_model(made, place.with_suffix(f".{name}.onnx")) if name in dump_after else None
            ),
        )
    save_model(result.model, place)
    show_sparse(console, place, [str(reason) for reason in result.reasons], json_to)


def show_sparse(console: Console, path: Path, reasons: list[str], json_to: str | None) -> None:
    """Print the pruned model's layers in short, and what was not pruned and why."""
    from edgesparse.survey import survey

    layers = survey(path)
    prunable = [layer for layer in layers if layer.weights]
    kept = sum(layer.weights * layer.density for layer in prunable)
    total = sum(layer.weights for layer in prunable) or 1
    if json_to:
        data = {
            "schema": "edgesparse.sparsify/1",
            "model": str(path),
            "density": kept / total,
            "layers": [layer.as_dict() for layer in layers],
            "reasons": reasons,
        }
        console.json(data, json_to)
        return
    pruned = sum(layer.density < 1 for layer in prunable)
    console.result(f"{path}  {pruned} of {len(prunable)} layers pruned, density {kept / total:.3f} over all weights")
    for reason in reasons:
        console.detail(f"  {reason}")
