"""The types and bits of TVM's expressions of floats, of one lane or of many."""

from __future__ import annotations

from typing import Any


def kind_of(expr: Any) -> str:
    """The type of one lane."""
    return str(expr.ty.dtype).split("x")[0]


def lanes_of(expr: Any) -> str:
    """What the type's name says of lanes: nothing, or e.g. x16."""
    name = str(expr.ty.dtype)
    return "x" + name.split("x")[1] if "x" in name else ""


def same(value: float | int, like: Any, of: str | None = None) -> Any:
    """A constant of the type of `like`, or of another kind with its lanes."""
    from tvm import tirx

    constant = tirx.const(value, of or kind_of(like))
    count = lanes_of(like)
    return tirx.Broadcast(constant, int(count[1:])) if count else constant


def bits_as(expr: Any, to: str) -> Any:
    """The same bits as another kind."""
    from tvm import tirx

    return tirx.reinterpret(to + lanes_of(expr), expr)


def absolute(x: Any) -> Any:
    """|x| of float32 or float64."""
    return bits_as(_masked(x, sign=False), kind_of(x))


def signed(x: Any, magnitude: Any) -> Any:
    """The sign of x on a magnitude, which is not negative."""
    return bits_as(bits_as(magnitude, _whole(x)) | _masked(x, sign=True), kind_of(x))


def _whole(x: Any) -> str:
    return "int32" if kind_of(x) == "float32" else "int64"


def _masked(x: Any, sign: bool) -> Any:
    """The bits of a float's sign, or the others, as integers."""
    top = -(2**31) if kind_of(x) == "float32" else -(2**63)
    return bits_as(x, _whole(x)) & same(top if sign else -(top + 1), x, _whole(x))
