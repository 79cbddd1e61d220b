"""A model's bytes, tensor by tensor: whoever writes a model to a file need not hold it twice.

Protocol buffers store fields in the order of their numbers, a nested message as its length and its bytes. So a model
without its initializers' data can be serialised as usual, and cut where they belong.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import onnx
import onnx_ir as ir

_Message = TypeVar("_Message", onnx.ModelProto, onnx.GraphProto)

_BYTES = 2
"""The wire type of strings, bytes and messages."""
_SMALL = 1024
"""Bytes of a tensor that stays in the model: shapes, scales, biases of small layers."""
_PAGE = 4096
"""Tensors start at multiples of it, so that runtimes can map them."""
MOST_BYTES = 2**31 - 1
"""Largest message that protobuf reads."""


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
    held = []
    offset = 0
    for value in bare.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        if tensor.nbytes > _SMALL:
            shape, name = ir.Shape(tensor.shape.numpy()), value.name or ""
            value.const_value = ir.ExternalTensor(location, offset, tensor.nbytes, tensor.dtype, shape=shape, name=name)
            held.append(tensor)
            offset += tensor.nbytes + -tensor.nbytes % _PAGE

    def chunks() -> Iterator[bytes]:
        for tensor in held:
            yield tensor.tobytes()
            yield bytes(-tensor.nbytes % _PAGE)

    return ir.serde.serialize_model(bare).SerializeToString(deterministic=True), chunks()


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
