"""From a simplified ONNX model to operations: which nodes become which kernel family, and what is fused into what.

The walk is in topological order. A node that starts a family (Conv, Gemm, MatMul, pooling, elementwise) takes the
activation and the residual add that follow it into its epilogue, as long as nobody else reads what lies between. What
no family covers is collected, run after run of nodes, for Relax; such a run of a topological order is convex, so it
can be one part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from edgesparse.errors import UnsupportedError
from edgesparse.graph.attention import attentions
from edgesparse.graph.attributes import constant_of, integer, ints, is_float, name_of, node_name, number, pads_of, pair
from edgesparse.graph.carve import carve, held
from edgesparse.graph.fusion import Fusion
from edgesparse.graph.ops import (
    Concat,
    Conv,
    Elementwise,
    GlobalPooling,
    Graph,
    LayerNorm,
    Linear,
    Op,
    Pooling,
    TopK,
    Value,
    View,
)
from edgesparse.kernels import Epilogue
from edgesparse.lowering.recurrent import recurrent
from edgesparse.lowering.upsample import depth_to_space, nearest, transposed

_BINARY = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div"}
#: Rows from which a layer norm is one of ours: fewer fill no vectors.
_NORM_ROWS = 16
_VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"}


def recognise(model: ir.Model) -> Graph:
    """Understand a simplified model with static shapes.

    Raises
    ------
    UnsupportedError
        A node's shape or type is not known, or nothing can lower it; names node, operator and opset.
    """
    return _Walk(model).run()


class _Walk:
    """One pass over the nodes, with what is known of values so far."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.graph = model.graph
        self.values: dict[str, Value] = {}
        self.fusion = Fusion(self.graph)
        self.attentions = {id(found.last): found for found in attentions(self.graph)}
        self.ops: list[Op] = []
        self.loose: list[ir.Node] = []
        self.rules: dict[str, Callable[[ir.Node], Op | None]] = {
            "Conv": self._conv,
            "Gemm": self._gemm,
            "MatMul": self._matmul,
            "MaxPool": self._pooling,
            "AveragePool": self._pooling,
            "GlobalAveragePool": self._global_pooling,
            "GlobalMaxPool": self._global_pooling,
            "ReduceMean": self._reduce_mean,
            "Concat": self._concat,
            "LayerNormalization": self._layer_norm,
            "TopK": self._topk,
            **dict.fromkeys(("ConvTranspose", "DepthToSpace", "Resize"), self._upsampled),
            **dict.fromkeys(("LSTM", "GRU", "RNN"), self._recurrent),
            **dict.fromkeys(_BINARY, self._binary),
            **dict.fromkeys(_VIEWS, self._view),
        }

    def run(self) -> Graph:
        inputs = [value for value in self.graph.inputs if value.name not in self.graph.initializers]
        for value in inputs:
            self._declare(value, "the model")
        self.fusion.taken.update(id(node) for found in self.attentions.values() for node in found.nodes)
        for node in self.graph:
            if id(node) in self.attentions:
                self._flush()
                self._declare_outputs(node)
                self.ops.append(self.attentions[id(node)].op)
            if id(node) in self.fusion.taken:
                continue
            rule = self.rules.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            op = (rule(node) if rule else None) or self._activation_alone(node)
            if op is None:
                self.loose.append(node)
                self._declare_outputs(node)
                continue
            self._flush()
            self._declare_outputs(node)
            self.ops.append(op)
        self._flush()
        outputs = tuple(name_of(value) for value in self.graph.outputs)
        for value in self.graph.outputs:
            array = constant_of(value)
            if array is not None:
                self._declare(value, "the model")
                self.ops.append(held(self.model, self.values[name_of(value)], array))
        ops = tuple(_sorted(self.ops, [name_of(value) for value in inputs]))
        used = {name for op in ops for name in (*op.inputs, *op.outputs)} | set(outputs)
        names = tuple(name_of(value) for value in inputs)
        values = {name: value for name, value in self.values.items() if name in used or name in names}
        return Graph(ops, values, names, outputs)

    # -- values ------------------------------------------------------------------------------------------------

    def _declare(self, value: ir.Value, where: str) -> None:
        shape = value.shape
        if shape is None or value.dtype is None or any(not isinstance(dim, int) for dim in shape):
            raise UnsupportedError(
                f"value {value.name!r} of {where} has no fixed shape",
                why=f"its shape is {shape}" if shape is not None else "shape inference could not find it",
                fix="fix the model's input shapes with --shape, or simplify the model",
            )
        dims = tuple(int(dim) for dim in shape)  # type: ignore[arg-type]
        self.values[name_of(value)] = Value(name_of(value), dims, value.dtype.numpy().name)

    def _declare_outputs(self, node: ir.Node) -> None:
        for value in node.outputs:
            if value.name:
                self._declare(value, f"node {node.name!r} ({node.op_type})")

    def _image(self, value: ir.Value | None) -> tuple[int, int, int, int] | None:
        """Shape of a float image that is computed (not constant)."""
        if value is None or value.name is None or constant_of(value) is not None:
            return None
        if value.name not in self.values:
            self._declare(value, "the model")
        return self.values[value.name].image

    def _made(self) -> set[str]:
        """Values that are there before the next operation runs."""
        return {name for op in self.ops for name in op.outputs} | {name_of(value) for value in self.graph.inputs}

    def _names(self, chain: Iterable[ir.Node]) -> tuple[str, ...]:
        return tuple(node.name or node.op_type for node in chain)

    # -- rules -------------------------------------------------------------------------------------------------

    def _conv(self, node: ir.Node) -> Op | None:
        x, w = node.inputs[0], node.inputs[1]
        image, weight = self._image(x), constant_of(w)
        bias = constant_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
        if image is None or weight is None or weight.ndim != 4 or not is_float(w):
            return None
        if len(node.inputs) > 2 and node.inputs[2] is not None and bias is None:
            return None
        kernel = (weight.shape[2], weight.shape[3])
        strides, dilations = pair(node, "strides"), pair(node, "dilations")
        pads = pads_of(node, image[2:], kernel, strides, dilations)
        epilogue, residual, chain = self.fusion.fuse(node, self._made(), residuals=True)
        epilogue, affine, chain = self.fusion.affine(epilogue, chain)
        flat = weight.reshape(*weight.shape[:2], -1)
        return Conv(
            node_name(node),
            self._names(chain),
            (name_of(x), *((residual,) if residual else ())),
            (self._output(chain),),
            flat,
            bias if bias is not None else np.zeros(weight.shape[0], np.float32),
            kernel,
            strides,
            dilations,
            pads,
            integer(node, "group", 1),
            epilogue,
            affine,
        )

    def _output(self, chain: list[ir.Node]) -> str:
        value = chain[-1].outputs[0]
        self._declare(value, f"node {chain[-1].name!r}")
        return name_of(value)

    def _gemm(self, node: ir.Node) -> Op | None:
        x, w = node.inputs[0], node.inputs[1]
        weight = constant_of(w)
        extra = node.inputs[2] if len(node.inputs) > 2 else None
        bias = constant_of(extra)
        if weight is None or constant_of(x) is not None or not is_float(x):
            return None
        if extra is not None and bias is None:
            return None
        if integer(node, "transA", 0) or number(node, "alpha", 1.0) != 1.0 or number(node, "beta", 1.0) != 1.0:
            return None
        rows_out = weight if integer(node, "transB", 0) else weight.T
        if bias is not None and bias.size != 1 and (bias.size != rows_out.shape[0] or bias.shape[-1] != bias.size):
            return None  # a value of its own for each row of x
        return self._linear(node, name_of(x), rows_out, bias)

    def _matmul(self, node: ir.Node) -> Op | None:
        x, w = node.inputs[0], node.inputs[1]
        weight = constant_of(w)
        if weight is None or weight.ndim != 2 or constant_of(x) is not None or not is_float(x):
            return None
        add = self.fusion.sole_consumer(node.outputs[0])
        bias = None
        if add is not None and add.op_type == "Add":
            constants = [constant_of(value) for value in add.inputs]
            bias = next((each for each in constants if each is not None and each.shape == weight.shape[1:]), None)
        return self._linear(node, name_of(x), weight.T, bias, add if bias is not None else None)

    def _linear(
        self, node: ir.Node, x: str, weight: np.ndarray, bias: np.ndarray | None, add: ir.Node | None = None
    ) -> Op | None:
        if x not in self.values:
            return None
        shape = self.values[x].shape
        if not shape or shape[-1] != weight.shape[1]:
            return None
        head = [node, add] if add is not None else [node]
        made = self._made() | {name_of(value) for part in self.loose for value in part.outputs if value.name}
        epilogue, residual, chain = self.fusion.fuse(head[-1], made, residuals=True)
        self.fusion.taken.update(id(part) for part in head)
        full = np.zeros(weight.shape[0], np.float32)
        if bias is not None:
            full += bias.reshape(-1)
        return Linear(
            node_name(node),
            self._names([*head[:-1], *chain]),
            (x, *((residual,) if residual else ())),
            (self._output(chain),),
            np.ascontiguousarray(weight)[:, :, None],
            full,
            int(np.prod(shape[:-1], dtype=np.int64)),
            epilogue,
        )

    def _layer_norm(self, node: ir.Node) -> Op | None:
        """Layer norm over rows of features between matrix products, which keep them feature-major."""
        shape = self._shape_of(node.outputs[0])
        scale = constant_of(node.inputs[1])
        given = node.inputs[2] if len(node.inputs) > 2 else None
        shift = constant_of(given) if given is not None else None
        if len(shape) < 2 or integer(node, "axis", -1) not in (-1, len(shape) - 1) or not is_float(node.inputs[0]):
            return None
        if scale is None or scale.shape != shape[-1:] or (given is not None and shift is None):
            return None
        rows = int(np.prod(shape[:-1], dtype=np.int64))
        if rows < _NORM_ROWS or len([value for value in node.outputs if value.name]) != 1:
            return None
        x = name_of(node.inputs[0])
        after = [use.node for use in node.outputs[0].uses()]
        products = any(isinstance(op, Linear) and x in op.outputs for op in self.ops) or any(
            each.op_type == "MatMul" and constant_of(each.inputs[1]) is not None for each in after
        )
        if not products or constant_of(node.inputs[0]) is not None:
            return None
        self.fusion.taken.add(id(node))
        return LayerNorm(
            node_name(node),
            self._names([node]),
            (x,),
            (self._output([node]),),
            scale,
            shift if shift is not None else np.zeros_like(scale),
            number(node, "epsilon", 1e-5),
            rows,
        )

    def _pooling(self, node: ir.Node) -> Op | None:
        image = self._image(node.inputs[0])
        kernel = ints(node, "kernel_shape", ())
        if image is None or len(kernel) != 2 or len([v for v in node.outputs if v.name]) != 1:
            return None
        strides, dilations = pair(node, "strides"), pair(node, "dilations")
        pads = pads_of(node, image[2:], (kernel[0], kernel[1]), strides, dilations)
        out = self._shape_of(node.outputs[0])
        floor = [
            (size + before + after - (k - 1) * d - 1) // s + 1
            for size, before, after, k, d, s in zip(
                image[2:], pads[:2], pads[2:], kernel, dilations, strides, strict=True
            )
        ]
        if integer(node, "storage_order", 0) or any(p >= k for p, k in zip((*pads,), (*kernel, *kernel), strict=True)):
            return None
        if any((n - 1) * s >= size + p for n, s, size, p in zip(out[2:], strides, image[2:], pads[:2], strict=True)):
            return None  # ceil_mode: ONNX's inference counts a window beyond the image that onnxruntime does not
        if dilations[0] > image[2]:
            return None  # a window may hold no row of the image at all
        mode = "max"
        if node.op_type == "AveragePool":
            counted = integer(node, "count_include_pad", 0) and any(pads)
            ceil = list(out[2:]) != floor
            if ceil and counted:
                return None  # padding counts, what hangs over the padding does not
            mode = "avg" if not ceil and (counted or not any(pads)) else "avg_valid"
            if mode == "avg_valid" and max(dilations) > 1:
                return None
        x = name_of(node.inputs[0])
        self.fusion.taken.add(id(node))
        outputs = (self._output([node]),)
        return Pooling(
            node_name(node), self._names([node]), (x,), outputs, mode, (kernel[0], kernel[1]), strides, dilations, pads
        )

    def _shape_of(self, value: ir.Value | None) -> tuple[int, ...]:
        if value is None:
            return ()
        self._declare(value, "the model")
        return self.values[name_of(value)].shape

    def _global_pooling(self, node: ir.Node) -> Op | None:
        if self._image(node.inputs[0]) is None:
            return None
        return self._global(node, "max" if node.op_type == "GlobalMaxPool" else "avg")

    def _reduce_mean(self, node: ir.Node) -> Op | None:
        """ReduceMean over both image axes is a global average pool."""
        if self._image(node.inputs[0]) is None:
            return None
        axes: Any = constant_of(node.inputs[1]) if len(node.inputs) > 1 else ints(node, "axes", ())
        if axes is None or sorted(int(axis) % 4 for axis in np.asarray(axes).reshape(-1)) != [2, 3]:
            return None
        return self._global(node, "avg")

    def _global(self, node: ir.Node, mode: str) -> Op:
        self.fusion.taken.add(id(node))
        x = name_of(node.inputs[0])
        return GlobalPooling(node_name(node), self._names([node]), (x,), (self._output([node]),), mode)

    def _binary(self, node: ir.Node) -> Op | None:
        """Image op image, channel vector or scalar; the image has the output's shape."""
        out = self._shape_of(node.outputs[0])
        if not all(map(is_float, node.inputs)) or len(out) != 4:
            return None
        for x, z in ((0, 1), (1, 0)):
            image = self._image(node.inputs[x])
            if image is None or image != out:
                continue
            constant = constant_of(node.inputs[z])
            kind = _operand(out, self._shape_of(node.inputs[z]) if constant is None else constant.shape, constant)
            if kind is None:
                continue
            names = [name_of(node.inputs[x])] + ([] if constant is not None else [name_of(node.inputs[z])])
            op = _BINARY[node.op_type]
            epilogue, _, chain = self.fusion.fuse(node, self._made(), residuals=False)
            return Elementwise(
                node_name(node),
                self._names(chain),
                tuple(names),
                (self._output(chain),),
                op,
                kind,
                constant,
                x == 1,
                epilogue,
            )
        return None

    def _activation_alone(self, node: ir.Node) -> Op | None:
        if node.domain not in ("", "ai.onnx") or not node.inputs or self._image(node.inputs[0]) is None:
            return None
        epilogue = self.fusion.epilogue_of(node)
        if epilogue is None:
            return None
        self.fusion.taken.add(id(node))
        x = name_of(node.inputs[0])
        return Elementwise(
            node_name(node), self._names([node]), (x,), (self._output([node]),), "first", "none", None, False, epilogue
        )

    def _concat(self, node: ir.Node) -> Op | None:
        images = [self._image(value) for value in node.inputs]
        if any(image is None for image in images) or integer(node, "axis", 0) % 4 != 1:
            return None
        self.fusion.taken.add(id(node))
        names = tuple(name_of(value) for value in node.inputs)
        return Concat(node_name(node), self._names([node]), names, (self._output([node]),))

    def _view(self, node: ir.Node) -> Op | None:
        x = node.inputs[0]
        if x is None or constant_of(x) is not None or name_of(x) not in self.values:
            return None
        self.fusion.taken.add(id(node))
        return View(node_name(node), self._names([node]), (name_of(x),), (self._output([node]),))

    def _recurrent(self, node: ir.Node) -> Op:
        if name_of(node.inputs[0]) not in self.values:
            raise UnsupportedError(f"node {node_name(node)!r} ({node.op_type})", why="its input is a constant")
        linear, op, made = recurrent(node, self.values)
        self._flush()
        for value in node.inputs:
            array = constant_of(value)
            if value is not None and array is not None and value.name in op.inputs and value.name not in self.values:
                self._declare(value, f"node {node_name(node)!r}")
                self.ops.append(held(self.model, self.values[name_of(value)], array))
        self.values |= {value.name: value for value in made}
        self.ops.append(linear)
        self.fusion.taken.add(id(node))
        return op

    def _upsampled(self, node: ir.Node) -> Op | None:
        image, out = self._image(node.inputs[0]), self._shape_of(node.outputs[0])
        if image is None or len(out) != 4:
            return None
        x, size = name_of(node.inputs[0]), (out[0], out[1], out[2], out[3])
        if node.op_type != "ConvTranspose":
            output = name_of(node.outputs[0])
            if node.op_type == "Resize":
                return nearest(node, x, image, size, output)
            return depth_to_space(node, x, image, output)
        if transposed(node, x, image, size, Epilogue(), (), "") is None:
            return None
        epilogue, _, chain = self.fusion.fuse(node, self._made(), residuals=False)
        made = transposed(node, x, image, size, epilogue, self._names(chain), self._output(chain))
        assert made is not None
        convs, join, values = made
        self._flush()
        self.values |= {value.name: value for value in values}
        self.ops += convs if join is not None else convs[:-1]
        return join or convs[-1]

    def _topk(self, node: ir.Node) -> Op | None:
        x, count = node.inputs[0], constant_of(node.inputs[1])
        if x is None or constant_of(x) is not None or count is None or name_of(x) not in self.values:
            return None
        value = self.values[name_of(x)]
        if value.dtype not in ("float32", "int32", "int64"):
            return None
        axis = integer(node, "axis", -1) % len(value.shape)
        outer, size, inner = value.shape[:axis], value.shape[axis], value.shape[axis + 1 :]
        wanted = int(count.reshape(-1)[0])
        made = []
        for place, (mark, dtype) in enumerate([("values", value.dtype), ("indices", "int64")]):
            name = node.outputs[place].name if place < len(node.outputs) else ""
            made.append(name or f"{node_name(node)}/{mark}")
            self.values[made[-1]] = Value(made[-1], (*outer, wanted, *inner), dtype)
        self.fusion.taken.add(id(node))
        return TopK(
            node_name(node),
            self._names([node]),
            (value.name,),
            tuple(made),
            wanted,
            size,
            int(np.prod(outer, dtype=np.int64)),
            int(np.prod(inner, dtype=np.int64)),
            bool(integer(node, "largest", 1)),
            value.dtype,
        )

    # -- the rest ----------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Make one fallback part of the loose nodes so far."""
        if self.loose:
            self.ops.append(carve(self.model, self.loose, self.values))
            self.loose = []


