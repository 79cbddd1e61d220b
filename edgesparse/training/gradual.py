"""Methods that prune the weights with the smallest magnitudes while training goes on."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import ClassVar

from edgesparse.errors import UsageError
from edgesparse.training.methods import Method, check_positive, check_shares
from edgesparse.training.run import Run


@dataclass
class Gradual(Method):
    """Gradual magnitude pruning: Zhu and Gupta, "To prune, or not to prune", 1710.01878.

    The sparsity rises as s(t) = s_f (1 - (1 - t)^3) from share `begin` of the steps to share `end`, in `updates` moves;
    at each the units with the smallest L2 norm are masked. A pruned unit gets no update any more, so it stays out
    unless allocation makes room in its layer.
    """

    name: ClassVar[str] = "gradual"
    source: ClassVar[str] = "1710.01878"

    begin: float = 0.0
    end: float = 0.5
    updates: int = 50

    def __post_init__(self) -> None:
        check_shares(begin=self.begin, end=self.end)
        check_positive(updates=self.updates)

    def start(self, run: Run) -> None:
        super().start(run)
        self.memory["done"] = 0

    def step(self, run: Run) -> None:
        due = int(run.progress(self.begin, self.end) * self.updates)
        if due > self.memory["done"]:
            self.memory["done"] = due
            share = 1.0 - (1.0 - due / self.updates) ** 3
            run.set_masks(run.project(run.scores(run.weights()), share))
        run.apply()


@dataclass
class Rewinding(Method):
    """Iterative pruning with rewinding: Renda, Frankle and Carbin, 2003.02389; Frankle et al., 1903.01611.

    The steps are split into `rounds`; at the end of each but the last one the same share of the remaining units is
    pruned by magnitude, and training goes back in time. The last round, share `last` of the steps, trains at the final
    density; the others are of equal length. What goes back is the learning rate, which is the user's to restart at the
    shares `begins`, and with `weights` also the kept weights, to the values at share `rewind` of the first round.
    """

    name: ClassVar[str] = "rewinding"
    source: ClassVar[str] = "2003.02389, 1903.01611"

    rounds: int = 5
    last: float = 0.5
    weights: bool = False
    rewind: float = 0.1

    def __post_init__(self) -> None:
        check_shares(rewind=self.rewind)
        check_shares(last=self.last)
        check_positive(last=self.last)
        if self.rounds < 2:
            raise UsageError(f"setting rounds is {self.rounds}", why="the first round is dense", fix="take 2 or more")

    @property
    def begins(self) -> tuple[float, ...]:
        """Where the rounds begin."""
        before = self.rounds - 1
        return (*((1.0 - self.last) * number / before for number in range(before)), 1.0 - self.last)

    def start(self, run: Run) -> None:
        super().start(run)
        self.memory["round"] = 0
        self._remember(run)

    def step(self, run: Run) -> None:
        run.apply()
        if run.step <= self.rewind * self.begins[1] * run.steps:
            self._remember(run)
        due = bisect.bisect_right(self.begins, run.step / run.steps) - 1
        if due > self.memory["round"]:
            self.memory["round"] = due
            share = due / (self.rounds - 1)
            overall = sum(run.targets.values()) / len(run.targets)
            # densities fall geometrically, as each round prunes the same share of what is left
            pruned = (1.0 - overall**share) / (1.0 - overall)
            run.set_masks(run.project(run.scores(run.weights()), min(pruned, 1.0)))
            for name, weight in run.weights().items() if self.weights else ():
                weight.data.copy_(self.memory["weights"][name])
            run.apply()

    def _remember(self, run: Run) -> None:
        if self.weights:
            self.memory["weights"] = {name: weight.detach().clone() for name, weight in run.weights().items()}
