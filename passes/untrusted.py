"""What is checked on a model file before any library walks its graph: sizes, names, types, external data,
numbers.

ONNX files come from strangers. Everything here works on the protobuf message and raises one ModelError or
UnsupportedError with what, why and fix.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edgesparse.errors import ModelError, UnsupportedError
from edgesparse.passes.graph import Array

Weights = Mapping[str, Array]
"""Arrays by the name of the initializer."""
MAX_FILE = 2**31 - 1
"""Largest model file and tensor in bytes: protobuf's own limit."""
MAX_TOTAL = 2**32
"""Largest sum of all weights in bytes."""
MAX_DIM = 2**26
"""Largest extent of one dimension: far above any vocabulary, far below what overflows a product of four."""
MAX_ELEMENTS = 2**31 - 1
"""Largest number of elements of one tensor: indices are 32-bit."""
MIN_OPSET = 7
"""Below, broadcasting and batch normalisation mean other things: taken only if all operators are the same there."""

DTYPES = frozenset(
    getattr(TensorProto, name)
    for name in [
        "FLOAT",
        "DOUBLE",
        "FLOAT16",
        "BFLOAT16",
        "INT8",
        "UINT8",
        "INT16",
        "UINT16",
        "INT32",
        "UINT32",
        "INT64",
        "UINT64",
        "BOOL",
    ]
)
_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16})
_MASKS = frozenset({"Add", "Sub", "Where", "Clip", "Max", "Min", "Pad", "Expand", "ConstantOfShape", "Constant"})
"""Operators that take infinities on purpose: attention masks, bounds."""


