"""Which state finetuning keeps: looks at the inputs held back, and the best state so far."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from edgesparse.training.features import distances
from edgesparse.training.inputs import crop
from edgesparse.training.layers import Module, Tensor

VIEWS, LARGE = 2, (0.7, 1.0)
"""Random parts of each picture held back that judge besides the whole and its mirror image, and their shares of it."""
LATE, TAKEN_BACK = (0.0, 0.5, 0.6, 0.7), (0.3, 0.6)
"""Places among the parameters from which on they are late (0 is all of them), and how far they are taken back."""
State = Mapping[str, Tensor]


class Judge:
    """The teacher's answers to the inputs held back, and the best of the states that were looked at.

    `best` has the state kept (`weights`, the logits' `factor`, `agreement`), and the step (`at`) and all distances
    (`each`, of every input) of the look at which their mean was least; `stale` counts the last looks without a gain.
    """

    def __init__(self, teacher: Module, inputs: Tensor, views: Sequence[Tensor], batch: int) -> None:
        self.count, self.batch = len(inputs), batch
        self.views = torch.cat([inputs, *views])
        self.wanted = self._answers(teacher)
        self.best: dict[str, Any] = {"each": torch.full((self.count,), math.inf), "at": 0}
        self.stale = 0

    def look(
        self,
        student: Module,
        done: int,
        sharpness: Callable[[Tensor], float],
        *,
        late: bool,
        others: Iterable[State] = (),
    ) -> None:
        """Look at the student after `done` steps; keep its state unless an earlier one was better beyond chance.

        With `others`, states that were made of the student's, it is the best of all these that is looked at.

        Of states whose difference is within its standard error the latest is kept (the one-standard-error rule of
        Breiman et al., Classification and Regression Trees, 1984): few inputs judge, and the last steps, small as they
        are, harm no others. `sharpness` gives the factor of the logits; only what is `late` can be stale.
        """
        own = state(student)
        found = [(self._measured(student, sharpness), own)]
        for other in others:
            put(student, other)
            found.append((self._measured(student, sharpness), other))
        put(student, own)
        finite = [one for one in found if bool(one[0]["each"].isfinite().all())]
        if not finite:
            self.stale += 1
            return
        measured, weights = min(finite, key=lambda one: float(one[0]["each"].mean()))
        each = measured.pop("each")
        least = float(each.mean()) < float(self.best["each"].mean())
        chance = within_chance(each, self.best["each"])
        if least or (chance and self.best["at"] > 0):  # what training began with gives way to what is better only
            self.best |= {**measured, "weights": weights}
        if least:
            self.best |= {"each": each, "at": done}
        self.stale = self.stale + 1 if late and not chance else 0

    def _measured(self, student: Module, sharpness: Callable[[Tensor], float]) -> dict[str, Any]:
        """The logits' factor, the distances of every input, and the share of them with the teacher's class."""
        student.eval()
        ours = self._answers(student)
        factor = sharpness(ours)
        # views of one input are no independent witnesses: the standard error is that of the inputs' means
        each = distances(factor * ours, self.wanted).reshape(-1, self.count).mean(0)
        whole, wanted = ours[: self.count], self.wanted[: self.count]
        same = float((whole.argmax(1) == wanted.argmax(1)).float().mean()) if ours.ndim > 1 else 1.0
        student.train()
        return {"factor": factor, "each": each, "agreement": same}

    def _answers(self, model: Module) -> Tensor:
        """Outputs [views * N, ...] for all views, the whole inputs first."""
        with torch.no_grad():
            return torch.cat([model(part) for part in self.views.split(self.batch)])


def blends(start: State, end: State) -> Iterator[State]:
    """States whose late parameters are partly taken back to the start: `start` and `end` have the network's order.

    Late layers are large and see few different inputs, so that they learn these by heart while early ones still gain:
    between the weights before and after, states can be better than both (Wortsman et al., 2109.01903).
    """
    for begin, share in itertools.product(LATE, TAKEN_BACK):
        first = round(begin * len(end))
        yield {
            name: torch.lerp(end[name], start[name], share) if place >= first else value
            for place, (name, value) in enumerate(end.items())
        }


def state(module: Module) -> State:
    """A copy of a module's parameters, by name."""
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def put(module: Module, values: State) -> None:
    """Give a module these parameters."""
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(values[name])


def parts(inputs: Tensor, seed: int) -> list[Tensor]:
    """Pictures [N, C, H, W] mirrored, and `VIEWS` large random parts of them, the same for one seed; of others none.

    In their size, and mostly of their area: what is kept is to be good on pictures as they are, not on small parts.
    """
    source = torch.Generator().manual_seed(seed)
    return [inputs.flip(3), *(crop(inputs, source, None, LARGE) for _ in range(VIEWS))] if inputs.ndim == 4 else []


def within_chance(ours: Tensor, best: Tensor) -> bool:
    """Whether the mean of these distances [N] exceeds that of the best by no more than the difference's standard error.

    Both are of the same N inputs. Of one input there is no error to tell: then it must not be more at all.
    """
    gaps = ours - best
    error = float(gaps.std()) / len(gaps) ** 0.5 if len(gaps) > 1 and bool(gaps.isfinite().all()) else 0.0
    return float(gaps.mean()) <= error
