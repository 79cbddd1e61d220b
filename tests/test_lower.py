"""Lowering: names that never meet, references inside their buffers, ports in pinned memory, rows of dilated windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from networks import HOST_TARGETS, check_against_onnx, random_network, text_model

from edgesparse.graph.ops import Elementwise, Fallback
from edgesparse.graph.recognise import recognise
from edgesparse.lowering import arena
from edgesparse.lowering.emitter import _nearest
from edgesparse.lowering.lower import Lowered, _Lowering, lower
from edgesparse.lowering.program import ARENA, Ref
from edgesparse.passes import SIMPLIFY, model_from_proto, run_passes
from edgesparse.planning.place import place
from edgesparse.planning.plan import plan
from edgesparse.target import Target

V3 = Target.parse("x86-64-v3")


def lowered(seed: int, strips: int, depth_first: bool) -> Lowered | None:
    graph = recognise(run_passes(model_from_proto(random_network(seed)), SIMPLIFY).model)
    if any(isinstance(op, Fallback) for op in graph.ops):
        return None
    made = plan(graph, V3, depth_first=depth_first, strips=strips)
    return lower(graph, made, place(graph, made, V3), {}, V3)


@pytest.mark.parametrize("depth_first", [True, False])
@pytest.mark.parametrize("strips", [1, 3])
@pytest.mark.parametrize("seed", [0, 7, 14, 32])
def test_programs_are_consistent(seed: int, strips: int, depth_first: bool) -> None:
    found = lowered(seed, strips, depth_first)
    if found is None:
        pytest.skip("goes through Relax")
    program = found.program
    sizes = {buffer.name: buffer.nbytes for buffer in program.buffers}
    assert not sizes.keys() & program.constants.keys()
    for call in program.calls:
        assert call.kernel in found.kernels
        assert call.begin < call.end
        for ref in (*call.refs, *(arg for arg in call.args if isinstance(arg, Ref))):
            if ref.name == ARENA:
                continue
            size = sizes[ref.name] if ref.name in sizes else program.constants[ref.name].nbytes
            # a constant may be empty: a group of rows without any non-zero
            assert 0 <= ref.offset < max(size, 1), call
            assert ref.offset % 4 == 0
        assert all(isinstance(arg, Ref) or -(2**31) <= arg < 2**31 for arg in call.args)
    pinned = {buffer.name for buffer in program.buffers if buffer.pinned}
    assert {port.buffer for port in (*program.inputs, *program.outputs)} <= pinned
    assert all(array.dtype in (np.float32, np.int32) for array in program.constants.values())
    placed = arena.assign(program)
    assert placed.arena_bytes < 2**31


def test_lowering_twice_gives_the_same_program() -> None:
    first, second = lowered(7, 2, True), lowered(7, 2, True)
    assert first is not None
    assert second is not None
    assert first.program.calls == second.program.calls
    assert first.program.buffers == second.program.buffers
    assert list(first.program.constants) == list(second.program.constants)


@pytest.mark.parametrize("height", [1, 2, 3, 7])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_the_nearest_row_lies_in_the_same_window(height: int, step: int) -> None:
    for row in range(-6, height + 6):
        found = _nearest(row, height, step)
        assert (found - row) % step == 0
        if step <= height:
            assert 0 <= found < height
            assert not 0 <= row < height or found == row


#: Whole planes: a gate, a chain, a value that is read again later, one that is an output, one that is a view.
IN_PLACE = """a = Conv(x, w) p = GlobalAveragePool(a) s = Sigmoid(p) b = Mul(a, s) c = Sub(b, one) d = Neg(c)
    e = Conv(c, w) f = Mul(e, two) g = Relu(x) h = Div(g, two) i = Add(h, f) j = Reshape(i, flat) k = Conv(i, w)
    l = Sub(i, one) y = Add(l, k) z = Add(f, one)"""


@pytest.mark.parametrize("threads", [1, 2])
def test_elementwise_operations_work_in_place_where_nobody_reads_again(threads: int, tmp_path: Path) -> None:
    weights = {"w": np.random.default_rng(0).standard_normal((4, 4, 1, 1)).astype(np.float32)}
    weights |= {"one": np.float32(1), "two": np.float32(2), "flat": np.array([1, -1], np.int64)}
    outputs = "float[1,4,9,9] y, float[1,4,9,9] z, float[1,324] j, float[1,4,9,9] d"
    proto = text_model(f"g (float[1,4,9,9] x) => ({outputs}) {{ {IN_PLACE} }}", weights, opset=20)
    graph = recognise(run_passes(model_from_proto(proto), SIMPLIFY).model)
    made = plan(graph, V3, strips=threads)
    found = _Lowering(graph, made, V3, {})
    work = {op.output: op for op in graph.ops if isinstance(op, Elementwise)}
    # g reads the input, l what is an output under another shape
    assert {name for name, op in work.items() if found._last_reader(op)} == set(work) - {"g", "l"}
    assert {"b", "c", "h", "i", "y", "z"} <= set(work)
    check_against_onnx(proto, tmp_path, HOST_TARGETS[-1], threads=threads)
