"""A bench from artifact to report: contenders, memory, layers, tables and JSON."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesparse.artifacts.artifact import open_artifact
from edgesparse.artifacts.feeds import random_feeds
from edgesparse.artifacts.manifest import TensorInfo
from edgesparse.commands import benching
from edgesparse.console import Console
from edgesparse.errors import EdgesparseError, ModelError, RegressionError, UnsupportedError, UsageError
from edgesparse.measuring import memory, report, session
from edgesparse.measuring.bench import Measured, Plan, conclude
from edgesparse.measuring.conditions import Cause
from edgesparse.measuring.contenders import ArtifactContender, OrtContender, prepare
from edgesparse.measuring.memory import Memory
from edgesparse.measuring.report import (
    LayerTime,
    as_json,
    latency_table,
    layer_flops,
    layer_table,
    layer_times,
    remarks,
)
from edgesparse.measuring.schema import bench_schema, faults
from edgesparse.measuring.session import DENSE, ORT, SPARSE, Wanted, bench_artifact, target_text
from edgesparse.measuring.stats import Samples, summarize

import toy  # isort: skip

QUICK = Plan(seconds=0.02, runs=20, warm_up=0.05, turn=0.001)


@pytest.fixture
def found(toy_built: Path, monkeypatch: pytest.MonkeyPatch) -> report.Report:
    """A report of the toy, whose dense form is the toy itself."""
    module = types.ModuleType("edgesparse.pipeline")
    module.compile_model = lambda *_, **__: open_artifact(toy_built)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "edgesparse.pipeline", module)
    monkeypatch.setattr(session, "target_text", lambda _: "x86-64-v2")
    monkeypatch.setattr(memory, "measure", lambda *_, **__: Memory(2_000_000, 30_000_000, 1000, 2000))
    return bench_artifact(open_artifact(toy_built), QUICK, Wanted(layers=True, peak=100.0))


def test_a_report_has_all_contenders(found: report.Report) -> None:
    assert [item.name for item in found.outcome.measured] == [SPARSE, DENSE, ORT]
    assert {item.other for item in found.outcome.comparisons} == {DENSE, ORT}
    assert set(found.sizes) == set(found.memory) == {SPARSE, DENSE, ORT}
    assert found.sizes[SPARSE] > 1000
    assert [item.name for item in found.layers] == ["affine", "relu", "rows"]
    assert found.subject["target"] == "toy"
    assert len(found.subject["artifact_sha256"]) == len(found.subject["model_sha256"]) == 64


def test_the_json_is_plain_and_complete(found: report.Report) -> None:
    data = json.loads(json.dumps(as_json(found), allow_nan=False))
    assert faults(data, bench_schema()) == []
    first = data["contenders"][0]
    assert first["latency"]["p50"] > 0
    assert first["memory"]["peak_bytes"] == 2_000_000
    assert len(first["block_seconds"]) == data["comparisons"][0]["blocks"]
    assert [item["name"] for item in data["dense_layers"]] == ["affine", "relu", "rows"]
    assert str(Path.home()) not in json.dumps(data)


def test_the_tables(found: report.Report) -> None:
    columns, rows = latency_table(found)
    assert all(len(row) == len(columns) for row in rows)
    assert rows[0][-1] == ""
    assert "x [" in rows[1][-1]
    columns, rows = layer_table(found.layers, found.peak)
    assert all(len(row) == len(columns) for row in rows)
    assert sum(float(row[2].split()[0]) for row in rows) == pytest.approx(100, abs=0.5)


def test_bench_prints_and_judges(found: report.Report, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    benching.show(Console(), found, str(tmp_path / "r.json"))
    out = capfd.readouterr().out
    for word in (SPARSE, DENSE, ORT, "affine", "toy-"[:3]):
        assert word in out
    assert json.loads((tmp_path / "r.json").read_text())["schema"] == report.SCHEMA
    benching.check_speed(found, 1e-6)
    with pytest.raises(RegressionError, match="not 1e\\+06") as caught:
        benching.check_speed(found, 1e6)
    assert caught.value.exit_code == 5


def test_instability_is_remarked() -> None:
    shaky = types.SimpleNamespace(name="a", unstable=("drift: much", "spikes: some"))
    steady = types.SimpleNamespace(name="b", unstable=())
    outcome: Any = types.SimpleNamespace(
        measured=[shaky, steady],
        notes=("ended early",),
        plan=Plan(),
        causes=(Cause("load", "others"),),
        comparisons=[types.SimpleNamespace(calm=calm, blocks=20) for calm in (10, 7)],
    )
    expected = ["a is unstable: drift: much; spikes: some", "load: others", "ended early"]
    expected.append("the machine was calm in 7 of 20 blocks only: speedups are those of calm blocks")
    assert remarks(report.Report(outcome, {}, {})) == expected


def test_mlperfs_percentile_is_told() -> None:
    samples = Samples.of("a", np.linspace(1e-3, 2e-3, 1001))
    plan = Plan(percentile=90)
    item = Measured(samples, summarize(samples), 0.0, 1e-3, True, 21)
    *_, line = remarks(report.Report(conclude(plan, [item]), {}, {}))
    assert line == "p90 of all runs, interrupted ones too: a 1.9 ms (1001 runs, 2 s)"


def test_layers_meet_the_manifest() -> None:
    records = [
        {"name": "a", "macs": 500_000, "density": 0.5, "kernel": "k", "pattern": "group:4x1", "reason": "a: so"},
        {"name": "b", "macs": 0, "density": None, "reason": "why"},
    ]
    runs = [[("a", 1000), ("b", 10)], [("a", 3000), ("b", 30)], [("a", 2000), ("b", 20)]]
    a, b = layer_times(runs, records)
    assert a == LayerTime("a", 2e-6, 500_000.0, "k", "group:4x1", 0.5, "so")
    assert a.gflops == pytest.approx(250)
    assert a.peak_share(500.0) == pytest.approx(0.5)
    assert (b.gflops, b.peak_share(500.0), b.reason, b.density) == (None, None, "why", None)
    assert layer_flops({}) == 0
    assert layer_flops({"macs": 10, "density": 0.5, "kernel": "dense:8 tile 3"}) == 20
    assert layer_flops({"macs": 36, "density": 0.5, "kernel": "winograd dense:8 tile 3"}) == 32


def test_a_contender_runs_what_it_was_given(toy_built: Path) -> None:
    x = np.full((toy.ROWS, toy.COLUMNS), 2, np.float32)
    made = ArtifactContender("a", toy_built, {toy.INPUT: x})
    assert made.run_once() > 0
    assert made.load_seconds > 0
    made.close()
    rival = OrtContender("b", toy_built / "model.onnx", {toy.INPUT: x})
    assert rival.run_once() > 0
    assert OrtContender("c", toy_built / "model.onnx").run_once() > 0


def test_contenders_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match="onnxruntime cannot load"):
        OrtContender("b", tmp_path / "x.onnx")
    with pytest.raises(UsageError, match="no contender of kind"):
        prepare("nonsense")


def test_open_dimensions_are_refused(tmp_path: Path) -> None:
    import onnx.parser

    text = '<ir_version: 8, opset_import: ["" : 17]> m (float[N] x) => (float[N] y) { y = Relu(x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "open.onnx")
    with pytest.raises(UnsupportedError, match="open dimensions"):
        OrtContender("b", tmp_path / "open.onnx")


def test_random_feeds_fit_and_repeat() -> None:
    infos = [TensorInfo("a", "float32", (2, 3)), TensorInfo("b", "int64", (4,)), TensorInfo("c", "bool", ())]
    feeds, again = random_feeds(infos, seed=1), random_feeds(infos, seed=1)
    for info in infos:
        assert feeds[info.name].shape == info.shape
        assert str(feeds[info.name].dtype) == info.dtype
        np.testing.assert_array_equal(feeds[info.name], again[info.name])


def test_targets_are_named_with_their_caches() -> None:
    from edgesparse.target import Target

    text = target_text({"name": "x86-64-v3", "l1d": 48 << 10, "l2": 1 << 20})
    assert (Target.parse(text).l1d, Target.parse(text).l2) == (48 << 10, 1 << 20)


def test_memory_is_measured_in_a_process_of_its_own(toy_built: Path) -> None:
    for kind, path in (("artifact", toy_built), ("onnx", toy_built / "model.onnx")):
        found = memory.measure(kind, path)
        assert found.baseline_bytes > 5_000_000
        assert 0 <= found.peak_bytes < 200_000_000
        told = (found.arena_bytes, found.weights_bytes)
        assert all(size is not None and size > 0 for size in told) if kind == "artifact" else told == (None, None)


def test_memory_that_cannot_be_measured(tmp_path: Path, toy_built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EdgesparseError, match="cannot measure the memory") as caught:
        memory.measure("artifact", tmp_path / "none")
    assert "there is no artifact" in caught.value.why
    with pytest.raises(EdgesparseError, match="does not tell"):
        memory.resident(status=tmp_path / "none")

    def refuse(*_: Any, **__: Any) -> Memory:
        raise EdgesparseError("no")

    monkeypatch.setattr(memory, "measure", refuse)
    told: list[str] = []
    wanted = Wanted(dense=False, onnxruntime=False)
    bare = bench_artifact(open_artifact(toy_built), QUICK, wanted, notice=told.append)
    assert told == [f"{SPARSE}: no"]
    assert bare.memory == {}
    assert as_json(bare)["contenders"][0]["memory"] is None


def test_resident_memory_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    before = memory.resident()
    block = np.ones(8_000_000)
    assert memory.resident() - before > 50_000_000
    memory.reset_peak()
    assert memory.resident("VmHWM") >= block.nbytes
