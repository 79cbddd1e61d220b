"""onnxruntime as the judge of what passes do."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime


def run(model: ir.Model | onnx.ModelProto, seed: int = 0) -> list[np.ndarray]:
    """Outputs of onnxruntime on seeded normal inputs."""
    proto = model if isinstance(model, onnx.ModelProto) else ir.serde.serialize_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    rng = np.random.default_rng(seed)
    feed = {i.name: rng.normal(size=i.shape).astype(np.float32) for i in session.get_inputs()}
    return session.run(None, feed)


def same(before: ir.Model, after: ir.Model, bound: float = 1e-6) -> None:
    """Assert equal outputs up to `bound` times the largest output."""
    for a, b in zip(run(before), run(after), strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= bound * max(np.abs(a).max(), 1e-30)
