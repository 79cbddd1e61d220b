"""Padding: made explicit, and taken into the convolution or pooling that follows.

Conv pads with zeros, so a constant Pad of zeros before it only adds to its own pads. AveragePool without pads
of its own may count padded zeros (`count_include_pad`). MaxPool pads with minus infinity: a Pad of zeros is
the same where what it pads is never negative, since every window still holds a real element.
"""

from __future__ import annotations

import onnx_ir as ir

from edgesparse.passes.base import PassResult
from edgesparse.passes.graph import constant, ints, nodes_of, only_user, scalar, static_shape

_WINDOWS = ("Conv", "MaxPool", "AveragePool")
_NEVER_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Exp", "Abs"})
Pads = tuple[int, ...]


def fuse_pads(model: ir.Model) -> PassResult:
    """The pass; see the module's text."""
    modified = False
    for node in nodes_of(model, *_WINDOWS):
        modified = _explicit(node) or modified
    for node in nodes_of(model, "Pad"):
        modified = _fuse(node) or modified
    return PassResult(model, modified)


def _kernel(node: ir.Node) -> tuple[int, ...]:
    weight = static_shape(node.inputs[1]) if node.op_type == "Conv" else None
    return ints(node, "kernel_shape", weight[2:] if weight else ())


def _explicit(node: ir.Node) -> bool:
    """Replace `auto_pad` by the pads that it stands for, where the shapes are known."""
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    shape, kernel = static_shape(node.inputs[0]), _kernel(node)
    if mode == "NOTSET" or shape is None or not kernel:
        return False
    ones = (1,) * len(kernel)
    strides, dilations = ints(node, "strides", ones), ints(node, "dilations", ones)
    begins, ends = [], []
    for size, width, stride, dilation in zip(shape[2:], kernel, strides, dilations, strict=True):
        reach = (width - 1) * dilation + 1
        total = max((-(-size // stride) - 1) * stride + reach - size, 0) if mode.startswith("SAME") else 0
        small, large = total // 2, total - total // 2
        begins.append(large if mode == "SAME_LOWER" else small)
        ends.append(small if mode == "SAME_LOWER" else large)
    node.attributes.pop("auto_pad")
    node.attributes["pads"] = ir.AttrInt64s("pads", [*begins, *ends])
    return True


def _fuse(pad: ir.Node) -> bool:
    user = only_user(pad.outputs[0])
    pads = _spatial_pads(pad)
    if user is None or pads is None or user.op_type not in _WINDOWS or user.inputs[0] is not pad.outputs[0]:
        return False
    own = ints(user, "pads", (0,) * len(pads))
    kernel = _kernel(user)
    if user.attributes.get_string("auto_pad", "NOTSET") != "NOTSET" or len(own) != len(pads):
        return False
    total = [a + b for a, b in zip(own, pads, strict=True)]
    if user.op_type != "Conv" and not _pool_may(pad, user, own, total, kernel):
        return False
    user.attributes["pads"] = ir.AttrInt64s("pads", total)
    user.replace_input_with(0, pad.inputs[0])
    assert pad.graph is not None
    pad.graph.remove(pad, safe=True)
    return True


def _pool_may(pad: ir.Node, pool: ir.Node, own: Pads, total: list[int], kernel: tuple[int, ...]) -> bool:
    """Whether pooling with the pad taken in gives the same numbers, and is valid (pads smaller than the
    kernel).
    """
    if any(own) or pool.attributes.get_int("ceil_mode", 0) != 0 or len(pool.outputs) > 1:
        return False
    if any(width >= kernel[i % len(kernel)] for i, width in enumerate(total)):
        return False
    if pool.op_type == "AveragePool":
        pool.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
        return True
    maker = pad.inputs[0].producer() if pad.inputs[0] is not None else None
    if maker is None:
        return False
    floor = scalar(maker.inputs[1]) if maker.op_type == "Clip" and len(maker.inputs) > 1 else None
    return maker.op_type in _NEVER_NEGATIVE or (floor is not None and floor >= 0)


def _spatial_pads(pad: ir.Node) -> Pads | None:
    """Begins and ends over the axes from 2 on of a constant Pad of zeros; None where it does anything else."""
    shape = static_shape(pad.inputs[0])
    amounts = constant(pad.inputs[1]) if len(pad.inputs) > 1 else None
    if pad.attributes.get_string("mode", "constant") != "constant" or shape is None or amounts is None:
        return None
    rank = len(shape)
    given = [*pad.inputs[2:], None, None]
    if given[0] is not None and scalar(given[0]) != 0.0:
        return None
    axes = list(range(rank))
    if given[1] is not None:
        chosen = constant(given[1])
        if chosen is None:
            return None
        axes = [int(axis) % rank for axis in chosen]
    full = [0] * (2 * rank)
    for i, axis in enumerate(axes):
        full[axis], full[rank + axis] = int(amounts[i]), int(amounts[len(axes) + i])
    if min(full) < 0 or any(full[:2]) or any(full[rank : rank + 2]) or rank < 3:
        return None
    return (*full[2:rank], *full[rank + 2 :])
