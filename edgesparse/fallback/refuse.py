"""What TVM's ONNX frontend takes but computes otherwise than ONNX says: refused by name, never a wrong answer.

Found by running ONNX's backend node tests through the fallback.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
from onnx import helper

from edgesparse.errors import UnsupportedError

_Check = Callable[[onnx.NodeProto, Mapping[str, Any]], bool]

_WRONG: dict[str, tuple[_Check, str]] = {
    "RoiAlign": (lambda _, options: options.get("mode", b"avg") == b"max", "mode max differs"),
    "SpaceToDepth": (lambda _, options: options.get("mode", b"DCR") != b"DCR", "only mode DCR is known"),
    "DynamicQuantizeLinear": (lambda *_: True, "it rounds ties otherwise"),
    "BatchNormalization": (
        lambda _, options: bool(options.get("training_mode", 0)),
        "training_mode is not for inference",
    ),
}


def refuse(model: onnx.ModelProto) -> None:
    """Raise UnsupportedError if a node is one of those that would come out wrong."""
    for node in model.graph.node:
        check, why = _WRONG.get(node.op_type, (None, ""))
        options = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        if check is not None and check(node, options):
            raise UnsupportedError(
                f"cannot lower node {(node.name or node.output[0])!r} ({node.op_type})",
                why=why,
                fix="rewrite the model without it",
            )
