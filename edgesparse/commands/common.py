"""Options that several commands share, and the reading of their values."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgesparse.console import Console
from edgesparse.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgesparse.recipe import Recipe

F = TypeVar("F", bound=Callable[..., Any])

MAX_RANK = 8
MAX_DIM = 2**31 - 1

model_argument = click.argument("model", type=click.Path(path_type=Path))
artifact_argument = click.argument("artifact", type=click.Path(path_type=Path))
target_option = click.option("--target", "-t", default="native", show_default=True, help="See `edgesparse targets`.")
threads_option = click.option(
    "--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Threads, at most those compiled for."
)
seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of everything random."
)
force_option = click.option("--force", "-f", is_flag=True, help="Replace the output if it is there.")
shape_option = click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="NAME:DxDxD",
    help="Fix an input's open dimensions, e.g. input:1x3x224x224. May be repeated.",
)
input_option = click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=FILE.npy",
    help="An input's value. May be repeated; without any, the artifact's sample inputs.",
)
json_option = click.option(
    "--json",
    "json_to",
    is_flag=False,
    flag_value="-",
    default=None,
    metavar="[PATH|-]",
    callback=lambda _ctx, _param, value: _json_destination(value),
    help="Write the result as JSON to PATH.json, or to stdout instead of the table.",
)


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases only
    """Seconds, given as 90, 90s, 1.5m or 1h."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)(s|m|h)?", str(value), re.ASCII)
        if not found or float(found[1]) == 0:
            self.fail(f"{value!r} is not a length of time above zero, such as 60s or 2m", param, ctx)
        return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2] or "s"]


def verbosity_options(function: F) -> F:
    """Add -v (may be repeated) and -q, which set the console's verbosity before the command runs."""

    def verbose(ctx: click.Context, _param: click.Parameter, value: int) -> None:
        if value:
            ctx.ensure_object(Console).configure(value)

    def quiet(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value:
            ctx.ensure_object(Console).configure(-1)

    said = "Say more; -vv everything."
    options = (
        click.option("-v", "--verbose", count=True, callback=verbose, expose_value=False, help=said),
        click.option("-q", "--quiet", is_flag=True, callback=quiet, expose_value=False, help="Only errors."),
    )
    for option in options:
        function = option(function)
    return function


def recipe_options(function: F) -> F:
    """Add --recipe and its shortcuts; the command gets recipe, pattern, density and sparsity."""
    share = click.FloatRange(0, 1)
    path = click.Path(path_type=Path)
    options = (
        click.option("--recipe", type=path, help="A YAML file: what to do to which layers."),
        click.option("--pattern", help="Instead of a recipe: one pattern for all, e.g. group:8x1."),
        click.option("--density", type=share, help="With --pattern: share of the weights to keep."),
        click.option("--sparsity", type=share, help="With --pattern: share of the weights to drop."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def read_recipe(
    recipe: Path | None, pattern: str | None, density: float | None, sparsity: float | None, seed: int = 0
) -> Recipe | None:
    """Return the recipe that the options mean, or None if they ask for none.

    Raises
    ------
    UsageError
        If --recipe is given beside a shortcut, or the recipe is wrong.
    """
    from edgesparse.recipe import Recipe, load_recipe

    given = {"pattern": pattern, "density": density, "sparsity": sparsity}
    shortcuts = {key: value for key, value in given.items() if value is not None}
    if recipe is not None:
        if shortcuts:
            names = ", ".join(f"--{key}" for key in shortcuts)
            raise UsageError(f"--recipe and {names} exclude each other", fix="put it into the recipe")
        return load_recipe(recipe)
    if not shortcuts:
        return None
    if pattern is None:
        raise UsageError("--density and --sparsity need --pattern", fix="e.g. --pattern group:8x1 --density 0.1")
    return Recipe.from_dict({**shortcuts, "seed": seed})


def read_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Read `name:1x3x224x224`, several times, as {name: (1, 3, 224, 224)}. Raises UsageError."""
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, colon, dims = text.rpartition(":")
        parts = dims.lower().split("x")
        if not colon or not name or not all(part.isascii() and part.isdigit() for part in parts):
            raise UsageError(f"--shape {text!r} cannot be read", fix="write it as name:1x3x224x224")
        shape = tuple(int(part[:20]) for part in parts)
        if len(shape) > MAX_RANK or not all(1 <= dim <= MAX_DIM for dim in shape):
            raise UsageError(
                f"--shape {text!r} is no shape to run at",
                why=f"dimensions are from 1 to {MAX_DIM}, and at most {MAX_RANK} of them",
            )
        if name in shapes:
            raise UsageError(f"--shape is given twice for input {name!r}")
        shapes[name] = shape
    return shapes


def read_inputs(texts: Sequence[str]) -> dict[str, NDArray[np.generic]]:
    """Read `name=file.npy`, several times, as {name: array}. Raises UsageError."""
    import numpy as np

    arrays: dict[str, NDArray[np.generic]] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise UsageError(f"--input {text!r} cannot be read", fix="write it as name=file.npy")
        if name in arrays:
            raise UsageError(f"--input is given twice for {name!r}")
        try:
            value = np.load(path, allow_pickle=False)
        except OSError as error:
            raise UsageError(f"cannot read {path}", why=error.strerror or str(error)) from error
        except (ValueError, EOFError) as error:
            raise UsageError(f"{path} is not a .npy file", why=str(error).splitlines()[0][:200]) from error
        if not isinstance(value, np.ndarray):
            raise UsageError(f"{path} is not a .npy file", why="it holds several arrays", fix="give one array")
        arrays[name] = value
    return arrays


def _json_destination(value: str | None) -> str | None:
    """Take "-" or a path that ends in .json: `--json model.onnx` must not overwrite the model."""
    if value is None or value == "-" or value.endswith(".json"):
        return value
    raise click.BadParameter(f"{value!r} does not end in .json; for stdout write --json=-", param_hint="--json")


def is_artifact(path: Path) -> bool:
    """Return whether a path names an artifact rather than an ONNX model: a folder, or a `.esp` file."""
    return path.is_dir() or path.suffix == ".esp"
