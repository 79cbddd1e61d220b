"""Which criterion suits a network: the one with which it agrees better with the dense one, on samples held back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgesparse.errors import Reason, UnsupportedError, UsageError
from edgesparse.passes.agreement import divergence
from edgesparse.passes.allocate import PROBE_SAMPLES, split
from edgesparse.passes.graph import Array
from edgesparse.passes.layers import LayerInfo
from edgesparse.passes.observe import Feeds, Tick, run_values
from edgesparse.passes.reconstruct import Repair, repair_in_order
from edgesparse.recipe import Choice

Weigher = Callable[[ir.Model, Sequence[LayerInfo], Iterable[Feeds], int], Mapping[str, Array]]
"""What an error of each output channel of layers costs the model's outputs, float64 `[Cout]` by layer name; the last
argument is a seed. From those who know torch.
"""

MOST_WEIGHTS = 1 << 28
"""Weights of a network that gradients are taken of unasked: torch needs several times their memory."""


@dataclass(frozen=True)
class Chosen:
    """The criterion, mean divergence (nats) from the dense network by criterion, and why there was no choice, if so."""

    criterion: str
    divergence: Mapping[str, float]
    reason: Reason | None = None


def choose_criterion(
    model: ir.Model,
    layers: Sequence[LayerInfo],
    choices: Mapping[str, Choice],
    inputs: Iterable[Feeds],
    repair: Repair,
    weigher: Weigher | None,
    *,
    seed: int = 0,
    tick: Tick | None = None,
) -> Chosen:
    """ "fisher" or "obs": `layers` are pruned by both as `choices` say, and repaired, in copies of a dense model.

    Part of the samples is fitted to and the others judge. Without a `weigher`, and for models that it cannot take, obs.
    """
    if weigher is None:
        why = "criterion fisher needs torch: pip install 'edgesparse[torch]'"
        return Chosen("obs", {}, Reason("criterion", why, "model"))
    size = sum(value.const_value.size for value in model.graph.initializers.values() if value.const_value is not None)
    if size > MOST_WEIGHTS:
        why = f"no criterion fisher: gradients of {size >> 20} million weights take much memory; ask for it by a recipe"
        return Chosen("obs", {}, Reason("criterion", why, "model"))
    fitted, probes = split(inputs, PROBE_SAMPLES)
    try:
        worth = weigher(model, layers, fitted, seed)
    except (UsageError, UnsupportedError) as error:
        return Chosen("obs", {}, Reason("criterion", f"no criterion fisher: {error}", "model"))
    outputs = [str(value.name) for value in model.graph.outputs]
    wanted = [values[0] for values in run_values(model, outputs, probes)]
    found = {}
    for criterion, weights in (("obs", {}), ("fisher", worth)):
        copy = model.clone()
        repair_in_order(copy, choices, fitted, replace(repair, criterion=criterion, worth=weights), tick)
        got = run_values(copy, outputs, probes)
        found[criterion] = float(np.mean([divergence(a, b[0]) for a, b in zip(wanted, got, strict=True)]))
    return Chosen(min(found, key=found.__getitem__), found)
