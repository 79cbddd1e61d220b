"""One sparse training run on labelled data, as `benchmarks/training.py` asks for it: networks, data, loops, averages.

Every run starts from a dense network and trains it on for the same number of epochs, whatever the method. The 1x1
convolutions and, for digits, the last layer are pruned; stem and depthwise layers stay dense, as in the field.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgesparse.models import digits, fashion
from edgesparse.recipe import Recipe
from edgesparse.training import Sparsifier, methods
from edgesparse.training.activations import rechoose
from edgesparse.training.distil import logit_loss
from edgesparse.training.soup import average, recalibrate
from edgesparse.training.soup import share as meet

METHODS = [*(name for name in methods() if name != "given"), "soup", "swamp", "safs"]
Key = tuple[str, str, float, str, bool, int, float]
"""Of a run, as `training_table.py` reads it: method, pattern, sparsity, allocation, whether distilled, seed, epochs."""
JUDGED = 1000
"""Most inputs that judge which activations are best."""


@dataclass(frozen=True)
class Task:
    """A network, its data, and how long it trains: `dense_epochs` before, `epochs` more with a method.

    Judged by the first `judged` of the evaluation pictures, or by all.
    With a `dense_seed` all runs begin with that dense network, else each with that of its own seed.
    """

    name: str
    module: Any
    targets: tuple[str, ...]
    dense_epochs: int
    epochs: float
    batch: int
    rate: float
    dense_seed: int | None = None
    judged: int | None = None

    @property
    def data(self) -> str:
        """The data's name, which tasks of one network share."""
        return self.name.partition("-")[0]

    def augmented(self, inputs: Any) -> tuple[Any, Any]:
        """A batch, changed at random as in the training of the dense network; and which of them are mirrored."""
        if self.data == "digits":
            return digits._shifted(inputs).contiguous(memory_format=torch.channels_last), None
        flips = torch.rand(len(inputs)) < 0.5
        inputs[flips] = inputs[flips].flip(3)
        return inputs.contiguous(memory_format=torch.channels_last), flips


TASKS = {
    "digits": Task("digits", digits, ("re:expand[.]conv|pointwise2?[.]conv|head[.]fc",), 40, 30, 64, 1e-2),
    "fashion-short": Task("fashion-short", fashion, ("re:block[0-9][.]pointwise[.]conv",), 4, 0.1, 64, 5e-3, 0, 5000),
    "fashion": Task("fashion", fashion, ("re:block[0-9][.]pointwise[.]conv",), 4, 3, 128, 5e-3, 0),
}
"""The short one trains 93 steps: as far as a method comes in seconds."""


@functools.cache
def loaded(name: str) -> Any:
    """Training and evaluation halves of the data, each inputs and classes."""
    return [tuple(map(torch.from_numpy, half)) for half in TASKS[name].module.load()]


class Teacher:
    """The dense network, and its logits for augmented inputs: kept in a file where they are few."""

    def __init__(self, task: Task, model: Any, path: Path) -> None:
        self.model, self.path, self.judged = model, path, task.judged
        self.inputs, self.held = loaded(task.data)[0][0], loaded(task.data)[1]
        self.known: list[Any] = []
        self.few = task.data == "fashion"  # as it is, and mirrored

    @functools.cached_property
    def accuracy(self) -> float:
        """Percent of the evaluation pictures."""
        return accuracy(self.model, self.held, self.judged)

    def logits(self, rows: Any, batch: Any, flips: Any) -> Any:
        """Of the augmented batch, made of these rows of the inputs."""
        with torch.no_grad():
            if not self.few:
                return self.model(batch)
            if not self.known and self.path.is_file():
                self.known = torch.load(self.path, weights_only=True)
            if not self.known:
                for half in (self.inputs, self.inputs.flip(3)):
                    parts = (part.contiguous(memory_format=torch.channels_last) for part in half.split(500))
                    self.known.append(torch.cat([self.model(part) for part in parts]))
                torch.save(self.known, self.path)
            return torch.where(flips[:, None], self.known[1][rows], self.known[0][rows])


