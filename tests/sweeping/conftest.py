"""A small sweep's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from smallmodel import save_model  # isort: skip

TEXT = """
models: [small.onnx]
recipes:
  - {name: g4, pattern: group:4x1, densities: [0.2, 0.4, 0.6]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model and a sweep of three cells over it."""
    save_model(tmp_path / "small.onnx")
    (tmp_path / "sweep.yaml").write_text(TEXT, encoding="utf-8")
    return tmp_path
