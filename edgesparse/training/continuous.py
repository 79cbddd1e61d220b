"""Continuous training towards a pattern: no weight is cut before the end, those outside decay by themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgesparse.training.methods import Method, check_positive, check_shares
from edgesparse.training.run import Run


@dataclass
class Cast(Method):
    """After CAST, "Continuous and differentiable semi-structured sparsity-aware training", 2509.25996.

    All weights run and get gradients. Those outside the present projection are drawn to zero by an L1 decay that is
    adaptive, as in the paper's AdamS: where gradients are small the decay is strong, so weights that the loss does not
    need go first. Its strength rises until every one of them has reached zero, at share `end`; the mask is fixed then.
    The kept weights of a layer are scaled to the norm that the layer had with the others (the paper's weight scaling).

    The decay of a weight in one step is strength * m / (sqrt(v) / mean sqrt(v)), at most itself: v is the running mean
    of squared gradients, m the mean magnitude outside the mask when the method began.
    """

    name: ClassVar[str] = "cast"
    source: ClassVar[str] = "2509.25996"

    strength: float = 6.0
    ramp: float = 0.5
    end: float = 0.8
    every: int = 8

    def __post_init__(self) -> None:
        check_shares(ramp=self.ramp, end=self.end)
        check_positive(strength=self.strength, every=self.every)

    def start(self, run: Run) -> None:
        super().start(run)
        final = run.project(run.scores(run.weights()))
        self.memory["unit"], self.memory["square"] = {}, {}
        for name, layer in run.layers.items():
            outside = layer.weight.detach()[~layer.mask_tensor(final[name])].abs()
            self.memory["unit"][name] = float(outside.mean()) if outside.numel() else 0.0
            self.memory["square"][name] = layer.weight.detach().new_zeros(layer.weight.shape)

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
        # the sum over the run of a strength that rises as t^2 is a third: what one weight can lose in all
        share = self.strength * run.progress(0.0, self.end) ** 2 * 3.0 * self.every / (run.steps * self.end)
        for name, weight in run.weights().items():
            square = self.memory["square"][name]
            if weight.grad is not None and bool(weight.grad.isfinite().all()):
                square.mul_(0.9).add_(weight.grad.square(), alpha=0.1)
            size = square.sqrt()
            adaptive = (size.mean() / size.clamp_min(1e-12)).clamp(0.2, 5.0)
            lost = share * self.memory["unit"][name] * adaptive * (~run.masks[name]).to(weight.dtype)
            weight.data.copy_(weight.data.sign() * (weight.data.abs() - lost).clamp_min(0.0))

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
