"""The largest elements of rows, by insertion into a short sorted list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgesparse.kernels.builder import Body, kernel


@dataclass(frozen=True)
class Largest:
    """The `count` largest (or smallest) of `size` elements and where they are, sorted; of equals the first comes first.

    Each element is held against the last of the list, so that a row in random order costs about
    ``size + count^2 * ln(size / count)`` steps; an ascending one ``size * count``.

    Pointers: x ``[rows, size, inner]``, v ``[rows, count, inner]``, i (int64, as v). No arguments. Range: rows * inner.
    """

    count: int
    size: int
    inner: int
    largest: bool
    dtype: str

    @property
    def symbol(self) -> str:
        order = "largest" if self.largest else "smallest"
        return f"es_{order}_{self.dtype}_{self.count}of{self.size}x{self.inner}"

    def build(self) -> Any:
        pointers = [("x", self.dtype), ("v", self.dtype), ("i", "int64")]
        return kernel(self.symbol, pointers, self._body)

    def _body(self, body: Body) -> None:
        T, inner = body.T, self.inner
        at = T.alloc_buffer((1,), "int32", scope="local")
        with body.loop(body.begin, body.end) as row:
            outer, column = body.let(row // inner), body.let(row % inner)
            source = body.let(outer * (self.size * inner) + column)
            first = body.let(outer * (self.count * inner) + column)

            def before(value: Any, other: Any) -> Any:
                return value > other if self.largest else value < other

            with body.loop(0, self.size) as index:
                value = body.let(body["x"][source + index * inner])
                last = first + (self.count - 1) * inner
                with T.If(T.Or(index < self.count, before(value, body["v"][last]))), T.Then():
                    T.buffer_store(at, T.min(index, body.const(self.count - 1)), [0])
                    self._sift(body, at, first, value, before)
                    place = body.let(first + at[0] * inner)
                    T.buffer_store(body["v"], value, [place])
                    T.buffer_store(body["i"], T.Cast("int64", index), [place])

    def _sift(self, body: Body, at: Any, first: Any, value: Any, before: Any) -> None:
        """Move what comes after `value` one place down; `at` ends where it belongs."""
        T = body.T
        above = first + (T.max(at[0], body.const(1)) - 1) * self.inner
        with T.While(T.And(at[0] > 0, before(value, body["v"][above]))):
            here = body.let(first + at[0] * self.inner)
            T.buffer_store(body["v"], body["v"][here - self.inner], [here])
            T.buffer_store(body["i"], body["i"][here - self.inner], [here])
            T.buffer_store(at, at[0] - 1, [0])
