"""The peak probe: its sums against numpy, and its code free of anything but multiply-adds."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import numpy as np
import pytest

from edgesparse.building.build import build_kernels
from edgesparse.building.codegen import compile_asm
from edgesparse.building.link import link_objects
from edgesparse.kernels import Probe
from edgesparse.kernels.probe import SUMS
from edgesparse.measuring.peak import peak_gflops
from edgesparse.target import Target


def test_the_probe_computes_what_it_says(tmp_path: Path) -> None:
    target = Target.parse("native")
    probe = Probe(target.lanes)
    link_objects(list(build_kernels({probe.symbol: probe}, target).values()), tmp_path / "p.so", target.triple)
    x, y = np.full(64, 0.5, np.float32), np.ones(64, np.float32)
    out = np.full(SUMS * target.lanes + 64, np.nan, np.float32)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (x, y, out, np.zeros(1, np.int32))]
    function = getattr(ctypes.CDLL(str(tmp_path / "p.so")), probe.symbol)
    function(*pointers, ctypes.c_int32(0), ctypes.c_int32(3))
    expected = np.repeat(np.arange(SUMS) / 8 + 1.75, target.lanes)
    np.testing.assert_array_equal(out[: expected.size], expected.astype(np.float32))
    assert np.isnan(out[expected.size :]).all()


@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v4"])
def test_the_loop_holds_nothing_but_multiply_adds(name: str) -> None:
    target = Target.parse(name)
    probe = Probe(target.lanes)
    text = compile_asm({probe.symbol: probe.build()}, target.tvm_target())
    blocks = re.split(r"^\.LBB\w+:", text, flags=re.MULTILINE)
    (loop,) = [block for block in blocks if block.count("\tvfmadd") >= SUMS and "\tjne\t" in block]
    vectors = re.findall(r"^\tv\w+", loop.partition("\tjne\t")[0], re.MULTILINE)
    assert len(vectors) % SUMS == 0
    assert all(name.startswith("\tvfmadd") for name in vectors)


def test_a_peak_is_measured() -> None:
    assert peak_gflops(Target.parse("native")) > 1
