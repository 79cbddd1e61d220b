"""Rounding to whole numbers where a machine has no instruction for it: on 32-bit ARM, of a few adds and comparisons.

LLVM calls libm there, `floorf` and its kin, by one of two calling conventions, while kernels are linked with libraries
of both: floats go in registers of their own in the bench program, and in those of integers on Android. So no kernel
calls a function of floats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgesparse.fallback.bits import absolute, kind_of, lanes_of, same, signed

#: Every float is whole from here on; adding it to what is smaller rounds to the nearest whole number, ties to even.
_WHOLE = {"float32": float(1 << 23), "float64": float(1 << 52)}

#: What this module lowers, with TVM's names of it.
NAMES = {
    "floor": "tirx.floor",
    "ceil": "prim.ceil",
    "trunc": "tirx.trunc",
    "round": "tirx.round",
    "nearbyint": "tirx.nearbyint",
}


def rule(name: str) -> Callable[[Any], Any]:
    """TVM's lowering rule of a rounding function: LLVM's intrinsic, or for 32-bit ARM arithmetic."""

    def lower(call: Any) -> Any:
        from tvm import tirx

        if missing():
            return spelled(name, call.args[0])
        return tirx.call_llvm_pure_intrin(str(call.ty.dtype), f"llvm.{name}", call.args[0])

    return lower


def missing() -> bool:
    """Whether the target that code is made for has no instruction for it."""
    from tvm import target

    bound = target.Target.current(allow_none=True)
    return bound is not None and str(bound.attrs.get("mtriple", "")).startswith("armv7")


def spelled(name: str, x: Any) -> Any:
    """The function `name` of an expression, without a call; exact, for zeros of both signs and infinities too.

    To be made when TVM simplifies no more: it takes floats for numbers that do not round.
    """
    from tvm import tirx

    if kind_of(x) == "float16":
        wide = "float32" + lanes_of(x)
        return tirx.Cast(str(x.ty.dtype), spelled(name, tirx.Cast(wide, x)))
    # Nothing is bound to a name: TVM meets an expression twice where it stands in a condition. LLVM computes it once.
    zero, one, whole = same(0.0, x), same(1.0, x), same(_WHOLE[kind_of(x)], x)
    a = absolute(x)
    near = (a + whole) - whole
    below = near - tirx.Select(near > a, one, zero)
    above = near + tirx.Select(near < a, one, zero)
    found = {
        "nearbyint": near,
        "trunc": below,
        "round": below + tirx.Select(a - below >= same(0.5, x), one, zero),
        "floor": tirx.Select(x < zero, above, below),
        "ceil": tirx.Select(x > zero, above, below),
    }
    return tirx.Select(a < whole, signed(x, found[name]), x)
