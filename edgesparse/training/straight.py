"""Methods that train a dense weight through the sparse one that the network runs with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgesparse.errors import UsageError
from edgesparse.training.methods import Method, check_positive, check_shares
from edgesparse.training.run import Run


@dataclass
class SrSte(Method):
    """SR-STE: Zhou et al., "Learning N:M fine-grained structured sparse neural networks from scratch", 2102.04010.

    The network runs with W' = proj(W); the gradient at W' goes straight to the dense W, and weights outside the mask
    are drawn to zero: W <- W - lr * (g(W') + decay * (1 - M) * W). Here W lies in `memory`: whatever the optimizer has
    done to W' is done to W, so every optimizer works as it is, and the decay (lr included) is a step of its own, as
    in AdamW. `end` is the share of the steps after which the mask is fixed.

    Until share `ramp` (0: sparse from the start, as in the first paper) the network gets sparse little by little, which
    is progressive gradient flow for high sparsity (Bambhaniya et al., 2402.04744): with `flow` "structure" the
    projection goes from dense to sparse by the cubic schedule, with "mask" it is the final one, and what is outside
    runs at a factor that falls from 1 to 0.
    """

    name: ClassVar[str] = "sr-ste"
    source: ClassVar[str] = "2102.04010, 2402.04744"

    decay: float = 2e-4
    ramp: float = 0.4
    end: float = 0.6
    every: int = 4
    flow: str = "structure"

    def __post_init__(self) -> None:
        check_shares(ramp=self.ramp, end=self.end)
        check_positive(every=self.every)
        if self.flow not in ("structure", "mask"):
            raise UsageError(f"setting flow is {self.flow!r}", fix="take structure or mask")

    def start(self, run: Run) -> None:
        self.memory["dense"] = {name: weight.detach().clone() for name, weight in run.weights().items()}
        self._project(run)
        self._show(run)

    def step(self, run: Run) -> None:
        if run.progress(0.0, self.end) >= 1.0:
            if "dense" in self.memory:
                self._absorb(run)
                self._project(run)
                self._show(run)
                del self.memory["dense"], self.memory["shown"]
            run.apply()
            return
        self._absorb(run)
        if run.step % self.every == 0:
            self._project(run)
        self._show(run)

    def finish(self, run: Run) -> None:
        if "dense" in self.memory:
            run.set_masks(run.project(run.scores(self.memory["dense"])))
            self.memory["leak"] = 0.0
            self._show(run)
            del self.memory["dense"], self.memory["shown"]
        run.apply()

    def _absorb(self, run: Run) -> None:
        """What the optimizer did to the shown weights happens to the dense ones, and the decay outside the mask."""
        for name, weight in run.weights().items():
            dense = self.memory["dense"][name]
            dense.mul_(1.0 - self.decay * (~run.masks[name]).to(dense.dtype))
            dense.add_(weight.data - self.memory["shown"][name])

    def _project(self, run: Run) -> None:
        due = run.progress(0.0, self.ramp) if self.ramp > 0 else 1.0
        self.memory["leak"] = 1.0 - due if self.flow == "mask" else 0.0
        share = 1.0 if self.flow == "mask" else 1.0 - (1.0 - due) ** 3
        run.set_masks(run.project(run.scores(self.memory["dense"]), share))

    def _show(self, run: Run) -> None:
        for name, weight in run.weights().items():
            inside = run.masks[name].to(weight.dtype)
            leak = self.memory["leak"]
            weight.data.copy_(self.memory["dense"][name] * (inside + leak * (1.0 - inside) if leak else inside))
        self.memory["shown"] = {name: weight.detach().clone() for name, weight in run.weights().items()}
