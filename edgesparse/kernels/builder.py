"""The few words in which the kernel generators write TIR: a function with raw pointers, loops, vectors.

Everything that must live in registers is bound by `let` or kept in a local buffer with constant indices, and tiles are
unrolled in Python: LLVM then sees straight vector code. Only loops over non-zeros, groups, channels and repeated tiles
remain loops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

#: Extent under which raw pointers are declared; kernels index by flat 32-bit element offsets.
_UNBOUNDED = 1 << 30

#: float32 values in a cache line.
LINE = 16


def fence(builder: Any, barrier: str) -> None:
    """Put a barrier, named with its numbers as a target has it, into what is being built; none if it is empty."""
    from tvm import tirx

    if barrier:
        name, *numbers = barrier.split()
        builder.evaluate(tirx.call_llvm_intrin("void", name, *[tirx.IntImm("int32", int(n)) for n in numbers]))


class Body:
    """The pointers of the kernel being built, and the constructs of its body (a thin face over TVM's IR builder)."""

    def __init__(
        self, builder: Any, pointers: Mapping[str, Any], args: Any, begin: Any, end: Any, barrier: str = ""
    ) -> None:
        self.T = builder
        self.barrier = barrier
        self._hidden = 0
        self.pointers = pointers
        self.args = args
        self.begin = begin
        self.end = end

    def __getitem__(self, name: str) -> Any:
        return self.pointers[name]

    def arg(self, index: Any) -> Any:
        """The 32-bit argument at `index` of the call's table, read once."""
        return self.let(self.args[index])

    def real(self, index: int) -> Any:
        """The argument at `index`, which holds the bits of a float32."""
        return self.let(self.T.reinterpret("float32", self.arg(index)))

    def let(self, value: Any) -> Any:
        """Give a value a name, so that it is computed once, here."""
        return self.T.Bind(value)

    def const(self, value: int) -> Any:
        return self.T.int32(value)

    def number(self, value: float, lanes: int) -> Any:
        """A float constant in every lane."""
        return self.spread(self.T.float32(value), lanes)

    def nothing(self, lanes: int) -> Any:
        """Zeros in every lane, of which LLVM does not know: where it does, it slides them in by slow instructions
        (`vexpandps`).
        """
        return self.spread(self.T.reinterpret("float32", self.begin >> 31), lanes)

    def unknown(self, value: int) -> Any:
        """A constant of which LLVM does not know, such as a number of rounds by which it would unroll a loop."""
        return self.let(self.const(value) + (self.begin >> 31))

    def rounds(self, count: int) -> Any:
        """A number of rounds of which LLVM knows only that there is one: it would unroll the loop, or make one for
        none.
        """
        return self.let(self.T.max(self.const(count) + self.T.shift_right(self.begin, self.const(24)), self.const(1)))

    def spread(self, scalar: Any, lanes: int) -> Any:
        return scalar if lanes == 1 else self.T.Broadcast(scalar, lanes)

    def load(self, name: str, offset: Any, lanes: int) -> Any:
        """`lanes` neighbouring elements of pointer `name` from element `offset` on."""
        return self.pointers[name][self.index(offset, lanes)]

    def store(self, name: str, offset: Any, value: Any, lanes: int) -> None:
        self.T.buffer_store(self.pointers[name], value, [self.index(offset, lanes)])

    def prefetch(self, name: str, offset: Any) -> None:
        """Fetch the cache line of an element of pointer `name`, which need not be a valid address."""
        from tvm import tirx

        address = tirx.address_of(self.pointers[name][offset])
        rest = [tirx.IntImm("int32", value) for value in (0, 3, 1)]
        self.T.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", address, *rest))

    def put(self, buffer: Any, index: int, value: Any) -> None:
        """Write one register of a local buffer."""
        self.T.buffer_store(buffer, value, [index])

    def registers(self, count: int, lanes: int) -> Any:
        """`count` vector registers; index them with constants only."""
        return self.T.alloc_buffer((count,), f"float32x{lanes}" if lanes > 1 else "float32", scope="local")

    def scratch(self, elements: int) -> Any:
        """A small float array on the stack."""
        return self.T.alloc_buffer((elements,), "float32", scope="local")

    def fence(self) -> None:
        """Nothing that stands before is moved behind, or the other way, where the target has a barrier for it.

        LLVM orders a long body for the latency of its loads, finds too late that registers are out, and spills.
        """
        fence(self.T, self.barrier)

    def hold(self, value: Any) -> None:
        """As `fence`, for all instructions, on every target and by none: LLVM's scheduler ends where a value that is
        made here is said to be used.
        """
        from tvm import tirx

        self.T.evaluate(tirx.call_llvm_intrin("void", "llvm.fake.use", value))

    def hidden(self, value: int, by: Any) -> Any:
        """A constant that LLVM does not know, where the target has a barrier; `by`: an index from 0 to 2^24 - 1.

        What is addressed by it is loaded anew, not kept in a register (and spilled) since an earlier use.
        """
        if not self.barrier:
            return self.const(value)
        self._hidden += 1  # each is another bit of the index: LLVM must not find two of them equal
        return self.let(self.T.shift_right(by, self.const(31 - self._hidden % 8)) + value)

    @contextmanager
    def loop(self, begin: Any, end: Any) -> Iterator[Any]:
        with self.T.serial(begin, end) as index:
            yield index

    @contextmanager
    def repeated(self, count: int) -> Iterator[Any]:
        """A loop, or once with 0."""
        if count == 1:
            yield 0
        else:
            with self.loop(0, count) as index:
                yield index

    def even(self, low: Any, high: Any, lanes: int, first: int = 0) -> Any:
        """Every second lane, from lane `first` on, of two vectors put end to end."""
        if lanes == 1:
            return low if first == 0 else high
        return self.pick(low, high, [first + 2 * lane for lane in range(lanes)])

    def pick(self, low: Any, high: Any, lanes: Sequence[int]) -> Any:
        """Any lanes of two vectors put end to end."""
        from tvm import tirx

        return tirx.Shuffle([low, high], [tirx.IntImm("int32", lane) for lane in lanes])

    def splat(self, vector: Any, lane: int, lanes: int) -> Any:
        """One lane of a vector in all lanes."""
        from tvm import tirx

        return tirx.Shuffle([vector], [tirx.IntImm("int32", lane)] * lanes)

    def lanes_of(self, vector: Any, lanes: Sequence[int]) -> Any:
        """Any lanes of a vector."""
        from tvm import tirx

        return tirx.Shuffle([vector], [tirx.IntImm("int32", lane) for lane in lanes])

    def where(self, mask: Sequence[bool], value: Any, other: Any) -> Any:
        """Lanes of `value` where the constant `mask` holds, else of `other`."""
        from tvm import tirx

        if all(mask):
            return value
        if not any(mask):
            return other
        lanes = len(mask)
        if lanes == 1:
            return value if mask[0] else other
        bits = tirx.Shuffle([self.T.int32(int(bit)) for bit in mask], [tirx.IntImm("int32", i) for i in range(lanes)])
        # Bound first: a select over a load would become a branch.
        return self.T.Select(bits != self.T.Broadcast(self.T.int32(0), lanes), self.let(value), other)

    def gather(self, name: str, offsets: Sequence[Any]) -> Any:
        """One vector out of elements at any offsets."""
        from tvm import tirx

        values = [self.let(self.pointers[name][offset]) for offset in offsets]
        return tirx.Shuffle(values, [tirx.IntImm("int32", lane) for lane in range(len(values))])

    def lanes(self, values: Sequence[float]) -> Any:
        """A vector of constants."""
        from tvm import tirx

        if len(values) == 1:
            return self.T.float32(values[0])
        picks = [tirx.IntImm("int32", lane) for lane in range(len(values))]
        return tirx.Shuffle([self.T.float32(value) for value in values], picks)

    def index(self, offset: Any, lanes: int) -> Any:
        return offset if lanes == 1 else self.T.Ramp(offset, 1, lanes)


def kernel(symbol: str, pointers: Sequence[tuple[str, str]], body: Callable[[Body], None], barrier: str = "") -> Any:
    """Build the PrimFunc ``void symbol(pointers.., const int32_t *a, int32_t begin, int32_t end)``.

    Parameters
    ----------
    symbol:
        The C name.
    pointers:
        Name and element dtype of each pointer, in order. No two may overlap in memory where one is written.
    body:
        Called once with the `Body` to write into.
    barrier:
        LLVM's intrinsic for `Body.fence`, with the numbers it takes; none: fences are nothing.
    """
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx.script import builder as T

    with IRBuilder() as ib:
        with T.prim_func():
            T.func_name(symbol)
            T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
            handles = {name: T.arg(name, T.handle(dtype)) for name, dtype in pointers}
            table = T.arg("a", T.handle("int32"))
            begin, end = T.arg("begin", T.int32()), T.arg("end", T.int32())
            buffers = {name: T.decl_buffer((_UNBOUNDED,), dtype, data=handles[name]) for name, dtype in pointers}
            args = T.decl_buffer((_UNBOUNDED,), "int32", data=table)
            body(Body(T, buffers, args, begin, end, barrier))
        return ib.get()
