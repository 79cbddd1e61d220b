"""`bundle`: a model as a package for the web."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from edgesparse.commands import common
from edgesparse.console import Console


@click.command()
@common.model_argument
@common.recipe_options
@common.shape_option
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder.  [default: MODEL.web]")
@click.option("--name", help="Name of the npm package.  [default: from the file's name]")
@click.option("--demo", is_flag=True, help="Add a page that shows the model at work: demo/index.html.")
@click.option("--labels", type=click.Path(path_type=Path), help="Names of the classes for --demo, one on a line.")
@click.option("--mean", metavar="R,G,B", help="Of the pictures for --demo, from 0 to 1.  [default: ImageNet's]")
@click.option("--std", metavar="R,G,B", help="Their deviation.  [default: ImageNet's]")
@click.option("--order", type=click.Choice(("rgb", "bgr")), help="Of their channels.  [default: rgb]")
@click.option("--crop", type=float, help="Share of a picture's short side that is taken.  [default: 0.875]")
@click.option(
    "--threads", type=click.IntRange(1, 64), default=4, show_default=True, help="The most threads a session may use."
)
@common.force_option
@common.seed_option
@common.json_option
@common.verbosity_options
@click.pass_obj
def bundle(
    console: Console,
    model: Path,
    recipe: Path | None,
    pattern: str | None,
    density: float | None,
    sparsity: float | None,
    shapes: tuple[str, ...],
    output: Path | None,
    name: str | None,
    demo: bool,
    labels: Path | None,
    mean: str | None,
    std: str | None,
    order: str | None,
    crop: float | None,
    threads: int,
    force: bool,
    seed: int,
    json_to: str | None,
) -> None:
    """Compile MODEL (ONNX) into a package for the web: WebAssembly, JavaScript and types for this model.

    It runs in browsers, workers and Node, without any other runtime.
    """
    from edgesparse.errors import UsageError
    from edgesparse.web.bundle import Bundle, bundle_model
    from edgesparse.web.pictures import Preparation
    from edgesparse.web.webdemo import FOLDER, add_demo

    given = {"labels": labels, "mean": mean, "std": std, "order": order, "crop": crop}
    for option, value in given.items():
        if value is not None and not demo:
            raise UsageError(f"--{option} is for the demo page", fix="give --demo as well")
    asked: dict[str, Any] = {key: given[key] for key in ("order", "crop") if given[key] is not None}
    asked |= {key: _numbers(key, text) for key, text in (("mean", mean), ("std", std)) if text is not None}
    preparation = Preparation(**asked)
    place = output or Path(f"{model.stem}.web")
    with console.progress("bundle") as tick, tempfile.TemporaryDirectory(prefix="edgesparse-") as room:
        portable = Path(room) / "portable.onnx"

        def page(unfinished: Bundle) -> None:
            add_demo(unfinished, portable, labels=labels, preparation=preparation)

        made = bundle_model(
            model,
            output=place,
            name=name,
            recipe=common.read_recipe(recipe, pattern, density, sparsity, seed),
            shapes=common.read_shapes(shapes),
            force=force,
            progress=tick,
            notice=console.notice,
            seed=seed,
            portable=portable,
            threads=threads,
            finish=page if demo else None,
        )
    weights = made.manifest["files"]["weights.bin"]["size"]
    if json_to:
        data = {
            "schema": "edgesparse.web.bundle-made/1",
            "bundle": str(made.path),
            "name": made.manifest["name"],
            "code_gzipped_bytes": made.code_gzipped,
            "weights_bytes": weights,
            "model_bytes": made.manifest["model"]["bytes"],
        }
        console.json(data, json_to)
        return
    console.result(f"{made.path}  package {made.manifest['name']}, {len(made.manifest['layers'])} layers")
    console.result(
        f"  code {made.code_gzipped / 1e3:.0f} kB gzipped, weights {weights / 1e6:.2f} MB"
        f" (model {made.manifest['model']['bytes'] / 1e6:.2f} MB)"
    )
    if demo:
        console.notice(f"next: python -m http.server -d {made.path}, then open http://localhost:8000/{FOLDER}/")


def _numbers(option: str, text: str) -> tuple[float, ...]:
    """The numbers of a list with commas. Raises UsageError."""
    from edgesparse.errors import UsageError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--{option} {text!r} is no list of numbers", fix="as in 0.485,0.456,0.406") from error
