"""`python -m edgesparse.models`: list the reference models, write one as ONNX."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from edgesparse.errors import EdgesparseError
from edgesparse.models import MODELS
from edgesparse.models import export as write


@click.group()
def main() -> None:
    """Reference models as ONNX files."""


@main.command("list")
def list_() -> None:
    """List the models: name, input shape, description, source of the weights."""
    wide = max(map(len, MODELS))
    for model in MODELS.values():
        shape = "x".join(map(str, model.input_shape))
        source = str(model.file) if model.file else model.weights
        click.echo(f"{model.name:{wide}}  {shape:13}  {model.description}; {source}")


@main.command()
@click.argument("name")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write; NAME.onnx by default.")
@click.option("--seed", default=0, show_default=True, help="Of random weights.")
@click.option("--raw", is_flag=True, help="As traced: batch norms and pads are left for the passes to fold.")
def export(name: str, output: Path | None, seed: int, raw: bool) -> None:
    """Write model NAME as ONNX."""
    try:
        path = write(name, output or Path(f"{name}.onnx"), seed=seed, optimize=not raw)
    except EdgesparseError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    click.echo(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(prog_name="python -m edgesparse.models")
