"""Reading names and attributes of ONNX nodes, with ONNX's defaults."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgesparse.errors import UnsupportedError


def name_of(value: ir.Value | None) -> str:
    if value is None or value.name is None:
        raise UnsupportedError("a value without a name", fix="run the model through edgesparse sparsify first")
    return value.name


def node_name(node: ir.Node) -> str:
    return node.name or f"{node.op_type}:{node.outputs[0].name}"


def ints(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    attribute = node.attributes.get(name)
    return tuple(int(v) for v in attribute.as_ints()) if attribute is not None else default


def integer(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return int(attribute.as_int()) if attribute is not None else default


def number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return float(attribute.as_float()) if attribute is not None else default


def pair(node: ir.Node, name: str) -> tuple[int, int]:
    values = ints(node, name, (1, 1))
    return values[0], values[1]


def pads_of(
    node: ir.Node,
    size: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
) -> tuple[int, int, int, int]:
    """Padding as (top, left, bottom, right), also for auto_pad."""
    attribute = node.attributes.get("auto_pad")
    mode = attribute.as_string() if attribute is not None else "NOTSET"
    if mode == "NOTSET":
        pads = ints(node, "pads", (0, 0, 0, 0))
        return pads[0], pads[1], pads[2], pads[3]
    if mode == "VALID":
        return 0, 0, 0, 0
    totals = [
        max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        for n, k, s, d in zip(size, kernel, strides, dilations, strict=True)
    ]
    small = [total // 2 for total in totals]
    large = [total - half for total, half in zip(totals, small, strict=True)]
    first, last = (small, large) if mode == "SAME_UPPER" else (large, small)
    return first[0], first[1], last[0], last[1]


def constant_of(value: ir.Value | None) -> np.ndarray | None:
    """The array of a constant; None for what is computed or given."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return np.asarray(value.const_value.numpy())


def is_float(value: ir.Value | None) -> bool:
    """Whether a value is float32."""
    return value is not None and value.dtype == ir.DataType.FLOAT
