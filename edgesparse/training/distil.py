"""Distillation: the dense model teaches the sparse one, with or without labels.

Terms for the loss of any method: they know nothing of masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from edgesparse.errors import UsageError
from edgesparse.training.layers import Module, Tensor


def logit_loss(student: Tensor, teacher: Tensor, *, temperature: float = 2.0) -> Tensor:
    """Kullback-Leibler divergence of softened class probabilities, times T^2: Hinton et al., 1503.02531.

    `student` and `teacher` are logits [N, classes]; the teacher's take no gradient. Raises UsageError for shapes that
    differ or a temperature that is not positive.
    """
    if student.shape != teacher.shape or student.ndim < 2:
        raise UsageError(
            f"logits of shape {tuple(student.shape)} and {tuple(teacher.shape)}",
            why="student and teacher must have the same classes",
        )
    if not temperature > 0:
        raise UsageError(f"temperature {temperature}", why="it must be positive")
    soft = nn.functional.log_softmax(student / temperature, -1)
    wanted = nn.functional.log_softmax(teacher.detach() / temperature, -1)
    each = nn.functional.kl_div(soft, wanted, reduction="none", log_target=True).sum(-1)
    return temperature**2 * each.mean()


class SquareHead:
    """SquareHead: Kurtic et al., "Sparse fine-tuning for inference acceleration of LLMs", 2310.06927.

    The mean squared error of each named module's output to the teacher's, over the teacher's mean square, averaged over
    the modules. The teacher runs without gradients inside `loss`; the student has run before it, with the same inputs.

        head = SquareHead(student, teacher, ["block1", "block2"])
        logits = student(inputs)
        loss = criterion(logits, targets) + head.loss(inputs)
    """

    def __init__(self, student: Module, teacher: Module, modules: Sequence[str]) -> None:
        if not modules:
            raise UsageError("SquareHead has no modules to compare", fix="name some, e.g. the blocks of the network")
        self.teacher = teacher.eval()
        self.modules = tuple(modules)
        self._seen: dict[tuple[str, str], Tensor] = {}
        self._hooks: list[Any] = []
        for whose, model in (("student", student), ("teacher", teacher)):
            known = dict(model.named_modules())
            for name in self.modules:
                if name not in known:
                    raise UsageError(f"the {whose} has no module {name!r}", fix="take names of named_modules()")
                self._hooks.append(known[name].register_forward_hook(self._hook(whose, name)))

    def loss(self, inputs: Tensor) -> Tensor:
        """The term for the batch that the student has just seen."""
        self.logits = self._teach(inputs)
        terms = []
        for name in self.modules:
            ours, theirs = self._seen.get(("student", name)), self._seen[("teacher", name)]
            if ours is None or ours.shape != theirs.shape:
                why = "the student has not run" if ours is None else f"{tuple(ours.shape)} and {tuple(theirs.shape)}"
                raise UsageError(f"SquareHead cannot compare module {name!r}", why=why)
            error = nn.functional.mse_loss(ours.float(), theirs.float())
            terms.append(error / theirs.float().square().mean().clamp_min(1e-12))
        self._seen.clear()
        return torch.stack(terms).mean()

    def close(self) -> None:
        """Take the hooks off both models, e.g. before export."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._seen.clear()

    def _teach(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return self.teacher(inputs)

    def _hook(self, whose: str, name: str) -> Any:
        def keep(_module: Module, _inputs: Any, output: Tensor) -> None:
            self._seen[(whose, name)] = output

        return keep
