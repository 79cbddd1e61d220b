"""The layers with weights of an ONNX model: which pattern each keeps already, what it costs, what
it weighs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class SurveyedLayer:
    """One layer.

    Attributes
    ----------
    name, op:
        The node's name and operator: what recipes select by.
    kind:
        "conv1x1", "depthwise", "conv", "conv_transpose", "gemm" or "matmul".
    shape:
        The weight's shape as it is stored.
    pattern, density:
        The richest pattern that the zeros keep, and the share of weights that are not zero.
    weights:
        Number of weights.
    flops:
        Operations of one run, 2 per multiply-add, dense; 0 where shapes are not known.
    default:
        Whether a recipe prunes it without naming it.
    """

    name: str
    op: str
    kind: str
    shape: tuple[int, ...]
    pattern: str
    density: float
    weights: int
    flops: int
    default: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the weights as float32, dense."""
        return 4 * self.weights

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "shape": list(self.shape), "bytes": self.nbytes}


def survey(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    notice: Callable[[str], None] | None = None,
) -> list[SurveyedLayer]:
    """Return the model's layers as pruning sees them: after simplifying, in graph order.

    Raises
    ------
    ModelError
        If the file is not a valid model.
    UnsupportedError
        If it has open dimensions that `shapes` does not fix.
    """
    from edgesparse.passes import load_model

    return survey_model(load_model(path, shapes, notice))


def survey_model(given: ir.Model) -> list[SurveyedLayer]:
    """`survey` of a loaded model, which stays as it is."""
    from edgesparse.passes import SIMPLIFY, run_passes, weight_layers
    from edgesparse.passes.layers import canonical_weight
    from edgesparse.pattern import find_pattern

    model = run_passes(given, SIMPLIFY).model
    layers = []
    for layer in weight_layers(model):
        pattern, density = find_pattern(canonical_weight(model, layer))
        layers.append(
            SurveyedLayer(
                layer.name,
                layer.op_type,
                layer.kind,
                layer.stored_shape,
                str(pattern),
                float(density),
                layer.params,
                2 * layer.macs,
                layer.default,
            )
        )
    return layers
