"""Distances between uses of memory, by hand and by walking back through all that was used."""

from __future__ import annotations

import numpy as np
import pytest
from networks import Net

from edgesparse.costing.caches import Caches, shares
from edgesparse.costing.distances import Distances, Operand
from edgesparse.costing.forecast import layer_terms, lowered
from edgesparse.graph.recognise import recognise
from edgesparse.lowering.program import Buffer, Call, Program, Ref
from edgesparse.passes import model_from_proto
from edgesparse.planning.place import place
from edgesparse.planning.plan import plan
from edgesparse.target import Target

V4 = Target.parse("x86-64-v4")
KB = 1 << 10


def program(
    calls: list[tuple[str, ...]], sizes: dict[str, int], at: dict[str, int], constants: dict[str, int]
) -> Program:
    """A program of calls that name what they use, the last what they write."""
    return Program(
        calls=tuple(Call("k", tuple(Ref(name) for name in names)) for names in calls),
        buffers=tuple(Buffer(name, size) for name, size in sizes.items()),
        constants={name: np.zeros(size, np.uint8) for name, size in constants.items()},
        offsets=at,
        arena_bytes=max(at[name] + sizes[name] for name in sizes),
        inputs=(),
        outputs=(),
        layers=("all",),
    )


def walked(made: Program) -> list[dict[str, tuple[Operand, dict[str, float]]]]:
    distances = Distances(made, {}, {}, V4, 8 << 20)
    return [{each.name: (each, held) for each, held in distances.levels(index)} for index in range(len(made.calls))]


def test_what_was_just_written_is_near() -> None:
    sizes = {"a": 400 * KB, "b": 400 * KB}
    made = program([("w", "a"), ("a", "b")], sizes, {"a": 0, "b": 400 * KB}, {"w": 600 * KB})
    first, second = walked(made)
    assert second["a"][1] == {"l1": 1.0}  # nothing lies between
    assert second["b"][1] == shares(1000 * KB, V4, 8 << 20)  # since the run before
    assert first["w"][1] == shares(800 * KB, V4, 8 << 20)
    assert first["w"][0].constant
    assert not first["a"][0].constant
    assert [second["b"][0].written, second["a"][0].written] == [True, False]


def test_buffers_that_share_addresses_share_caches() -> None:
    """c is placed where a was: writing it does not fetch from afar, although no call has named it before."""
    sizes = {"a": 40 * KB, "b": 40 * KB, "c": 40 * KB}
    weights = {"w": 20 << 20}
    shared = program([("w", "a"), ("a", "b"), ("b", "c")], sizes, {"a": 0, "b": 40 * KB, "c": 0}, weights)
    alone = program([("w", "a"), ("a", "b"), ("b", "c")], sizes, {"a": 0, "b": 40 * KB, "c": 80 * KB}, weights)
    assert walked(shared)[2]["c"][1] == shares(40 * KB, V4, 8 << 20)
    assert walked(alone)[2]["c"][1] == {"memory": 1.0}


def test_bytes_between_are_counted_once() -> None:
    """Ten uses of the same 100 KB between two of `a`."""
    sizes = {"a": 8 * KB, "b": 100 * KB}
    calls = [("a",), *[("b",)] * 10, ("a",)]
    made = program(calls, sizes, {"a": 0, "b": 8 * KB}, {})
    assert walked(made)[-1]["a"][1] == shares(100 * KB, V4, 8 << 20)


@pytest.mark.parametrize("seed", range(3))
def test_distances_of_random_programs(seed: int) -> None:
    """Against walking back through all that was used, page by page, until the page in question is met."""
    random = np.random.default_rng(seed)
    page = 4 * KB
    names = [f"b{i}" for i in range(12)]
    sizes = {name: page * int(random.integers(1, 60)) for name in names}
    at = {name: page * int(random.integers(0, 200)) for name in names}
    calls = [tuple(random.choice(names, 3, replace=False).tolist()) for _ in range(30)]
    used = {name: range(at[name] // page, (at[name] + sizes[name]) // page) for name in names}
    history = [used[name] for call in calls for name in call]

    def held(number: int) -> dict[str, float]:
        between: set[int] = set()
        for pages in reversed(history):
            if number in pages:
                break
            between.update(pages)
        return shares(page * len(between), V4, 8 << 20)

    for call, found in zip(calls, walked(program(calls, sizes, at, {})), strict=True):
        for name in call:
            each = [held(number) for number in used[name]]
            for level, share in found[name][1].items():
                assert share == pytest.approx(np.mean([one.get(level, 0.0) for one in each]))
            assert sum(found[name][1].values()) == pytest.approx(1)
        history += [used[name] for name in call]


def test_a_flat_window_reads_its_whole_plane() -> None:
    """14x14 maps lie in one band, which a depthwise layer sees through a single row of its table."""
    net = Net(3)
    x = net.conv(net.input(1, 24, 14, 14), 40)
    net.outputs = [net.conv(x, 40, (3, 3), pads=(1, 1, 1, 1), groups=40)]
    graph = recognise(model_from_proto(net.model()))
    layout = plan(graph, V4)
    made = lowered(graph, layout, place(graph, layout, V4), V4)
    terms = list(layer_terms(made, graph, layout, V4, Caches()).values())[1]
    pitch = layout.layouts[graph.ops[1].inputs[0]].pitch
    moved = sum(terms[f"moved.{level}"] for level in ("l1", "l2", "l3", "memory"))
    counted = Distances(made.program, made.kernels, layout.layouts, V4, 8 << 20)
    (operand,) = [each for each in counted.calls[-1] if not each.constant and not each.written]
    assert operand.nbytes == operand.span == 4 * 40 * pitch
    assert moved > 2 * operand.nbytes
