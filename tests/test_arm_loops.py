"""The inner loops for ARM, read from their assembly: no spills, few instructions per multiply-add."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from edgesparse.building.assembly import Loop, inner_loops, llvm_mca, predicted_cycles
from edgesparse.building.codegen import compile_asm
from edgesparse.graph.recognise import recognise
from edgesparse.kernels import (
    Attention,
    Depthwise,
    Epilogue,
    Gates,
    GlobalPool,
    Interleave,
    KernelSpec,
    Norm,
    Panel,
    Pointwise,
    Pool,
    Spmm,
    Transpose,
    Window,
)
from edgesparse.lowering.lower import lower
from edgesparse.models import model_path
from edgesparse.planning.decide import Choice, decide
from edgesparse.planning.place import place
from edgesparse.planning.plan import pitch_of
from edgesparse.planning.products import GROUPS, accumulators, tile_widths
from edgesparse.portable import prepare
from edgesparse.recipe import Recipe
from edgesparse.target import TARGETS, Target

#: Presets whose code differs.
ARM = ("aarch64", "cortex-a53", "cortex-a55", "cortex-a72", "cortex-a76", "neoverse-n1", "apple-m1", "armv7")
#: Most instructions per vector multiply-add for each size of group, where a target has 32 registers.
MOST = {4: 1.85, 8: 1.6, 16: 1.6}


#: What makes a tile's loop spill, if anything: sums that go on to an activation, a residual, or straight to memory.
EPILOGUES = (Epilogue(), Epilogue("relu"), Epilogue("relu", (), "before"), Epilogue("silu"))


def product(target: Target, group: int, vectors: int, dense: bool, **changed: Any) -> Spmm:
    """A product that fills whole tiles."""
    spec = Spmm(group, 4 * vectors * target.lanes, vectors, target.lanes, dense, Epilogue("relu"), target.by_lane)
    return replace(spec, few=target.few, **changed)


def loops_of(spec: KernelSpec, target: Target) -> list[Loop]:
    return inner_loops(compile_asm({spec.symbol: spec.build()}, target.tvm_target()))


def loops(target: str, group: int, vectors: int, dense: bool) -> list[Loop]:
    """The loops over the non-zeros of a product."""
    chosen = Target.parse(target)
    return [loop for loop in loops_of(product(chosen, group, vectors, dense), chosen) if loop.multiply_adds >= 4]


def check(target: str, group: int, vectors: int, dense: bool, *, widest: bool, **changed: Any) -> None:
    chosen = Target.parse(target)
    found = loops_of(product(chosen, group, vectors, dense, **changed), chosen)
    counted = [loop for loop in found if loop.multiply_adds]
    assert counted, "there is a loop over the non-zeros"
    for loop in found:
        assert loop.spills == 0, "\n".join(loop.body)
    for loop in counted:
        if widest and group in MOST and chosen.registers == 32:
            assert loop.per_multiply_add <= MOST[group]


@pytest.mark.parametrize("target", ["aarch64", "cortex-a55", "armv7"])
@pytest.mark.parametrize("group", [4, 8])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("groups_outer", [False, True])
def test_widest_tiles_do_not_spill(target: str, group: int, dense: bool, groups_outer: bool) -> None:
    widest = tile_widths(group, accumulators(Target.parse(target)))[0]
    check(target, group, widest, dense, widest=True, groups_outer=groups_outer, epilogue=EPILOGUES[0])


@pytest.mark.long
@pytest.mark.parametrize("target", ARM)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("dense", [False, True])
def test_no_tile_that_is_ever_placed_spills(target: str, group: int, dense: bool) -> None:
    most = accumulators(Target.parse(target))
    if group > most:
        pytest.skip("such groups are not placed")
    widest = tile_widths(group, most)[0]
    for vectors, epilogue, outer in itertools.product(range(1, widest + 1), EPILOGUES, (False, True)):
        if group * vectors >= 4 and not (dense and group < 4):
            check(target, group, vectors, dense, widest=vectors == widest, groups_outer=outer, epilogue=epilogue)


#: Bands of MobileNet-v1: kernel, stride, image width, rows.
BANDS = [(3, 1, 112, 1), (3, 1, 112, 2), (3, 1, 56, 4), (3, 1, 28, 7), (3, 1, 14, 14), (3, 1, 7, 7), (3, 2, 112, 2)]


def window_of(band: tuple[int, int, int, int], *, flat: bool = False) -> Window:
    kernel, stride, width, rows = band
    pad, columns = kernel // 2, (width - 1) // stride + 1
    return Window((kernel, kernel), (stride, stride), (1, 1), pad, pad, width, columns, rows, flat)


def spilled(spec: KernelSpec, target: Target) -> list[str]:
    """The instructions of a kernel's innermost loops that touch the stack."""
    found = loops_of(spec, target)
    assert found, spec.symbol
    return [line for loop in found for line in loop.stack]


@pytest.mark.parametrize("band", BANDS)
def test_depthwise_bodies_hold_their_sums_and_weights(band: tuple[int, int, int, int]) -> None:
    """A body is all taps of a chunk, unrolled: without fences up to a quarter of its instructions moved inputs to the
    stack and back.
    """
    target, (kernel, stride, _, _) = Target.parse("aarch64"), band
    spec = Depthwise(
        window_of(band), Epilogue("relu"), target.lanes, accumulators(target), 1, True, barrier=target.barrier
    )
    (loop, *more) = loops_of(spec, target)
    assert loop.spills == 0
    if not more:
        sums = sum(block.rows * len(run.offsets) for block in spec.cut for run in block.runs)
        assert len(loop.body) <= (2.4, 3.4)[stride - 1] * kernel**2 * sums + 60


