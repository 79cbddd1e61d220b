"""Sweeps whose cells are measured for once, from the command line to the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgesparse.cli import main
from edgesparse.measuring.schema import bench_schema, faults
from edgesparse.measuring.session import DENSE, SPARSE

from smallmodel import save_model  # isort: skip

SWEEP = """
models: [small.onnx]
recipes: [{{name: g4, pattern: group:4x1, density: 0.5}}]
targets: [{target}]
devices: [{device}]
bench: {{seconds: 0.02, runs: 10, memory: false, onnxruntime: false}}
"""


def swept(folder: Path, target: str, device: str) -> dict[str, Any]:
    """The result of the only cell."""
    save_model(folder / "small.onnx")
    (folder / "sweep.yaml").write_text(SWEEP.format(target=target, device=device), encoding="utf-8")
    assert main(["sweep", str(folder / "sweep.yaml"), "-o", str(folder / "out")]) == 0
    [cell] = (folder / "out" / "cells").glob("*.json")
    found = json.loads(cell.read_text(encoding="utf-8"))
    return dict(found["record"]["result"])


def test_a_cell_here(tmp_path: Path) -> None:
    found = swept(tmp_path, "native", "local")
    assert faults(found["bench"], bench_schema()) == []
    names = [item["name"] for item in found["bench"]["contenders"]]
    assert names == [SPARSE, DENSE]
    assert found["worst_error"] < 1e-5
    assert found["density"] == 0.5


@pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="no qemu-aarch64")
def test_a_cell_on_an_emulated_device(tmp_path: Path) -> None:
    """It counts instructions, and the report says so."""
    found = swept(tmp_path, "aarch64", "qemu")
    told = found["device_bench"]
    assert set(told["instructions"]) == {"sparse", "dense"}
    assert "bench" not in found
    assert "instructions" in next((tmp_path / "out").glob("*.html")).read_text(encoding="utf-8")
