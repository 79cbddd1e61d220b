"""The inner loops for ARM, read from their assembly: no spills, few instructions per multiply-add."""

from __future__ import annotations

import re

import pytest

from edgesparse.building.assembly import Loop, inner_loops, llvm_mca, predicted_cycles
from edgesparse.building.codegen import compile_asm
from edgesparse.kernels import Depthwise, Epilogue, Spmm, Window
from edgesparse.planning.place import GROUPS, accumulators, tile_widths
from edgesparse.target import TARGETS, Target

#: Presets whose code differs.
ARM = ("aarch64", "cortex-a53", "cortex-a55", "cortex-a72", "cortex-a76", "neoverse-n1", "apple-m1", "armv7")
#: Most instructions per vector multiply-add for each size of group, where a target has 32 registers.
MOST = {4: 1.85, 8: 1.6, 16: 1.6}


def loops(target: str, group: int, vectors: int, dense: bool, epilogue: str = "relu") -> list[Loop]:
    chosen = Target.parse(target)
    pixels = 4 * vectors * chosen.lanes
    spec = Spmm(group, pixels, vectors, chosen.lanes, dense, Epilogue(epilogue), chosen.by_lane)
    return inner_loops(compile_asm({spec.symbol: spec.build()}, chosen.tvm_target()))


def check(target: str, group: int, vectors: int, dense: bool, *, widest: bool) -> None:
    found = loops(target, group, vectors, dense)
    assert found, "there is a loop over the non-zeros"
    for loop in found:
        assert loop.spills == 0, "\n".join(loop.body)
        if widest and group in MOST and Target.parse(target).registers == 32:
            assert loop.per_multiply_add <= MOST[group]


@pytest.mark.parametrize("target", ["aarch64", "cortex-a55", "armv7"])
@pytest.mark.parametrize("group", [4, 8])
@pytest.mark.parametrize("dense", [False, True])
def test_widest_tiles_do_not_spill(target: str, group: int, dense: bool) -> None:
    check(target, group, tile_widths(group, accumulators(Target.parse(target)))[0], dense, widest=True)


@pytest.mark.long
@pytest.mark.parametrize("target", ARM)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("dense", [False, True])
def test_no_tile_that_is_ever_placed_spills(target: str, group: int, dense: bool) -> None:
    most = accumulators(Target.parse(target))
    if group > most:
        pytest.skip("such groups are not placed")
    widest = tile_widths(group, most)[0]
    for vectors in range(1, widest + 1):
        if group * vectors >= 4 and not (dense and group < 4):
            check(target, group, vectors, dense, widest=vectors == widest)


#: Bands of MobileNet-v1: kernel, stride, image width, rows.
BANDS = [(3, 1, 112, 1), (3, 1, 112, 2), (3, 1, 56, 4), (3, 1, 28, 7), (3, 1, 14, 14), (3, 1, 7, 7), (3, 2, 112, 2)]


@pytest.mark.parametrize("band", BANDS)
def test_depthwise_bodies_hold_their_sums_and_weights(band: tuple[int, int, int, int]) -> None:
    """A body is all taps of a chunk, unrolled. What little is put on the stack in it are inputs that LLVM moved
    up; unrolled over a whole map it was a quarter of all instructions.
    """
    kernel, stride, width, rows = band
    pad, columns = kernel // 2, (width - 1) // stride + 1
    window = Window((kernel, kernel), (stride, stride), (1, 1), pad, pad, width, columns, rows)
    target = Target.parse("aarch64")
    spec = Depthwise(window, Epilogue("relu"), target.lanes, accumulators(target), by_lane=target.by_lane)
    lines = function_lines(compile_asm({spec.symbol: spec.build()}, target.tvm_target()), spec.symbol)
    touches = sum(bool(re.search(r"\b[qsv]\d+.*\[sp\b", line)) for line in lines)
    assert touches <= 0.08 * len(lines)
    sums = sum(block.rows * len(run.offsets) for block in spec.cut for run in block.runs)
    assert len(lines) <= (2.4, 3.4)[stride - 1] * kernel**2 * sums + 60


def function_lines(asm: str, symbol: str) -> list[str]:
    """The instructions of a function."""
    body = asm[asm.index(f"\n{symbol}:") :].split(".Lfunc_end")[0]
    lines = [line.split("//")[0].rstrip() for line in body.splitlines()]
    return [line for line in lines if re.match(r"\s+[a-z]", line)]


def test_armv7_has_fused_multiply_adds() -> None:
    (loop, *_) = loops("armv7", 4, 2, False)
    assert loop.multiply_adds == 8
    assert loop.per_multiply_add <= 2.5


@pytest.mark.skipif(llvm_mca() is None, reason="needs llvm-mca (apt-get install llvm-19)")
@pytest.mark.parametrize(("group", "vectors"), [(4, 6), (8, 3)])
@pytest.mark.parametrize("dense", [False, True])
def test_cycles_by_the_models_of_two_cores(group: int, vectors: int, dense: bool) -> None:
    """Multiply-adds per cycle: an N1 (as an A76) starts two in a cycle, an A55 one of 128 bits."""
    big = max(loops("aarch64", group, vectors, dense), key=lambda loop: loop.multiply_adds)
    assert big.multiply_adds / predicted_cycles(big, "neoverse-n1") / 2 >= 0.93
    small = max(loops("cortex-a55", group, vectors, dense), key=lambda loop: loop.multiply_adds)
    assert small.multiply_adds / predicted_cycles(small, "cortex-a55") >= 0.65


def test_presets_differ_only_where_they_must() -> None:
    for preset in TARGETS:
        if preset.runner == "device":
            assert preset.by_lane
            assert preset.lanes == 4
