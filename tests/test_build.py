"""Kernels come from the cache the second time, and then TVM is not even loaded; keys hold all that code depends on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgesparse.building import build, codegen, registers
from edgesparse.building.assembly import Loop
from edgesparse.errors import CompileError
from edgesparse.kernels import Epilogue, Spmm
from edgesparse.target import Target

V2, V3 = Target.parse("x86-64-v2"), Target.parse("x86-64-v3")
SPEC = Spmm(2, 5, 1, 4, False, Epilogue("relu"))


def test_the_second_build_loads_no_tvm(own_cache: Path) -> None:
    first = build.build_kernels({SPEC.symbol: SPEC}, V2)
    code = """
import hashlib, sys
from edgesparse.building.build import build_kernels
from edgesparse.kernels import Epilogue, Spmm
from edgesparse.target import Target
spec = Spmm(2, 5, 1, 4, False, Epilogue("relu"))
print(hashlib.sha256(build_kernels({spec.symbol: spec}, Target.parse("x86-64-v2"))[spec.symbol]).hexdigest())
print("tvm" in sys.modules)
"""
    import hashlib

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [hashlib.sha256(first[SPEC.symbol]).hexdigest(), "False"]


def test_equal_kernels_give_equal_code(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build.build_kernels({SPEC.symbol: SPEC}, V2)
    monkeypatch.setenv("EDGESPARSE_CACHE", str(tmp_path / "other"))
    assert build.build_kernels({SPEC.symbol: SPEC}, V2) == first


def test_keys() -> None:
    keys = {build.kernel_key(symbol, target) for symbol in ("a", "b") for target in (V2, V3)}
    assert len(keys) == 4
    assert build.kernel_key("a", V2) in keys


def test_failures_name_the_kernel_and_are_not_cached(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = codegen.compile_object

    def fail(funcs: Any, target: Any) -> bytes:
        raise RuntimeError("first line\nboom")

    monkeypatch.setattr(codegen, "compile_object", fail)
    with pytest.raises(CompileError, match=r"cannot build kernel es_spmm_f32_g2_5px.*boom"):
        build.build_kernels({SPEC.symbol: SPEC}, V2)
    monkeypatch.setattr(codegen, "compile_object", real)
    ticks: list[tuple[int, int, str]] = []
    assert build.build_kernels({SPEC.symbol: SPEC}, V2, tick=lambda *now: ticks.append(now))
    assert ticks == [(0, 1, SPEC.symbol)]


def test_a_kernel_that_no_form_keeps_off_the_stack_is_told(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The form that touches it the least is taken; here each one that is tried touches it once less."""
    arm = Target.parse("armv7")
    spec = Spmm(4, 16, 3, 4, True, Epilogue(), by_lane=True)
    left = iter(range(19, 0, -1))
    monkeypatch.setattr(registers, "inner_loops", lambda _asm: [Loop((), ("ldr r0, [sp]",) * next(left))])
    tried = 2 * (1 + len(list(spec.modest)))  # by LLVM as usual, then with less of it
    build.build_kernels({spec.symbol: spec}, arm)
    assert next(left) == 19 - tried, "every form was read"
    assert f"{spec.symbol}: {20 - tried} instructions of its inner loops touch the stack" in caplog.text
