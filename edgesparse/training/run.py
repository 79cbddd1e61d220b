"""What every training method works with: layers, targets, masks, the clock, and the projections of the compiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from edgesparse.errors import EdgesparseError, PatternError
from edgesparse.pattern import Array, Mask, SparsePattern, best_mask, fixed_density, keeps
from edgesparse.training.allocation import allocate, even_tails
from edgesparse.training.layers import Layer, Tensor


@dataclass
class Run:
    """The state that methods share.

    Attributes
    ----------
    layers:
        The layers that become sparse, by name.
    patterns, targets:
        Of each layer: its pattern and final density.
    steps, step:
        Optimizer steps planned, and done so far.
    allocation:
        One of `edgesparse.training.allocation.ALLOCATIONS`.
    rng:
        The only source of chance; part of the checkpoint.
    masks:
        Bool tensors of the weights' shapes, True where a weight is kept.
    """

    layers: Mapping[str, Layer]
    patterns: Mapping[str, SparsePattern]
    targets: Mapping[str, float]
    steps: int
    allocation: str
    rng: np.random.Generator
    step: int = 0
    masks: dict[str, Tensor] = field(default_factory=dict)

    def progress(self, begin: float, end: float) -> float:
        """How far the clock is between two shares of the planned steps: 0 before `begin`, 1 from `end` on."""
        share = self.step / self.steps
        return min(max((share - begin) / max(end - begin, 1e-12), 0.0), 1.0)

    def weights(self) -> dict[str, Tensor]:
        """The parameters themselves, by layer."""
        return {name: layer.weight for name, layer in self.layers.items()}

    def scores(
        self, tensors: Mapping[str, Tensor], criterion: Callable[[Array], Array] = np.square
    ) -> dict[str, Array]:
        """Canonical saliency of tensors of the weights' shapes: squared, so that units compare by L2 norm.

        Units that are smaller, as the last groups of a layer may be, count as whole ones (`allocation.even_tails`).
        """
        found = {}
        for name, layer in self.layers.items():
            values = criterion(layer.view(tensors[name]).astype(np.float64))
            found[name] = even_tails(self.patterns[name], values)
            if not np.isfinite(found[name]).all():
                raise NotFiniteError(
                    f"layer {name!r} has weights or gradients that are not finite",
                    why="the loss has probably become NaN or infinite",
                    fix="go back to the last good checkpoint with a lower learning rate",
                )
        return found

    def project(self, scores: Mapping[str, Array], share: float = 1.0) -> dict[str, Mask]:
        """The best masks at `share` of the way from dense (0) to the targets (1), by the run's allocation.

        On the way, `nm:N:M` keeps more of M, as in progressive n:m training; `kernel:K` and `block` likewise.
        """
        names = list(self.layers)
        patterns = [pattern_at(self.patterns[name], self.layers[name].shape, share) for name in names]
        wanted = [1.0 - share * (1.0 - self.targets[name]) for name in names]
        found = allocate(self.allocation, patterns, wanted, [scores[name] for name in names])
        masks = {}
        for name, pattern, density in zip(names, patterns, found, strict=True):
            masks[name] = best_mask(pattern, scores[name], None if pattern.fixed else density)
        return masks

    def set_masks(self, masks: Mapping[str, Mask]) -> None:
        """Take over canonical masks; under DistributedDataParallel those of rank 0, on all ranks."""
        for name, layer in self.layers.items():
            self.masks[name] = layer.mask_tensor(masks[name])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            flat = torch.cat([self.masks[name].reshape(-1).to(torch.uint8) for name in self.layers])
            torch.distributed.broadcast(flat, 0)
            parts = flat.split([self.masks[name].numel() for name in self.layers])
            for name, part in zip(self.layers, parts, strict=True):
                self.masks[name].copy_(part.reshape(self.masks[name].shape).bool())

    def apply(self) -> None:
        """Set what the masks leave out to zero."""
        for name, weight in self.weights().items():
            weight.data.mul_(self.masks[name])


class NotFiniteError(EdgesparseError):
    """A weight, gradient or loss has become NaN or infinite."""


def has_pattern(pattern: SparsePattern, mask: Mask) -> bool:
    """Whether a mask `[Cout, Cin, taps]` keeps the pattern; at constant fan-in, channels may have been given up."""
    alive = mask.reshape(mask.shape[0], -1).any(axis=1)
    if pattern.kind == "fanin" and alive.any():
        mask = mask[alive]
    return keeps(pattern, mask)


def pattern_at(pattern: SparsePattern, shape: tuple[int, int, int], share: float) -> SparsePattern:
    """The pattern at `share` of the way from dense; other than `pattern` itself for those of fixed density only."""
    if not pattern.fixed or share >= 1.0:
        return pattern
    whole = pattern.m if pattern.kind == "nm" else shape[2]
    kept = int(np.ceil(whole - share * (whole - pattern.n) - 1e-9))
    if kept >= whole:
        return SparsePattern("dense")
    return SparsePattern(pattern.kind, kept, pattern.m)


def target_density(pattern: SparsePattern, shape: tuple[int, int, int], density: float | None) -> float:
    """The final density of a layer: the recipe's, or the pattern's own."""
    own = fixed_density(pattern, shape)
    found = density if own is None else own
    if found is None:
        raise PatternError(f"pattern {pattern} needs a density", fix="give a share such as 0.5")
    return found
