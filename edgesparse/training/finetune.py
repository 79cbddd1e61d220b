"""Sparse finetuning from an ONNX model and inputs alone: the dense model is the teacher, so no labels are needed.

The graph goes into torch (`edgesparse.training.converter`), is pruned while it trains to give the dense model's outputs
(softened logits, 1503.02531) and the dense model's values at every sparse layer (SquareHead, 2310.06927), and its
weights go back into the graph. Some inputs are held back: the state that agrees best with the dense model on them is
what is written, as agreement on the inputs trained on says nothing about others (EVIDENCE.md).
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from edgesparse.errors import ModelError, UsageError
from edgesparse.passes import SIMPLIFY, load_model, run_passes, save_model
from edgesparse.passes.graph import static_shape
from edgesparse.passes.prune import LAYERS_KEY, RECIPE_KEY, VERSION_KEY
from edgesparse.recipe import Recipe
from edgesparse.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from edgesparse.training.converter import Converted
from edgesparse.training.distil import SquareHead, logit_loss
from edgesparse.training.inputs import augment, read_inputs
from edgesparse.training.layers import Tensor
from edgesparse.training.run import NotFiniteError
from edgesparse.training.sparsifier import LayerReport, Sparsifier

EVALUATIONS = 12
"""How often the held-back inputs are looked at once the masks are final."""
SAVE_SECONDS = 60.0
FINAL_FROM = 0.75
"""Share of the steps after which the masks are final, whatever the method."""


@dataclass(frozen=True)
class Settings:
    """How to finetune; `steps` None means as many as fit into `minutes`."""

    minutes: float = 30.0
    steps: int | None = None
    batch: int = 16
    rate: float = 5e-4
    seed: int = 0
    method: str = "gradual"
    allocation: str = "lamp"
    held_back: float = 0.15
    patience: int = 5

    def __post_init__(self) -> None:
        for name in ("minutes", "batch", "rate", "patience"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}", why="it must be positive")
        if not 0.0 < self.held_back < 1.0:
            raise UsageError(f"held_back is {self.held_back}", why="it is a share between 0 and 1")


@dataclass(frozen=True)
class Finetuned:
    """What came of it: shares of held-back inputs on which the two models agree, steps done, and the layers."""

    output: Path
    agreement: float
    steps: int
    seconds: float
    layers: tuple[LayerReport, ...]


class _Logits(nn.Module):  # type: ignore[misc]
    """The converted graph up to the logits of its first output."""

    def __init__(self, graph: Converted) -> None:
        super().__init__()
        self.graph = graph
        self.wanted = [graph.logits_name()]

    def forward(self, inputs: Tensor) -> Tensor:
        return self.graph.values(self.wanted, inputs)


def finetune(
    path: Path | str,
    data: Path | str,
    output: Path | str,
    recipe: Recipe,
    settings: Settings | None = None,
    *,
    shapes: dict[str, tuple[int, ...]] | None = None,
    resume: bool = False,
    progress: Callable[[float, str], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> Finetuned:
    """Prune a model by `recipe` while training it to agree with itself, and write the portable ONNX.

    A checkpoint lies beside the output (`OUTPUT.checkpoint`) until it is done; with `resume` a run goes on from it.

    Raises
    ------
    UsageError, UnsupportedError: arguments, data or operators that do not fit.
    CheckpointError: nothing to resume, or the checkpoint of another run.
    NotFiniteError: training diverged; the last good checkpoint stays.
    """
    settings, path, output = settings or Settings(), Path(path), Path(output)
    if not output.parent.is_dir():
        raise UsageError(f"cannot write {output}", why=f"there is no folder {output.parent}")
    tick = progress or (lambda share, text: None)
    model = run_passes(load_model(path, shapes, notice or (lambda text: None)), SIMPLIFY).model
    if len(model.graph.inputs) != 1:
        raise UsageError(f"{path.name} has {len(model.graph.inputs)} inputs", why="finetune takes models of one input")
    shape = static_shape(model.graph.inputs[0])
    assert shape is not None
    inputs = read_inputs(data, shape)
    held = max(int(len(inputs) * settings.held_back), 1)
    if len(inputs) - held < 1:
        raise UsageError(
            f"{data} has {len(inputs)} inputs", why="some are held back, and some must be left to train on"
        )
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(settings.seed))
    held_back, trained = inputs[order[:held]], inputs[order[held:]]
    student = _Logits(Converted(model))
    check_equal(student.graph, model, held_back[:2])
    trainer = _Trainer(student, trained, held_back, recipe, settings, Path(f"{output}.checkpoint"), resume)
    agreement, seconds = trainer.run(tick)
    reports = tuple(trainer.sparsifier.report())
    student.graph.write_back(model)
    said = {one.name: {"pattern": one.pattern, "density": round(one.density, 6)} for one in reports}
    model.metadata_props[RECIPE_KEY] = recipe.to_yaml()
    model.metadata_props[VERSION_KEY] = version("edgesparse")
    model.metadata_props[LAYERS_KEY] = json.dumps(said, sort_keys=True)
    check_equal(student.graph, model, held_back[:2])
    save_model(model, output)
    trainer.checkpoint.unlink(missing_ok=True)
    return Finetuned(output, agreement, trainer.done, seconds, reports)


def check_equal(module: Converted, model: ir.Model, inputs: Tensor, tolerance: float = 1e-5) -> None:
    """Raise ModelError unless torch and onnxruntime agree, one by one and as a batch, to 1e-5 of the largest output."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    module.eval()
    try:
        with torch.no_grad():
            made = module(inputs)
    except RuntimeError as error:
        why = str(error).splitlines()[0][:200]
        raise ModelError("the converted model cannot run in batches", why=why) from error
    ours = made if isinstance(made, tuple) else (made,)
    for index, one in enumerate(inputs):
        for mine, theirs in zip(ours, session.run(None, {name: one[None].numpy()}), strict=True):
            off = float(np.abs(mine[index].numpy() - theirs[0]).max()) / max(float(np.abs(theirs).max()), 1e-12)
            if not off <= tolerance:
                raise ModelError(
                    "the converted model computes other numbers than onnxruntime",
                    why=f"they differ by {off:.2g} of the largest output",
                    fix="report it with the model",
                )