def run(task: Task, data: Any, teacher: Teacher, key: Key, export: Path | None) -> dict[str, Any]:
    """Train one network; its accuracy in percent, its sparsity, and the seconds."""
    method, pattern, sparsity, allocation, distil, seed, epochs = key
    torch.manual_seed(1000 + seed)
    model = copy.deepcopy(teacher.model).train()
    fit = Fit(task, data[0], teacher, distil)
    share = {} if pattern.startswith("nm") else {"sparsity": sparsity}
    recipe = Recipe.from_dict({"targets": list(task.targets), "pattern": pattern, "seed": seed, **share})
    sparsifier = None
    if method == "dense, longer":
        fit.train(model, None, epochs)
    elif method in ("soup", "swamp"):
        sparsifier = {"soup": soup, "swamp": swamp}[method](fit, model, recipe, allocation, epochs)
    else:
        if method == "safs":
            rechosen(fit, model, recipe, allocation, seed)
        name = "gradual" if method == "safs" else method
        sparsifier = Sparsifier(model, recipe, steps=fit.steps(epochs), method=name, allocation=allocation)
        fit.train(model, sparsifier, epochs, sparsifier.method.begins)
    row: dict[str, Any] = {
        "seconds": round(fit.seconds, 1),
        "overhead": round(fit.spent / (fit.seconds - fit.spent), 4),
    }
    if sparsifier is not None:
        model = sparsifier.model
        sparsifier.finalize()
        row["reached"] = round(sparsifier.sparsity, 4)
        if export is not None and not export.is_file():
            row["onnx"] = sparsifier.export(export, data[0][0][:1]).name
    return {"accuracy": accuracy(model, data[1], task.judged), **row}


