"""Operators that TVM's frontend lacks, or takes in one form only, spelt out by others of ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgesparse.errors import UnsupportedError


class Writer:
    """Nodes that stand for one node: `put` appends and names the results, `constant` adds to the initializers."""

    def __init__(self, model: onnx.ModelProto, node: onnx.NodeProto, kinds: Mapping[str, int], rank: int) -> None:
        self.model, self.node, self.kinds, self.rank = model, node, kinds, rank
        self.options: dict[str, Any] = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        self.nodes: list[onnx.NodeProto] = []

    def put(self, kind: str, *inputs: str, into: str = "", **options: Any) -> str:
        made = into or f"{self.node.output[0]}/{kind}{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, list(inputs), [made], f"{self.node.name}/{len(self.nodes)}", **options)
        )
        return made

    def constant(self, value: Any, dtype: str = "float32") -> str:
        name = f"{self.node.output[0]}/constant{len(self.model.graph.initializer)}"
        self.model.graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name


def needs_spelling(node: onnx.NodeProto, kinds: Mapping[str, int]) -> bool:
    """Whether a node is one of those that are spelt out."""
    options = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    kind = kinds.get(node.input[0], 0) if node.input else 0
    if node.op_type in ("ReduceMax", "ReduceMin"):
        return kind == TensorProto.BOOL
    if node.op_type == "IsInf":
        return not (options.get("detect_negative", 1) and options.get("detect_positive", 1))
    if node.op_type == "LayerNormalization":
        return any(node.output[1:])
    if node.op_type == "Pow":
        return kind in _WHOLE or (kind in _FLOATS and kinds.get(node.input[1], kind) != kind)
    return node.op_type in ("Celu", "LpNormalization", "OneHot", "RMSNormalization", "Swish")


_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_WHOLE = (TensorProto.INT32, TensorProto.INT64)


def spelled(model: onnx.ModelProto, node: onnx.NodeProto, kinds: Mapping[str, int], rank: int) -> list[onnx.NodeProto]:
    """The nodes that stand for a node; their constants go to the model's initializers.

    `kinds` holds ONNX's element types by value name, `rank` is that of the first input.
    """
    writer = Writer(model, node, kinds, rank)
    _SPELLINGS[node.op_type](writer)
    return writer.nodes


def _reduced(w: Writer) -> None:
    number = w.put("Cast", w.node.input[0], to=TensorProto.INT32)
    result = w.put(w.node.op_type, number, *w.node.input[1:], **w.options)
    w.put("Cast", result, into=w.node.output[0], to=TensorProto.BOOL)


def _is_inf(w: Writer) -> None:
    found = [float("inf")] if w.options.get("detect_positive", 1) else []
    found += [float("-inf")] if w.options.get("detect_negative", 1) else []
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(w.kinds[w.node.input[0]])).name
    if found:
        w.put("Equal", w.node.input[0], w.constant(found[0], dtype), into=w.node.output[0])
        return
    w.put("And", *(w.put("Greater", w.node.input[0], w.constant(float("inf"), dtype)),) * 2, into=w.node.output[0])


def _layer_norm(w: Writer) -> None:
    axis = int(w.options.get("axis", -1)) % w.rank
    axes = w.constant(list(range(axis, w.rank)), "int64")
    x = w.node.input[0]
    outputs = [*w.node.output, "", ""]
    mean = w.put("ReduceMean", x, axes, into=outputs[1], keepdims=1)
    away = w.put("Sub", x, mean)
    spread = w.put("ReduceMean", w.put("Mul", away, away), axes, keepdims=1)
    root = w.put("Sqrt", w.put("Add", spread, w.constant(w.options.get("epsilon", 1e-5))))
    inverse = w.put("Reciprocal", root, into=outputs[2])
    bias = [name for name in w.node.input[2:3] if name]
    value = w.put("Mul", away, inverse)
    value = w.put("Mul", value, w.node.input[1], into="" if bias else outputs[0])
    if bias:
        w.put("Add", value, bias[0], into=outputs[0])


def _rms_norm(w: Writer) -> None:
    x, axis = w.node.input[0], int(w.options.get("axis", -1)) % w.rank
    axes = w.constant(list(range(axis, w.rank)), "int64")
    mean = w.put("ReduceMean", w.put("Mul", x, x), axes, keepdims=1)
    root = w.put("Sqrt", w.put("Add", mean, w.constant(w.options.get("epsilon", 1e-5))))
    w.put("Mul", w.put("Div", x, root), w.node.input[1], into=w.node.output[0])


def _lp_norm(w: Writer) -> None:
    """A vector of zeros stays one."""
    kind = "ReduceL1" if w.options.get("p", 2) == 1 else "ReduceL2"
    norm = w.put(kind, w.node.input[0], w.constant([w.options.get("axis", -1)], "int64"), keepdims=1)
    zero = w.put("Equal", norm, w.constant(0.0))
    w.put("Div", w.node.input[0], w.put("Where", zero, w.constant(1.0), norm), into=w.node.output[0])


def _pow(w: Writer) -> None:
    if w.kinds[w.node.input[0]] in _WHOLE:
        _whole_pow(w)
        return
    exponent = w.put("Cast", w.node.input[1], to=w.kinds[w.node.input[0]])
    w.put("Pow", w.node.input[0], exponent, into=w.node.output[0])


def _whole_pow(w: Writer) -> None:
    """Powers of integers: exact by squaring where the exponent is whole, else truncated from double precision.

    Whole exponents beyond 63 leave 64 bits but for bases 0, 1 and -1, for which their parity decides; the rest of a
    negative one is 0. What is too large wraps around.
    """
    kind, given = w.kinds[w.node.input[0]], w.kinds[w.node.input[1]]
    base = w.put("Cast", w.node.input[0], to=TensorProto.INT64)
    exponent = w.put("Cast", w.node.input[1], to=TensorProto.INT64)
    zero, one = w.constant(0, "int64"), w.constant(1, "int64")
    odd = w.put("BitwiseAnd", exponent, one)
    large = w.put("Greater", exponent, w.constant(63, "int64"))
    small = w.put("Where", large, w.put("Add", odd, w.constant(62, "int64")), exponent)
    power, square = one, base
    for bit in range(6):
        unset = w.put("Equal", w.put("BitwiseAnd", small, w.constant(1 << bit, "int64")), zero)
        power = w.put("Mul", power, w.put("Where", unset, one, square))
        square = w.put("Mul", square, square)
    # One over the power: 1 or -1 where the base is, else a fraction, which is 0.
    unit = w.put("Equal", w.put("Mul", base, base), one)
    inverse = w.put("Where", unit, w.put("Where", w.put("Equal", odd, zero), one, base), zero)
    power = w.put("Where", w.put("Less", exponent, zero), inverse, power)
    if given in _FLOATS:
        wide = w.put("Cast", w.node.input[1], to=TensorProto.DOUBLE)
        whole = w.put("Equal", w.put("Floor", wide), wide)
        power = w.put("Where", whole, power, _truncated_pow(w, base, wide))
    w.put("Cast", power, into=w.node.output[0], to=kind)


def _truncated_pow(w: Writer, base: str, exponent: str) -> str:
    """The integer part of a power in double precision; a rounding error below an integer is no fraction."""
    value = w.put("Pow", w.put("Cast", base, to=TensorProto.DOUBLE), exponent)
    nearest = w.put("Round", value)
    off = w.put("Abs", w.put("Sub", value, nearest))
    near = w.put("Less", off, w.put("Mul", w.put("Abs", value), w.constant(2.0**-44, "float64")))
    return w.put("Cast", w.put("Where", near, nearest, value), to=TensorProto.INT64)


def _celu(w: Writer) -> None:
    x, alpha, zero = w.node.input[0], w.constant(w.options.get("alpha", 1.0)), w.constant(0.0)
    below = w.put("Sub", w.put("Exp", w.put("Div", x, alpha)), w.constant(1.0))
    w.put("Add", w.put("Max", x, zero), w.put("Min", w.put("Mul", alpha, below), zero), into=w.node.output[0])


def _swish(w: Writer) -> None:
    x = w.node.input[0]
    gate = w.put("Sigmoid", w.put("Mul", x, w.constant(w.options.get("alpha", 1.0))))
    w.put("Mul", x, gate, into=w.node.output[0])


def _one_hot(w: Writer) -> None:
    """Negative indices count from the end; what lies outside is off everywhere."""
    held = {item.name: numpy_helper.to_array(item) for item in w.model.graph.initializer}
    if w.node.input[1] not in held or w.node.input[2] not in held:
        raise UnsupportedError(
            f"cannot lower node {(w.node.name or w.node.output[0])!r} (OneHot)",
            why="its depth and values are not constant",
            fix="export it with constants",
        )
    depth, values = int(held[w.node.input[1]].reshape(-1)[0]), held[w.node.input[2]]
    axis = int(w.options.get("axis", -1)) % (w.rank + 1)
    index = w.put("Cast", w.node.input[0], to=TensorProto.INT64)
    negative = w.put("Less", index, w.constant(0, "int64"))
    index = w.put("Where", negative, w.put("Add", index, w.constant(depth, "int64")), index)
    index = w.put("Unsqueeze", index, w.constant([axis], "int64"))
    places = np.arange(depth).reshape([depth if place == axis else 1 for place in range(w.rank + 1)])
    found = w.put("Equal", index, w.constant(places, "int64"))
    on, off = (w.constant(value, values.dtype.name) for value in (values[1], values[0]))
    w.put("Where", found, on, off, into=w.node.output[0])


_SPELLINGS: dict[str, Callable[[Writer], None]] = {
    "Celu": _celu,
    "ReduceMax": _reduced,
    "ReduceMin": _reduced,
    "IsInf": _is_inf,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _lp_norm,
    "OneHot": _one_hot,
    "Pow": _pow,
    "RMSNormalization": _rms_norm,
    "Swish": _swish,
}
