"""What is known while the nodes of a model become operations: values, fused nodes, operations so far."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from edgesparse.errors import UnsupportedError
from edgesparse.graph.attributes import constant_of, name_of
from edgesparse.graph.carve import carve
from edgesparse.graph.fusion import Fusion
from edgesparse.graph.ops import Op, Value


class Walk:
    """One pass over the nodes of a graph, with what is known of values so far."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.graph = model.graph
        self.values: dict[str, Value] = {}
        self.fusion = Fusion(self.graph)
        self.ops: list[Op] = []
        #: Nodes that no rule took, since the last operation.
        self.loose: list[ir.Node] = []

    def declare(self, value: ir.Value, where: str) -> None:
        """Note a value's shape and type. UnsupportedError where they are open; `where` says whose it is."""
        shape = value.shape
        if shape is None or value.dtype is None or any(not isinstance(dim, int) for dim in shape):
            raise UnsupportedError(
                f"value {value.name!r} of {where} has no fixed shape",
                why=f"its shape is {shape}" if shape is not None else "shape inference could not find it",
                fix="fix the model's input shapes with --shape, or simplify the model",
            )
        dims = tuple(int(dim) for dim in shape)  # type: ignore[arg-type]
        self.values[name_of(value)] = Value(name_of(value), dims, value.dtype.numpy().name)

    def declare_outputs(self, node: ir.Node) -> None:
        """Note what a node makes."""
        for value in node.outputs:
            if value.name:
                self.declare(value, f"node {node.name!r} ({'.'.join(filter(None, (node.domain, node.op_type)))})")

    def image(self, value: ir.Value | None) -> tuple[int, int, int, int] | None:
        """Shape of a float image that is computed (not constant)."""
        if value is None or value.name is None or constant_of(value) is not None:
            return None
        if value.name not in self.values:
            self.declare(value, "the model")
        return self.values[value.name].image

    def shape_of(self, value: ir.Value | None) -> tuple[int, ...]:
        """Shape of a value; that of a number for an input that is not given."""
        if value is None:
            return ()
        self.declare(value, "the model")
        return self.values[name_of(value)].shape

    def output(self, chain: list[ir.Node]) -> str:
        """Name of what the last of these nodes makes."""
        value = chain[-1].outputs[0]
        self.declare(value, f"node {chain[-1].name!r}")
        return name_of(value)

    def made(self) -> set[str]:
        """Values that are there before the next operation runs."""
        return {name for op in self.ops for name in op.outputs} | {name_of(value) for value in self.graph.inputs}

    def names(self, chain: Iterable[ir.Node]) -> tuple[str, ...]:
        """Names of nodes, as reports tell them."""
        return tuple(node.name or node.op_type for node in chain)

    def flush(self) -> None:
        """Make one fallback part of the loose nodes so far."""
        if self.loose:
            self.ops.append(carve(self.model, self.loose, self.values))
            self.loose = []
