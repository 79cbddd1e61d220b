"""Dense 3x3 convolutions by Winograd's algorithm: the right numbers, and taken only where measured to be faster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import HOST_TARGETS, compiled_outputs, feeds_of, onnx_outputs, text_model

from edgesparse.artifacts.artifact import open_artifact
from edgesparse.graph.ops import Conv
from edgesparse.graph.recognise import recognise
from edgesparse.kernels.winograd import transformed
from edgesparse.passes import model_from_proto
from edgesparse.planning.algorithms import ALGORITHMS, WINOGRAD, other_jobs
from edgesparse.planning.place import Jobs, place
from edgesparse.planning.plan import plan
from edgesparse.target import Target

V4 = Target.parse("x86-64-v4")
#: Bands of two rows, an epilogue with a residual; pads on two sides only; a plane; a width that fills no vector.
NETWORK = """a = Conv<pads=[1,1,1,1]>(x, w) b = Relu(a) c = Conv<pads=[1,1,1,1]>(b, v) d = Add(c, b) e = Relu(d)
    f = Conv<pads=[0,2,2,0]>(e, v) g = MaxPool<kernel_shape=[3,3], strides=[3,3]>(f)
    h = Conv<pads=[1,1,1,1]>(g, v) i = HardSwish(h) j = Mul(i, m) y = Conv<pads=[1,1,1,1]>(j, u)"""


def network() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    shapes = {"w": (10, 3, 3, 3), "v": (10, 10, 3, 3), "u": (6, 10, 3, 3)}
    weights: dict[str, Any] = {
        name: rng.standard_normal(shape).astype(np.float32) / 5 for name, shape in shapes.items()
    }
    weights["m"] = np.array([1.5], np.float32)
    return text_model(f"g (float[1,3,42,48] x) => (float[1,6,14,16] y) {{ {NETWORK} }}", weights, opset=20)


@pytest.mark.parametrize("target", [HOST_TARGETS[0], HOST_TARGETS[-1]], ids=lambda target: target.name)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_network(target: Target, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    always = replace(WINOGRAD, margin=float("inf"))  # wherever it is possible
    monkeypatch.setitem(ALGORITHMS, WINOGRAD.name, always)
    proto = network()
    feeds = feeds_of(proto)
    found = compiled_outputs(proto, tmp_path, target, feeds, threads=threads, tune=True)["y"]
    layers = open_artifact(tmp_path / "artifact").manifest.layers
    kernels = [layer["kernel"] for layer in layers if layer["kind"] == "conv"]
    assert len(kernels) == 5
    # with two threads a plane of 14 rows is shared in bands of 7
    assert sum(kernel.startswith("winograd dense:") for kernel in kernels) >= 5 - 2 * (threads == 2)
    expected = onnx_outputs(proto.SerializeToString(), feeds)["y"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


def test_the_algorithm_on_one_piece() -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((2, 3, 9)).astype(np.float32)
    made = transformed(weight).astype(np.float64).reshape(4, 4, 2, 3)
    # B^T d B and A^T m A by the definition of the algorithm, in float64, on one piece
    b = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
    a = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
    d = rng.standard_normal((3, 4, 4))
    m = np.einsum("abnk,kab->nab", made, b @ d @ b.T)
    found = np.einsum("ia,nab,jb->nij", a, m, a)
    square = weight.reshape(2, 3, 3, 3)
    expected = [
        [[np.sum(square[n] * d[:, y : y + 3, x : x + 3]) for x in range(2)] for y in range(2)] for n in range(2)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def placements(speed: float) -> list[tuple[bool, str]]:
    """How a network's convolutions are placed if Winograd's products take `speed` of the time of the others."""
    graph = recognise(model_from_proto(network()))

    def measure(jobs: Jobs) -> dict[str, list[float]]:
        return {name: [speed if "winograd" in name else 1.0] * len(job[1]) for name, job in jobs.items()}

    placed = place(graph, plan(graph, V4), V4, measure=measure)
    convolutions = [placed[op.name] for op in graph.ops if isinstance(op, Conv)]
    return [(each.algorithm == WINOGRAD.name, str(each.record()["kernel"])) for each in convolutions]


def test_measurement_decides() -> None:
    assert [taken for taken, _ in placements(0.5)] == [True] * 5
    assert all(kernel.startswith("winograd dense:") for _, kernel in placements(0.5))
    assert not any(taken for taken, _ in placements(0.95))


@pytest.mark.parametrize(
    "node",
    [
        "y = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w)",
        "y = Conv<pads=[2,2,2,2], dilations=[2,2]>(x, w)",
        "y = Conv<pads=[1,1,1,0]>(x, w)",
        "y = Conv<pads=[1,1,1,1], group=2>(x, h)",
    ],
)
def test_where_it_is_not_possible(node: str) -> None:
    weights = {"w": np.ones((4, 4, 3, 3), np.float32), "h": np.ones((4, 2, 3, 3), np.float32)}
    used = {name: value for name, value in weights.items() if f", {name})" in node}
    text = f"g (float[1,4,28,28] x) => (float[1,4,N,M] y) {{ {node} }}"
    graph = recognise(model_from_proto(onnx.shape_inference.infer_shapes(text_model(text, used, opset=20))))
    assert [other_jobs(op, plan(graph, V4), V4, 1.0) for op in graph.ops] == [{}]
