"""Tiny graphs in ONNX text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from edgesparse.passes import model_from_proto

HEADER = '<ir_version: 8, opset_import: ["" : 18]>\n'


@pytest.fixture
def parse() -> Callable[..., onnx.ModelProto]:
    """ONNX text and weights by name to a message; the weights must not be named in the text's header."""

    def make(text: str, weights: dict[str, Any] | None = None, header: str = HEADER) -> onnx.ModelProto:
        proto = onnx.parser.parse_model(header + text)
        for name, array in (weights or {}).items():
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        return proto

    return make


@pytest.fixture
def load(parse) -> Callable[..., ir.Model]:
    """The same, through `model_from_proto`."""
    return lambda text, weights=None, header=HEADER: model_from_proto(parse(text, weights, header))
