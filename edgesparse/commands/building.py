"""`compile`: from a model to an artifact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgesparse.commands import common
from edgesparse.console import Console

if TYPE_CHECKING:
    from edgesparse.artifacts.artifact import Artifact

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
@click.option(
    "--order",
    type=click.Choice(["auto", "depth-first", "layers"]),
    default="auto",
    show_default=True,
    help="Run chains of wide maps band by band, or layer by layer.",
)
@click.option(
    "--tune",
    type=common.Duration(),
    metavar="TIME",
    help="Measure plans and tiles inside the whole network for so long, e.g. 60s or 2m.",
)
@click.option("--tune-on", metavar="DEVICE", help="With --tune: measure there, e.g. ssh://pi.  [default: here]")
@click.option(
    "--strassen",
    is_flag=True,
    help="Dense layers with fewer multiplications where faster: more weights, coarser rounding.",
)
@click.option("--band-pixels", type=click.IntRange(1, 1 << 20), help="Pixels of a band.  [default: by the cost model]")
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
    order: str,
    tune: float | None,
    tune_on: str | None,
    strassen: bool,
    band_pixels: int | None,
    stop_after: str | None,
    dump_after: tuple[str, ...],
    seed: int,
    json_to: str | None,
) -> None:
    """Compile MODEL (ONNX) into an artifact for a target.

    With --recipe, or --pattern and --density, it is pruned first; without, the zeros that are there are used.
    """
    from edgesparse.errors import UsageError
    from edgesparse.pipeline import compile_model
    from edgesparse.planning.decide import Choice
    from edgesparse.target import Target

    chosen = Target.parse(target)
    place = output or Path(f"{model.stem}.{chosen.name}")
    pruning = common.read_recipe(recipe, pattern, density, sparsity, seed)
    fixed = common.read_shapes(shapes)
    plan = Choice(None if order == "auto" else order == "depth-first", band_pixels)
    measure = None
    if tune_on and tune is None:
        raise UsageError("--tune-on goes with --tune", fix="say for how long, e.g. --tune 60s")
    if tune is not None:
        from edgesparse.measuring.trials import Subject, tune_in_place

        with console.progress("tune") as tick:
            subject = Subject(model, chosen, pruning, fixed, threads, strassen)
            tuned = tune_in_place(subject, tune, device=tune_on, asked=plan, progress=tick)
        plan, measure = tuned.plan, tuned.measure
        for tried, seconds in tuned.plans:
            what = tried.as_dict()
            console.notice(f"{what['order']}, bands of {what['band_pixels']} pixels: {seconds * 1e3:.3f} ms")
    with console.progress("compile") as tick:
        artifact = compile_model(
            model,
            target=chosen,
            recipe=pruning,
            shapes=fixed,
            output=place,
            force=force,
            progress=tick,
            notice=console.notice,
            stop_after=stop_after,
            dump_after=dump_after,
            seed=seed,
            threads=threads,
            measure=measure,
            depth_first=plan.depth_first,
            band_pixels=plan.band_pixels,
            strassen=strassen,
        )
    if artifact is None:
        console.result(f"stopped after {stop_after}; no artifact was written")
    else:
        show_artifact(console, artifact, json_to)


def show_artifact(console: Console, artifact: Artifact, json_to: str | None) -> None:
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
            "model_bytes": manifest.info["model_bytes"],
            "layers": [dict(layer) for layer in manifest.layers],
        }
        console.json(data, json_to)
        return
    console.result(f"{path}  for {manifest.target.get('name')}, {len(kernels)} layers")
    before = float(manifest.info["model_bytes"]) / 1e6
    console.result(f"  weights {weights / 1e6:.2f} MB (model {before:.2f} MB), all files {total / 1e6:.2f} MB")
    console.notice(f"next: edgesparse inspect {path}, edgesparse bench {path}")
