"""Comparing two reports: verdicts, references, what is not comparable, and the command's exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_page import made, plain

from edgesparse.cli import main
from edgesparse.errors import UsageError
from edgesparse.measuring.regression import compare_reports


def slowed(data: dict[str, Any], factor: float) -> dict[str, Any]:
    """The same report from a machine that is slower as a whole."""
    for item in data["contenders"]:
        item["block_seconds"] = [value * factor for value in item["block_seconds"]]
        item["latency"]["p50"] *= factor
    return data


def test_the_same_bench_twice_is_no_difference() -> None:
    found = compare_reports(plain(made()), plain(made(seed=10)))
    assert not found.regressed
    assert {row.verdict for row in found.rows} == {"no difference"}
    assert [row.reference for row in found.rows] == ["onnxruntime", ""]
    assert (found.missing, found.obstacles, found.notes) == ((), (), ())


@pytest.mark.parametrize(("sparse", "verdict"), [(1.2e-3, "slower"), (0.8e-3, "faster"), (1.01e-3, "no difference")])
def test_a_change_is_seen_and_bounded(sparse: float, verdict: str) -> None:
    first = compare_reports(plain(made()), plain(made(sparse=sparse, seed=10))).rows[0]
    assert first.verdict == verdict
    assert first.low <= 1e-3 / sparse <= first.high
    assert first.speed == pytest.approx(1e-3 / sparse, rel=0.02)


def test_a_slower_day_cancels_in_the_ratio() -> None:
    before, after = plain(made()), slowed(plain(made(seed=10)), 1.5)
    found = compare_reports(before, after)
    assert [row.verdict for row in found.rows] == ["no difference", "slower"]
    assert not found.regressed, "onnxruntime is not what is judged"
    for data in (before, after):
        del data["contenders"][1]
    alone = compare_reports(before, after)
    assert alone.rows[0].reference == ""
    assert alone.regressed
    assert alone.rows[0].speed == pytest.approx(1 / 1.5, rel=0.02)


def test_another_version_is_no_reference() -> None:
    before, after = plain(made()), plain(made(seed=10))
    after["environment"]["tools"]["onnxruntime"] = "9.9"
    found = compare_reports(before, after)
    assert found.rows[0].reference == ""
    assert found.notes == ("onnxruntime: 1.20.0 before, 9.9 after",)


def test_a_small_change_needs_a_tolerance() -> None:
    before, after = plain(made()), plain(made(sparse=1.02e-3, seed=10))
    assert not compare_reports(before, after).regressed
    assert compare_reports(before, after, tolerance=0.0).rows[0].speed < 1


def test_a_busy_neighbour_is_no_regression() -> None:
    """In two thirds of the second report's blocks it slows the artifact by 16 % and the reference by 5 %."""
    reports = []
    for busy in (np.zeros(30, bool), np.arange(30) % 3 > 0):
        data = plain_base()
        for item, seconds, slow in zip(data["contenders"], (1e-3, 5e-3), (1.16, 1.05), strict=True):
            item["block_seconds"] = list(np.where(busy, seconds * slow, seconds))
        reports.append(data)
    assert compare_reports(*reports).rows[0].speed == pytest.approx(1.0)
    for data in reports:
        data["settings"]["keep_all"] = True
    assert compare_reports(*reports).regressed


def test_false_alarms_are_rare() -> None:
    """200 pairs of the same bench: the verdict's intervals hold 1 in at least 95 % of them."""
    hits = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        reports = []
        for _ in range(2):
            data = plain_base()
            for item, seconds in zip(data["contenders"], (1e-3, 5e-3), strict=True):
                item["block_seconds"] = list(seconds * np.exp(0.03 * rng.standard_normal(40)))
            reports.append(data)
        row = compare_reports(reports[0], reports[1]).rows[0]
        hits += row.low <= 1 <= row.high
    assert hits >= 190


BASE = plain(made())


def plain_base() -> dict[str, Any]:
    return {**BASE, "contenders": [dict(item) for item in BASE["contenders"]]}


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("environment", "cpu", "Other", "another processor: Maker X1 before, Other after"),
        ("settings", "threads", 4, "another number of threads: 1 before, 4 after"),
        ("subject", "target", "aarch64", "another target: x86-64-v3 before, aarch64 after"),
        ("settings", "percentile", 90, "another protocol"),
    ],
)
def test_what_is_not_comparable(
    section: str, key: str, value: Any, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = plain(made(seed=10))
    other[section][key] = value
    [obstacle] = compare_reports(plain(made()), other).obstacles
    assert words in obstacle
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, data in zip(paths, (plain(made()), other), strict=True):
        path.write_text(json.dumps(data))
    assert main(["compare", *map(str, paths)]) == 2
    assert "not comparable" in capsys.readouterr().err
    assert main(["compare", *map(str, paths), "--anyway"]) == 0
    assert f"note: {obstacle}" in capsys.readouterr().out


def test_another_device_is_an_obstacle() -> None:
    other = plain(made())
    other["device"] = {"name": "ssh://pi"}
    assert compare_reports(plain(made()), other).obstacles == ("another device: this machine before, ssh://pi after",)


def test_a_contender_that_is_gone() -> None:
    other = plain(made())
    del other["contenders"][1]
    assert compare_reports(plain(made()), other).missing == ("onnxruntime: only in the first",)
    with pytest.raises(UsageError, match="the second report has no edgesparse"):
        compare_reports(plain(made()), plain(made("other")))


def test_unstable_reports_and_other_models_are_remarked() -> None:
    other = plain(made(drift=0.4))
    other["subject"]["model_sha256"] = "1" * 64
    notes = compare_reports(plain(made()), other).notes
    assert any("edgesparse is unstable in the second report" in text for text in notes)
    assert "the models differ: the change may be theirs" in notes


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, report in (("a", made()), ("b", made(seed=10)), ("slow", made(sparse=1.3e-3, seed=11))):
        (tmp_path / f"{name}.json").write_text(json.dumps(plain(report)))
    a, b, slow = (str(tmp_path / f"{name}.json") for name in ("a", "b", "slow"))
    assert main(["compare", a, b]) == 0
    assert "verdict: edgesparse: no difference" in capsys.readouterr().out
    assert main(["compare", slow, a]) == 0
    assert "verdict: edgesparse: faster" in capsys.readouterr().out
    assert main(["compare", a, slow]) == 5
    told = capsys.readouterr()
    assert "became slower: 0.7" in told.err
    assert "ratio to onnxruntime" in told.out
    assert main(["compare", a, slow, "--json=-"]) == 5
    data = json.loads(capsys.readouterr().out)
    assert (data["schema"], data["regressed"]) == ("edgesparse.compare/1", True)
    assert main(["compare", a, str(tmp_path / "none.json")]) == 1
    assert "cannot read" in capsys.readouterr().err
