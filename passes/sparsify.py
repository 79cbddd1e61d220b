"""The whole recipe in one go: rearrange, allocate, prune and repair with calibration data.

    dense -> choose (criterion, where it is left open) -> rearrange (dense, channels permuted)
          -> allocate (densities) -> repair in order -> sparse

Every number follows from model, recipe, samples and seed: the same inputs give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np
import onnx_ir as ir

from edgesparse.budget import Budget
from edgesparse.errors import EdgesparseError, Reason, UsageError
from edgesparse.passes import allocate
from edgesparse.passes.base import Pass, PassResult
from edgesparse.passes.choose import Weigher, choose_criterion
from edgesparse.passes.cluster import cluster_model
from edgesparse.passes.graph import Array
from edgesparse.passes.layers import LayerInfo, canonical_weight, weight_layers
from edgesparse.passes.observe import Feeds, Moments, Tick, input_moments, output_spread
from edgesparse.passes.prune import LAYERS_KEY, RECIPE_KEY, VERSION_KEY, keep_reason, prune_one
from edgesparse.passes.rearrange import SetReport, rearrange
from edgesparse.passes.reconstruct import Repair, can_observe, repair_in_order, scores
from edgesparse.passes.score import CRITERIA
from edgesparse.pattern import SparsePattern, density, kept_units
from edgesparse.recipe import AUTO, Choice, Recipe
from edgesparse.sections import Fitting, Rearrangement, Recalibration, Reconstruction

ORDER_KEY = "edgesparse.rearrangement"
"""Metadata: per set of channels, the layers that write to it and the retained saliency given, sorted, found (JSON)."""


CRITERION_KEY = "edgesparse.criterion"
"""Metadata: the criterion chosen, and the divergence from the dense model by criterion, on samples held back (JSON)."""

FITTING_KEY = "edgesparse.fitting"
"""Metadata: divergence from the dense model on samples held back, before and after fitting by gradient (JSON)."""

Pricer = Callable[[ir.Model, Sequence[LayerInfo], SparsePattern, Budget], allocate.Prices]
"""What a dense model costs with the given layers in a pattern, in the budget's kind: from those who know a target."""


@dataclass(frozen=True)
class Measured:
    """What an allocation by sensitivity stands on: the layers it is over, what each loses, and what it costs; and how
    they were pruned for that.
    """

    layers: tuple[LayerInfo, ...]
    losses: tuple[allocate.Sensitivity, ...]
    prices: allocate.Prices
    repair: Repair

    def densities(self, recipe: Recipe) -> dict[str, float]:
        """By layer name, for the recipe's budget, or else its density over the multiply-adds of the layers."""
        section = recipe.allocation
        if section is not None and section.budget:
            return allocate.within(self.layers, self.losses, self.prices, amount_of(section.budget, self.prices))
        assert recipe.density is not None
        return allocate.by_sensitivity(self.layers, self.losses, recipe.density)


Fitter = Callable[[ir.Model, ir.Model, Iterable[Feeds], Fitting, int], Mapping[str, float]]
"""Fits a sparse model in place to a dense one by gradient, and says what came of it: from those who know torch.

An EdgesparseError where it cannot, and the model is then as it was.
"""


def calibrated_passes(
    recipe: Recipe,
    inputs: Iterable[Feeds] | None,
    tick: Tick | None = None,
    pricer: Pricer | None = None,
    fitter: Fitter | None = None,
    weigher: Weigher | None = None,
) -> tuple[Pass, ...]:
    """The passes `prune` and, where the recipe has them, `choose`, `rearrange`, `fit` and `cluster`, with samples.

    UsageError where the recipe needs data and there is none, has a fitting and there is no `fitter`, or criterion
    "fisher" and there is no `weigher`.
    """
    if inputs is None and recipe.needs_data:
        raise UsageError(
            "the recipe needs calibration data",
            why="its criterion, reconstruction, recalibration or allocation measures activations",
            fix="give --calibrate DIR, with pictures or .npy files",
        )
    if recipe.criterion == "fisher" and weigher is None:
        raise UsageError("criterion fisher needs gradients", why="nothing here knows them", fix="use sparsify, or obs")
    steps = []
    if recipe.criterion == AUTO and inputs is not None:
        steps.append(Pass("choose", lambda model: choose(model, recipe, inputs, weigher, tick)))
    section = recipe.rearrangement
    if section is not None and section.method in ("search", "norm"):
        steps.append(Pass("rearrange", lambda model: rearrange_model(model, recipe, section, inputs, tick, weigher)))
    fitting = recipe.fitting
    if fitting is not None and fitting.method == "auto" and fitter is None:
        fitting = None
    if fitting is None or fitting.method == "none" or inputs is None:
        steps.append(Pass("prune", lambda model: sparsify(model, recipe, inputs, tick, pricer=pricer, weigher=weigher)))
    else:
        steps += _prune_and_fit(recipe, fitting, inputs, tick, pricer, fitter, weigher)
    if section is not None and section.method == "cluster":
        steps.append(Pass("cluster", lambda model: _cluster(model, recipe.seed, tick)))
    return tuple(steps)


