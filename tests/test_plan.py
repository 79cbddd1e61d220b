"""The planner: every row is there when it is read, whatever the network; orders and strips change no result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import HOST_TARGETS, Net, compiled_outputs, feeds_of, random_network

from edgesparse.artifacts.artifact import read_manifest
from edgesparse.graph.ops import Graph
from edgesparse.graph.recognise import recognise
from edgesparse.passes import SIMPLIFY, model_from_proto, run_passes
from edgesparse.planning.order import needed_rows, rowwise
from edgesparse.planning.plan import Plan, band_rows, pitch_of, plan
from edgesparse.target import Target

V4 = Target.parse("x86-64-v4")


def graph_of(seed: int, steps: int) -> Graph:
    return recognise(run_passes(model_from_proto(random_network(seed, steps)), SIMPLIFY).model)


def check(graph: Graph, made: Plan) -> None:
    """Walk the stages: what a step reads was made, and in its ring not overwritten; all outputs are made whole."""
    whole: dict[str, set[tuple[int, int]]] = {}  # value -> (image, row) that earlier stages made
    for stage in made.stages:
        fresh: dict[str, set[tuple[int, int]]] = {}
        for strip in stage.strips:
            rings: dict[str, dict[int, tuple[int, set[int]]]] = {}  # waiting value -> slot -> band there, its rows
            for step in strip:
                op = graph.ops[step.op]
                for source in op.inputs:
                    at = made.layouts.get(source)
                    if source in graph.inputs or at is None:
                        continue
                    image = step.image if at.images > 1 else 0
                    first, last = (0, at.height)
                    images = range(at.images)
                    if rowwise(op):
                        first, last = needed_rows(op, source, at.height, step.first, step.last)
                        images = range(image, image + 1)
                    for each in images:
                        for row in range(first, last):
                            if source in made.waiting:
                                band = each * at.bands + row // at.rows
                                held, rows = rings.get(source, {}).get(band % at.ring, (None, set()))
                                assert held == band, f"{op.name} reads band {band} of {source}, there is {held}"
                                assert row in rows, f"{op.name} reads row {row} of {source}, there are {rows}"
                            elif made.layouts.get(source) and source in whole:
                                assert (each, row) in whole[source] or not _rows_of(graph, source)
                            else:
                                assert not _rows_of(graph, source), f"{op.name} reads {source} before it is made"
                if not rowwise(op):
                    continue
                layout = made.layouts[op.output]
                assert step.first < step.last <= layout.rows_of(step.first // layout.rows)[1]
                band = step.image * layout.bands + step.first // layout.rows
                if op.output in made.waiting:
                    slots = rings.setdefault(op.output, {})
                    assert slots.get(band % layout.ring, (None,))[0] != band, "made twice"
                    slots[band % layout.ring] = (band, set(range(step.first, step.last)))
                else:
                    rows = {(step.image, row) for row in range(step.first, step.last)}
                    known = fresh.setdefault(op.output, set())
                    assert not known & rows, "made twice"
                    known |= rows
        for name, rows in fresh.items():
            whole.setdefault(name, set()).update(rows)
    for op in graph.ops:
        if rowwise(op) and op.output not in made.waiting:
            layout = made.layouts[op.output]
            assert len(whole[op.output]) == layout.images * layout.height
            assert layout.ring == layout.bands * layout.images


def _rows_of(graph: Graph, name: str) -> bool:
    """Whether a value is made row by row."""
    return any(rowwise(op) and name in op.outputs for op in graph.ops)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(2, 16), st.booleans(), st.integers(1, 4), st.sampled_from([10, 50, 112, 300])
)
def test_every_row_is_there_when_it_is_read(seed: int, steps: int, depth_first: bool, strips: int, pixels: int) -> None:
    graph = graph_of(seed, steps)
    made = plan(graph, V4, depth_first=depth_first, strips=strips, band_pixels=pixels)
    assert depth_first or not made.waiting
    check(graph, made)


@pytest.mark.parametrize(("seed", "pixels"), [(200, 112), (201, 40), (202, 112), (203, 300), (204, 64), (205, 20)])
def test_depth_first_gives_the_same_bits(seed: int, pixels: int, tmp_path: Path) -> None:
    model = random_network(seed, 8)
    feeds = feeds_of(model)
    found = {}
    for depth_first in (True, False):
        folder = tmp_path / str(depth_first)
        folder.mkdir()
        options = {"depth_first": depth_first, "band_pixels": pixels}
        found[depth_first] = compiled_outputs(model, folder, HOST_TARGETS[-1], feeds, **options)
    for output, value in found[True].items():
        np.testing.assert_array_equal(found[False][output], value, err_msg=output)


@pytest.mark.parametrize("pixels", [28, 112])
def test_depth_first_gives_the_same_bits_where_rows_are_turned(pixels: int, tmp_path: Path) -> None:
    """Layers with more inputs than L1 holds: an order of sums that differed between kernels would show here."""
    net = Net(7)
    value = net.input(1, 136, 28, 14)
    for step in range(3):
        value = net.conv(value, 136, density=(0.3, 0.5, 0.75)[step])
        value = net.conv(value, 136, (3, 3), pads=(1, 1, 1, 1), groups=136)
    net.outputs.append(value)
    model = net.model()
    feeds = feeds_of(model)
    found, kernels = {}, {}
    for depth_first in (True, False):
        folder = tmp_path / str(depth_first)
        folder.mkdir()
        options = {"depth_first": depth_first, "band_pixels": pixels}
        found[depth_first] = compiled_outputs(model, folder, HOST_TARGETS[-1], feeds, **options)
        placed = read_manifest(folder / "artifact").layers
        kernels[depth_first] = {each["name"]: each["kernel"] for each in placed}
    assert kernels[True] == kernels[False]
    assert any(kernel.startswith("group:") for kernel in kernels[True].values())
    for output, expected in found[True].items():
        np.testing.assert_array_equal(found[False][output], expected, err_msg=output)


@pytest.mark.parametrize("seed", [201, 204])
def test_strips_change_no_more_than_the_order_of_sums(seed: int, tmp_path: Path) -> None:
    """Bands cut elsewhere sum a few pixels in another order; `compiled_outputs` asks for equal bits on any threads."""
    model = random_network(seed, 8)
    feeds = feeds_of(model)
    found = {}
    for threads in (1, 3):
        folder = tmp_path / str(threads)
        folder.mkdir()
        found[threads] = compiled_outputs(model, folder, HOST_TARGETS[-1], feeds, threads=threads)
    for output, value in found[1].items():
        np.testing.assert_allclose(found[3][output], value, rtol=0, atol=1e-6 * np.abs(value).max(), err_msg=output)


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([4, 8, 16]))
def test_bands(height: int, width: int, lanes: int) -> None:
    rows = band_rows(height, width, lanes)
    assert 1 <= rows <= height
    if height * width <= 256:
        assert rows == height
    else:
        assert rows == 1 or rows * width <= 224


@given(st.integers(1, 5000))
def test_pitches(pixels: int) -> None:
    pitch = pitch_of(pixels)
    assert pixels <= pitch < pixels + 32
    if pixels > 1:
        assert pitch % 16 == 0
        assert pitch < 128 or (pitch // 16) % 2 == 1
