"""Transposed convolution, depth to space and nearest resize in whole compiled models, against onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from networks import HOST_TARGETS, text_model

from edgesparse.graph.ops import Conv, Fallback, Interleave
from edgesparse.graph.recognise import recognise
from edgesparse.passes import model_from_proto
from edgesparse.pipeline import compile_model
from edgesparse.runtimes.local import LocalRunner


def check(body: str, weights: dict[str, Any], folder: Path, bound: float, **options: Any) -> None:
    """Every value between has rounding of its own: `bound` is a share of the largest output."""
    model = text_model(f"g {body}", weights, opset=18)
    path = folder / "model.onnx"
    onnx.save(model, path)
    artifact = compile_model(path, target=HOST_TARGETS[-1], output=folder / "out", tune=False, **options)
    assert artifact is not None
    assert not [layer for layer in artifact.manifest.layers if layer["kind"] == "relax"]
    info = artifact.manifest.inputs[0]
    x = np.random.default_rng(2).standard_normal(info.shape).astype(np.float32)
    expected = onnxruntime.InferenceSession(str(artifact.file("model.onnx"))).run(None, {info.name: x})[0]
    with LocalRunner(artifact, threads=options.get("threads", 1)) as runner:
        found = runner.run({info.name: x})[artifact.manifest.outputs[0].name]
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound * float(np.abs(expected).max()))


def weight(*shape: int, density: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(1)
    return (rng.standard_normal(shape) * (rng.random(shape) < density)).astype(np.float32)


@pytest.mark.parametrize(
    ("kernel", "attributes", "out", "groups"),
    [
        (2, "strides=[2,2]", "10,20,34", 1),
        (4, "strides=[2,2], pads=[1,1,1,1], group=2", "20,20,34", 2),
        (3, "strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]", "10,20,34", 1),
        (3, "pads=[1,1,1,1]", "10,10,17", 1),
        (5, "strides=[3,3], pads=[1,1,1,1]", "10,30,51", 1),
    ],
)
def test_transposed_convolution(kernel: int, attributes: str, out: str, groups: int, tmp_path: Path) -> None:
    held = {"w": weight(6, 10, kernel, kernel), "b": weight(10 * groups)}
    body = f"(float[2,6,10,17] x) => (float[2,{out}] y) {{ a = ConvTranspose<{attributes}>(x, w, b) y = Relu(a) }}"
    check(body, held, tmp_path, 1e-6)


def test_a_sparse_one_on_two_threads(tmp_path: Path) -> None:
    body = "(float[1,16,24,24] x) => (float[1,8,48,48] y) { a = Relu(x) y = ConvTranspose<strides=[2,2]>(a, w) }"
    check(body, {"w": weight(16, 8, 2, 2, density=0.2)}, tmp_path, 1e-6, threads=2)


@pytest.mark.parametrize(
    "body",
    [
        "(float[2,12,5,19] x) => (float[2,3,10,38] y) { a = Relu(x) y = DepthToSpace<blocksize=2>(a) }",
        '(float[1,18,5,7] x) => (float[1,2,15,21] y) { y = DepthToSpace<blocksize=3, mode="CRD">(x) }',
        "(float[2,3,20,20] x) => (float[2,3,40,60] y) { a = Relu(x) y = Resize<mode='nearest',"
        " coordinate_transformation_mode='asymmetric', nearest_mode='floor'>(a, , s) }".replace("'", '"'),
        "(float[1,3,9,1] x) => (float[1,3,18,3] y) { y = Resize(x, , s) }",
    ],
)
def test_pixels_are_moved_exactly(body: str, tmp_path: Path) -> None:
    check(body, {"s": np.array([1, 1, 2, 3], np.float32)} if "Resize" in body else {}, tmp_path, 0.0)


def test_what_becomes_of_the_nodes() -> None:
    body = "(float[1,6,10,17] x) => (float[1,10,20,34] y) { a = ConvTranspose<strides=[2,2]>(x, w) y = Relu(a) }"
    graph = recognise(model_from_proto(text_model(f"g {body}", {"w": weight(6, 10, 2, 2)})))
    assert [type(op) for op in graph.ops] == [Conv] * 4 + [Interleave]
    assert {op.epilogue.activation for op in graph.ops if isinstance(op, Conv)} == {"relu"}
    odd = "(float[1,6,10,17] x) => (float[1,10,19,33] y) { y = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(x, w) }"
    graph = recognise(model_from_proto(text_model(f"g {odd}", {"w": weight(6, 10, 3, 3)})))
    assert [type(op) for op in graph.ops] == [Fallback]
