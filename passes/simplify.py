"""Simplify: one plain form for what exporters write in many ways.

Afterwards there is no Identity, Dropout or constant expression left, no batch normalisation or padding that a
layer can take in, hard-swish is one node, and the constant weight and bias of every Conv, ConvTranspose, Gemm
and MatMul is an initializer of its own. onnxscript and onnx_ir do what they do well; what they lack is in the
files beside.
"""

from __future__ import annotations

import math

import onnx_ir as ir
from onnx_ir.passes.common import (
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.pattern import RewriteRuleSet
from onnxscript.rewriter.rules import common as rules

from edgesparse.passes.affine import fold_affine
from edgesparse.passes.base import Pass, PassResult, infer_shapes
from edgesparse.passes.graph import constant, nodes_of, scalar, set_constant, static_shape
from edgesparse.passes.pads import fuse_pads

MAX_FOLDED = 2**27
"""Elements of the largest constant that folding may make: no small file may grow to gigabytes."""
_ROUNDS = 8

_TIDY = RewriteRuleSet(
    [
        rules.add_0_rule,
        rules.sub_0_rule,
        rules.mul_by_1_rule,
        rules.div_by_1_rule,
        rules.dropout_zero_rule,
        rules.dropout_inference_rule,
        rules.cast_cast_rule,
        rules.no_op_cast_rule,
        rules.no_op_expand_rule,
        rules.no_op_transpose_rule,
        rules.transpose_transpose_rule,
        rules.reshape_reshape_rule,
        rules.unsqueeze_unsqueeze_rule,
        rules.materialize_reshape_shape_rule,
        rules.collapse_slice_rule,
        rules.min_max_rule,
        rules.max_min_rule,
        rules.successive_relu_rule,
        rules.successive_clip_rule,
        rules.successive_clip_relu_rule,
        rules.successive_relu_clip_rule,
    ]
)
_HARD_SWISH = rules.fuse_hardswish_rules()


def fold(model: ir.Model) -> PassResult:
    """Fold constants, lift them to initializers, drop no-ops and dead nodes, until nothing changes."""
    modified = False
    for _ in range(_ROUNDS):
        changed = [
            bool(LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model).modified),
            bool(IdentityEliminationPass()(model).modified),
            bool(
                fold_constants_ir(
                    model,
                    input_size_limit=MAX_FOLDED,
                    output_size_limit=MAX_FOLDED,
                    should_fold=_should_fold,
                ).modified
            ),
            bool(RewritePass(_TIDY)(model).modified),
            sweep(model).modified,
        ]
        if not any(changed):
            break
        modified = True
        infer_shapes(model)
    return PassResult(model, modified)


def _should_fold(node: ir.Node) -> bool | None:
    """None leaves the choice to onnxscript; quantised weights stay as they are stored."""
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return False
    sizes = [math.prod(shape) for out in node.outputs if (shape := static_shape(out)) is not None]
    if len(sizes) < len(node.outputs):
        # without a known size only what cannot grow is folded
        return None if node.op_type not in ("ConstantOfShape", "Expand", "Tile", "Range", "Resize", "Pad") else False
    if max(sizes, default=0) > MAX_FOLDED:
        return False
    return True if node.op_type == "ConstantOfShape" else None


def sums(model: ir.Model) -> PassResult:
    """Write Sum of two as Add: a residual is one operator then."""
    modified = False
    for node in nodes_of(model, "Sum"):
        if len(node.inputs) == 2:
            _take_place(model, node, ir.node("Add", list(node.inputs), name=node.name))
            modified = True
    return PassResult(model, modified)


def activations(model: ir.Model) -> PassResult:
    """Write hard-sigmoid and hard-swish, spelt out as Add 3, Clip 0..6, Div 6 (or Mul 1/6) and Mul, as one
    node.
    """
    modified = False
    for node in nodes_of(model, "Mul"):
        for index in (0, 1):
            factor, value = node.inputs[index], node.inputs[1 - index]
            number = scalar(factor)
            if number is None or abs(number * 6.0 - 1.0) > 1e-6 or value is None:
                continue
            maker = value.producer()
            if maker is not None and maker.op_type in ("Clip", "Mul") and value.dtype is not None:
                # onnxscript's rules know the division only
                division = ir.node("Div", [value, factor], name=node.name)
                array = constant(factor)
                assert array is not None
                _take_place(model, node, division)
                set_constant(model, division, 1, (array * 0 + 6).astype(array.dtype))
                modified = True
                break
    modified = bool(RewritePass(_HARD_SWISH)(model).modified) or modified
    return PassResult(model, modified)


def _take_place(model: ir.Model, old: ir.Node, new: ir.Node) -> None:
    out = old.outputs[0]
    new.outputs[0].shape, new.outputs[0].type = out.shape, out.type
    ir.convenience.replace_nodes_and_values(model.graph, old, [old], [new], [out], [new.outputs[0]])


def unshare(model: ir.Model) -> PassResult:
    """Give every layer its own weight and bias: what is shared cannot be pruned or packed for one of them."""
    modified = False
    for node in nodes_of(model, "Conv", "ConvTranspose", "Gemm", "MatMul"):
        for index in range(1, min(len(node.inputs), 3)):
            value = node.inputs[index]
            array = constant(value)
            if value is not None and array is not None and (len(value.uses()) > 1 or value.is_graph_output()):
                set_constant(model, node, index, array)
                modified = True
    return PassResult(model, modified)


def sweep(model: ir.Model) -> PassResult:
    """Remove nodes, initializers and opsets that nothing uses."""
    removed = bool(RemoveUnusedNodesPass()(model).modified)
    return PassResult(model, bool(RemoveUnusedOpsetsPass()(model).modified) or removed)


SIMPLIFY: tuple[Pass, ...] = (
    Pass("fold", fold),
    Pass("pads", fuse_pads),
    Pass("affine", fold_affine),
    Pass("sums", sums),
    Pass("activations", activations),
    Pass("unshare", unshare),
    Pass("sweep", sweep),
)
"""The passes in order; `run_passes` checks the model after each."""
