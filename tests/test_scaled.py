"""A factor and a term after an activation, one number each, are part of the layer before them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import HOST_TARGETS, check_against_onnx, text_model

from edgesparse.graph.ops import Conv, Elementwise, Op
from edgesparse.graph.recognise import recognise
from edgesparse.kernels import Epilogue
from edgesparse.passes import model_from_proto
from edgesparse.recipe import Recipe

#: Each layer with numbers of its own: a map of many bands, then a plane, whose windows run across row ends.
NETWORK = """a = Conv<pads=[1,1,1,1]>(x, w) b = HardSwish(a) c = Mul(b, m0) d = Add(c, t0)
    e = Conv<pads=[1,1,1,1], group=8>(d, v) f = HardSwish(e) g = Mul(m1, f) h = Add(t1, g)
    i = Conv(h, u) j = Relu(i) k = Add(j, t2) l = Conv<pads=[1,1,1,1], strides=[4,4], group=8>(k, v) n = Sigmoid(l)
    o = Mul(n, m2) p = Conv<pads=[1,1,1,1], group=8>(o, v) q = Tanh(p) r = Mul(q, m3) y = Add(r, t0)"""


def network() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights: dict[str, Any] = {
        name: rng.standard_normal(shape).astype(np.float32) / 2
        for name, shape in {"w": (8, 3, 3, 3), "v": (8, 1, 3, 3), "u": (8, 8, 1, 1)}.items()
    }
    numbers = {"m0": 1.7, "t0": -0.9, "m1": -2.5, "t1": 0.6, "t2": 1.1, "m2": 3.0, "m3": 0.3}
    weights |= {name: np.array([value], np.float32) for name, value in numbers.items()}
    return text_model(f"g (float[1,3,40,33] x) => (float[1,8,10,9] y) {{ {NETWORK} }}", weights, opset=20)


@pytest.mark.parametrize("target", [HOST_TARGETS[0], HOST_TARGETS[-1]], ids=lambda target: target.name)
@pytest.mark.parametrize("density", [None, 0.5])
def test_a_network_of_them(target: Any, density: float | None, tmp_path: Path) -> None:
    proto = network()
    graph = recognise(model_from_proto(proto))
    assert [type(op) for op in graph.ops] == [Conv] * 5
    assert [op.affine for op in graph.ops if isinstance(op, Conv)] == [
        (pytest.approx(scale), pytest.approx(shift))
        for scale, shift in ((1.7, -0.9), (-2.5, 0.6), (1.0, 1.1), (3.0, 0.0), (0.3, -0.9))
    ]
    if density is None:
        check_against_onnx(proto, tmp_path, target)
        return
    for layer in ("w", "u"):  # zeros of its own, so that the reference has them too
        array = next(item for item in proto.graph.initializer if item.name == layer)
        values = onnx.numpy_helper.to_array(array).copy()
        values[:4, ::2] = 0
        values[4:, 1::2] = 0
        array.CopyFrom(onnx.numpy_helper.from_array(values, layer))
    check_against_onnx(proto, tmp_path, target, recipe=Recipe.from_dict({"pattern": "group:4x1", "density": 1.0}))


def kinds(body: str) -> list[Op]:
    numbers = {"m": np.float32(2), "each": np.arange(4, dtype=np.float32).reshape(4, 1, 1)}
    weights = {"w": np.ones((4, 4, 1, 1), np.float32), **numbers}
    text = f"g (float[1,4,9,9] x) => (float[1,4,9,9] y) {{ {body} }}"
    return list(recognise(model_from_proto(text_model(text, weights, opset=20))).ops)


@pytest.mark.parametrize(
    "body",
    [
        "a = Conv(x, w) b = Relu(a) y = Mul(b, each)",  # a number for each channel
        "a = Conv(x, w) b = Relu(a) y = Mul(b, x)",  # no constant
        "a = Conv(x, w) b = Relu(a) c = Add(b, x) y = Mul(c, m)",  # the residual would be scaled too
        "a = Conv(x, w) b = Relu(a) c = Mul(b, m) y = Add(c, b)",  # what is scaled has other readers
    ],
)
def test_what_is_left_beside_the_layer(body: str) -> None:
    first, *rest = kinds(body)
    assert isinstance(first, Conv)
    assert (first.epilogue.affine, first.affine) == (False, (1.0, 0.0))
    assert {type(op) for op in rest} == {Elementwise}


def test_it_stands_in_the_kernels_name() -> None:
    names = {Epilogue("relu", affine=affine).name for affine in (False, True)}
    assert len(names) == 2
