"""onnxruntime on the device: found there, timed in the same blocks, its failures told. The device is this machine."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from devicekit import needs_sshd, small_artifact, sshd

from edgesparse.artifacts.artifact import Artifact
from edgesparse.errors import DeviceError
from edgesparse.measuring.bench import Plan
from edgesparse.measuring.devicebench import Wanted, bench_device
from edgesparse.runtimes.device import RIVAL, open_device

QUICK = Plan(seconds=0.05, runs=20, warm_up=0.05, loads=3)
#: Where a python3 with onnxruntime is: this one.
HERE = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return small_artifact(tmp_path_factory.mktemp("rival"), "native", runner="device")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with sshd(tmp_path, HERE) as (address, _, config):
        monkeypatch.setenv("EDGESPARSE_SSH", f"ssh -F {config} -o LogLevel=ERROR")
        yield f"ssh://{address}"


@needs_sshd
def test_it_is_timed_in_the_same_blocks(made: Artifact, server: str) -> None:
    with open_device(server, made) as device:
        report = bench_device(device, Wanted(QUICK))
        assert {"model.onnx", RIVAL} <= set(device.sent)
    assert report.errors["onnxruntime"] < 1e-5
    assert report.report is not None
    outcome = report.report.outcome
    assert [item.name for item in outcome.measured] == ["edgesparse", "edgesparse dense", "onnxruntime"]
    assert len({len(item.samples.blocks) for item in outcome.measured}) == 1
    assert {item.samples.loads for item in outcome.measured} == {QUICK.loads}
    assert [item.other for item in outcome.comparisons if item.base == "edgesparse"][-1] == "onnxruntime"
    assert outcome.measured[-1].load_seconds > 0


@needs_sshd
def test_the_command_line_reports_and_leaves_it_out(
    made: Artifact, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgesparse.cli import main

    command = ["bench", str(made.path), "--device", server, "--seconds", "0.05", "--runs", "20", "--quick"]
    assert main(command) == 0
    assert "onnxruntime" in capsys.readouterr().out
    assert main([*command, "--no-onnxruntime", "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "onnxruntime" not in json.dumps(told["contenders"] if "contenders" in told else told["measured"])


@needs_sshd
def test_its_failure_is_told(made: Artifact, server: str, tmp_path: Path) -> None:
    model = onnx.load(made.file("model.onnx"))
    model.graph.node[0].op_type = "NoSuchOperator"
    folder = tmp_path / "broken"
    folder.mkdir()
    for item in made.folder.iterdir():
        (folder / item.name).symlink_to(item)
    (folder / "model.onnx").unlink()
    onnx.save(model, folder / "model.onnx")
    with (
        open_device(server, dataclasses.replace(made, folder=folder)) as device,
        pytest.raises(DeviceError, match="NoSuchOperator"),
    ):
        bench_device(device, Wanted(QUICK))


@needs_sshd
def test_without_onnxruntime_there_the_two_forms_are_timed(
    made: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sshd(tmp_path, "/usr/bin:/bin") as (address, _, config):
        monkeypatch.setenv("EDGESPARSE_SSH", f"ssh -F {config} -o LogLevel=ERROR")
        with open_device(f"ssh://{address}", made) as device:
            if device.description.onnxruntime:
                pytest.skip("this machine's own python3 has onnxruntime")
            report = bench_device(device, Wanted(QUICK))
            assert "model.onnx" not in device.sent
    assert set(report.errors) == {"sparse", "dense"}
