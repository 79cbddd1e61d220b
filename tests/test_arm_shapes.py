"""Layers of any shape for ARM: no innermost loop of their kernels touches the stack.

More of them: `pytest -m long tests/test_arm_shapes.py --shapes 200`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
from shapes import KINDS, random_network

from edgesparse.building import codegen, registers
from edgesparse.building.assembly import inner_loops
from edgesparse.graph.ops import Fallback
from edgesparse.graph.recognise import recognise
from edgesparse.kernels import Depthwise, Epilogue, Interleave, KernelSpec, Panel, Pointwise, Pool, Spmm, Window
from edgesparse.lowering.lower import Part, lower
from edgesparse.planning.decide import Choice, decide
from edgesparse.planning.place import place
from edgesparse.planning.plan import pitch_of
from edgesparse.planning.products import accumulators
from edgesparse.portable import prepare
from edgesparse.target import Target


def kernels_of(model: onnx.ModelProto, target: Target, folder: Path) -> dict[str, KernelSpec]:
    """All kernels that a network places, dense and sparse; what goes through Relax has none."""
    path = folder / "model.onnx"
    onnx.save(model, path)
    graph = recognise(prepare(path, None))
    layout = decide(graph, target, Choice(None, None)).plan
    parts = {op.name: Part((), {}, {}, ()) for op in graph.ops if isinstance(op, Fallback)}
    found: dict[str, KernelSpec] = {}
    for dense in (False, True):
        found |= lower(graph, layout, place(graph, layout, target, dense=dense), parts, target).kernels
    return found


#: Windows whose kernels touched the stack as they are made first, for one target or another.
WINDOWS = {
    "depthwise armv7": [
        Window((5, 5), (3, 3), (1, 1), 1, 2, 46, 15, 5),
        Window((3, 3), (1, 1), (3, 3), 1, 0, 14, 9, 11),
    ],
    "panel armv7": [Window((5, 5), (2, 2), (1, 1), 2, 2, 30, 15, 8), Window((6, 6), (2, 2), (1, 1), 2, 2, 55, 27, 10)],
    "pool armv7": [Window((6, 6), (3, 3), (1, 1), 1, 3, 43, 14, 7)],
    "depthwise aarch64": [Window((2, 6), (1, 2), (1, 1), 0, 2, 10, 5, 18)],
    "depthwise cortex-a53": [Window((3, 3), (2, 2), (1, 1), 1, 0, 7, 3, 16)],
    "panel cortex-a76": [Window((4, 4), (2, 2), (1, 1), 1, 1, 38, 19, 9)],
    "pool cortex-a53": [Window((2, 2), (2, 2), (1, 1), 1, 1, 7, 4, 10)],
}


def windowed(kind: str, window: Window, target: Target) -> KernelSpec:
    lanes, most, barrier, few = target.lanes, accumulators(target), target.barrier, target.few
    if kind == "depthwise":
        return Depthwise(window, Epilogue("relu"), lanes, most, 1, True, barrier=barrier, few=few)
    if kind == "panel":
        return Panel(window, lanes, False, barrier, pitch_of(window.rows * window.width_out), few)
    return Pool(window, "avg", lanes, most, barrier, few)


@pytest.mark.parametrize("case", WINDOWS)
def test_windows_that_take_a_modest_form(case: str) -> None:
    kind, name = case.split()
    target = Target.parse(name)
    for window in WINDOWS[case]:
        spec = windowed(kind, window, target)
        assert registers.held(spec.symbol, spec, target).spills == 0, spec


PRODUCTS = [
    # single pixels, in loops that LLVM unrolls for in-order cores, and in loops for none
    ("cortex-a53", Spmm(4, 65, 6, 4, False, Epilogue(), True)),
    ("cortex-a53", Spmm(4, 1, 5, 4, False, Epilogue("sigmoid"), True)),
    ("cortex-a53", Spmm(3, 1, 1, 4, True, Epilogue("relu"), True)),
    ("armv7", Spmm(2, 1, 1, 4, True, Epilogue("leaky", (0.01,)), True, few=True)),
    ("armv7", Spmm(3, 5, 1, 4, True, Epilogue(), True, few=True)),
    # calls of memcpy in a loop that was unrolled around them
    *(("cortex-a53", Pointwise("first", "none", n, Epilogue(), 4, barrier="llvm.aarch64.hint 32")) for n in (90, 117)),
    # loops over vectors that are unrolled for in-order cores
    ("cortex-a53", Pointwise("add", "full", 312, Epilogue("relu"), 4, barrier="llvm.aarch64.hint 32")),
    ("armv7", Interleave((2, 2), 30, 4, "llvm.arm.hint 0")),
]


@pytest.mark.parametrize(("name", "spec"), PRODUCTS, ids=lambda each: getattr(each, "symbol", each))
def test_products_and_copies(name: str, spec: KernelSpec) -> None:
    target = Target.parse(name)
    assert registers.held(spec.symbol, spec, target).spills == 0


@pytest.mark.long
@pytest.mark.parametrize("kind", sorted(set(KINDS)))
@pytest.mark.parametrize("name", ["aarch64", "cortex-a53", "cortex-a76", "armv7"])
def test_no_kernel_of_any_shape_touches_the_stack(
    name: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    target, seen = Target.parse(name), dict[str, int]()
    numbers = (number for number in range(10**6) if KINDS[number % len(KINDS)] == kind)
    for _ in range(request.config.getoption("--shapes")):
        for symbol, spec in kernels_of(random_network(next(numbers)), target, tmp_path).items():
            if symbol not in seen:
                seen[symbol] = registers.held(symbol, spec, target).spills
    assert seen
    assert {symbol: spills for symbol, spills in seen.items() if spills} == {}


@dataclass(frozen=True)
class Made:
    """A kernel of so many stack accesses, with its modest forms."""

    spills: int
    modest: tuple[Made, ...] = ()

    def build(self) -> Any:
        return self.spills


@pytest.mark.parametrize(
    ("spills", "taken", "made"), [((0, 0), 0, 1), ((3, 1, 0, 0), 2, 3), ((3, 1, 2), 1, 6), ((2,), 0, 2), ((1, 1), 0, 4)]
)
def test_the_first_form_without_is_taken_or_the_least(
    spills: tuple[int, ...], taken: int, made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    class Code:
        def __init__(self, funcs: dict[str, int], target: Any) -> None:
            compiled.append(funcs["k"])

        def asm(self) -> str:
            return "k:\n.L0:\n" + "\tldr r0, [sp]\n" * compiled[-1] + "\tsubs r1, r1, #1\n\tbne .L0\n\tbx lr\n"

    monkeypatch.setattr(codegen, "Code", Code)
    forms = tuple(Made(count) for count in spills[1:])
    spec: Any = Made(spills[0], forms)
    found = registers.held("k", spec, Target.parse("armv7"))
    assert (found.form, found.spills) == ((spec, *forms)[taken], spills[taken])
    assert len(compiled) == made


def test_the_code_has_the_name_that_is_called() -> None:
    """Whatever form was taken."""
    target = Target.parse("armv7")
    spec = windowed("depthwise", WINDOWS["depthwise armv7"][0], target)
    found = registers.held(spec.symbol, spec, target)
    assert found.form != spec
    assert f"\n{spec.symbol}:" in found.code.asm()
    assert not [loop for loop in inner_loops(found.code.asm()) if loop.spills]
