"""End to end: train digits sparse, export, compile; the pattern and the accuracy are those that were trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from loops import Loop, recipe
from torch import nn

from edgesparse.errors import ModelError, UsageError
from edgesparse.models import digits
from edgesparse.models.data import onnx_run
from edgesparse.passes import load_model, weight_layers
from edgesparse.passes.layers import canonical_weight
from edgesparse.pattern import SparsePattern, find_pattern, keeps
from edgesparse.pipeline import compile_model
from edgesparse.recipe import Recipe
from edgesparse.runtimes.local import LocalRunner
from edgesparse.target import Target
from edgesparse.training import Sparsifier

EPOCHS = 10


def test_digits_from_training_to_the_compiled_program(tmp_path: Path) -> None:
    (pictures, classes), (held, wanted) = digits.load()
    inputs, targets = torch.from_numpy(pictures), torch.from_numpy(classes)
    torch.manual_seed(0)
    model = digits.network()
    steps = EPOCHS * (len(targets) // 64)
    targets_of = ["re:(expand|pointwise2?)[.]conv"]
    chosen = Recipe.from_dict({"targets": targets_of, "pattern": "group:4x1", "sparsity": 0.7})
    sparsifier = Sparsifier(model, chosen, steps=steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(targets))[: steps // EPOCHS * 64].split(64):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs[rows]), targets[rows])
            loss.backward()
            optimizer.step()
            schedule.step()
            sparsifier.step(loss)
    reports = sparsifier.finalize()
    assert model.training
    path = sparsifier.export(tmp_path / "digits.onnx", inputs[:1])
    assert model.training  # the export leaves it as it was
    model.eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(held)).numpy()
    right = int((logits.argmax(1) == wanted).sum())
    assert right / len(wanted) > 0.93

    # the portable form says what is in it, and its zeros are the masks
    proto = onnx.load(path)
    metadata = {item.key: item.value for item in proto.metadata_props}
    assert Recipe.from_yaml(metadata["edgesparse.recipe"]) == chosen
    said = json.loads(metadata["edgesparse.layers"])
    assert sorted(one["density"] for one in said.values()) == sorted(round(one.density, 6) for one in reports)
    loaded = load_model(path)
    by_name = {layer.name: layer for layer in weight_layers(loaded)}
    for name in said:
        weight = canonical_weight(loaded, by_name[name])
        assert keeps(SparsePattern("group", 4, 1), weight)
        assert find_pattern(weight)[0].kind == "group"
        assert np.mean(weight != 0) == pytest.approx(said[name]["density"], abs=1e-6)
    run = onnx_run(path)
    assert np.allclose(np.concatenate([run(one[None]) for one in held]), logits, atol=1e-4)

    # the compiler finds the same patterns, and the program is as accurate
    artifact = compile_model(path, target=Target.parse("native"), output=tmp_path / "artifact", tune=False)
    assert artifact is not None
    rows = {row["name"]: row for row in artifact.manifest.layers}
    for name, one in said.items():
        assert rows[name]["density"] == pytest.approx(one["density"], abs=1e-4)
        assert str(rows[name]["pattern"]).startswith("group:")
    with LocalRunner(artifact) as runner:
        outputs = np.concatenate([runner.run({"input": one[None]})["output"] for one in held])
    assert int((outputs.argmax(1) == wanted).sum()) == right
    assert np.allclose(outputs, logits, atol=1e-3)


def test_export_that_cannot_be(tmp_path: Path) -> None:
    loop = Loop(lambda model: Sparsifier(model, recipe(), steps=1)).run(1)
    with pytest.raises(UsageError, match="there is no folder"):
        loop.sparsifier.export(tmp_path / "none" / "model.onnx", torch.zeros(1, 1, 6, 6))
    with pytest.raises(UsageError, match="is no tensor"):
        loop.sparsifier.export(tmp_path / "model.onnx", [1.0])
    with pytest.raises(ModelError, match="torch cannot export the model"):
        loop.sparsifier.export(tmp_path / "model.onnx", torch.zeros(1, 5, 6, 6))
    assert not list(tmp_path.iterdir())


def test_export_that_loses_the_zeros(tmp_path: Path) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.inner.weight + 1.0)

    model = Shifted()
    sparsifier = Sparsifier(model, Recipe.from_dict({"pattern": "unstructured", "density": 0.5}), steps=1)
    with pytest.raises(ModelError, match="lost the zeros of layer 'inner'"):
        sparsifier.export(tmp_path / "model.onnx", torch.zeros(1, 8))
