"""Predictions: exact masks, agreement with the compiler on really pruned weights, and what cannot be meant."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from networks import Net

from edgesparse.advice.predict import masked_op, plot, predict
from edgesparse.costing.costs import table_for
from edgesparse.costing.forecast import forecast
from edgesparse.errors import UsageError
from edgesparse.graph.ops import Conv, Graph
from edgesparse.graph.recognise import recognise
from edgesparse.passes import model_from_proto
from edgesparse.pattern import SparsePattern, keeps
from edgesparse.planning.decide import decide
from edgesparse.planning.place import place
from edgesparse.target import Target

V3 = Target.parse("x86-64-v3")


def network() -> tuple[Graph, list[str]]:
    net = Net(2)
    x = net.conv(net.input(1, 3, 32, 32), 32, (3, 3), (2, 2), pads=(1, 1, 1, 1))
    x = net.node("Relu", net.conv(x, 128))
    x = net.node("Relu", net.conv(x, 128))
    net.outputs = [x]
    graph = recognise(model_from_proto(net.model()))
    return graph, [op.nodes[0] for op in graph.ops[1:3]]


@pytest.mark.parametrize("pattern", ["unstructured", "group:4x1", "group:16x1"])
def test_masks_are_exact(pattern: str) -> None:
    graph, _ = network()
    op = graph.ops[1]
    assert isinstance(op, Conv)
    parsed = SparsePattern.parse(pattern)
    found = masked_op(op, parsed, 0.3, np.random.default_rng(0)).weight
    assert found.shape == op.weight.shape
    assert keeps(parsed, found)
    assert np.count_nonzero(found) / found.size == pytest.approx(0.3, abs=parsed.n / found.size + 1e-3)
    odd = replace(op, weight=np.ones((30, 8, 1), np.float32))
    assert masked_op(odd, parsed, 0.5, np.random.default_rng(0)).weight.shape == (30, 8, 1)


def test_a_point_is_what_the_compiler_would_make() -> None:
    graph, names = network()
    found = predict(graph, V3, pruned=set(names), patterns=["group:8x1"], densities=[0.2], seed=4)
    rng = np.random.default_rng(4)
    pattern = SparsePattern.parse("group:8x1")
    masked = replace(
        graph, ops=tuple(masked_op(op, pattern, 0.2, rng) if i in (1, 2) else op for i, op in enumerate(graph.ops))
    )
    layout = decide(graph, V3, dense=True).plan
    table = table_for(V3)
    dense = sum(each.time for each in forecast(graph, layout, place(graph, layout, V3, dense=True), V3, table).values())
    sparse = sum(each.time for each in forecast(masked, layout, place(masked, layout, V3), V3, table).values())
    assert found.dense == pytest.approx(dense)
    assert found.points[0].time == pytest.approx(sparse, rel=0.02)
    assert found.points[0].speedup == pytest.approx(found.dense / found.points[0].time)
    assert found.layers == tuple(op.name for op in graph.ops[1:3])


def test_less_is_faster_and_never_slower_than_dense() -> None:
    graph, names = network()
    found = predict(graph, V3, pruned=set(names))
    by_pattern: dict[str, list[float]] = {}
    for point in found.points:
        assert point.speedup >= 0.999
        by_pattern.setdefault(point.pattern, []).append(point.time)
    assert all(times == sorted(times, reverse=True) for times in by_pattern.values())
    assert by_pattern["group:8x1"][-1] < by_pattern["unstructured"][-1]
    assert found == predict(graph, V3, pruned=set(names))
    data = found.as_dict()
    assert data["schema"] == "edgesparse.predict/1"
    assert data["cost_model"]["unit"] == table_for(V3).unit


def test_the_plot_is_svg_with_a_line_for_each_pattern() -> None:
    graph, names = network()
    found = predict(graph, V3, pruned=set(names), patterns=["unstructured", "group:4x1"], densities=[0.5, 0.1])
    point = replace(found.points[0], measured=1.0, measured_speedup=1.5)
    root = ET.fromstring(plot(replace(found, points=(point, *found.points[1:]))))
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg"
    assert len(root.findall(f"{space}polyline")) == 2
    assert len(root.findall(f"{space}circle")) == 1
    words = [each.text for each in root.iter(f"{space}text")]
    assert {"unstructured", "group:4x1", "0.1", "0.5"} <= set(words)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"densities": [0.0]}, "density"),
        ({"densities": [1.5]}, "density"),
        ({"patterns": ["nm:2:4"]}, "nm:2:4"),
        ({"patterns": ["group:4x2"]}, "group:4x2"),
        ({"pruned": set()}, "no layer"),
    ],
)
def test_what_cannot_be_meant(options: dict, message: str) -> None:
    graph, names = network()
    with pytest.raises(UsageError, match=message):
        predict(graph, V3, **{"pruned": set(names)} | options)
