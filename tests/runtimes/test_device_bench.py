"""The whole bench of a real device, as far as one can be had: its program under QEMU, taken at its word."""

from __future__ import annotations

import json
import shlex
import tempfile
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from devicekit import needs_qemu, small_artifact

from edgesparse.artifacts.artifact import Artifact
from edgesparse.cli import main
from edgesparse.errors import DeviceError, NumbersDifferError, UsageError
from edgesparse.measuring import devicebench
from edgesparse.measuring.bench import MLPERF, Plan
from edgesparse.measuring.devicebench import DeviceReport, Wanted, bench_device, waiting
from edgesparse.measuring.schema import bench_schema, faults
from edgesparse.measuring.session import DENSE, SPARSE
from edgesparse.runtimes import device as devices
from edgesparse.runtimes import links
from edgesparse.runtimes.device import Description, Device

PLAN = Plan(seconds=0.05, runs=30, warm_up=0.2, seed=3)


class Board(links.LocalLink):
    """This machine, that claims to be an ARM board."""

    def shell(self, line: str, *, stdin: bytes | Path = b"", timeout: float = 60.0) -> links.Done:
        return super().shell(line.replace("./bench ", "qemu-aarch64 ./bench "), stdin=stdin, timeout=timeout)


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Board:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # a folder that no other bench of this artifact uses
    said = Description("board", "aarch64", "Linux 6.6", "Cortex-A76", 4, ("fp", "asimd"), 4096, "schedutil", 55.0)
    monkeypatch.setattr(devices, "describe", lambda _link: said)
    monkeypatch.setattr(links, "parse", lambda _text: Board("board"))
    return Board("board")


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return small_artifact(tmp_path_factory.mktemp("arm"), "aarch64")


@pytest.fixture
def found(arm: Artifact, board: Board) -> DeviceReport:
    with Device(board, arm) as device:
        return bench_device(device, Wanted(PLAN, cores="all"))


@needs_qemu
def test_the_report_is_the_same_as_of_a_bench_here(found: DeviceReport) -> None:
    data = json.loads(json.dumps(found.record(), allow_nan=False))
    assert faults(data, bench_schema()) == []
    assert [item["name"] for item in data["contenders"]] == [SPARSE, DENSE]
    for item in data["contenders"]:
        assert item["latency"]["n"] >= 30
        assert item["error"] < 1e-5
        assert item["load_seconds"] > 0
        assert item["first_seconds"] > 0
        assert item["memory"]["peak_bytes"] > 0
        assert item["memory"]["arena_bytes"] > 0
        assert item["memory"]["weights_bytes"] > 0
        assert len(item["block_seconds"]) == data["comparisons"][0]["blocks"]
        assert item["quantile_seconds"][50] == pytest.approx(item["latency"]["p50"])
    assert data["environment"]["cpu"] == "Cortex-A76"
    assert data["environment"]["os"] == "Linux 6.6"
    assert data["device"]["name"] == "board"
    assert data["settings"]["seed"] == 3
    assert data["conditions"]["load_1min"] is not None
    assert [item["name"] for item in data["layers"]] == [item["name"] for item in data["dense_layers"]]
    assert "group:" in data["layers"][0]["kernel"]


@needs_qemu
def test_the_program_keeps_the_protocol(arm: Artifact, board: Board) -> None:
    """Seconds, runs, blocks forth and back; by MLPerf's rule every run counts."""
    with Device(board, arm) as device:
        device.push(devices.files_of(arm))
        given = ["bench", "--dense", "dense.bin", "--seconds", "0.1", "--runs", "40", "--warm-up", "0.1", "--profile"]
        told = json.loads(device.program([*given, "3", "--keep-all", "1"], timeout=60))
        for form in told["forms"].values():
            turns = [turn for block in form["blocks"] for turn in block]
            assert all(len(block) == 2 for block in form["blocks"])
            assert sum(map(len, turns)) == form["runs"] >= 40
            assert sum(map(sum, turns)) >= 0.1e9
            assert (form["disturbed"], form["interrupted"]) == (0, 0)
            assert min(min(turn) for turn in turns) == form["min_ns"]
        short = json.loads(device.program([*given, "0", "--seconds", "60", "--most", "0.01"], timeout=60))
        assert all(len(form["blocks"]) == 1 for form in short["forms"].values()), "a limit ends it"


@needs_qemu
def test_the_program_goes_through_several_loads(arm: Artifact, board: Board) -> None:
    """In turns, here and in the report; one where it is told nothing."""
    with Device(board, arm) as device:
        device.push(devices.files_of(arm))
        sample = ["--input", "sample.in", "--expect", "sample.out"]
        given = ["bench", "--dense", "dense.bin", *sample, "--seconds", "0.02", "--runs", "40", "--warm-up", "0.05"]
        told = json.loads(device.program([*given, "--loads", "3"], timeout=60))
        assert told["loads"] == 3
        assert all(form["error"] < 1e-5 for form in told["forms"].values())
        assert json.loads(device.program(given, timeout=60))["loads"] == 1
        for wrong in ("0", "65"):
            with pytest.raises(DeviceError, match="must be 1 to 64"):
                device.program([*given, "--loads", wrong], timeout=60)
        report = bench_device(device, Wanted(replace(PLAN, loads=3, seconds=0.4), cores="all")).report
    assert report is not None
    assert {item.samples.loads for item in report.outcome.measured} == {3}
    assert len(report.outcome.comparisons[0].load_ratios) == 3


