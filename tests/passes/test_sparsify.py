"""Allocation, rearrangement and calibration data, up to a whole recipe."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judge import same
from test_surgeon import net, samples  # noqa: F401

from edgesparse import pattern as P
from edgesparse.errors import UsageError
from edgesparse.passes import run_passes, sparsify_passes, weight_layers
from edgesparse.passes.agreement import divergence
from edgesparse.passes.allocate import Sensitivity, by_sensitivity, erk, knapsack
from edgesparse.passes.calibration import read_samples, samples_of
from edgesparse.passes.layers import canonical_weight
from edgesparse.passes.prune import LAYERS_KEY, RECIPE_KEY
from edgesparse.passes.sparsify import ORDER_KEY
from edgesparse.recipe import Recipe
from edgesparse.sections import Calibration

WHOLE = """
pattern: group:2x1
density: 0.5
targets: [conv1x1]
criterion: obs
reconstruction: {method: refit}
recalibration: {layers: all}
allocation: {method: %s}
rearrangement: {method: search}
"""


@pytest.mark.parametrize("method", ["uniform", "erk", "global", "sensitivity"])
def test_a_whole_recipe(net: ir.Model, method: str) -> None:  # noqa: F811
    recipe = Recipe.from_yaml(WHOLE % method)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    first, second = (run_passes(net, sparsify_passes(recipe, samples())).model for _ in range(2))
    texts = [ir.serde.serialize_model(one).SerializeToString(deterministic=True) for one in (first, second)]
    assert texts[0] == texts[1], "same inputs and seed, same bytes"
    assert Recipe.from_yaml(first.metadata_props[RECIPE_KEY]) == recipe
    assert json.loads(first.metadata_props[ORDER_KEY])
    layers = [one for one in weight_layers(first) if one.kind == "conv1x1"]
    kept = sum(one.macs * P.density(canonical_weight(first, one)) for one in layers)
    assert kept / sum(one.macs for one in layers) <= 0.5 + 1 / 12
    for name, told in json.loads(first.metadata_props[LAYERS_KEY]).items():
        layer = next(one for one in layers if one.name == name)
        assert P.density(canonical_weight(first, layer)) == pytest.approx(told["density"], abs=1e-6)
        assert P.keeps(P.SparsePattern("group", 2, 1), canonical_weight(first, layer))


def test_rearrangement_alone_changes_nothing(net: ir.Model) -> None:  # noqa: F811
    recipe = Recipe.from_yaml("{pattern: group:2x1, density: 0.5, rearrangement: {method: search}}")
    moved = run_passes(net, sparsify_passes(recipe, None), stop_after="rearrange").model
    same(net, moved, 1e-5)
    assert len(list(moved.graph)) == len(list(net.graph)), "no node is added"


def test_a_recipe_that_needs_data(net: ir.Model) -> None:  # noqa: F811
    with pytest.raises(UsageError, match=r"needs calibration data.*--calibrate"):
        sparsify_passes(Recipe.from_yaml("{pattern: group:2x1, density: 0.5, criterion: wanda}"), None)


# --- allocation


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_knapsack_is_exact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs, losses = rng.random((4, 3)).tolist(), rng.random((4, 3)).tolist()
    budget = 1.5
    options = [c for c in itertools.product(range(3), repeat=4) if sum(costs[i][j] for i, j in enumerate(c)) <= budget]
    if not options:
        with pytest.raises(UsageError, match="cannot be met"):
            knapsack(costs, losses, budget)
        return
    best = min(sum(losses[i][j] for i, j in enumerate(c)) for c in options)
    found = knapsack(costs, losses, budget)
    assert sum(losses[i][j] for i, j in enumerate(found)) == pytest.approx(best, abs=1e-9)
    assert sum(costs[i][j] for i, j in enumerate(found)) <= budget * (1 + 1e-6)


def test_allocation_meets_the_budget(net: ir.Model) -> None:  # noqa: F811
    layers = [one for one in weight_layers(net) if one.kind == "conv1x1"]
    measured = [
        Sensitivity(one.name, (0.3, 0.6), loss) for one, loss in zip(layers, [(1, 0.1), (0.1, 0.01)], strict=True)
    ]
    shares = by_sensitivity(layers, measured, 0.5)
    assert shares[layers[0].name] > shares[layers[1].name]
    for found in (shares, erk(layers, 0.5)):
        used = sum(one.macs * found[one.name] for one in layers) / sum(one.macs for one in layers)
        assert 0.4 < used <= 0.5 + 1e-6


def test_sensitivity_between_what_was_measured() -> None:
    one = Sensitivity("a", (0.2, 0.5), (0.8, 0.1))
    values = [one.at(d) for d in (0.05, 0.2, 0.35, 0.5, 0.9, 1.0)]
    assert values == sorted(values, reverse=True)
    assert (values[1], values[3], values[5]) == (pytest.approx(0.8), pytest.approx(0.1), 0.0)


def test_divergence() -> None:
    logits = np.array([[1.0, 2.0, 3.0]])
    assert divergence(logits, logits) == 0.0
    p = np.exp(logits) / np.exp(logits).sum()
    assert divergence(p, np.full((1, 3), 1 / 3)) == pytest.approx(float((p * np.log(3 * p)).sum()))


# --- calibration data


def test_samples_from_files(net: ir.Model, tmp_path: Path) -> None:  # noqa: F811
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(3, 6, 7, 7)).astype(np.float32)
    np.save(tmp_path / "a.npy", batch)
    np.savez(tmp_path / "b.npz", x=batch[:1])
    found = list(read_samples(tmp_path, net))
    assert len(found) == 4
    assert np.array_equal(found[1]["x"], batch[1:2])
    assert len(list(read_samples(tmp_path, net, Calibration(limit=2)))) == 2
    several = samples_of([batch[:1]], net)
    assert len(list(several)) == len(list(several)) == 1


def test_several_samples_by_input_name(load, tmp_path: Path) -> None:
    """Along the first axis of all inputs alike; a file that has more for one input than for another fits none."""
    model = load("g (float[1,4] x, float[1,4] z) => (float[1,4] y) { y = Add(x, z) }")
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(2, 5, 4)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=x, z=z)
    found = list(read_samples(tmp_path / "a.npz", model))
    np.testing.assert_array_equal(np.concatenate([one["x"] for one in found]), x)
    np.testing.assert_array_equal(np.concatenate([one["z"] for one in found]), z)
    assert all(one["x"].shape == (1, 4) for one in found)
    np.savez(tmp_path / "b.npz", x=x, z=z[:2])
    with pytest.raises(UsageError, match="shape 5x4 for input 'x'"):
        read_samples(tmp_path / "b.npz", model)


def test_pictures(load, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    model = load("g (float[1,3,8,8] x) => (float[1,3,8,8] y) { y = Relu(x) }")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    image.fromarray(pixels).save(tmp_path / "a.png")
    image.fromarray(pixels).resize((40, 20)).save(tmp_path / "b.png")
    first, second = read_samples(tmp_path, model, Calibration(mean=(1.0, 2.0, 3.0), scale=(4.0,), order="bgr"))
    want = (pixels[:, :, ::-1].astype(np.float32) - np.float32([1, 2, 3])) / 4
    assert np.array_equal(first["x"], want.transpose(2, 0, 1)[None])
    assert second["x"].shape == (1, 3, 8, 8)
    (tmp_path / "c.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match="cannot read picture"):
        list(read_samples(tmp_path, model))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((1, 5, 7, 7), np.float32), "shape 1x5x7x7 for input 'x'"),
        (np.zeros((1, 6, 7, 7), np.complex64), "calibration data of complex64"),
        (np.full((1, 6, 7, 7), np.nan, np.float32), "NaN"),
    ],
)
def test_bad_samples(net: ir.Model, array: np.ndarray, message: str) -> None:  # noqa: F811
    with pytest.raises(UsageError, match=message):
        list(samples_of([array], net))


def test_no_samples(net: ir.Model, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(UsageError, match="there is no calibration data in"):
        read_samples(tmp_path, net)
    with pytest.raises(UsageError, match="there is no calibration data"):
        read_samples(tmp_path / "nowhere", net)
    with pytest.raises(UsageError, match="give at least one sample"):
        samples_of([], net)
    (tmp_path / "a.npy").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"cannot read calibration data .*a\.npy"):
        read_samples(tmp_path, net)
    with pytest.raises(UsageError, match="lacks input 'x'"):
        samples_of([{"z": np.zeros(1)}], net)


@pytest.mark.parametrize("method", ["uniform", "global", "sensitivity"])
@pytest.mark.parametrize("fit", ["refit", "swap", "projected"])
@pytest.mark.parametrize("kind", ["one", "constant", "dependent", "zero"])
def test_poor_samples(net: ir.Model, method: str, fit: str, kind: str) -> None:  # noqa: F811
    """One sample, or several that say the same: moments are singular or nothing, and the model stays in order."""
    first = samples(1)[0]["x"]
    given = {
        "one": [first],
        "constant": [np.ones_like(first)] * 6,
        "dependent": [first * (i + 1) for i in range(6)],
        "zero": [np.zeros_like(first)] * 6,
    }[kind]
    recipe = Recipe.from_yaml((WHOLE % method).replace("method: refit", f"method: {fit}"))
    model = run_passes(net, sparsify_passes(recipe, [{"x": one} for one in given])).model
    for layer in weight_layers(model):
        weight = canonical_weight(model, layer)
        assert np.isfinite(weight).all()
        assert weight.any()
        assert np.abs(weight).max() < 100, "damping holds the weights"


def test_an_allocation_leaves_no_layer_empty(load) -> None:
    """At density 0.1 a layer of four units would round to none."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(4, 4, 1, 1)).astype(np.float32), "v": rng.normal(size=(64, 4, 1, 1))}
    model = load(
        "g (float[1,4,8,8] x) => (float[1,64,8,8] y) { a = Conv(x, w)  y = Conv(a, v) }",
        {name: value.astype(np.float32) for name, value in weights.items()},
    )
    text = "{pattern: group:4x1, density: 0.12, criterion: obs, allocation: {method: %s}}"
    data = [{"x": rng.normal(size=(1, 4, 8, 8)).astype(np.float32)} for _ in range(8)]
    for method in ("erk", "global", "sensitivity"):
        made = run_passes(model, sparsify_passes(Recipe.from_yaml(text % method), data)).model
        assert all(canonical_weight(made, one).any() for one in weight_layers(made)), method
