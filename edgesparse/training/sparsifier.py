"""Sparse training of any torch module in the user's own loop.

    sparsifier = Sparsifier(model, recipe, method="gradual", steps=epochs * len(loader))
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss = criterion(model(inputs), targets) + sparsifier.regularizer()
        loss.backward()
        optimizer.step()
        sparsifier.step(loss)
    sparsifier.finalize()
    sparsifier.export("sparse.onnx", example)

`step` comes after every `optimizer.step()` and before the next `zero_grad()`; with gradient accumulation that is once
per update. Parameters are changed in place only, so optimizers, schedulers, `GradScaler` and
`DistributedDataParallel` see nothing of it. Masks are the compiler's exact projections (`edgesparse.pattern`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgesparse.errors import Reason, UsageError
from edgesparse.pattern import density
from edgesparse.recipe import Recipe
from edgesparse.training.allocation import check_allocation
from edgesparse.training.checkpoint import CheckpointError
from edgesparse.training.layers import Layer, Module, Tensor, check_trainable, find_layers, keep_reason
from edgesparse.training.methods import Method, make_method
from edgesparse.training.run import NotFiniteError, Run, has_pattern, target_density

STATE_VERSION = 1


@dataclass(frozen=True)
class LayerReport:
    """What became of a layer: its pattern and the share of weights that are not masked."""

    name: str
    pattern: str
    density: float
    weights: int


class Sparsifier:
    """Keeps masks on a module while it is trained.

    Parameters
    ----------
    model:
        Any `nn.Module`, also one wrapped in DistributedDataParallel. Its Conv, ConvTranspose and Linear layers can be
        sparse; names in the recipe are module names, operator types Conv, ConvTranspose and Gemm.
    recipe:
        The compiler's recipe: which layers, what pattern, what density. Its seed seeds the method.
    steps:
        Optimizer steps that are planned; schedules count on them. More may follow, at the final masks.
    method, **options:
        A name of `edgesparse.training.methods()` and its settings, or a Method.
    allocation:
        How the budget of all layers is split: "uniform" (each what the recipe says), "erk" or "lamp".
    names:
        Module name to the name that recipes use, where they differ.

    Raises
    ------
    UsageError, RecipeError, PatternError: arguments that do not fit together or the model.
    UnsupportedError: a selected layer whose weight is shared, computed, frozen or not there yet.
    """

    def __init__(
        self,
        model: Module,
        recipe: Recipe,
        *,
        steps: int,
        method: str | Method = "gradual",
        allocation: str = "uniform",
        names: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise UsageError(f"steps is {steps!r}", why="schedules need the number of optimizer steps planned")
        check_allocation(allocation)
        self.model = _unwrapped(model)
        self.recipe = recipe
        self.method = make_method(method, options)
        layers = find_layers(self.model, names)
        choices = recipe.resolve([layer.candidate() for layer in layers])
        chosen: dict[str, Layer] = {}
        self.reasons: list[Reason] = []
        for layer in layers:
            reason = keep_reason(layer, choices.get(layer.name))
            if reason is None:
                chosen[layer.name] = layer
            else:
                self.reasons.append(reason)
        if not chosen:
            raise UsageError(
                "no layer of the model becomes sparse",
                why="; ".join(str(reason) for reason in self.reasons[:3]) or "it has no layer that can be pruned",
                fix="give the recipe a pattern and a density that fit",
            )
        check_trainable(self.model, list(chosen.values()))
        patterns = {name: choices[name].pattern for name in chosen}
        targets = {n: target_density(patterns[n], layer.shape, choices[n].density) for n, layer in chosen.items()}
        rng = np.random.default_rng(recipe.seed)
        self.run = Run(chosen, patterns, targets, steps, allocation, rng)
        self.finalized = False
        with torch.no_grad():
            self.method.start(self.run)

    def step(self, loss: Tensor | float | None = None) -> None:
        """Call after every optimizer step; `loss` of this step, if given, is checked.

        Raises NotFiniteError for a loss, weight or gradient that is NaN or infinite: the last good checkpoint is then
        the place to go on from. EdgesparseError where a weight was replaced or has changed its shape.
        """
        if loss is not None and not bool(torch.as_tensor(loss).detach().isfinite().all()):
            raise NotFiniteError(
                f"the loss is {float(torch.as_tensor(loss).detach().float().mean())} in step {self.run.step + 1}",
                why="training has diverged",
                fix="go back to the last good checkpoint with a lower learning rate",
            )
        with torch.no_grad():
            self.run.step += 1
            if self.finalized:
                self.run.apply()
            else:
                self.method.step(self.run)

    def regularizer(self) -> Tensor:
        """The method's term for the loss, a scalar; zero for those that have none."""
        term = None if self.finalized else self.method.regularizer(self.run)
        if term is not None:
            return term
        return next(iter(self.run.layers.values())).weight.new_zeros(())

    def finalize(self) -> list[LayerReport]:
        """Set the final masks and say what became of the layers. Steps that follow keep them."""
        with torch.no_grad():
            if not self.finalized:
                self.method.finish(self.run)
                self.finalized = True
            self.run.apply()
        reports = self.report()
        for name, layer in self.run.layers.items():
            mask = layer.canonical_mask(self.run.masks[name])
            assert has_pattern(self.run.patterns[name], mask), f"{self.method.name} left {name} without its pattern"
        return reports

    def report(self) -> list[LayerReport]:
        """Pattern and present density of each sparse layer."""
        return [
            LayerReport(
                name, str(self.run.patterns[name]), density(layer.canonical_mask(self.run.masks[name])), layer.size
            )
            for name, layer in self.run.layers.items()
        ]

    @property
    def sparsity(self) -> float:
        """Share of masked weights over all sparse layers."""
        reports = self.report()
        return 1.0 - sum(one.density * one.weights for one in reports) / sum(one.weights for one in reports)

    def mask(self, other: Module) -> None:
        """Put the present masks on another module of the same architecture, e.g. an exponential moving average.

        Raises UsageError if its layers are others.
        """
        ours = {id(module): name for name, module in self.model.named_modules()}
        theirs = dict(_unwrapped(other).named_modules())
        with torch.no_grad():
            for name, layer in self.run.layers.items():
                twin = theirs.get(ours[id(layer.module)])
                weight = getattr(twin, "weight", None)
                if weight is None or tuple(weight.shape) != layer.stored_shape:
                    raise UsageError(f"the other model has no layer {name!r} of shape {layer.stored_shape}")
                weight.data.mul_(self.run.masks[name].to(weight.device))

    def state_dict(self) -> dict[str, Any]:
        """All that a later process needs to go on bit for bit, beside the states of model and optimizer.

        Tensors and plain values only: `torch.load(weights_only=True)` takes it.
        """
        return {
            "version": STATE_VERSION,
            "recipe": self.recipe.to_yaml(),
            "method": self.method.settings(),
            "allocation": self.run.allocation,
            "steps": self.run.steps,
            "layers": {name: list(layer.stored_shape) for name, layer in self.run.layers.items()},
            "step": self.run.step,
            "finalized": self.finalized,
            "masks": {name: mask.clone() for name, mask in self.run.masks.items()},
            "memory": _cloned(self.method.memory),
            "rng": self.run.rng.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state. Load the model's and the optimizer's states too.

        Raises CheckpointError, and changes nothing, for a state of another recipe, method, plan or model.
        """
        own = self.state_dict()
        if not isinstance(state, Mapping) or own.keys() - state.keys():
            raise CheckpointError("this is no state of a sparsifier", fix="give what state_dict() returned")
        for key in ("version", "recipe", "method", "allocation", "steps", "layers"):
            if state[key] != own[key]:
                raise CheckpointError(
                    f"the checkpoint is of another {'model' if key == 'layers' else key}",
                    why=_difference(state[key], own[key]),
                    fix="resume with what the run was started with, or start a new one",
                )
        masks = state["masks"]
        for name, mask in own["masks"].items():
            if name not in masks or masks[name].shape != mask.shape or masks[name].dtype != torch.bool:
                raise CheckpointError(f"the checkpoint's mask of layer {name!r} does not fit")
        for name, mask in self.run.masks.items():
            mask.copy_(masks[name])
        self.run.step, self.finalized = state["step"], state["finalized"]
        self.method.memory = _cloned(state["memory"])
        self.run.rng.bit_generator.state = state["rng"]

    def export(self, path: str | Path, example: Tensor | Sequence[Tensor], **options: Any) -> Path:
        """Write the portable ONNX model; see `edgesparse.training.exporting.export_sparse`. Finalizes first."""
        from edgesparse.training.exporting import export_sparse

        self.finalize()
        return export_sparse(self, Path(path), example, **options)


def _unwrapped(model: Module) -> Module:
    return model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model


def _cloned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _cloned(item) for key, item in value.items()}
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _difference(theirs: object, ours: object) -> str:
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for key in [*theirs, *ours]:
            if theirs.get(key) != ours.get(key):
                return f"{key} is {theirs.get(key)} there and {ours.get(key)} here"
    return f"it is {' '.join(str(theirs).split())} there and {' '.join(str(ours).split())} here"
