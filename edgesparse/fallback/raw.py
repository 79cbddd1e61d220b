"""Stages that are not simple blocks (scattering, scans): their own statements, over flat buffers and 32-bit loops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgesparse.fallback.flat import offset
from edgesparse.fallback.nests import NotSimple, Raw, size_of
from edgesparse.fallback.rewrite import narrowed, substitute

if TYPE_CHECKING:
    from edgesparse.fallback.emit import Scope

#: Bytes of a stage's own allocations that may lie on the stack.
_STACK = 16384


def emit_raw(scope: Scope, stage: Raw, made: Mapping[Any, Any]) -> None:
    """Emit the statements of a stage as they are, all loops serial."""
    _Statements(scope, dict(made)).emit(stage.statement)


class _Statements:
    def __init__(self, scope: Scope, buffers: dict[Any, Any]) -> None:
        self.scope, self.buffers = scope, buffers
        self.vars: dict[Any, Any] = {}
        self.room = _STACK

    def value(self, expr: Any) -> Any:
        def load(buffer: Any, indices: list[Any]) -> Any:
            return self.buffers[buffer][offset(buffer, indices, 0, {})]

        return substitute(narrowed(expr, self.vars), {}, load)

    def emit(self, node: Any) -> None:
        handler = getattr(self, f"_{type(node).__name__.lower()}", None)
        if handler is None:
            raise NotSimple(f"a {type(node).__name__}")
        handler(node)

    def _seqstmt(self, node: Any) -> None:
        for item in node.seq:
            self.emit(item)

    def _attrstmt(self, node: Any) -> None:
        self.emit(node.body)

    def _for(self, node: Any) -> None:
        first, count = self.value(node.min), self.value(node.extent)
        with self.scope.loop(self.narrow(first), self.narrow(first) + self.narrow(count)) as loop:
            self.vars[node.loop_var] = loop
            self.emit(node.body)

    def narrow(self, expr: Any) -> Any:
        from tvm import tirx

        if type(expr).__name__ == "IntImm":
            return tirx.IntImm("int32", int(expr.value))
        return expr if str(expr.ty.dtype) == "int32" else tirx.Cast("int32", expr)

    def _ifthenelse(self, node: Any) -> None:
        T = self.scope.T
        with T.If(self.value(node.condition)):
            with T.Then():
                self.emit(node.then_case)
            if node.else_case is not None:
                with T.Else():
                    self.emit(node.else_case)

    def _bind(self, node: Any) -> None:
        self.vars[node.var] = self.scope.T.Bind(self.value(node.value))

    def _bufferstore(self, node: Any) -> None:
        from tvm import tirx

        target = narrowed(tirx.BufferLoad(node.buffer, list(node.indices)), self.vars)
        indices = [self.value(index) for index in target.indices]
        place = offset(node.buffer, [self.narrow(index) for index in indices], 0, {})
        self.scope.T.buffer_store(self.buffers[node.buffer], self.value(node.value), [place])

    def _allocbuffer(self, node: Any) -> None:
        buffer = node.buffer
        self.room -= size_of(buffer)
        if self.room < 0:
            raise NotSimple("a large allocation inside of loops")
        elements = 1
        for dim in buffer.shape:
            elements *= int(dim)
        self.buffers[buffer] = self.scope.T.alloc_buffer((elements,), str(buffer.dtype), scope="local")

    def _sblockrealize(self, node: Any) -> None:
        block = node.block
        for iter_var, value in zip(block.iter_vars, node.iter_values, strict=True):
            self.vars[iter_var.var] = self.narrow(self.value(value))
        if block.init is not None or block.alloc_buffers or block.match_buffers:
            raise NotSimple("a block with parts of its own")
        self.emit(block.body)
