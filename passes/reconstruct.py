"""Prune and repair, layer after layer in graph order, on the activations that the pruned network really has.

For each layer: moments of its inputs in the network pruned so far; the mask; weights refitted on it towards the
outputs that the dense weights give on these inputs; then a scale and a shift per output channel, so that mean and
variance of the outputs are those of the dense network. The last step is what batch-norm recalibration is for a
graph whose batch norms are folded. Symmetric targets (dense weights on pruned inputs) are on purpose: towards the
dense network's own outputs, the fit shrinks the outputs, layer by layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgesparse.errors import Reason
from edgesparse.passes.graph import Array, constant, only_user, set_constant
from edgesparse.passes.layers import LayerInfo, canonical_weight, set_canonical_weight, weight_layers
from edgesparse.passes.observe import Feeds, Moments, Spread, Tick, advance, input_moments, node_named, output_spread
from edgesparse.passes.projected import projected
from edgesparse.passes.score import CRITERIA, saliency
from edgesparse.passes.surgeon import DAMPING, obs, output_of, refit, rescale, wanda
from edgesparse.passes.swaps import can_swap, swapped
from edgesparse.pattern import Mask, SparsePattern, best_mask
from edgesparse.recipe import Choice

LEAST_WORTH = 1e-3
"""Share of a layer's mean worth that every output channel has at least."""


@dataclass(frozen=True)
class Repair:
    """How layers are pruned and repaired.

    Attributes
    ----------
    criterion:
        "magnitude", "l1", "wanda", "obs", or "fisher": obs with each output channel weighted by `worth`.
    method:
        "refit" fits the kept weights anew, "swap" changes the mask only (`swaps`), "projected" finds mask and weights
        by projected gradient (`projected`), "none" leaves both.
    recalibrate:
        Match each output channel's mean and variance to the dense network's.
    others:
        Recalibrate layers that are not pruned (depthwise) as well.
    row_power:
        Output channels count with their dense variance to the power of minus this: 0 for plain output error, 1 for
        error relative to each channel's own variance.
    damping:
        See `surgeon.damped`.
    worth:
        By layer name, float64 `[Cout]`, what an error of each output channel costs.
    """

    criterion: str = "obs"
    method: str = "refit"
    recalibrate: bool = True
    others: bool = True
    row_power: float = 0.0
    damping: float = DAMPING
    worth: Mapping[str, Array] = field(default_factory=dict)


def prune_layer(
    weight: Array,
    bias: Array,
    moments: Moments,
    choice: Choice,
    dense: Spread,
    repair: Repair,
    worth: Array | None = None,
) -> tuple[Array, Array, Mask]:
    """One layer's new weight `[Cout, Cin / groups, taps]`, new bias `[Cout]` (float64) and mask.

    `worth` `[Cout]` weighs the output channels, for criterion "fisher".
    """
    mask = best_mask(choice.pattern, scores(weight, moments, dense, repair, worth), choice.density)
    if repair.method == "swap" and can_swap(choice.pattern):
        mask = swapped(weight, mask, moments, choice.pattern, damping=repair.damping)
    kept = weight * mask.astype(np.float64)
    if repair.method == "refit":
        kept = refit(weight, mask, moments, repair.damping)
    elif repair.method == "projected":
        kept, mask = projected(weight, mask, moments, choice.pattern, choice.density, damping=repair.damping)
    have = output_of(kept, bias, moments)
    if repair.recalibrate:
        scale, shift = rescale(have, dense)
        return kept * scale[:, None, None], scale * bias + shift, mask
    if repair.method != "none":  # the fit is of centred data: the bias keeps the mean of the layer's own dense output
        bias = bias + output_of(weight, bias, moments).mean - have.mean
    return kept, bias, mask


def scores(weight: Array, moments: Moments, dense: Spread, repair: Repair, worth: Array | None = None) -> Array:
    """Saliency by `repair.criterion`, float64, canonical."""
    if repair.criterion in CRITERIA:
        return saliency(repair.criterion, weight)
    found = wanda(weight, moments) if repair.criterion == "wanda" else obs(weight, moments, repair.damping)
    if repair.row_power:
        variance = np.maximum(dense.variance, 1e-6 * max(float(dense.variance.max()), 1e-30))
        found = found * (variance**-repair.row_power)[:, None, None]
    return weighted(found, worth)


def weighted(saliency: Array, worth: Array | None) -> Array:
    """Saliencies `[Cout, Cin / groups, taps]` times what their output channels are worth `[Cout]`, if that is known.

    No channel counts for less than a thousandth of the mean: few samples may say of one that nothing depends on it.
    """
    if worth is None:
        return saliency
    return saliency * np.maximum(worth, LEAST_WORTH * max(float(worth.mean()), 1e-30))[:, None, None]


