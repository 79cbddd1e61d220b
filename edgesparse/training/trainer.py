"""The loop of finetuning: steps, rates, the budget of time, and checkpoints."""

from __future__ import annotations

import bisect
import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgesparse.errors import UsageError
from edgesparse.recipe import Recipe
from edgesparse.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from edgesparse.training.converter import Converted
from edgesparse.training.features import feature_loss, narrow, output_distance, sharpness, teaching
from edgesparse.training.inputs import AUGMENTATIONS, augment
from edgesparse.training.judging import Judge, blends, parts, put, state
from edgesparse.training.layers import Tensor
from edgesparse.training.optim import LEAST_DECAY, Average, RelativeAdam
from edgesparse.training.run import NotFiniteError
from edgesparse.training.sparsifier import Sparsifier

EVALUATIONS = 16
"""How often the held-back inputs are looked at once the masks are final."""
SAVE_SECONDS = 60.0
FINAL_FROM = 0.75
"""Share of the steps after which the masks are final, whatever the method."""
RATE, REPAIR_RATE = 5e-3, 2e-3
"""Of training that prunes, and of what is pruned and repaired already."""
AVERAGED = 1 / 30
"""Share of the steps that the moving average of the weights reaches back; `optim.Average` has the least."""
MEASURED, SLACK = 8, 0.95
"""Steps after which their pace is known, and the share of the steps planned below which they are planned anew."""
WHOLE_FROM = 2 / 3
"""Share of the steps from which on photographs are shown whole and in their own size, as in the end: what is learnt on
parts does not all hold for wholes (1906.06423)."""
STALE_FROM = 0.5
"""Share of the steps before which no look is stale: what large steps blur comes back as they get smaller."""
TEACHINGS = ("features", "both")
"""What the dense model teaches: its values at every sparse layer, or those and its outputs."""


@dataclass(frozen=True)
class Settings:
    """How to finetune; `steps` None means as many as fit into `minutes`.

    `rate` is relative (`edgesparse.training.optim`). `method` None is "gradual", or "given" where the recipe has pruned
    before; `rate` None is `RATE`, or then `REPAIR_RATE`. `augment` is one of `AUGMENTATIONS`, `crop_size` the shorter
    side of crops in pixels, where they are to be smaller than the inputs and so cheaper. `teach` is one of `TEACHINGS`;
    None is "features" where there are fewer inputs to train on than classes, as such outputs teach the classes that are
    there and not the others, else "both". After `patience` looks at the inputs held back without a gain, all in the
    second half, training stops.
    """

    minutes: float = 30.0
    steps: int | None = None
    batch: int = 16
    rate: float | None = None
    seed: int = 0
    method: str | None = None
    allocation: str = "lamp"
    held_back: float = 0.15
    patience: int = 6
    augment: str = "shift"
    crop_size: int | None = None
    teach: str | None = None

    def __post_init__(self) -> None:
        for name in ("minutes", "batch", "rate", "patience", "crop_size"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name} is {value}", why="it must be positive")
        if self.crop_size is not None and self.augment not in ("crop", "strong"):
            raise UsageError(f"crop_size is {self.crop_size}", why=f"augmentation {self.augment!r} makes no crops")
        if self.augment not in AUGMENTATIONS:
            raise UsageError(f"unknown augmentation {self.augment!r}", fix=f"take {', '.join(AUGMENTATIONS)}")
        if self.teach is not None and self.teach not in TEACHINGS:
            raise UsageError(f"nothing teaches {self.teach!r}", fix=f"take {', '.join(TEACHINGS)}")
        if not 0.0 < self.held_back < 1.0:
            raise UsageError(f"held_back is {self.held_back}", why="it is a share between 0 and 1")


class Logits(nn.Module):  # type: ignore[misc]
    """The converted graph up to the logits of its first output."""

    def __init__(self, graph: Converted) -> None:
        super().__init__()
        self.graph = graph
        self.wanted = [graph.logits_name()]

    def forward(self, inputs: Tensor) -> Tensor:
        return self.graph.values(self.wanted, inputs)


