"""Activation re-choice for sparse networks, after SAFS: Loni et al., "Learning activation functions for sparse neural
networks", 2305.10964.

What activates best in a dense network need not do so in a sparse one. As in the first stage of SAFS, every activation
module is a choice among candidates, searched by late-acceptance hill climbing: a neighbour differs in one place, and
is taken if it is no worse than what was held a few rounds ago. The candidates are those that compiled kernels apply
in their epilogue, for nothing. The paper's second stage, scales inside and outside of each activation, is left out:
batch norms and the layers' weights hold them already.

    def judge(candidate):  # of a copy: train it for a moment, return the loss on data held back
        ...
    found = rechoose(model, judge, rounds=20)

Before the sparsifier is made or between its steps: activations have no parameters, so no optimizer notices.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from edgesparse.errors import UsageError
from edgesparse.training.layers import Module
from edgesparse.training.run import NotFiniteError

CANDIDATES: dict[str, Callable[[], Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
    "leaky-relu": lambda: nn.LeakyReLU(0.1),
}
"""Name to what makes the module."""


@dataclass(frozen=True)
class Rechosen:
    """The candidate of each activation module by name, and what the judge said: of the model as it was, and now."""

    chosen: dict[str, str]
    before: float
    after: float


def rechoose(
    model: Module,
    judge: Callable[[Module], float],
    *,
    candidates: Sequence[str] = ("relu", "relu6", "hardswish"),
    rounds: int = 20,
    history: int = 3,
    seed: int = 0,
) -> Rechosen:
    """Replace activation modules in place by what `judge` finds best, and say what it was.

    Parameters
    ----------
    judge:
        From a copy of the model to a number to minimise; it may train the copy. Must be the same for the same model.
    rounds:
        Neighbours tried, each one call of `judge`, after one for the model as it is.
    history:
        A neighbour is taken if it is no worse than the state that was held so many rounds ago.

    Raises
    ------
    UsageError: unknown candidates, or a model without activation modules.
    NotFiniteError: the judge does not find a finite number for the model as it is.
    """
    if unknown := sorted(set(candidates) - CANDIDATES.keys()):
        raise UsageError(f"unknown activation {unknown[0]!r}", fix=f"take {', '.join(CANDIDATES)}")
    if len(set(candidates)) < 2 or rounds < 1 or history < 1:
        raise UsageError("a choice needs two candidates, a round and a history of one at least")
    held = sites(model)
    if not held:
        raise UsageError(
            "the model has no activation modules",
            why="functions called in `forward` cannot be exchanged",
            fix="use modules such as nn.ReLU",
        )
    rng, names = np.random.default_rng(seed), sorted(held)
    before = score = judge(copy.deepcopy(model))
    if not np.isfinite(before):
        raise NotFiniteError(f"the judge finds {before} for the model as it is", fix="lower its learning rate")
    best, least = dict(held), before
    past = [score] * history
    for number in range(rounds):
        site = names[int(rng.integers(len(names)))]
        others = [name for name in candidates if name != held[site]]
        tried = held | {site: others[int(rng.integers(len(others)))]}
        found = judge(exchanged(copy.deepcopy(model), tried))
        if found <= score or found <= past[number % history]:  # a NaN is neither
            held, score = tried, found
            if score < least:
                best, least = dict(held), score
        past[number % history] = score
    exchanged(model, best)
    return Rechosen(best, before, least)


def sites(model: Module) -> dict[str, str]:
    """Names of the modules that are candidates' own types, with the candidate that each is."""
    kinds = {type(make()): name for name, make in CANDIDATES.items()}
    return {name: kinds[type(module)] for name, module in model.named_modules() if type(module) in kinds}


def exchanged(model: Module, chosen: dict[str, str]) -> Module:
    """The model itself, with modules replaced where they are not what is chosen yet."""
    for name, candidate in chosen.items():
        module = CANDIDATES[candidate]()
        if type(model.get_submodule(name)) is not type(module):
            where, _, last = name.rpartition(".")
            setattr(model.get_submodule(where), last, module)
    return model
