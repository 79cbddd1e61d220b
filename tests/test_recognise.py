"""What becomes which operation, what is fused, and what is not and why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks import text_model

from edgesparse.graph.ops import Concat, Conv, Elementwise, Fallback, GlobalPooling, Graph, Linear, Op, Pooling, View
from edgesparse.graph.recognise import recognise
from edgesparse.kernels import Epilogue
from edgesparse.passes import model_from_proto

W = {"w": np.ones((4, 4, 1, 1), np.float32), "v": np.ones((4, 4, 1, 1), np.float32)}
HEAD = "(float[1,4,9,9] x) => (float[1,4,9,9] y)"


def graph_of(text: str, weights: dict[str, Any] | None = None) -> Graph:
    return recognise(model_from_proto(text_model(f"g {text}", weights, opset=20)))


def only(text: str, weights: dict[str, Any] | None = None) -> Op:
    (op,) = graph_of(text, weights).ops
    return op


@pytest.mark.parametrize(
    ("body", "epilogue"),
    [
        ("y = Conv(x, w)", Epilogue()),
        ("a = Conv(x, w) y = Relu(a)", Epilogue("relu")),
        ("a = Conv(x, w) y = Clip(a, zero, six)", Epilogue("clip", (0.0, 6.0))),
        ("a = Conv(x, w) y = Clip(a, zero)", Epilogue("relu")),
        ("a = Conv(x, w) y = HardSwish(a)", Epilogue("hardswish")),
        ("a = Conv(x, w) s = Sigmoid(a) y = Mul(s, a)", Epilogue("silu")),
        ("a = Conv(x, w) y = Gelu(a)", Epilogue("gelu")),
        (
            "a = Conv(x, w) d = Div(a, root) e = Erf(d) f = Add(e, one) g = Mul(a, f) y = Mul(g, half)",
            Epilogue("gelu"),
        ),
        ("a = Conv(x, w) d = Div(a, root) e = Erf(d) f = Add(one, e) g = Mul(a, half) y = Mul(g, f)", Epilogue("gelu")),
        ("a = Conv(x, w) y = Add(a, x)", Epilogue(residual="before")),
        ("a = Conv(x, w) b = Add(x, a) y = Relu(b)", Epilogue("relu", (), "before")),
        ("a = Conv(x, w) b = Relu(a) y = Add(b, x)", Epilogue("relu", (), "after")),
        ("a = Conv(x, w) b = Tanh(a) y = Add(x, b)", Epilogue("tanh", (), "after")),
    ],
)
def test_what_a_convolution_takes_in(body: str, epilogue: Epilogue) -> None:
    numbers = {"zero": 0, "six": 6, "root": 2**0.5, "one": 1, "half": 0.5}
    op = only(f"{HEAD} {{ {body} }}", {**W, **{name: np.float32(value) for name, value in numbers.items()}})
    assert isinstance(op, Conv)
    assert op.epilogue == epilogue
    assert op.inputs == (("x", "x") if epilogue.residual != "none" else ("x",))
    assert op.output == "y"
    assert len(op.nodes) == body.count("=")


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        # somebody else reads what lies between
        (
            "(float[1,4,9,9] x) => (float[1,4,9,9] y, float[1,4,9,9] a) { a = Conv(x, w) y = Relu(a) }",
            "Conv Elementwise",
        ),
        (f"{HEAD} {{ a = Conv(x, w) b = Relu(a) y = Mul(b, a) }}", "Conv Elementwise Elementwise"),
        # the residual is not there yet
        (f"{HEAD} {{ a = Conv(x, w) e = Elu(x) y = Add(a, e) }}", "Conv Fallback Elementwise"),
        # it broadcasts
        (
            "(float[1,4,9,9] x, float[1,4,1,1] z) => (float[1,4,9,9] y) { a = Conv(x, w) y = Add(a, z) }",
            "Conv Elementwise",
        ),
        # no such epilogue
        (f"{HEAD} {{ a = Conv(x, w) y = Elu(a) }}", "Conv Fallback"),
        # the gate is another value's
        (f"{HEAD} {{ a = Conv(x, w) b = Conv(x, v) s = Sigmoid(a) y = Mul(b, s) }}", "Conv Conv Elementwise"),
        # of two convolutions only the second can take the first in
        (f"{HEAD} {{ a = Conv(x, w) b = Conv(x, v) y = Add(a, b) }}", "Conv Conv"),
        # weights that are computed
        ("(float[1,4,9,9] x, float[4,4,1,1] u) => (float[1,4,9,9] y) { y = Conv(x, u) }", "Fallback"),
    ],
)
def test_what_stays_apart(text: str, kinds: str) -> None:
    graph = graph_of(text, W)
    assert " ".join(type(op).__name__ for op in graph.ops) == kinds


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("(float[1,4,8,8] x) => (float[1,4,4,4] y) { y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x) }", Pooling),
        ("(float[1,4,8,8] x) => (float[1,4,1,1] y) { y = GlobalAveragePool(x) }", GlobalPooling),
        ("(float[1,4,8,8] x) => (float[1,8,8,8] y) { y = Concat<axis=-3>(x, x) }", Concat),
        ("(float[1,4,8,8] x) => (float[1,4,8,16] y) { y = Concat<axis=3>(x, x) }", Fallback),
        ("(float[1,4,8,8] x) => (float[1,256] y) { y = Flatten(x) }", View),
        ("(float[1,4,8,8] x) => (float[1,4,8,8] y) { y = HardSwish(x) }", Elementwise),
        ("(float[3,4] x) => (float[3,4] y) { y = Relu(x) }", Fallback),
        ("(float[3,4] x) => (float[3,5] y) { y = MatMul(x, m) }", Linear),
        ("(float[3,4] x) => (float[3,5] y) { y = Gemm<transA=0>(x, m) }", Linear),
        ("(float[4,3] x) => (float[3,5] y) { y = Gemm<transA=1>(x, m) }", Fallback),
        ("(float[3,4] x) => (float[3,5] y) { y = Gemm<alpha=2.0>(x, m) }", Fallback),
        ("(float[3,4] x) => (float[3,5] y) { y = Gemm(x, m, column) }", Fallback),
        ("(float[1,4,8,8] x, float[4,1,1] z) => (float[1,4,8,8] y) { y = Mul(x, z) }", Fallback),
        ("(float[1,4,8,8] x, float[1,4,1,1] z) => (float[1,4,8,8] y) { y = Mul(z, x) }", Elementwise),
        ("(float[1,4,8,8] x, float[1,1,8,8] z) => (float[1,4,8,8] y) { y = Mul(x, z) }", Fallback),
    ],
)
def test_families(text: str, kind: type[Op]) -> None:
    op = only(text, {"m": np.ones((4, 5), np.float32), "column": np.ones((3, 1), np.float32)})
    assert type(op) is kind


@pytest.mark.parametrize(
    ("attributes", "shape", "mode"),
    [
        ("kernel_shape=[3,3], strides=[2,2]", (4, 4), "avg"),
        ("kernel_shape=[3,3], pads=[1,1,1,1]", (9, 9), "avg_valid"),
        ("kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1", (9, 9), "avg"),
        ("kernel_shape=[2,2], strides=[2,2], ceil_mode=1", (5, 5), "avg_valid"),
    ],
)
def test_how_means_are_counted(attributes: str, shape: tuple[int, int], mode: str) -> None:
    text = f"(float[1,4,9,9] x) => (float[1,4,{shape[0]},{shape[1]}] y) {{ y = AveragePool<{attributes}>(x) }}"
    op = only(text)
    assert isinstance(op, Pooling)
    assert op.mode == mode


def test_the_rest_is_cut_out_in_runs() -> None:
    graph = graph_of(f"{HEAD} {{ a = Elu(x) b = Erf(a) c = Conv(b, w) d = Elu(c) y = Add(d, a) }}", W)
    assert [type(op).__name__ for op in graph.ops] == ["Fallback", "Conv", "Fallback", "Elementwise"]
    first = graph.ops[0]
    assert isinstance(first, Fallback)
    assert [node.op_type for node in first.model.graph.node] == ["Elu", "Erf"]
    assert first.inputs == ("x",)
    assert set(first.outputs) == {"a", "b"}


def test_swapped_operands_are_kept_in_order() -> None:
    op = only(f"{HEAD} {{ y = Sub(c, x) }}", {"c": np.float32(3)})
    assert isinstance(op, Elementwise)
    assert (op.op, op.operand, op.swapped) == ("sub", "scalar", True)


def test_constant_outputs_are_copied() -> None:
    graph = graph_of("(float[2] x) => (float[2] y, float[2] z) { y = Relu(x) }", {"z": np.ones(2, np.float32)})
    made = next(op for op in graph.ops if "z" in op.outputs)
    assert isinstance(made, Fallback)
    assert made.inputs == ()
