"""Rearrange: permute channels all through the network so that the pattern's groups cost little. Dense in, dense out.

Sets of coupled channels come from `couple`; what an order is worth, and the search for one, from `permute`. With
groups of output channels (group:Nx1) the order of a layer's inputs does not matter to its groups, so every set can
be searched on its own; a set that several pruned layers write to (a chain of residuals) is searched for all of them
together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgesparse.errors import Reason
from edgesparse.passes.couple import Coupling, apply_order, couple
from edgesparse.passes.graph import Array
from edgesparse.passes.layers import LayerInfo, canonical_weight, weight_layers
from edgesparse.passes.observe import Moments, Tick
from edgesparse.passes.permute import View, by_norm, retained, search
from edgesparse.passes.score import magnitude
from edgesparse.passes.surgeon import obs
from edgesparse.recipe import Choice


@dataclass(frozen=True)
class SetReport:
    """Retained saliency, mean over the layers that write to a set: in the given order, sorted by norm, found."""

    space: int
    size: int
    layers: tuple[str, ...]
    given: float
    sorted: float
    found: float
    free: float


def rearrange(
    model: ir.Model,
    choices: Mapping[str, Choice],
    moments: Mapping[str, Moments],
    *,
    seed: int = 0,
    method: str = "search",
    tick: Tick | None = None,
) -> tuple[list[SetReport], list[Reason]]:
    """Permute in place. `choices` has the pattern and density of each layer to be pruned, `moments` the dense
    network's inputs (layers without are judged by magnitude). `method` is "search" or "norm".

    Returns what each set gained, and for every layer in groups that could not be rearranged a Reason.
    """
    coupling = couple(model)
    reasons: list[Reason] = []
    writers: dict[int, list[LayerInfo]] = {}
    for layer in weight_layers(model):
        choice = choices.get(layer.name)
        if choice is None or choice.pattern.kind not in ("group", "block") or choice.pattern.n < 2:
            continue
        space = output_space(coupling, layer)
        if isinstance(space, Reason):
            reasons.append(space)
        else:
            writers.setdefault(space, []).append(layer)
    order: dict[int, Array] = {}
    reports = []
    for number, (space, layers) in enumerate(writers.items()):
        if tick:
            tick(number / len(writers), layers[0].name)
        size = max(choices[layer.name].pattern.n for layer in layers)
        views = [_view(model, layer, choices[layer.name], moments.get(layer.name)) for layer in layers]
        norm = by_norm(views)
        found = norm if method == "norm" else search(views, size, seed=seed)
        order[space] = found
        reports.append(_report(space, layers, views, size, norm, found))
    apply_order(model, coupling, order)
    return reports, reasons


def _report(space: int, layers: list[LayerInfo], views: list[View], size: int, norm: Array, found: Array) -> SetReport:
    plain = np.arange(len(found))
    return SetReport(
        space,
        len(found),
        tuple(layer.name for layer in layers),
        retained(views, plain, size),
        retained(views, norm, size),
        retained(views, found, size),
        retained(views, plain, 1),
    )


def output_space(coupling: Coupling, layer: LayerInfo) -> int | Reason:
    """The space of a layer's output channels, or why its channels stay where they are."""
    axis = coupling.axis(layer.weight, _output_axis(layer))
    if len(axis) != 1 or len(axis[0]) != 1:
        return Reason("not-rearranged", "its output channels fall into several sets", layer.name)
    reason = coupling.spaces.reason(axis[0][0])
    if reason is not None:
        return Reason("not-rearranged", f"{reason.message} ({reason.node})", layer.name)
    return axis[0][0]


def _output_axis(layer: LayerInfo) -> int:
    if layer.op_type == "Conv" or (layer.op_type == "Gemm" and layer.trans_b):
        return 0
    return 1


def _view(model: ir.Model, layer: LayerInfo, choice: Choice, moments: Moments | None) -> View:
    weight = canonical_weight(model, layer)
    scores = magnitude(weight) if moments is None else obs(weight, moments)
    density = 1.0 if choice.density is None else choice.density
    if choice.pattern.m > 1:  # what is kept or dropped together along the inputs competes as one
        scores = np.add.reduceat(scores, np.arange(0, scores.shape[1], choice.pattern.m), axis=1)
    if choice.pattern.kind == "block":
        scores = scores.sum(axis=2)
    return View(scores.reshape(len(scores), -1).astype("float32"), density)
