"""Methods that let weights fade out before they are cut off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from edgesparse.pattern import Array, SparsePattern
from edgesparse.training.allocation import even_tails, leftovers, unit_energy, unit_numbers
from edgesparse.training.layers import Tensor
from edgesparse.training.methods import Method, check_positive, check_shares
from edgesparse.training.run import Run

TINY = 1e-30
"""Of a unit's squared norm: the slope of a root is infinite at zero."""


@dataclass
class SoftShrinkage(Method):
    """Iterative soft shrinkage: Zhang et al., "Iterative soft shrinkage learning for efficient image
    super-resolution" (ISS-P), 2303.09650.

    Units outside the present projection are not cut but shrunk, W <- (1 - a) W, so that they still take part and may
    come back. The sparsity follows the cubic schedule to share `ramp` of the steps, the strength a rises linearly from
    0 to 1 between `begin` and `end`; from then on the mask is fixed.
    """

    name: ClassVar[str] = "soft-shrinkage"
    source: ClassVar[str] = "2303.09650"

    begin: float = 0.0
    ramp: float = 0.5
    end: float = 0.6
    every: int = 4

    def __post_init__(self) -> None:
        check_shares(begin=self.begin, ramp=self.ramp, end=self.end)
        check_positive(every=self.every)

    def step(self, run: Run) -> None:
        strength = run.progress(self.begin, self.end)
        if strength < 1.0:
            if run.step % self.every == 0:
                due = run.progress(self.begin, self.ramp)
                run.set_masks(run.project(run.scores(run.weights()), 1.0 - (1.0 - due) ** 3))
                for name, weight in run.weights().items():
                    weight.data.mul_(1.0 - strength * (~run.masks[name]).to(weight.dtype))
            return
        if not self.memory.get("fixed"):
            run.set_masks(run.project(run.scores(run.weights())))
            self.memory["fixed"] = True
        run.apply()

    def finish(self, run: Run) -> None:
        if self.memory.get("fixed"):
            run.apply()
        else:
            super().finish(run)


@dataclass
class GroupProximal(SoftShrinkage):
    """Proximal steps of the (weighted) group sparse envelope, WGSEF: Beck and Refael, "Sparse regularization via
    bidualization" (2022), carried from entries to groups.

    The envelope of "at most k groups" is half the squared k-support norm of the groups' norms; `envelope_prox` is its
    proximal map. It shrinks all groups by 1 / (1 + a), and weak ones more, to zero; the common factor is taken back,
    so that strong groups stay as they are. From a = 0, which changes nothing, to a = infinity, which is the projection
    to the best k, a rises as t^2 / (1 - t^2) over the share `begin` to `end`; k follows the cubic schedule.
    """

    name: ClassVar[str] = "group-proximal"
    source: ClassVar[str] = "WGSEF; 10.1007/s10957-022-02115-9; k-support norm: 1204.5043"

    ramp: float = 0.4
    end: float = 0.5
    every: int = 4

    def step(self, run: Run) -> None:
        time = run.progress(self.begin, self.end)
        if time >= 1.0 or run.step % self.every:
            super().step(run)
            return
        due = run.progress(self.begin, self.ramp)
        scores = run.scores(run.weights())
        masks = run.project(scores, 1.0 - (1.0 - due) ** 3)
        run.set_masks(masks)
        strength = time**2 / (1.0 - time**2)
        for name, layer in run.layers.items():
            pattern = run.patterns[name]
            norms = np.sqrt(unit_energy(pattern, scores[name]))
            kept = float((unit_energy(pattern, masks[name]) > 0).sum())
            left = envelope_shares(norms, kept, strength)(np.sqrt(unit_sums(pattern, scores[name])))
            factor = (1.0 + strength) * left / (left + strength) if strength > 0 else np.ones_like(left)
            if pattern.fixed or pattern.kind == "fanin" or leftovers(pattern, layer.shape):
                # units compete within rows, or parts of them: the best of each are spared
                factor = np.where(masks[name], 1.0, factor)
            layer.weight.data.mul_(layer.tensor(factor))


