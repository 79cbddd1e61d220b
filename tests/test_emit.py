"""The tables in C and the weights file."""

from __future__ import annotations

import hashlib
import re
import struct
import time
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from edgesparse.building import link
from edgesparse.errors import CompileError
from edgesparse.lowering import arena, emit
from edgesparse.lowering.program import ARENA, Buffer, Call, Program, Ref

import toy  # isort: skip


def one_call(call: Call) -> Program:
    """A placed program of one call over a buffer `b` of 256 bytes and a constant `c` of 8."""
    base = Program((), (Buffer("b", 256, True),), {"c": np.zeros(2, np.float32)}, (), (), ("first",))
    return replace(arena.assign(base), calls=(call,))


def test_the_weights_file_holds_the_constants_in_order_and_aligned() -> None:
    constants = {
        "bytes": np.arange(3, dtype=np.uint8),
        "big": np.array([1, 2], ">i4"),
        "empty": np.zeros((0, 4), np.float32),
        "half": np.array([1.5], ml_dtypes.bfloat16),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "scalar": np.float64(7) * np.ones(()),
    }
    program = Program((), (), constants, (), (), ())
    data = emit.weights_bytes(program)
    offsets = emit.constant_offsets(program)
    magic, version, header, size, digest = struct.unpack_from("<8sIIQ32s", data)
    assert (magic, version, header, size) == (b"ESWEIGHT", 1, 64, len(data))
    assert digest == hashlib.sha256(data[64:]).digest() == emit.weights_digest(program)[0]
    for name, array in constants.items():
        little = array.astype(array.dtype.newbyteorder("<")) if array.dtype.byteorder == ">" else array
        assert offsets[name] % 64 == 0
        assert data[offsets[name] :].startswith(little.tobytes()), name
    assert len(data) >= offsets["scalar"] + 8 + arena.TAIL_BYTES, "a vector may run over the end"


def test_arguments_are_element_offsets() -> None:
    text = emit.emit(one_call(Call("k", (), (5, Ref("b", 8), Ref(ARENA, 12), -(2**31))))).program_c
    assert "5,2,3,-2147483648," in text


def test_calls_are_stored_short_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    program = one_call(Call("k", (Ref("b"),), (1, 2, 3)))
    assert "es_short_call calls[]" in emit.emit(program).program_c
    monkeypatch.setattr(emit, "_SHORT", 0)
    assert "const es_call calls[]" in emit.emit(program).program_c


def test_equal_lists_are_stored_once() -> None:
    program = one_call(Call("k", (Ref("b"),), (1, 2, 3)))
    many = replace(program, calls=program.calls * 50)
    assert emit.emit(many).program_c.count("1,2,3,") == 1


def test_steps_tell_how_many_weights_they_need() -> None:
    """A step's calls wait for the last of the constants that any of them reads, whole."""
    constants = {name: np.zeros(count, np.float32) for name, count in (("a", 2), ("b", 3), ("c", 40))}
    base = Program((), (Buffer("x", 256, True),), constants, (), (), ("first", "second"))
    x, a, b, c = (Ref(name) for name in "xabc")
    calls = (
        Call("k", (x, b)),
        Call("k", (x, a)),
        Call("k", (x, x), layer=1),
        Call("k", (c, a), end=2),
        Call("k", (a, Ref("c", 4)), end=2),
    )
    text = emit.emit(replace(arena.assign(base), calls=calls)).program_c
    ends = {name: at + constants[name].nbytes for name, at in emit.constant_offsets(base).items()}
    assert f"{{0,1,0,0,{ends['b']}u}},{{0,1,0,1,0u}},{{0,2,0,0,{ends['c']}u}}," in text


def test_equal_programs_give_equal_text() -> None:
    assert emit.emit(arena.assign(toy.program())) == emit.emit(arena.assign(toy.program()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (Call("k", (Ref("b", 257),)), "offset 257 lies outside of 'b', which has 256 bytes"),
        (Call("k", (Ref("b", -1),)), "offset -1 lies outside"),
        (Call("k", (Ref("c", 9),)), "offset 9 lies outside of 'c'"),
        (Call("k", (Ref(ARENA, 10**6),)), "lies outside of '@arena'"),
        (Call("k", (), (Ref("c"),)), "the constant 'c' has no distance from the arena"),
        (Call("k", (), (Ref("b", 2),)), "not a multiple of 4"),
        (Call("k", (Ref("no"),)), "no buffer or constant 'no'"),
        (Call("k", (), (2**31,)), "2147483648 does not fit 32 bits"),
        (Call("k", (Ref("b"),) * 17), "17 pointers"),
        (Call("k; evil()", ()), "not a C identifier"),
        (Call("k", (), layer=1), "layer 1, which there is not"),
    ],
)
def test_a_call_that_does_not_fit_is_told_with_its_layer(call: Call, message: str) -> None:
    with pytest.raises(CompileError, match=re.escape(message)) as caught:
        emit.emit(one_call(call))
    assert "call 0" in str(caught.value)
    assert "first" in str(caught.value) or call.layer


def test_one_kernel_has_one_number_of_pointers() -> None:
    program = one_call(Call("k", (Ref("b"),)))
    with pytest.raises(CompileError, match="0 pointers here and 1 in an earlier call"):
        emit.emit(replace(program, calls=(*program.calls, Call("k", ()))))


def test_a_program_comes_placed() -> None:
    with pytest.raises(CompileError, match=r"arena\.assign"):
        emit.emit(toy.program())


def test_more_than_two_gib_is_told() -> None:
    program = arena.assign(Program((), (Buffer("b", 3 << 30, True),), {}, (), (), ()))
    with pytest.raises(CompileError, match=r"needs 3\.0 GiB"):
        emit.emit(program)


def test_names_cannot_break_out_of_their_strings() -> None:
    program = replace(arena.assign(toy.program()), layers=('"};evil', "??/", "a\nb\\"))
    link.compile_c(emit.emit(program).program_c, toy.TRIPLE)
    with pytest.raises(CompileError, match="zero byte"):
        emit.emit(replace(program, layers=("a\0b", "", "")))


def test_five_thousand_calls_compile_fast() -> None:
    """The figure of the design is 1 s; three times that, for a loaded machine."""
    calls = tuple(
        Call(f"k{i % 40}", (Ref("b", 64), Ref("c")), (i, *(Ref("b", 4 * j) for j in range(16)))) for i in range(5000)
    )
    program = replace(one_call(calls[0]), calls=calls)
    start = time.perf_counter()
    link.compile_c(emit.emit(program).program_c, toy.TRIPLE)
    assert time.perf_counter() - start < 3
