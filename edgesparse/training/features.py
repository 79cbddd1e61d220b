"""Where a student is compared with its teacher besides the outputs, and how far apart they are there.

Logits of a few inputs mostly teach which classes those few are of: with one photograph of each of a hundred classes, a
network of a thousand soon finds nothing but that hundred. What its layers make of the same inputs has a value for each
channel and place, and says nothing of classes (cf. SquareHead, 2310.06927; for small sets FitNets, 1412.6550, and
2201.10787). Compared is what the next layers see: after the activation, and after what is added.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import onnx_ir as ir
import torch

from edgesparse.training.distil import logit_loss
from edgesparse.training.layers import Tensor

PASSED = ("Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Gelu", "HardSwish", "Tanh", "Sigmoid", "Add")
"""Operators that a layer's output goes through, if through nothing else, before other layers see it."""
LEAST = 0.25
"""Of the factors for logits; the largest is its inverse."""


def places(nodes: Iterable[ir.Node], layers: Collection[str]) -> list[str]:
    """Names of the values that others see of the named nodes, each once, in the nodes' order."""
    return list(dict.fromkeys(_seen(node.outputs[0]) for node in nodes if node.name in layers))


def narrow(sizes: Sequence[int]) -> list[int]:
    """Indices of the values worth comparing, of values in the graph's order with so many elements each.

    Left out is what is more than twice as large as the one before or after it, e.g. expansions inside inverted
    bottlenecks: the small one is made from it or it from the small one, and passes over large values take long. The
    last stays always.
    """
    last = len(sizes) - 1
    return [i for i, size in enumerate(sizes) if i == last or size <= 2 * min(sizes[max(i - 1, 0) : i + 2])]


def feature_loss(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Mean over the values of the squared error over the teacher's mean square; the last, which the head of the network
    sees, counts once more by itself.

    Lists of tensors of equal shapes, not empty; the teacher's take no gradient.
    """
    apart = torch.stack([_relative(mine, right.detach()) for mine, right in zip(ours, theirs, strict=True)])
    return apart.mean() + apart[-1]


def output_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Between outputs: of classes [N, K] by their probabilities (divergence, nats), of others by relative squares."""
    if ours.ndim == 2 and ours.shape[1] > 1:
        return logit_loss(ours, theirs, temperature=1.0)
    return _relative(ours, theirs)


def distances(ours: Tensor, theirs: Tensor) -> Tensor:
    """`output_distance` of each row by itself: [N]."""
    return torch.stack([output_distance(a, b) for a, b in zip(ours.split(1), theirs.split(1), strict=True)])


def teaching(outputs: Tensor, inputs: int) -> str:
    """What so many inputs can be taught by: "features", or "both" them and the outputs, as these are on some inputs."""
    classes = outputs.shape[1] if outputs.ndim == 2 else 1
    return "features" if inputs < classes else "both"


def sharpness(ours: Tensor, theirs: Tensor) -> float:
    """The factor of our logits [N, classes] that brings them closest to the teacher's, by divergence; from 1/4 to 4.

    Least squares draw values to their means, so that logits get flat: their order is right and their scale is not. The
    divergence is convex in the factor.
    """
    low, high = LEAST, 1.0 / LEAST
    for _ in range(40):
        third = (high - low) / 3.0
        left, right = (float(logit_loss(at * ours, theirs, temperature=1.0)) for at in (low + third, high - third))
        low, high = (low, high - third) if left <= right else (low + third, high)
    return (low + high) / 2.0


def _relative(ours: Tensor, theirs: Tensor) -> Tensor:
    # by norms: passes over the values cost more than what is computed in them, and these take the fewest
    norm = torch.linalg.vector_norm
    return norm(ours - theirs).square() / norm(theirs).square().clamp_min(1e-12 * theirs.numel())


def _seen(value: ir.Value) -> str:
    while not value.is_graph_output():
        users = {node for node, _ in value.uses()}
        if len(users) != 1 or (user := users.pop()).op_type not in PASSED:
            break
        value = user.outputs[0]
    return value.name or ""