def envelope_shares(norms: Array, k: float, strength: float) -> Callable[[Array], Array]:
    """The shares s within 0 and 1, of sum k, that define the envelope's proximal map, as a function of the norms.

    Half the squared k-support norm is the minimum of sum z^2 / (2 s) over such s; the proximal point is
    z s / (s + strength), and its s are clip(c z - strength, 0, 1), with c found by bisection.
    """
    if k >= norms.size or not norms.any():
        return np.ones_like
    low, high = 0.0, (1.0 + strength) / float(norms[norms > 0].min())
    for _ in range(80):
        middle = 0.5 * (low + high)
        if np.clip(middle * norms - strength, 0.0, 1.0).sum() > k:
            high = middle
        else:
            low = middle
    return lambda found: np.clip(high * found - strength, 0.0, 1.0)


def envelope_prox(norms: Array, k: float, strength: float) -> Array:
    """The x that minimises strength / 2 * |x|^2, in the k-support norm, + 1/2 |x - norms|^2; `norms` [n] >= 0."""
    left = envelope_shares(norms, k, strength)(norms)
    return norms * left / (left + strength)


@dataclass
class HyperSparse(Method):
    """Adaptive regularised training (ART) with the HyperSparse loss: Glandorf et al., 2308.07163.

    L = sum_i |w_i| (sum_j t(s |w_j|)) / A - |w_i|, with A = sum_j t(s |w_j|) held constant and t = tanh: of value zero,
    with the gradient sign(w_i) s t'(s |w_i|) sum_j |w_j| / A, which is strong for weights that would be pruned and
    vanishes for large ones. s is 1 / the magnitude at the border of the projection. Its factor grows from `strength` by
    `growth` over the run up to share `end`; then the mask is set and the rest is fine-tuning. Where a pattern keeps and
    drops units of several weights, |w| is a unit's L2 norm: the paper has single weights only.
    """

    name: ClassVar[str] = "hypersparse"
    source: ClassVar[str] = "2308.07163"

    strength: float = 1e-4
    growth: float = 1000.0
    end: float = 0.35
    every: int = 16
    units: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_shares(end=self.end)
        check_positive(strength=self.strength, growth=self.growth, every=self.every)

    def start(self, run: Run) -> None:
        super().start(run)
        self.memory |= {"fixed": False, "scale": {}}
        self._sharpen(run)

    def step(self, run: Run) -> None:
        if not self.memory["fixed"] and run.progress(0.0, self.end) >= 1.0:
            run.set_masks(run.project(run.scores(run.weights())))
            self.memory["fixed"] = True
        if self.memory["fixed"]:
            run.apply()
        elif run.step % self.every == 0:
            self._sharpen(run)

    def regularizer(self, run: Run) -> Tensor | None:
        if self.memory["fixed"]:
            return None
        factor = self.strength * self.growth ** run.progress(0.0, self.end)
        magnitudes = [self._norms(name, weight, run) for name, weight in run.weights().items()]
        bent = [torch.tanh(self.memory["scale"][name] * a) for name, a in zip(run.layers, magnitudes, strict=True)]
        total, bent_total = sum(a.sum() for a in magnitudes), sum(b.sum() for b in bent)
        return factor * (total.detach() * bent_total / bent_total.detach().clamp_min(1e-12) - total.detach())

    def finish(self, run: Run) -> None:
        if self.memory["fixed"]:
            run.apply()
        else:
            super().finish(run)

    def _sharpen(self, run: Run) -> None:
        scores = run.scores(run.weights())
        masks = run.project(scores)
        for name in run.layers:
            kept = unit_energy(run.patterns[name], masks[name]) > 0
            border = np.sqrt(unit_energy(run.patterns[name], scores[name])[kept].min())
            self.memory["scale"][name] = float(1.0 / max(border, 1e-8))

    def _norms(self, name: str, weight: Tensor, run: Run) -> Tensor:
        """L2 norms of the layer's units, as scores have them; magnitudes where each weight is one."""
        if name not in self.units:
            pattern, layer = run.patterns[name], run.layers[name]
            numbers = unit_numbers(pattern, layer.shape)
            each = np.ones(layer.shape)
            size = unit_energy(pattern, even_tails(pattern, each)) / unit_energy(pattern, each)
            self.units[name] = layer.numbers(numbers).reshape(-1), weight.new_tensor(size)
        units, size = self.units[name]
        if len(size) == len(units):
            return weight.abs()
        energy = weight.new_zeros(len(size)).index_add(0, units, weight.square().reshape(-1))
        return (energy * size).clamp_min(TINY).sqrt()


def unit_sums(pattern: SparsePattern, scores: Array) -> Array:
    """Of each weight, the sum over the unit that it belongs to."""
    return unit_energy(pattern, scores)[unit_numbers(pattern, scores.shape)]