def read_proto(path: Path) -> onnx.ModelProto:
    """The message of an .onnx file, of bounded size, with a graph in it. Raises ModelError."""
    try:
        with path.open("rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise ModelError(f"cannot read {path}", why="it is not a regular file")
            if info.st_size > MAX_FILE:
                raise ModelError(f"{path} is too large", why=f"{info.st_size} bytes, at most {MAX_FILE} are read")
            raw = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ModelError(f"cannot read {path}", why=error.strerror or str(error)) from error
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(raw)
    except Exception as error:  # protobuf raises different classes by backend
        raise _no_model(path, "it is truncated or of another format") from error
    if not proto.ir_version or not proto.graph.node or not proto.graph.output:
        raise _no_model(path, "it holds no graph")
    return proto


def _no_model(path: Path, why: str) -> ModelError:
    return ModelError(f"{path} is not an ONNX model", why=why, fix="export it again, e.g. with torch.onnx.export")


def check_proto(proto: onnx.ModelProto) -> None:
    """Opset, names, types, extents and groups of the whole message. Raises ModelError or UnsupportedError."""
    _check_opset(proto)
    if proto.graph.sparse_initializer:
        raise UnsupportedError(
            "the model has sparse initializers", why="few tools read them", fix="store the zeros densely"
        )
    for value in (*proto.graph.input, *proto.graph.output):
        _check_value(value)
    _check_names(proto.graph, frozenset(), "the model")
    for tensor, where in tensors(proto):
        check_tensor_type(tensor, where)


def _check_opset(proto: onnx.ModelProto) -> None:
    newest = onnx.defs.onnx_opset_version()
    versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions:
        raise ModelError("the model names no opset", fix="export it again")
    if 1 <= versions[0] < MIN_OPSET and all(_unchanged(node, versions[0]) for node in proto.graph.node):
        for entry in proto.opset_import:
            if entry.domain in ("", "ai.onnx"):
                entry.version = MIN_OPSET
        return
    if not MIN_OPSET <= versions[0] <= newest:
        raise UnsupportedError(
            f"opset {versions[0]}",
            why=f"opsets {MIN_OPSET} to {newest} are understood",
            fix="export the model with opset_version=18",
        )


def _unchanged(node: onnx.NodeProto, version: int) -> bool:
    """Whether an operator of an old opset is that of `MIN_OPSET`. Operators with branches are taken to differ."""
    if node.domain not in ("", "ai.onnx") or any(item.HasField("g") or item.graphs for item in node.attribute):
        return False
    try:
        old, new = (onnx.defs.get_schema(node.op_type, number) for number in (version, MIN_OPSET))
    except onnx.defs.SchemaError:
        return False
    return bool(old.since_version == new.since_version)


def _check_value(value: onnx.ValueInfoProto) -> None:
    name = value.name or "(without a name)"
    if not value.name or value.type.WhichOneof("value") != "tensor_type":
        raise UnsupportedError(f"input or output {name}", why="it is not a named tensor", fix="export with tensors")
    kind = value.type.tensor_type.elem_type
    if kind not in DTYPES:
        raise UnsupportedError(f"input or output {name}", why=f"its type is {_dtype(kind)}", fix="export as float32")
    for dim in value.type.tensor_type.shape.dim:
        if dim.HasField("dim_value") and dim.dim_value == -1:
            dim.ClearField("dim_value")  # some exporters write "open" so
        elif dim.HasField("dim_value"):
            check_extent(dim.dim_value, f"input or output {name}")


def check_extent(extent: int, where: str) -> None:
    """Raise ModelError for a dimension of a tensor that is zero, negative or huge."""
    if extent < 1:
        raise ModelError(f"{where} has a dimension of {extent}", why="tensors must have elements")
    if extent > MAX_DIM:
        raise ModelError(f"{where} has a dimension of {extent}", why=f"at most {MAX_DIM} are understood")


def _dtype(kind: int) -> str:
    return str(TensorProto.DataType.Name(kind)) if kind in TensorProto.DataType.values() else f"number {kind}"


def _check_names(graph: onnx.GraphProto, outer: frozenset[str], where: str) -> None:
    """Every name is made once, every name that is read is made somewhere in scope, and groups are counts."""
    inputs = [value.name for value in graph.input]
    # an initializer may repeat an input's name: it is that input's default
    stored = [tensor.name for tensor in graph.initializer]
    produced = [name for node in graph.node for name in node.output if name]
    only_stored = [name for name in stored if name not in set(inputs)]
    for names in (stored, [*inputs, *only_stored, *produced]):
        seen: set[str] = set()
        for name in names:
            if name in seen:
                raise ModelError(f"{name!r} is defined twice in {where}", why="every name has one origin")
            seen.add(name)
    scope = outer | seen
    for number, node in enumerate(graph.node):
        for name in node.input:
            if name and name not in scope:
                raise ModelError(
                    f"node {node.name or number} ({node.op_type}) reads {name!r}",
                    why="no input, initializer or node provides it: a weight is missing",
                    fix="export the model again, with its weights",
                )
        for attribute in node.attribute:
            if attribute.name == "group" and node.domain in ("", "ai.onnx") and not 1 <= attribute.i <= MAX_DIM:
                raise ModelError(
                    f"node {node.name or number} ({node.op_type}) has {attribute.i} groups",
                    why="channels are in one group at least",
                    fix="export the model again",
                )
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _check_names(inner, scope, f"a branch of {node.name or node.op_type}")
    for value in graph.output:
        if value.name not in scope:
            raise ModelError(f"output {value.name!r} of {where}", why="nothing provides it")


def tensors(proto: onnx.ModelProto) -> Iterator[tuple[TensorProto, str]]:
    """Every stored tensor of the model, in branches and functions too, with words that say where it is."""
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[tuple[TensorProto, str]]:
    for tensor in graph.initializer:
        yield tensor, f"initializer {tensor.name!r}"
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[tuple[TensorProto, str]]:
    where = f"constant {node.output[0]!r}" if node.output else f"a constant of {node.op_type}"
    for attribute in node.attribute:
        for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
            yield tensor, where
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from _graph_tensors(graph)


def check_tensor_type(tensor: TensorProto, where: str) -> None:
    """Raise for a dtype that is not understood, or an extent that is negative, huge, or zero beyond rank 1.

    Empty lists (rank 1, no elements) stand for "not given" in many exports and are left.
    """
    if tensor.data_type not in DTYPES:
        raise UnsupportedError(where, why=f"its type is {_dtype(tensor.data_type)}", fix="export as float32")
    for dim in tensor.dims:
        if not (dim == 0 and len(tensor.dims) == 1):
            check_extent(dim, where)
    if math.prod(tensor.dims) > MAX_ELEMENTS or expected_bytes(tensor) > MAX_FILE:
        raise ModelError(f"{where} has shape {list(tensor.dims)}", why=f"it is larger than {MAX_FILE} bytes")


def expected_bytes(tensor: TensorProto) -> int:
    """Bytes of the tensor's elements by its shape and dtype."""
    return int(math.prod(tensor.dims) * np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize)


def read_external(proto: onnx.ModelProto, folder: Path) -> Weights:
    """Read all external tensors. They must lie in regular files inside `folder`: ModelError.

    The graph's initializers are returned by name and stay away from the message, which keeps all it ever held until
    its last tensor goes: what is pruned could not be freed. The others, in branches and constants, go into it.
    """
    weights: dict[str, Array] = {}
    root = Path(os.path.realpath(folder))
    total = 0
    for number, (tensor, where) in enumerate(tensors(proto)):
        total += expected_bytes(tensor)
        if total > MAX_TOTAL:
            raise ModelError("the model's weights are too large", why=f"together more than {MAX_TOTAL} bytes")
        if tensor.data_location == TensorProto.EXTERNAL:
            data = _read_tensor(tensor, where, root)
            tensor.ClearField("external_data")
            if number < len(proto.graph.initializer):
                tensor.ClearField("raw_data")
                kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
                weights[tensor.name] = np.frombuffer(data, kind).reshape(tuple(tensor.dims))
            else:
                tensor.data_location = TensorProto.DEFAULT
                tensor.raw_data = data
    return weights


def _read_tensor(tensor: TensorProto, where: str, root: Path) -> bytes:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    path = _inside(location, where, root)
    wanted = expected_bytes(tensor)
    try:
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or wanted)
        if offset < 0 or length != wanted:
            raise ModelError(f"{where} in {location!r}", why=f"{length} bytes at {offset}, its shape needs {wanted}")
        # a pipe in place of the file must not make the reader wait
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ModelError(f"{where} in {location!r}", why="it is not a regular file")
            file.seek(offset)
            data = file.read(wanted)
    except (OSError, ValueError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        fix = "keep the weights beside the model"
        raise ModelError(f"{where}: cannot read {location!r}", why=why, fix=fix) from error
    if len(data) != wanted:
        raise ModelError(f"{where} in {location!r}", why=f"the file ends after {len(data)} of {wanted} bytes")
    return data


def external_files(proto: onnx.ModelProto, folder: Path) -> tuple[str, ...]:
    """Names of the files that hold external tensors, each once. Raises ModelError for those outside of `folder`."""
    root = Path(os.path.realpath(folder))
    found: dict[str, None] = {}
    for tensor, where in tensors(proto):
        if tensor.data_location == TensorProto.EXTERNAL:
            location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
            _inside(location, where, root)
            found[location] = None
    return tuple(found)


def _inside(location: str, where: str, root: Path) -> Path:
    """The file that external data lies in, which must be inside the model's folder: ModelError."""
    parts = Path(location).parts
    if not location or "\0" in location or Path(location).is_absolute() or ".." in parts or "\\" in location:
        raise _outside(where, location)
    path = Path(os.path.realpath(root / location))
    if not path.is_relative_to(root):
        raise _outside(where, location)
    return path


def _outside(where: str, location: str) -> ModelError:
    return ModelError(
        f"{where} points to {location[:200]!r}",
        why="external data must lie in the model's own folder",
        fix="move the file there and use a plain relative name",
    )


def check_numbers(proto: onnx.ModelProto, weights: Weights) -> None:
    """Every tensor holds the data that its shape needs, and no NaN; infinities only where masks and bounds
    read. `weights` are the initializers whose data is not in the message.
    """
    readers: dict[str, set[str]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    for tensor, where in tensors(proto):
        if tensor.HasField("raw_data") and len(tensor.raw_data) != expected_bytes(tensor):
            held, wanted = len(tensor.raw_data), expected_bytes(tensor)
            raise ModelError(f"{where} is damaged", why=f"it holds {held} bytes, its shape needs {wanted}")
        try:
            external = tensor.data_location == TensorProto.EXTERNAL
            array = weights[tensor.name] if external else numpy_helper.to_array(tensor)
        except Exception as error:  # onnx raises whatever numpy raises on what does not fit
            raise ModelError(f"{where} is damaged", why="its data does not fit its shape") from error
        if tensor.data_type not in _FLOATS or np.isfinite(array).all():
            continue
        if np.isnan(array).any():
            raise _not_finite(where, "NaN")
        used = readers.get(tensor.name, set())
        if where.startswith("initializer") and not used <= _MASKS:
            raise _not_finite(where, "infinite values")


def _not_finite(where: str, what: str) -> ModelError:
    return ModelError(f"{where} has {what}", why="the training or export went wrong", fix="check the weights")