def _prune_and_fit(
    recipe: Recipe,
    fitting: Fitting,
    inputs: Iterable[Feeds],
    tick: Tick | None,
    pricer: Pricer | None,
    fitter: Fitter | None,
    weigher: Weigher | None,
) -> tuple[Pass, Pass]:
    """The passes `prune` and `fit`; what was dense before the one is the teacher of the other."""
    if fitter is None:
        raise UsageError("the recipe fits by gradient", why="nothing here knows how", fix="use sparsify, with torch")
    dense: list[ir.Model] = []

    def prune(model: ir.Model) -> PassResult:
        dense[:] = [model.clone()]
        return sparsify(model, recipe, inputs, tick, pricer=pricer, weigher=weigher)

    def fit(model: ir.Model) -> PassResult:
        try:
            told = fitter(model, dense.pop(), inputs, fitting, recipe.seed)
        except EdgesparseError as error:
            if fitting.method != "auto":
                raise
            return PassResult(model, False, (Reason("fitting", f"not fitted by gradient: {error}", "model"),))
        model.metadata_props[FITTING_KEY] = json.dumps(dict(told), sort_keys=True)
        return PassResult(model, True)

    return Pass("prune", prune), Pass("fit", fit)


def choose(
    model: ir.Model, recipe: Recipe, inputs: Iterable[Feeds], weigher: Weigher | None, tick: Tick | None = None
) -> PassResult:
    """Choose the criterion of a recipe that leaves it open, and write it into the metadata. No weight changes."""
    layers = weight_layers(model)
    choices = _guessed(_choices(layers, recipe)[0])
    seen = [one for one in layers if one.name in choices and can_observe(model, one)]
    picked = {one.name: choices[one.name] for one in seen}
    repair = repair_of(replace(recipe, criterion="obs"), model, seen, inputs)
    found = choose_criterion(model, seen, picked, inputs, repair, weigher, seed=recipe.seed, tick=tick)
    told = {"chosen": found.criterion, **{name: round(value, 6) for name, value in found.divergence.items()}}
    model.metadata_props[CRITERION_KEY] = json.dumps(told, sort_keys=True)
    return PassResult(model, False, () if found.reason is None else (found.reason,))


def settled(recipe: Recipe, model: ir.Model) -> Recipe:
    """The recipe with the criterion that `choose` found for the model, if it leaves that open."""
    if recipe.criterion != AUTO:
        return recipe
    return replace(recipe, criterion=json.loads(model.metadata_props[CRITERION_KEY])["chosen"])


def _guessed(choices: Mapping[str, Choice]) -> dict[str, Choice]:
    """A budget says densities only later: half is where order and criterion matter most."""
    return {
        name: one if one.density or one.pattern.fixed else replace(one, density=0.5) for name, one in choices.items()
    }


def _cluster(model: ir.Model, seed: int, tick: Tick | None) -> PassResult:
    """Bring channels together whose zeros are in the same places, and write into the metadata what that brought."""
    reports, reasons = cluster_model(model, seed=seed, tick=tick)
    rows = [{**vars(one), "layers": list(one.layers)} for one in reports]
    model.metadata_props[ORDER_KEY] = json.dumps(rows, sort_keys=True)
    return PassResult(model, bool(reports), tuple(reasons))


def rearrange_model(
    model: ir.Model,
    recipe: Recipe,
    section: Rearrangement,
    inputs: Iterable[Feeds] | None,
    tick: Tick | None = None,
    weigher: Weigher | None = None,
) -> PassResult:
    """Permute channels in place for the patterns of `recipe`; without samples by magnitude."""
    recipe = settled(recipe, model)
    layers = weight_layers(model)
    choices = _guessed(_choices(layers, recipe)[0])
    moments: Mapping[str, Moments] = {}
    worth: Mapping[str, Array] = {}
    if inputs is not None:
        seen = [one for one in layers if one.name in choices and can_observe(model, one)]
        moments = input_moments(model, seen, inputs)
        worth = repair_of(recipe, model, seen, inputs, weigher).worth
    reports, reasons = rearrange(
        model, choices, moments, seed=recipe.seed, method=section.method, tick=tick, worth=worth
    )
    model.metadata_props[ORDER_KEY] = json.dumps([_report(one) for one in reports], sort_keys=True)
    return PassResult(model, bool(reports), tuple(reasons))


