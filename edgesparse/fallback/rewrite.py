"""Expressions of TIR: rewriting, 32-bit indices, linear forms. TVM has no mutator for Python; this is a small one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

#: Calls that cost more than a few instructions a lane.
EXPENSIVE = frozenset(
    [
        *("tirx.exp", "tirx.exp2", "tirx.exp10", "tirx.log", "tirx.log1p", "tirx.log10", "prim.log2", "tirx.pow"),
        *("tirx.tanh", "tirx.sigmoid", "tirx.erf", "tirx.sqrt", "tirx.rsqrt", "tirx.fmod", "tirx.sin", "tirx.cos"),
        *("tirx.tan", "tirx.atan", "tirx.sinh", "tirx.cosh"),
    ]
)

_INDEX = ("Add", "Sub", "Mul", "FloorDiv", "FloorMod", "Div", "Mod", "Min", "Max")


def children(expr: Any) -> list[Any]:
    """The sub-expressions of an expression; the indices of a load, not its buffer."""
    for names in (("a", "b"), ("condition", "true_value", "false_value"), ("value", "body"), ("value",), ("a",)):
        if all(hasattr(expr, name) for name in names) and not _is(expr, "IntImm", "FloatImm"):
            return [getattr(expr, name) for name in names]
    if _is(expr, "TensorLoad"):
        return list(expr.indices)
    if _is(expr, "Call"):
        return list(expr.args)
    return []


def walk(expr: Any) -> Iterator[Any]:
    """All nodes of an expression, parents first."""
    yield expr
    for child in children(expr):
        yield from walk(child)


def loads(expr: Any) -> list[Any]:
    """All loads in an expression."""
    return [node for node in walk(expr) if _is(node, "TensorLoad")]


def mentions(expr: Any, variables: Sequence[Any]) -> bool:
    return any(_is(node, "Var") and any(node.same_as(v) for v in variables) for node in walk(expr))


def _is(expr: Any, *names: str) -> bool:
    return type(expr).__name__ in names


def dtype_of(expr: Any) -> str:
    return str(expr.ty.dtype)


Load = Callable[[Any, list[Any]], Any]


def substitute(expr: Any, variables: Mapping[Any, Any], load: Load | None = None) -> Any:
    """Replace variables, and loads by what `load(buffer, rewritten indices)` gives (None keeps the load)."""
    from tvm import tirx

    def visit(node: Any) -> Any:
        if _is(node, "Var"):
            return variables.get(node, node)
        if _is(node, "TensorLoad"):
            indices = [visit(index) for index in node.indices]
            made = load(node.source, indices) if load else None
            return tirx.BufferLoad(node.source, indices) if made is None else made
        return rebuilt(node, [visit(child) for child in children(node)])

    return visit(expr)


def rebuilt(node: Any, parts: list[Any]) -> Any:
    """A node with other children."""
    from tvm import ir, tirx

    if not parts or all(new.same_as(old) for new, old in zip(parts, children(node), strict=True)):
        return node
    if _is(node, "Cast"):
        return tirx.Cast(dtype_of(node), parts[0])
    if _is(node, "Call"):
        return ir.Call(node.op, parts, node.attrs, node.ty_args, node.span, dtype_of(node))
    if _is(node, "Let"):
        return tirx.Let(node.var, *parts)
    if _is(node, "Broadcast"):
        return tirx.Broadcast(parts[0], node.lanes)
    return type(node)(*parts)


def narrowed(expr: Any, variables: Mapping[Any, Any]) -> Any:
    """A value with its loop variables replaced by 32-bit ones, and all index arithmetic in 32 bits."""
    from tvm import tirx

    def pure(node: Any) -> bool:
        """Made of loop variables and constants alone."""
        if _is(node, "Var"):
            return node in variables
        if _is(node, "IntImm"):
            return abs(int(node.value)) < 2**31
        return (
            (_is(node, *_INDEX) or _is(node, "Cast"))
            and all(pure(child) for child in children(node))
            and (dtype_of(node) in ("int32", "int64"))
        )

    def value(node: Any) -> Any:
        kind = dtype_of(node)
        if _is(node, "Var"):
            new = variables.get(node)
            return node if new is None else tirx.Cast(kind, new) if kind != dtype_of(new) else new
        if _is(node, "TensorLoad"):
            return tirx.BufferLoad(node.source, [index(part) for part in node.indices])
        if kind == "int64" and not _is(node, "IntImm") and pure(node):
            return tirx.Cast("int64", index(node))
        parts = children(node)
        if _is(node, "EQ", "NE", "LT", "LE", "GT", "GE") and all(pure(part) for part in parts):
            return type(node)(*(index(part) for part in parts))
        made = [value(part) for part in parts]
        if _is(node, "Cast") and kind == "float16" and dtype_of(made[0]) == "float64":
            made = [tirx.Cast("float32", made[0])]  # LLVM would call a library
        if _is(node, "Mod") and kind.startswith("float"):
            return tirx.fmod(*made)  # LLVM would call a library
        return rebuilt(node, made)

    def index(node: Any) -> Any:
        if _is(node, "Var") and node in variables:
            return variables[node]
        if _is(node, "IntImm") and abs(int(node.value)) < 2**31:
            return tirx.IntImm("int32", int(node.value))
        if _is(node, *_INDEX) and dtype_of(node) in ("int32", "int64"):
            return type(node)(*(index(part) for part in children(node)))
        if _is(node, "Select"):
            return tirx.Select(value(node.condition), index(node.true_value), index(node.false_value))
        if _is(node, "Call") and node.op.name == "prim.if_then_else":
            return tirx.if_then_else(value(node.args[0]), index(node.args[1]), index(node.args[2]))
        if _is(node, "Cast") and dtype_of(node.value) in ("int32", "int64"):
            return index(node.value)
        made = value(node)
        return made if dtype_of(made) == "int32" else tirx.Cast("int32", made)

    return value(expr)


def linear(expr: Any, variables: Sequence[Any]) -> tuple[list[int], Any] | None:
    """Coefficients of `variables` in an index and its rest, or None where it is not linear in them."""
    from tvm import sym

    if not variables:
        return [], expr
    parts = list(sym.detect_linear_equation(expr, list(variables)))
    if not parts or not all(_is(part, "IntImm") for part in parts[:-1]):
        return None
    return [int(part.value) for part in parts[:-1]], parts[-1]


def simplified(expr: Any, extents: Mapping[Any, int]) -> Any:
    """Simplify under ``0 <= variable < extent``."""
    from tvm import ir, sym

    analyzer = sym.Analyzer()
    for variable, extent in extents.items():
        analyzer.bind(variable, ir.Range(0, extent))
    return analyzer.simplify(expr)


def cost(expr: Any) -> int:
    """How dear it is to compute a value once more: 0 cheap, else the number of dear steps."""
    total = 0
    for node in walk(expr):
        if _is(node, "Call"):
            total += node.op.name in EXPENSIVE or node.op.name == "prim.if_then_else"
        elif _is(node, "Div", "Let"):
            total += 1
    return total + max(0, len(loads(expr)) - 3)


def steps_of_index(index: Any, variable: Any) -> int | None:
    """The coefficient of a variable in an index, or None where it is not linear in it."""
    found = linear(index, [variable])
    return None if found is None else found[0][0]
