"""Methods that are as sparse as they end from the first step on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgesparse.errors import UnsupportedError, UsageError
from edgesparse.pattern import Array, Mask, SparsePattern, best_mask
from edgesparse.training.allocation import even_tails, unit_energy, unit_numbers
from edgesparse.training.methods import Method, check_positive, check_shares
from edgesparse.training.run import NotFiniteError, Run, has_pattern


@dataclass
class RandomMask(Method):
    """A random mask from the first step, never changed: the baseline (1911.11134's "static"; 2202.02643).

    With allocation `erk` this is the baseline of EVIDENCE.md that all methods must beat.
    """

    name: ClassVar[str] = "random"
    source: ClassVar[str] = "2202.02643"

    def start(self, run: Run) -> None:
        run.set_masks(random_masks(run))
        run.apply()

    def step(self, run: Run) -> None:
        run.apply()

    def finish(self, run: Run) -> None:
        run.apply()


@dataclass
class GivenMask(RandomMask):
    """The zeros that the weights have when it starts, never changed: for models that are pruned already."""

    name: ClassVar[str] = "given"
    source: ClassVar[str] = ""

    def start(self, run: Run) -> None:
        masks = {}
        for name, layer in run.layers.items():
            masks[name] = layer.view(layer.weight) != 0
            if not has_pattern(run.patterns[name], masks[name]):
                raise UsageError(
                    f"the zeros of layer {name!r} do not make pattern {run.patterns[name]}",
                    why="method given keeps the zeros that are there",
                    fix="prune the model first, or take another method",
                )
        if all(mask.all() for mask in masks.values()):
            raise UsageError(
                "no layer has a zero", why="method given keeps the zeros that are there", fix="prune the model first"
            )
        run.set_masks(masks)


@dataclass
class Rigl(Method):
    """RigL: Evci et al., "Rigging the lottery", 1911.11134; for `fanin` SRigL's constant fan-in, 2305.02299.

    Until share `end` of the steps, every 1/`updates` of that, the units with the smallest norms are dropped, a share of
    drop/2 (1 + cos(pi t / end)) of those kept, and as many of the dropped ones with the largest gradients grown, at
    zero. Units are the pattern's: weights, or groups Nx1. `initial` is "magnitude" (from trained weights) or
    "random". How dense each layer is stays as allocated in the beginning.

    For constant fan-in and groups, output channels (or groups of them) that have become nearly useless are given up, as
    in SRigL: where fewer than `ablate` of a row's units are among those that the layer as a whole would keep by
    magnitude or grow by gradient, the row is emptied, and its weights go to the others. 0 leaves all rows.
    """

    name: ClassVar[str] = "rigl"
    source: ClassVar[str] = "1911.11134, 2305.02299"

    drop: float = 0.3
    end: float = 0.75
    updates: int = 40
    initial: str = "magnitude"
    ablate: float = 0.3

    def __post_init__(self) -> None:
        check_shares(end=self.end)
        check_shares(drop=self.drop)
        check_shares(ablate=self.ablate)
        check_positive(updates=self.updates)
        if self.initial not in ("magnitude", "random"):
            raise UsageError(f"setting initial is {self.initial!r}", fix="take magnitude or random")

    def start(self, run: Run) -> None:
        for name, pattern in run.patterns.items():
            if pattern.fixed:
                raise UnsupportedError(
                    f"layer {name!r}: method rigl cannot train pattern {pattern}",
                    why="its density is fixed, so nothing can be dropped before something else has grown",
                    fix="take sr-ste for n:m",
                )
        if self.initial == "random":
            run.set_masks(random_masks(run))
        else:
            run.set_masks(run.project(run.scores(run.weights())))
        self.memory["done"] = 0
        run.apply()

    def step(self, run: Run) -> None:
        time = run.progress(0.0, self.end)
        due = int(time * self.updates)
        if self.memory["done"] < due and time < 1.0:
            share = self.drop / 2 * (1.0 + math.cos(math.pi * time))
            try:
                self._exchange(run, share)
                self.memory["done"] = due
            except NotFiniteError:
                if not _finite_weights(run):
                    raise
                # an overflow of scaled gradients, which mixed precision skips as well: the next step will do
        run.apply()

    def finish(self, run: Run) -> None:
        run.apply()

    def _exchange(self, run: Run, share: float) -> None:
        gradients = {}
        for name, weight in run.weights().items():
            if weight.grad is None:
                raise UsageError(
                    f"layer {name!r} has no gradient when step() is called",
                    why="method rigl grows where gradients are large",
                    fix="call sparsifier.step() after optimizer.step() and before zero_grad()",
                )
            gradients[name] = weight.grad
        grow, strength = run.scores(gradients), run.scores(run.weights())
        masks: dict[str, Mask] = {}
        for name, layer in run.layers.items():
            pattern, mask = run.patterns[name], layer.canonical_mask(run.masks[name])
            units = unit_energy(pattern, mask) > 0
            density = float(units.mean())
            # a weight of exactly zero inside the mask still goes before all that is outside
            inside = np.where(mask, strength[name] + 1e-30, 0.0)
            stays = best_mask(pattern, inside, density * (1.0 - share)) & mask
            top = grow[name].sum() + 1.0
            wanted = np.where(stays, top, grow[name])
            rows = self._alive(pattern, inside, grow[name], mask, share)
            if rows.all():
                masks[name] = best_mask(pattern, wanted, density)
            else:
                masks[name] = _on_rows(pattern, wanted, density, rows)
        for name, layer in run.layers.items():
            before = layer.canonical_mask(run.masks[name])
            run.layers[name].weight.data.mul_(layer.mask_tensor(before))
        run.set_masks(masks)

    def _alive(self, pattern: SparsePattern, inside: Array, grow: Array, mask: Mask, share: float) -> Mask:
        """Output channels [Cout] that stay: those with enough units that matter in the layer as a whole.

        Last groups that are smaller compete with no others, and stay.
        """
        every = np.ones(mask.shape[0], np.bool_)
        height = pattern.n if pattern.kind == "group" else 1
        if pattern.kind not in ("fanin", "group") or self.ablate == 0.0:
            return every
        whole = len(mask) // height * height or len(mask)
        inside, grow, mask = inside[:whole], grow[:whole], mask[:whole]
        units = SparsePattern("group", height, pattern.m if pattern.kind == "group" else 1)
        kept = unit_energy(units, mask) > 0
        count = int(kept.sum())
        grown = round(count * share)
        strength, gradient = unit_energy(units, inside), np.where(kept, 0.0, unit_energy(units, grow))
        salient = np.zeros(kept.size, np.bool_)
        salient[np.argsort(-strength, kind="stable")[: count - grown]] = True
        salient[np.argsort(-gradient, kind="stable")[:grown]] = True
        blocks = -(-mask.shape[0] // height)
        per_row = salient.reshape(blocks, -1).sum(axis=1)
        mean = count / max(int(kept.reshape(blocks, -1).any(axis=1).sum()), 1)
        weak = per_row < max(1.0, self.ablate * mean)
        # what is left must have room for all units
        least = -(-count // (kept.size // blocks))
        order = np.argsort(-per_row, kind="stable")
        weak[order[:least]] = False
        every[:whole] = np.repeat(~weak, height)[:whole]
        return every


def _on_rows(pattern: SparsePattern, scores: Array, density: float, rows: Mask) -> Mask:
    """The best mask with as many units as at `density`, none of them in the other rows."""
    found = np.zeros(scores.shape, np.bool_)
    left = scores[rows]
    more = unit_energy(pattern, scores).size / unit_energy(pattern, left).size
    found[rows] = best_mask(pattern, left, min(density * more, 1.0))
    return found


def random_masks(run: Run) -> dict[str, Mask]:
    """Random masks of the patterns; the allocation sees equal scores, except `lamp`, which is random with them."""
    scores = {}
    for name, layer in run.layers.items():
        numbers = unit_numbers(run.patterns[name], layer.shape)
        drawn = run.rng.random(int(numbers.max()) + 1)[numbers]  # one draw a unit
        scores[name] = even_tails(run.patterns[name], drawn)
    return run.project(scores)


def _finite_weights(run: Run) -> bool:
    return all(bool(weight.detach().isfinite().all()) for weight in run.weights().values())
