"""How much memory a model with external weights takes, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper

from edgesparse.artifacts.artifact import open_artifact, pack
from edgesparse.artifacts.verify import verify
from edgesparse.errors import EdgesparseError, UnsupportedError, UsageError
from edgesparse.passes.load import load_model
from edgesparse.passes.write import model_chunks, save_model
from edgesparse.pipeline import compile_model
from edgesparse.runtimes.device import files_of
from edgesparse.target import Target

STATUS = Path("/proc/self/status")

PAUSE = """
import sys
from edgesparse.cli import main

for name in ("small", "large"):
    assert main([word.replace("MODEL", name) for word in sys.argv[1:]]) == 0
    print("done", flush=True)
    sys.stdin.readline()
"""
"""Runs a command on a small model, which loads all that the command needs, waits, then runs it on a large one."""


def _anonymous(process: int) -> int:
    """Bytes of a process's memory that no file stands behind: the system cannot drop them."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    kinds = ("RssAnon", "RssShmem")
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(kinds))


def _grown(folder: Path, *command: str) -> int:
    """The most anonymous bytes that a command takes on `large` above what it holds after `small`."""
    arguments = [sys.executable, "-c", PAUSE, *command]
    with subprocess.Popen(
        arguments, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as child:
        assert child.stdin is not None
        said = child.stdout
        assert said is not None
        assert "done\n" in said  # reads to there
        before = peak = _anonymous(child.pid)
        ended: list[bool] = []
        reader = threading.Thread(target=lambda: ended.append("done\n" in said))
        reader.start()
        child.stdin.write("\n")
        while reader.is_alive():
            peak = max(peak, _anonymous(child.pid))
            reader.join(0.002)
        assert ended == [True]
        child.stdin.close()
    assert child.returncode == 0
    return peak - before


WATCH = """
import json, pathlib, sys
from edgesparse.cli import main

def peak():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

def run(name):
    command = [word.replace("MODEL", name) for word in sys.argv[1:]]
    assert main(command) == 0
    return peak()

print(json.dumps([run("small"), run("large")]))
"""
"""Runs a command on a small model, which loads all that the command needs, then on a large one."""


def _chain(path: Path, width: int, layers: int, opset: int) -> int:
    """A network of matrix products with its weights in a file beside, and their bytes."""
    rng = np.random.default_rng(0)
    weights = [
        onnx.numpy_helper.from_array(rng.standard_normal((width, width), np.float32) * width**-0.5, f"w{index}")
        for index in range(layers)
    ]
    names = ["x", *(f"y{index}" for index in range(layers))]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(layers)]
    ports = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, width]) for name in (names[0], names[-1])]
    graph = helper.make_graph(nodes, "chain", ports[:1], ports[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.stem}.bin", size_threshold=0)
    return layers * width * width * 4


@pytest.mark.skipif(not STATUS.exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize("opset", [13, 18])
def test_sparsify_needs_less_than_twice_the_weights(tmp_path: Path, opset: int) -> None:
    _chain(tmp_path / "small.onnx", 64, 2, opset)
    size = _chain(tmp_path / "large.onnx", 1024, 16, opset)
    command = ["sparsify", "MODEL.onnx", "--pattern", "group:8x1", "--density", "0.5", "-o", "MODEL.out.onnx", "-q"]
    done = subprocess.run(
        [sys.executable, "-c", WATCH, *command], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    before, after = json.loads(done.stdout.splitlines()[-1])
    assert size * 0.9 < after - before < 2 * size
    # and the result is the model that it should be
    made = onnx.load(tmp_path / "large.out.onnx")
    weights = {each.name: onnx.numpy_helper.to_array(each) for each in made.graph.initializer}
    x = np.random.default_rng(1).standard_normal((1, 1024), np.float32)
    wanted = x.astype(np.float64)
    dense = {
        each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(tmp_path / "large.onnx").graph.initializer
    }
    for index in range(16):
        kept = weights[f"w{index}"] != 0
        assert 0.4999 < kept.mean() <= 0.5  # a random weight may be zero itself
        assert (weights[f"w{index}"][kept] == dense[f"w{index}"][kept]).all()
        wanted = wanted @ weights[f"w{index}"]
    session = onnxruntime.InferenceSession(str(tmp_path / "large.out.onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


@pytest.mark.skipif(not STATUS.exists(), reason="memory is read from /proc")
@pytest.mark.parametrize(
    ("target", "density"),
    [
        pytest.param("x86-64-v3", None, id="dense", marks=pytest.mark.long),
        pytest.param("x86-64-v3", 0.5, id="sparse", marks=pytest.mark.long),
        pytest.param("aarch64", None, id="twin"),
    ],
)
def test_compile_needs_less_than_twice_the_weights(tmp_path: Path, target: str, density: float | None) -> None:
    """Weights lie in mapped files, so what counts is the memory without a file behind it."""
    _chain(tmp_path / "small.onnx", 64, 2, 18)
    size = _chain(tmp_path / "large.onnx", 1024, 12, 18)
    (tmp_path / "recipe.yaml").write_text(f"pattern: group:8x1\ndensity: {density}\n")
    options = ["--recipe", "recipe.yaml"] if density else []
    grown = _grown(tmp_path, "compile", "MODEL.onnx", "-o", "MODEL.esb", "--target", target, "-q", *options)
    assert size * 0.9 < grown < 2 * size
    if target == "x86-64-v3":
        assert verify(tmp_path / "large.esb", run=True).same


@pytest.mark.long
@pytest.mark.skipif(not STATUS.exists(), reason="memory is read from /proc")
def test_a_model_above_two_gigabytes_goes_through(tmp_path: Path) -> None:
    _chain(tmp_path / "small.onnx", 64, 2, 18)
    size = _chain(tmp_path / "large.onnx", 4096, 36, 18)
    assert size > 2**31
    sparse = ["--pattern", "group:8x1", "--density", "0.1"]
    assert _grown(tmp_path, "sparsify", "MODEL.onnx", *sparse, "-o", "MODEL.out.onnx", "-q") < 2 * size
    (tmp_path / "large.bin").unlink()
    for name in ("small", "large"):
        (tmp_path / f"{name}.out.onnx").rename(tmp_path / f"{name}.onnx")
    # the weights' file goes by the name that the model tells
    command = ["compile", "MODEL.onnx", "-o", "MODEL.esb", "--target", "x86-64-v3", "-q"]
    assert _grown(tmp_path, *command) < 2 * size
    assert verify(tmp_path / "large.esb", run=True).same


@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "BFLOAT16", "INT64", "BOOL"])
def test_external_weights_of_each_type(tmp_path: Path, kind: str) -> None:
    number = getattr(onnx.TensorProto, kind)
    values = [0.0, 1.0, 1.0, 0.0, 1.0, 0.0]
    weight = helper.make_tensor("w", number, [2, 3], values)
    inline = helper.make_tensor("w", number, [2, 3], onnx.numpy_helper.to_array(weight).tobytes(), raw=True)
    node = helper.make_node("Cast", ["w"], ["c"], to=onnx.TensorProto.FLOAT)
    add = helper.make_node("Add", ["x", "c"], ["y"])
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 3]) for name in "xy")
    model = helper.make_model(helper.make_graph([node, add], "g", [x], [y], [inline]), ir_version=8)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 18))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    save_model(load_model(tmp_path / "m.onnx"), tmp_path / "out.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "out.onnx"), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.ones((2, 3), np.float32)})[0].ravel().tolist() == [one + 1 for one in values]


def test_chunks_are_the_message(tmp_path: Path) -> None:
    """Cut as it is, the file is byte by byte what protobuf writes of the whole message."""
    _chain(tmp_path / "m.onnx", 16, 3, 18)
    model = load_model(tmp_path / "m.onnx")
    model.metadata_props["key"] = "value"
    model.graph.metadata_props["inner"] = "value"
    model.graph.doc_string = "a graph"
    size, chunks = model_chunks(model)
    data = b"".join(chunks)
    assert len(data) == size
    assert data == ir.serde.serialize_model(model).SerializeToString(deterministic=True)


def test_weights_too_large_for_one_file_go_beside(tmp_path: Path, monkeypatch) -> None:
    _chain(tmp_path / "m.onnx", 32, 3, 18)
    model = load_model(tmp_path / "m.onnx")
    out, data = tmp_path / "out.onnx", tmp_path / "out.onnx.data"
    save_model(model, out, apart=True)
    one = out.read_bytes()
    assert not data.exists()
    monkeypatch.setattr("edgesparse.passes.write.MOST_BYTES", len(one) - 1)
    with pytest.raises(UnsupportedError, match="larger than 2 GiB"):
        save_model(model, out)
    assert out.read_bytes() == one
    save_model(model, out, apart=True)
    assert out.stat().st_size < 4096 < data.stat().st_size
    x = np.random.default_rng(1).standard_normal((1, 32), np.float32)
    results = []
    for given in (one, str(out)):
        session = onnxruntime.InferenceSession(given, providers=["CPUExecutionProvider"])
        results.append(session.run(None, {"x": x})[0])
    np.testing.assert_array_equal(*results)
    before = load_model(out).graph.initializers
    for name, value in model.graph.initializers.items():
        assert (before[name].const_value.numpy() == value.const_value.numpy()).all()
    with pytest.raises(UsageError, match="is there already"):
        save_model(model, out, apart=True)


def test_weights_beside_are_not_left_without_their_model(tmp_path: Path, monkeypatch) -> None:
    _chain(tmp_path / "m.onnx", 32, 3, 18)
    model = load_model(tmp_path / "m.onnx")
    monkeypatch.setattr("edgesparse.passes.write.MOST_BYTES", 100)
    (tmp_path / "out.onnx").mkdir()
    with pytest.raises(EdgesparseError, match="cannot write"):
        save_model(model, tmp_path / "out.onnx", apart=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.bin", "m.onnx", "out.onnx"]


def test_an_artifact_of_weights_too_large_for_one_file(tmp_path: Path, monkeypatch) -> None:
    _chain(tmp_path / "m.onnx", 32, 3, 18)
    one, two = (tmp_path / name for name in ("one.esp", "two"))
    compile_model(tmp_path / "m.onnx", target=Target.parse("x86-64-v3"), output=one, tune=False)
    monkeypatch.setattr("edgesparse.passes.write.MOST_BYTES", 12000)
    made = compile_model(tmp_path / "m.onnx", target=Target.parse("x86-64-v3"), output=two, tune=False)
    assert made is not None
    files, known = made.manifest.files, open_artifact(one).manifest.files
    assert files.keys() - known.keys() == {"model.onnx.data"}
    assert files["model.onnx"].size < 2048 < 12288 <= files["model.onnx.data"].size
    assert files["weights.bin"] == known["weights.bin"]
    assert verify(two, run=True).same
    before = load_model(tmp_path / "m.onnx").graph.initializers
    for name, value in load_model(made.file("model.onnx")).graph.initializers.items():
        assert (before[name].const_value.numpy() == value.const_value.numpy()).all()
    pack(two, tmp_path / "two.esp")
    assert open_artifact(tmp_path / "two.esp").manifest.files == files
    # to a device goes all that onnxruntime there needs
    device = compile_model(tmp_path / "m.onnx", target=Target.parse("aarch64"), output=tmp_path / "three")
    assert device is not None
    assert {"model.onnx", "model.onnx.data"} <= files_of(device, rival=True).keys()
