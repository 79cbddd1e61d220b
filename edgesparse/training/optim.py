"""Adam of relative steps, so that a rate means the same in every layer, and the moving average of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from edgesparse.training.layers import Module, Tensor

FLOOR = 1e-3
"""Size of what is all zero, e.g. a bias that has not learnt anything yet."""


LEAST_DECAY = 0.97
"""Of the moving average: it reaches back 33 steps."""


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


class Average:
    """Exponential moving average of a module's parameters: Polyak and Juditsky, SIAM J. Control Optim. 30 (1992).

    Few inputs make noisy steps, and their mean is better than any of them. It begins with the plain mean.
    """

    def __init__(self, module: Module, decay: float = LEAST_DECAY) -> None:
        self.module, self.decay, self.count = module, decay, 0
        self.values = {name: value.detach().clone() for name, value in module.named_parameters()}

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def update(self) -> None:
        """Take in the present parameters."""
        self.count += 1
        new = max(1.0 - self.decay, 1.0 / self.count)
        for name, value in self.module.named_parameters():
            self.values[name].lerp_(value, new)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The module with the mean for its parameters, for as long."""
        with torch.no_grad():
            own = {name: value.detach().clone() for name, value in self.module.named_parameters()}
            self._set(self.values if self.count else own)
            try:
                yield
            finally:
                self._set(own)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"count": self.count, "values": self.values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there. KeyError or RuntimeError where it is of another module."""
        for name, value in self.values.items():
            value.copy_(state["values"][name])
        self.count = int(state["count"])

    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, value in self.module.named_parameters():
            value.copy_(values[name])
