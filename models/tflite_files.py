"""A TFLite file of a convolutional network as an ONNX model.

Only the operators that the packaged networks use are known; any other is one error by name. TFLite keeps activations
as [N, H, W, C] and ONNX as [N, C, H, W], so inputs and feature maps are turned as they are named: the ONNX model takes
and passes [N, C, H, W], and turns back only in front of a reshape. Weights may be float16 (read as float32, as TFLite's
DEQUANTIZE does) and sparse. The `tflite` package reads the file's flatbuffer.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgesparse.errors import EdgesparseError
from edgesparse.models.packages import require

Array = npt.NDArray[Any]
OPSET = 18
#: TFLite's fused activations that are known, by number: none and ReLU.
ACTIVATIONS = {0: None, 1: "Relu"}


class TfliteError(EdgesparseError):
    """A TFLite file holds what cannot be read into ONNX here."""


def from_tflite(path: str | Path) -> Any:
    """Return the `onnx.ModelProto` of the network in a TFLite file, float32, at the shapes of the file.

    Inputs are named and ordered as in the file, with [N, C, H, W] in the place of [N, H, W, C]; outputs that a reshape
    makes have the file's shape.

    Raises
    ------
    MissingPackageError
        If the package `tflite` is not installed.
    TfliteError
        If the file uses an operator, a type or an option that is not known.
    """
    require("tflite", f"reading {Path(path).name}")
    return _Reader(Path(path)).model()


def densified(shape: tuple[int, ...], levels: list[int | tuple[Array, Array]], values: Array) -> Array:
    """Return the dense tensor of TFLite's sparse form, stored in the order of its dimensions and without blocks.

    Parameters
    ----------
    shape:
        Of the tensor.
    levels:
        For each dimension either its size, if all its positions are stored, or its (segments, indices) as in CSR: node
        i of the level above has the children indices[segments[i]:segments[i + 1]].
    values:
        One for each node of the last level.
    """
    nodes = np.zeros(1, np.int64)  # Flat position of each node in the dimensions so far.
    for size, level in zip(shape, levels, strict=True):
        if isinstance(level, int):
            nodes = (nodes[:, None] * size + np.arange(size)).ravel()
        else:
            segments, indices = level
            bounds = segments.astype(np.int64)
            nodes = np.repeat(nodes, bounds[1:] - bounds[:-1]) * size + indices
    dense = np.zeros(int(np.prod(shape)), values.dtype)
    dense[nodes] = values
    return dense.reshape(shape)


class _Reader:
    """One file's subgraph and the ONNX nodes made of it so far."""

    def __init__(self, path: Path) -> None:
        from onnx import helper, numpy_helper

        self.path, self.helper, self.to_tensor = path, helper, numpy_helper.from_array
        self.tflite = importlib.import_module("tflite")
        data = path.read_bytes()
        if data[4:8] != b"TFL3":
            raise TfliteError(f"{path.name} is no TFLite file", why="its bytes 4 to 8 are not TFL3")
        self.file = self.tflite.Model.GetRootAsModel(data, 0)
        if self.file.SubgraphsLength() != 1:
            raise TfliteError(f"{path.name} has {self.file.SubgraphsLength()} subgraphs", why="one is supported")
        self.graph = self.file.Subgraphs(0)
        self.constants: dict[int, Array] = {}
        #: What a padded tensor is made of, and [top, left, bottom, right]: the convolutions that read it take these on.
        self.pads: dict[int, tuple[int, list[int]]] = {}
        #: The name in the ONNX model of each feature map that is made.
        self.made: dict[int, str] = {}
        self.nodes: list[Any] = []
        self.weights: dict[str, Any] = {}
        self.names = {code: name for name, code in vars(self.tflite.BuiltinOperator).items() if isinstance(code, int)}

    def model(self) -> Any:
        inputs = [self.value(int(index), feature_map=True) for index in self.graph.InputsAsNumpy()]
        for index, value in zip(self.graph.InputsAsNumpy(), inputs, strict=True):
            self.made[int(index)] = value.name
        self.outputs = {int(index) for index in self.graph.OutputsAsNumpy()}
        for index in range(self.graph.OperatorsLength()):
            operator = self.graph.Operators(index)
            code = self.file.OperatorCodes(operator.OpcodeIndex())
            # Codes below 127 are in the older field alone in older files.
            name = self.names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
            if name not in OPERATORS:
                raise TfliteError(f"{self.path.name} uses the operator {name}", why=f"known: {', '.join(OPERATORS)}")
            sources = [int(source) for source in operator.InputsAsNumpy()]
            OPERATORS[name](self, operator, sources, int(operator.Outputs(0)))
        outputs = [self.value(int(index), feature_map=False) for index in self.graph.OutputsAsNumpy()]
        body = self.helper.make_graph(self.nodes, self.path.stem, inputs, outputs, list(self.weights.values()))
        opsets = [self.helper.make_opsetid("", OPSET)]
        return self.helper.make_model(body, opset_imports=opsets, ir_version=9, producer_name="edgesparse")

    # What the file holds

    def shape(self, index: int) -> tuple[int, ...]:
        return tuple(int(size) for size in self.graph.Tensors(index).ShapeAsNumpy())

    def label(self, index: int) -> str:
        return str(self.graph.Tensors(index).Name().decode())

    def value(self, index: int, *, feature_map: bool) -> Any:
        shape = self.shape(index)
        if feature_map and len(shape) == 4:
            shape = (shape[0], shape[3], shape[1], shape[2])
        return self.helper.make_tensor_value_info(self.label(index), 1, shape)

    def raw(self, index: int) -> Array:
        """The values that the file stores for a tensor, in their type, flat."""
        tensor = self.graph.Tensors(index)
        kinds = self.tflite.TensorType
        types = {kinds.FLOAT32: np.float32, kinds.FLOAT16: np.float16, kinds.INT32: np.int32}
        buffer = self.file.Buffers(tensor.Buffer())
        if tensor.Type() not in types or not buffer.DataLength():
            raise TfliteError(f"tensor {self.label(index)} of {self.path.name} is no constant of a known type")
        return np.frombuffer(buffer.DataAsNumpy().tobytes(), types[tensor.Type()])

    def constant(self, index: int) -> Array:
        if index not in self.constants:
            self.constants[index] = self.raw(index).reshape(self.shape(index))
        return self.constants[index]

    def options(self, operator: Any, kind: str) -> Any:
        table = operator.BuiltinOptions()
        options = getattr(self.tflite, kind)()
        options.Init(table.Bytes, table.Pos)
        return options

    # What is made of it

    def read(self, index: int) -> str:
        """The name of a feature map that an operator reads."""
        if index not in self.made:
            raise TfliteError(
                f"{self.path.name}: {self.label(index)} is no feature map",
                why="constants are read as weights only, and paddings by convolutions only",
            )
        return self.made[index]

    def make(self, index: int, kind: str) -> str:
        """The name of a feature map that an operator makes: the file's for outputs, else operator and number.

        The file's own names are of all the operators that were fused into one, 200 characters and more.
        """
        name = self.label(index) if index in self.outputs else f"{kind.lower()}_{len(self.nodes)}"
        return self.made.setdefault(index, name)

    def weight(self, name: str, value: Array) -> str:
        self.weights[name] = self.to_tensor(np.ascontiguousarray(value), name)
        return name

    def node(self, kind: str, sources: list[str], target: int, activation: int = 0, **attributes: Any) -> None:
        if activation not in ACTIVATIONS:
            raise TfliteError(f"{self.path.name} fuses activation {activation}", why="none and ReLU (1) are supported")
        name, then = self.make(target, kind), ACTIVATIONS[activation]
        made = name + "/linear" if then else name
        self.nodes.append(self.helper.make_node(kind, sources, [made], name=made, **attributes))
        if then:
            self.nodes.append(self.helper.make_node(then, [made], [name], name=name))

    # Operators

    def dequantize(self, _operator: Any, sources: list[int], target: int) -> None:
        self.constants[target] = self.constant(sources[0]).astype(np.float32)

    def densify(self, _operator: Any, sources: list[int], target: int) -> None:
        shape, stored = self.shape(sources[0]), self.graph.Tensors(sources[0]).Sparsity()
        if stored.BlockMapLength() or list(stored.TraversalOrderAsNumpy()) != list(range(len(shape))):
            raise TfliteError(f"{self.path.name} stores sparse weights in blocks or transposed", why="not supported")
        levels: list[int | tuple[Array, Array]] = []
        for index in range(stored.DimMetadataLength()):
            level = stored.DimMetadata(index)
            if level.Format() == self.tflite.DimensionType.DENSE:
                levels.append(level.DenseSize())
            else:
                segments = self.whole(level.ArraySegmentsType(), level.ArraySegments())
                levels.append((segments, self.whole(level.ArrayIndicesType(), level.ArrayIndices())))
        self.constants[target] = densified(shape, levels, self.raw(sources[0]))

    def whole(self, kind: int, table: Any) -> Array:
        """A vector of whole numbers of any of the widths that TFLite chooses from."""
        kinds = self.tflite.SparseIndexVector
        names = {kinds.Int32Vector: "Int32Vector", kinds.Uint16Vector: "Uint16Vector", kinds.Uint8Vector: "Uint8Vector"}
        vector = getattr(self.tflite, names[kind])()
        vector.Init(table.Bytes, table.Pos)
        return np.asarray(vector.ValuesAsNumpy(), np.int64)

    def pad(self, _operator: Any, sources: list[int], target: int) -> None:
        (batch, top, left, channels), (batch_end, bottom, right, channels_end) = self.constant(sources[1]).T.tolist()
        if batch or batch_end or channels or channels_end:
            raise TfliteError(f"{self.path.name} pads batch or channels", why="rows and columns are supported")
        self.pads[target] = (sources[0], [top, left, bottom, right])

    def conv(self, operator: Any, sources: list[int], target: int) -> None:
        self._convolve(self.options(operator, "Conv2DOptions"), sources, target, depthwise=False)

    def depthwise(self, operator: Any, sources: list[int], target: int) -> None:
        self._convolve(self.options(operator, "DepthwiseConv2DOptions"), sources, target, depthwise=True)

    def _convolve(self, options: Any, sources: list[int], target: int, *, depthwise: bool) -> None:
        kernel = self.constant(sources[1])
        # [out, kh, kw, in] of a convolution, [1, kh, kw, out] of a depthwise one.
        turned = kernel.transpose(3, 0, 1, 2) if depthwise else kernel.transpose(0, 3, 1, 2)
        source, pads = self.pads.get(sources[0], (sources[0], [0, 0, 0, 0]))
        steps = [options.StrideH(), options.StrideW()]
        holes = [options.DilationHFactor(), options.DilationWFactor()]
        if options.Padding() == self.tflite.Padding.SAME:
            maps = self.shape(sources[0])[1:3], self.shape(target)[1:3]
            sizes = zip(*maps, kernel.shape[1:3], steps, holes, strict=True)
            lack = [max((out - 1) * step + (taps - 1) * hole + 1 - size, 0) for size, out, taps, step, hole in sizes]
            # The odd one goes behind.
            more = [lack[0] // 2, lack[1] // 2, (lack[0] + 1) // 2, (lack[1] + 1) // 2]
            pads = [one + other for one, other in zip(pads, more, strict=True)]
        name = self.make(target, "Conv")
        inputs = [self.read(source), self.weight(name + "/weight", turned)]
        if len(sources) > 2 and sources[2] >= 0:
            inputs.append(self.weight(name + "/bias", self.constant(sources[2])))
        self.node(
            "Conv",
            inputs,
            target,
            options.FusedActivationFunction(),
            kernel_shape=list(kernel.shape[1:3]),
            strides=steps,
            dilations=holes,
            pads=pads,
            group=self.shape(source)[3] if depthwise else 1,
        )

    def add(self, operator: Any, sources: list[int], target: int) -> None:
        activation = self.options(operator, "AddOptions").FusedActivationFunction()
        self.node("Add", [self.read(source) for source in sources], target, activation)

    def resize(self, operator: Any, sources: list[int], target: int) -> None:
        options = self.options(operator, "ResizeBilinearOptions")
        if options.AlignCorners() or not options.HalfPixelCenters():
            raise TfliteError(f"{self.path.name} resizes by other than half pixels", why="not supported")
        (_, *before, _), (_, *after, _) = self.shape(sources[0]), self.shape(target)
        factors = [1.0, 1.0, *(new / old for new, old in zip(after, before, strict=True))]
        scales = self.weight(self.make(target, "Resize") + "/scales", np.array(factors, np.float32))
        inputs = [self.read(sources[0]), "", scales]
        self.node("Resize", inputs, target, mode="linear", coordinate_transformation_mode="half_pixel")

    def depth_to_space(self, operator: Any, sources: list[int], target: int) -> None:
        size = self.options(operator, "DepthToSpaceOptions").BlockSize()
        self.node("DepthToSpace", [self.read(sources[0])], target, blocksize=size, mode="DCR")

    def reshape(self, _operator: Any, sources: list[int], target: int) -> None:
        name = self.make(target, "Reshape")
        turned = name + "/channels_last"
        self.nodes.append(
            self.helper.make_node("Transpose", [self.read(sources[0])], [turned], name=turned, perm=[0, 2, 3, 1])
        )
        shape = self.weight(name + "/shape", np.array(self.shape(target), np.int64))
        self.node("Reshape", [turned, shape], target)


#: TFLite's operators to what reads them.
OPERATORS: dict[str, Callable[[_Reader, Any, list[int], int], None]] = {
    "DEQUANTIZE": _Reader.dequantize,
    "DENSIFY": _Reader.densify,
    "PAD": _Reader.pad,
    "CONV_2D": _Reader.conv,
    "DEPTHWISE_CONV_2D": _Reader.depthwise,
    "ADD": _Reader.add,
    "RESIZE_BILINEAR": _Reader.resize,
    "DEPTH_TO_SPACE": _Reader.depth_to_space,
    "RESHAPE": _Reader.reshape,
}