class _Trainer:
    """The loop: steps, checkpoints, and the best state on the held-back inputs."""

    def __init__(
        self,
        student: _Logits,
        trained: Tensor,
        held_back: Tensor,
        recipe: Recipe,
        settings: Settings,
        checkpoint: Path,
        resume: bool,
    ) -> None:
        self.student, self.trained, self.held_back, self.settings = student, trained, held_back, settings
        self.checkpoint = checkpoint
        self.teacher = copy.deepcopy(student).eval()
        for parameter in self.teacher.parameters():
            parameter.requires_grad_(False)
        with torch.no_grad():
            self.wanted = torch.cat([self.teacher(part) for part in held_back.split(settings.batch)])
        self.seconds, self.done, self.stale = 0.0, 0, 0
        self.best: dict[str, Any] = {"loss": math.inf, "agreement": 0.0, "weights": {}}
        self.steps = self._stored_steps() if resume else settings.steps or self._steps_in(settings.minutes * 60)
        names = {f"graph.{module}": name for module, name in student.graph.names.items()}
        self.sparsifier = Sparsifier(
            student, recipe, steps=self.steps, method=settings.method, allocation=settings.allocation, names=names
        )
        sparse = {id(layer.module) for layer in self.sparsifier.run.layers.values()}
        watched = [name for name, module in student.named_modules() if id(module) in sparse]
        self.head = SquareHead(student, self.teacher, watched)
        self.optimizer = torch.optim.Adam(student.parameters(), lr=settings.rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        if resume:
            self._load()

    def run(self, tick: Callable[[float, str], None]) -> tuple[float, float]:
        """Train to the end; the best agreement, and the seconds it took over all processes."""
        began, saved = time.monotonic() - self.seconds, time.monotonic()
        every = max(int(self.steps * (1.0 - FINAL_FROM) / EVALUATIONS), 1)
        self.student.train()
        while self.done < self.steps and self._spent() < 1.0 and self.stale < self.settings.patience:
            loss = self._step()
            self.seconds = time.monotonic() - began
            if max(self.done / self.steps, self._spent()) >= FINAL_FROM and not self.sparsifier.finalized:
                self.sparsifier.finalize()
            left = self.seconds / self.done * (self.steps - self.done)
            text = f"step {self.done}/{self.steps}, loss {loss:.4f}, {self.sparsifier.sparsity:.0%} sparse"
            tick(self.done / self.steps, f"{text}, {left / 60:.1f} min left")
            if self.sparsifier.finalized and (self.done % every == 0 or self.done == self.steps):
                self._evaluate()
                tick(self.done / self.steps, f"{text}, agreement {self.best['agreement']:.1%}")
            if time.monotonic() - saved > SAVE_SECONDS:
                self._save()
                saved = time.monotonic()
        self.sparsifier.finalize()
        self._evaluate()
        self.head.close()
        if not self.best["weights"]:
            raise NotFiniteError("the finetuned model's outputs are not finite", fix="lower the learning rate")
        with torch.no_grad():
            for name, value in self.student.named_parameters():
                value.copy_(self.best["weights"][name])
        return self.best["agreement"], self.seconds

    def _step(self) -> float:
        source = torch.Generator().manual_seed(
            (self.settings.seed << 32) + self.done
        )  # so that a resumed run is the same
        rows = torch.randint(0, len(self.trained), (self.settings.batch,), generator=source)
        batch = augment(self.trained[rows], source)
        self.optimizer.zero_grad()
        logits = self.student(batch)
        features = self.head.loss(batch)
        loss = features + self._distance(logits, self.head.logits) + self.sparsifier.regularizer()
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.sparsifier.step(loss)
        self.done += 1
        return float(loss.detach())

    def _distance(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Between outputs: of classes by their probabilities, of anything else by relative squares."""
        if ours.ndim == 2 and ours.shape[1] > 1:
            return logit_loss(ours, theirs, temperature=1.0)
        return nn.functional.mse_loss(ours, theirs) / theirs.square().mean().clamp_min(1e-12)

    def _spent(self) -> float:
        """Share of the time budget that is spent; 0 where steps are given instead."""
        return 0.0 if self.settings.steps is not None else self.seconds / (60 * self.settings.minutes)

    def _evaluate(self) -> None:
        """Look at the held-back inputs; keep the weights if they are the best so far."""
        self.student.eval()
        with torch.no_grad():
            parts = []
            for part in self.held_back.split(self.settings.batch):
                parts.append(self.student(part))
            ours = torch.cat(parts)
            loss = float(self._distance(ours, self.wanted))
            same = (ours.argmax(1) == self.wanted.argmax(1)).float().mean() if ours.ndim > 1 else torch.ones(())
        self.student.train()
        if loss < self.best["loss"]:
            weights = {name: value.detach().clone() for name, value in self.student.named_parameters()}
            self.best = {"loss": loss, "agreement": float(same), "weights": weights}
            self.stale = 0
        else:
            self.stale += 1

    def _rate(self, step: int) -> float:
        """Up in the first twentieth, then down as a cosine."""
        share = step / self.steps
        return min(share / 0.05 + 0.01, 1.0) * (0.5 + 0.5 * math.cos(math.pi * min(share, 1.0)) + 0.01)

    def _steps_in(self, seconds: float) -> int:
        """Steps that fit, from the time of three on a copy; a sixth is left for evaluation and a busier machine."""
        twin = copy.deepcopy(self.student).train()
        batch = self.trained[torch.arange(self.settings.batch) % len(self.trained)]
        took = []
        for _ in range(3):
            began = time.monotonic()
            with torch.no_grad():
                self.teacher(batch)
            twin(batch).square().mean().backward()
            took.append(time.monotonic() - began)
        return max(int(seconds / 1.2 / max(min(took[1:]) * 1.2, 1e-4)), 8)

    def _parts(self) -> dict[str, Any]:
        return {
            "student": self.student,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "sparsifier": self.sparsifier,
        }

    def _save(self) -> None:
        plain = {
            "steps": self.steps,
            "done": self.done,
            "seconds": self.seconds,
            "stale": self.stale,
            "best": self.best,
        }
        save_checkpoint(self.checkpoint, {**self._parts(), **plain})

    def _load(self) -> None:
        plain = load_checkpoint(self.checkpoint, self._parts())
        self.done, self.seconds = plain["done"], plain["seconds"]
        self.stale, self.best = plain["stale"], plain["best"]

    def _stored_steps(self) -> int:
        steps = load_checkpoint(self.checkpoint, {}).get("steps")
        if not isinstance(steps, int):
            raise CheckpointError(f"{self.checkpoint} is not a checkpoint of finetune")
        return steps
