"""`eval`: agreement and accuracy from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """Scores are the four inputs."""
    text = """<ir_version: 9, opset_import: ["" : 18]>
        g (float[1,4] x) => (float[1,4] y) { [id] y = Identity(x) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "dense.onnx")
    return tmp_path / "dense.onnx"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "3").mkdir(parents=True)
    for name, row in {"0.npy": [9, 1, 1, 1], "1-b.npy": [1, 9, 1, 1], "3/a.npy": [9, 1, 1, 5]}.items():
        np.save(folder / name, np.asarray([row], np.float32))
    return folder


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """The dense model's first two scores in turned places."""
    text = """<ir_version: 9, opset_import: ["" : 18]>
        g (float[1,4] x) => (float[1,4] y) <int64[4] i = {1,0,2,3}> { [swap] y = Gather <axis = 1> (x, i) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "sparse.onnx")
    return tmp_path / "sparse.onnx"


def test_the_command(run: Run, dense: Path, sparse: Path, data: Path) -> None:
    code, out, err = run("eval", sparse, "--data", data, "--against", dense, "--labels", "names", "--json")
    assert code == 0, err
    found = json.loads(out)
    session = onnxruntime.InferenceSession(str(sparse), providers=["CPUExecutionProvider"])
    files = ["0.npy", "1-b.npy", "3/a.npy"]
    tops = [int(session.run(None, {"x": np.load(data / name)})[0].argmax()) for name in files]
    assert found["quality"]["top1"] == np.mean([top == want for top, want in zip(tops, [0, 1, 3], strict=True)])
    assert found["agreement"]["top1"] == np.mean([top == want for top, want in zip(tops, [0, 1, 0], strict=True)])
    assert (found["samples"], found["schema"]) == (3, "edgesparse.eval/1")
    assert found["drop"] == pytest.approx(100 * (found["dense"]["top1"] - found["quality"]["top1"]))
    table = run("eval", sparse, "--data", data, "--against", dense, "--labels", "names")[1]
    assert "agrees with the dense model on 0.0% of 3 rows" in table
    assert "drop from dense: 66.7 points" in table
    code, _, err = run("eval", sparse, "--data", data)
    assert code == 2
    assert "nothing to compare with" in err
    assert run("eval", sparse, "--data", data / "nowhere", "--against", dense)[0] == 2


def test_an_artifact_of_its_own_model(run: Run, toy_artifact: Path, tmp_path: Path) -> None:
    from edgesparse.artifacts import samples
    from edgesparse.artifacts.artifact import open_artifact
    from edgesparse.artifacts.verify import PORTABLE

    artifact = open_artifact(toy_artifact)
    folder = tmp_path / "inputs"
    folder.mkdir()
    np.savez(folder / "a.npz", **samples.load(artifact.file(samples.NAME), artifact.manifest)[0].inputs)
    code, out, err = run("eval", toy_artifact, "--data", folder, "--against", artifact.file(PORTABLE), "--json")
    assert code == 0, err
    found = json.loads(out)["agreement"]
    assert (found["top1"], found["cosine"]) == (1.0, pytest.approx(1.0, abs=1e-9))
