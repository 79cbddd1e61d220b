"""Write an assigned program as what the C runtime reads: the weights file, and tables in C.

The weights file is a header of 64 bytes (magic, version, size, SHA-256 of the rest) and the constants,
little-endian, each 64-byte aligned, in the program's order, with 64 readable bytes after the last. The
tables are flat arrays of numbers: a program of thousands of calls compiles in a fraction of a second.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgesparse.errors import CompileError
from edgesparse.lowering.arena import TAIL_BYTES, aligned
from edgesparse.lowering.program import ARENA, MAX_REFS, Call, Port, Program, Ref

HEADER_BYTES = 64
WEIGHTS_MAGIC = b"ESWEIGHT"
WEIGHTS_VERSION = 1

#: References are 31-bit byte offsets (the top bit tells weights from arena), so each space ends here.
MAX_SPACE_BYTES = 2**31

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PER_LINE = 24
#: Calls whose three numbers stay below this are stored in half of the space.
_SHORT = 1 << 16


@dataclass(frozen=True)
class Emitted:
    """A program in C, the digest its weights file must carry, and that file's size in bytes."""

    program_c: str
    weights_digest: bytes
    weights_bytes: int


def emit(program: Program) -> Emitted:
    """The tables of an assigned program as C source, for `link`; deterministic.

    Raises
    ------
    CompileError
        The program does not fit the tables: a reference out of range, a kernel called with varying numbers of
        pointers, more than 2 GiB of arena or weights, more than 65535 kernels or layers.
    """
    digest, size = weights_digest(program)
    if program.arena_bytes <= 0:
        raise _bug("the program has no arena: arena.assign comes before emit")
    largest = max(program.arena_bytes, size)
    if largest > MAX_SPACE_BYTES:
        raise CompileError(
            f"the model needs {largest / 2**30:.1f} GiB for its weights or activations",
            why="a compiled program addresses at most 2 GiB of each",
            fix="use smaller input shapes or a smaller model",
        )
    tables = _Tables(program)
    text = "\n".join((*tables.lines(), *_port_lines(program), *_program_lines(program, digest, size, tables.short)))
    return Emitted(text + "\n", digest, size)


def constant_offsets(program: Program) -> dict[str, int]:
    """Byte offset of every constant from the start of the weights file."""
    offsets, end = {}, HEADER_BYTES
    for name, array in program.constants.items():
        offsets[name] = end
        end = aligned(end + array.nbytes)
    return offsets


def weights_digest(program: Program) -> tuple[bytes, int]:
    """SHA-256 of the constants as stored, and the size of the whole weights file in bytes."""
    digest, size = hashlib.sha256(), HEADER_BYTES
    for piece in _constant_pieces(program):
        digest.update(piece)
        size += len(piece)
    return digest.digest(), size


def weights_chunks(program: Program) -> Iterator[bytes | memoryview]:
    """The weights file, piece by piece, without a copy of the whole."""
    digest, size = weights_digest(program)
    yield struct.pack("<8sIIQ32s8x", WEIGHTS_MAGIC, WEIGHTS_VERSION, HEADER_BYTES, size, digest)
    yield from _constant_pieces(program)


def weights_bytes(program: Program) -> bytes:
    """The weights file in one piece."""
    return b"".join(weights_chunks(program))


def map_constants(program: Program, path: Path) -> Program:
    """Write the weights file to `path` and read the constants from there: the system may drop them from memory.

    Raises
    ------
    CompileError
        The disk does not take it.
    """
    try:
        path.unlink(missing_ok=True)  # what is there may be mapped: written anew, it would change below its readers
        with path.open("wb") as file:
            file.writelines(weights_chunks(program))
    except OSError as error:
        raise CompileError(f"cannot write {path}", why=error.strerror or str(error)) from error
    whole, found = np.memmap(path, np.uint8, "r"), {}
    for name, at in constant_offsets(program).items():
        array = program.constants[name]
        kind = array.dtype.newbyteorder("<") if array.dtype.byteorder == ">" else array.dtype
        found[name] = np.asarray(whole[at : at + array.nbytes]).view(kind).reshape(array.shape)
    return replace(program, constants=found)