def sparsify(
    model: ir.Model,
    recipe: Recipe,
    inputs: Iterable[Feeds] | None,
    tick: Tick | None = None,
    *,
    pricer: Pricer | None = None,
    measured: Measured | None = None,
    weigher: Weigher | None = None,
) -> PassResult:
    """Allocate, prune and repair in place, and write recipe and densities into the metadata.

    `measured` saves measuring sensitivities and prices again for another budget or density of the same recipe.
    """
    recipe = settled(recipe, model)
    layers = weight_layers(model)
    choices, reasons = _choices(layers, recipe)
    if measured is None and recipe.allocation is not None and recipe.allocation.method == "sensitivity":
        measured = measure(model, recipe, inputs, tick, pricer, weigher)
    if measured is not None:
        repair = measured.repair
    else:
        repair = repair_of(recipe, model, [one for one in layers if one.name in choices], inputs, weigher)
    chosen = [one for one in layers if one.name in choices]
    choices = _allocated(model, chosen, choices, recipe, repair, inputs, measured)
    for one in chosen:
        if choices[one.name].density is None and not choices[one.name].pattern.fixed:
            reasons.append(
                Reason("no-density", "the budget is spread over other layers, and no density is given", one.name)
            )
            choices.pop(one.name)
    chosen = [one for one in chosen if one.name in choices]
    seen = {one.name for one in chosen if inputs is not None and can_observe(model, one)}
    done: dict[str, dict[str, object]] = {}
    criterion = recipe.criterion if recipe.criterion in CRITERIA else "magnitude"
    for layer in chosen:
        if layer.name not in seen:
            mask = prune_one(model, layer, choices[layer.name], criterion)
            done[layer.name] = {"pattern": str(choices[layer.name].pattern), "density": round(density(mask), 6)}
            if inputs is not None:
                why = f"a {layer.kind} layer like this is pruned by {criterion}, without repair"
                reasons.append(Reason("no-statistics", why, layer.name))
    if seen and inputs is not None:
        picked = {name: choice for name, choice in choices.items() if name in seen and choice.density != 1.0}
        masks, more = repair_in_order(model, picked, inputs, repair, tick)
        reasons += more
        for name, mask in masks.items():
            done[name] = {"pattern": str(choices[name].pattern), "density": round(density(mask), 6)}
    model.metadata_props[RECIPE_KEY] = recipe.to_yaml()
    model.metadata_props[VERSION_KEY] = version("edgesparse")
    model.metadata_props[LAYERS_KEY] = json.dumps(done, sort_keys=True)
    return PassResult(model, True, tuple(reasons))


def repair_of(
    recipe: Recipe,
    model: ir.Model,
    layers: Iterable[LayerInfo],
    inputs: Iterable[Feeds] | None,
    weigher: Weigher | None = None,
) -> Repair:
    """What the recipe's sections mean for each layer of a dense model. What is left out is not done."""
    worth: Mapping[str, Array] = {}
    if recipe.criterion == "fisher" and weigher is not None and inputs is not None:
        worth = weigher(model, [one for one in layers if can_observe(model, one)], inputs, recipe.seed)
    fit = recipe.reconstruction or Reconstruction(method="none")
    tune = recipe.recalibration or Recalibration(layers="none")
    return Repair(
        criterion=recipe.criterion,
        method=fit.method,
        recalibrate=tune.layers != "none",
        others=tune.layers == "all",
        damping=fit.damping,
        worth=worth,
    )


def _choices(layers: list[LayerInfo], recipe: Recipe) -> tuple[dict[str, Choice], list[Reason]]:
    choices = recipe.resolve([layer.candidate() for layer in layers])
    reasons = []
    for layer in layers:
        reason = keep_reason(layer, choices.get(layer.name))
        if reason is not None:
            reasons.append(reason)
            choices.pop(layer.name, None)
    return choices, reasons


