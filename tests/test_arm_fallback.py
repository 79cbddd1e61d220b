"""Kernels of operators that go through Relax, for ARM: no innermost loop touches the stack, in whatever form they take.

All operators of fallback_cases.py: `pytest -m long tests/test_arm_fallback.py`.
"""

from __future__ import annotations

import itertools
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from fallback_cases import CASES
from native import host_target, link, undefined
from test_relaxed import feeds_of, model_of, run

from edgesparse.building import codegen, registers
from edgesparse.building.assembly import inner_loops
from edgesparse.fallback.apart import apart
from edgesparse.fallback.emit import Form
from edgesparse.fallback.nests import Axis, Function, Nest, Store
from edgesparse.fallback.relaxed import MAX_POINTERS, Part, lower_subgraph
from edgesparse.kernels import Epilogue, Pointwise
from edgesparse.target import Target

#: For this machine's code, in the place of a target's barrier: LLVM moves no memory access across it either.
NOTHING = "llvm.x86.sse2.pause" if platform.machine() == "x86_64" else "llvm.aarch64.hint 32"

#: Operators by target, each of which takes another form there.
HARD = {
    "armv7": ["Softmax 1", "Mod int64", "GridSample"],
    "cortex-a53": ["Erf", "Sinh", "LogSoftmax 1"],
}


def spills_of(name: str, target: Target) -> dict[str, int]:
    """The stack accesses in innermost loops of each kernel of a case, from the code that is shipped."""
    opset, text = CASES[name]
    llvm = target.tvm_target()
    part = lower_subgraph(model_of(text, opset), "v_", llvm, target.barrier)
    assert all(len(names) <= MAX_POINTERS for _, names in part.calls)
    found = {}
    for symbol, func in part.kernels.items():
        asm = codegen.compile_asm({symbol: func}, codegen.plain(llvm) if symbol in part.plain else llvm)
        # Libraries differ in the registers that floats are passed in, but for these.
        calls = re.findall(r"^\s+bl\s+(\w+)", asm, re.MULTILINE)
        assert all(
            re.fullmatch(r"__aeabi_(u?ldivmod|u?l2[df]|[df]2u?lz)|(__aeabi_)?mem(cpy|set|move|clr)\d?", name)
            for name in calls
        ), calls
        found[symbol] = sum(loop.spills for loop in inner_loops(asm))
    return found


@pytest.mark.parametrize(("target", "name"), [(target, name) for target, names in HARD.items() for name in names])
def test_operators_that_take_a_modest_form(target: str, name: str) -> None:
    assert set(spills_of(name, Target.parse(target)).values()) == {0}
    opset, text = CASES[name]
    given = Target.parse(target).tvm_target()
    first = lower_subgraph(model_of(text, opset), "v_", given)  # as they are made first they do touch it
    assert any(loop.spills for loop in inner_loops(codegen.compile_asm(first.kernels, given)))


@pytest.mark.long
@pytest.mark.parametrize("target", ["armv7", "cortex-a53", "aarch64", "cortex-a76"])
def test_no_operator_touches_the_stack(target: str) -> None:
    found = {name: spills_of(name, Target.parse(target)) for name in CASES}
    assert {name: spills for name, spills in found.items() if any(spills.values())} == {}


FORMS = list(Form(4).modest(NOTHING))


def part_in_form(number: int, model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> Part:
    """A model's kernels for this machine, all in one form where they have it, else in the last one before."""

    def taken(_name: str, forms: Iterable[Any], _compiled: Any) -> registers.Held[Any]:
        code: Any = None
        return registers.Held(list(itertools.islice(forms, number + 1))[-1], code, 0)

    monkeypatch.setattr(registers, "least", taken)
    return lower_subgraph(model, "v_", host_target(), NOTHING)


def check_form(number: int, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Part:
    """The results of one form against onnxruntime, with the slack that the first form has."""
    opset, text = CASES[name]
    model = model_of(text, opset)
    part = part_in_form(number, model, monkeypatch)
    code = codegen.compile_object(part.kernels, host_target())
    assert undefined(code, folder) == []
    feeds = feeds_of(model)
    results = run(part, link([code], folder), model, feeds)
    wanted = ort.InferenceSession(model.SerializeToString()).run(None, feeds)
    for result, expected in zip(results, wanted, strict=True):
        assert result.dtype == expected.dtype
        slack = 0.0 if expected.dtype.kind in "biu" else 2e-6 * max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(result.astype(np.float64), expected.astype(np.float64), rtol=0, atol=slack)
    return part


@pytest.mark.parametrize("number", range(1, len(FORMS)))
@pytest.mark.parametrize("name", ["Softmax 1", "GridSample", "ConvTranspose"])
def test_every_form_computes_the_same(number: int, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_form(number, name, tmp_path, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize(
    "number", [number for number, form in enumerate(FORMS) if form.tile and (form.lanes > 1 or form.apart)]
)
@pytest.mark.parametrize("name", CASES)
def test_the_most_modest_forms_of_every_operator(
    number: int, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_form(number, name, tmp_path, monkeypatch)


def test_forms_take_less_and_less() -> None:
    first, *others = FORMS
    assert first == Form(4)
    assert all(form.barrier == NOTHING for form in others)
    assert [form.lanes for form in FORMS] == sorted((form.lanes for form in FORMS), reverse=True)
    assert [form.stack for form in others][1:] == [0] * (len(others) - 1)


def test_what_is_dear_gets_a_loop_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GridSample rounds two coordinates and picks four pixels: workspaces for these, and no load out of range."""
    part = check_form(len(FORMS) - 1, "GridSample", tmp_path, monkeypatch)
    plain = lower_subgraph(model_of(CASES["GridSample"][1]), "v_", host_target())
    assert len(part.buffers) > len(plain.buffers) + 4


def test_what_is_cheap_is_not_cut() -> None:
    from tvm import tirx

    i = tirx.Var("i", "int32")
    x, y = (tirx.decl_buffer((8,), "float32", name) for name in "xy")
    nest = Nest((Axis(i, 8),), (), (Store(y, (i,), x[i] * x[i] + tirx.const(1.0, "float32")),))
    assert apart(Function((x, y), (), (nest,)), 9) is None
    dear = Nest(nest.axes, (), (Store(y, (i,), tirx.exp(x[i]) + tirx.exp(x[i]) * x[i]),))
    cut = apart(Function((x, y), (), (dear,)), 9)
    assert cut is not None
    assert len(cut.nests) == 2, "equal expressions are computed once"
    assert apart(Function((x, y), (), (dear,)), 0) is None
    name = tirx.Var("t", "float32")
    named = Nest(nest.axes, (), (Store(y, (i,), tirx.Let(name, x[i], tirx.exp(name))),))
    assert apart(Function((x, y), (), (named,)), 9) is None


@pytest.mark.parametrize("pixels", [3, 27, 120])
@pytest.mark.parametrize("activation", ["gelu", "tanh"])
def test_long_activations(activation: str, pixels: int) -> None:
    """Their constants do not fit into the registers besides."""
    target = Target.parse("cortex-a53")
    spec = Pointwise("add", "full", pixels, Epilogue(activation), 4, barrier=target.barrier)
    assert registers.held(spec.symbol, spec, target).spills == 0
