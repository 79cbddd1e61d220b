"""Averages of runs that share a mask: sparse model soups (Zimmer et al., 2306.16788), SWAMP (Choi et al., 2305.14852).

The mean of weights with the same zeros has these zeros too, which is why runs must start from one pruned model. Batch
norms' statistics belong to no mean of weights: run some training inputs through the result (`recalibrate`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from edgesparse.errors import UsageError
from edgesparse.training.layers import Module, Tensor
from edgesparse.training.sparsifier import Sparsifier


def average(sparsifiers: Sequence[Sparsifier], weights: Sequence[float] | None = None) -> Module:
    """A copy of the first model with the weighted mean of all parameters and floating-point buffers.

    Raises UsageError where the runs have other masks or other parameters: their mean would be denser than each.
    """
    if not sparsifiers:
        raise UsageError("there are no runs to average")
    shares = [1.0] * len(sparsifiers) if weights is None else list(weights)
    if len(shares) != len(sparsifiers) or min(shares) < 0 or not sum(shares) > 0:
        raise UsageError(
            "the weights of the average", why=f"one not negative number for each of {len(sparsifiers)} runs"
        )
    first = sparsifiers[0]
    for index, other in enumerate(sparsifiers[1:], 1):
        if other.run.masks.keys() != first.run.masks.keys():
            raise UsageError(f"run {index} has other sparse layers than run 0")
        for name, mask in first.run.masks.items():
            if not torch.equal(mask, other.run.masks[name]):
                raise UsageError(
                    f"run {index} has another mask of layer {name!r} than run 0",
                    why="their mean would be denser than each",
                    fix="start all runs from one finalized model",
                )
    states = [one.model.state_dict() for one in sparsifiers]
    made = copy.deepcopy(first.model)
    total = sum(shares)
    mean = dict(states[0])
    for key, value in states[0].items():
        if any(key not in state or state[key].shape != value.shape for state in states):
            raise UsageError(f"the runs are of different models: {key!r} does not fit")
        if value.is_floating_point():
            mean[key] = sum(state[key] * (share / total) for state, share in zip(states, shares, strict=True))
    made.load_state_dict(mean)
    first.mask(made)
    return made


def recalibrate(model: Module, inputs: Iterable[Tensor]) -> None:
    """Set batch norms' means and variances to those of the inputs (batches), in place; the mode stays as it was."""
    norms = [one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    momenta, training = [one.momentum for one in norms], model.training
    for one in norms:
        one.reset_running_stats()
        one.momentum = None  # a plain mean over the batches
    try:
        model.train()
        with torch.no_grad():
            for batch in inputs:
                model(batch)
    finally:
        for one, momentum in zip(norms, momenta, strict=True):
            one.momentum = momentum
        model.train(training)


def share(sparsifiers: Sequence[Sparsifier], weights: Sequence[float] | None = None) -> None:
    """Give all runs the average of all, in place: SWAMP's step between two rounds of pruning (2305.14852).

    Particles that start from one model and train with other data orders meet here; the masks that they choose next
    are the same, as their weights are. Optimizer states stay as they are. Raises UsageError as `average`.
    """
    state = average(sparsifiers, weights).state_dict()
    for one in sparsifiers:
        own = one.model.state_dict()
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(state[name])
