"""Kernels whose inner loops stay in registers: what LLVM makes of one is read, and made anew of less if it does not.

What a body takes beside its sums (addresses, masks, constants, what LLVM's scheduler moves ahead) is LLVM's to say, and
no rule for how to cut a kernel is right for windows of every shape. So a kernel for a target that is `checked` is
compiled, the assembly of its innermost loops is read, and where they touch the stack its modest forms are tried in
turn, kernels that do the same with the same arguments, less of it at a time; and then all of these with LLVM moving
less (`codegen.plain`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from edgesparse.building import codegen
from edgesparse.building.assembly import inner_loops
from edgesparse.kernels import KernelSpec
from edgesparse.target import Target

Form = TypeVar("Form")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Held(Generic[Form]):
    """The form of a kernel that was taken, its code, and the stack accesses that its innermost loops have left."""

    form: Form
    code: codegen.Code
    spills: int


def held(symbol: str, spec: KernelSpec, target: Target) -> Held[KernelSpec]:
    """The first form of a kernel whose innermost loops do not touch the stack, or the one that does so the least.

    The function is called `symbol`, whatever its form. Raises CompileError.
    """
    llvm = target.tvm_target()
    specs = [spec, *getattr(spec, "modest", ())]
    ways = [(form, way) for way in (llvm, codegen.plain(llvm)) for form in specs]
    found = least(symbol, ways, lambda way: codegen.Code({symbol: way[0].build()}, way[1]))
    return Held(found.form[0], found.code, found.spills)


def least(name: str, forms: Iterable[Form], compiled: Callable[[Form], codegen.Code]) -> Held[Form]:
    """As `held`, of any forms; no more of them are made and compiled than are read.

    Where all touch the stack, that is logged as a warning about `name`.
    """
    best: Held[Form] | None = None
    for form in forms:
        code = compiled(form)
        spills = sum(loop.spills for loop in inner_loops(code.asm()))
        if best is None or spills < best.spills:
            best = Held(form, code, spills)
        if not spills:
            break
    if best is None:
        raise ValueError(f"{name} has no form")
    if best.spills:
        _log.warning("%s: %d instructions of its inner loops touch the stack", name, best.spills)
    return best
