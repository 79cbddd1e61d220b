"""Fixtures for tests of the command line."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx.parser
import pytest

from edgesparse import cli

Run = Callable[..., tuple[int, str, str]]
FakePipeline = Callable[[Callable[..., Any]], None]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run the command line in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two products, one of them 70 % zero in no pattern; the first dimension is open."""
    rows = ", ".join("1" if i % 10 < 3 else "0" for i in range(16 * 8))
    text = f"""<ir_version: 9, opset_import: ["" : 18]>
        small (float[N,16] x) => (float[N,8] y) <float[16,8] w = {{{rows}}}> {{ [first] y = MatMul(x, w) }}"""
    made = onnx.parser.parse_model(text)
    path = tmp_path / "small.onnx"
    onnx.save(made, path)
    return path


@pytest.fixture
def fake_pipeline(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    """Put a compile function in the pipeline's place."""

    def install(act: Callable[..., Any]) -> None:
        module = types.ModuleType("edgesparse.pipeline")
        module.compile_model = act  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "edgesparse.pipeline", module)

    return install
