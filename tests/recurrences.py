"""Models of one recurrence with random weights, and what they are fed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, INPUT = 7, 2, 9


def recurrent_model(
    kind: str, hidden: int, *, states: bool = False, outputs: str = "YHC", density: float = 1.0, **options: Any
) -> onnx.ModelProto:
    """A model of one node with random weights; `outputs` names those that it has."""
    rng = np.random.default_rng(3)
    ways = 2 if options.get("direction") == "bidirectional" else 1
    rows = GATES[kind] * hidden
    held = {"w": (ways, rows, INPUT), "r": (ways, rows, hidden), "b": (ways, 2 * rows)}
    weights = {name: (rng.standard_normal(shape) * 0.4).astype(np.float32) for name, shape in held.items()}
    weights["r"] *= rng.random(weights["r"].shape) < density
    inputs = {"x": (STEPS, BATCH, INPUT)}
    names = ["x", "w", "r", "b", ""]
    if states:
        names += ["h", "c"] if kind == "LSTM" else ["h"]
        inputs |= {name: (ways, BATCH, hidden) for name in names[5:]}
    known = {"Y": (STEPS, ways, BATCH, hidden), "H": (ways, BATCH, hidden), "C": (ways, BATCH, hidden)}
    made = [mark if mark in outputs else "" for mark in ("YHC" if kind == "LSTM" else "YH")]
    node = helper.make_node(kind, names, made, name="cell", hidden_size=hidden, **options)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(name, 1, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, 1, known[name]) for name in made if name],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def feeds_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {
        value.name: rng.standard_normal([dim.dim_value for dim in value.type.tensor_type.shape.dim]).astype(np.float32)
        for value in model.graph.input
    }
