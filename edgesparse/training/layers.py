"""The layers of a torch module that can be sparse, as the compiler sees them: names for recipes, canonical views.

A layer's name is its module's name (`block1.pointwise.conv`), its operator type the ONNX one (`Conv`,
`ConvTranspose`, `Gemm`), so that one recipe selects the same layers before and after export.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgesparse.errors import EdgesparseError, Reason, UnsupportedError
from edgesparse.pattern import Array, Mask, from_canonical, kept_units, misfit, to_canonical
from edgesparse.recipe import Choice
from edgesparse.select import Candidate

Module = Any
Tensor = Any

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Layer:
    """A module with a weight: `shape` is the canonical `(Cout, Cin / groups, taps)`, see `edgesparse.pattern`."""

    name: str
    op_type: str
    kind: str
    groups: int
    shape: tuple[int, int, int]
    stored_shape: tuple[int, ...]
    module: Module
    parameter: Tensor

    @property
    def weight(self) -> Tensor:
        """The parameter, as torch stores it. Raises EdgesparseError if the user's code has put another in its place."""
        weight = self.module._parameters.get("weight")
        if weight is None or tuple(weight.shape) != self.stored_shape:
            now = "gone" if weight is None else f"of shape {tuple(weight.shape)}"
            raise EdgesparseError(
                f"the weight of layer {self.name!r} has changed its shape",
                why=f"it was {self.stored_shape} when the sparsifier was made, and is now {now}",
                fix="change the model first, then make the sparsifier",
            )
        if weight is not self.parameter:
            raise EdgesparseError(
                f"the weight of layer {self.name!r} was replaced by another parameter",
                why="masks would be kept on one that is not trained",
                fix="make the sparsifier after the model is final, and load states with load_state_dict",
            )
        return weight

    @property
    def default(self) -> bool:
        """Whether the layer is pruned when a recipe does not name it, as in `edgesparse.passes.layers`."""
        return self.kind == "gemm" or (self.kind in ("conv", "conv1x1") and self.groups == 1)

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.stored_shape))

    def candidate(self) -> Candidate:
        """What selectors see of the layer."""
        return Candidate(self.name, self.op_type, self.default, self.kind)

    def view(self, tensor: Tensor) -> Array:
        """A tensor of the weight's shape as canonical numpy array `[Cout, Cin / groups, taps]`."""
        stored = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
        return to_canonical(stored, self.kind, groups=self.groups, trans_b=True)

    def mask_tensor(self, mask: Mask) -> Tensor:
        """A canonical mask as bool tensor of the weight's shape, on its device."""
        stored = from_canonical(mask, self.kind, self.stored_shape, groups=self.groups, trans_b=True)
        made = torch.from_numpy(stored).to(self.parameter.device)
        # the same strides as the weight, or every product with it would be a slow one (channels_last)
        return torch.empty_like(self.parameter, dtype=torch.bool).copy_(made)

    def tensor(self, view: Array) -> Tensor:
        """Canonical numbers as a tensor like the weight."""
        stored = from_canonical(view, self.kind, self.stored_shape, groups=self.groups, trans_b=True)
        return torch.empty_like(self.parameter, requires_grad=False).copy_(torch.from_numpy(stored))

    def numbers(self, view: NDArray[np.int64]) -> Tensor:
        """Canonical whole numbers as a tensor of the weight's shape, on its device."""
        stored = from_canonical(view, self.kind, self.stored_shape, groups=self.groups, trans_b=True)
        return torch.from_numpy(np.ascontiguousarray(stored)).to(self.parameter.device)

    def canonical_mask(self, mask: Tensor) -> Mask:
        """The inverse of `mask_tensor`."""
        stored = mask.detach().cpu().contiguous().numpy().astype(np.bool_)
        return to_canonical(stored, self.kind, groups=self.groups, trans_b=True)


