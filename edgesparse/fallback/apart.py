"""Maps cut into several: what is dear gets a loop and a workspace of its own, so that every loop has little to hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from edgesparse.fallback import rounding
from edgesparse.fallback.nests import Function, Nest, Store
from edgesparse.fallback.rewrite import EXPENSIVE, children, dtype_of, loads, rebuilt, walk

_DIVISIONS = ("Div", "Mod", "FloorDiv", "FloorMod")


def apart(function: Function, most: int) -> Function | None:
    """The same function with its dear expressions computed ahead, each into an intermediate.

    Returns None where there are none, or where that would take more than `most` intermediates.
    """
    nests: list[Nest] = []
    temps = list(function.temps)
    for nest in function.nests:
        for piece in _pieces(nest) if nest.is_map else [nest]:
            if piece is not nest and piece.stores[0].buffer not in nest.written:
                temps.append(piece.stores[0].buffer)
            nests.append(piece)
    if len(nests) == len(function.nests) or len(temps) > most:
        return None
    return replace(function, nests=tuple(nests), temps=tuple(temps))


def _pieces(nest: Nest) -> Iterator[Nest]:
    """The nests that compute the dear expressions of a map, inner ones first, then the map."""
    from tvm import tirx
    from tvm_ffi import structural_equal

    store = nest.stores[0]
    if any(type(node).__name__ == "Let" for node in walk(store.value)):
        yield nest  # what uses the name cannot leave it
        return
    sure = [load for load, guarded in _guards(store.value) if not guarded]
    indices = [axis.var for axis in nest.axes]
    shape = [axis.extent for axis in nest.axes]
    made: list[tuple[Any, Any]] = []
    nests: list[Nest] = []

    def safe(node: Any) -> bool:
        """Whether it may be computed where the conditions around it do not hold."""
        return not any(_divides(each) for each in walk(node)) and all(
            any(structural_equal(load, other) for other in sure) for load in loads(node)
        )

    def inside(node: Any, guarded: bool) -> Any:
        """The node with what is dear below it replaced."""
        dear = _divides(node)  # its operands too: it is a call of a library where the machine has no division
        parts = [visit(child, guarded or inner, dear) for child, inner in _guarded(node)]
        return tirx.BufferLoad(node.source, parts) if type(node).__name__ == "TensorLoad" else rebuilt(node, parts)

    def visit(node: Any, guarded: bool, dear: bool) -> Any:
        held = next((new for old, new in made if structural_equal(old, node)), None)
        if held is not None:
            return held
        whole = inside(node, guarded)
        if not (_dear(node) or (dear and _computes(node))) or (guarded and not safe(node)):
            return whole
        buffer = tirx.decl_buffer(shape, dtype_of(node), f"dear{len(made)}")
        nests.append(replace(nest, stores=(Store(buffer, tuple(indices), whole),)))
        made.append((node, tirx.BufferLoad(buffer, indices)))
        return made[-1][1]

    value = inside(store.value, False)
    yield from nests
    yield replace(nest, stores=(replace(store, value=value),)) if nests else nest


def _dear(node: Any) -> bool:
    kind = type(node).__name__
    if kind == "Call":
        name = node.op.name
        return name in EXPENSIVE or name == "prim.if_then_else" or name.rpartition(".")[2] in rounding.NAMES
    if kind == "Cast":
        return "float" in dtype_of(node.value) and "int" in dtype_of(node)
    return _divides(node)


def _computes(node: Any) -> bool:
    return bool(children(node)) and type(node).__name__ not in ("TensorLoad", "Cast")


def _divides(node: Any) -> bool:
    """A division by what may be anything."""
    return type(node).__name__ in _DIVISIONS and not type(node.b).__name__.endswith("Imm")


def _guarded(node: Any) -> list[tuple[Any, bool]]:
    """The children of a node, and whether each is computed only if another one says so."""
    kind, parts = type(node).__name__, children(node)
    if kind == "Select" or (kind == "Call" and node.op.name == "prim.if_then_else"):
        return [(parts[0], False), *((part, True) for part in parts[1:])]
    if kind in ("And", "Or"):
        return [(parts[0], False), (parts[1], True)]
    return [(part, False) for part in parts]


def _guards(node: Any, guarded: bool = False) -> Iterator[tuple[Any, bool]]:
    """All loads, and whether each is done only under a condition."""
    if type(node).__name__ == "TensorLoad":
        yield node, guarded
    for child, inner in _guarded(node):
        yield from _guards(child, guarded or inner)
