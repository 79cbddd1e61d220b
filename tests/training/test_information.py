"""The worth of output channels: against divergences measured in onnxruntime, and what pruning makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest

from edgesparse import pattern as P
from edgesparse.cli import main
from edgesparse.errors import UnsupportedError, UsageError
from edgesparse.passes import load_model, run_passes, save_model, sparsify_passes, weight_layers
from edgesparse.passes.agreement import divergence
from edgesparse.passes.layers import canonical_weight
from edgesparse.passes.observe import run_values
from edgesparse.passes.prune import LAYERS_KEY, RECIPE_KEY
from edgesparse.passes.reconstruct import bias_of, store, weighted
from edgesparse.passes.sparsify import CRITERION_KEY, repair_of
from edgesparse.recipe import Recipe

torch = pytest.importorskip("torch")
from edgesparse.training import information as room  # noqa: E402
from edgesparse.training.information import information  # noqa: E402
from edgesparse.training.starting import begin  # noqa: E402

RECIPE = """
pattern: group:2x1
density: 0.5
targets: [one]
criterion: %s
reconstruction: {method: refit}
recalibration: {layers: all}
allocation: {method: %s}
rearrangement: {method: search}
"""
BODY = """<ir_version: 9, opset_import: ["" : 18]> net (float[1,4,5,5] x) => (float[1,6] y) {
    [one] a = Conv(x, w1, b1)  r = Relu(a)  p = GlobalAveragePool(r)  f = Flatten(p)
    [two] h = Gemm <transB = 1> (f, w2, b2)  t = Tanh(h)  [three] y = Gemm <transB = 1> (t, w3, b3) }"""


@pytest.fixture
def model(tmp_path: Path) -> ir.Model:
    """Only the first four channels of layer "one" are read by what follows."""
    rng = np.random.default_rng(1)
    made = onnx.parser.parse_model(BODY)
    shapes = {"w1": (8, 4, 1, 1), "b1": (8,), "w2": (5, 8), "b2": (5,), "w3": (6, 5), "b3": (6,)}
    for name, shape in shapes.items():
        value = rng.normal(size=shape).astype(np.float32)
        if name == "w2":
            value[:, 4:] = 0.0
        made.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    onnx.save(made, tmp_path / "net.onnx")
    return load_model(tmp_path / "net.onnx")


def samples(count: int = 24) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(2)
    return [{"x": rng.normal(size=(1, 4, 5, 5)).astype(np.float32)} for _ in range(count)]


def test_half_the_squared_error_is_the_divergence(model: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """KL of a model with a small error e in one output is e^2 / 2 times what is found for it."""
    monkeypatch.setattr(room, "DRAWS", 400)
    layers = [one for one in weight_layers(model) if one.op_type == "Gemm"]
    found = information(model, layers, samples(), seed=0)
    wanted = [values[0] for values in run_values(model, ["y"], samples())]
    for layer in layers:
        size = found[layer.name]
        assert size.shape == (layer.shape[0],)
        for channel in range(layer.shape[0]):
            apart = []
            for error in (-0.05, 0.05):  # what is odd in the error is none of its business
                moved, bias = model.clone(), bias_of(model, layer)
                bias[channel] += error
                store(moved, layer, canonical_weight(model, layer), bias)
                got = run_values(moved, ["y"], samples())
                apart += [divergence(a, b[0]) for a, b in zip(wanted, got, strict=True)]
            assert size[channel] == pytest.approx(np.mean(apart) / (0.05**2 / 2), rel=0.1, abs=0.01 * size.max())


def test_channels_that_nothing_reads_are_worth_nothing(model: ir.Model) -> None:
    layer = weight_layers(model)[0]
    found = information(model, [layer], samples())[layer.name]
    assert (found[:4] > 0).any()
    assert not found[4:].any()
    again = information(model, [layer], samples())[layer.name]
    assert np.array_equal(found, again)
    saliency = weighted(np.ones(layer.shape), found)[:, 0, 0]
    assert saliency.min() == pytest.approx(1e-3 * found.mean())


@pytest.mark.parametrize("allocation", ["uniform", "global", "sensitivity"])
def test_fisher_keeps_what_the_outputs_depend_on(model: ir.Model, allocation: str) -> None:
    def made(criterion: str) -> ir.Model:
        recipe = Recipe.from_yaml(RECIPE % (criterion, allocation))
        assert Recipe.from_yaml(recipe.to_yaml()) == recipe
        return run_passes(model, sparsify_passes(recipe, samples(), weigher=information)).model

    wanted = [values[0] for values in run_values(model, ["y"], samples())]
    fisher, obs = made("fisher"), made("obs")
    assert P.keeps(P.SparsePattern("group", 2, 1), canonical_weight(fisher, weight_layers(fisher)[0]))
    apart = [
        np.mean([divergence(a, b[0]) for a, b in zip(wanted, run_values(one, ["y"], samples()), strict=True)])
        for one in (fisher, obs)
    ]
    assert apart[0] < 0.2 * apart[1], "half the channels are for nothing: dropping them costs nothing"
    texts = [ir.serde.serialize_model(one).SerializeToString(deterministic=True) for one in (fisher, made("fisher"))]
    assert texts[0] == texts[1], "same inputs and seed, same bytes"


def test_from_the_command_line(model: ir.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = RECIPE % ("fisher", "sensitivity")
    (tmp_path / "recipe.yaml").write_text(recipe)
    np.save(tmp_path / "x.npy", np.concatenate([one["x"] for one in samples()]))
    save_model(model, tmp_path / "dense.onnx")
    files = {name: str(tmp_path / name) for name in ("dense.onnx", "recipe.yaml", "x.npy", "sparse.onnx")}
    options = ["--recipe", files["recipe.yaml"], "--calibrate", files["x.npy"], "-o", files["sparse.onnx"]]
    assert main(["sparsify", files["dense.onnx"], *options]) == 0, capsys.readouterr().err
    made = onnx.load(files["sparse.onnx"])
    stored = {entry.key: entry.value for entry in made.metadata_props}
    assert Recipe.from_yaml(stored[RECIPE_KEY]) == Recipe.from_yaml(recipe)
    assert json.loads(stored[LAYERS_KEY])["one"]["pattern"] == "group:2x1"


def test_finetuning_can_start_from_it(model: ir.Model) -> None:
    inputs = torch.from_numpy(np.concatenate([one["x"] for one in samples()]))
    start = begin(model, Recipe.from_yaml(RECIPE % ("fisher", "uniform")), inputs, lambda share, text: None)
    assert start.pruned
    assert P.density(canonical_weight(start.begun, weight_layers(start.begun)[0])) == 0.5


def entries(model: ir.Model, *, without: str) -> bytes:
    copy = model.clone()
    copy.metadata_props.pop(without, None)
    return ir.serde.serialize_model(copy).SerializeToString(deterministic=True)


def test_the_criterion_that_agrees_better_is_chosen(model: ir.Model) -> None:
    """By measuring: what is found is what that criterion alone finds, and a weigher that is wrong loses."""

    def wrong(*asked: object) -> dict[str, np.ndarray]:
        return {name: 1.0 / np.maximum(one, 1e-12) for name, one in information(*asked).items()}  # type: ignore[arg-type]

    def made(criterion: str, weigher: object) -> ir.Model:
        recipe = Recipe.from_yaml(RECIPE % (criterion, "uniform"))
        return run_passes(model, sparsify_passes(recipe, samples(), weigher=weigher)).model  # type: ignore[arg-type]

    for weigher, best in ((information, "fisher"), (wrong, "obs")):
        auto = made("auto", weigher)
        told = json.loads(auto.metadata_props[CRITERION_KEY])
        assert told["chosen"] == best == min(("obs", "fisher"), key=told.__getitem__)
        assert Recipe.from_yaml(auto.metadata_props[RECIPE_KEY]).criterion == best
        assert entries(auto, without=CRITERION_KEY) == entries(made(best, weigher), without=CRITERION_KEY)


def test_without_gradients_the_choice_is_said(model: ir.Model) -> None:
    def refuses(*asked: object) -> dict[str, np.ndarray]:
        raise UnsupportedError("torch cannot take this graph")

    recipe = Recipe.from_yaml(RECIPE % ("auto", "uniform"))
    for weigher, words in ((None, "needs torch"), (refuses, "torch cannot take this graph")):
        found = run_passes(model, sparsify_passes(recipe, samples(), weigher=weigher))
        assert json.loads(found.model.metadata_props[CRITERION_KEY]) == {"chosen": "obs"}
        assert any(words in str(reason) for reason in found.reasons)
        plain = run_passes(model, sparsify_passes(Recipe.from_yaml(RECIPE % ("obs", "uniform")), samples())).model
        assert entries(found.model, without=CRITERION_KEY) == entries(plain, without=CRITERION_KEY)


@pytest.mark.parametrize("kind", ["one", "constant", "zero"])
def test_poor_samples(model: ir.Model, kind: str) -> None:
    """One sample, or several that say the same: there is a choice, and the weights stay in order."""
    first = samples()[0]["x"]
    given = {"one": [first], "constant": [np.ones_like(first)] * 6, "zero": [np.zeros_like(first)] * 6}[kind]
    recipe = Recipe.from_yaml(RECIPE % ("auto", "uniform"))
    made = run_passes(model, sparsify_passes(recipe, [{"x": one} for one in given], weigher=information)).model
    told = json.loads(made.metadata_props[CRITERION_KEY])
    assert all(np.isfinite(told[name]) for name in ("obs", "fisher"))
    weight = canonical_weight(made, weight_layers(made)[0])
    assert np.isfinite(weight).all()
    assert weight.any()


def test_refused(model: ir.Model) -> None:
    recipe = Recipe.from_yaml(RECIPE % ("fisher", "uniform"))
    with pytest.raises(UsageError, match="criterion fisher needs gradients"):
        sparsify_passes(recipe, samples())
    with pytest.raises(UsageError, match="needs calibration data"):
        sparsify_passes(recipe, None, weigher=information)
    with pytest.raises(UsageError, match="there is no calibration data"):
        information(model, weight_layers(model), [])
    assert repair_of(recipe, model, weight_layers(model), None, information).worth == {}
