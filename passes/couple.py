"""Coupling: which channels of which tensors must be permuted together so that the model stays the same function.

Every axis of every tensor is an axis of `Spaces`; every operator says which axes of its inputs and outputs are the
same. What an operator does not allow, or what is not understood here, is pinned with a Reason, never guessed.
Graph inputs and outputs never move. Whatever is left free can be permuted at no run-time cost: `apply_order`
reorders the constants, and no node is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgesparse.errors import Reason
from edgesparse.passes.axes import AxisWork
from edgesparse.passes.graph import Array
from edgesparse.passes.heads import own_orders
from edgesparse.passes.spaces import Axis, Spaces


@dataclass(frozen=True)
class Member:
    """One axis of a constant, and where in it the set's channels are: `[start, start + size * repeat)`."""

    constant: str
    axis: int
    start: int
    outer: int
    inner: int


@dataclass(frozen=True)
class CouplingSet:
    """Channels that are permuted together; `reason` says why not, and is None where they are free.

    With more than one of `heads`, each head may have a permutation of its own.
    """

    space: int
    size: int
    members: tuple[Member, ...]
    reason: Reason | None
    heads: int = 1

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        reason = None if self.reason is None else {"code": self.reason.code, "message": self.reason.message}
        return {"set": self.space, "channels": self.size, "heads": self.heads, "pinned": reason,
                "members": [vars(m) for m in self.members]}  # fmt: skip


@dataclass(frozen=True)
class Coupling:
    """The result of `couple`: the spaces, the axes of each constant by name, and all sets with members.

    `heads` has, for each space of which every head may have a permutation of its own, the space of the heads.
    """

    spaces: Spaces
    axes: Mapping[str, tuple[Axis, ...]]
    sets: tuple[CouplingSet, ...]
    heads: Mapping[int, int]

    def axis(self, name: str, index: int) -> Axis:
        """Axis `index` of constant `name`, in terms of leaves."""
        return self.spaces.leaves(self.axes[name][index])


def couple(model: ir.Model) -> Coupling:
    """Analyse the main graph; shapes must have been inferred. What has no static shape is pinned."""
    work = AxisWork()
    graph = model.graph
    for value in graph.inputs:
        work.pin_value(value, Reason("graph-input", "inputs of the model never move", value.name or ""))
    for node in graph:
        work.visit(node)
    for value in graph.outputs:
        work.pin_value(value, Reason("graph-output", "outputs of the model never move", value.name or ""))
    names = {name: tuple(work.axes(value)) for name, value in graph.initializers.items()}
    heads = own_orders(work, graph)
    return Coupling(work.spaces, names, _sets(work.spaces, names, heads), heads)


def apply_order(model: ir.Model, coupling: Coupling, order: Mapping[int, Array]) -> bool:
    """Permute the constants in place: entry i of a set's channels becomes what was at `order[space][i]`.

    Where `coupling.heads` has the space, the order may be `[heads, channels]`, one for each head. Pinned spaces must
    not be in `order`. Returns whether anything moved.
    """
    moved = False
    for name, axes in coupling.axes.items():
        value = model.graph.initializers[name]
        tensor = value.const_value
        if tensor is None or not any(
            s in order for axis in axes for part in coupling.spaces.leaves(axis) for s in part
        ):
            continue
        array = tensor.numpy()
        for number, axis in enumerate(axes):
            array = np.take(array, coupling.spaces.indices(axis, dict(order)), axis=number)
        value.const_value = ir.tensor(np.ascontiguousarray(array), name=name)
        moved = True
    return moved


def _sets(spaces: Spaces, names: Mapping[str, tuple[Axis, ...]], heads: Mapping[int, int]) -> tuple[CouplingSet, ...]:
    members: dict[int, list[Member]] = {}
    for name, axes in names.items():
        for number, axis in enumerate(axes):
            start = 0
            for segment in spaces.leaves(axis):
                sizes = [spaces.size[space] for space in segment]
                for i, space in enumerate(segment):
                    if sizes[i] > 1:
                        outer, inner = int(np.prod(sizes[:i])), int(np.prod(sizes[i + 1 :]))
                        members.setdefault(space, []).append(Member(name, number, start, outer, inner))
                start += int(np.prod(sizes))
    return tuple(
        CouplingSet(
            space,
            spaces.size[space],
            tuple(found),
            spaces.reason(space),
            spaces.size[heads[space]] if space in heads else 1,
        )
        for space, found in sorted(members.items())
    )