def _constant_pieces(program: Program) -> Iterator[bytes | memoryview]:
    for array in program.constants.values():
        stored = np.ascontiguousarray(array)
        if stored.dtype.hasobject:
            raise _bug("a constant holds Python objects")
        if stored.dtype.byteorder == ">":
            stored = stored.astype(stored.dtype.newbyteorder("<"))
        if stored.nbytes:
            # Through bytes: dtypes such as bfloat16 have no buffer protocol of their own.
            yield stored.reshape(-1).view(np.uint8).data
        yield bytes(aligned(stored.nbytes) - stored.nbytes)
    yield bytes(TAIL_BYTES)


def _bug(what: str) -> CompileError:
    return CompileError(what, fix="this is a bug in edgesparse; please report it")


class _Tables:
    """The calls as flat tables, with equal argument lists, pointer lists and steps stored once."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.constants = constant_offsets(program)
        self.sizes = {buffer.name: buffer.nbytes for buffer in program.buffers}
        self.kernels: dict[str, tuple[int, int]] = {}
        self.refs: list[int] = []
        self.args: list[int] = []
        self._refs_at: dict[tuple[int, ...], int] = {}
        self._args_at: dict[tuple[int, ...], int] = {}
        #: Begin, end, kernel and layer of each step, and its index.
        self.steps: dict[tuple[int, int, int, int], int] = {}
        #: Where the constants of each step end in the weights file.
        self.reach: dict[int, int] = {}
        self.calls = [self._row(index, call) for index, call in enumerate(program.calls)]
        self.short = all(max(row) < _SHORT for row in self.calls)
        if len(self.kernels) > 0xFFFF or len(program.layers) > 0xFFFF:
            raise _bug("the program has more than 65535 kernels or layers")

    def _row(self, index: int, call: Call) -> tuple[int, int, int]:
        if not 0 <= call.layer < len(self.program.layers):
            raise _bug(f"call {index} ({call.kernel}) belongs to layer {call.layer}, which there is not")
        layer = self.program.layers[call.layer]
        try:
            kernel = self._kernel(call)
            refs = _store(tuple(map(self._pointer, call.refs)), self.refs, self._refs_at)
            args = _store(tuple(map(self._argument, call.args)), self.args, self._args_at)
            step = (_int32(call.begin), _int32(call.end), kernel, call.layer)
        except CompileError as error:
            raise _bug(f"call {index} ({call.kernel}) of layer '{layer}': {error.what}") from error
        at = self.steps.setdefault(step, len(self.steps))
        self.reach[at] = max([self.reach.get(at, 0), *map(self._end_of, call.refs)])
        return refs, args, at

    def _kernel(self, call: Call) -> int:
        arity = len(call.refs)
        if not _IDENTIFIER.fullmatch(call.kernel):
            raise _bug("the kernel's name is not a C identifier")
        if arity > MAX_REFS:
            raise _bug(f"{arity} pointers, but a kernel takes at most {MAX_REFS}")
        index, known = self.kernels.setdefault(call.kernel, (len(self.kernels), arity))
        if known != arity:
            raise _bug(f"{arity} pointers here and {known} in an earlier call")
        return index

    def _pointer(self, ref: Ref) -> int:
        if ref.name in self.constants:
            self._check(ref, self.program.constants[ref.name].nbytes)
            return (self.constants[ref.name] + ref.offset) | 0x80000000
        return self._arena_offset(ref)

    def _end_of(self, ref: Ref) -> int:
        """Where a constant ends in the weights file; 0 for what lies in the arena."""
        array = self.program.constants.get(ref.name)
        return 0 if array is None else self.constants[ref.name] + array.nbytes

    def _argument(self, arg: int | Ref) -> int:
        if not isinstance(arg, Ref):
            return _int32(arg)
        if arg.name in self.constants:
            raise _bug(f"the constant '{arg.name}' has no distance from the arena")
        offset = self._arena_offset(arg)
        if offset % 4:
            raise _bug(f"'{arg.name}' + {arg.offset} is not a multiple of 4 bytes")
        return offset // 4

    def _arena_offset(self, ref: Ref) -> int:
        if ref.name == ARENA:
            self._check(ref, self.program.arena_bytes)
            return ref.offset
        if ref.name not in self.program.offsets:
            raise _bug(f"there is no buffer or constant '{ref.name}' with a place")
        self._check(ref, self.sizes[ref.name])
        return self.program.offsets[ref.name] + ref.offset

    def _check(self, ref: Ref, nbytes: int) -> None:
        if not 0 <= ref.offset <= nbytes:
            raise _bug(f"offset {ref.offset} lies outside of '{ref.name}', which has {nbytes} bytes")

    def lines(self) -> Iterator[str]:
        yield "/* Made by edgesparse. Do not edit. */"
        yield '#include "program.h"\n'
        yield "#pragma GCC visibility push(hidden)"
        for name, (_, arity) in self.kernels.items():
            yield f"void {name}({'void *, ' * arity}const int32_t *, int32_t, int32_t);"
        yield "#pragma GCC visibility pop\n"
        yield from _array(
            "const es_kernel",
            "kernels",
            (f"{{(es_function){k},{n}}}," for k, (_, n) in self.kernels.items()),
            "{0,0}",
        )
        yield from _array("const uint32_t", "refs", (f"{ref}u," for ref in self.refs), "0")
        yield from _array("const int32_t", "args", (f"{arg}," for arg in self.args), "0")
        steps = (f"{{{','.join(map(str, step))},{self.reach[at]}u}}," for step, at in self.steps.items())
        yield from _array("const es_step", "steps", steps, "{0,0,0,0,0}")
        rows = (f"{{{','.join(map(str, row))}}}," for row in self.calls)
        yield from _array("const es_short_call" if self.short else "const es_call", "calls", rows, "{0,0,0}")


def _store(values: tuple[int, ...], table: list[int], seen: dict[tuple[int, ...], int]) -> int:
    """Index of the values in the table, appended where they are new."""
    at = seen.get(values)
    if at is None:
        at = seen[values] = len(table)
        table.extend(values)
    return at


def _int32(value: int) -> int:
    if not -(2**31) <= value < 2**31:
        raise _bug(f"{value} does not fit 32 bits")
    return int(value)


def _array(kind: str, name: str, items: Iterable[str], filler: str) -> Iterator[str]:
    """A static array; C has none of length zero, so an empty one holds a filler."""
    cells = list(items) or [filler]
    yield f"static {kind} {name}[] = {{"
    for start in range(0, len(cells), _PER_LINE):
        yield "".join(cells[start : start + _PER_LINE])
    yield "};\n"


def _string(text: str) -> str:
    """A C string literal: all but letters, digits and a few safe signs as octal bytes (no trigraphs)."""
    safe = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _-./:,;()[]<>=+*#@"
    if "\0" in text:
        raise _bug("a name holds a zero byte")
    return '"' + "".join(chr(b) if b in safe else f"\\{b:03o}" for b in text.encode()) + '"'


def _port_lines(program: Program) -> Iterator[str]:
    for kind, ports in (("input", program.inputs), ("output", program.outputs)):
        rows = []
        for index, port in enumerate(ports):
            dims = ",".join(str(dim) for dim in port.shape) or "1"
            yield f"static const int64_t {kind}_{index}_shape[] = {{{dims}}};"
            rows.append(_port_row(port, f"{kind}_{index}_shape"))
        yield from _array("const es_port", f"{kind}s", rows, "{0,0,0,0,0}")
        offsets = (f"{program.offsets[port.buffer]}u," for port in ports)
        yield from _array("const uint64_t", f"{kind}_offsets", offsets, "0")
    layers = (f"{_string(layer)}," for layer in program.layers)
    yield from _array("const char *const", "layers", layers, "0")


def _port_row(port: Port, shape: str) -> str:
    return f"{{{_string(port.name)},{_string(port.dtype)},{shape},{len(port.shape)},{port.nbytes}u}},"


def _stage_cells(program: Program) -> Iterator[str]:
    """Every stage as one range of calls per strip; strips that a stage has not are empty ranges."""
    for stage in program.stages:
        for first, last in (*stage, *[(0, 0)] * (program.strips - len(stage))):
            yield f"{first}u,{last}u,"


def _program_lines(program: Program, digest: bytes, size: int, short: bool) -> Iterator[str]:
    yield from _array("const uint32_t", "stages", _stage_cells(program), "0")
    yield f"static const uint8_t digest[32] = {{{','.join(map(str, digest))}}};\n"
    yield "const es_program es_main_program = {"
    yield f"    kernels, steps, {'0, calls' if short else 'calls, 0'}, refs, args,"
    yield "    inputs, outputs, input_offsets, output_offsets, layers, digest,"
    yield f"    {program.arena_bytes}u, {size}u, {len(program.calls)}u,"
    yield f"    stages, {len(program.stages)}u, {program.strips},"
    yield f"    {len(program.inputs)}, {len(program.outputs)}, {len(program.layers)},"
    yield "};"