def families(target: Target) -> list[KernelSpec]:
    """Each family that is placed for ARM, in the shapes that need the most registers."""
    lanes, most, barrier, few = target.lanes, accumulators(target), target.barrier, target.few
    found: list[KernelSpec] = []
    windows = [
        (window_of((3, 1, 56, 4)), Epilogue("silu")),
        (window_of((3, 2, 28, 14)), Epilogue("hardswish")),
        (window_of((5, 1, 28, 7)), Epilogue("relu")),
        (window_of((5, 2, 28, 7)), Epilogue("relu")),
        (window_of((3, 1, 6, 6), flat=not few), Epilogue()),
    ]
    for window, epilogue in windows:
        found.append(Depthwise(window, epilogue, lanes, most, 1, True, barrier=barrier, few=few))
    for band in [(7, 2, 224, 1), (3, 2, 14, 7), (3, 1, 64, 4)]:
        window = window_of(band)
        found.append(Panel(window, lanes, False, barrier, pitch_of(window.rows * window.width_out), few))
    found += [Pool(window_of(band), "max", lanes, most, barrier, few) for band in [(3, 2, 112, 2), (5, 1, 16, 16)]]
    found.append(Interleave((2, 2), 64, lanes, barrier))
    found += [
        Pointwise("mul", "full", 196, Epilogue("silu"), lanes, False, barrier),
        GlobalPool("avg", lanes),
        Transpose(lanes),
    ]
    squashed = (Epilogue("sigmoid"), Epilogue("tanh"), Epilogue("tanh"))
    for kind, hidden, peephole in [("lstm", 64, True), ("lstm", 33, False), ("gru", 64, False), ("gru0", 33, False)]:
        found.append(Gates(kind, hidden, squashed, lanes, peephole, barrier))
    block = 8 if most >= 16 else 4
    for mask in ("keys", "queries"):
        found.append(Attention(128, 128, 32, 32, 0.25, mask, block, most // block, lanes, barrier, few))
    return [*found, Norm(128, lanes, 1e-5)]


@pytest.mark.parametrize("target", ["aarch64", "cortex-a55", "armv7"])
def test_no_family_spills_in_an_innermost_loop(target: str) -> None:
    """Read: depthwise (with steps of two, long activations, whole planes), panels, pooling, interleaving,
    elementwise, global pooling, transposition, gates, layer norm, attention. Products have tests of their own above.
    """
    chosen = Target.parse(target)
    assert {spec.symbol: lines for spec in families(chosen) if (lines := spilled(spec, chosen))} == {}


def test_what_is_left_over_does_not_spill_on_armv7() -> None:
    """Single pixels behind the tiles, one pixel alone, and tiles whose groups may be without any weight."""
    target = Target.parse("armv7")
    for pixels, dense, outer in [(49, False, False), (49, True, False), (49, False, True), (1, False, False)]:
        check("armv7", 8, 1, dense, widest=False, pixels=pixels, groups_outer=outer)
    empty = product(target, 8, 1, False, pixels=196, groups_outer=True, epilogue=Epilogue())
    assert spilled(empty, target) == []


@pytest.mark.long
@pytest.mark.parametrize("network", ["mobilenet-v1", "mobilenet-v2", "mobilenet-v3", "efficientnet-lite0", "resnet18"])
@pytest.mark.parametrize("target", ARM)
def test_no_kernel_of_a_network_spills_in_an_innermost_loop(target: str, network: str) -> None:
    """Every kernel that the network places, dense and sparse, whatever its family."""
    chosen, path = Target.parse(target), model_path(network)
    graph = recognise(prepare(path, Recipe.from_dict({"pattern": "group:8x1", "density": 0.1})))
    layout = decide(graph, chosen, Choice(None, None)).plan
    specs: dict[str, KernelSpec] = {}
    for dense in (False, True):
        specs |= lower(graph, layout, place(graph, layout, chosen, dense=dense), {}, chosen).kernels
    assert {symbol: lines for symbol, spec in specs.items() if (lines := spilled(spec, chosen))} == {}


#: A loop within a loop, as LLVM turns them around: the outer one's end stands first, and saves an address on the stack.
NESTED = """
f:
	sub	sp, sp, #32
	b	.LBB0_2
.LBB0_1:
	str	x9, [sp, #8]
	cbz	x9, .LBB0_4
.LBB0_2:
	add	x10, sp, #16
.LBB0_3:
	ldr	q0, [x0], #16
	fmla	v1.4s, v0.4s, v2.s[0]
	{line}
	subs	x8, x8, #1
	b.ne	.LBB0_3
	b	.LBB0_1
.LBB0_4:
	ret
"""


@pytest.mark.parametrize(
    ("line", "spills"),
    [("str q1, [x1]", 0), ("str q1, [sp]", 1), ("ldp x1, x2, [sp, #8]", 1), ("ldr q3, [x10]", 1), ("mov x3, x10", 0)],
)
def test_the_reader_tells_the_stack_from_other_memory(line: str, spills: int) -> None:
    (loop,) = inner_loops(NESTED.replace("{line}", line))
    assert (loop.multiply_adds, loop.spills, len(loop.body)) == (1, spills, 5)


def test_the_reader_goes_on_behind_a_conditional_return() -> None:
    lines = [
        "cmp r0, r1",
        "popge {r4, pc}",
        ".LBB0_1:",
        "ldr r2, [sp]",
        "subs r0, r0, #1",
        "bne .LBB0_1",
        "pop {r4, pc}",
    ]
    (loop,) = inner_loops("f:\n" + "".join(line + "\n" if line[0] == "." else f"\t{line}\n" for line in lines))
    assert loop.stack == ("\tldr r2, [sp]",)


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
