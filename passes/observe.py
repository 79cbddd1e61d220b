"""What flows through a model: onnxruntime runs its front part, and statistics are gathered sample by sample.

Memory does not grow with the number of samples: of each layer only the count, the means and the second moments of
its inputs are kept. With X the im2col of a layer's input, one row per output position and one column per weight of
an output channel, they are mean = X^T 1 / P and covariance = X^T X / P - mean mean^T, all that optimal brain
surgeon (Hassibi and Stork 1993; per layer: 1705.07565, SparseGPT 2301.00774) needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from edgesparse.errors import ModelError, UsageError
from edgesparse.passes.base import first_line
from edgesparse.passes.graph import Array, ints
from edgesparse.passes.layers import LayerInfo

Feeds = Mapping[str, Array]
MAX_CACHE = 1 << 30
"""Bytes of activations that may be kept to go on from."""
MAX_POSITIONS = 2048
"""Positions of one sample that are enough for its moments."""
Tick = Callable[[float, str], None]


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of a layer's inputs over all output positions of all samples.

    Attributes
    ----------
    count:
        Positions seen.
    mean:
        float64 `[groups, K]`, K = Cin / groups * taps, in the order of the canonical weight's columns.
    covariance:
        float64 `[groups, K, K]`.
    """

    count: int
    mean: Array
    covariance: Array


@dataclass(frozen=True)
class Spread:
    """Mean and variance, float64 `[Cout]`, of each output channel of a layer."""

    mean: Array
    variance: Array


def node_named(model: ir.Model, name: str) -> ir.Node:
    """The main graph's node of that name. UsageError if there is none."""
    for node in model.graph:
        if node.name == name:
            return node
    raise UsageError(f"the model has no node {name!r}")