class Trainer:
    """The loop: steps, checkpoints, and the best state on the held-back inputs."""

    def __init__(
        self,
        teacher: Logits,
        student: Logits,
        trained: Tensor,
        held_back: Tensor,
        recipe: Recipe,
        method: str,
        settings: Settings,
        checkpoint: Path,
        resume: bool,
        identity: Mapping[str, str],
    ) -> None:
        self.student, self.settings = student, settings
        self.trained, self.held_back = trained, held_back
        self.checkpoint = checkpoint
        self.identity = dict(identity)
        self.teacher = teacher.eval()
        if trained.ndim == 4:  # torch's convolutions are faster so
            for part in (self.teacher, student):
                part.to(memory_format=torch.channels_last)
            self.trained, self.held_back = (
                one.contiguous(memory_format=torch.channels_last) for one in (trained, held_back)
            )
        for parameter in self.teacher.parameters():
            parameter.requires_grad_(False)
        views = parts(self.held_back, settings.seed) if settings.augment in ("crop", "strong") else []
        self.judge = Judge(self.teacher, self.held_back, views, settings.batch)
        self._try_crops()
        self.seconds, self.done = 0.0, 0
        if resume:
            self._compare()
        self.steps = self._stored_steps() if resume else settings.steps or self._steps_in(settings.minutes * 60)
        names = {f"graph.{module}": name for module, name in student.graph.names.items()}
        self.sparsifier = Sparsifier(
            student, recipe, steps=self.steps, method=method, allocation=settings.allocation, names=names
        )
        # masks that never change are final from the start, and the first state is one to beat
        self.final_from = 0.0 if method == "given" else FINAL_FROM
        self.start = state(student)
        self.places = self._places()
        self.teach = settings.teach or teaching(self.judge.wanted, len(trained))
        rate = settings.rate or (REPAIR_RATE if method == "given" else RATE)
        self.optimizer = RelativeAdam(student.parameters(), lr=rate)
        self.average = Average(student, max(1.0 - 1.0 / (AVERAGED * self.steps), LEAST_DECAY))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        if resume:
            self._load()

    def run(self, tick: Callable[[float, str], None]) -> tuple[float, float]:
        """Train to the end; the best agreement, and the seconds it took over all processes."""
        began, saved = time.monotonic() - self.seconds, time.monotonic()
        self.student.train()
        if self.done == 0 and self.final_from == 0.0:
            self.sparsifier.finalize()
            self._evaluate()
        if self.done == 0:
            self._save()  # so that --resume has something to go on from, however early the end comes
        while self.done < self.steps and self._spent() < 1.0 and self.judge.stale < self.settings.patience:
            loss = self._step()
            self.seconds = time.monotonic() - began
            self._fit_budget()
            every = max(int(self.steps * (1.0 - self.final_from) / EVALUATIONS), 1)
            if max(self.done / self.steps, self._spent()) >= self.final_from and not self.sparsifier.finalized:
                self.sparsifier.finalize()
            left = self.seconds / self.done * (self.steps - self.done)
            text = f"step {self.done}/{self.steps}, loss {loss:.4f}, {self.sparsifier.sparsity:.0%} sparse"
            tick(self.done / self.steps, f"{text}, {left / 60:.1f} min left")
            if self.sparsifier.finalized and (self.done % every == 0 or self.done == self.steps):
                self._evaluate()
                tick(self.done / self.steps, f"{text}, agreement {self.judge.best.get('agreement', 0.0):.1%}")
            if time.monotonic() - saved > SAVE_SECONDS:
                self._save()
                saved = time.monotonic()
        self.sparsifier.finalize()
        self._evaluate()
        best = self.judge.best
        if "weights" not in best:
            raise NotFiniteError("the finetuned model's outputs are not finite", fix="lower the learning rate")
        put(self.student, best["weights"])
        self.student.graph.sharpen(best["factor"])
        return best["agreement"], self.seconds

    def _step(self) -> float:
        source = torch.Generator().manual_seed(
            (self.settings.seed << 32) + self.done
        )  # so that a resumed run is the same
        rows = torch.randint(0, len(self.trained), (self.settings.batch,), generator=source)
        whole = self.settings.augment == "strong" and self.done >= WHOLE_FROM * self.steps
        batch = self._changed(self.trained[rows], source, whole=whole)
        self.optimizer.zero_grad()
        with torch.no_grad():
            wanted = self.teacher.graph.values([*self.places, *self.teacher.wanted], batch)
        found = self.student.graph.values([*self.places, *self.student.wanted], batch)
        loss = self._apart(found, wanted) + self.sparsifier.regularizer()
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.sparsifier.step(loss)
        if self.sparsifier.finalized:
            self.average.update()
        self.done += 1
        return float(loss.detach())

    def _apart(self, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
        """The loss, from the values at all places and the logits of both."""
        features = feature_loss(ours[:-1], theirs[:-1])
        return features if self.teach == "features" else features + output_distance(ours[-1], theirs[-1])

    def _sharpness(self, ours: Tensor) -> float:
        """The factor that logits lack which nothing but features has taught."""
        if self.teach == "both" or ours.ndim != 2 or self.student.graph.head() is None:
            return 1.0
        return sharpness(ours, self.judge.wanted)

    def _spent(self) -> float:
        """Share of the time budget that is spent; 0 where steps are given instead."""
        return 0.0 if self.settings.steps is not None else self.seconds / (60 * self.settings.minutes)

    def _fit_budget(self) -> None:
        """Plan fewer steps where they take longer than was measured, so that masks and rates come to their ends."""
        fit = int(self.done / self._spent()) if self._spent() > 0.0 and self.done >= MEASURED else self.steps
        if fit < SLACK * self.steps:
            self.steps = self.sparsifier.run.steps = max(fit, self.done + 1)

    def _evaluate(self) -> None:
        """Look at the inputs held back with the mean of the weights, and with parts of it taken back."""
        late = self.done >= STALE_FROM * self.steps
        with self.average.in_place():
            # what began with all of its weights has other zeros now
            others = blends(self.start, state(self.student)) if self.final_from == 0.0 and self.done > 0 else ()
            self.judge.look(self.student, self.done, self._sharpness, late=late, others=others)

    def _rate(self, step: int) -> float:
        """Up in the first twentieth, then down as a cosine; so in each of the method's rounds."""
        share = min(step / self.steps, 1.0)
        begins = (*self.sparsifier.method.begins, 1.0)
        number = bisect.bisect_right(begins[1:-1], share)
        share = (share - begins[number]) / (begins[number + 1] - begins[number])
        return min(share / 0.05 + 0.01, 1.0) * (0.5 + 0.5 * math.cos(math.pi * share) + 0.01)

    def _steps_in(self, seconds: float) -> int:
        """Steps that fit, from the time of some on a copy; a sixth is left for evaluation and a busier machine."""
        twin = copy.deepcopy(self.student).train()

        def took(batch: Tensor) -> float:
            began = time.monotonic()
            with torch.no_grad():
                self.teacher(batch)
            twin(batch).square().mean().backward()
            return time.monotonic() - began

        shares = {False: WHOLE_FROM, True: 1.0 - WHOLE_FROM} if self.settings.augment == "strong" else {False: 1.0}
        mean = 0.0
        for whole, share in shares.items():
            batch = self._example(whole=whole)
            mean += share * min([took(batch) for _ in range(3)][1:])
        return max(int(seconds / 1.2 / max(mean * 1.2, 1e-4)), 8)

    def _example(self, *, whole: bool = False) -> Tensor:
        """A batch as steps have it."""
        batch = self.trained[torch.arange(self.settings.batch) % len(self.trained)]
        return self._changed(batch, torch.Generator().manual_seed(0), whole=whole)

    def _changed(self, batch: Tensor, source: torch.Generator, *, whole: bool) -> Tensor:
        """Inputs changed at random, photographs in parts or whole."""
        kind = "whole" if whole else self.settings.augment
        return augment(batch, source, kind, None if whole else self.settings.crop_size)

    def _places(self) -> list[str]:
        """Names of the values at which the two are compared."""
        every: list[str] = self.student.graph.places(self.sparsifier.run.layers)
        with torch.no_grad():
            found = self.teacher.graph.values([*every, *self.teacher.wanted], self.held_back[:1])
        return [every[i] for i in narrow([value.numel() for value in found[:-1]])]

    def _try_crops(self) -> None:
        """Raise UsageError where crops of another size are no inputs of the model."""
        if self.settings.crop_size is None:
            return
        why = "its outputs have another shape then"
        try:
            with torch.no_grad():
                if self.teacher(self._example()).shape[1:] == self.judge.wanted.shape[1:]:
                    return
        except RuntimeError as error:
            why = str(error).splitlines()[0][:200]
        raise UsageError(
            f"the model does not take pictures of {self.settings.crop_size} pixels", why=why, fix="leave the size out"
        )

    def _parts(self) -> dict[str, Any]:
        return {
            "student": self.student,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "average": self.average,
            "sparsifier": self.sparsifier,
        }

    def _save(self) -> None:
        plain = {
            "steps": self.steps,
            "done": self.done,
            "seconds": self.seconds,
            "stale": self.judge.stale,
            "best": self.judge.best,
            "identity": self.identity,
        }
        save_checkpoint(self.checkpoint, {**self._parts(), **plain})

    def _load(self) -> None:
        plain = load_checkpoint(self.checkpoint, self._parts())
        self.done, self.seconds = plain["done"], plain["seconds"]
        self.judge.stale, self.judge.best = plain["stale"], plain["best"]

    def _compare(self) -> None:
        """Raise CheckpointError unless the checkpoint is of a run like this one."""
        plain = load_checkpoint(self.checkpoint, {})
        stored = plain.get("identity")
        if not isinstance(stored, dict) or stored.keys() != self.identity.keys() or "each" not in plain["best"]:
            raise CheckpointError(f"{self.checkpoint} is not a checkpoint of finetune, or of an earlier version of it")
        for key, value in self.identity.items():
            if stored[key] != value:
                raise CheckpointError(
                    f"{self.checkpoint} is of another {key}",
                    why=f"it is {' '.join(stored[key].split())} there and {' '.join(value.split())} here",
                    fix="resume with what the run was started with, or start without --resume",
                )

    def _stored_steps(self) -> int:
        steps = load_checkpoint(self.checkpoint, {}).get("steps")
        if not isinstance(steps, int):
            raise CheckpointError(f"{self.checkpoint} is not a checkpoint of finetune")
        return steps
