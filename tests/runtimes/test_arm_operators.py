"""Operators that go through Relax, on ARM under QEMU: what onnxruntime computes.

32-bit ARM has no instruction for some, such as rounding and 64-bit integers. All: `pytest -m long
tests/runtimes/test_arm_operators.py`, some 15 minutes of one core.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from devicekit import check_emulated, needs_qemu
from fallback_cases import CASES
from test_relaxed import feeds_of, model_of

pytestmark = needs_qemu

#: Some that took a modest form (see test_arm_fallback.py), called libraries, or lost elements.
QUICK = [("GridSample", "armv7"), ("Floor", "armv7"), ("LRN", "armv7"), ("Cast int64 uint8", "aarch64")]
REST = [(name, target) for target in ("armv7", "aarch64") for name in CASES if (name, target) not in QUICK]


@pytest.mark.parametrize(("name", "target"), QUICK)
def test_operators_are_onnxruntimes(name: str, target: str, tmp_path: Path) -> None:
    opset, text = CASES[name]
    model = model_of(text, opset)
    check_emulated(model, feeds_of(model), target, tmp_path, 2e-6)


@pytest.mark.long
@pytest.mark.parametrize(("name", "target"), REST)
def test_the_other_operators_are_onnxruntimes(name: str, target: str, tmp_path: Path) -> None:
    test_operators_are_onnxruntimes(name, target, tmp_path)
