"""Simplify, pass by pass: what matches, what does not, and onnxruntime before and after."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from judge import same

from edgesparse.passes import SIMPLIFY, run_passes
from edgesparse.passes.base import RunResult

RNG = np.random.default_rng(7)


def f32(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def simplify(model: ir.Model, bound: float = 1e-6) -> RunResult:
    result = run_passes(model, SIMPLIFY)
    same(model, result.model, bound)
    again = run_passes(result.model, SIMPLIFY)
    assert not again.modified, "simplify must leave alone what is simple"
    return result


def ops(model: ir.Model) -> dict[str, int]:
    return dict(Counter(node.op_type for node in model.graph))


BN = {"g": f32(4), "b": f32(4), "m": f32(4), "v": np.abs(f32(4)) + 0.1}
IMAGE = "g (float[1,3,8,8] x) => (float[1,4,N,M] y)"


@pytest.mark.parametrize("bias", ["", ", c"])
def test_batch_norm_goes_into_the_convolution(load, bias: str) -> None:
    text = f"{IMAGE} {{ t = Conv(x, w{bias})  y = BatchNormalization <epsilon = 0.01> (t, g, b, m, v) }}"
    result = simplify(load(text, {"w": f32(4, 3, 3, 3), **BN} | ({"c": f32(4)} if bias else {})))
    assert ops(result.model) == {"Conv": 1}
    assert result.model.graph.outputs[0].name == "y"
    assert result.reasons == ()


def test_batch_norm_into_grouped_transposed_convolution(load) -> None:
    text = "g (float[1,4,5,5] x) => (float[1,4,N,M] y) { t = ConvTranspose <group = 2> (x, w)  "
    text += "y = BatchNormalization(t, g, b, m, v) }"
    assert ops(simplify(load(text, {"w": f32(4, 2, 3, 3), **BN})).model) == {"ConvTranspose": 1}


@pytest.mark.parametrize("trans", [0, 1])
def test_batch_norm_into_gemm_with_alpha_and_beta(load, trans: int) -> None:
    text = "g (float[2,3] x) => (float[2,4] y) { "
    text += f"t = Gemm <alpha = 0.5, beta = 2.0, transB = {trans}> (x, w, c)  "
    text += "y = BatchNormalization(t, g, b, m, v) }"
    result = simplify(load(text, {"w": f32(4, 3) if trans else f32(3, 4), "c": f32(1, 4), **BN}))
    (node,) = result.model.graph
    assert node.op_type == "Gemm"
    assert "alpha" not in node.attributes
    assert list(node.inputs[2].shape) == [4]


def test_scales_and_shifts_go_into_the_convolution(load) -> None:
    text = f"{IMAGE} {{ a = Conv(x, w)  s = Mul(a, k)  d = Div(s, two)  e = Add(p, d)  y = Sub(one, e) }}"
    weights = {"w": f32(4, 3, 1, 1), "k": f32(1, 4, 1, 1), "p": f32(4, 1, 1)}
    scalars = {"two": np.float32(2), "one": np.float32([1])}
    assert ops(simplify(load(text, weights | scalars)).model) == {"Conv": 1}


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        # read twice
        (f"{IMAGE} {{ t = Conv(x, w)  s = Mul(t, k)  y = Add(s, t) }}", {"k": f32(1, 4, 1, 1)}),
        # a number per column, not per channel
        (f"{IMAGE} {{ t = Conv(x, w)  y = Mul(t, k) }}", {"k": f32(6)}),
        # the convolution divides
        (f"{IMAGE} {{ t = Conv(x, w)  y = Div(k, t) }}", {"k": f32(1)}),
        # broadcasting makes the result larger
        ("g (float[1,3,8,8] x) => (float[5,4,6,6] y) { t = Conv(x, w)  y = Mul(t, k) }", {"k": f32(5, 1, 1, 1)}),
        # the intermediate result is an output too
        (
            "g (float[1,3,8,8] x) => (float[1,4,6,6] t, float[1,4,6,6] y) { t = Conv(x, w)  y = Mul(t, k) }",
            {"k": f32(1)},
        ),
    ],
)
def test_scales_that_stay(load, text: str, weights) -> None:
    model = load(text, {"w": f32(4, 3, 3, 3), **weights})
    assert ops(simplify(model).model) == ops(model)


def test_batch_norm_without_a_layer_has_a_reason(load) -> None:
    text = "g (float[1,4,8,8] x) => (float[1,4,8,8] y) { y = BatchNormalization(x, g, b, m, v) }"
    assert [reason.code for reason in simplify(load(text, BN)).reasons] == ["batch-norm-kept"]


def test_matmul_and_bias_become_gemm(load) -> None:
    text = "g (float[2,3] x) => (float[2,4] y) { t = MatMul(x, w)  y = Add(t, c) }"
    assert ops(simplify(load(text, {"w": f32(3, 4), "c": f32(4)})).model) == {"Gemm": 1}
    text = "g (float[2,5,3] x) => (float[2,5,4] y) { t = MatMul(x, w)  s = Mul(t, k) y = Add(s, c) }"
    result = simplify(load(text, {"w": f32(3, 4), "k": f32(4), "c": f32(4)}))
    assert ops(result.model) == {"MatMul": 1, "Add": 1}


def test_weights_behind_nodes_become_initializers(load) -> None:
    text = f"""{IMAGE} {{
        i = Identity(w)  h = Constant <value_float = 0.5> ()  s = Mul(i, h)  p = Transpose <perm = [1,0,2,3]> (s)
        k = Constant <value_floats = [1.0, 2.0, 3.0, 4.0]> ()  d = Dropout(x)  y = Conv(d, p, k) }}"""
    result = simplify(load(text, {"w": f32(3, 4, 3, 3)}))
    (node,) = result.model.graph
    assert all(value.is_initializer() for value in node.inputs[1:])
    assert len(result.model.graph.initializers) == 2


def test_shape_arithmetic_is_folded(load) -> None:
    text = """g (float[1,4,8,8] x) => (float[1,N] y) {
        s = Shape <start = 0, end = 1> (x)  m = Constant <value_ints = [-1]> ()
        t = Concat <axis = 0> (s, m)  y = Reshape(x, t) }"""
    assert ops(simplify(load(text)).model) == {"Reshape": 1}


def test_folding_does_not_grow_a_bomb(load) -> None:
    text = """g (float[1] x) => (float[N] y) { n = Constant <value_ints = [1000000000]> ()
        c = ConstantOfShape(n)  y = Add(x, c) }"""
    result = run_passes(load(text), SIMPLIFY)
    assert "ConstantOfShape" in ops(result.model)


def test_shared_weights_are_copied(load) -> None:
    text = """g (float[2,3] x) => (float[2,3] y, float[2,3] z) {
        a = MatMul(x, w)  y = Mul(a, k)  n = Neg(x)  z = MatMul(n, w) }"""
    model = load(text, {"w": f32(3, 3), "k": f32(3)})
    result = simplify(model)
    weights = [node.inputs[1] for node in result.model.graph if node.op_type == "MatMul"]
    assert weights[0] is not weights[1]
    assert len({value.name for value in weights}) == 2
    assert np.array_equal(weights[1].const_value.numpy(), model.graph.initializers["w"].const_value.numpy())


def test_sum_of_two_is_add(load) -> None:
    text = "g (float[2,3] x) => (float[2,3] y) { t = Relu(x)  u = Sum(x, t)  y = Sum(u, t, x) }"
    assert ops(simplify(load(text)).model) == {"Relu": 1, "Add": 1, "Sum": 1}


# --- padding


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("op", ["Conv(x, w)", "MaxPool(x)", "AveragePool(x)"])
def test_auto_pad_becomes_explicit(load, mode: str, op: str) -> None:
    name, args = op.split("(")
    window = f'kernel_shape = [3,2], strides = [2,2], auto_pad = "{mode}"'
    text = f"g (float[1,3,7,8] x) => (float[1,C,N,M] y) {{ y = {name} <{window}> ({args} }}"
    result = simplify(load(text, {"w": f32(4, 3, 3, 2)} if name == "Conv" else None))
    (node,) = result.model.graph
    assert "auto_pad" not in node.attributes


PAD = "g (float[1,3,7,7] x) => (float[1,C,N,M] y) { r = %s(x)  t = Pad(r, p%s)  y = %s }"
POOL = "%s <kernel_shape = [3,3]> (t)"


@pytest.mark.parametrize(
    ("first", "value", "last", "fused"),
    [
        ("Neg", "", "Conv <pads = [1,0,0,0]> (t, w)", True),
        ("Neg", ", zero", "Conv(t, w)", True),
        ("Neg", ", one", "Conv(t, w)", False),
        ("Neg", "", POOL % "AveragePool", True),
        ("Relu", "", POOL % "MaxPool", True),
        ("Neg", "", POOL % "MaxPool", False),
        ("Relu", "", "MaxPool <kernel_shape = [2,2]> (t)", False),  # pads must be smaller than the kernel
    ],
)
def test_pads(load, first: str, value: str, last: str, fused: bool) -> None:
    weights = {
        "w": f32(4, 3, 3, 3),
        "p": np.array([0, 0, 1, 0, 0, 0, 2, 1]),
        "zero": np.float32(0),
        "one": np.float32(1),
    }
    result = simplify(load(PAD % (first, value, last), weights))
    assert ("Pad" not in ops(result.model)) == fused


@pytest.mark.parametrize("pads", [[0, 1, 1, 0, 0, 0, 0, 0], [0, 0, -1, 0, 0, 0, 0, 0]])
def test_pads_of_channels_or_crops_stay(load, pads: list[int]) -> None:
    weights = {"w": f32(4, 4 if pads[1] else 3, 3, 3), "p": np.array(pads)}
    result = simplify(load(PAD % ("Neg", "", "Conv(t, w)"), weights))
    assert "Pad" in ops(result.model)


def test_pad_of_named_axes(load) -> None:
    weights = {"w": f32(4, 3, 3, 3), "p": np.array([1, 2]), "a": np.array([-1])}
    assert "Pad" not in ops(simplify(load(PAD % ("Neg", ", , a", "Conv(t, w)"), weights)).model)


# --- activations

CONSTANTS = {
    "c0": np.float32(0),
    "c3": np.float32(3),
    "c6": np.float32(6),
    "sixth": np.float32(1 / 6),
    "c5": np.float32(5),
}
HARD = "a = Add(x, c3)  c = Clip(a, c0, c6)  "


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (HARD + "m = Mul(x, c)  y = Div(m, c6)", {"HardSwish": 1}),
        (HARD + "m = Mul(c, x)  y = Mul(m, sixth)", {"HardSwish": 1}),
        (HARD + "d = Div(c, c6)  y = Mul(x, d)", {"HardSwish": 1}),
        (HARD + "d = Mul(sixth, c)  y = Mul(d, x)", {"HardSwish": 1}),
        ("h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x)  y = Mul(x, h)", {"HardSwish": 1}),
        (HARD + "y = Div(c, c6)", {"HardSigmoid": 1}),
        ("h = HardSigmoid(x)  y = Mul(x, h)", {"HardSigmoid": 1, "Mul": 1}),
        (HARD + "m = Mul(x, c)  y = Div(m, c5)", {"Add": 1, "Clip": 1, "Mul": 1, "Div": 1}),
        ("s = Sigmoid(x)  y = Mul(x, s)", {"Sigmoid": 1, "Mul": 1}),
        ("r = Relu(x)  y = Clip(r, c0, c6)", {"Clip": 1}),
        ("a = Max(x, c0)  y = Min(a, c6)", {"Clip": 1}),
    ],
)
def test_activations(load, body: str, wanted: dict[str, int]) -> None:
    model = load(f"g (float[4,50] x) => (float[4,50] y) {{ {body} }}", CONSTANTS)
    assert ops(simplify(model).model) == wanted
