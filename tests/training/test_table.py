"""The table of benchmarks: its figures against numpy and scipy, and the whole of its quick form."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import stats

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
GRADUAL, RIGL = [95.0, 96.5, 94.0, 97.0], [96.0, 98.0, 95.5, 97.0]


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import training_table

    return training_table


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Runs of four seeds by two methods, one of them timed, and a run that was refused."""
    rows: list[dict[str, Any]] = []
    for method, values in (("gradual", GRADUAL), ("rigl", RIGL)):
        for seed, value in enumerate(values):
            key = [method, "group:4x1", 0.9, "lamp", False, seed, 40]
            rows.append({"key": key, "accuracy": value, "dense": 99.0, "overhead": 0.02 + 0.01 * seed})
    rows.append({"key": rows[4]["key"], "ms": 0.02, "times": 2.5, "low": 2.25, "high": 2.75})
    rows.append({"key": ["rigl", "nm:2:4", 0.5, "uniform", False, 0, 40], "refused": "its density is fixed"})
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_row_tells_mean_spread_differences_and_speed(
    tables: ModuleType, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables.table(file)
    printed = capsys.readouterr().out.splitlines()
    head, _, *lines = ([word.strip() for word in line.split("|")[1:-1]] for line in printed)
    gradual, rigl = (dict(zip(head, line, strict=True)) for line in lines)  # what was refused has no row
    assert (gradual["method"], rigl["method"], rigl["seeds"]) == ("gradual", "rigl", "4")
    assert rigl["top-1"] == f"{np.mean(RIGL):.2f} ± {np.std(RIGL, ddof=1):.2f}"
    assert rigl["to dense"] == f"{np.mean(RIGL) - 99.0:+.2f}"
    interval = stats.ttest_rel(RIGL, GRADUAL).confidence_interval(0.95)
    told = rigl["to gradual, same allocation"]
    assert told == f"{np.mean(interval):+.2f} ± {(interval.high - interval.low) / 2:.2f}"
    assert rigl["to gradual, uniform"] == gradual["to gradual, same allocation"] == ""
    assert rigl["overhead of a step"] == "3.5%"
    assert (rigl["ms"], rigl["times dense"], gradual["ms"]) == ("0.0200", "2.50 [2.25, 2.75]", "")


@pytest.fixture
def compared(tmp_path: Path) -> Path:
    """Three methods of three seeds, two of them no better than random masks or just better."""
    rows: list[dict[str, Any]] = []
    for method, allocation, values in (
        ("random", "erk", [90.0, 91.0, 92.0]),
        ("gradual", "lamp", [91.0, 93.0, 93.5]),
        ("cast", "lamp", [90.5, 90.5, 92.0]),
        ("rewinding", "lamp", [90.0, 90.0, 90.0]),
    ):
        for seed, value in enumerate(values):
            key = [method, "group:4x1", 0.9, allocation, False, seed, 40]
            rows.append({"key": key, "accuracy": value, "dense": 99.0})
    rows.append({"key": ["gradual", "unstructured", 0.9, "lamp", False, 0, 40], "accuracy": 97.0, "dense": 99.0})
    path = tmp_path / "compared.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_what_does_not_beat_random_masks_has_a_star(
    tables: ModuleType, compared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables.grid(compared)
    head, _, *lines = capsys.readouterr().out.strip().splitlines()
    assert [word.strip() for word in head.split("|")[1:-1]] == [
        "90%, 40 epochs",
        "allocation",
        "unstructured",
        "group:4x1",
    ]
    cells = {words[1]: words[3:5] for words in ([word.strip() for word in line.split("|")] for line in lines)}
    assert list(cells) == ["cast", "gradual", "rewinding", "random"]
    assert cells["gradual"] == ["97.00", "92.50 ± 1.32"]
    assert cells["cast"] == ["", "91.00 ± 0.87 *"]
    assert cells["rewinding"] == ["", "90.00 ± 0.00 *"]
    assert cells["random"] == ["", "91.00 ± 1.00"]


def test_the_difference_to_random_masks_is_told_with_its_interval(
    tables: ModuleType, compared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables.table(compared)
    head, _, *lines = ([w.strip() for w in one.split("|")[1:-1]] for one in capsys.readouterr().out.splitlines())
    told = {line[0] + line[1]: dict(zip(head, line, strict=True))["to random"] for line in lines}
    interval = stats.ttest_rel([91.0, 93.0, 93.5], [90.0, 91.0, 92.0]).confidence_interval(0.95)
    assert told["gradualgroup:4x1"] == f"{1.5:+.2f} ± {(interval.high - interval.low) / 2:.2f}"
    assert told["randomgroup:4x1"] == told["gradualunstructured"] == ""


def test_what_there_was_no_time_for_is_told(
    tables: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import training

    words = ["training.py", "--task", "digits", "--minutes", "0", "--out", str(tmp_path / "rows.jsonl"), "--untimed"]
    words += ["--methods", "gradual", "rigl", "--patterns", "group:4x1", "nm:2:4", "--sparsity", "0.9", "--seeds", "2"]
    (tmp_path / "rows.jsonl").write_text("", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", words)
    training.main()
    assert capsys.readouterr().out.splitlines() == [
        "no time was left for 10 of 10 runs on digits:",
        "  dense 0, seeds 0, 1",
        "  gradual group:4x1 0.9 lamp, seeds 0, 1",
        "  rigl group:4x1 0.9 lamp, seeds 0, 1",
        "  gradual nm:2:4 0.5 uniform, seeds 0, 1",
        "  rigl nm:2:4 0.5 uniform, seeds 0, 1",
    ]


@pytest.mark.parametrize("jobs", [1, 2, 16])
def test_runs_wait_for_the_dense_networks_of_their_task(
    tables: ModuleType, jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import training

    made: list[Any] = []

    class Pool:
        """Takes what goes to another process, and is done at once."""

        def __init__(self, *_: Any) -> None: ...

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: object) -> None: ...

        def submit(self, deed: Any, one: Any, export: bool) -> Future[dict[str, Any]]:
            one = pickle.loads(pickle.dumps(one))
            same = [each for each in made if each.name == one.name and each.dense]
            assert one.dense or len(same) == {"digits": 3, "fashion-short": 1}[one.name]
            future: Future[dict[str, Any]] = Future()
            future.set_result({})
            return future

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["training.py", "--untimed", "--jobs", str(jobs)])
    monkeypatch.setattr(training, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(training, "record", lambda one, _: made.append(one))
    monkeypatch.setattr(training.subprocess, "run", lambda *_, **__: None)
    training.main()
    assert len(made) == len({(one.name, one.key) for one in made}) == 3 + 1 + 369 + 351


def test_points_lost_are_drawn_over_latency(tables: ModuleType, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import edgesparse.advice.frontier

    drawn: list[dict[str, Any]] = []
    monkeypatch.setattr(edgesparse.advice.frontier, "plot", lambda facts: drawn.append(facts) or "<svg/>")
    assert tables.plot(file) == "<svg/>"
    (facts,) = drawn
    assert facts["kind"] == "latency"
    # the timed network needs 1/2.5 of the dense one's time
    found = sorted((one["cost"], one["drop"]) for one in facts["points"])
    assert found == [(0.4, pytest.approx(99.0 - np.mean(RIGL))), (1.0, 0.0)]


@pytest.mark.long
def test_the_quick_form_trains_times_and_goes_on_from_what_is_there(tmp_path: Path) -> None:
    out = tmp_path / "digits.jsonl"
    words = [sys.executable, str(BENCHMARKS / "training.py"), "--task", "digits", "--quick", "--out", str(out)]

    def made() -> tuple[list[dict[str, Any]], str]:
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()], done.stdout

    rows, table = made()
    trained = [row for row in rows if "accuracy" in row and row["key"][0] != "dense"]
    asked = {(method, pattern) for method in ("gradual", "random") for pattern in ("unstructured", "group:4x1")}
    assert {tuple(row["key"][:2]) for row in trained} == asked
    assert all(row["reached"] == pytest.approx(0.8, abs=0.02) for row in trained)
    assert sum("times" in row for row in rows) == 4
    assert table.count("| 0.8 |") == 4
    assert made()[0] == rows, "nothing is made again"
