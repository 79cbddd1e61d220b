"""Prune: set weights to zero as a recipe says, and write into the model what was done.

Per layer, W' = W * M, where the mask M is the exact projection of the criterion's scores onto the pattern at
the density (`edgesparse.pattern.best_mask`, which states the rounding). The model stays dense ONNX with zeros
in place.
"""

from __future__ import annotations

import json
from importlib.metadata import version

import numpy as np
import onnx_ir as ir

from edgesparse.errors import Reason
from edgesparse.passes.base import Pass, PassResult
from edgesparse.passes.layers import LayerInfo, canonical_weight, set_canonical_weight, weight_layers
from edgesparse.passes.score import saliency
from edgesparse.pattern import Mask, best_mask, density, fixed_density, kept_units, misfit
from edgesparse.recipe import Choice, Recipe

RECIPE_KEY = "edgesparse.recipe"
VERSION_KEY = "edgesparse.version"
LAYERS_KEY = "edgesparse.layers"
"""Metadata of the portable model: the recipe as YAML, our version, and per pruned layer pattern and density
(JSON).
"""


def prune_pass(recipe: Recipe) -> Pass:
    """The pass that prunes by `recipe`. It raises RecipeError where the recipe does not fit the model."""
    return Pass("prune", lambda model: prune(model, recipe))


def prune(model: ir.Model, recipe: Recipe) -> PassResult:
    """Prune in place. Every layer that is left as it was has a Reason.

    Raises RecipeError for targets that match nothing.
    """
    layers = weight_layers(model)
    choices = recipe.resolve([layer.candidate() for layer in layers])
    reasons: list[Reason] = []
    done: dict[str, dict[str, object]] = {}
    for layer in layers:
        reason = keep_reason(layer, choices.get(layer.name))
        if reason is not None:
            reasons.append(reason)
            continue
        choice = choices[layer.name]
        mask = prune_one(model, layer, choice, recipe.criterion)
        done[layer.name] = {"pattern": str(choice.pattern), "density": round(density(mask), 6)}
    model.metadata_props[RECIPE_KEY] = recipe.to_yaml()
    model.metadata_props[VERSION_KEY] = version("edgesparse")
    model.metadata_props[LAYERS_KEY] = json.dumps(done, sort_keys=True)
    return PassResult(model, True, tuple(reasons))


def prune_one(model: ir.Model, layer: LayerInfo, choice: Choice, criterion: str = "magnitude") -> Mask:
    """Set the weights of one layer to zero that the criterion values least; returns the mask of those kept."""
    weight = canonical_weight(model, layer)
    mask = best_mask(choice.pattern, saliency(criterion, weight), choice.density)
    set_canonical_weight(model, layer, np.where(mask, weight, weight.dtype.type(0)))
    return mask


def keep_reason(layer: LayerInfo, choice: Choice | None) -> Reason | None:
    """Why the layer is not pruned, or None if it is."""
    if choice is None:
        why = "the recipe does not select it"
        if not layer.default:
            why += f": {layer.kind} layers with {layer.groups} groups are pruned only where named"
        return Reason("not-selected", why, layer.name)
    if choice.pattern.kind == "dense" or choice.density == 1.0:
        return Reason("dense-by-recipe", "the recipe keeps it dense", layer.name)
    if why := misfit(choice.pattern, layer.shape):
        return Reason("pattern-misfit", why, layer.name)
    per_group = layer.shape[0] // layer.groups
    tall = choice.pattern.kind in ("group", "block")
    if layer.groups > 1 and layer.kind != "depthwise" and tall and per_group % choice.pattern.n:
        why = f"{choice.pattern} would reach over the border of convolution groups of {per_group} channels"
        return Reason("pattern-misfit", why, layer.name)
    wanted = choice.density if choice.density is not None else fixed_density(choice.pattern, layer.shape)
    if wanted and not kept_units(choice.pattern, layer.shape, wanted):
        return Reason("rounds-to-zero", f"density {wanted:g} would leave no weight at all", layer.name)
    return None
