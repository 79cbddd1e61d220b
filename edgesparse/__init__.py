"""edgesparse: a sparse deployment compiler for the edge. ONNX in, measured group-sparse programs out.

    import edgesparse

    artifact = edgesparse.compile("model.onnx", "model.esp", target="native", recipe="recipe.yaml")
    outputs = edgesparse.load("model.esp").run({"input": array})

Importing the package loads nothing; each function imports what it needs when it is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgesparse.artifacts.artifact import Artifact
    from edgesparse.recipe import Recipe
    from edgesparse.runtimes.local import LocalRunner
    from edgesparse.target import Target

__version__ = "0.1.0"
__all__ = ["__version__", "compile", "load"]


def compile(
    model: str | Path,
    output: str | Path | None = None,
    *,
    target: str | Target = "native",
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    force: bool = False,
    seed: int = 0,
) -> Artifact:
    """Compile an ONNX model for a target and return the artifact.

    Parameters
    ----------
    model:
        The ONNX file.
    output:
        Folder to write, or a file that ends in `.esp`. By default a folder beside the model, named after
        it and the target.
    target:
        A name that `edgesparse targets` lists, or a `Target`.
    recipe:
        What to prune, as a YAML file's path, a mapping with the same keys, or a `Recipe`. None prunes
        nothing; layers that are sparse already are found and used.
    shapes:
        Input name to shape, for inputs with open dimensions.
    force:
        Replace an artifact that is damaged or has files beside its own.
    seed:
        Of the sample inputs that the artifact carries.

    Raises
    ------
    EdgesparseError
        Whatever goes wrong, as one of its kinds: each says what, why, and what to do.
    """
    from edgesparse.pipeline import compile_model
    from edgesparse.recipe import Recipe, load_recipe
    from edgesparse.target import Target

    if isinstance(recipe, str | Path):
        recipe = load_recipe(recipe)
    elif isinstance(recipe, Mapping):
        recipe = Recipe.from_dict(recipe)
    chosen = Target.parse(target) if isinstance(target, str) else target
    place = Path(output) if output is not None else Path(model).with_suffix(f".{chosen.name}")
    made = compile_model(Path(model), target=chosen, recipe=recipe, shapes=shapes, output=place, force=force, seed=seed)
    assert made is not None, "only stop_after ends without an artifact"
    return made


def load(path: str | Path | Artifact) -> LocalRunner:
    """Check an artifact and load it into this process; `run({name: array})` returns the outputs by name.

    Raises
    ------
    ArtifactError
        If it is damaged, or not an artifact.
    DeviceError
        If this machine cannot run its code.
    """
    from edgesparse.runtimes.local import LocalRunner

    return LocalRunner(path)
