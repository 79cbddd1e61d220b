"""Fitting a pruned model by gradient: closer to dense on what is held back, zeros stay, bytes repeat."""

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
from edgesparse.errors import RecipeError, UsageError
from edgesparse.passes import load_model, run_passes, sparsify_passes, weight_layers
from edgesparse.passes.agreement import divergence
from edgesparse.passes.layers import canonical_weight
from edgesparse.passes.observe import run_values
from edgesparse.passes.sparsify import FITTING_KEY
from edgesparse.recipe import Recipe

pytest.importorskip("torch")
from edgesparse.training import fitting
from edgesparse.training.fitting import fitter

RECIPE = """
pattern: group:2x1
density: 0.4
targets: [conv1x1]
fitting: {method: %s, steps: 40, rate: %s, batch: 16}
"""


@pytest.fixture
def model(tmp_path: Path) -> ir.Model:
    rng = np.random.default_rng(0)
    text = """<ir_version: 9, opset_import: ["" : 18]>
        net (float[1,6,7,7] x) => (float[1,5] y) { [one] a = Conv(x, w1, b1)  r = Relu(a)
          [deep] d = Conv <group = 12, pads = [1,1,1,1]> (r, w2, b2)  [two] e = Conv(d, w3, b3)
          s = Add(e, x)  p = GlobalAveragePool(s)  f = Flatten(p)  [last] y = Gemm <transB = 1> (f, w4, b4) }"""
    made = onnx.parser.parse_model(text)
    for name, shape in {"w1": (12, 6, 1, 1), "w2": (12, 1, 3, 3), "w3": (6, 12, 1, 1), "w4": (5, 6)}.items():
        for one, size in ((name, shape), (name.replace("w", "b"), shape[:1])):
            made.graph.initializer.append(
                onnx.numpy_helper.from_array(
                    (rng.normal(size=size) / np.sqrt(np.prod(shape[1:]))).astype(np.float32), one
                )
            )
    onnx.save(made, tmp_path / "net.onnx")
    return load_model(tmp_path / "net.onnx")


def samples(count: int = 40, seed: int = 3) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(1, 6, 7, 7)).astype(np.float32)} for _ in range(count)]


def sparse(model: ir.Model, text: str) -> ir.Model:
    return run_passes(model, sparsify_passes(Recipe.from_yaml(text), samples(), fitter=fitter())).model


def apart(dense: ir.Model, other: ir.Model) -> float:
    """Mean divergence on samples that nothing was fitted to."""
    fresh = samples(60, seed=8)
    pairs = zip(run_values(dense, ["y"], fresh), run_values(other, ["y"], fresh), strict=True)
    return float(np.mean([divergence(a[0], b[0]) for a, b in pairs]))


@pytest.mark.parametrize(("method", "rate"), [("channels", 0.02), ("weights", 0.02)])
def test_fitting_brings_the_model_closer(model: ir.Model, method: str, rate: float) -> None:
    plain, fitted = sparse(model, RECIPE % ("none", rate)), sparse(model, RECIPE % (method, rate))
    told = json.loads(fitted.metadata_props[FITTING_KEY])
    assert told["after"] < told["before"]
    assert apart(model, fitted) < apart(model, plain)
    for before, after in zip(weight_layers(plain), weight_layers(fitted), strict=True):
        first, last = canonical_weight(plain, before), canonical_weight(fitted, after)
        assert not last[first == 0].any(), "zeros stay zeros"
        if method == "channels":
            ratio = (last / np.where(first == 0, 1, first)).reshape(len(last), -1)
            spread = [np.ptp(row[row != 0]) for row in ratio if row.any()]
            assert max(spread) < 1e-5, "one factor a channel"
    assert P.keeps(P.SparsePattern("group", 2, 1), canonical_weight(fitted, weight_layers(fitted)[0]))
    again = sparse(model, RECIPE % (method, rate))
    texts = [ir.serde.serialize_model(one).SerializeToString(deterministic=True) for one in (fitted, again)]
    assert texts[0] == texts[1], "same inputs and seed, same bytes"


