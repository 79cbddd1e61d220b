"""What an error of an output channel costs: the Fisher information that the model's outputs have about it.

For a small error e of a layer's outputs, KL(model || model with e) is about e^T F e / 2, with F = E[g g^T] and g the
gradient of log p(class) by these outputs, classes drawn from the model's own probabilities: no labels are needed. Of F
only the channels' part is kept, the sum over positions of g^2, so that with H the second moments of the layer's inputs
F x H stands for the curvature (K-FAC, 1503.05671; for pruning: 2203.07259, 2312.17244).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir
import torch

from edgesparse.errors import UsageError
from edgesparse.passes.graph import Array
from edgesparse.passes.layers import LayerInfo
from edgesparse.passes.observe import Feeds
from edgesparse.training.converter import Converted

DRAWS = 2
"""Classes drawn for each row of each sample's output."""


def information(
    model: ir.Model, layers: Sequence[LayerInfo], inputs: Iterable[Feeds], seed: int = 0
) -> dict[str, Array]:
    """By layer name, float64 `[Cout]`: the mean over samples of the sum over positions of the squared gradient, nats.

    Rows (the last axis) of the model's first output are logits, or what a Softmax there is made from.

    Raises
    ------
    UsageError
        A model of several inputs, or no samples.
    UnsupportedError
        A graph that torch cannot take over as it is.
    """
    names = [value.name or "" for value in model.graph.inputs if not value.is_initializer()]
    if len(names) != 1:
        raise UsageError(f"the model has {len(names)} inputs", why="criterion fisher takes models of one input")
    module = Converted(model).eval()
    outputs = {node.name: node.outputs[0].name or "" for node in model.graph}
    wanted = [*(outputs[layer.name] for layer in layers), module.logits_name()]
    source = torch.Generator().manual_seed(seed)
    sums = {layer.name: np.zeros(layer.shape[0]) for layer in layers}
    count = 0
    for feeds in inputs:
        *values, logits = module.values(wanted, torch.from_numpy(np.array(feeds[names[0]])))
        scores = logits.reshape(-1, logits.shape[-1]).log_softmax(-1)
        for _ in range(DRAWS):
            drawn = torch.multinomial(scores.detach().exp(), 1, generator=source)
            slopes = torch.autograd.grad(scores.gather(1, drawn).sum(), values, retain_graph=True, allow_unused=True)
            for layer, slope in zip(layers, slopes, strict=True):
                if slope is not None:
                    sums[layer.name] += _by_channel(slope, layer)
        count += 1
    if count == 0:
        raise UsageError("there is no calibration data", fix="give at least one sample, better a hundred")
    return {name: total / (DRAWS * count) for name, total in sums.items()}


def _by_channel(slope: torch.Tensor, layer: LayerInfo) -> Array:
    axis = 1 if layer.op_type.startswith("Conv") else slope.ndim - 1
    others = [i for i in range(slope.ndim) if i != axis]
    return np.asarray(slope.double().square().sum(others).numpy())
