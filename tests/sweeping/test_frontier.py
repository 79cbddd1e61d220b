"""The frontier, its page, and the command from a file to a report."""

from __future__ import annotations

import itertools
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from edgesparse import cli
from edgesparse.errors import Reason
from edgesparse.sweeping.engine import Done
from edgesparse.sweeping.frontier import as_json, non_dominated, panels_of
from edgesparse.sweeping.grid import Cell
from edgesparse.sweeping.page import page, svg, ticks

NUMBERS = st.integers(0, 6)


@hypothesis.given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=12))
def test_on_the_frontier_is_who_no_other_beats(pairs: list[tuple[float, float]]) -> None:
    marks = non_dominated(pairs)
    for (one, best), other in itertools.product(zip(pairs, marks, strict=True), pairs):
        if best:
            assert not (other != one and other[0] >= one[0] and other[1] >= one[1])
    beaten = [one for one, best in zip(pairs, marks, strict=True) if not best]
    kept = [one for one, best in zip(pairs, marks, strict=True) if best]
    assert all(any(a >= x and b >= y and (a, b) != (x, y) for a, b in kept) for x, y in beaten)


@hypothesis.given(st.floats(-1e4, 1e4), st.floats(0, 1e4))
def test_ticks_enclose(low: float, span: float) -> None:
    found = ticks(low, low + span)
    tolerance = 1e-6 * max(span, 1.0)
    assert found[0] <= low + tolerance
    assert found[-1] >= low + span - tolerance
    assert 2 <= len(found) <= 9
    assert found == sorted(set(found))


def cell(recipe: str, pattern: str | None, key: str) -> Cell:
    job = {"recipe": None if pattern is None else {"pattern": pattern}}
    return Cell("net <1>", recipe, "x86-64-v3", "local", job, key)


def result(ratio: float, density: float, accuracy: float | None) -> dict[str, object]:
    comparisons = [
        {"other": name, "ratio": ratio, "low": 0.9 * ratio, "high": 1.1 * ratio}
        for name in ("edgesparse dense", "onnxruntime")
    ]
    sparse = {"name": "edgesparse", "latency": {"p50": 1e-3}, "unstable": ["spikes"] if ratio > 3 else []}
    bench = {"environment": {"cpu": "a processor"}, "comparisons": comparisons, "contenders": [sparse]}
    quality = {"accuracy": accuracy, "agreement": 0.8, "dense_accuracy": 0.75}
    return {"density": density, "quality": None if accuracy is None else quality, "bench": bench}


def test_panels_and_page() -> None:
    cells = [
        cell("dense", None, "a"),
        cell("good", "group:8x1", "b"),
        cell("bad", "fanin", "c"),
        cell("lost", "x", "d"),
    ]
    results = {"a": result(1.0, 1.0, 0.75), "b": result(3.5, 0.3, 0.74), "c": result(1.5, 0.5, 0.70)}
    done = Done(results, {"d": {"what": "broken <here>", "why": "", "fix": ""}})
    (panel,) = panels_of(cells, done)
    assert (panel.quality, panel.gain, panel.dense_accuracy) == ("accuracy", "speedup", 0.75)
    assert [(point.recipe, point.best) for point in panel.points] == [("dense", True), ("good", True), ("bad", False)]
    tree = ET.fromstring(svg(panel))
    words = [element.text for element in tree.iter() if element.tag == "text"]
    assert {"dense", "good", "bad", "group:8x1", "fanin"} <= set(words)
    assert sum(element.tag == "title" for element in tree.iter()) == 3
    text = page("a sweep", (panel,), cells, done, [Reason("not-measured", "it cannot run", "x on y")])
    assert "net &lt;1&gt;" in text
    assert "broken &lt;here&gt;" in text
    assert "good is unstable: spikes" in text
    assert "<script" not in text
    assert "http" not in text
    told = as_json(cells, done, [])
    assert [row["recipe"] for row in told["cells"]] == ["dense", "good", "bad"]
    assert told["failed"][0]["recipe"] == "lost"
    json.dumps(told, allow_nan=False)


def test_without_quality_the_weights_kept_stand_for_it() -> None:
    cells = [cell("a", "group:8x1", "a"), cell("b", "group:8x1", "b")]
    (panel,) = panels_of(cells, Done({"a": result(2.0, 0.3, None), "b": result(1.0, 0.5, 0.7)}))
    assert panel.quality == "density"
    assert [point.quality for point in panel.points] == [0.3, 0.5]


def test_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    np.savez(folder / "x.npz", x=rng.standard_normal((4, 16)).astype(np.float32))
    text = """
        models: [{path: small.onnx, eval: {inputs: x.npz}}]
        recipes: [{name: g4, pattern: group:4x1, density: 0.5}]
        bench: {seconds: 0.02, runs: 5}
    """
    (folder / "sweep.yaml").write_text(text, encoding="utf-8")
    arguments = ["sweep", str(folder / "sweep.yaml"), "-o", str(folder / "out")]
    assert cli.main([*arguments, "--dry-run"]) == 0
    assert "to do" in capfd.readouterr().out
    assert cli.main(arguments) == 0
    assert "1 cells measured, 0 were there, 0 failed" in capfd.readouterr().out
    told = json.loads((folder / "out/report.json").read_text(encoding="utf-8"))
    (found,) = told["cells"]
    assert found["result"]["density"] == pytest.approx(0.5)
    assert found["result"]["worst_error"] <= 1e-5
    assert found["result"]["quality"]["samples"] == 1
    (panel,) = told["panels"]
    assert panel["quality"] == "agreement"
    assert panel["points"][0]["gain"] > 0
    assert (folder / "out/report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    monkeypatch.setattr("edgesparse.sweeping.engine.COMMAND", ("false",))
    assert cli.main(arguments) == 0
    assert "0 cells measured, 1 were there" in capfd.readouterr().out
