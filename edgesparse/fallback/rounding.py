"""Rounding to whole numbers where a machine has no instruction for it: on 32-bit ARM, of a few adds and comparisons.

LLVM calls libm there, `floorf` and its kin, by one of two calling conventions, while kernels are linked with libraries
of both: floats go in registers of their own in the bench program, and in those of integers on Android. So no kernel
calls a function of floats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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

    kind, _, lanes = str(x.ty.dtype).partition("x")
    if kind == "float16":
        wide = "float32" + (f"x{lanes}" if lanes else "")
        return tirx.Cast(str(x.ty.dtype), spelled(name, tirx.Cast(wide, x)))

    def number(value: float) -> Any:
        constant = tirx.const(value, kind)
        return tirx.Broadcast(constant, int(lanes)) if lanes else constant

    # Nothing is bound to a name: TVM meets an expression twice where it stands in a condition. LLVM computes it once.
    zero, one, whole = number(0.0), number(1.0), number(_WHOLE[kind])
    a = absolute(x)
    near = (a + whole) - whole
    below = near - tirx.Select(near > a, one, zero)
    above = near + tirx.Select(near < a, one, zero)
    found = {
        "nearbyint": near,
        "trunc": below,
        "round": below + tirx.Select(a - below >= number(0.5), one, zero),
        "floor": tirx.Select(x < zero, above, below),
        "ceil": tirx.Select(x > zero, above, below),
    }
    return tirx.Select(a < whole, signed(x, found[name]), x)


def _bits(kind: str, lanes: str, expr: Any) -> Any:
    from tvm import tirx

    return tirx.reinterpret(f"{kind}x{lanes}" if lanes else kind, expr)


def _masked(x: Any, sign: bool) -> Any:
    """The bits of a float's sign, or the others, as integers."""
    from tvm import tirx

    kind, _, lanes = str(x.ty.dtype).partition("x")
    whole, top = ("int32", -(2**31)) if kind == "float32" else ("int64", -(2**63))
    mask = tirx.const(top if sign else -(top + 1), whole)
    return _bits(whole, lanes, x) & (tirx.Broadcast(mask, int(lanes)) if lanes else mask)


def absolute(x: Any) -> Any:
    """|x| of float32 or float64."""
    kind, _, lanes = str(x.ty.dtype).partition("x")
    return _bits(kind, lanes, _masked(x, sign=False))


def signed(x: Any, magnitude: Any) -> Any:
    """The sign of x on a magnitude, which is not negative."""
    kind, _, lanes = str(x.ty.dtype).partition("x")
    whole = "int32" if kind == "float32" else "int64"
    return _bits(kind, lanes, _bits(whole, lanes, magnitude) | _masked(x, sign=True))