class Fit:
    """Training epochs on labelled inputs, and how much of their time the sparsifier took."""

    def __init__(self, task: Task, data: Any, teacher: Teacher, distil: bool) -> None:
        self.task, self.teacher, self.distil = task, teacher, distil
        self.inputs, self.classes = data
        self.seconds = self.spent = 0.0

    def steps(self, epochs: float) -> int:
        """Optimizer steps of so many epochs."""
        return max(int(len(self.classes) // self.task.batch * epochs), 1)

    def train(self, model: Any, sparsifier: Sparsifier | None, epochs: float, begins: Sequence[float] = (0.0,)) -> None:
        """From a rate of zero over the highest back to zero, anew at each of these shares of the steps."""
        steps = self.steps(epochs)
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.task.rate, weight_decay=1e-2, fused=True)
        model.train()
        began = time.perf_counter()
        bounds = [math.ceil(share * steps) for share in (*begins, 1.0)]
        lengths = dict(zip(bounds, (end - at for at, end in itertools.pairwise(bounds)), strict=False))
        schedule: Any = None
        for step, rows in enumerate(self.batches(steps)):
            if step in lengths:
                schedule = torch.optim.lr_scheduler.OneCycleLR(
                    optimizer, max_lr=self.task.rate, total_steps=max(lengths[step], 10), pct_start=0.2
                )
            batch, flips = self.task.augmented(self.inputs[rows])
            optimizer.zero_grad()
            logits = model(batch)
            loss = nn.functional.cross_entropy(logits, self.classes[rows])
            if self.distil:
                loss = 0.3 * loss + 0.7 * logit_loss(logits, self.teacher.logits(rows, batch, flips))
            tick = time.perf_counter()
            if sparsifier is not None:
                loss = loss + sparsifier.regularizer()
            self.spent += time.perf_counter() - tick
            loss.backward()
            optimizer.step()
            schedule.step()
            tick = time.perf_counter()
            if sparsifier is not None:
                sparsifier.step(loss)
            self.spent += time.perf_counter() - tick
        self.seconds += time.perf_counter() - began

    def batches(self, steps: int) -> Iterator[Any]:
        """Rows of the batches, every epoch in an order of its own."""
        left: list[Any] = []
        for _ in range(steps):
            if not left:
                whole = len(self.classes) // self.task.batch * self.task.batch
                left = list(torch.randperm(len(self.classes))[:whole].split(self.task.batch))[::-1]
            yield left.pop()

    def averaged(self, particles: Sequence[Sparsifier]) -> Sparsifier:
        """The mean of runs that share a mask, with batch norms' statistics of its own."""
        made = average(particles)
        recalibrate(made, (self.task.augmented(self.inputs[rows])[0] for rows in self.batches(20)))
        return Sparsifier(made, particles[0].recipe, steps=1, method="given")


def soup(fit: Fit, model: Any, recipe: Recipe, allocation: str, epochs: float) -> Sparsifier:
    """Sparse model soup (2306.16788): gradual in the first half, two particles in the second, and their mean."""
    first = Sparsifier(model, recipe, steps=fit.steps(epochs / 2), allocation=allocation)
    fit.train(model, first, epochs / 2)
    first.finalize()
    particles = []
    for _ in range(2):
        twin = copy.deepcopy(model)
        particles.append(Sparsifier(twin, recipe, steps=fit.steps(epochs / 2), method="given"))
        fit.train(twin, particles[-1], epochs / 2)
    return fit.averaged(particles)


def swamp(fit: Fit, model: Any, recipe: Recipe, allocation: str, epochs: float, rounds: int = 3) -> Sparsifier:
    """SWAMP (2305.14852): rounds of pruning, in each of which two particles train and meet in their mean.

    Half of the epochs are the last round's.
    """
    models = [model, copy.deepcopy(model)]
    final = recipe.density if recipe.density is not None else 0.5
    particles: list[Sparsifier] = []
    for number in range(1, rounds + 1):
        step = recipe if recipe.pattern.fixed else replace(recipe, density=final ** (number / rounds))
        particles = [Sparsifier(one, step, steps=1, allocation=allocation) for one in models]
        for one in particles:
            one.finalize()
            fit.train(one.model, one, epochs / 2 if number == rounds else epochs / 2 / (rounds - 1))
        if number < rounds:
            meet(particles)
    return fit.averaged(particles)


def rechosen(fit: Fit, model: Any, recipe: Recipe, allocation: str, seed: int) -> None:
    """Activation re-choice (2305.10964), judged by trainings a tenth as long on training inputs held back."""
    epochs = fit.task.epochs / 10
    cut = min(len(fit.classes) // 5, JUDGED)
    held, part = (fit.inputs[:cut], fit.classes[:cut]), (fit.inputs[cut:], fit.classes[cut:])

    def judge(candidate: Any) -> float:
        torch.manual_seed(seed)
        short = Fit(fit.task, part, fit.teacher, False)
        sparsifier = Sparsifier(candidate, recipe, steps=short.steps(epochs), allocation=allocation)
        short.train(candidate, sparsifier, epochs)
        candidate.eval()
        with torch.no_grad():
            return float(nn.functional.cross_entropy(candidate(held[0]), held[1]))

    rechoose(model, judge, rounds=8, seed=seed)


@functools.cache
def dense(task: Task, seed: int, folder: Path) -> Teacher:
    """The trained dense network of a seed, kept in a file beside the results."""
    path = folder / f"{task.data}-dense-{seed}.pt"
    model = task.module.network()
    if path.is_file():
        model.load_state_dict(torch.load(path, weights_only=True))
    elif task.data == "digits":
        model = digits.trained(seed=seed)
    else:
        torch.manual_seed(seed)
        model = task.module.network()
        train_dense(TASKS[task.data], model.to(memory_format=torch.channels_last).train())
    if not path.is_file():
        torch.save(model.state_dict(), path)
    logits = folder / f"{task.data}-dense-{seed}-logits.pt"
    return Teacher(task, model.to(memory_format=torch.channels_last).eval(), logits)


def train_dense(task: Task, model: Any) -> None:
    """From untrained to dense, by the labels."""
    inputs, classes = loaded(task.data)[0]
    steps = len(classes) // task.batch * task.dense_epochs
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    for _ in range(task.dense_epochs):
        order = torch.randperm(len(classes))[: steps // task.dense_epochs * task.batch]
        for rows in order.split(task.batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(task.augmented(inputs[rows])[0]), classes[rows]).backward()
            optimizer.step()
            schedule.step()


def accuracy(model: Any, held: Any, judged: int | None = None) -> float:
    """Percent of the evaluation pictures, or of so many of them, whose class the model finds."""
    held = [half[:judged] for half in held]
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(a).argmax(1) == b).sum()) for a, b in zip(held[0].split(64), held[1].split(64), strict=True)
        )
    return 100 * right / len(held[1])
