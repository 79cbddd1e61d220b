"""Whatever is given to the command line: one clear error with its exit code, no traceback, nothing half-written.

The sentence of issue 2 word by word, through `edgesparse compile`, `verify` and `run` as a user would type them.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import text_model

from edgesparse import cli
from edgesparse.artifacts import artifact as artifacts

Run = Callable[..., tuple[int, str]]

GOOD = "g (float[N,3,9,9] x) => (float[N,4,9,9] y) { [first] a = Conv(x, w) y = Relu(a) }"
W = np.ones((4, 3, 1, 1), np.float32)


@pytest.fixture
def run(
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Run:
    """Run a command that must fail, in an empty folder: its exit code and its one error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def call(*arguments: object) -> tuple[int, str]:
        code = cli.main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert code != 0
        assert out == ""
        assert "Traceback" not in err
        assert "bug" not in err, err
        assert err.count("error:") == 1, err
        # Python prints what no handler takes; in a test, one takes all.
        assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []
        return code, err

    return call


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled model, to read."""
    folder = tmp_path_factory.mktemp("compiled")
    path = folder / "model.onnx"
    path.write_bytes(text_model(GOOD, {"w": W}).SerializeToString())
    code = cli.main(["compile", "-q", str(path), "-o", str(folder / "out"), "--target", "x86-64-v2"])
    assert code == 0
    return folder / "out"


def save(model: onnx.ModelProto | bytes, name: str = "model.onnx") -> Path:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    Path(name).write_bytes(data)
    return Path(name)


def good() -> onnx.ModelProto:
    return text_model(GOOD, {"w": W})


def truncated() -> bytes:
    return bytes(good().SerializeToString()[:-60])


def random_bytes() -> bytes:
    return np.random.default_rng(0).bytes(5000)


def cycle() -> onnx.ModelProto:
    model = good()
    model.graph.node[0].input[0] = "y"
    return model


def no_initializer() -> onnx.ModelProto:
    model = good()
    del model.graph.initializer[:]
    return model


def outside() -> onnx.ModelProto:
    model = good()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "../secret.bin"), ("length", "48")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return model


def nan_weights() -> onnx.ModelProto:
    weight = W.copy()
    weight[1, 1] = np.nan
    return text_model(GOOD, {"w": weight})


def unsupported_operator() -> onnx.ModelProto:
    return text_model("g (float[1,9] x) => (int64[2,N] y) { [looker] y = NonZero(x) }")


def foreign_operator() -> onnx.ModelProto:
    model = good()
    model.opset_import.add(domain="com.acme", version=1)
    model.graph.node[1].domain = "com.acme"
    model.graph.node[1].op_type = "Magic"
    return model


def undeclared_domain() -> onnx.ModelProto:
    model = good()
    model.graph.node[1].domain = "com.acme"
    return model


def strings() -> onnx.ModelProto:
    return text_model("g (string[4] x) => (string[4] y) { y = Identity(x) }")


def open_shapes() -> onnx.ModelProto:
    return text_model("g (float[1,3,H,W] x) => (float[1,4,H,W] y) { y = Conv(x, w) }", {"w": W})


def zero_size() -> onnx.ModelProto:
    return text_model("g (float[1,3,0,9] x) => (float[1,3,0,9] y) { y = Relu(x) }")


def huge() -> onnx.ModelProto:
    return text_model("g (float[1,3,9999999,9999999] x) => (float[1,3,9999999,9999999] y) { y = Relu(x) }")


def no_groups() -> onnx.ModelProto:
    return text_model("g (float[1,3,9,9] x) => (float[1,4,9,9] y) { y = Conv <group: int = 0> (x, w) }", {"w": W})


def endless() -> onnx.ModelProto:
    return text_model(
        "g (float[1,3,4194304,9] x) => (float[1,3,4194304,9] y) { h = MaxPool <kernel_shape: ints = [1, 3], "
        "pads: ints = [0, 1, 0, 1]> (x) y = Relu(h) }"
    )


@pytest.mark.parametrize(
    ("make", "codes", "message"),
    [
        (no_groups, {1}, "0 groups"),
        (endless, {4}, "bands"),
        (truncated, {1}, "model.onnx"),
        (random_bytes, {1}, "model.onnx"),
        (lambda: b"", {1}, "model.onnx"),
        (cycle, {1}, "cycle"),
        (no_initializer, {1}, "w"),
        (outside, {1}, "outside|folder"),
        (nan_weights, {1}, "NaN|nan|finite"),
        (unsupported_operator, {4}, "NonZero|looker|'y'"),
        (foreign_operator, {1, 4}, "Magic|com.acme"),
        (undeclared_domain, {1}, "com.acme"),
        (strings, {4}, "string|STRING"),
        (open_shapes, {2}, "--shape"),
        (zero_size, {1, 2, 4}, "0"),
        (huge, {1, 2, 4}, "9999999|large|elements"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_models(
    run: Run, make: Callable[[], onnx.ModelProto | bytes], codes: set[int], message: str, tmp_path: Path
) -> None:
    Path("secret.bin")
    path = save(make())
    code, err = run("compile", path, "-o", "out", "--target", "x86-64-v2")
    assert code in codes, err
    import re

    assert re.search(message, err), err
    left = {entry.name for entry in tmp_path.iterdir()}
    assert left == {"model.onnx"}, "something half-written stays"


def test_a_folder_or_nothing_in_place_of_a_model(run: Run, tmp_path: Path) -> None:
    for name in ("nowhere.onnx", "."):
        code, err = run("compile", name, "-o", "out")
        assert code in (1, 2)
        assert name in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("pattern: group:8x1\ndensitty: 0.5\n", "densitty"),
        ("pattern: group:8x1\ndensity: 0.5\ntargets: ['re:nothing.*']\n", "re:nothing"),
        ("pattern: group:8x1\ndensity: 7\n", "density"),
        ("pattern: group:8x1\ndensity: .nan\n", "density"),
        (f"pattern: group:8x1\ndensity: {10**400}\n", "more than 64 bits"),
        (f"pattern: group:8x1\ndensity: 0x{'f' * 6000}\n", "more than 64 bits"),
        ("pattern: [", "recipe.yaml"),
        ("!!python/object/apply:os.system ['touch hacked']", "recipe.yaml"),
    ],
)
def test_recipes(run: Run, recipe: str, message: str, tmp_path: Path) -> None:
    path = save(good())
    Path("recipe.yaml").write_text(recipe)
    code, err = run("compile", path, "-o", "out", "--recipe", "recipe.yaml", "--target", "x86-64-v2")
    assert code == 2
    assert message in err
    assert {entry.name for entry in tmp_path.iterdir()} == {"model.onnx", "recipe.yaml"}


@pytest.mark.parametrize("name", ["manifest.json", "model.so", "weights.bin", "model.onnx", "samples.npz"])
@pytest.mark.parametrize("command", ["verify", "run"])
def test_a_flipped_byte_in_each_file(run: Run, compiled: Path, tmp_path: Path, name: str, command: str) -> None:
    import shutil

    shutil.copytree(compiled, "copy")
    path = tmp_path / "copy" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    code, err = run(command, "copy")
    assert code == 1
    assert name in err


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ("other=x.npy", "other"),
        ("x=flat.npy", "shape|1x3x9x9|3, 9"),
        ("x=double.npy", "float64|float32"),
        ("x=missing.npy", "missing.npy"),
        ("x=text.npy", "text.npy"),
    ],
)
def test_wrong_inputs(run: Run, compiled: Path, feed: str, message: str) -> None:
    import re

    image = np.zeros((1, 3, 9, 9), np.float32)
    np.save("x.npy", image)
    np.save("flat.npy", image.reshape(-1))
    np.save("double.npy", image.astype(np.float64))
    Path("text.npy").write_text("not an array")
    code, err = run("run", compiled, "--input", feed)
    assert code == 2
    assert re.search(message, err), err


def test_a_full_disk(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(good())

    def full(*arguments: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(artifacts, "_write_file", full)
    code, err = run("compile", path, "-o", "out", "--target", "x86-64-v2")
    assert code == 1
    assert "No space left" in err
    assert {entry.name for entry in tmp_path.iterdir()} == {"model.onnx"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a limit on file sizes")
def test_a_disk_that_takes_no_more(tmp_path: Path, compiled: Path) -> None:
    """A real limit on the size of files, in a process of its own: whatever writes, one error, nothing left."""
    (tmp_path / "model.onnx").write_bytes(good().SerializeToString())
    code = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
from edgesparse import cli
sys.exit(cli.main(["compile", "model.onnx", "-o", "out", "--target", "x86-64-v2"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1, done.stderr
    assert {entry.name for entry in tmp_path.iterdir()} == {"model.onnx"}


def test_two_compiles_into_one_folder(run: Run, tmp_path: Path) -> None:
    path = save(good())
    with artifacts.claim(tmp_path / "out"):
        code, err = run("compile", path, "-o", "out", "--target", "x86-64-v2")
    assert code == 2
    assert "another edgesparse is writing there" in err
    assert {entry.name for entry in tmp_path.iterdir()} == {"model.onnx"}


def test_a_folder_that_is_no_artifact_is_kept(run: Run, tmp_path: Path) -> None:
    path = save(good())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    code, _ = run("compile", path, "-o", "out", "--force")
    assert code == 2
    assert (tmp_path / "out" / "thesis.txt").read_text() == "precious"


def test_tvm_failing_inside(run: Run, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgesparse.kernels import Spmm

    def broken(self: Spmm) -> Any:
        raise ValueError("boom")

    monkeypatch.setattr(Spmm, "build", broken)
    code, err = run("compile", save(good()), "-o", "out", "--target", "x86-64-v2")
    assert code == 1
    assert "'first'" in err
    assert "boom" in err
    assert not (tmp_path / "out").exists()


def test_the_linker_failing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgesparse.building import link

    monkeypatch.setattr(link, "_zig", lambda: ("false",))
    code, err = run("compile", save(good()), "-o", "out", "--target", "x86-64-v2")
    assert code == 1
    assert "failed" in err
    assert not (tmp_path / "out").exists()
