"""Methods whose thresholds are learned, layer by layer, beside the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgesparse.errors import UnsupportedError, UsageError
from edgesparse.pattern import best_mask
from edgesparse.training.allocation import even_tails, leftovers, unit_energy
from edgesparse.training.methods import Method, check_positive, check_shares
from edgesparse.training.run import Run
from edgesparse.training.shrinking import unit_sums


@dataclass
class AutoSparse(Method):
    """AutoSparse: Kundu et al., "Towards automated sparse training of deep neural networks", 2304.06941.

    The network runs with u max(0, 1 - T / |u|) for every unit u of a dense weight, T the layer's threshold, learned by
    the loss's gradient: dL/dT = -sum <g, u / |u|> over the units that are left. Units below the threshold get the
    gradient times `alpha`, which is annealed to 0 as a cosine, so that early mistakes can be undone. In the paper
    weight decay on T pulls the network sparse, as far as that goes; here the recipe says how far: T = t s exp(r), with
    s the root mean square of the layer's units, r learned, and the level t of all layers set so that the whole follows
    the cubic schedule to share `ramp`. The densities of the layers are learned with that, whatever the allocation. From
    share `end` on the mask is fixed.
    """

    name: ClassVar[str] = "autosparse"
    source: ClassVar[str] = "2304.06941"

    alpha: float = 0.75
    rate: float = 0.02
    ramp: float = 0.5
    end: float = 0.75
    every: int = 8

    def __post_init__(self) -> None:
        check_shares(ramp=self.ramp, end=self.end)
        check_shares(alpha=self.alpha)
        check_positive(rate=self.rate, every=self.every)

    def start(self, run: Run) -> None:
        for name, pattern in run.patterns.items():
            if pattern.fixed:
                raise UnsupportedError(
                    f"layer {name!r}: method autosparse cannot train pattern {pattern}",
                    why="its density is fixed, so there is no threshold to learn",
                    fix="take sr-ste for n:m",
                )
        self.memory["dense"] = {name: weight.detach().clone() for name, weight in run.weights().items()}
        self.memory["level"] = dict.fromkeys(run.layers, 0.0)
        self.memory["pull"] = dict.fromkeys(run.layers, 0.0)
        self.memory["threshold"] = dict.fromkeys(run.layers, 0.0)
        self._threshold(run)
        self._show(run)

    def step(self, run: Run) -> None:
        if "dense" not in self.memory:
            run.apply()
            return
        self._absorb(run)
        time = run.progress(0.0, self.end)
        if run.step % self.every == 0 or time >= 1.0:
            if time < 1.0:
                self._learn(run, self.rate * (1.0 - time))
            self._threshold(run)
        self._show(run)
        if time >= 1.0:
            del self.memory["dense"], self.memory["shown"], self.memory["factor"]

    def finish(self, run: Run) -> None:
        if "dense" in self.memory:
            self._absorb(run)
            self._threshold(run, 1.0)
            self._show(run)
            del self.memory["dense"], self.memory["shown"], self.memory["factor"]
        run.apply()

    def _absorb(self, run: Run) -> None:
        """What the optimizer did to the shown weights happens to the dense ones, annealed outside the mask."""
        annealed = self.alpha * 0.5 * (1.0 + math.cos(math.pi * run.progress(0.0, self.end)))
        for name, weight in run.weights().items():
            inside = run.masks[name].to(weight.dtype)
            moved = (weight.data - self.memory["shown"][name]) * (annealed + (1.0 - annealed) * inside)
            self.memory["dense"][name].add_(moved)

    def _learn(self, run: Run, rate: float) -> None:
        """A step of each r along its gradient per weight that is left, against that of the other layers."""
        for name, layer in run.layers.items():
            gradient = layer.weight.grad
            if gradient is None:
                raise UsageError(
                    f"layer {name!r} has no gradient when step() is called",
                    why="method autosparse learns thresholds from gradients",
                    fix="call sparsifier.step() after optimizer.step() and before zero_grad()",
                )
            dense = layer.view(self.memory["dense"][name]).astype(np.float64)
            norms = np.sqrt(unit_sums(run.patterns[name], even_tails(run.patterns[name], dense**2)))
            along = np.where(layer.canonical_mask(run.masks[name]), dense / np.maximum(norms, 1e-30), 0.0)
            found = -self.memory["threshold"][name] * float((layer.view(gradient) * along).sum())
            if not math.isfinite(found):  # an overflow of scaled gradients, which mixed precision skips as well
                continue
            # what a threshold frees or takes goes with the weights that are left
            each = found / max(float(run.masks[name].sum()), 1.0)
            self.memory["pull"][name] = 0.9 * self.memory["pull"][name] + 0.1 * each
        pulls = self.memory["pull"]
        middle = sum(pulls.values()) / len(pulls)
        size = math.sqrt(sum((pull - middle) ** 2 for pull in pulls.values()) / len(pulls))
        for name in run.layers if size > 0 else ():
            self.memory["level"][name] -= rate * (pulls[name] - middle) / size

    def _threshold(self, run: Run, share: float | None = None) -> None:
        """The thresholds that leave what the schedule wants of all weights; masks and factors by them."""
        if share is None:
            share = 1.0 - (1.0 - run.progress(0.0, self.ramp)) ** 3
        scores = run.scores(self.memory["dense"])
        scale, ratios, weights = {}, [], []
        for name, score in scores.items():
            energy = unit_energy(run.patterns[name], score)
            scale[name] = math.sqrt(float(energy.mean())) * math.exp(self.memory["level"][name]) or 1e-30
            ratios.append(np.sqrt(energy) / scale[name])
            weights.append(np.full(energy.size, score.size / energy.size))
        flat, sizes = np.concatenate(ratios), np.concatenate(weights)
        budget = sum((1.0 - share * (1.0 - run.targets[name])) * scores[name].size for name in run.layers)
        order = np.argsort(-flat, kind="stable")
        count = int(np.searchsorted(np.cumsum(sizes[order]), budget + 0.5 * float(sizes[0]), side="right"))
        level = float(flat[order[count]]) if count < flat.size else 0.0
        chosen = np.zeros(flat.size, np.bool_)
        chosen[order[:count]] = True
        masks, at = {}, 0
        self.memory["factor"] = {}
        for (name, layer), ratio in zip(run.layers.items(), ratios, strict=True):
            kept = max(int(chosen[at : at + ratio.size].sum()), 1) / ratio.size
            at += ratio.size
            masks[name] = best_mask(run.patterns[name], scores[name], _at_least(kept, layer.shape, run, name))
            self.memory["threshold"][name] = level * scale[name]
            norms = np.sqrt(unit_sums(run.patterns[name], scores[name]))
            threshold = np.full_like(norms, self.memory["threshold"][name])
            # smaller last groups compete among themselves: their own border where the layer's takes all
            for part in leftovers(run.patterns[name], layer.shape):
                border = norms[part].max(where=~masks[name][part], initial=0.0)
                threshold[part] = np.minimum(threshold[part], border)
            factor = np.maximum(0.0, 1.0 - threshold / np.maximum(norms, 1e-30))
            self.memory["factor"][name] = layer.tensor(np.where(masks[name], factor, 0.0))
        run.set_masks(masks)

    def _show(self, run: Run) -> None:
        for name, weight in run.weights().items():
            weight.data.copy_(self.memory["dense"][name] * self.memory["factor"][name])
        self.memory["shown"] = {name: weight.detach().clone() for name, weight in run.weights().items()}


def _at_least(share: float, shape: tuple[int, int, int], run: Run, name: str) -> float:
    """A density that leaves every row of a constant fan-in a weight."""
    return max(share, 1.0 / (shape[1] * shape[2])) if run.patterns[name].kind == "fanin" else share
