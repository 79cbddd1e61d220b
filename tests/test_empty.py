"""Tensors without elements: refused by one error that names where they are, wherever they come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import text_model

from edgesparse.errors import ModelError
from edgesparse.pipeline import compile_model
from edgesparse.target import Target

CUT = "s = Slice(x, zero, zero, one)"
#: The network, and what its error must name.
CASES = {
    "input": ("g (float[0,3] x) => (float[0,3] y) { y = Relu(x) }", "input or output x"),
    "output": ("g (float[1,3] x) => (float[1,0] y) { y = Slice(x, zero, zero, one) }", "input or output y"),
    "weight": ("g (float[1,3] x) => (float[1,3] y) { y = Concat<axis=1>(x, none) }", "initializer 'none'"),
    "between": (f"g (float[1,3] x) => (float[1,3] y) {{ {CUT} y = Concat<axis=1>(s, x) }}", r"node Slice_0 .* 's'"),
    "reduced": (f"g (float[1,3] x) => (float[1,1] y) {{ {CUT} y = ReduceMax(s, one) }}", r"node Slice_0 .* 's'"),
    "split": (
        "g (float[1,3] x) => (float[1,3] y) { s, t = Split<axis=1>(x, parts) y = Relu(t) }",
        r"node Split_0 .* 's'",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_tensors_without_elements(name: str, tmp_path: Path) -> None:
    text, told = CASES[name]
    constants = {"zero": np.array([0]), "one": np.array([1]), "parts": np.array([0, 3])}
    arrays = {**constants, "none": np.zeros((1, 0), np.float32)}
    path = tmp_path / "model.onnx"
    onnx.save(text_model(text, {key: array for key, array in arrays.items() if key in text}), path)
    with pytest.raises(ModelError, match=told) as caught:
        compile_model(path, target=Target.parse("x86-64-v3"), output=tmp_path / "out")
    assert "elements" in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]
