"""Kernels whose inner loops stay in registers: what LLVM makes of one is read, and made anew of less if it does not.

What a body takes beside its sums (addresses, masks, constants, what LLVM's scheduler moves ahead) is LLVM's to say, and
no rule for how to cut a kernel is right for windows of every shape. So a kernel for a target that is `checked` is
compiled, the assembly of its innermost loops is read, and where they touch the stack its modest forms are tried in
turn: kernels that do the same with the same arguments, less of it at a time.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from edgesparse.building import codegen
from edgesparse.building.assembly import inner_loops
from edgesparse.kernels import KernelSpec
from edgesparse.target import Target


@dataclass(frozen=True)
class Held:
    """The form of a kernel that was taken, its code, and the stack accesses that its innermost loops have left."""

    form: KernelSpec
    code: codegen.Code
    spills: int


def held(symbol: str, spec: KernelSpec, target: Target) -> Held:
    """The first form of a kernel whose innermost loops do not touch the stack, or the one that does so the least.

    The function is called `symbol`, whatever its form. Raises CompileError.
    """
    forms = itertools.chain([spec], getattr(spec, "modest", ()))
    found = (_compiled(symbol, form, target) for form in forms)
    best = next(found)
    while best.spills:
        other = next(found, None)
        if other is None:
            break
        best = min(best, other, key=lambda each: each.spills)
    return best


def _compiled(symbol: str, form: KernelSpec, target: Target) -> Held:
    code = codegen.Code({symbol: form.build()}, target.tvm_target())
    return Held(form, code, sum(loop.spills for loop in inner_loops(code.asm())))
