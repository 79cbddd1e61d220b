"""ONNX to ONNX: loading, simplifying, pruning. Valid ONNX after every pass; nothing here knows TVM or a
device.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgesparse.passes.base import Pass, PassResult, RunResult, run_passes
from edgesparse.passes.choose import Weigher
from edgesparse.passes.layers import LayerInfo, weight_layers
from edgesparse.passes.load import load_model, model_from_proto
from edgesparse.passes.observe import Feeds, Tick
from edgesparse.passes.simplify import SIMPLIFY
from edgesparse.passes.sparsify import Fitter, Pricer, calibrated_passes
from edgesparse.passes.write import save_model
from edgesparse.recipe import Recipe

__all__ = [
    "SIMPLIFY",
    "LayerInfo",
    "Pass",
    "PassResult",
    "RunResult",
    "load_model",
    "model_from_proto",
    "run_passes",
    "save_model",
    "sparsify_passes",
    "weight_layers",
]


def sparsify_passes(
    recipe: Recipe,
    inputs: Iterable[Feeds] | None = None,
    tick: Tick | None = None,
    pricer: Pricer | None = None,
    fitter: Fitter | None = None,
    weigher: Weigher | None = None,
) -> tuple[Pass, ...]:
    """The ordered passes from a loaded model to a sparse one; `inputs` are calibration samples.

    `pricer` knows what layers cost on a target, for budgets of latency or size; `fitter` how to fit
    by gradient, for recipes with that section; `weigher` what errors of channels cost, for criterion "fisher".

    UsageError where the recipe needs samples and there are none.
    """
    return (*SIMPLIFY, *calibrated_passes(recipe, inputs, tick, pricer, fitter, weigher))
