"""LSTM, GRU, RNN and TopK in whole compiled models, against onnxruntime; what is refused, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from networks import HOST_TARGETS
from onnx import helper, numpy_helper
from recurrences import feeds_of, recurrent_model

from edgesparse.errors import UnsupportedError
from edgesparse.pipeline import compile_model
from edgesparse.runtimes.local import LocalRunner


def check(model: onnx.ModelProto, feeds: dict[str, np.ndarray], folder: Path, bound: float, **options: Any) -> None:
    path = folder / "model.onnx"
    onnx.save(model, path)
    artifact = compile_model(path, target=HOST_TARGETS[-1], output=folder / "out", tune=False, **options)
    assert artifact is not None
    assert not [layer for layer in artifact.manifest.layers if layer["kind"] == "relax"]
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)
    with LocalRunner(artifact, threads=options.get("threads", 1)) as runner:
        found = runner.run(feeds)
    for value, wanted in zip(model.graph.output, expected, strict=True):
        assert found[value.name].dtype == wanted.dtype
        np.testing.assert_allclose(found[value.name], wanted, rtol=0, atol=bound)


# States are below 1 and steps few: rounding stays under 2e-6.
@pytest.mark.parametrize(
    ("kind", "hidden", "options"),
    [
        ("LSTM", 33, {"direction": "bidirectional", "states": True}),
        ("LSTM", 5, {"direction": "reverse", "outputs": "C"}),
        ("GRU", 19, {"direction": "bidirectional", "linear_before_reset": 1, "states": True}),
        ("GRU", 16, {"outputs": "H"}),
        ("RNN", 3, {"direction": "reverse", "activations": ["Relu"]}),
    ],
)
def test_recurrences_against_onnxruntime(kind: str, hidden: int, options: dict[str, Any], tmp_path: Path) -> None:
    model = recurrent_model(kind, hidden, **options)
    check(model, feeds_of(model), tmp_path, 2e-6)


def test_a_sparse_recurrence_on_two_threads(tmp_path: Path) -> None:
    model = recurrent_model("GRU", 48, density=0.15, states=True)
    check(model, feeds_of(model), tmp_path, 2e-6, threads=2)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"clip": 1.0}, "clip"),
        ({"activations": ["Sigmoid", "Elu", "Tanh"]}, "activation Elu"),
    ],
)
def test_what_has_no_kernel_is_refused_by_name(options: dict[str, Any], why: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(recurrent_model("LSTM", 4, **options), path)
    with pytest.raises(UnsupportedError, match=rf"node 'cell' \(LSTM\).*{why}"):
        compile_model(path, target=HOST_TARGETS[-1], output=tmp_path / "out", tune=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("axis", "largest", "count"), [(-1, 1, 5), (1, 0, 3), (0, 1, 4)])
def test_topk_takes_the_first_of_equals(axis: int, largest: int, count: int, tmp_path: Path) -> None:
    shape = [4, 30, 7]
    made = [*shape]
    made[axis] = count
    node = helper.make_node("TopK", ["x", "k"], ["v", "i"], axis=axis, largest=largest)
    values = [helper.make_tensor_value_info("v", 1, made), helper.make_tensor_value_info("i", 7, made)]
    held = [numpy_helper.from_array(np.array([count]), "k")]
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", 1, shape)], values, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    x = np.random.default_rng(1).integers(0, 9, shape).astype(np.float32)
    check(model, {"x": x}, tmp_path, 0.0)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_first_states_that_are_constants(scale: float, tmp_path: Path) -> None:
    """Exporters write zeros out; others are copied to where a computed state would lie."""
    model = recurrent_model("LSTM", 12, states=True)
    rng = np.random.default_rng(5)
    for value in list(model.graph.input)[1:]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        state = (scale * rng.standard_normal(shape)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(state, value.name))
        model.graph.input.remove(value)
    folder = tmp_path / "model.onnx"
    onnx.save(model, folder)
    artifact = compile_model(folder, target=HOST_TARGETS[-1], output=tmp_path / "out", tune=False)
    assert artifact is not None
    feeds = feeds_of(model)
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)
    with LocalRunner(artifact) as runner:
        found = runner.run(feeds)
    for value, wanted in zip(model.graph.output, expected, strict=True):
        np.testing.assert_allclose(found[value.name], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
