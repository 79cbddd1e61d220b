"""TFLite files as ONNX models: sparse storage against scipy, networks against TFLite's own interpreter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from scipy import sparse

from edgesparse.models import MODELS, MissingPackageError, export, model_path
from edgesparse.models.exporting import model_file
from edgesparse.models.tflite_files import TfliteError, densified, from_tflite


def face_file() -> Path:
    pytest.importorskip("tflite", reason="reads TFLite files")
    try:
        return model_file(MODELS["face-sparse"])
    except MissingPackageError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_sparse_rows_are_those_of_scipy(density: float) -> None:
    stored = sparse.random(7, 9, density, "csr", dtype=np.float32, rng=np.random.default_rng(3))
    stored.sort_indices()
    levels = (stored.indptr.astype(np.uint8), stored.indices.astype(np.uint16))
    np.testing.assert_array_equal(densified((7, 9), [7, levels], stored.data), stored.toarray())
    np.testing.assert_array_equal(
        densified((7, 1, 1, 9), [7, 1, 1, levels], stored.data), stored.toarray().reshape(7, 1, 1, 9)
    )


def test_sparse_outer_dimensions_and_values_in_their_type() -> None:
    """Rows 1 and 3 of four are stored, the second dense, as the format allows for every dimension."""
    dense = np.zeros((4, 3), np.float16)
    dense[1], dense[3] = [1, 2, 3], [4, 0, 5]
    found = densified((4, 3), [(np.array([0, 2]), np.array([1, 3])), 3], np.array([1, 2, 3, 4, 0, 5], np.float16))
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, dense)


def test_face_net_is_as_the_table_says_and_sparse() -> None:
    face_file()
    model = onnx.load(str(model_path("face-sparse")))
    onnx.checker.check_model(model, full_check=True)
    spec = MODELS["face-sparse"]
    (value,) = model.graph.input
    assert value.name == spec.input_name
    assert tuple(side.dim_value for side in value.type.tensor_type.shape.dim) == spec.input_shape
    assert [out.name for out in model.graph.output] == ["Identity", spec.output_name]
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    pointwise = [value for value in weights.values() if value.ndim == 4 and value.shape[2:] == (1, 1)]
    densities = [np.count_nonzero(value) / value.size for value in pointwise]
    assert sum(abs(density - 0.3) < 2e-3 for density in densities) == 46
    assert all(density > 0.99 for density in densities if density > 0.31)
    # All padding went into the convolutions, and every weight came out in the type that is computed in.
    assert {node.op_type for node in model.graph.node} == {
        *("Conv", "Relu", "Add", "Resize", "DepthToSpace", "Transpose", "Reshape")
    }
    assert all(value.dtype == np.float32 for name, value in weights.items() if not name.endswith("/shape"))


def test_face_net_equals_the_tflite_interpreter() -> None:
    path = face_file()
    reason = "runs the file as TFLite does: pip install ai-edge-litert"
    litert = pytest.importorskip("ai_edge_litert.interpreter", reason=reason)
    picture = np.random.default_rng(0).uniform(-1, 1, (1, 192, 192, 3)).astype(np.float32)
    interpreter = litert.Interpreter(str(path))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], picture)
    interpreter.invoke()
    session = onnxruntime.InferenceSession(from_tflite(path).SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"input_1": np.ascontiguousarray(picture.transpose(0, 3, 1, 2))})
    for detail, value in zip(interpreter.get_output_details(), found, strict=True):
        expected = interpreter.get_tensor(detail["index"])
        assert float(np.abs(expected).max()) > 1
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))


def test_export_writes_the_model_that_was_read(tmp_path: Path) -> None:
    face_file()
    assert export("face-sparse", tmp_path / "face.onnx").read_bytes() == model_path("face-sparse").read_bytes()


def test_what_is_not_known_is_one_clear_error(tmp_path: Path) -> None:
    room = face_file().parent
    with pytest.raises(TfliteError, match=r"face_landmark\.tflite uses the operator \w+"):
        from_tflite(room / "face_landmark.tflite")
    other = tmp_path / "other.tflite"
    other.write_bytes(b"not a model")
    with pytest.raises(TfliteError, match=r"other\.tflite is no TFLite file"):
        from_tflite(other)


def test_without_the_reader_the_pip_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MissingPackageError, match=r"needs tflite.*pip install tflite"):
        from_tflite("face.tflite")
