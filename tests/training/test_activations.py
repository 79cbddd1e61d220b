"""Activation re-choice: the search finds what its judge wants, and changes nothing else."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from loops import Loop, recipe, small
from torch import nn

from edgesparse.errors import UsageError
from edgesparse.models.data import onnx_run
from edgesparse.training import NotFiniteError, Sparsifier
from edgesparse.training.activations import CANDIDATES, exchanged, rechoose, sites


def wants(chosen: dict[str, str]):
    """A judge that counts the places that differ from `chosen`."""

    def judge(model: nn.Module) -> float:
        found = sites(model)
        return float(sum(found[name] != kind for name, kind in chosen.items()))

    return judge


def test_the_search_finds_the_best_and_keeps_the_weights() -> None:
    model = small()
    before = copy.deepcopy(model.state_dict())
    names = sorted(sites(model))
    assert len(names) == 4
    assert set(sites(model).values()) == {"relu"}
    target = dict(zip(names, ["hardswish", "relu", "relu6", "hardswish"], strict=True))
    found = rechoose(model, wants(target), rounds=60)
    assert found.chosen == target == sites(model)
    assert (found.before, found.after) == (3.0, 0.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # the same again
    again = small()
    assert rechoose(again, wants(target), rounds=60) == found


def test_the_best_is_kept_though_the_search_goes_on() -> None:
    target = dict.fromkeys(sites(small()), "relu")
    assert rechoose(small(), wants(target), rounds=5).after == 0.0
    model = small()
    rechoose(model, wants(target), rounds=5)
    assert sites(model) == target


def test_a_judge_that_diverges() -> None:
    calls: list[float] = [0.5, float("nan"), float("nan"), 0.4]
    model = small()
    found = rechoose(model, lambda _: calls.pop(0), rounds=3, candidates=("relu", "hardswish"))
    assert found.after == 0.4
    assert list(found.chosen.values()).count("hardswish") == 1
    with pytest.raises(NotFiniteError, match="the judge finds nan"):
        rechoose(small(), lambda _: float("nan"), rounds=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": ("relu", "step")}, "unknown activation 'step'"),
        ({"candidates": ("relu",)}, "a choice needs two candidates"),
        ({"rounds": 0}, "a choice needs two candidates"),
    ],
)
def test_wrong_arguments(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        rechoose(small(), lambda _: 0.0, **options)
    with pytest.raises(UsageError, match="has no activation modules"):
        rechoose(nn.Linear(2, 2), lambda _: 0.0)


def test_exchanged_in_the_midst_of_a_sparse_run_and_exported(tmp_path: Path) -> None:
    loop = Loop(lambda model: Sparsifier(model, recipe(), steps=4)).run(2)
    exchanged(loop.model, dict(zip(sites(loop.model), CANDIDATES, strict=False)))
    loop.run(2)
    path = loop.sparsifier.export(tmp_path / "model.onnx", torch.zeros(1, 1, 6, 6))
    value = np.random.default_rng(0).standard_normal((1, 1, 6, 6)).astype(np.float32)
    with torch.no_grad():
        wanted = loop.model.eval()(torch.from_numpy(value)).numpy()
    assert np.allclose(onnx_run(path)(value), wanted, atol=1e-5)
