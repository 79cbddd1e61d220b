"""The whole recipe in one go: rearrange, allocate, prune and repair with calibration data.

    dense -> rearrange (dense, channels permuted) -> allocate (densities) -> repair in order -> sparse

Every number follows from model, recipe, samples and seed: the same inputs give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import onnx_ir as ir

from edgesparse.errors import Reason, UsageError
from edgesparse.passes import allocate
from edgesparse.passes.base import Pass, PassResult
from edgesparse.passes.layers import LayerInfo, canonical_weight, weight_layers
from edgesparse.passes.observe import Feeds, Moments, Tick, input_moments, output_spread
from edgesparse.passes.prune import LAYERS_KEY, RECIPE_KEY, VERSION_KEY, keep_reason, prune_one
from edgesparse.passes.rearrange import SetReport, rearrange
from edgesparse.passes.reconstruct import Repair, can_observe, repair_in_order, scores
from edgesparse.pattern import check_available, density
from edgesparse.recipe import Choice, Recipe
from edgesparse.sections import Rearrangement, Recalibration, Reconstruction

ORDER_KEY = "edgesparse.rearrangement"
"""Metadata: per set of channels, the layers that write to it and the retained saliency given, sorted, found (JSON)."""


def calibrated_passes(recipe: Recipe, inputs: Iterable[Feeds] | None, tick: Tick | None = None) -> tuple[Pass, ...]:
    """The passes `rearrange` (where the recipe has it) and `prune`, with calibration samples.

    UsageError where the recipe needs data and there is none.
    """
    if inputs is None and recipe.needs_data:
        raise UsageError(
            "the recipe needs calibration data",
            why="its criterion, reconstruction, recalibration or allocation measures activations",
            fix="give --calibrate DIR, with pictures or .npy files",
        )
    steps = []
    section = recipe.rearrangement
    if section is not None and section.method != "none":
        steps.append(Pass("rearrange", lambda model: rearrange_model(model, recipe, section, inputs, tick)))
    return (*steps, Pass("prune", lambda model: sparsify(model, recipe, inputs, tick)))


def rearrange_model(
    model: ir.Model, recipe: Recipe, section: Rearrangement, inputs: Iterable[Feeds] | None, tick: Tick | None = None
) -> PassResult:
    """Permute channels in place for the patterns of `recipe`; without samples by magnitude."""
    layers = weight_layers(model)
    choices, _ = _choices(layers, recipe)
    moments: Mapping[str, Moments] = {}
    if inputs is not None:
        seen = [one for one in layers if one.name in choices and can_observe(model, one)]
        moments = input_moments(model, seen, inputs)
    reports, reasons = rearrange(model, choices, moments, seed=recipe.seed, method=section.method, tick=tick)
    model.metadata_props[ORDER_KEY] = json.dumps([_report(one) for one in reports], sort_keys=True)
    return PassResult(model, bool(reports), tuple(reasons))


def sparsify(model: ir.Model, recipe: Recipe, inputs: Iterable[Feeds] | None, tick: Tick | None = None) -> PassResult:
    """Allocate, prune and repair in place, and write recipe and densities into the metadata."""
    layers = weight_layers(model)
    choices, reasons = _choices(layers, recipe)
    repair = repair_of(recipe)
    chosen = [one for one in layers if one.name in choices]
    choices = _allocated(model, chosen, choices, recipe, repair, inputs, tick)
    seen = {one.name for one in chosen if inputs is not None and can_observe(model, one)}
    done: dict[str, dict[str, object]] = {}
    for layer in chosen:
        if layer.name not in seen:
            mask = prune_one(model, layer, choices[layer.name])
            done[layer.name] = {"pattern": str(choices[layer.name].pattern), "density": round(density(mask), 6)}
            if inputs is not None:
                why = f"a {layer.kind} layer like this is pruned by magnitude, without repair"
                reasons.append(Reason("no-statistics", why, layer.name))
    if seen and inputs is not None:
        picked = {name: choice for name, choice in choices.items() if name in seen and choice.density != 1.0}
        masks, _ = repair_in_order(model, picked, inputs, repair, tick)
        for name, mask in masks.items():
            done[name] = {"pattern": str(choices[name].pattern), "density": round(density(mask), 6)}
    model.metadata_props[RECIPE_KEY] = recipe.to_yaml()
    model.metadata_props[VERSION_KEY] = version("edgesparse")
    model.metadata_props[LAYERS_KEY] = json.dumps(done, sort_keys=True)
    return PassResult(model, True, tuple(reasons))


def repair_of(recipe: Recipe) -> Repair:
    """What the recipe's sections mean for each layer. What is left out is not done."""
    fit = recipe.reconstruction or Reconstruction(method="none")
    tune = recipe.recalibration or Recalibration(layers="none")
    return Repair(
        criterion=recipe.criterion,
        refit=fit.method == "refit",
        recalibrate=tune.layers != "none",
        others=tune.layers == "all",
        damping=fit.damping,
    )


def _choices(layers: list[LayerInfo], recipe: Recipe) -> tuple[dict[str, Choice], list[Reason]]:
    choices = recipe.resolve([layer.candidate() for layer in layers])
    for choice in choices.values():
        check_available(choice.pattern)
    reasons = []
    for layer in layers:
        reason = keep_reason(layer, choices.get(layer.name))
        if reason is not None:
            reasons.append(reason)
            choices.pop(layer.name, None)
    return choices, reasons


def _allocated(
    model: ir.Model,
    chosen: list[LayerInfo],
    choices: dict[str, Choice],
    recipe: Recipe,
    repair: Repair,
    inputs: Iterable[Feeds] | None,
    tick: Tick | None,
) -> dict[str, Choice]:
    """Densities by the recipe's allocation; layers whose own rule gives a density keep it."""
    method = recipe.allocation.method if recipe.allocation else "uniform"
    if method == "uniform":
        return choices
    own = Choice(recipe.pattern, recipe.density)
    layers = [one for one in chosen if choices[one.name] == own and can_observe(model, one)]
    if recipe.density is None or not layers:
        return choices
    if method == "erk":
        shares = allocate.erk(layers, recipe.density)
    elif method == "global":
        assert inputs is not None
        moments, spread = input_moments(model, layers, inputs), output_spread(model, layers, inputs)
        found = {}
        for one in layers:
            saliency = scores(canonical_weight(model, one), moments[one.name], spread[one.name], repair)
            # error relative to the layer's own output: layers of different scale can be compared
            found[one.name] = saliency / max(float(np.sum(spread[one.name].variance)), 1e-30) * max(one.macs, 1)
        shares = allocate.global_threshold(layers, found, recipe.density)
    else:
        assert inputs is not None
        measured = allocate.sensitivities(model, layers, recipe.pattern, inputs, repair, tick=tick)
        shares = allocate.by_sensitivity(layers, measured, recipe.density)
    return choices | {name: replace(choices[name], density=share) for name, share in shares.items()}


def _report(one: SetReport) -> dict[str, object]:
    return {
        "channels": one.size,
        "layers": list(one.layers),
        "given": round(one.given, 6),
        "sorted": round(one.sorted, 6),
        "found": round(one.found, 6),
        "unstructured": round(one.free, 6),
    }
