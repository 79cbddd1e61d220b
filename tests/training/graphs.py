"""Graphs as `load_model` and simplifying leave them."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from edgesparse.passes import SIMPLIFY, load_model, model_from_proto, run_passes


def prepared(path: Path) -> ir.Model:
    return run_passes(load_model(path), SIMPLIFY).model


def graph(text: str, opset: int = 18) -> ir.Model:
    """A model from ONNX text, as `load_model` leaves it."""
    return model_from_proto(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}'))
