"""Products and norms over feature-major values: one copy for all readers, none turned back without need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import HOST_TARGETS, check_against_onnx, text_model

from edgesparse.graph.ops import LayerNorm, Linear
from edgesparse.graph.recognise import recognise
from edgesparse.lowering.lower import lower
from edgesparse.passes import model_from_proto
from edgesparse.planning.place import place
from edgesparse.planning.plan import plan
from edgesparse.target import Target

V4 = Target.parse("x86-64-v4")


def model(body: str, rows: int = 21, outputs: str = "float[1,{rows},12] y") -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights: dict[str, Any] = {
        name: rng.standard_normal(shape).astype(np.float32) / 3
        for name, shape in {"w": (12, 12), "u": (12, 30), "d": (30, 12), "g": (12,), "s": (12,), "k": (30,)}.items()
    }
    weights["flat"] = np.array([rows, 12], np.int64)
    weights["back"] = np.array([1, rows, 12], np.int64)
    text = f"g (float[1,{rows},12] x) => ({outputs.format(rows=rows)}) {{ {body} }}"
    return text_model(text, weights, opset=20)


#: A block of a transformer without its attention: three readers of one value, a norm, a wide layer, two residuals.
BLOCK = """a = MatMul(x, w) b = MatMul(x, w) c = MatMul(x, w) ab = Add(a, b) n = LayerNormalization<axis=-1>(x, g, s)
    h = MatMul(n, u) hk = Add(h, k) e = Gelu(hk) m = MatMul(e, d) r = Add(m, x) o = LayerNormalization<axis=-1>(r, g)
    p = MatMul(o, w) q = Add(p, c) y = Add(q, ab)"""
VIEWS = """a = MatMul(x, w) f = Reshape(a, flat) b = MatMul(f, w) c = Reshape(b, back) d1 = Add(c, a)
    e = Relu(d1) h = MatMul(e, u) y = MatMul(h, d)"""
#: Values that are outputs, read plain and feature-major alike.
BOTH = "a = MatMul(x, w) t = Transpose<perm=[0,2,1]>(a) b = MatMul(a, w) y = Add(b, a)"


@pytest.mark.parametrize("rows", [1, 3, 16, 21])
@pytest.mark.parametrize("body", [BLOCK, VIEWS], ids=["block", "views"])
@pytest.mark.parametrize("threads", [1, 3])
def test_values_stay_feature_major(body: str, rows: int, threads: int, tmp_path: Path) -> None:
    check_against_onnx(model(body, rows), tmp_path, HOST_TARGETS[-1], threads=threads)


def test_a_value_that_is_read_both_ways(tmp_path: Path) -> None:
    outputs = "float[1,{rows},12] y, float[1,{rows},12] a, float[1,12,{rows}] t"
    check_against_onnx(model(BOTH, outputs=outputs), tmp_path, HOST_TARGETS[-1])


def test_an_image_of_rows(tmp_path: Path) -> None:
    """Four dimensions: written in ONNX's order at once, as elementwise operations read it there."""
    w = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    text = "g (float[1,3,6,8] x) => (float[1,3,6,8] y) { a = MatMul(x, w) b = Add(a, x) c = Sigmoid(b) y = Mul(b, c) }"
    check_against_onnx(text_model(text, {"w": w}), tmp_path, HOST_TARGETS[-1])


def test_one_turn_in_and_one_out() -> None:
    body = """a = MatMul(x, w) b = Add(a, x) n = LayerNormalization<axis=-1>(b, g, s) h = MatMul(n, u)
        m = MatMul(h, d) y = Add(m, n)"""
    graph = recognise(model_from_proto(model(body)))
    assert [type(op) for op in graph.ops] == [Linear, LayerNorm, Linear, Linear]
    made = plan(graph, V4)
    lowered = lower(graph, made, place(graph, made, V4), {}, V4)
    turns = [call for call in lowered.program.calls if "transpose" in call.kernel]
    assert len(turns) == 2
