"""A model's bytes, tensor by tensor: whoever writes a model to a file need not hold it twice.

Protocol buffers store fields in the order of their numbers, a nested message as its length and its bytes. So a model
without its initializers' data can be serialised as usual, and cut where they belong.
"""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import onnx_ir as ir

from edgesparse.errors import EdgesparseError, UnsupportedError, UsageError

_Message = TypeVar("_Message", onnx.ModelProto, onnx.GraphProto)

_BYTES = 2
"""The wire type of strings, bytes and messages."""
_SMALL = 1024
"""Bytes of a tensor that stays in the model: shapes, scales, biases of small layers."""
_PAGE = 4096
"""Tensors start at multiples of it, so that runtimes can map them."""
MOST_BYTES = 2**31 - 1
"""Largest message that protobuf reads."""
DATA = ".data"
"""What is added to a model's name for the file that has its weights."""


def model_chunks(model: ir.Model) -> tuple[int, Iterator[bytes]]:
    """How many bytes the model's file has, and the bytes, one initializer at a time; the model must not change between.

    They are those of `ModelProto.SerializeToString(deterministic=True)`. The length may be more than protobuf can read.
    """
    bare = model.clone()
    held = []
    for value in bare.graph.initializers.values():
        assert value.const_value is not None
        held.append((value.name, value.const_value))
        value.const_value = ir.tensor(np.zeros(0, np.uint8), name=value.name)
    proto = ir.serde.serialize_model(bare)
    initializers = onnx.GraphProto.INITIALIZER_FIELD_NUMBER
    graph_head, graph_tail = _around(proto.graph, initializers)
    head, tail = _around(proto, onnx.ModelProto.GRAPH_FIELD_NUMBER)
    sizes = [_tensor(name, tensor).ByteSize() for name, tensor in held]
    fronts = [_front(initializers, size) for size in sizes]
    inside = len(graph_head) + sum(map(len, fronts)) + sum(sizes) + len(graph_tail)
    front = _front(onnx.ModelProto.GRAPH_FIELD_NUMBER, inside)

    def chunks() -> Iterator[bytes]:
        yield head + front + graph_head
        for start, (name, tensor) in zip(fronts, held, strict=True):
            yield start
            yield _tensor(name, tensor).SerializeToString(deterministic=True)
        yield graph_tail + tail

    return len(head) + len(front) + inside + len(tail), chunks()


def apart_chunks(model: ir.Model, location: str) -> tuple[bytes, Iterator[bytes]]:
    """The model's bytes without its large initializers, and those of the file `location` beside it that has them."""
    bare = model.clone()
    held = list(_beside(bare))
    for value, tensor, offset in held:
        shape, name = ir.Shape(tensor.shape.numpy()), value.name or ""
        value.const_value = ir.ExternalTensor(location, offset, tensor.nbytes, tensor.dtype, shape=shape, name=name)

    def chunks() -> Iterator[bytes]:
        for _, tensor, _ in held:
            yield tensor.tobytes()
            yield bytes(-tensor.nbytes % _PAGE)

    return ir.serde.serialize_model(bare).SerializeToString(deterministic=True), chunks()


def model_files(model: ir.Model, name: str) -> dict[str, Iterable[bytes]]:
    """The files that hold a model: one of this name, or if it is above 2 GiB a second one, `name` with `.data` behind.

    The bytes come one initializer at a time; the model must not change before they are written.
    """
    size, chunks = model_chunks(model)
    if size <= MOST_BYTES:
        return {name: chunks}
    rest, weights = apart_chunks(model, f"{name}{DATA}")
    return {f"{name}{DATA}": weights, name: [rest]}


def map_weights(model: ir.Model, folder: Path) -> Path:
    """Move the large initializers into a file in `folder` and map it: the system may drop from memory what is not read.

    Gives the path of the model beside it that has its weights there. The arrays stay good when the folder goes.

    Raises
    ------
    EdgesparseError
        The disk does not take it.
    """
    path, data = folder / "mapped.onnx", folder / f"mapped.onnx{DATA}"
    rest, chunks = apart_chunks(model, data.name)
    try:
        path.write_bytes(rest)
        with data.open("wb") as file:
            file.writelines(chunks)
    except OSError as error:
        raise _cannot_write(data, error) from error
    if not data.stat().st_size:
        return path
    whole = np.memmap(data, np.uint8, "r")
    for value, tensor, offset in list(_beside(model)):
        shape, kind = tensor.shape.numpy(), tensor.dtype.numpy()
        array = np.asarray(whole[offset : offset + tensor.nbytes]).view(kind).reshape(shape)
        value.const_value = ir.tensor(array, name=value.name)
    return path


def save_model(model: ir.Model, path: str | Path, *, apart: bool = False) -> None:
    """Write a model to one file, whole or not at all. EdgesparseError if the disk does not take it.

    A model above 2 GiB fits into no file of this format: UnsupportedError, or if it may be `apart` its weights go into
    a file beside it, `path` with `.data` behind. What is there of that name is not touched: UsageError.
    """
    path = Path(path)
    files = model_files(model, path.name)
    data = path.with_name(f"{path.name}{DATA}")
    if data.name in files:
        if not apart:
            raise UnsupportedError(f"cannot write {path}", why="the model is larger than 2 GiB")
        if data.exists():
            raise UsageError(f"{data} is there already", why="the weights would go there", fix="remove it")
        write_atomic(data, files[data.name])
    try:
        write_atomic(path, files[path.name])
    except EdgesparseError:
        if data.name in files:
            data.unlink()
        raise


def write_atomic(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write a file by way of a temporary one beside it, so that nothing half-written is ever seen."""
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        # a temporary file is private; the result is as readable as any file the user makes
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> EdgesparseError:
    return EdgesparseError(f"cannot write {path}", why=error.strerror or str(error))


def _beside(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol, int]]:
    """The initializers that a file beside the model holds, with their data and where it begins there."""
    offset = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        if tensor.nbytes > _SMALL:
            yield value, tensor, offset
            offset += tensor.nbytes + -tensor.nbytes % _PAGE


def _tensor(name: str | None, tensor: ir.TensorProtocol) -> onnx.TensorProto:
    proto = ir.serde.serialize_tensor(tensor)
    proto.name = name or ""
    return proto


def _around(message: _Message, number: int) -> tuple[bytes, bytes]:
    """The bytes of the fields before field `number`, and of those after."""
    before, after = copy.deepcopy(message), copy.deepcopy(message)
    for field, _ in message.ListFields():
        if field.number <= number:
            after.ClearField(field.name)
        if field.number >= number:
            before.ClearField(field.name)
    return before.SerializeToString(deterministic=True), after.SerializeToString(deterministic=True)


def _front(number: int, length: int) -> bytes:
    """What comes before the bytes of a message in field `number`: its key and its length."""
    return _varint(number << 3 | _BYTES) + _varint(length)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
