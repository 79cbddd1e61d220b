"""The roofline: its probe's sums and code, rates that fall from level to level, and what a layer is bound by."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import numpy as np
import pytest

from edgesparse.building.build import build_kernels
from edgesparse.building.codegen import compile_asm
from edgesparse.building.link import link_objects
from edgesparse.costing.counts import Terms
from edgesparse.kernels import LoadProbe
from edgesparse.kernels.probe import SUMS
from edgesparse.measuring.layerwork import combine
from edgesparse.measuring.roofline import Roofline, level_sizes, measure_roofline
from edgesparse.target import Target

ROOF = Roofline(100.0, {"l1": 400.0, "l2": 200.0, "l3": 100.0, "memory": 10.0})


def test_the_probe_adds_up_what_it_loads(tmp_path: Path) -> None:
    target = Target.parse("native")
    probe = LoadProbe(target.lanes)
    link_objects(list(build_kernels({probe.symbol: probe}, target).values()), tmp_path / "p.so", target.triple)
    x = np.random.default_rng(0).integers(0, 100, (5, SUMS * target.lanes)).astype(np.float32)
    out = np.full(SUMS * target.lanes + 64, np.nan, np.float32)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (x, out, np.array([5], np.int32))]
    getattr(ctypes.CDLL(str(tmp_path / "p.so")), probe.symbol)(*pointers, ctypes.c_int32(0), ctypes.c_int32(3))
    np.testing.assert_array_equal(out[: x.shape[1]], 3 * x.sum(axis=0))
    assert np.isnan(out[x.shape[1] :]).all()


@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v4"])
def test_the_loop_holds_nothing_but_loads_that_are_added(name: str) -> None:
    target = Target.parse(name)
    probe = LoadProbe(target.lanes)
    text = compile_asm({probe.symbol: probe.build()}, target.tvm_target())
    blocks = re.split(r"^\.LBB\w+:", text, flags=re.MULTILINE)
    (loop,) = [block for block in blocks if block.count("\tvaddps\t") >= SUMS and re.search(r"\tj\w+\t", block)]
    vectors = re.findall(r"^\tv\w+.*$", re.split(r"\tj\w+\t", loop)[0], re.MULTILINE)
    assert len(vectors) % SUMS == 0
    assert all(each.startswith("\tvaddps\t") and "(" in each for each in vectors)


def test_a_roofline_is_measured() -> None:
    found = measure_roofline(Target.parse("native"))
    assert found.gflops > 1
    assert found.gbytes["l1"] > found.gbytes["memory"] > 0.1
    assert set(found.as_dict()["bandwidth_gbytes"]) == set(level_sizes(Target.parse("native")))


def test_stretches_lie_in_their_levels() -> None:
    target = Target.parse("native")
    sizes = level_sizes(target)
    assert sizes["l1"] < target.l1d < sizes["l2"] < target.l2 < sizes["l3"] < sizes["memory"]


def test_what_bounds_a_layer() -> None:
    assert ROOF.floor(1e9, {"l1": 4e8, "memory": 1e8}) == {"compute": 0.01, "l1": 0.001, "memory": 0.01}
    assert ROOF.bound(0.012, 1e9, {"l1": 4e8, "memory": 1e7}) == "compute"
    assert ROOF.bound(0.012, 1e8, {"l1": 4e8, "memory": 1e8}) == "memory"
    assert ROOF.bound(0.012, 1e8, {"l2": 1e9}) == "l2"
    assert ROOF.bound(0.1, 1e9, {"l1": 4e8, "memory": 1e8}) == "overhead"


def test_rows_of_a_profile_by_hand() -> None:
    records = [{"name": "a", "kernel": "group:8 tile 3"}, {"name": "b", "kernel": "view"}]
    terms = {"a": Terms({"flops": 50_000_000, "moved.l2": 1000})}
    first, second = combine(records, [0.001, 0.003], terms, ROOF)
    assert (first.share, first.gflops, first.peak_share, first.bound) == (0.25, 50.0, 0.5, "compute")
    assert first.moved == {"l1": 0, "l2": 1000, "l3": 0, "memory": 0}
    assert (second.share, second.flops, second.bound) == (0.75, 0.0, "overhead")
