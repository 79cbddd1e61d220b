"""The layers with weights: one list that pruning, reports and the compiler share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from edgesparse.passes.graph import Array, constant, ints, nodes_of, set_constant, static_shape
from edgesparse.pattern import from_canonical, to_canonical
from edgesparse.select import Candidate

_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class LayerInfo:
    """A node that multiplies with a constant weight.

    Attributes
    ----------
    name, op_type:
        The node's name and operator.
    kind:
        "conv1x1" (all kernel extents 1, one group), "depthwise" (one input channel per group), "conv" (other
        convolutions), "conv_transpose", "gemm" or "matmul".
    weight, bias:
        Names of the initializers; bias None where there is none or it is computed.
    shape:
        Canonical shape `(Cout, Cin / groups, taps)`; see `edgesparse.pattern`.
    stored_shape:
        Shape of the initializer as it is stored.
    groups, strides, dilations, trans_b:
        As in ONNX; strides and dilations empty for products.
    macs:
        Multiply-adds of one run, batch included, dense; 0 where the shapes are not known.
    params:
        Number of weights, without the bias.
    """

    name: str
    op_type: str
    kind: str
    weight: str
    bias: str | None
    shape: tuple[int, int, int]
    stored_shape: tuple[int, ...]
    groups: int
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    trans_b: bool
    macs: int
    params: int

    @property
    def default(self) -> bool:
        """Whether the layer is pruned when a recipe does not name it: products, and convolutions of one
        group.
        """
        return self.kind in ("gemm", "matmul") or (self.kind in ("conv", "conv1x1") and self.groups == 1)

    def candidate(self) -> Candidate:
        """What selectors see of the layer."""
        return Candidate(self.name, self.op_type, self.default, self.kind)


def weight_layers(model: ir.Model) -> list[LayerInfo]:
    """All layers of the main graph with a constant floating-point weight, in graph order.

    Products with a constant on the left, or with one of more than two dimensions, are not among them.
    """
    layers = []
    for node in nodes_of(model, *_OPS):
        weight = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if weight is None or weight.dtype.kind != "f" or weight.size == 0:
            continue
        if weight.ndim >= 3 if node.op_type.startswith("Conv") else weight.ndim == 2:
            layers.append(_layer(node, weight))
    return layers


def canonical_weight(model: ir.Model, layer: LayerInfo) -> Array:
    """The layer's weight as `[Cout, Cin / groups, taps]`, not to be written to."""
    weight = model.graph.initializers[layer.weight].const_value
    assert weight is not None
    return to_canonical(weight.numpy(), layer.kind, groups=layer.groups, trans_b=layer.trans_b)


def set_canonical_weight(model: ir.Model, layer: LayerInfo, view: Array) -> None:
    """Store a changed weight `[Cout, Cin / groups, taps]` for this layer alone."""
    stored = from_canonical(view, layer.kind, layer.stored_shape, groups=layer.groups, trans_b=layer.trans_b)
    for node in nodes_of(model, layer.op_type):
        if node.name == layer.name:
            set_constant(model, node, 1, stored)


def _layer(node: ir.Node, weight: Array) -> LayerInfo:
    conv = node.op_type.startswith("Conv")
    groups = node.attributes.get_int("group", 1) if conv else 1
    trans_b = node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))
    kind = _kind(node.op_type, weight.shape, groups)
    view = to_canonical(weight, kind, groups=groups, trans_b=trans_b)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    ones = (1,) * (weight.ndim - 2) if conv else ()
    return LayerInfo(
        name=node.name or "",
        op_type=node.op_type,
        kind=kind,
        weight=(node.inputs[1].name if node.inputs[1] is not None else "") or "",
        bias=bias.name if bias is not None and constant(bias) is not None else None,
        shape=(view.shape[0], view.shape[1], view.shape[2]),
        stored_shape=tuple(weight.shape),
        groups=groups,
        strides=ints(node, "strides", ones) if conv else (),
        dilations=ints(node, "dilations", ones) if conv else (),
        trans_b=trans_b,
        macs=_macs(node, kind, view.shape),
        params=int(weight.size),
    )


def _kind(op_type: str, shape: tuple[int, ...], groups: int) -> str:
    if op_type != "Conv":
        return {"ConvTranspose": "conv_transpose", "Gemm": "gemm", "MatMul": "matmul"}[op_type]
    if groups > 1:
        return "depthwise" if shape[1] == 1 else "conv"
    return "conv1x1" if math.prod(shape[2:]) == 1 else "conv"


def _macs(node: ir.Node, kind: str, view: tuple[int, ...]) -> int:
    # a transposed convolution uses every weight once per input pixel, all others once per output pixel
    shape = static_shape(node.inputs[0] if kind == "conv_transpose" else node.outputs[0])
    if shape is None:
        return 0
    if kind in ("gemm", "matmul"):
        return math.prod(shape) * view[1]
    return math.prod(view) * shape[0] * math.prod(shape[2:])
