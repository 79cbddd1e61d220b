"""From an ONNX graph to a torch module that can be trained, and its weights back into the graph.

Layers with constant weights (Conv, Gemm, MatMul) become torch's own modules, so that the sparsifier finds them; the
rest is interpreted node by node by the table `OPS`. Semantics are those of the ONNX operators, opset 18 and newer.
Only what the claimed networks use is there: any other operator is refused by name.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from edgesparse.errors import UnsupportedError
from edgesparse.passes.graph import constant, ints, nodes_of, set_constant
from edgesparse.training.features import places
from edgesparse.training.layers import Tensor

Op = Callable[[ir.Node, list[Any]], Tensor]


class _Nodes(tuple[ir.Node, ...]):
    """The graph's nodes, which a copy of the module shares: they lead to the whole graph, and are only read."""

    def __deepcopy__(self, _memo: Any) -> _Nodes:
        return self


class Converted(nn.Module):  # type: ignore[misc]
    """A module with the graph's inputs and outputs, in their order; one output comes as it is, more as a tuple.

    `names` maps modules to node names, which recipes select by. The first dimension may be any batch where the graph
    was made for a batch of one.
    """

    def __init__(self, model: ir.Model) -> None:
        super().__init__()
        self._nodes = _Nodes(model.graph)
        self._inputs = [value.name or "" for value in model.graph.inputs]
        self._outputs = [value.name or "" for value in model.graph.outputs]
        self._slots: dict[str, str] = {}
        self.names: dict[str, str] = {}
        layers = nn.ModuleDict()
        for number, node in enumerate(self._nodes):
            if node.domain not in ("", "ai.onnx") or (node.op_type not in OPS and node.op_type not in _LAYERS):
                raise UnsupportedError(
                    f"node {node.name!r}: operator {node.op_type} cannot be trained",
                    why="it is not in the table of edgesparse.training.converter",
                    fix="train the model in torch with edgesparse.training.Sparsifier",
                )
            module = _layer(node)
            if module is not None:
                # torch wants names without dots
                slot = f"n{number}_" + re.sub(r"\W", "_", node.name or "")
                layers[slot] = module
                self._slots[node.name or ""] = slot
                self.names[f"layers.{slot}"] = node.name or ""
        self.layers = layers
        for name, value in model.graph.initializers.items():
            if value.const_value is not None:
                array = value.const_value.numpy()
                if array.dtype.kind in "fiub":
                    self.register_buffer(_buffer(name), torch.from_numpy(np.array(array)), persistent=False)

    def forward(self, *inputs: Tensor) -> Any:
        """Run the graph."""
        return self.values(self._outputs, *inputs)

    def places(self, layers: Collection[str]) -> list[str]:
        """Names of the values that others see of the named nodes (`features.places`)."""
        return places(self._nodes, layers)

    def values(self, wanted: list[str], *inputs: Tensor) -> Any:
        """Run the graph and return the named values: one tensor, or a tuple of several."""
        known: dict[str, Tensor] = dict(zip(self._inputs, inputs, strict=True))
        for node in self._nodes:
            slot = self._slots.get(node.name or "")
            if slot is not None:
                first = node.inputs[0]
                assert first is not None
                made = self._layer_output(node, self.layers[slot], known[first.name or ""])
            else:
                made = OPS[node.op_type](node, [self._value(known, value) for value in node.inputs])
            known[node.outputs[0].name or ""] = made
        found = tuple(known[name] for name in wanted)
        return found[0] if len(found) == 1 else found

    def logits_name(self) -> str:
        """The value that a first output of Softmax is made from, or the first output itself."""
        for node in self._nodes:
            if node.outputs[0].name == self._outputs[0] and node.op_type == "Softmax" and node.inputs[0] is not None:
                return node.inputs[0].name or ""
        return self._outputs[0]

    def head(self) -> Any:
        """The layer that makes the logits, or None where another node does."""
        name = self.logits_name()
        for node in self._nodes:
            if node.outputs[0].name == name:
                slot = self._slots.get(node.name or "")
                return None if slot is None else self.layers[slot]
        return None

    def sharpen(self, factor: float) -> None:
        """Multiply the logits by a factor, in the layer that makes them."""
        head = self.head()
        with torch.no_grad():
            for value in () if head is None else head.parameters():
                value.mul_(factor)

    def write_back(self, model: ir.Model) -> None:
        """Put the present weights and biases into the graph that the module was made from, or a copy of it."""
        for node in nodes_of(model, *_LAYERS):
            slot = self._slots.get(node.name or "")
            if slot is None:
                continue
            module = self.layers[slot]
            weight = module.weight.detach().cpu().numpy()
            if node.op_type == "MatMul" or (node.op_type == "Gemm" and not _flag(node, "transB")):
                weight = weight.T
            set_constant(model, node, 1, np.ascontiguousarray(weight))
            if module.bias is not None:
                set_constant(model, node, 2, module.bias.detach().cpu().numpy())

    def _value(self, known: dict[str, Tensor], value: ir.Value | None) -> Any:
        if value is None or not value.name:
            return None
        return known[value.name] if value.name in known else getattr(self, _buffer(value.name))

    def _layer_output(self, node: ir.Node, module: Any, x: Tensor) -> Tensor:
        if node.op_type == "Conv" and (pads := _uneven(node)) is not None:
            x = nn.functional.pad(x, pads)
        return module(x)