def find_layers(model: Module, names: Mapping[str, str] | None = None) -> list[Layer]:
    """All layers with a weight of their own, in the order of `named_modules`.

    `names` gives modules the names that recipes use, where those are not the modules' own (a converted ONNX graph).
    Raises UnsupportedError for weights that are not there yet, i.e. of lazy modules.
    """
    found = []
    for name, module in model.named_modules():
        described = _describe(module)
        if described is None:
            continue
        op_type, groups = described
        weight = module._parameters.get("weight")
        if weight is None:  # computed: `selected` refuses it if the recipe asks for it
            weight = torch.empty_like(module.weight)
        if isinstance(weight, nn.parameter.UninitializedParameter):
            raise UnsupportedError(
                f"layer {name!r} has no weight yet",
                why="it is a lazy module that has not seen an input",
                fix="run the model once, then make the sparsifier",
            )
        kind = _kind(op_type, weight, groups)
        shape = to_canonical(np.empty(weight.shape, np.bool_), kind, groups=groups, trans_b=True).shape
        shown = (names or {}).get(name, name)
        found.append(Layer(shown, op_type, kind, groups, shape, tuple(weight.shape), module, weight))
    return found


def check_trainable(model: Module, layers: list[Layer]) -> None:
    """Raise UnsupportedError for layers whose mask could not be kept.

    Those are weights that other places of the model use too (tied, or views of one storage, or one module in two
    places), those computed from others by a parametrisation, and those that are frozen.
    """
    users: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not isinstance(parameter, nn.parameter.UninitializedParameter):
            users.setdefault(parameter.untyped_storage().data_ptr(), []).append(name)
    for layer in layers:
        if "weight" not in layer.module._parameters:
            raise UnsupportedError(
                f"the weight of layer {layer.name!r} is computed",
                why="a parametrisation or weight norm makes it from other parameters in every step",
                fix="remove the parametrisation, or put the layer under `ignore`",
            )
        sharing = users.get(layer.parameter.untyped_storage().data_ptr(), [])
        if len(sharing) > 1:
            raise UnsupportedError(
                f"the weight of layer {layer.name!r} is shared",
                why=f"it is also used as {', '.join(sharing[:4])}",
                fix="give the layers weights of their own, or put them under `ignore`",
            )
        if not layer.parameter.requires_grad:
            raise UnsupportedError(
                f"the weight of layer {layer.name!r} is not trained",
                why="its requires_grad is False",
                fix="set requires_grad, or put the layer under `ignore`",
            )


def keep_reason(layer: Layer, choice: Choice | None) -> Reason | None:
    """Why a layer stays dense, or None if it becomes sparse; the rules and codes of `edgesparse.passes.prune`."""
    if choice is None:
        return Reason("not-selected", "the recipe does not select it", layer.name)
    pattern, density = choice.pattern, choice.density
    if pattern.kind == "dense" or density == 1.0:
        return Reason("dense-by-recipe", "the recipe keeps it dense", layer.name)
    if why := misfit(pattern, layer.shape):
        return Reason("pattern-misfit", why, layer.name)
    per_group = layer.shape[0] // layer.groups
    if layer.groups > 1 and layer.kind != "depthwise" and pattern.kind in ("group", "block") and per_group % pattern.n:
        why = f"{pattern} would reach over the border of convolution groups of {per_group} channels"
        return Reason("pattern-misfit", why, layer.name)
    if density is not None and not kept_units(pattern, layer.shape, density):
        return Reason("rounds-to-zero", f"density {density:g} would leave no weight at all", layer.name)
    return None


def _describe(module: Module) -> tuple[str, int] | None:
    """Operator type and groups of a module that has a weight to prune."""
    if isinstance(module, _CONVS):
        return "Conv", module.groups
    if isinstance(module, _TRANSPOSED):
        return "ConvTranspose", module.groups
    return ("Gemm", 1) if isinstance(module, nn.Linear) else None


def _kind(op_type: str, weight: Tensor, groups: int) -> str:
    if op_type == "Gemm":
        return "gemm"
    if op_type == "ConvTranspose":
        return "conv_transpose"
    if groups > 1:
        return "depthwise" if weight.shape[1] == 1 else "conv"
    return "conv1x1" if weight[0, 0].numel() == 1 else "conv"
