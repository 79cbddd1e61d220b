"""What a student is compared at, and the loss there, against numpy and scipy."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
import scipy.optimize
import scipy.special
import torch

from edgesparse.passes import model_from_proto
from edgesparse.training.converter import Converted
from edgesparse.training.features import LEAST, feature_loss, narrow, output_distance, sharpness, teaching


def test_places_are_what_others_see() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
        net (float[1,2,4,4] x) => (float[1,2,4,4] y, float[1,2,4,4] z)
        <float[2,2,1,1] w = {1, 2, 3, 4}, float low = {0}, float high = {6}> {
          [one] a = Conv(x, w)
          b = Clip(a, low, high)
          [two] c = Conv(b, w)
          s = Add(c, x)
          r = Relu(s)
          [three] d = Conv(r, w)
          [four] e = Conv(r, w)
          y = Mul(d, e)
          [five] z = Conv(d, w) }"""
    module = Converted(model_from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))))
    # after the activation; after the sum and its activation; where two look, there; outputs as they are
    for layer, place in {"one": "b", "two": "r", "three": "d", "four": "e", "five": "z"}.items():
        assert module.places([layer]) == [place]
    assert module.places(["five", "two", "one"]) == ["b", "r", "z"], "in the graph's order"
    assert module.head() is None, "a product makes the first output"


def test_layers_that_meet_are_compared_once() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
        net (float[1,2,4,4] x) => (float[1,2,4,4] y) <float[2,2,1,1] w = {1, 2, 3, 4}> {
          [one] a = Conv(x, w)
          [two] b = Conv(x, w)
          s = Add(a, b)
          [three] y = Conv(s, w) }"""
    module = Converted(model_from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))))
    assert module.places(["one", "two"]) == ["s"]
    before = module(torch.ones(1, 2, 4, 4))
    module.sharpen(1.5)
    assert torch.allclose(module(torch.ones(1, 2, 4, 4)), 1.5 * before)


def test_expansions_are_not_compared() -> None:
    # 24 channels, expanded to 144 twice, and 40 at a quarter of the size; the last stays, large as it is
    assert narrow([75, 451, 451, 75, 451, 113, 31, 188, 47, 313]) == [0, 3, 6, 8, 9]
    # halved at every stride, as without bottlenecks: all of them
    assert narrow([802, 401, 401, 201, 201, 101, 101]) == list(range(7))
    assert narrow([5]) == [0]


def test_the_loss_counts_the_last_place_twice() -> None:
    rng = np.random.default_rng(0)
    theirs = [rng.normal(size=(3, 2, 5)), rng.normal(size=(3, 7)) * 10]
    ours = [one + rng.normal(size=one.shape) for one in theirs]
    parts = [np.sum((mine - right) ** 2) / np.sum(right**2) for mine, right in zip(ours, theirs, strict=True)]
    tensors = [[torch.tensor(one, requires_grad=True) for one in side] for side in (ours, theirs)]
    loss = feature_loss(*tensors)
    assert float(loss.detach()) == pytest.approx(np.mean(parts) + parts[-1], rel=1e-5)
    loss.backward()
    assert all(one.grad is not None for one in tensors[0])
    assert all(one.grad is None for one in tensors[1]), "the teacher learns nothing"
    assert float(feature_loss([torch.zeros(2)], [torch.zeros(2)])) == 0.0


@pytest.mark.parametrize("true", [0.3, 1.0, 1.7, 9.0])
def test_sharpness_is_the_factor_of_least_divergence(true: float) -> None:
    rng = np.random.default_rng(1)
    ours = rng.normal(size=(20, 12))
    theirs = true * ours + 0.3 * rng.normal(size=ours.shape)

    def divergence(factor: float) -> float:
        p, q = scipy.special.log_softmax(theirs, 1), scipy.special.log_softmax(factor * ours, 1)
        return float(np.mean(np.sum(np.exp(p) * (p - q), 1)))

    wanted = scipy.optimize.minimize_scalar(
        divergence, bounds=(LEAST, 1 / LEAST), method="bounded", options={"xatol": 1e-8}
    )
    found = sharpness(torch.tensor(ours), torch.tensor(theirs))
    assert found == pytest.approx(wanted.x, abs=1e-4)
    assert float(output_distance(found * torch.tensor(ours), torch.tensor(theirs))) == pytest.approx(wanted.fun)


def test_few_inputs_teach_by_features() -> None:
    assert teaching(torch.zeros(1, 10), 9) == "features"
    assert teaching(torch.zeros(1, 10), 10) == "both"
    assert teaching(torch.zeros(1, 10, 4), 3) == "both", "no classes"
    ours, theirs = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    wanted = ((ours - theirs) ** 2).sum() / (theirs**2).sum()
    assert float(output_distance(ours, theirs)) == pytest.approx(float(wanted), rel=1e-5)
