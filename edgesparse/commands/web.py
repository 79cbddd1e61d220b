"""`bundle`: a model as a package for the web."""

from __future__ import annotations

import tempfile
from pathlib import Path

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
    threads: int,
    force: bool,
    seed: int,
    json_to: str | None,
) -> None:
    """Compile MODEL (ONNX) into a package for the web: WebAssembly, JavaScript and types for this model.

    It runs in browsers, workers and Node, without any other runtime.
    """
    from edgesparse.errors import UsageError
    from edgesparse.web.bundle import bundle_model
    from edgesparse.web.webdemo import add_demo

    if labels is not None and not demo:
        raise UsageError("--labels is for the demo page", fix="give --demo as well")
    place = output or Path(f"{model.stem}.web")
    with console.progress("bundle") as tick, tempfile.TemporaryDirectory(prefix="edgesparse-") as room:
        portable = Path(room) / "portable.onnx"
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
        )
        page = add_demo(made, portable, labels=labels) if demo else None
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
    if page is not None:
        console.notice(
            f"next: python -m http.server -d {made.path}, then open http://localhost:8000/{page.parent.name}/"
        )
