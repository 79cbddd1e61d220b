"""TIR to objects: plain C ABI, no undefined symbols, errors that name the function, no TVM at import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native import TARGETS, call, host_target, link, undefined

from edgesparse.building.codegen import compile_asm, compile_object
from edgesparse.errors import CompileError


def scaled(name: str, factor: float) -> Any:
    """y[16 i ..] = exp(factor * x[16 i ..]) for i in [begin, end)."""
    from tvm import tirx
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx.script import builder as T

    with IRBuilder() as build, T.prim_func():
        T.func_name(name)
        x = T.arg("x", T.handle("float32"))
        y = T.arg("y", T.handle("float32"))
        T.arg("a", T.handle("int32"))
        begin, end = T.arg("begin", T.int32()), T.arg("end", T.int32())
        source = T.decl_buffer((1 << 20,), "float32", data=x)
        result = T.decl_buffer((1 << 20,), "float32", data=y)
        with T.serial(begin, end) as i:
            lanes = T.Ramp(i * 16, 1, 16)
            T.buffer_store(result, tirx.exp(source[lanes] * T.Broadcast(T.float32(factor), 16)), [lanes])
    return build.get()


def test_objects_link_together_and_compute(tmp_path: Path) -> None:
    objects = [compile_object({f"es_scale{i}": scaled(f"es_scale{i}", i)}, host_target()) for i in (1, 2)]
    library = link(objects, tmp_path)
    x = np.linspace(-3, 3, 64, dtype=np.float32)
    for i in (1, 2):
        y = np.full_like(x, np.nan)
        call(library, f"es_scale{i}", [x, y], 1, 3)
        assert np.isnan(y[:16]).all()
        assert np.isnan(y[48:]).all()
        np.testing.assert_allclose(y[16:48], np.exp(i * x[16:48]), rtol=3e-7)


@pytest.mark.parametrize("level", TARGETS)
def test_no_undefined_symbols(level: str, tmp_path: Path) -> None:
    assert undefined(compile_object({"k": scaled("k", 1)}, TARGETS[level]), tmp_path) == []


def test_symbol_is_the_key_of_the_mapping() -> None:
    assert "renamed:" in compile_asm({"renamed": scaled("k", 1)}, TARGETS["x86-64-v3"])


def test_failure_names_the_functions() -> None:
    with pytest.raises(CompileError, match="cannot compile broken"):
        compile_object({"broken": scaled("broken", 1)}, {"kind": "llvm", "mtriple": "nonsense-none"})


def test_import_does_not_load_tvm() -> None:
    code = "import sys, edgesparse.building.codegen; sys.exit('tvm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