def _buffer(name: str) -> str:
    return "c_" + name.encode().hex()


def _layer(node: ir.Node) -> Any:
    """A torch module for a node with constant weight (and bias), or None."""
    weight = constant(node.inputs[1]) if node.op_type in _LAYERS and len(node.inputs) > 1 else None
    if weight is None or weight.dtype != np.float32:
        if node.op_type in ("Conv", "ConvTranspose"):
            raise _refused(node, "its weight is computed or not float32")
        return None
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if len(node.inputs) > 2 and node.inputs[2] is not None and bias is None:
        raise _refused(node, "its bias is computed")
    if node.op_type == "Conv":
        return _conv(node, weight, bias)
    if weight.ndim != 2:
        return None
    if node.op_type == "Gemm":
        plain = all(node.attributes.get_float(key, 1.0) == 1.0 for key in ("alpha", "beta"))
        width = weight.shape[0 if _flag(node, "transB") else 1]
        if not plain or _flag(node, "transA") or (bias is not None and bias.size != width):
            raise _refused(node, "alpha, beta, transA or a bias of another shape than [N]")
    rows = weight if node.op_type == "Gemm" and _flag(node, "transB") else weight.T
    module = nn.Linear(rows.shape[1], rows.shape[0], bias=bias is not None)
    return _filled(module, rows, None if bias is None else bias.reshape(-1))


def _conv(node: ir.Node, weight: Any, bias: Any) -> Any:
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "", "VALID"):
        raise _refused(node, "auto_pad is not resolved")
    rank = weight.ndim - 2
    kinds = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    if rank not in kinds:
        raise _refused(node, f"a convolution over {rank} dimensions")
    groups = node.attributes.get_int("group", 1) or 1
    pads = ints(node, "pads", (0,) * (2 * rank))
    module = kinds[rank](
        weight.shape[1] * groups,
        weight.shape[0],
        weight.shape[2:],
        stride=ints(node, "strides", (1,) * rank),
        padding=0 if _uneven(node) is not None else pads[:rank],
        dilation=ints(node, "dilations", (1,) * rank),
        groups=groups,
        bias=bias is not None,
    )
    return _filled(module, weight, bias)


def _filled(module: Any, weight: Any, bias: Any) -> Any:
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(np.array(weight)))
        if bias is not None:
            module.bias.copy_(torch.from_numpy(np.array(bias)))
    return module


def _uneven(node: ir.Node) -> list[int] | None:
    """Pads as torch's `pad` takes them, where begin and end differ; None where the convolution can do it."""
    pads = ints(node, "pads", ())
    half = len(pads) // 2
    if pads[:half] == pads[half:]:
        return None
    return [pad for axis in reversed(range(half)) for pad in (pads[axis], pads[half + axis])]


def _flag(node: ir.Node, name: str) -> bool:
    return bool(node.attributes.get_int(name, 0))


def _refused(node: ir.Node, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"node {node.name!r}: this form of {node.op_type} cannot be trained",
        why=why,
        fix="train the model in torch with edgesparse.training.Sparsifier",
    )


# --- operators without weights


def _axes(node: ir.Node, inputs: list[Any], at: int = 1) -> list[int]:
    found = inputs[at] if len(inputs) > at else None
    return [int(axis) for axis in found] if found is not None else list(ints(node, "axes", ()))


def _reshape(node: ir.Node, inputs: list[Any]) -> Tensor:
    x, shape = inputs[0], [int(extent) for extent in inputs[1]]
    if not _flag(node, "allowzero"):
        shape = [x.shape[i] if extent == 0 else extent for i, extent in enumerate(shape)]
    if shape and shape[0] == 1:  # the batch that the graph was made for
        shape[0] = x.shape[0]
    return x.reshape(shape)


def _reduce_mean(node: ir.Node, inputs: list[Any]) -> Tensor:
    axes = _axes(node, inputs)
    keep = bool(node.attributes.get_int("keepdims", 1))
    if not axes:
        raise _refused(node, "no axes are given")
    return inputs[0].mean(axes, keepdim=keep)


