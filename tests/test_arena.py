"""Placement: what lives together never overlaps, and little room is wasted."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import random_network

from edgesparse.errors import CompileError
from edgesparse.graph.ops import Fallback
from edgesparse.graph.recognise import recognise
from edgesparse.lowering import arena
from edgesparse.lowering.lower import lower
from edgesparse.lowering.program import ALIGNMENT, ARENA, Buffer, Call, Port, Program, Ref
from edgesparse.passes import SIMPLIFY, model_from_proto, run_passes
from edgesparse.planning.place import place
from edgesparse.planning.plan import plan
from edgesparse.target import Target

import toy  # isort: skip


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Programs with any lives: each call refers to a few buffers, some through arguments."""
    sizes = draw(st.lists(st.integers(0, 5000), min_size=1, max_size=24))
    buffers = tuple(Buffer(f"b{i}", size, draw(st.integers(0, 9)) == 0) for i, size in enumerate(sizes))
    names = st.sampled_from([buffer.name for buffer in buffers])
    calls = tuple(
        Call("k", tuple(map(Ref, refs)), (7, *map(Ref, args)))
        for refs, args in draw(
            st.lists(st.tuples(st.lists(names, max_size=3), st.lists(names, max_size=2)), max_size=30)
        )
    )
    return Program(calls, buffers, {}, (), (), ("layer",))


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(programs())
def test_live_buffers_never_overlap(program: Program) -> None:
    placed = arena.assign(program)
    alive = arena.lives(program)
    for index, one in enumerate(alive):
        start = placed.offsets[one.name]
        assert start % ALIGNMENT == 0
        assert start + one.size + arena.TAIL_BYTES <= placed.arena_bytes
        for other in alive[:index]:
            if one.first <= other.last and other.first <= one.last:
                apart = start + one.size <= placed.offsets[other.name]
                assert apart or placed.offsets[other.name] + other.size <= start
    assert placed.offsets.keys() == {buffer.name for buffer in program.buffers}


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(programs())
def test_room_is_between_the_bound_and_all_buffers(program: Program) -> None:
    used = arena.assign(program).arena_bytes - arena.TAIL_BYTES
    assert arena.lower_bound(program) <= used <= 1.5 * arena.lower_bound(program) + 1


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(programs())
def test_placement_does_not_depend_on_the_order_of_buffers(program: Program) -> None:
    turned = Program(program.calls, program.buffers[::-1], {}, (), (), program.layers)
    assert arena.assign(program).offsets == arena.assign(turned).offsets


def test_a_chain_takes_the_room_of_two() -> None:
    buffers = tuple(Buffer(f"b{i}", 1000) for i in range(9))
    calls = tuple(Call("k", (Ref(f"b{i}"), Ref(f"b{i + 1}"))) for i in range(8))
    program = Program(calls, buffers, {}, (), (), ("layer",))
    assert arena.assign(program).arena_bytes == 2 * 1024 + arena.TAIL_BYTES


def test_a_reference_among_arguments_keeps_a_buffer_alive() -> None:
    lives = {life.name: life for life in arena.lives(toy.program())}
    assert (lives["h"].first, lives["h"].last) == (0, 2)
    assert (lives["x"].first, lives["x"].last) == (0, 3), "pinned: through the whole run"


def test_an_unused_buffer_takes_no_room() -> None:
    program = Program((Call("k", (Ref(ARENA),)),), (Buffer("b", 10**6),), {}, (), (), ("layer",))
    assert arena.assign(program).arena_bytes == arena.TAIL_BYTES


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (Program((Call("k", (Ref("no"),)),), (), {}, (), (), ("l",)), "call 0 (k) refers to 'no'"),
        (Program((), (Buffer("a", 1), Buffer("a", 2)), {}, (), (), ()), "share a name"),
        (Program((), (Buffer("a", 1),), {"a": np.zeros(1)}, (), (), ()), "share a name"),
        (Program((), (Buffer("a", 4),), {}, (Port("p", "float32", (1,), "a"),), (), ()), "not pinned"),
        (Program((), (Buffer("a", 4, True),), {}, (), (Port("p", "float32", (2,), "a"),), ()), "too small"),
    ],
)
def test_an_inconsistent_program_is_told(program: Program, message: str) -> None:
    with pytest.raises(CompileError, match=re.escape(message)):
        arena.assign(program)


@pytest.mark.parametrize("depth_first", [True, False])
def test_networks_need_little_more_than_what_lives_at_once(depth_first: bool) -> None:
    """Within 1.2 times the bound that liveness sets, whatever the network."""
    target, checked = Target.parse("x86-64-v4"), 0
    for seed in range(16):
        graph = recognise(run_passes(model_from_proto(random_network(seed, 12)), SIMPLIFY).model)
        if any(isinstance(op, Fallback) for op in graph.ops):
            continue
        made = plan(graph, target, depth_first=depth_first)
        program = lower(graph, made, place(graph, made, target), {}, target).program
        used = arena.assign(program).arena_bytes - arena.TAIL_BYTES
        assert used <= 1.2 * arena.lower_bound(program), seed
        checked += 1
    assert checked >= 5
