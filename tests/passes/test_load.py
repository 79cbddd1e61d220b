"""Loading what anybody may have written: one clear error each, never a crash."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from edgesparse.errors import EdgesparseError, ModelError, UnsupportedError, UsageError
from edgesparse.passes import load_model, model_from_proto, save_model

LINEAR = "g (float[N,3] x) => (float[N,2] y) { y = MatMul(x, w) }"
W = np.arange(6, dtype=np.float32).reshape(3, 2)


def test_open_batch_becomes_one_with_a_notice(parse) -> None:
    notices: list[str] = []
    model = model_from_proto(parse(LINEAR, {"w": W}), notice=notices.append)
    assert list(model.graph.inputs[0].shape) == [1, 3]
    assert list(model.graph.outputs[0].shape) == [1, 2]
    assert notices == ["input x: batch size N fixed to 1"]


def test_shapes_bind_symbols_across_inputs(parse) -> None:
    proto = parse("g (float[B,S] a, float[B,S] b) => (float[B,S] y) { y = Add(a, b) }")
    model = model_from_proto(proto, {"a": (2, 5)})
    assert [list(value.shape) for value in model.graph.inputs] == [[2, 5], [2, 5]]
    assert list(model.graph.outputs[0].shape) == [2, 5]


@pytest.mark.parametrize(
    ("text", "shapes", "message"),
    [
        ("float[1,3,H,W]", {}, r"input x has open dimensions: 1x3xHxW.*--shape x:1x3x224x224"),
        ("float[1,T]", {}, r"--shape x:1x128"),
        ("float[N,3]", {"xx": (1, 3)}, r"no input 'xx' \(did you mean x\?"),
        ("float[N,3]", {"x": (1, 4)}, "the shape given for x is 1x4: the model declares Nx3"),
        ("float[N,3]", {"x": (1, 3, 1)}, "the model declares Nx3"),
        ("float[N,N]", {"x": (1, 3)}, "the model declares NxN"),
        ("float[N,3]", {"x": (0, 3)}, "dimension of 0"),
        ("float[N,3]", {"x": (2**40, 3)}, "at most"),
    ],
)
def test_shapes_that_do_not_fit(parse, text: str, shapes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model_from_proto(parse(f"g ({text} x) => ({text} y) {{ y = Relu(x) }}"), shapes)


def test_minus_one_is_open(parse) -> None:
    proto = parse("g (float[1,3] x) => (float[1,3] y) { y = Relu(x) }")
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    assert list(model_from_proto(proto).graph.inputs[0].shape) == [1, 3]


def test_nodes_get_names_of_their_own(parse) -> None:
    proto = parse("g (float[2] x) => (float[2] y) { a = Relu(x) b = Relu(a) c = Neg(b) y = Neg(c) }")
    for node, name in zip(proto.graph.node, ["same", "same", "", "Neg_0"], strict=True):
        node.name = name
    assert [node.name for node in model_from_proto(proto).graph] == ["same", "same_0", "Neg_1", "Neg_0"]


def test_old_opset_is_converted(parse) -> None:
    notices: list[str] = []
    text = "g (float[1,4] x) => (float[1,4] y) { y = Clip <min = 0.0, max = 6.0> (x) }"
    model = model_from_proto(parse(text, header='<ir_version: 3, opset_import: ["" : 9]>'), notice=notices.append)
    assert model.opset_imports[""] == 18
    assert model.ir_version >= 4
    assert notices == ["converted from opset 9 to 18"]


def test_weights_are_no_inputs(parse) -> None:
    proto = parse("g (float[1,3] x, float[3,2] w) => (float[1,2] y) { y = MatMul(x, w) }", {"w": W})
    assert [value.name for value in model_from_proto(proto).graph.inputs] == ["x"]


def test_question_marks_are_no_names(parse) -> None:
    proto = parse("g (float[A,3,B] x) => (float[A,3,B] y) { y = Relu(x) }")
    for value in (proto.graph.input[0], proto.graph.output[0]):
        for axis in (0, 2):
            value.type.tensor_type.shape.dim[axis].dim_param = "?"
    assert list(model_from_proto(proto, {"x": (1, 3, 8)}).graph.outputs[0].shape) == [1, 3, 8]


def test_functions_are_inlined(parse) -> None:
    text = """g (float[2] x) => (float[2] y) { y = local.twice(x) }
    <domain: "local", opset_import: ["" : 18]> twice (a) => (b) { b = Add(a, a) }"""
    model = model_from_proto(parse(text, header='<ir_version: 8, opset_import: ["" : 18, "local" : 1]>'))
    assert [node.op_type for node in model.graph] == ["Add"]


def _with(parse, edit, text: str = LINEAR) -> onnx.ModelProto:
    proto = parse(text, {"w": W})
    edit(proto)
    return proto


def _cycle(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = "b"
    proto.graph.node.append(helper.make_node("Relu", ["y"], ["b"]))


def _weight(array: np.ndarray):
    return lambda proto: proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(array, "w"))


def _set(**values):
    def edit(proto: onnx.ModelProto) -> None:
        for key, value in values.items():
            setattr(proto.graph.initializer[0], key, value)

    return edit


def _dims(*dims: int):
    def edit(proto: onnx.ModelProto) -> None:
        proto.graph.initializer[0].dims[:] = dims

    return edit


def _old_sum(proto: onnx.ModelProto) -> None:
    """A sum whose operands had to say how they broadcast."""
    proto.graph.node[0].op_type = "Add"
    proto.opset_import[0].version = 3


def _second(name: str):
    return lambda proto: proto.graph.node.append(helper.make_node("Relu", ["x"], [name]))


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (_cycle, ModelError, "the graph has a cycle"),
        (lambda p: p.graph.ClearField("initializer"), ModelError, "reads 'w': .* a weight is missing"),
        (_weight(np.full((3, 2), np.nan, np.float32)), ModelError, "initializer 'w' has NaN"),
        (_weight(np.full((3, 2), np.inf, np.float32)), ModelError, "initializer 'w' has infinite values"),
        (_set(raw_data=b"abc"), ModelError, "initializer 'w' is damaged: it holds 3 bytes"),
        (_dims(2**20, 2**20), ModelError, "larger than"),
        (_dims(2**40, 1), ModelError, "dimension of 1099511627776"),
        (_dims(3, 0), ModelError, "dimension of 0"),
        (_dims(3, -2), ModelError, "dimension of -2"),
        (_set(data_type=TensorProto.COMPLEX64), UnsupportedError, "its type is COMPLEX64"),
        (_set(data_type=99), UnsupportedError, "its type is number 99"),
        (_second("y"), ModelError, "'y' is defined twice"),
        (_second("x"), ModelError, "'x' is defined twice"),
        (lambda p: p.graph.initializer.append(p.graph.initializer[0]), ModelError, "'w' is defined twice"),
        (lambda p: setattr(p.graph.output[0], "name", "q"), ModelError, "output 'q'.*nothing provides it"),
        (_old_sum, UnsupportedError, "opset 3"),
        (lambda p: setattr(p.opset_import[0], "version", 0), UnsupportedError, "opset 0"),
        (lambda p: setattr(p.opset_import[0], "version", 999), UnsupportedError, "opset 999"),
        (lambda p: p.ClearField("opset_import"), ModelError, "names no opset"),
        (lambda p: setattr(p.graph.node[0], "op_type", "Nonsense"), ModelError, "not valid ONNX.*Nonsense"),
        (lambda p: p.graph.node[0].input.append("w"), ModelError, "not valid ONNX"),
        (lambda p: p.graph.sparse_initializer.add(), UnsupportedError, "sparse initializers"),
        (_set(data_location=TensorProto.EXTERNAL), ModelError, "weights are in other files"),
    ],
)
def test_each_wrong_model_is_one_error(parse, edit, error: type[EdgesparseError], message: str) -> None:
    with pytest.raises(error, match=message):
        model_from_proto(_with(parse, edit))


@pytest.mark.parametrize("text", ["string[2]", "float[0,3]", "float[99999999999,3]"])
def test_inputs_that_are_refused(parse, text: str) -> None:
    with pytest.raises(EdgesparseError, match="input or output x"):
        model_from_proto(parse(f"g ({text} x) => ({text} y) {{ y = Identity(x) }}"))


def test_masks_may_be_infinite(load) -> None:
    mask = np.array([0, -np.inf], np.float32)
    load("g (float[1,2] x) => (float[1,2] y) { t = Add(x, m)  y = Softmax(t) }", {"m": mask})


def test_a_huge_activation(parse) -> None:
    text = "g (float[1,8] x) => (float[N,M] y) { y = Expand(x, s) }"
    with pytest.raises(ModelError, match=r"makes 'y' of shape .* more than"):
        model_from_proto(parse(text, {"s": np.array([2**24, 2**10, 8])}))


# --- files


def _external(tmp_path: Path, location: str, length: int = 24, offset: int = 0) -> Path:
    proto = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 18]>' + LINEAR)
    tensor = proto.graph.initializer.add(name="w", dims=[3, 2], data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def test_external_weights_are_read(tmp_path: Path) -> None:
    path = _external(tmp_path, "w.bin", offset=4)
    (path.parent / "w.bin").write_bytes(b"abcd" + W.tobytes())
    assert np.array_equal(load_model(path).graph.initializers["w"].const_value.numpy(), W)


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "", "a/../../w.bin", "link.bin", "linked/w.bin"])
def test_external_weights_outside_are_refused(tmp_path: Path, location: str) -> None:
    path = _external(tmp_path, location)
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    (path.parent / "link.bin").symlink_to(tmp_path / "w.bin")
    (path.parent / "linked").symlink_to(tmp_path)
    with pytest.raises(ModelError, match=r"m\.onnx: initializer 'w' points to .*own folder"):
        load_model(path)


@pytest.mark.parametrize(
    ("length", "offset", "message"),
    [(24, 8, "ends after 16 of 24"), (20, 0, "its shape needs 24"), (24, -1, "at -1"), (24, 2**62, "cannot read")],
)
def test_external_weights_that_do_not_fit(tmp_path: Path, length: int, offset: int, message: str) -> None:
    path = _external(tmp_path, "w.bin", length, offset)
    (path.parent / "w.bin").write_bytes(W.tobytes())
    with pytest.raises(ModelError, match=message):
        load_model(path)


def test_external_weights_in_no_file(tmp_path: Path) -> None:
    path = _external(tmp_path, "w.bin")
    with pytest.raises(ModelError, match=r"cannot read 'w\.bin': No such file"):
        load_model(path)
    os.mkfifo(path.parent / "w.bin")
    with pytest.raises(ModelError, match=r"not a regular file|cannot read"):
        load_model(path)


def test_damaged_files_are_one_error_each(tmp_path: Path, parse) -> None:
    whole = parse(LINEAR, {"w": W}).SerializeToString()
    path = tmp_path / "m.onnx"
    rng = np.random.default_rng(0)
    damaged = [whole[:cut] for cut in range(0, len(whole), 3)]
    damaged += [rng.bytes(size) for size in (1, 10, 100, 1000)]
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(flipped))
    for data in damaged:
        path.write_bytes(data)
        # a flipped bit in a name or a number may well give a valid model
        with contextlib.suppress(EdgesparseError):
            load_model(path)


def test_no_model_at_all(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read .*No such file"):
        load_model(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match=r"cannot read .*directory"):
        load_model(tmp_path)
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(ModelError, match="it holds no graph"):
        load_model(tmp_path / "empty.onnx")


def test_save_is_whole_or_nothing(tmp_path: Path, parse, monkeypatch) -> None:
    model = model_from_proto(parse(LINEAR, {"w": W}))
    path = tmp_path / "out.onnx"
    save_model(model, path)
    first = path.read_bytes()
    save_model(load_model(path), path)
    assert path.read_bytes() == first
    assert stat.S_IMODE(path.stat().st_mode) & 0o400

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgesparse.passes.write.os.fsync", full)
    with pytest.raises(EdgesparseError, match=r"cannot write .*out\.onnx: No space left"):
        save_model(model, path)
    assert path.read_bytes() == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.onnx"]


def test_what_is_loaded_is_valid(load) -> None:
    model = load(LINEAR, {"w": W})
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
