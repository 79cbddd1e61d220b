"""`sparsify` under a budget, and as far as a drop allows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    """A network of two pointwise convolutions and a classifier, and a file of samples."""
    rng = np.random.default_rng(0)
    text = """<ir_version: 9, opset_import: ["" : 18]>
        net (float[1,16,4,4] x) => (float[1,8] y) { [one] a = Conv(x, w, b)  r = Relu(a)
        [two] d = Conv(r, v, c)  p = GlobalAveragePool(d)  f = Flatten(p)  [last] y = Gemm <transB = 1> (f, u) }"""
    model = onnx.parser.parse_model(text)
    for name, shape in (("w", (32, 16, 1, 1)), ("b", (32,)), ("v", (16, 32, 1, 1)), ("c", (16,)), ("u", (8, 16))):
        array = (rng.normal(size=shape) / 4).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", rng.normal(size=(16, 16, 4, 4)).astype(np.float32))
    return tmp_path / "net.onnx", tmp_path / "x.npy"


def test_a_budget(run: Run, made: tuple[Path, Path]) -> None:
    model, data = made
    options = ("--pattern", "group:4x1", "--budget", "size=0.5x", "--calibrate", data, "--target", "x86-64-v2")
    code, out, err = run("sparsify", model, *options, "--eval", data, "--json")
    assert code == 0, err
    found = json.loads(out[out.index("{") :])
    weights = sum(layer["bytes"] for layer in found["layers"])
    kept = sum(layer["bytes"] * layer["density"] for layer in found["layers"])
    assert kept / weights <= 0.5, "indices take room as well"
    assert found["evaluation"]["samples"] == 16
    props = {one.key: one.value for one in onnx.load("net.sparse.onnx").metadata_props}
    assert "budget: size=0.5x, target: x86-64-v2" in " ".join(props["edgesparse.recipe"].split())


def test_as_far_as_the_drop_allows(run: Run, made: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = made
    options = ("--pattern", "unstructured", "--calibrate", data, "--eval", data)
    code, out, err = run("sparsify", model, *options, "--max-drop", "20%", "--frontier", "curve.json", "--json")
    assert code == 0, err
    found = json.loads(out[out.index("{") :])
    assert found["drop"] <= 20.0
    assert found["evaluation"]["agreement"]["top1"] == pytest.approx(1 - found["drop"] / 100)
    curve = json.loads((tmp_path / "curve.json").read_text())
    assert curve["schema"] == "edgesparse.frontier/1"
    assert [point["cost"] for point in curve["points"]] == sorted(point["cost"] for point in curve["points"])
    assert (tmp_path / "curve.svg").read_text().startswith("<svg")
    code, _, err = run("sparsify", model, *options, "--budget", "flops=0.3x", "--max-drop", "0%", "-o", "other.onnx")
    assert code == 1
    assert "within the budget the model loses" in err
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-drop", "1%"), "--max-drop needs samples to evaluate on"),
        (("--max-drop", "much"), "write it as 1%"),
        (("--max-drop", "-1"), "write it as 1%"),
        (("--labels", "names"), "--labels needs samples to evaluate on"),
        (("--budget", "flops=0.5x"), "needs calibration data"),
        (("--budget", "flops=0.5x", "--density", "0.5"), "exclude each other"),
        (("--budget", "speed=2x", "--calibrate", "x.npy"), "budget 'speed=2x' cannot be read"),
        (("--budget", "latency=5ms", "--calibrate", "x.npy", "--target", "armv7"), "needs measured times"),
        (
            ("--budget", "latency=0.5x", "--calibrate", "x.npy", "--target", "armv7", "--measured"),
            "cannot be measured here",
        ),
        (("--max-drop", "1", "--eval", "x.npy", "--frontier", "a.svg"), "does not end in .json"),
        (("--eval", "x.npy", "--frontier", "a.json"), "--frontier alone makes no model"),
        (("--max-drop", "1", "--eval", "x.npy", "--stop-after", "fold"), "do not go with a search"),
    ],
)
def test_what_cannot_be_meant(run: Run, made: tuple[Path, Path], tmp_path: Path, options, message: str) -> None:
    code, _, err = run("sparsify", made[0], "--pattern", "group:4x1", *options)
    assert code == 2
    assert message in " ".join(err.split())
    assert not (tmp_path / "net.sparse.onnx").exists()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (None, "there is no calibration data"),
        (b"nothing", "cannot read calibration data"),
        (
            b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (9,), }",
            "cannot read calibration data",
        ),
        (np.zeros((1, 3, 4, 4), np.float32), "shape 1x3x4x4 for input 'x'"),
        (np.zeros((0, 16, 4, 4), np.float32), "shape 0x16x4x4 for input 'x'"),
        (np.full((1, 16, 4, 4), np.inf, np.float32), "NaN or infinite"),
        (np.full((1, 16, 4, 4), "a"), "calibration data of <U1"),
    ],
)
def test_bad_calibration_data(run: Run, made: tuple[Path, Path], tmp_path: Path, array, message: str) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    if isinstance(array, bytes):
        (folder / "a.npy").write_bytes(array)
    elif array is not None:
        np.save(folder / "a.npy", array)
    options = ("--pattern", "group:4x1", "--density", "0.5", "--calibrate", folder)
    code, _, err = run("sparsify", made[0], *options)
    assert code == 2
    assert message in " ".join(err.split())
    assert not (tmp_path / "net.sparse.onnx").exists()


def test_what_a_pattern_does_not_fit_is_told(run: Run, made: tuple[Path, Path]) -> None:
    options = ("--pattern", "group:32x1", "--density", "0.5", "--calibrate", made[1], "-v")
    code, out, err = run("sparsify", made[0], *options)
    assert code == 0, err
    assert "two: group:32x1 needs 32 output and 1 input channels, this layer has 16, 32" in " ".join(
        (out + err).split()
    )