def front_session(model: ir.Model, outputs: Sequence[str], given: Iterable[str] = ()) -> Any:
    """An onnxruntime session of only what the named values need beyond those that are `given`, on one thread.

    Raises ModelError if onnxruntime refuses it.
    """
    import onnxruntime

    proto = ir.serde.serialize_model(model)
    types = {value.name: value.dtype for node in model.graph for value in node.outputs}
    known = {name: int(types.get(name) or ir.DataType.FLOAT) for name in given if name in types}
    front = _front(proto, outputs, known)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(front.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for each kind of failure
        raise ModelError("onnxruntime cannot run the model for calibration", why=first_line(error)) from error


def run_values(model: ir.Model, outputs: Sequence[str], inputs: Iterable[Feeds]) -> Iterator[list[Array]]:
    """The named values for each sample, in order.

    A sample maps names to arrays: those of the model's inputs, or of any values inside (see `advance`).

    Raises
    ------
    UsageError: there is no sample, or one does not fit the model's inputs; ModelError: onnxruntime fails.
    """
    session: Any = None
    wanted: set[str] = set()
    asked: list[str] = []
    for number, feeds in enumerate(inputs):
        if session is None:
            asked = [name for name in outputs if name not in feeds]
            session = front_session(model, asked, feeds) if asked else True
            wanted = {port.name for port in session.get_inputs()} if asked else set()
        if not asked:
            yield [feeds[name] for name in outputs]
            continue
        try:
            ran = session.run(asked, {name: array for name, array in feeds.items() if name in wanted})
        except Exception as error:
            why = first_line(error)
            raise UsageError(f"calibration sample {number} does not fit the model", why=why) from error
        fresh = dict(zip(asked, ran, strict=True))
        yield [fresh[name] if name in fresh else feeds[name] for name in outputs]
    if session is None:
        raise UsageError("there is no calibration data", fix="give a folder of pictures or .npy files")


def advance(model: ir.Model, name: str, inputs: Iterable[Feeds], *, limit: int = MAX_CACHE) -> Iterable[Feeds]:
    """Samples that start in front of node `name`: all values made before it that it, or any node behind it, reads.

    They take the place of `inputs` for every question about what comes behind, as long as nothing before changes.
    Where they would take more than `limit` bytes, `inputs` are returned as they are.
    """
    names = _live(model, name)
    kept: list[Feeds] = []
    size = 0
    for values in run_values(model, names, inputs):
        size += sum(value.nbytes for value in values)
        if size > limit:
            return inputs
        kept.append(dict(zip(names, values, strict=True)))
    return kept


def _live(model: ir.Model, name: str) -> list[str]:
    made: set[str] = {value.name or "" for value in model.graph.inputs if not value.is_initializer()}
    behind = False
    live: dict[str, None] = {}
    for node in model.graph:
        behind = behind or node.name == name
        if not behind:
            made.update(value.name or "" for value in node.outputs)
            continue
        for read in _values_read(node):
            if read in made:
                live[read] = None
    live |= {value.name or "": None for value in model.graph.outputs if value.name in made}
    return list(live)


def _values_read(node: ir.Node) -> list[str]:
    found = [value.name or "" for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in ir.traversal.RecursiveGraphIterator(attribute.as_graph()):
                found += [value.name or "" for value in inner.inputs if value is not None]
    return found


def input_moments(
    model: ir.Model, layers: Sequence[LayerInfo], inputs: Iterable[Feeds], tick: Tick | None = None
) -> dict[str, Moments]:
    """Moments of the inputs of `layers`, by layer name, in one pass over the samples. See `run_values` for errors."""
    nodes = [node_named(model, layer.name) for layer in layers]
    names = [str(node.inputs[0].name) for node in nodes if node.inputs[0] is not None]
    distinct = list(dict.fromkeys(names))
    unroll = [columns(node, layer) for node, layer in zip(nodes, layers, strict=True)]
    sums = [_Sum(layer) for layer in layers]
    for values in run_values(model, distinct, inputs):
        by_name = dict(zip(distinct, values, strict=True))
        for name, make, total in zip(names, unroll, sums, strict=True):
            total.add(make(by_name[name]))
        if tick:
            tick(0.0, "statistics")
    return {layer.name: total.moments() for layer, total in zip(layers, sums, strict=True)}


def output_spread(model: ir.Model, layers: Sequence[LayerInfo], inputs: Iterable[Feeds]) -> dict[str, Spread]:
    """Mean and variance per output channel of `layers`, before their activation, in one pass over the samples."""
    nodes = [node_named(model, layer.name) for layer in layers]
    names = [str(node.outputs[0].name) for node in nodes]
    count = [0] * len(names)
    first = [np.zeros(_channels(layer)) for layer in layers]
    second = [np.zeros(_channels(layer)) for layer in layers]
    for values in run_values(model, names, inputs):
        for i, (value, layer) in enumerate(zip(values, layers, strict=True)):
            flat = _by_channel(value, layer)
            count[i] += flat.shape[1]
            first[i] += flat.sum(axis=1, dtype=np.float64)
            second[i] += np.einsum("cp,cp->c", flat, flat).astype(np.float64)
    found = {}
    for layer, n, one, two in zip(layers, count, first, second, strict=True):
        mean = one / n
        found[layer.name] = Spread(mean, np.maximum(two / n - mean * mean, 0.0))
    return found


def columns(node: ir.Node, layer: LayerInfo) -> Callable[[Array], Array]:
    """The function from a layer's input to X^T as `[groups, K, P]`.

    Raises UsageError for transposed convolutions, and for Gemm with a transposed input.
    """
    if layer.kind == "conv_transpose" or (layer.op_type == "Gemm" and node.attributes.get_int("transA") == 1):
        raise UsageError(f"layer {layer.name!r} has no statistics", why=f"{layer.kind} inputs are not unrolled")
    if layer.kind in ("gemm", "matmul"):
        return lambda x: x.reshape(1, -1, x.shape[-1]).transpose(0, 2, 1)
    kernel = layer.stored_shape[2:]
    pads = ints(node, "pads", (0,) * (2 * len(kernel)))
    if layer.kind == "conv1x1" and set(layer.strides) == {1} and not any(pads):
        # no copy in the common case of batch 1
        return lambda x: np.ascontiguousarray(np.moveaxis(x, 1, 0)).reshape(1, x.shape[1], -1)
    return lambda x: im2col(x, kernel, layer.strides, layer.dilations, pads, layer.groups)


def im2col(
    x: Array,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    groups: int = 1,
) -> Array:
    """Unroll `[batch, C, *spatial]` for a convolution: `[groups, C / groups * taps, batch * positions]`.

    A group's `W.reshape(Cout / groups, -1)` times it is the convolution without bias.
    """
    rank = len(kernel)
    if any(pads):
        width = [(0, 0), (0, 0), *((pads[i], pads[i + rank]) for i in range(rank))]
        x = np.pad(x, width)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    axes = tuple(range(2, 2 + rank))
    windows = np.lib.stride_tricks.sliding_window_view(x, reach, axis=axes)
    pick = (
        slice(None),
        slice(None),
        *(slice(None, None, s) for s in strides),
        *(slice(None, None, d) for d in dilations),
    )
    windows = windows[pick]
    batch, channels = windows.shape[:2]
    split = windows.reshape(batch, groups, channels // groups, *windows.shape[2:])
    order = (1, 2, *range(3 + rank, 3 + 2 * rank), 0, *range(3, 3 + rank))
    taps = int(np.prod(kernel))
    return np.ascontiguousarray(split.transpose(order)).reshape(groups, channels // groups * taps, -1)


class _Sum:
    """Running sums of one layer's inputs. The first sample's mean is taken off first, for precision."""

    def __init__(self, layer: LayerInfo) -> None:
        groups = layer.groups if layer.op_type.startswith("Conv") else 1
        width = layer.shape[1] * layer.shape[2]
        self.count = 0
        self.shift = np.zeros((groups, width), np.float32)
        self.first = np.zeros((groups, width))
        self.second = np.zeros((groups, width, width))

    def add(self, x: Array) -> None:
        if not np.isfinite(x).all():
            raise UsageError("calibration data gives NaN or infinite activations", fix="check the inputs' scaling")
        x = x[:, :, :: _step(x.shape[2])]
        if self.count == 0:
            self.shift = x.mean(axis=2).astype(np.float32)
        x = x - self.shift[:, :, None]
        self.count += x.shape[2]
        self.first += x.sum(axis=2)
        self.second += np.matmul(x, x.transpose(0, 2, 1))

    def moments(self) -> Moments:
        mean = self.first / max(self.count, 1)
        covariance = self.second / max(self.count, 1) - mean[:, :, None] * mean[:, None, :]
        return Moments(self.count, mean + self.shift, covariance)


def _step(positions: int) -> int:
    """Every how manieth position of a sample is used: neighbours in wide maps say nearly the same. Odd, so that
    all columns of an even-sized map take part.
    """
    return max(1, positions // MAX_POSITIONS) | 1 if positions > MAX_POSITIONS else 1


def _front(proto: onnx.ModelProto, outputs: Sequence[str], given: Mapping[str, int]) -> onnx.ModelProto:
    asked = [name for name in outputs if name not in given]
    makers = {name: index for index, node in enumerate(proto.graph.node) for name in node.output if name}
    needed: set[int] = set()
    names: set[str] = set()
    todo = list(asked)
    while todo:
        name = todo.pop()
        if name in names:
            continue
        names.add(name)
        if name in given:
            continue
        index = makers.get(name)
        if index is not None and index not in needed:
            needed.add(index)
            todo += _reads(proto.graph.node[index])
    front = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
    front.functions.extend(proto.functions)
    front.graph.name = proto.graph.name or "front"
    front.graph.node.extend(node for index, node in enumerate(proto.graph.node) if index in needed)
    front.graph.initializer.extend(one for one in proto.graph.initializer if one.name in names)
    front.graph.input.extend(one for one in proto.graph.input if one.name in names)
    front.graph.input.extend(
        onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in given.items() if name in names
    )
    front.graph.output.extend(onnx.ValueInfoProto(name=name) for name in asked)
    return front


def _reads(node: onnx.NodeProto) -> list[str]:
    found = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                found += _reads(inner)
    return found


def _channels(layer: LayerInfo) -> int:
    return layer.shape[0]


def _by_channel(value: Array, layer: LayerInfo) -> Array:
    if layer.op_type.startswith("Conv"):
        return np.ascontiguousarray(np.moveaxis(value, 1, 0)).reshape(value.shape[1], -1)
    return np.ascontiguousarray(value.reshape(-1, value.shape[-1]).T)