@needs_qemu
def test_a_device_measures_longer_for_want_of_calm(
    arm: Artifact, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, as many times as long as patience says; not where every run counts, nor where it ended early."""
    asked: list[tuple[int, float]] = []

    def never_calm(samples: Any, planned: int, patience: float) -> bool:
        asked.append((planned, patience))
        return patience > 1

    monkeypatch.setattr(devicebench, "goes_on", never_calm)
    plan = Plan(seconds=0.1, runs=20, warm_up=0.05, loads=2, patience=4.0)
    with Device(board, arm) as device:
        longer = bench_device(device, Wanted(plan, cores="all", layers=False)).report
        whole = bench_device(device, Wanted(replace(plan, keep_all=True), cores="all", layers=False)).report
        early = bench_device(device, Wanted(replace(plan, seconds=30.0, limit=0.05), cores="all", layers=False)).report
    assert longer is not None
    assert whole is not None
    assert early is not None
    assert [patience for _, patience in asked] == [4.0, 1.0, 1.0]
    assert longer.outcome.planned == asked[0][0]
    assert all(item.stats.n >= 80 for item in longer.outcome.measured)
    assert any("as long as planned, for want of calm" in note for note in longer.outcome.notes)
    assert whole.outcome.planned == len(whole.outcome.measured[0].samples.blocks)


@needs_qemu
def test_a_bench_that_ended_early_says_so(arm: Artifact, board: Board) -> None:
    with Device(board, arm) as device:
        plan = Plan(seconds=30.0, runs=10, warm_up=0.05, limit=0.02)
        report = bench_device(device, Wanted(plan, cores="all", layers=False)).report
    assert report is not None
    assert report.outcome.notes[0].startswith("ended before 30 s and 10 runs of each")
    assert report.layers == report.dense_layers == ()


@needs_qemu
def test_the_command_line(
    arm: Artifact, board: Board, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["bench", str(arm.path), "--device", "board", "--cores", "all", "--seconds", "0.05", "--runs", "10"]
    files = {key: tmp_path / f"x.{key}" for key in ("json", "html", "me")}
    wishes = [
        "--json",
        files["json"],
        "--html",
        files["html"],
        "--model-explorer",
        files["me"],
        "--accuracy",
        "top1=0.5",
    ]
    assert main([*given, *map(str, wishes)]) == 0
    out = capsys.readouterr().out
    assert "largest error" in out
    assert DENSE in out
    data = json.loads(files["json"].read_text())
    assert data["accuracy"] == {"top1": 0.5}
    assert "Cortex-A76" in files["html"].read_text()
    assert len(json.loads(files["me"].read_text())) == 1
    assert main([*given, "--fail-below", "2"]) == 5
    assert "onnxruntime was not measured" in capsys.readouterr().err
    assert main([*given, "--threads", "2"]) == 2
    assert "one thread" in capsys.readouterr().err


def told(**changes: Any) -> dict[str, Any]:
    form = {"error": 1e-7, "blocks": [[[5], [5]]]}
    return {"schema": "edgesparse.device/1", "forms": {"sparse": form | changes}}


class Silent:
    """A device whose program answers what it is given."""

    class Link:
        name, emulated = "fake", False

    def __init__(self, answer: bytes, artifact: Artifact) -> None:
        self.answer, self.artifact, self.link, self.sent = answer, artifact, self.Link(), ["bench"]
        self.description = types.SimpleNamespace(onnxruntime=None)

    def push(self, files: Any) -> None:
        pass

    def program(self, arguments: Any, *, timeout: float, under: Any = ()) -> bytes:
        return self.answer


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b'{"schema": "edgesparse.device/2", "forms": {}}'])
def test_answers_that_cannot_be_read(answer: bytes, arm: Artifact) -> None:
    device: Any = Silent(answer, arm)
    with pytest.raises(DeviceError, match="cannot be read"):
        bench_device(device)


def test_wrong_numbers_are_no_result(arm: Artifact) -> None:
    device: Any = Silent(json.dumps(told(error=0.1)).encode(), arm)
    with pytest.raises(NumbersDifferError, match="the sparse form of"):
        devicebench._errors(json.loads(device.answer), device)
    with pytest.raises(UsageError, match="one thread, not 4"):
        bench_device(device, Wanted(Plan(threads=4)))


def test_progress_by_the_clock() -> None:
    import time

    seen: list[float] = []
    with waiting(lambda share, _text: seen.append(share), 0.3, "x"):
        time.sleep(0.7)
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 0.99)


def test_what_is_asked_of_the_program(arm: Artifact) -> None:
    lines: list[str] = []

    class Listening(Silent):
        def program(self, arguments: Any, *, timeout: float, under: Any = ()) -> bytes:
            lines.append(shlex.join(arguments))
            return b""

    device: Any = Listening(b"", arm)
    with pytest.raises(DeviceError):
        bench_device(device, Wanted(MLPERF, cores="little"))
    assert "--seconds 60.000 --runs 1024" in lines[0]
    assert "--loads 8 --most 3600.000 --keep-all 1 --cores little" in lines[0]