def repair_in_order(
    model: ir.Model,
    choices: Mapping[str, Choice],
    inputs: Iterable[Feeds],
    repair: Repair,
    tick: Tick | None = None,
) -> tuple[dict[str, Mask], list[Reason]]:
    """Prune the layers of `choices` in place, in graph order; masks by layer, and a Reason for what was not repaired.

    `inputs` is read twice where the activations kept on the way fit into memory (`observe.MAX_CACHE`).
    """
    layers = [one for one in weight_layers(model) if can_observe(model, one)]
    reasons = [
        Reason("no-statistics", f"{one.kind} layers are pruned without calibration", one.name)
        for one in weight_layers(model)
        if one.name in choices and one not in layers
    ]
    if repair.method == "swap":
        reasons += [
            Reason("no-swaps", f"units of {choice.pattern} are bound to places: the mask stays as it is", name)
            for name, choice in choices.items()
            if not can_swap(choice.pattern)
        ]
    follow = _after_first(layers, choices) if repair.others and repair.recalibrate else []
    todo = [one for one in layers if one.name in choices or one.name in follow]
    dense = output_spread(model, todo, inputs)
    masks: dict[str, Mask] = {}
    for number, layer in enumerate(todo):
        if tick:
            tick(number / len(todo), layer.name)
        inputs = advance(model, layer.name, inputs)
        weight, bias = canonical_weight(model, layer), bias_of(model, layer)
        if layer.name in choices:
            moments = input_moments(model, [layer], inputs)[layer.name]
            new, shift, masks[layer.name] = prune_layer(
                weight, bias, moments, choices[layer.name], dense[layer.name], repair, repair.worth.get(layer.name)
            )
        else:
            scale, offset = rescale(output_spread(model, [layer], inputs)[layer.name], dense[layer.name])
            new, shift = weight * scale[:, None, None], scale * bias + offset
        store(model, layer, new, shift)
    return masks, reasons


def can_observe(model: ir.Model, layer: LayerInfo) -> bool:
    """Whether moments of the layer's inputs can be gathered, and its bias is a constant vector or absent."""
    node = node_named(model, layer.name)
    plain = node.attributes.get_float("alpha", 1.0) == 1.0 and node.attributes.get_float("beta", 1.0) == 1.0
    if layer.kind == "conv_transpose" or node.attributes.get_int("transA") == 1 or not plain:
        return False
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    array = constant(bias)
    return bias is None or (array is not None and array.size in (1, layer.shape[0]))


def bias_of(model: ir.Model, layer: LayerInfo) -> Array:
    """The layer's bias, float64 `[Cout]`; zeros where there is none."""
    node = node_named(model, layer.name)
    array = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    return np.zeros(layer.shape[0]) + (0.0 if array is None else array.astype(np.float64).reshape(-1))


def store(model: ir.Model, layer: LayerInfo, weight: Array, bias: Array) -> None:
    """Write weight and bias back in the weight's dtype. What a MatMul has no bias for goes into the Add behind it,
    if there is one with a constant; without one, mean and scale of its outputs are left to what follows.
    """
    dtype = canonical_weight(model, layer).dtype
    set_canonical_weight(model, layer, weight.astype(dtype))
    node = node_named(model, layer.name)
    if layer.op_type != "MatMul":
        set_constant(model, node, 2, bias.astype(dtype), f"{layer.weight}_bias")
        return
    slot = _added(node, layer.shape[0])
    if slot is not None and bias.any():
        follower, index = slot
        array = constant(follower.inputs[index])
        assert array is not None
        set_constant(model, follower, index, (array + bias).astype(dtype))


def _added(node: ir.Node, size: int) -> tuple[ir.Node, int] | None:
    """The Add that alone reads a product, and which of its inputs is a constant vector of the product's outputs."""
    follower = only_user(node.outputs[0])
    if follower is None or follower.op_type != "Add":
        return None
    for index, value in enumerate(follower.inputs):
        array = constant(value)
        if array is not None and array.size == size and array.shape[-1] == size:
            return follower, index
    return None


def _after_first(layers: list[LayerInfo], choices: Mapping[str, Choice]) -> list[str]:
    """Layers behind the first pruned one that are not pruned: what comes before sees no change. Classifiers stay."""
    names = [one.name for one in layers]
    pruned = [i for i, name in enumerate(names) if name in choices]
    if not pruned:
        return []
    return [one.name for one in layers[pruned[0] :] if one.name not in choices and one.kind in ("depthwise", "conv")]


def uniform(layers: Iterable[LayerInfo], pattern: SparsePattern, density: float | None) -> dict[str, Choice]:
    """The same choice for all `layers`."""
    return {layer.name: Choice(pattern, density) for layer in layers}
