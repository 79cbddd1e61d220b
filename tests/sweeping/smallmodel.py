"""One product, to sweep over."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser


def save_model(path: Path, value: float = 1.0) -> None:
    """Write it; `value` makes its weights others."""
    rows = ", ".join(str(value + i % 7) for i in range(16 * 8))
    made = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 18]>
        small (float[4,16] x) => (float[4,8] y) <float[16,8] w = {{{rows}}}> {{ [first] y = MatMul(x, w) }}"""
    )
    onnx.save(made, path)
