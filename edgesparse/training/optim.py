"""Adam of relative steps: a rate means the same in every layer, also where batch norms are folded into weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from edgesparse.training.layers import Tensor

FLOOR = 1e-3
"""Size of what is all zero, e.g. a bias that has not learnt anything yet."""


class RelativeAdam(torch.optim.Adam):  # type: ignore[misc]
    """Adam, each step times the size of what it changes: relative step sizes as in Adafactor (1804.04235).

    The size is the root mean square of the kept weights of an output channel, and of a whole bias. Folding a batch
    norm multiplies each channel by a factor of its own; a rate of 0.005 is half a per cent of each all the same.
    """

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of Adam, scaled."""
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        before = [parameter.detach().clone() for parameter in parameters]
        found = super().step(closure)
        for parameter, old in zip(parameters, before, strict=True):
            parameter.sub_(old).mul_(size(old)).add_(old)
        return found


def size(values: Tensor) -> Tensor:
    """Root mean square of the non-zeros: per output channel, shaped to multiply with; of a vector as a whole."""
    flat = values.flatten(1) if values.ndim > 1 else values.reshape(1, -1)
    kept = (flat != 0).sum(1).clamp_min(1)
    found = (flat.square().sum(1) / kept).sqrt()
    found = torch.where(found > 0, found, torch.full_like(found, FLOOR))
    return found.reshape(-1, *[1] * (values.ndim - 1)) if values.ndim > 1 else found
