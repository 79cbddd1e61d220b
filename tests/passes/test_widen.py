"""16-bit floats become float32: weights exactly, results against numpy in double precision."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from networks import HOST_TARGETS, compiled_outputs
from onnx import TensorProto, helper, numpy_helper

from edgesparse.passes import model_from_proto

KINDS = {TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: ml_dtypes.bfloat16}


def narrow_model(kind: int) -> tuple[onnx.ModelProto, np.ndarray]:
    """y = relu(x w), as the input of a Cast to the same type too; h is both an output and read."""
    w = np.random.default_rng(0).standard_normal((6, 5)).astype(KINDS[kind])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Cast", ["h"], ["c"], to=kind),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, kind, [3, size]) for name, size in (("x", 6), ("h", 5), ("y", 5))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(w, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), w


@pytest.mark.parametrize("kind", KINDS)
def test_computed_in_float32(kind: int) -> None:
    proto, w = narrow_model(kind)
    told: list[str] = []
    model = model_from_proto(proto, notice=told.append)
    half = kind == TensorProto.FLOAT16
    ends = [*model.graph.inputs, *model.graph.outputs]
    assert {value.dtype for value in ends} == {ir.DataType.FLOAT16 if half else ir.DataType.FLOAT}
    assert [value.name for value in ends] == ["x", "h", "y"]
    assert told[0] == "16-bit floats are computed in float32"
    assert len(told) == (1 if half else 2)
    given = np.random.default_rng(1).standard_normal((3, 6)).astype(np.float16 if half else np.float32)
    session = onnxruntime.InferenceSession(ir.serde.serialize_model(model).SerializeToString())
    product, result = session.run(None, {"x": given})
    exact = given.astype(np.float64) @ w.astype(np.float64)
    # six terms of size 1 in float32, then half a unit of the last place of float16 where the output is that
    slack = 2.0**-11 * np.abs(exact).max() + 2e-6 if half else 2e-6
    np.testing.assert_allclose(product.astype(np.float64), exact, rtol=0, atol=slack)
    np.testing.assert_allclose(result.astype(np.float64), np.maximum(exact, 0), rtol=0, atol=slack)


def test_the_largest_numbers_stay() -> None:
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT16, [4])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT16, [4])
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [info], [out])
    model = model_from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))
    session = onnxruntime.InferenceSession(ir.serde.serialize_model(model).SerializeToString())
    x = np.array([1, -2, 0.5, 65504], np.float16)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], -x)


def small_net(kind: int, w: list[np.ndarray]) -> onnx.ModelProto:
    """Two convolutions, 1x1 and 3x3, with weights and everything else of one type."""
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "w1"], ["y"], pads=[1, 1, 1, 1]),
    ]
    ends = [helper.make_tensor_value_info(name, kind, [1, size, 9, 9]) for name, size in (("x", 8), ("y", 4))]
    weights = [numpy_helper.from_array(one, f"w{number}") for number, one in enumerate(w)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


@pytest.mark.parametrize("kind", KINDS)
def test_it_compiles_and_runs(kind: int, tmp_path: Path) -> None:
    """Against onnxruntime on the same weights in float32."""
    rng = np.random.default_rng(2)
    w = [rng.standard_normal(shape).astype(KINDS[kind]) for shape in ((16, 8, 1, 1), (4, 16, 3, 3))]
    wide = small_net(TensorProto.FLOAT, [one.astype(np.float32) for one in w]).SerializeToString()
    given = rng.standard_normal((1, 8, 9, 9)).astype(np.float16)
    expected = onnxruntime.InferenceSession(wide).run(None, {"x": given.astype(np.float32)})[0]

    half = kind == TensorProto.FLOAT16
    feeds = {"x": given if half else given.astype(np.float32)}
    found = compiled_outputs(small_net(kind, w), tmp_path, HOST_TARGETS[-1], feeds)["y"]
    assert found.dtype == (np.float16 if half else np.float32)
    slack = (2.0**-11 if half else 0.0) + 1e-5  # what is given out is rounded to 16 bits again
    np.testing.assert_allclose(found.astype(np.float32), expected, rtol=0, atol=slack * float(np.abs(expected).max()))
