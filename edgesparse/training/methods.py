"""The protocol of training methods, and the table of them.

A method is a dataclass of its settings. The sparsifier calls `start` once, `step` after every optimizer step,
`regularizer` when the loss is made, and `finish` at the end; all but `regularizer` run without gradients. What a method
must remember between steps lies in `memory` (tensors and numbers), which goes into checkpoints as it is.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field
from typing import Any, ClassVar

from edgesparse.errors import UsageError
from edgesparse.training.layers import Tensor
from edgesparse.training.run import Run


@dataclass
class Method:
    """Prune nothing until the end, then project: the base that methods change. `name` is what users write."""

    name: ClassVar[str] = ""
    source: ClassVar[str] = ""

    memory: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def begins(self) -> tuple[float, ...]:
        """Shares of the steps at which the learning rate, the user's, shall begin anew; the first is 0."""
        return (0.0,)

    def start(self, run: Run) -> None:
        """Set the first masks and what must be remembered."""
        run.set_masks(run.project(run.scores(run.weights()), 0.0))

    def step(self, run: Run) -> None:
        """Change weights and masks after an optimizer step; `weight.grad` is that of the step."""

    def regularizer(self, run: Run) -> Tensor | None:
        """A term for the loss, or None."""
        return None

    def finish(self, run: Run) -> None:
        """Set the final masks and the final weights."""
        run.set_masks(run.project(run.scores(run.weights())))
        run.apply()

    def settings(self) -> dict[str, Any]:
        """Name and settings, as checkpoints compare them."""
        return {"name": self.name} | {
            item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.init
        }


def check_shares(**shares: float) -> None:
    """Raise UsageError unless all are within 0 and 1 and do not fall from left to right."""
    values = list(shares.values())
    if not all(0.0 <= value <= 1.0 for value in values) or values != sorted(values):
        shown = ", ".join(f"{name} {value:g}" for name, value in shares.items())
        raise UsageError(f"the shares of the run {shown}", why="they must rise within 0 and 1", fix="e.g. 0 and 0.75")


def check_positive(**settings: float) -> None:
    """Raise UsageError for a setting that is not a positive number."""
    for name, value in settings.items():
        if not value > 0:
            raise UsageError(f"setting {name} is {value}", why="it must be positive")


def methods() -> dict[str, type[Method]]:
    """All methods by name."""
    from edgesparse.training import continuous, dynamic, gradual, learned, shrinking, straight

    table: tuple[type[Method], ...] = (
        gradual.Gradual,
        gradual.Rewinding,
        straight.SrSte,
        dynamic.Rigl,
        dynamic.RandomMask,
        dynamic.GivenMask,
        shrinking.SoftShrinkage,
        shrinking.GroupProximal,
        shrinking.HyperSparse,
        learned.AutoSparse,
        continuous.Cast,
    )
    return {method.name: method for method in table}


def make_method(method: str | Method, options: dict[str, Any]) -> Method:
    """A method by name with its settings, or one that was made already. Raises UsageError for what does not exist."""
    if isinstance(method, Method):
        if options:
            raise UsageError("settings beside a method that is made already", fix="give them to the method itself")
        return method
    table = methods()
    if method not in table:
        near = difflib.get_close_matches(str(method), table, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"unknown training method {method!r}", fix=f"{hint}methods are {', '.join(table)}")
    known = {item.name for item in dataclasses.fields(table[method]) if item.init}
    if wrong := sorted(options.keys() - known):
        raise UsageError(f"method {method} has no setting {wrong[0]!r}", fix=f"settings are {', '.join(sorted(known))}")
    return table[method](**options)
