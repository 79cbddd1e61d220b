"""A small problem that every method can train on in a moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from edgesparse.models.convnets import chain, classifier, conv_bn
from edgesparse.recipe import Recipe
from edgesparse.training import Sparsifier


def small() -> Any:
    """A convolutional network with a 3x3, a depthwise and two 1x1 layers."""
    return chain(
        stem=conv_bn(1, 8, 3),
        wide=conv_bn(8, 16, 1),
        deep=conv_bn(16, 16, 3, groups=16),
        last=conv_bn(16, 18, 1),
        head=classifier(18, 4),
    )


def recipe(pattern: str = "unstructured", sparsity: float | None = 0.75, **more: Any) -> Recipe:
    """The 1x1 layers at one pattern."""
    share = {} if sparsity is None else {"sparsity": sparsity}
    return Recipe.from_dict({"targets": ["re:(wide|last)[.]conv"], "pattern": pattern, **share, **more})


class Loop:
    """A user's loop: a model, an optimizer with momentum, and seeded data."""

    def __init__(self, sparsifier: Callable[[Any], Sparsifier], rate: float = 0.01) -> None:
        torch.manual_seed(3)
        self.model = small()
        self.sparsifier = sparsifier(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate)
        self.at = 0

    def run(self, steps: int) -> Loop:
        for _ in range(steps):
            source = torch.Generator().manual_seed(self.at)
            inputs = torch.randn(8, 1, 6, 6, generator=source)
            targets = torch.randint(0, 4, (8,), generator=source)
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.model(inputs), targets) + self.sparsifier.regularizer()
            loss.backward()
            self.optimizer.step()
            self.sparsifier.step(loss)
            self.at += 1
        return self

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "sparsifier": self.sparsifier, "at": self.at}
