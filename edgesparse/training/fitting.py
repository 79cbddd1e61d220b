"""Fit a pruned model to its dense self by gradient, with the masks as they are: after pruning, from inputs alone.

The loss is `features.feature_loss` at the pruned layers and, where there are enough inputs for that, the outputs'
distance (`features.teaching`), on inputs that are changed a little at random. Few inputs are soon learnt by heart, so
some are held back, and the state that agrees best with the dense model on those is kept; it may be the one that fitting
began with. Method "weights" moves all kept weights and biases, "channels" a scale and a shift of each output channel
only. Steps are relative: to a channel's own weights (root mean square), and to its outputs' standard deviation.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
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
from edgesparse.training.features import feature_loss, output_distance, sharpness, teaching
from edgesparse.training.finetune import check_equal
from edgesparse.training.inputs import MAX_BYTES, augment, crop
from edgesparse.training.layers import Tensor

LOOKS = 8
"""How often the inputs held back are looked at."""
WARM = 0.1
"""Share of the steps in which the rate rises; it falls as a cosine afterwards."""
MOST_WORK = 2 << 40
"""Multiply-adds of the dense model in all inputs of an unasked fitting: minutes; a step is three or four times that."""
LEAST_STEPS = 20
"""Steps of an unasked fitting, below which it is not worth beginning."""
PHOTOGRAPH = 64
"""Pixels on the shorter side from which on inputs of three channels are taken for photographs."""
SMALLER = 5 / 7
"""Side of crops, of that of photographs, where the network takes such: half the work, and as good."""


@dataclass(frozen=True)
class Fitted:
    """How far the outputs for the inputs held back are from the dense model's (`features.output_distance`): before, and
    for the state kept, made in `step`; logits were multiplied by `factor`.
    """

    before: float
    after: float
    step: int
    factor: float


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
        Models of several inputs, fewer than four samples, or method "auto" and a model too large for it.
    UnsupportedError, ModelError
        A graph that torch cannot take over as it is.
    """
    batch = _batch(model, inputs)
    settings = _settled(settings, dense, batch)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))
    count = max(int(len(batch) * settings.held_back), 1)
    held, trained = batch[order[:count]], batch[order[count:]]
    student, teacher = Converted(model), Converted(dense).eval()
    check_equal(student, model, held[:1])
    check_equal(teacher, dense, held[:1])
    if batch.ndim == 4:  # torch's convolutions are faster so
        student, teacher = (one.to(memory_format=torch.channels_last) for one in (student, teacher))
        held, trained = (one.contiguous(memory_format=torch.channels_last) for one in (held, trained))
    with _one_thread():
        run = _Run(student, teacher, held, settings, _spreads(dense, held), len(trained))
        run.train(trained, torch.Generator().manual_seed(seed + 1), tick or (lambda share, text: None))
    student.write_back(model)
    return Fitted(run.before, run.best, run.at, run.factor)


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
        self,
        student: Converted,
        teacher: Converted,
        held: Tensor,
        settings: Fitting,
        spreads: dict[str, Any],
        count: int,
    ) -> None:
        self.student, self.teacher, self.held, self.settings = student, teacher, held, settings
        self.name = [student.logits_name()]
        nodes = {f"layers.{slot}": node for node, slot in student._slots.items()}
        sparse = [node for module, node in student.names.items() if not student.get_submodule(module).weight.all()]
        self.places = student.places(sparse or list(student.names.values()))
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
            self.teach = teaching(self.wanted, count)
            self.before = float(output_distance(self.outputs(student, held), self.wanted))
            self.best, self.factor = self.look()
        self.at = 0
        self.side = self.smaller() if settings.augment == "crop" else None

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
            batch = augment(trained[chosen], source, settings.augment, self.side)
            with torch.no_grad():
                *right, wanted = self.teacher.values([*self.places, *self.name], batch)
            *values, logits = self.student.values([*self.places, *self.name], batch)
            loss = feature_loss(values, right)
            if self.teach == "both":
                loss = loss + output_distance(logits, wanted)
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
                found, factor = self.look()
                if found < self.best:
                    self.best, self.factor, self.at = found, factor, step
                    best = {name: move.clone() for name, move in self.moves.items()}
        self._put(best)
        self.student.sharpen(self.factor)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def look(self) -> tuple[float, float]:
        """Distance of the outputs for the inputs held back, and the factor of logits that it is for."""
        ours = self.outputs(self.student, self.held)
        plain = self.teach == "both" or self.wanted.ndim != 2 or self.student.head() is None
        factor = 1.0 if plain else sharpness(ours, self.wanted)
        return float(output_distance(factor * ours, self.wanted)), factor

    def smaller(self) -> int | None:
        """Side of crops in pixels; None where the network takes no smaller ones than its inputs are."""
        side = round(min(self.held.shape[2:]) * SMALLER)
        try:
            with torch.no_grad():
                made = self.outputs(self.teacher, crop(self.held[:1], torch.Generator().manual_seed(0), side))
        except RuntimeError:  # torch's, of shapes that do not go together
            return None
        return side if made.shape[1:] == self.wanted.shape[1:] else None

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


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order, whatever the machine: the same inputs give the same bytes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _settled(settings: Fitting, dense: ir.Model, batch: Tensor) -> Fitting:
    """The settings with nothing left open."""
    if settings.augment == "auto":
        photograph = batch.ndim == 4 and batch.shape[1] == 3 and min(batch.shape[2:]) >= PHOTOGRAPH
        settings = replace(settings, augment="crop" if photograph else "shift")
    if settings.method != "auto":
        return settings
    work = sum(layer.macs for layer in weight_layers(dense))
    steps = min(settings.steps, int(MOST_WORK / max(work * settings.batch, 1)))
    if steps < LEAST_STEPS:
        why = f"a step would take {work * settings.batch / 1e9:.0f} billion multiply-adds"
        raise UsageError("the model is large", why=why, fix="a recipe's `fitting: {method: weights}` asks for it")
    return replace(settings, method="weights", steps=steps)


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
