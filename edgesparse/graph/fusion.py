"""Fusion: the activation and the residual add that follow a node, as its epilogue.

Only what nobody else reads is fused, and each node once.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgesparse.graph.attributes import constant_of, is_float, name_of, number
from edgesparse.kernels import Epilogue


class Fusion:
    """What has been fused so far in one graph; `taken` holds the ids of nodes that are part of an operation."""

    def __init__(self, graph: ir.Graph) -> None:
        self.outputs = {value.name for value in graph.outputs}
        self.nodes = {id(node) for node in graph}
        self.taken: set[int] = set()

    def sole_consumer(self, value: ir.Value) -> ir.Node | None:
        uses = list(value.uses())
        if len(uses) != 1 or value.name in self.outputs:
            return None
        node = uses[0].node
        return node if id(node) in self.nodes else None

    def fuse(
        self, node: ir.Node, made: Container[str], *, residuals: bool
    ) -> tuple[Epilogue, str | None, list[ir.Node]]:
        """The epilogue that follows `node`, the residual's name, and the fused nodes; the last gives the output.

        `made` holds the values that are there before `node` runs: a residual must be one of them.
        """
        chain, epilogue, residual = [node], Epilogue(), None
        after = self._activation(chain[-1].outputs[0])
        if after is not None:
            epilogue = after[0]
            chain += after[1]
        if residuals:
            add = self.sole_consumer(chain[-1].outputs[0])
            other = self._residual_of(add, chain[-1].outputs[0], made) if add is not None else None
            if add is not None and other is not None:
                place = "before" if epilogue.activation == "none" else "after"
                chain.append(add)
                residual = name_of(other)
                after = self._activation(add.outputs[0]) if place == "before" else None
                if after is not None:
                    epilogue = after[0]
                    chain += after[1]
                epilogue = replace(epilogue, residual=place)
        self.taken.update(id(part) for part in chain)
        return epilogue, residual, chain

    def affine(self, epilogue: Epilogue, chain: list[ir.Node]) -> tuple[Epilogue, tuple[float, float], list[ir.Node]]:
        """The factor and then the term, each one number, that follow a fused activation (PP-LCNetV3's, for one)."""
        numbers = [1.0, 0.0]
        if epilogue.activation == "none" or epilogue.residual == "after":
            return epilogue, (1.0, 0.0), chain
        chain = list(chain)
        for place, kind in enumerate(("Mul", "Add")):
            node, value = self.sole_consumer(chain[-1].outputs[0]), chain[-1].outputs[0]
            if node is None or node.op_type != kind or id(node) in self.taken or node.outputs[0].shape != value.shape:
                continue
            constant = next((constant_of(each) for each in node.inputs if each is not value), None)
            if constant is not None and constant.size == 1:
                numbers[place] = float(constant.reshape(-1)[0])
                chain.append(node)
                self.taken.add(id(node))
        affine = (numbers[0], numbers[1])
        return replace(epilogue, affine=affine != (1.0, 0.0)), affine, chain

    def _residual_of(self, add: ir.Node, value: ir.Value, made: Container[str]) -> ir.Value | None:
        """The other input of an Add of two images of one shape, if it is among the values already `made`."""
        if add.op_type != "Add" or id(add) in self.taken:
            return None
        others = [each for each in add.inputs if each is not value]
        if len(others) != 1 or others[0] is None or constant_of(others[0]) is not None:
            return None
        other = others[0]
        if other.shape != value.shape or other.name is None or not is_float(other):
            return None
        return other if other.name in made else None

    def _activation(self, value: ir.Value) -> tuple[Epilogue, list[ir.Node]] | None:
        """The activation that alone reads `value`, with its nodes; x * Sigmoid(x) counts as one."""
        silu = self._silu(value)
        if silu is not None:
            return Epilogue("silu"), silu
        gelu = self._gelu(value)
        if gelu is not None:
            return Epilogue("gelu"), gelu
        node = self.sole_consumer(value)
        if node is None or id(node) in self.taken:
            return None
        epilogue = self.epilogue_of(node)
        return (epilogue, [node]) if epilogue is not None else None

    def _silu(self, value: ir.Value) -> list[ir.Node] | None:
        users = [use.node for use in value.uses()]
        if len(users) != 2 or value.name in self.outputs:
            return None
        gate = next((node for node in users if node.op_type == "Sigmoid"), None)
        product = next((node for node in users if node.op_type == "Mul"), None)
        if gate is None or product is None or self.sole_consumer(gate.outputs[0]) is not product:
            return None
        if any(id(node) in self.taken for node in (gate, product)):
            return None
        return [gate, product]

    def _gelu(self, value: ir.Value) -> list[ir.Node] | None:
        """Nodes of x/2 * (1 + erf(x / sqrt(2))), as exporters wrote it before ONNX had an operator for it."""
        users = [use.node for use in value.uses()]
        if len(users) != 2 or value.name in self.outputs or not is_float(value):
            return None
        scaled = next((node for node in users if _times(node, value, 0.5**0.5)), None)
        other = next((node for node in users if node is not scaled), None)
        if scaled is None or other is None:
            return None
        chain = [scaled]
        for kind in ("Erf", "Add"):
            after = self.sole_consumer(chain[-1].outputs[0])
            if after is None or after.op_type != kind:
                return None
            chain.append(after)
        if not _with(chain[-1], chain[-2].outputs[0], 1.0):
            return None
        half = [other] if _times(other, value, 0.5) else []
        product = self.sole_consumer(chain[-1].outputs[0])
        partner = half[0].outputs[0] if half else value
        if product is None or product.op_type != "Mul" or partner not in product.inputs:
            return None
        chain += [*half, product]
        if half:
            if self.sole_consumer(partner) is not product:
                return None
        else:
            last = self.sole_consumer(product.outputs[0])
            if other is not product or last is None or not _times(last, product.outputs[0], 0.5):
                return None
            chain.append(last)
        return None if any(id(node) in self.taken for node in chain) else chain

    def epilogue_of(self, node: ir.Node) -> Epilogue | None:
        """The activation a node is, if an epilogue can hold it."""
        if not is_float(node.inputs[0] if node.inputs else None):
            return None
        simple = {"Relu": "relu", "HardSwish": "hardswish", "Sigmoid": "sigmoid", "Tanh": "tanh"}
        if node.op_type in simple:
            return Epilogue(simple[node.op_type])
        if node.op_type == "Gelu" and node.attributes.get_string("approximate", "none") == "none":
            return Epilogue("gelu")
        if node.op_type == "HardSigmoid":
            return Epilogue("hardsigmoid", (number(node, "alpha", 0.2), number(node, "beta", 0.5)))
        if node.op_type == "LeakyRelu":
            return Epilogue("leaky", (number(node, "alpha", 0.01),))
        if node.op_type == "Clip":
            limits = [self._limit(node, 1, -np.inf), self._limit(node, 2, np.inf)]
            if limits[0] is None or limits[1] is None:
                return None
            if limits[0] == 0 and limits[1] == np.inf:
                return Epilogue("relu")
            lowest = float(np.finfo(np.float32).min)
            return Epilogue("clip", (max(limits[0], lowest), min(limits[1], -lowest)))
        return None

    def _limit(self, node: ir.Node, index: int, default: float) -> float | None:
        if len(node.inputs) <= index or node.inputs[index] is None:
            return float(default)
        constant = constant_of(node.inputs[index])
        return float(constant.reshape(-1)[0]) if constant is not None and constant.size == 1 else None


def _with(node: ir.Node, value: ir.Value, number: float) -> bool:
    """Whether a node's inputs are `value` and the constant `number`, to float32's precision."""
    others = [each for each in node.inputs if each is not value]
    constant = constant_of(others[0]) if len(node.inputs) == 2 and len(others) == 1 else None
    return constant is not None and constant.size == 1 and bool(np.isclose(constant, number, rtol=1e-6, atol=0).all())


def _times(node: ir.Node, value: ir.Value, factor: float) -> bool:
    """Whether a node multiplies `value` by a constant factor, or divides it by its inverse."""
    if node.op_type == "Mul":
        return _with(node, value, factor)
    return node.op_type == "Div" and node.inputs[0] is value and _with(node, value, 1 / factor)