def _clip(node: ir.Node, inputs: list[Any]) -> Tensor:
    low, high = ([*inputs[1:], None, None])[:2]
    if low is not None and high is not None and float(low) <= float(high):
        return nn.functional.hardtanh(inputs[0], float(low), float(high))  # its gradient is cheaper than clamp's
    return inputs[0].clamp(None if low is None else float(low), None if high is None else float(high))


def _flatten(node: ir.Node, inputs: list[Any]) -> Tensor:
    if node.attributes.get_int("axis", 1) != 1:
        raise _refused(node, "its axis is not 1")
    return inputs[0].flatten(1)


def _pool(node: ir.Node, inputs: list[Any]) -> Tensor:
    kernel = ints(node, "kernel_shape", ())
    rank = len(kernel)
    pads = ints(node, "pads", (0,) * (2 * rank))
    odd = pads[:rank] != pads[rank:] or set(ints(node, "dilations", (1,))) != {1}
    auto = node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "")
    if rank != 2 or odd or auto or _flag(node, "storage_order"):
        raise _refused(node, "only two dimensions, even pads and no dilation")
    shared = {
        "kernel_size": kernel,
        "stride": ints(node, "strides", (1,) * rank),
        "padding": pads[:rank],
        "ceil_mode": _flag(node, "ceil_mode"),
    }
    if node.op_type == "MaxPool":
        return nn.functional.max_pool2d(inputs[0], **shared)
    counted = _flag(node, "count_include_pad")
    return nn.functional.avg_pool2d(inputs[0], **shared, count_include_pad=counted)


def _unsqueeze(node: ir.Node, inputs: list[Any]) -> Tensor:
    x, axes = inputs[0], _axes(node, inputs)
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _hard_sigmoid(node: ir.Node, inputs: list[Any]) -> Tensor:
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    return (alpha * inputs[0] + beta).clamp(0.0, 1.0)


def _gemm(node: ir.Node, inputs: list[Any]) -> Tensor:
    raise _refused(node, "its weight is computed")


_LAYERS = ("Conv", "Gemm", "MatMul")
OPS: dict[str, Op] = {
    "Conv": _gemm,
    "Gemm": _gemm,
    "MatMul": lambda _, x: x[0] @ x[1],
    "Add": lambda _, x: x[0] + x[1],
    "Sub": lambda _, x: x[0] - x[1],
    "Mul": lambda _, x: x[0] * x[1],
    "Div": lambda _, x: x[0] / x[1],
    "Identity": lambda _, x: x[0],
    "Relu": lambda _, x: torch.relu(x[0]),
    "Clip": _clip,
    "Sigmoid": lambda _, x: torch.sigmoid(x[0]),
    "Tanh": lambda _, x: torch.tanh(x[0]),
    "LeakyRelu": lambda node, x: nn.functional.leaky_relu(x[0], node.attributes.get_float("alpha", 0.01)),
    "Elu": lambda node, x: nn.functional.elu(x[0], node.attributes.get_float("alpha", 1.0)),
    "PRelu": lambda _, x: torch.where(x[0] >= 0, x[0], x[0] * x[1]),
    "Gelu": lambda node, x: nn.functional.gelu(x[0], approximate=node.attributes.get_string("approximate", "none")),
    "Erf": lambda _, x: torch.erf(x[0]),
    "Exp": lambda _, x: torch.exp(x[0]),
    "Sqrt": lambda _, x: torch.sqrt(x[0]),
    "Abs": lambda _, x: torch.abs(x[0]),
    "Neg": lambda _, x: -x[0],
    "Pow": lambda _, x: torch.pow(x[0], x[1]),
    "Min": lambda _, x: functools.reduce(torch.minimum, x),
    "Max": lambda _, x: functools.reduce(torch.maximum, x),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda _, x: nn.functional.hardswish(x[0]),
    "Softmax": lambda node, x: torch.softmax(x[0], node.attributes.get_int("axis", -1)),
    "GlobalAveragePool": lambda _, x: x[0].mean(tuple(range(2, x[0].ndim)), keepdim=True),
    "AveragePool": _pool,
    "MaxPool": _pool,
    "ReduceMean": _reduce_mean,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Squeeze": lambda node, x: x[0].squeeze(tuple(_axes(node, x))) if _axes(node, x) else x[0].squeeze(),
    "Unsqueeze": _unsqueeze,
    "Concat": lambda node, x: torch.cat(x, node.attributes.get_int("axis", 0)),
    "Transpose": lambda node, x: x[0].permute(ints(node, "perm", tuple(reversed(range(x[0].ndim))))),
}
"""Operator to its function of node and input tensors (None for those left out)."""
