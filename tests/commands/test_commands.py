"""What each command does, with a made artifact and without TVM."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest

from edgesparse import demonstration
from edgesparse.artifacts.artifact import open_artifact

import toy  # isort: skip

Run = Callable[..., tuple[int, str, str]]
FakePipeline = Callable[[Callable[..., Any]], None]


def test_targets_and_patterns(run: Run) -> None:
    names = [row["name"] for row in json.loads(run("targets", "--json")[1])["targets"]]
    assert "x86-64-v3" in names
    assert all(name in run("targets")[1] for name in names)
    rows = {row["grammar"]: row["fixed_density"] for row in json.loads(run("patterns", "--json=-")[1])["patterns"]}
    assert rows["group:NxM"] is False
    assert rows["nm:N:M"] is True
    assert all(grammar in run("patterns")[1] for grammar in rows)


def test_cache(run: Run, own_cache: Path) -> None:
    from edgesparse import cache

    cache.put("key", b"data")
    found = json.loads(run("cache", "--json")[1])
    assert (found["entries"], found["path"]) == (1, str(own_cache))
    assert "removed 1 entries" in run("cache", "--clear")[1]
    assert ": 0 entries" in run("cache")[1]


def test_sparsify_writes_a_model_that_inspect_reads(run: Run, model: Path, tmp_path: Path) -> None:
    arguments = ("sparsify", model, "--pattern", "group:4x1", "--density", "0.5")
    code, out, err = run(*arguments, "--shape", "x:2x16")
    assert code == 0, err
    assert "small.sparse.onnx  1 of 1 layers pruned" in out
    assert run(*arguments)[0] == 2
    assert run(*arguments, "--force")[0] == 0
    assert run(*arguments, "--force", "-o", model)[0] == 2
    layers = json.loads(run("inspect", "small.sparse.onnx", "--json")[1])["layers"]
    assert [(row["name"], row["shape"], row["bytes"]) for row in layers] == [("first", [16, 8], 512)]
    assert layers[0]["density"] <= 0.5
    assert "1 layers with weights" in run("inspect", "small.sparse.onnx")[1]


def test_sparsify_by_steps(run: Run, model: Path, tmp_path: Path) -> None:
    arguments = ("sparsify", model, "--pattern", "group:4x1", "--density", "0.5", "-o", "out.onnx", "--json")
    code, out, err = run(*arguments, "--stop-after", "fold", "--dump-after", "fold")
    assert code == 0, err
    assert json.loads(out)["layers"][0]["pattern"] == "unstructured"
    assert (tmp_path / "out.fold.onnx").is_file()
    assert run(*arguments, "-f", "--stop-after", "fould")[0] == 2
    assert run(*arguments, "-f", "--dump-after", "fould")[0] == 2


def test_sparsify_wants_to_know_what(run: Run, model: Path) -> None:
    code, _, err = run("sparsify", model)
    assert code == 2
    assert "nothing says what to prune" in err


def test_compile_passes_its_options_on(run: Run, fake_pipeline: FakePipeline, toy_artifact: Path, model: Path) -> None:
    given: dict[str, Any] = {}

    def act(path: Path, **options: Any) -> Any:
        given.update(options, path=path)
        options["progress"](0.5, "half")
        return None if options["stop_after"] else open_artifact(toy_artifact)

    fake_pipeline(act)
    options = (
        "--target",
        "x86-64-v3",
        "--pattern",
        "group:8x1",
        "--density",
        "0.5",
        "--shape",
        "x:1x16",
        "--seed",
        "7",
    )
    code, out, err = run("compile", model, *options, "-o", "here.esp", "--force", "-v")
    assert code == 0, err
    assert "toy-artifact  for toy, 1 layers" in out
    assert "compile: half" in err
    assert (given["path"], given["output"], given["force"], given["seed"]) == (model, Path("here.esp"), True, 7)
    assert (given["target"].name, given["shapes"]) == ("x86-64-v3", {"x": (1, 16)})
    assert given["recipe"].density == 0.5
    code, out, _ = run("compile", model, "--target", "x86-64-v2", "--stop-after", "fold", "--dump-after", "fold")
    assert (code, given["output"], given["recipe"]) == (0, Path("small.x86-64-v2"), None)
    assert given["dump_after"] == ("fold",)
    assert "stopped after fold" in out
    data = json.loads(run("compile", model, "--json")[1])
    assert data["layers"] == [{"name": "affine", "density": 1.0}]


def test_run_and_keep_the_outputs(run: Run, toy_artifact: Path, tmp_path: Path) -> None:
    x = np.ones((toy.ROWS, toy.COLUMNS), np.float32)
    np.save(tmp_path / "x.npy", x)
    arguments = ("run", toy_artifact, "--input", f"{toy.INPUT}={tmp_path}/x.npy", "-o", "out.npz")
    code, out, err = run(*arguments)
    assert code == 0, err
    assert "5x7" in out
    kept = np.load(tmp_path / "out.npz")
    for name, value in toy.reference(x).items():
        np.testing.assert_allclose(kept[name], value, rtol=1e-5)
    assert run(*arguments)[0] == 2
    assert run(*arguments, "--force")[0] == 0
    assert run("run", toy_artifact, "-o", "out.txt")[0] == 2
    code, _, err = run("run", toy_artifact, "-o", "none/out.npz")
    assert (code, "cannot write" in err) == (1, True)


def test_run_on_the_sample(run: Run, toy_artifact: Path) -> None:
    code, out, err = run("run", toy_artifact, "--json")
    assert code == 0
    assert "first sample" in err
    assert [row["shape"] for row in json.loads(out)["outputs"]] == [[5, 7], [5]]
    assert run("run", toy_artifact, "-q")[2] == ""


def test_run_with_what_does_not_fit(run: Run, toy_artifact: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 2)))
    code, _, err = run("run", toy_artifact, "--input", f"x={tmp_path}/x.npy")
    assert code == 2
    assert "float64" in err
    assert run("run", toy_artifact, "--input", f"nope={tmp_path}/x.npy")[0] == 2
    assert run("run", toy_artifact, "--threads", "4")[0] == 2


def test_verify(run: Run, toy_artifact: Path) -> None:
    code, out, _ = run("verify", toy_artifact)
    assert (code, "all hashes right" in out) == (0, True)
    code, out, _ = run("verify", toy_artifact, "--run")
    assert (code, "2 samples run: largest error" in out) == (0, True)
    code, out, err = run("verify", toy_artifact, "--run", "--tolerance", "0")
    assert (code, out) == (3, "")
    assert "is not what" in err
    code, out, _ = run("verify", toy_artifact, "--run", "--tolerance", "0", "--json")
    assert (code, json.loads(out)["same"]) == (3, False)


def test_verify_a_damaged_artifact(run: Run, toy_artifact: Path) -> None:
    data = bytearray((toy_artifact / "weights.bin").read_bytes())
    data[70] ^= 1
    (toy_artifact / "weights.bin").write_bytes(data)
    for command in (("verify",), ("run",), ("inspect",), ("bench", "--quick")):
        code, _, err = run(command[0], toy_artifact, *command[1:])
        assert code == 1
        assert "weights.bin is damaged" in err


def test_bench_compiles_a_model_first(run: Run, fake_pipeline: FakePipeline, toy_artifact: Path, model: Path) -> None:
    given: dict[str, Any] = {}

    def act(path: Path, **options: Any) -> Any:
        given.update(options, path=path)
        return open_artifact(toy_artifact)

    fake_pipeline(act)
    quick = ("--seconds", "0.01", "--runs", "5", "--no-dense", "--no-memory", "--layers", "--peak", "100")
    code, out, err = run("bench", model, "--pattern", "group:8x1", "--density", "0.5", *quick)
    assert code == 0, err
    assert (given["path"], given["recipe"].density) == (model, 0.5)
    for word in ("edgesparse", "onnxruntime", "affine", "speedup"):
        assert word in out
    assert not given["output"].parent.exists(), "nothing is left behind"
    code, _, err = run("bench", toy_artifact, *quick, "--fail-below", "1e9")
    assert code == 5
    assert "times as fast as onnxruntime" in err


def test_bench_options_that_contradict_each_other(run: Run, toy_artifact: Path) -> None:
    assert run("bench", toy_artifact, "--pattern", "group:8x1", "--density", "0.5")[0] == 2
    assert run("bench", toy_artifact, "--fail-below", "1", "--no-onnxruntime")[0] == 2
    assert run("bench", toy_artifact, "--threads", "2")[0] == 2


def test_inspect_an_artifact(run: Run, toy_artifact: Path) -> None:
    code, out, _ = run("inspect", toy_artifact)
    assert code == 0
    assert "affine" in out
    assert "input  x: float32[5x7]" in out
    assert json.loads(run("inspect", toy_artifact, "--json")[1])["layers"][0]["name"] == "affine"


@pytest.mark.parametrize("name", ["none.onnx", "none.esp", "folder"])
def test_what_is_not_there(run: Run, name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "random.onnx").write_bytes(bytes(range(256)) * 4)
    code, out, err = run("inspect", tmp_path / name)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert run("inspect", tmp_path / "random.onnx")[0] == 1


def test_demo_shows_before_and_after(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgesparse.measuring.bench import Measured, Outcome, Plan
    from edgesparse.measuring.report import LayerTime
    from edgesparse.measuring.stats import Samples, compare, summarize
    from edgesparse.models.data import Score

    names = (demonstration.ORT, demonstration.DENSE, demonstration.PRUNED, demonstration.EXTREME)
    samples = {name: Samples.of(name, [0.004 / (1 + i)] * 12) for i, name in enumerate(names)}
    measured = tuple(Measured(item, summarize(item), 0.1, 0.1, True, 20) for item in samples.values())
    score = Score(48, 0.95, 1.0, {0: 1.0})
    found = demonstration.Demonstration(
        tuple(demonstration.Row(name, score, score, 1_500_000, 0.5) for name in names),
        Outcome(Plan(), measured, ()),
        {name: compare(samples[name], samples[names[0]]) for name in names[1:]},
        (LayerTime("Conv.1", 1e-4, 2e6, "group:4 tile 3", "group:4x1", 0.5, "because"),),
        80.0,
        {names[1]: Path("out/demo/dense")},
        3e-7,
    )
    monkeypatch.setattr(demonstration, "demonstrate", lambda *_, **__: found)
    code, out, err = run("demo")
    assert code == 0, err
    for word in ("95.0 %", "2.00x [2.00, 2.00]", "4.00x", "Conv.1", "because", "20.0", "25.0 %"):
        assert word in out
    data = json.loads(run("demo", "--json")[1])
    assert [row["name"] for row in data["rows"]] == list(names)
    assert data["rows"][0]["speedup"] is None


def test_sparsify_with_calibration_and_coupling(run: Run, tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["" : 18]>
        small (float[1,16] x) => (float[1,8] y) { [first] a = MatMul(x, w)  b = Add(a, c)  r = Relu(b)
        [second] y = MatMul(r, v) }"""
    made = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (("w", (16, 12)), ("c", (12,)), ("v", (12, 8))):
        made.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    path = tmp_path / "net.onnx"
    onnx.save(made, path)
    np.save(tmp_path / "x.npy", rng.normal(size=(40, 16)).astype(np.float32))
    options = ("--pattern", "group:4x1", "--sparsity", "0.5", "--calibrate", tmp_path / "x.npy")
    code, out, _ = run("sparsify", path, *options)
    assert (code, "of 2 layers pruned" in out) == (0, True)
    assert re.search(r"channels rearranged in 1 sets: 0\.\d+ of the saliency retained became 0\.\d+", out)
    (tmp_path / "cluster.yaml").write_text("{ignore: [MatMul], rearrangement: {method: cluster}}")
    code, again, _ = run(
        "sparsify", tmp_path / "net.sparse.onnx", "--recipe", tmp_path / "cluster.yaml", "-o", "c.onnx"
    )
    assert code == 0, "a model that is sparse already keeps its zeros"
    assert re.search(r"channels clustered in 1 sets: groups of 4 ran (0\.\d+) of the weights, now (0\.\d+)", again)
    assert "of 2 layers pruned, density" in again
    props = {one.key: one.value for one in onnx.load(tmp_path / "net.sparse.onnx").metadata_props}
    assert json.loads(props["edgesparse.rearrangement"])[0]["channels"] == 12
    code, out, _ = run("inspect", path, "--coupling")
    assert code == 0
    assert "12 channels, free" in out
    code, out, _ = run("inspect", path, "--coupling", "--json=-")
    assert {one["channels"] for one in json.loads(out)["sets"] if one["pinned"] is None} == {12}
    code, _, err = run("sparsify", path, *options[:-1], tmp_path / "nowhere", "-o", "other.onnx")
    assert (code, "there is no calibration data" in err) == (2, True)
