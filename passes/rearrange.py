"""Rearrange: permute channels all through the network so that the pattern's groups cost little. Dense in, dense out.

Sets of coupled channels come from `couple`, what each layer has at stake from `sides`, and the search for an order from
`permute`. A set that several pruned layers touch (a chain of residuals; outputs of one layer and inputs of the next) is
searched for all of them together. Where a pattern binds outputs and inputs at once, sets are searched in turn until
nothing moves any more. Among orders that retain the same, the one is taken that balances non-zeros (`balance`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgesparse.errors import Reason
from edgesparse.passes.balance import balanced
from edgesparse.passes.couple import Coupling, apply_order, couple
from edgesparse.passes.graph import Array
from edgesparse.passes.layers import LayerInfo, canonical_weight, weight_layers
from edgesparse.passes.observe import Moments, Tick
from edgesparse.passes.permute import by_norm, retained, search, unstructured
from edgesparse.passes.reconstruct import weighted
from edgesparse.passes.score import magnitude
from edgesparse.passes.sides import Place, Side, group_sizes, places_of, spaces_of
from edgesparse.passes.surgeon import obs
from edgesparse.recipe import Choice

_SWEEPS = 3
"""How often sets are searched anew where what one is worth depends on the order of others."""
_EQUAL = 1e-7
"""Difference of retained saliency that is rounding: sums of float32 in another order."""

Orders = dict[int, Array]


@dataclass(frozen=True)
class SetReport:
    """Retained saliency, mean over the layers at a set: in the given order, sorted by norm, found, and of any mask."""

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
    worth: Mapping[str, Array] | None = None,
    balance: bool = True,
) -> tuple[list[SetReport], list[Reason]]:
    """Permute in place. `choices` has the pattern and density of each layer to be pruned, `moments` the dense
    network's inputs (layers without are judged by magnitude), `worth` what an error of each of their output channels
    costs, where that counts. `method` is "search" or "norm"; after a search, `balance` puts whole groups in an order
    that gives threads equal work.

    Returns what each set gained, and for every layer in groups that could not be rearranged a Reason.
    """
    coupling = couple(model)
    stakes = stakes_of(model, coupling, choices, moments, worth)
    sets = stakes.sets
    order: Orders = {}
    twofold = any(min(group_sizes(side.choice)) > 1 for sides in sets.values() for side in sides)
    sweeps = _SWEEPS if twofold and method == "search" else 1
    for sweep in range(sweeps):
        moved = False
        for number, (space, sides) in enumerate(sets.items()):
            if tick:
                tick((sweep + number / len(sets)) / sweeps, sides[0].layer.name)
            moved |= _improve(coupling, order, space, sides, stakes.seen[space], method, seed)
        if not moved:
            break
    if method == "search" and balance:
        for space, sides in sets.items():
            _balance(coupling, order, space, sides, stakes.seen[space])
    reports = [_report(coupling, order, space, sides) for space, sides in sets.items()]
    apply_order(model, coupling, order)
    return reports, list(stakes.reasons)


@dataclass(frozen=True)
class Stakes:
    """What the layers whose pattern has groups have at stake, by set of channels.

    Attributes
    ----------
    sets:
        The sides that an order is searched for.
    seen:
        The sides that an order is judged by: all whose groups the set's channels are in, those that no order is
        searched for as well.
    reasons:
        Why sides are not among `sets`.
    """

    sets: Mapping[int, Sequence[Side]]
    seen: Mapping[int, Sequence[Side]]
    reasons: Sequence[Reason]


def stakes_of(
    model: ir.Model,
    coupling: Coupling,
    choices: Mapping[str, Choice],
    moments: Mapping[str, Moments],
    worth: Mapping[str, Array] | None = None,
) -> Stakes:
    """The sides of all layers of `choices` whose pattern has groups; see `rearrange`."""
    sets: dict[int, list[Side]] = {}
    seen: dict[int, list[Side]] = {}
    reasons: list[Reason] = []
    for layer in weight_layers(model):
        choice = choices.get(layer.name)
        if choice is None or max(group_sizes(choice)) < 2:
            continue
        scores = _scores(model, layer, choice, moments.get(layer.name), (worth or {}).get(layer.name))
        for output, size in zip((True, False), group_sizes(choice), strict=True):
            if size < 2:
                continue
            places, more = places_of(coupling, layer, output=output, group=size)
            reasons += more
            for place in places:
                before = sets.setdefault(place.space, [])
                if before and place.own != before[0].place.own:
                    reasons.append(Reason("not-rearranged", "its channels are those of heads elsewhere", layer.name))
                    continue
                before.append(Side(layer, place, output, choice, scores))
            for space in spaces_of(coupling, layer, output=output):
                seen.setdefault(space, []).append(Side(layer, Place(space, 0), output, choice, scores))
    return Stakes(sets, seen, reasons)


def _improve(
    coupling: Coupling, order: Orders, space: int, sides: Sequence[Side], seen: Sequence[Side], method: str, seed: int
) -> bool:
    """Put a better order of one set into `order`; whether there was one."""
    found = _found(coupling, order, sides, method, seed)
    # a layer that reads and writes the same set has both its sides moved at once: judged only after the fact
    before, after = (_mean(coupling, one, seen) for one in (order, order | {space: found}))
    if method == "search" and after <= before:
        return False
    order[space] = found
    return True


def _found(coupling: Coupling, order: Orders, sides: Sequence[Side], method: str, seed: int = 0) -> Array:
    """The set's order by the search or by norm; int64 `[channels]`, or `[heads, channels]` where each has its own."""
    views, place = [side.view(coupling, order) for side in sides], sides[0].place
    found = by_norm(views, place.block) if method == "norm" else search(views, block=place.block, seed=seed)
    present = order.get(place.space)
    if not place.own:
        return found if present is None else present[found]
    heads = found.reshape(place.repeat, place.size) - np.arange(place.repeat)[:, None] * place.size
    return heads if present is None else np.take_along_axis(present, heads, axis=1)


def _balance(coupling: Coupling, order: Orders, space: int, sides: Sequence[Side], seen: Sequence[Side]) -> None:
    """Put whole groups of one set in an order that balances the non-zeros, if nothing is lost by it."""
    found = balanced(coupling, order, sides)
    if found is not None and _mean(coupling, order | {space: found}, seen) >= _mean(coupling, order, seen) - _EQUAL:
        order[space] = found


def _mean(coupling: Coupling, order: Orders, sides: Sequence[Side]) -> float:
    """Mean over the layers: from either of its sides a layer retains the same."""
    views = {side.layer.name: side.whole(coupling, order) for side in sides}
    return float(np.mean([retained([view], np.arange(len(view.matrix))) for view in views.values()]))


def _report(coupling: Coupling, order: Orders, space: int, sides: Sequence[Side]) -> SetReport:
    return SetReport(
        space,
        sides[0].place.size,
        tuple(dict.fromkeys(side.layer.name for side in sides)),
        _mean(coupling, {}, sides),
        _mean(coupling, {space: _found(coupling, {}, sides, "norm")}, sides),
        _mean(coupling, order, sides),
        unstructured([side.whole(coupling, {}) for side in sides]),
    )


def _scores(model: ir.Model, layer: LayerInfo, choice: Choice, moments: Moments | None, worth: Array | None) -> Array:
    weight = canonical_weight(model, layer)
    scores = weighted(magnitude(weight) if moments is None else obs(weight, moments), worth)
    if choice.pattern.kind == "block":
        scores = scores.sum(axis=2, keepdims=True)
    return scores.astype(np.float32)
