"""What finetuning starts from: the dense graph that teaches, the graph that is trained, and what it is held to.

A recipe that only names patterns and densities leaves the pruning to the training method. With `rearrangement` the
channels are first permuted for the masks that magnitude would choose (the function stays the same). A recipe with the
sections that need samples (`reconstruction`, `allocation: {method: sensitivity}`, ...) is carried out whole, as by
`edgesparse sparsify`, and its result is where training begins, with the densities that it found.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from edgesparse.errors import UsageError
from edgesparse.passes import load_model, run_passes, save_model, weight_layers
from edgesparse.passes.prune import LAYERS_KEY
from edgesparse.passes.sparsify import calibrated_passes
from edgesparse.pattern import SparsePattern
from edgesparse.recipe import LayerRule, Recipe
from edgesparse.training.information import information
from edgesparse.training.layers import Tensor

Tick = Callable[[float, str], None]


@dataclass(frozen=True)
class Start:
    """`dense` teaches, `begun` is trained (its zeros are there already if `pruned`), `recipe` is for the sparsifier."""

    dense: ir.Model
    begun: ir.Model
    recipe: Recipe
    pruned: bool


def begin(model: ir.Model, recipe: Recipe, inputs: Tensor, tick: Tick) -> Start:
    """Rearrange, prune and repair as the recipe says; `model` is simplified, `inputs` are samples [N, ...]."""
    if recipe.fitting is not None and recipe.fitting.method in ("weights", "channels"):
        raise UsageError(
            "the recipe has a fitting section", why="finetune trains the model itself", fix="leave the section out"
        )
    dense, section = model, recipe.rearrangement
    if section is not None and section.method == "cluster":
        raise UsageError(
            "rearrangement by cluster is for zeros that are there", fix="take search or norm, or sparsify afterwards"
        )
    name = model.graph.inputs[0].name or ""
    samples = [{name: one[None].numpy()} for one in inputs]
    if section is not None and section.method != "none":
        order = replace(_plain(recipe), rearrangement=section)
        only = [one for one in calibrated_passes(order, samples, tick, weigher=information) if one.name == "rearrange"]
        dense = run_passes(model, only).model
    if not recipe.needs_data:
        return Start(dense, dense, _named(dense, recipe), False)
    full = replace(recipe, rearrangement=None, fitting=None)
    dense = dense.clone()
    begun = run_passes(dense, calibrated_passes(full, samples, tick, weigher=information)).model
    return Start(dense, begun, held_to(recipe, json.loads(begun.metadata_props[LAYERS_KEY])), True)


def held_to(recipe: Recipe, layers: Mapping[str, Mapping[str, object]]) -> Recipe:
    """A recipe of the layers' own patterns and densities, as the pruned model's metadata has them."""
    rules = []
    for name, one in layers.items():
        pattern = SparsePattern.parse(str(one["pattern"]))
        density = None if pattern.fixed else float(str(one["density"]))
        rules.append(LayerRule((name,), pattern, density))
    density = None if recipe.pattern.fixed else recipe.density or 0.5
    return Recipe(targets=tuple(layers), pattern=recipe.pattern, density=density, seed=recipe.seed, layers=tuple(rules))


def keep(start: Start, beside: Path) -> None:
    """Write the start as two models beside the checkpoint, as measuring it again takes minutes."""
    for which, model in (("dense", start.dense), ("begun", start.begun)):
        save_model(model, _place(beside, which))


def kept(beside: Path, recipe: Recipe) -> Start | None:
    """What `keep` has written, or None."""
    if not all(_place(beside, which).is_file() for which in ("dense", "begun")):
        return None
    dense, begun = (load_model(_place(beside, which)) for which in ("dense", "begun"))
    if not recipe.needs_data:
        return Start(dense, begun, _named(dense, recipe), False)
    return Start(dense, begun, held_to(recipe, json.loads(begun.metadata_props[LAYERS_KEY])), True)


def forget(beside: Path) -> None:
    """Remove what `keep` has written."""
    for which in ("dense", "begun"):
        _place(beside, which).unlink(missing_ok=True)


def _place(beside: Path, which: str) -> Path:
    return beside.with_name(f"{beside.name}.{which}.onnx")


def _named(model: ir.Model, recipe: Recipe) -> Recipe:
    """What the recipe selects in the graph, by the nodes' own names: operator types are others in torch."""
    choices = recipe.resolve([layer.candidate() for layer in weight_layers(model)])
    rules = tuple(LayerRule((name,), one.pattern, one.density) for name, one in choices.items())
    return replace(_plain(recipe), targets=tuple(choices), ignore=(), layers=rules)


def _plain(recipe: Recipe) -> Recipe:
    """The recipe without what is done before training: patterns, densities and seed alone."""
    return Recipe(recipe.targets, recipe.ignore, recipe.pattern, recipe.density, seed=recipe.seed, layers=recipe.layers)