def _sorted(ops: list[Op], inputs: list[str]) -> list[Op]:
    """Topological order, keeping the given order where it can be: a fused op may sit before its residual."""
    ready = set(inputs)
    pending, ordered = list(ops), []
    while pending:
        index = next((i for i, op in enumerate(pending) if all(name in ready for name in op.inputs)), None)
        if index is None:
            names = ", ".join(op.name for op in pending[:4])
            raise UnsupportedError(
                f"the graph has no order in which {names} can run", why="values are missing or form a cycle"
            )
        op = pending.pop(index)
        ready.update(op.outputs)
        ordered.append(op)
    return ordered


def _operand(out: tuple[int, ...], shape: tuple[int, ...], constant: np.ndarray | None) -> str | None:
    """How a second operand of `shape` meets an image of shape `out`."""
    if np.prod(shape, dtype=np.int64) == 1 and constant is not None:
        return "scalar"
    padded = (1,) * (4 - len(shape)) + tuple(shape)
    if len(padded) != 4 or (constant is None and len(shape) != 4):
        return None  # what is computed and no image has no layout to meet the image's
    if padded == out and constant is None:
        return "full"
    if padded[1:] == (out[1], 1, 1) and padded[0] in (1, out[0]) and (padded[0] == out[0] or constant is not None):
        return "channel" if constant is None or padded[0] == 1 else None
    return None