def measure(
    model: ir.Model,
    recipe: Recipe,
    inputs: Iterable[Feeds] | None,
    tick: Tick | None = None,
    pricer: Pricer | None = None,
    weigher: Weigher | None = None,
) -> Measured | None:
    """Sensitivities of the layers that the recipe leaves to the allocation, and their prices; None if there are none.

    UsageError for a budget of latency or size without a `pricer`, and for a pattern whose density is fixed.
    """
    recipe = settled(recipe, model)
    layers = weight_layers(model)
    choices, _ = _choices(layers, recipe)
    free = _free(model, [one for one in layers if one.name in choices], choices, recipe)
    budget = Budget.parse(recipe.allocation.budget) if recipe.allocation and recipe.allocation.budget else None
    if budget is not None and recipe.pattern.fixed:
        raise UsageError(
            f"a budget cannot be met by pattern {recipe.pattern}",
            why="its density is fixed",
            fix="take a pattern of any density, such as group:4x1",
        )
    if not free or (budget is None and recipe.density is None):
        return None
    if inputs is None:
        raise UsageError("allocation by sensitivity needs calibration data", fix="give --calibrate DIR")
    names = {one.name for one in free}
    others = [one for one in layers if one.name not in names]
    if pricer is not None and budget is not None:
        prices = pricer(model, free, recipe.pattern, budget)
    elif budget is None or budget.kind == "flops":
        prices = allocate.flop_prices(free, others)
    else:
        raise UsageError(
            f"budget {budget} needs a target", why="what it costs there must be known", fix="give --target"
        )
    if budget is not None:
        amount_of(str(budget), prices)  # says what is wrong before minutes are spent on sensitivities
    repair = repair_of(recipe, model, [one for one in layers if one.name in choices], inputs, weigher)
    losses = allocate.sensitivities(model, free, recipe.pattern, inputs, repair, tick=tick)
    return Measured(tuple(free), tuple(losses), prices, repair)


def amount_of(text: str, prices: allocate.Prices) -> float:
    """A budget in the unit of `prices`. UsageError for seconds where only cycles are known."""
    budget = Budget.parse(text)
    if budget.relative:
        return budget.amount * prices.dense
    if budget.kind == "latency" and prices.unit != "s":
        raise UsageError(
            f"budget {budget} needs measured times",
            why=f"for this target {prices.unit} are counted, not seconds",
            fix="give a share such as latency=0.5x, or --measured on the target itself",
        )
    return budget.amount


def _free(
    model: ir.Model, chosen: Sequence[LayerInfo], choices: Mapping[str, Choice], recipe: Recipe
) -> list[LayerInfo]:
    """The layers whose density the allocation chooses: those without a rule of their own that can be observed."""
    own = Choice(recipe.pattern, recipe.density)
    return [one for one in chosen if choices[one.name] == own and can_observe(model, one)]


def _allocated(
    model: ir.Model,
    chosen: list[LayerInfo],
    choices: dict[str, Choice],
    recipe: Recipe,
    repair: Repair,
    inputs: Iterable[Feeds] | None,
    measured: Measured | None,
) -> dict[str, Choice]:
    """Densities by the recipe's allocation; layers whose own rule gives a density keep it."""
    method = recipe.allocation.method if recipe.allocation else "uniform"
    if method == "sensitivity":
        return _spread(chosen, choices, measured.densities(recipe) if measured is not None else {})
    layers = _free(model, chosen, choices, recipe)
    if method == "uniform" or recipe.density is None or not layers:
        return choices
    if method == "erk":
        shares = allocate.erk(layers, recipe.density)
    else:
        assert inputs is not None
        moments, spread = input_moments(model, layers, inputs), output_spread(model, layers, inputs)
        found = {}
        for one in layers:
            saliency = scores(
                canonical_weight(model, one), moments[one.name], spread[one.name], repair, repair.worth.get(one.name)
            )
            # error relative to the layer's own output, or what it costs: layers of different scale can be compared
            scale = 1.0 if one.name in repair.worth else max(float(np.sum(spread[one.name].variance)), 1e-30)
            found[one.name] = saliency / scale * max(one.macs, 1)
        shares = allocate.global_threshold(layers, found, recipe.density)
    return _spread(chosen, choices, shares)


def _spread(layers: Iterable[LayerInfo], choices: dict[str, Choice], shares: Mapping[str, float]) -> dict[str, Choice]:
    """The choices with these densities; where one would leave a layer no weight at all, the least that does not."""
    found = dict(choices)
    for layer in layers:
        if layer.name not in shares:
            continue
        pattern, share = choices[layer.name].pattern, shares[layer.name]
        more = (share, *(one for one in allocate.GRID if one > share), 1.0)
        found[layer.name] = Choice(pattern, next(one for one in more if kept_units(pattern, layer.shape, one)))
    return found


def _report(one: SetReport) -> dict[str, object]:
    return {
        "channels": one.size,
        "layers": list(one.layers),
        "given": round(one.given, 6),
        "sorted": round(one.sorted, 6),
        "found": round(one.found, 6),
        "unstructured": round(one.free, 6),
    }
