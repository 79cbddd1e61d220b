"""Sparse k x k convolutions: every pattern, with strides, dilation and groups, against onnxruntime."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import HOST_TARGETS, Net, compiled_outputs, feeds_of, onnx_outputs

from edgesparse.artifacts.artifact import open_artifact
from edgesparse.recipe import Recipe

#: Kernel, stride, dilation, pads and groups of each layer of the chain, by node name.
LAYERS = {
    "n0": ((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 1),
    "n2": ((3, 3), (2, 2), (1, 1), (0, 1, 1, 0), 3),
    "n4": ((3, 3), (1, 1), (2, 2), (2, 2, 2, 2), 1),
    "n6": ((5, 3), (1, 2), (1, 1), (2, 1, 2, 1), 2),
    "n8": ((1, 1), (2, 2), (1, 1), (0, 0, 0, 0), 1),
}


def chain() -> onnx.ModelProto:
    net = Net(3)
    x = net.input(1, 16, 23, 30)
    for kernel, stride, dilation, pads, groups in LAYERS.values():
        x = net.node("Relu", net.conv(x, 16 * groups if groups == 2 else 24, kernel, stride, dilation, pads, groups))
    net.outputs.append(x)
    return net.model()


@pytest.mark.parametrize(
    ("pattern", "density"),
    [("group:8x1", 0.1), ("group:4x1", 0.3), ("block:8x1", 0.25), ("kernel:3", None), ("unstructured", 0.2)],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_chain_of_sparse_convolutions(pattern: str, density: float | None, threads: int, tmp_path: Path) -> None:
    model = chain()
    names = [name for name in LAYERS if name != "n8" or not pattern.startswith("kernel")]
    wanted = {"pattern": pattern, "targets": names} | ({"density": density} if density else {})
    feeds = feeds_of(model)
    found = compiled_outputs(model, tmp_path, HOST_TARGETS[-1], feeds, recipe=Recipe.from_dict(wanted), threads=threads)
    expected = onnx_outputs((tmp_path / "artifact" / "model.onnx").read_bytes(), feeds)
    (value,) = expected.values()
    (made,) = found.values()
    assert float(np.abs(value).max()) > 0.01
    np.testing.assert_allclose(made, value, rtol=0, atol=1e-5 * float(np.abs(value).max()))
    layers = {layer["name"]: layer for layer in open_artifact(tmp_path / "artifact").manifest.layers}
    for name in names:
        assert layers[name]["density"] == pytest.approx(density or 3 / math.prod(LAYERS[name][0]), rel=0.35), name
    if pattern == "group:8x1":
        assert all("group:" in layers[name]["kernel"] for name in names), layers
