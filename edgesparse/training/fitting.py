"""Fit a pruned model to its dense self by gradient, with the masks as they are: after pruning, from inputs alone.

The loss is the Kullback-Leibler divergence of the outputs on inputs that are changed a little at random. Few inputs are
soon learnt by heart, so some are held back, and the state that agrees best with the dense model on those is kept; it
may be the one that fitting began with. Method "channels" moves a scale and a shift of each output channel only,
"weights" all kept weights and biases. Steps are relative: to a channel's own weights (root mean square), and to its
outputs' standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from edgesparse.errors import UsageError
from edgesparse.passes.layers import weight_layers
from edgesparse.passes.observe import Feeds, output_spread
from edgesparse.passes.reconstruct import can_observe
from edgesparse.sections import Fitting
from edgesparse.training.converter import Converted
from edgesparse.training.distil import logit_loss
from edgesparse.training.finetune import check_equal
from edgesparse.training.inputs import MAX_BYTES, augment
from edgesparse.training.layers import Tensor

LOOKS = 8
"""How often the inputs held back are looked at."""
WARM = 0.1
"""Share of the steps in which the rate rises; it falls as a cosine afterwards."""


@dataclass(frozen=True)
class Fitted:
    """Divergence from the dense model on the inputs held back, nats: before, and of the state kept, made in `step`."""

    before: float
    after: float
    step: int


def fit(
    model: ir.Model,
    dense: ir.Model,
    inputs: Iterable[Feeds],
    settings: Fitting,
    *,
    seed: int = 0,
    tick: Callable[[float, str], None] | None = None,
) -> Fitted:
    """Fit `model` in place to `dense`; zeros stay zeros, and on the inputs held back it is never further from dense.

    Raises
    ------
    UsageError
        Models of several inputs, or fewer than four samples.
    UnsupportedError, ModelError
        A graph that torch cannot take over as it is.
    """
    batch = _batch(model, inputs)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))
    count = max(int(len(batch) * settings.held_back), 1)
    held, trained = batch[order[:count]], batch[order[count:]]
    student, teacher = Converted(model), Converted(dense).eval()
    check_equal(student, model, held[:1])
    check_equal(teacher, dense, held[:1])
    run = _Run(student, teacher, held, settings, _spreads(dense, held))
    run.train(trained, torch.Generator().manual_seed(seed + 1), tick or (lambda share, text: None))
    student.write_back(model)
    return Fitted(run.before, run.best, run.at)


def fitter(tick: Callable[[float, str], None] | None = None) -> Callable[..., dict[str, float]]:
    """`fit` in the form that `passes.sparsify_passes` asks for."""

    def run(
        model: ir.Model, dense: ir.Model, inputs: Iterable[Feeds], settings: Fitting, seed: int
    ) -> dict[str, float]:
        return vars(fit(model, dense, inputs, settings, seed=seed, tick=tick))

    return run


class _Run:
    """The parameters' movement, and the best state seen."""

    def __init__(
        self, student: Converted, teacher: Converted, held: Tensor, settings: Fitting, spreads: dict[str, Any]
    ) -> None:
        self.student, self.teacher, self.held, self.settings = student, teacher, held, settings
        self.name = [student.logits_name()]
        nodes = {f"layers.{slot}": node for node, slot in student._slots.items()}
        self.parameters = dict(student.named_parameters())
        self.start = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.scale: dict[str, Tensor] = {}
        self.moves: dict[str, Tensor] = {}
        for name, value in self.start.items():
            if value.ndim > 1 and settings.method == "channels":
                self.scale[name] = value  # a move is one number a channel: the share by which it grows
                self.moves[name] = torch.zeros(len(value), *[1] * (value.ndim - 1))
            elif value.ndim > 1:
                kept = (value != 0).float()
                size = value.flatten(1).square().sum(1) / kept.flatten(1).sum(1).clamp_min(1)
                self.scale[name] = kept * size.sqrt().reshape(-1, *[1] * (value.ndim - 1))
                self.moves[name] = torch.zeros_like(value)
            else:
                spread = spreads.get(nodes[name.rsplit(".", 1)[0]])
                self.scale[name] = torch.ones_like(value) if spread is None else spread.to(value.dtype)
                self.moves[name] = torch.zeros_like(value)
        with torch.no_grad():
            self.wanted = self.outputs(teacher, held)
            self.before = self.best = float(logit_loss(self.outputs(student, held), self.wanted, temperature=1.0))
        self.at = 0

    def train(self, trained: Tensor, source: torch.Generator, tick: Callable[[float, str], None]) -> None:
        """Make all steps, and go back to the best state."""
        settings = self.settings
        optimizer = torch.optim.Adam(list(self.moves.values()), lr=settings.rate, betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        best = {name: move.clone() for name, move in self.moves.items()}
        left: list[int] = []
        every = max(settings.steps // LOOKS, 1)
        for step in range(1, settings.steps + 1):
            if len(left) < settings.batch:
                left += torch.randperm(len(trained), generator=source).tolist()
            chosen, left = left[: settings.batch], left[settings.batch :]
            batch = augment(trained[chosen], source)
            with torch.no_grad():
                wanted = self.teacher.values(self.name, batch)
            loss = logit_loss(self.student.values(self.name, batch), wanted, temperature=1.0)
            self.student.zero_grad()
            loss.backward()
            for name, value in self.parameters.items():
                if value.grad is None:
                    continue
                moved = value.grad * self.scale[name]
                shape = self.moves[name].shape
                self.moves[name].grad = moved if moved.shape == shape else moved.flatten(1).sum(1).reshape(shape)
            optimizer.step()
            schedule.step()
            self._put(self.moves)
            tick(step / settings.steps, f"fitting, {self.best:.4f} nats on inputs held back")
            if step % every == 0 or step == settings.steps:
                with torch.no_grad():
                    found = float(logit_loss(self.outputs(self.student, self.held), self.wanted, temperature=1.0))
                if found < self.best:
                    self.best, self.at = found, step
                    best = {name: move.clone() for name, move in self.moves.items()}
        self._put(best)

    def outputs(self, module: Converted, inputs: Tensor) -> Tensor:
        """Logits of all inputs, a batch at a time."""
        return torch.cat([module.values(self.name, part) for part in inputs.split(self.settings.batch)])

    def _put(self, moves: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(self.start[name] + self.scale[name] * moves[name])

    def _rate(self, step: int) -> float:
        warm = max(int(self.settings.steps * WARM), 1)
        return min((step + 1) / warm, 1.0) * 0.5 * (1.0 + math.cos(math.pi * min(step / self.settings.steps, 1.0)))


def _batch(model: ir.Model, inputs: Iterable[Feeds]) -> Tensor:
    names = [value.name or "" for value in model.graph.inputs if not value.is_initializer()]
    if len(names) != 1:
        raise UsageError(f"the model has {len(names)} inputs", why="fitting by gradient takes models of one input")
    found, size = [], 0
    for feeds in inputs:
        found.append(np.asarray(feeds[names[0]]))
        size += found[-1].nbytes
        if size > MAX_BYTES:
            raise UsageError(
                f"the samples take more than {MAX_BYTES >> 20} MB",
                why="fitting by gradient keeps them in memory",
                fix="give fewer, or a lower `limit` in the recipe's calibration",
            )
    if len(found) < 4:
        raise UsageError(f"there are {len(found)} samples", why="some are held back, and some fitted to", fix="give 4")
    return torch.from_numpy(np.concatenate(found).astype(np.float32))


def _spreads(dense: ir.Model, held: Tensor) -> dict[str, Tensor]:
    """Standard deviation of each output channel of the dense model's layers, by node name."""
    name = dense.graph.inputs[0].name or ""
    layers = [one for one in weight_layers(dense) if can_observe(dense, one)]
    found = output_spread(dense, layers, [{name: one[None].numpy()} for one in held[:16]])
    return {layer: torch.from_numpy(np.sqrt(spread.variance)) for layer, spread in found.items()}
