"""Continuous training towards a pattern: no weight is cut before the end, those outside decay by themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from edgesparse.training.methods import Method, check_positive, check_shares
from edgesparse.training.run import Run


@dataclass
class Cast(Method):
    """After CAST, "Continuous and differentiable semi-structured sparsity-aware training", 2509.25996.

    All weights run and get gradients. Those outside the present projection are drawn to zero by an L1 decay that is
    adaptive, as in the paper's AdamS: where gradients are small the decay is strong, so weights that the loss does not
    need go first. Its strength rises beyond all bounds to share `end`, where the mask is fixed. The kept weights of a
    layer are scaled to the norm that it had with the others (the paper's weight scaling).

    A decay, every `every` steps, takes strength * t^2 / (1 - t^2) * m * mean sqrt(v) / sqrt(v) off a weight, at most
    all of it: t is the share of the way to `end`, v the running mean of squared gradients, m the mean magnitude outside
    the mask.
    """

    name: ClassVar[str] = "cast"
    source: ClassVar[str] = "2509.25996"

    strength: float = 8.0
    ramp: float = 0.3
    end: float = 0.4
    every: int = 4

    def __post_init__(self) -> None:
        check_shares(ramp=self.ramp, end=self.end)
        check_positive(strength=self.strength, every=self.every)

    def start(self, run: Run) -> None:
        super().start(run)
        self.memory["square"] = {name: torch.zeros_like(weight.data) for name, weight in run.weights().items()}

    def step(self, run: Run) -> None:
        if self.memory.get("fixed"):
            run.apply()
            return
        if run.progress(0.0, self.end) >= 1.0:
            self._fix(run)
            return
        if run.step % self.every:
            return
        due = run.progress(0.0, self.ramp)
        run.set_masks(run.project(run.scores(run.weights()), 1.0 - (1.0 - due) ** 3))
        time = run.progress(0.0, self.end)
        share = self.strength * time**2 / (1.0 - time**2)
        for name, weight in run.weights().items():
            square = self.memory["square"][name]
            if weight.grad is not None and bool(weight.grad.isfinite().all()):
                square.mul_(0.9).add_(weight.grad.square(), alpha=0.1)
            size = square.sqrt()
            adaptive = (size.mean() / size.clamp_min(1e-12)).clamp(0.2, 5.0)
            outside, sizes = (~run.masks[name]).to(weight.dtype), weight.data.abs()
            mean = (sizes * outside).sum() / outside.sum().clamp_min(1.0)
            weight.data.copy_(weight.data.sign() * (sizes - share * mean * adaptive * outside).clamp_min(0.0))

    def finish(self, run: Run) -> None:
        if self.memory.get("fixed"):
            run.apply()
        else:
            self._fix(run)

    def _fix(self, run: Run) -> None:
        before = {name: float(weight.data.norm()) for name, weight in run.weights().items()}
        run.set_masks(run.project(run.scores(run.weights())))
        run.apply()
        for name, weight in run.weights().items():
            weight.data.mul_(before[name] / max(float(weight.data.norm()), 1e-30))
        self.memory["fixed"] = True
