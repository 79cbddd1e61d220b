"""What makes images larger: transposed convolution, depth to space, resizing to the nearest by whole factors.

A transposed convolution of stride s gives s * s images of its input's size, one for each phase of the output pixel's
place, each an ordinary convolution with every s-th tap; `Interleave` puts them together (sub-pixel convolution, after
Shi et al., arXiv 1609.05158). So its layers run on the same sparse and dense kernels, and no multiplication is by a
zero between pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgesparse.fallback.resize import table
from edgesparse.graph.attributes import constant_of, integer, ints, node_name, pair
from edgesparse.graph.ops import Conv, Interleave, Value
from edgesparse.kernels import Epilogue
from edgesparse.kernels.interleave import Interleave as Kernel
from edgesparse.lowering.emitter import Emitter
from edgesparse.lowering.program import ARENA, Ref

Image = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Phase:
    """Taps along one axis that meet the output places ``d, d + s, ..``, in the order of a convolution, and its pads."""

    taps: tuple[int, ...]
    before: int
    after: int


def _phase(place: int, stride: int, kernel: int, pad: int, size: int, count: int) -> _Phase | None:
    """The phase of output place ``place + stride * q``, 0 <= q < count; None where it is no padded convolution."""
    first = (place + pad) % stride
    taps = tuple(reversed(range(first, kernel, stride)))
    before = len(taps) - 1 - (place + pad - first) // stride
    after = count - 1 - before + len(taps) - size
    if not taps or min(before, after) < 0 or max(before, after) >= max(len(taps), 1) + size:
        return None
    return _Phase(taps, before, after)


def transposed(
    node: ir.Node, x: str, image: Image, out: Image, epilogue: Epilogue, names: tuple[str, ...], output: str
) -> tuple[list[Conv], Interleave | None, list[Value]] | None:
    """The convolutions of a ConvTranspose node and what puts them together (None for stride 1), with their values.

    None where its weights are not constant or its geometry is not covered; Relax has it then.
    """
    weight = constant_of(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None
    bias = constant_of(given)
    mode = node.attributes.get("auto_pad")
    if weight is None or weight.ndim != 4 or weight.dtype != np.float32 or (given is not None and bias is None):
        return None
    if mode is not None and mode.as_string() not in ("NOTSET", "VALID"):
        return None
    if node.attributes.get("output_shape") is not None or pair(node, "dilations") != (1, 1):
        return None
    groups, strides = integer(node, "group", 1), pair(node, "strides")
    pads = ints(node, "pads", (0, 0, 0, 0))
    if out[2] % strides[0] or out[3] % strides[1]:
        return None
    counts = (out[2] // strides[0], out[3] // strides[1])
    axes = [
        [_phase(d, strides[a], weight.shape[2 + a], pads[a], image[2 + a], counts[a]) for d in range(strides[a])]
        for a in (0, 1)
    ]
    inputs, outputs = weight.shape[0] // groups, weight.shape[1]
    flat = weight.reshape(groups, inputs, outputs, *weight.shape[2:]).transpose(0, 2, 1, 3, 4)
    flat = flat.reshape(groups * outputs, inputs, *weight.shape[2:])
    base = node_name(node)
    convs, values = [], []
    for dy, rows in enumerate(axes[0]):
        for dx, columns in enumerate(axes[1]):
            if rows is None or columns is None:
                return None
            name = base if strides == (1, 1) else f"{base}/phase{dy}{dx}"
            made = output if strides == (1, 1) else f"{name}/image"
            taps = flat[:, :, rows.taps, :][:, :, :, columns.taps]
            convs.append(
                Conv(
                    name,
                    names,
                    (x,),
                    (made,),
                    np.ascontiguousarray(taps.reshape(*taps.shape[:2], -1)),
                    np.zeros(out[1], np.float32) if bias is None else bias,
                    (len(rows.taps), len(columns.taps)),
                    (1, 1),
                    (1, 1),
                    (rows.before, columns.before, rows.after, columns.after),
                    groups,
                    epilogue,
                )
            )
            values.append(Value(made, (out[0], out[1], *counts)))
    if strides == (1, 1):
        return convs, None, []
    phases = tuple((index, 0) for index in range(len(convs)))
    join = Interleave(base, names, tuple(conv.output for conv in convs), (output,), strides, phases, 1)
    return convs, join, values


def depth_to_space(node: ir.Node, x: str, image: Image, output: str) -> Interleave:
    """A DepthToSpace node: the phases are channels of one image."""
    size = integer(node, "blocksize", 1)
    mode = node.attributes.get("mode")
    channels = image[1] // size**2
    mixed = mode is not None and mode.as_string() == "CRD"
    phases = tuple((0, phase if mixed else phase * channels) for phase in range(size**2))
    step = size**2 if mixed else 1
    return Interleave(node_name(node), (node.name or node.op_type,), (x,), (output,), (size, size), phases, step)


def nearest(node: ir.Node, x: str, image: Image, out: Image, output: str) -> Interleave | None:
    """A Resize node that repeats pixels by whole factors: all phases are the same image. None for any other."""
    options = {name: attribute.value for name, attribute in node.attributes.items()}
    factors = [b // a for a, b in zip(image, out, strict=True)]
    if options.get("mode", "nearest") != "nearest" or [a * f for a, f in zip(image, factors, strict=True)] != [*out]:
        return None
    if factors[:2] != [1, 1] or factors[2] * factors[3] == 1 or options.get("axes") is not None:
        return None
    if options.get("coordinate_transformation_mode", "half_pixel") not in ("half_pixel", "asymmetric"):
        return None
    scales = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    if scales is not None and scales.size and [float(scale) for scale in scales] != factors:
        return None
    for axis in (2, 3):
        places, _ = table(options, image[axis], out[axis], float(factors[axis]))
        if np.any(places[:, 0] != np.arange(out[axis]) // factors[axis]):
            return None
    phases = ((0, 0),) * (factors[2] * factors[3])
    names = (node.name or node.op_type,)
    return Interleave(node_name(node), names, (x,), (output,), (factors[2], factors[3]), phases, 1)


def lower_interleave(emitter: Emitter, op: Interleave) -> None:
    """One call for each image of the batch."""
    shape = emitter.graph.values[op.output].shape
    images, channels, height, width = shape
    rows, columns = height // op.blocks[0], width // op.blocks[1]
    spec = Kernel(op.blocks, columns, emitter.target.lanes, emitter.target.barrier)
    target = emitter.place_of(op.output).buffer
    sources = [(emitter.plain(op.inputs[index]), op.inputs[index], first) for index, first in op.phases]
    for image in range(images):
        starts = [
            Ref(buffer, 4 * (image * emitter.graph.values[name].shape[1] + first) * rows * columns)
            for buffer, name, first in sources
        ]
        refs = [Ref(ARENA), Ref(target, 4 * image * channels * height * width)]
        emitter.call(spec, refs, [rows, op.step * rows * columns, *starts], channels)