def test_fitting_that_harms_is_taken_back(model: ir.Model) -> None:
    nearly = RECIPE.replace("density: 0.4", "density: 0.97").replace("group:2x1", "unstructured")
    plain, fitted = sparse(model, nearly % ("none", 1.0)), sparse(model, nearly % ("weights", 1.0))
    told = json.loads(fitted.metadata_props[FITTING_KEY])
    assert (told["step"], told["after"]) == (0, told["before"])
    for before, after in zip(weight_layers(plain), weight_layers(fitted), strict=True):
        assert np.array_equal(canonical_weight(plain, before), canonical_weight(fitted, after))


def test_fewer_samples_than_classes_teach_by_features(model: ir.Model) -> None:
    wide = model.clone()
    rng = np.random.default_rng(5)
    for name, value in (("w4", rng.normal(size=(50, 6))), ("b4", rng.normal(size=50))):
        wide.graph.initializers[name].const_value = ir.tensor((2 * value).astype(np.float32))
        wide.graph.initializers[name].shape = ir.Shape(value.shape)
    wide.graph.outputs[0].shape = ir.Shape((1, 50))
    plain, fitted = sparse(wide, RECIPE % ("none", 0.02)), sparse(wide, RECIPE % ("weights", 0.02))
    told = json.loads(fitted.metadata_props[FITTING_KEY])
    assert told["after"] < told["before"]
    assert apart(wide, fitted) < apart(wide, plain)
    # what makes the logits has learnt nothing but the factor
    before, after = (next(one for one in m.graph if one.op_type == "Gemm").inputs for m in (plain, fitted))
    for one, other in zip(before[1:], after[1:], strict=True):
        assert one is not None
        assert other is not None
        scaled = told["factor"] * one.const_value.numpy()
        assert np.allclose(other.const_value.numpy(), scaled, rtol=1e-5, atol=1e-7)


def test_fitting_left_open(model: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.from_yaml(RECIPE % ("auto", 0.02))
    bare = run_passes(model, sparsify_passes(recipe, samples())).model  # nobody knows gradients
    assert FITTING_KEY not in bare.metadata_props

    def done(count: int = 40) -> tuple[ir.Model, list[str]]:
        made = run_passes(model, sparsify_passes(recipe, samples(count), fitter=fitter()))
        return made.model, [str(one) for one in made.reasons if one.code == "fitting"]

    fitted, reasons = done()
    assert json.loads(fitted.metadata_props[FITTING_KEY])["step"] > 0
    assert not reasons
    few, reasons = done(3)
    assert FITTING_KEY not in few.metadata_props
    assert len(reasons) == 1
    assert "not fitted by gradient: there are 3 samples" in reasons[0]
    monkeypatch.setattr(fitting, "MOST_WORK", 1000)
    large, reasons = done()
    assert "the model is large" in reasons[0]
    for one, other in zip(weight_layers(bare), weight_layers(large), strict=True):
        assert np.array_equal(canonical_weight(bare, one), canonical_weight(large, other))


def test_fitting_refused(model: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.from_yaml(RECIPE % ("channels", 0.01))
    with pytest.raises(UsageError, match=r"fits by gradient.*use sparsify, with torch"):
        sparsify_passes(recipe, samples())
    with pytest.raises(UsageError, match="needs calibration data"):
        sparsify_passes(recipe, None, fitter=fitter())
    with pytest.raises(UsageError, match="there are 3 samples"):
        run_passes(model, sparsify_passes(recipe, samples(3), fitter=fitter()))
    monkeypatch.setattr(fitting, "MAX_BYTES", 20 * 6 * 7 * 7 * 4)
    with pytest.raises(UsageError, match="the samples take more than 0 MB"):
        run_passes(model, sparsify_passes(recipe, samples(21), fitter=fitter()))
    with pytest.raises(RecipeError, match=r"fitting\.rate"):
        Recipe.from_yaml(RECIPE % ("channels", 7))
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
