"""Counts of the cost model against counts by hand, its prices against sums by hand, and forecasts of whole programs."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from networks import Net

from edgesparse.costing.caches import Caches, mixed, reused, shares
from edgesparse.costing.costs import CostTable, cost_table, counted, parse, table_for
from edgesparse.costing.counts import GROUPS, Terms, count, fetched, shape_of, total
from edgesparse.costing.forecast import forecast, gathered_shapes, layer_terms, lowered, placed_as, price, read_product
from edgesparse.errors import CompileError
from edgesparse.graph.recognise import recognise
from edgesparse.kernels import Depthwise, Epilogue, GlobalPool, Largest, Panel, Pointwise, Pool, Spmm, Window
from edgesparse.passes import model_from_proto
from edgesparse.planning.place import place
from edgesparse.planning.plan import plan
from edgesparse.planning.products import Product
from edgesparse.target import TARGETS, Target

V4 = Target.parse("x86-64-v4")
RELU = Epilogue("relu")


def test_a_product_by_hand() -> None:
    """96 pixels are two tiles of three vectors; 5 groups of 8 rows with 40 pairs; 24 sums take 12 cycles a pair."""
    terms = count(Spmm(8, 96, 3, 16, False, RELU), V4, 5, 40, {"l1": 1.0})
    assert terms["product.issue"] == 2 * 40 * 12
    assert terms["sparse.pair"] == 2 * 40
    assert terms["product.tile"] == 2 * 5
    assert terms["product.store"] == 2 * 5 * 8 * 3
    assert terms["flops"] == 2 * 40 * 8 * 96
    assert terms["call"] == 1
    assert terms["tail.issue"] == 0
    # each pair reads three vectors of 64 bytes, eight weights and an offset, in both tiles, all out of L1
    assert terms["moved.l1"] == 2 * 40 * (3 * 64 + 4 * 9)
    assert terms["moved.l2"] == 0


def test_a_dense_product_with_a_tail_by_hand() -> None:
    """49 pixels are one tile of three vectors and a pixel by itself; K = 10, 2 groups."""
    terms = count(Spmm(8, 49, 3, 16, True, Epilogue("relu", residual="before")), V4, 2, 20)
    assert terms["product.issue"] == 20 * 12
    assert terms["sparse.pair"] == 0
    assert terms["product.residual"] == terms["product.store"] == 2 * 8 * 3
    # one vector of outputs and one pixel: a weight vector and a pixel are loaded
    assert terms["tail.issue"] == 20 * max(1 / 2, 2 / 2)
    assert terms["tail.store"] == 2 * 8


def test_channels_that_do_not_fill_cache_lines_are_loaded_twice() -> None:
    """196 pixels are 12 vectors and 4 pixels; a channel starts on a cache line once in four: 1.75 loads a vector."""
    spec = Spmm(1, 196, 4, 16, False, RELU)
    tiles = [len(run.offsets) for run in spec.cut.runs for _ in range(run.repeat)]
    terms = count(spec, V4, 3, 10, {"l1": 1.0})
    assert terms["product.issue"] == pytest.approx(10 * sum(max((1.75 * wide + 2) / 2, 4.0) for wide in tiles))


def test_single_pixels_that_are_joined_fetch_no_weights_again() -> None:
    """Joined to the last tile, the 49th pixel reads what the tile has: all that moves is what the tile's loads move."""
    apart = Spmm(8, 49, 3, 16, False, RELU)
    one, other = (count(spec, V4, 5, 40, {"l3": 1.0}) for spec in (apart, replace(apart, joined=True)))
    assert other["tail.issue"] == 40 * max(1 / 2, 2 / 2)
    assert other["tail.store"] == one["tail.store"] == 5 * 8
    assert other["moved.l3"] == one["moved.l3"]  # the first tile's
    assert other["moved.l1"] == 40 * 3 * 64
    assert sum(one[f"moved.{level}"] for level in ("l1", "l2")) > other["moved.l1"]


def test_weights_from_afar_take_the_place_of_issue() -> None:
    """A fully connected layer in blocks of 64: 256 bytes a pair from L3 at 10 a cycle take longer than five loads."""
    spec = Spmm(64, 1, 1, 16, True, Epilogue())
    near, far = (count(spec, V4, 4, 400, {level: 1.0}) for level in ("l1", "l3"))
    assert near["tail.issue"] == 400 * max(4 / 2, 5 / 2)
    assert near["stream.l3"] == 0
    assert far["stream.l3"] == 400 * 25.6
    assert far["tail.issue"] == 0
    assert far["moved.l3"] == 400 * 256


def test_what_memory_gives_that_nobody_asked_for_ahead() -> None:
    """Single rows of 49 pixels, 8 bytes a pair from memory at 4 a cycle: 2.5 times as long, and nothing hides it."""
    spec = Spmm(1, 49, 4, 16, False, RELU, joined=True)
    caches = Caches(1 << 20, {"l2": 32.0, "l3": 8.0, "memory": 4.0}, 3.0, 2.0)
    near, far = (count(spec, V4, 5, 40, {level: 1.0}, caches=caches) for level in ("l1", "memory"))
    assert far["stream.memory"] == pytest.approx(40 * 8 * 2.5 / 4)
    assert far["moved.memory"] == 40 * 8
    assert far["product.issue"] == near["product.issue"]
    ahead = count(replace(spec, ahead=8), V4, 5, 40, {"memory": 1.0}, caches=caches)
    assert 0 < ahead["stream.memory"] < 40 * 8 / 4
    assert count(spec, V4, 5, 40, {"memory": 1.0})["stream.memory"] == 0, (
        "where nothing was measured, the longest alone"
    )


def test_whole_lines_come() -> None:
    """Three vectors of a channel of 49 floats begin anywhere in a line: 60 bytes more, but for one of 16 places."""
    spec = Spmm(8, 49, 3, 16, False, RELU, joined=True)
    caches = Caches(1 << 20, {"l2": 32.0, "l3": 8.0, "memory": 4.0}, 3.0, 2.0)
    moved = [
        sum(value for term, value in count(each, V4, 5, 40, {"l3": 1.0}, caches=caches).items() if "moved" in term)
        for each in (spec, replace(spec, pixels=48, joined=False))
    ]
    assert moved == pytest.approx([40 * (192 + 60 * 15 / 16 + 36), 40 * (192 + 36)])


def test_inputs_that_lie_close_together_take_longer() -> None:
    """1000 channels of 96 pixels, of which each of 10 groups reads a tenth, half or all. Where nothing hides behind
    anything, against columns that share pixels.
    """
    caches = Caches(1 << 20, {"l2": 32.0, "l3": 8.0, "memory": 4.0}, 1.0, 1.0)
    ahead, alone = (Spmm(4, 96, 6, 16, False, RELU, ahead=256, columns_ahead=each) for each in (8, 0))

    def longer(spec: Spmm, kept: float) -> float:
        apart, shared, unknown = (
            count(spec, V4, 10, round(1e4 * kept), {"l1": 1.0}, inputs=1000, columns=columns, caches=caches)
            for columns in (1000, 1001, 0)
        )
        assert shared == unknown
        assert all(apart[term] == shared[term] for term in shared if not term.startswith("stream."))
        waits = [sum(terms[f"stream.{level}"] for level in ("l2", "l3")) for terms in (apart, shared)]
        assert waits[1] > 0
        return waits[0] / waits[1]

    assert [longer(ahead, kept) for kept in (0.1, 0.5, 1.0)] == pytest.approx([0.82, 1.3, 1.9])
    assert [longer(alone, kept) for kept in (0.1, 0.5)] == pytest.approx([1.3, 1.3])
    assert longer(replace(ahead, groups_outer=True), 0.5) == 1.0, "in L1 for the tiles that follow"


def test_a_depthwise_band_by_hand() -> None:
    """One row of 16 pixels under 3x3 taps: nine taps; the outer columns are masked; every tap loads a vector."""
    window = Window((3, 3), (1, 1), (1, 1), 1, 1, 16, 16, 1)
    terms = count(Depthwise(window, RELU, 16, 24), V4, 10)
    assert terms["depthwise.tap"] == 10 * 9
    assert terms["depthwise.load"] == 10 * 9
    assert terms["depthwise.mask"] == 10 * 6
    assert terms["depthwise.stride"] == 0
    assert terms["depthwise.store"] == 10
    assert terms["flops"] == 10 * 2 * (9 * 16 - 6)


def test_rows_of_a_chunk_share_their_loads() -> None:
    """Two output rows under three taps in a column see four input rows."""
    window = Window((3, 1), (1, 1), (1, 1), 0, 0, 16, 16, 2)
    terms = count(Depthwise(window, RELU, 16, 24), V4, 1)
    assert (terms["depthwise.tap"], terms["depthwise.load"]) == (6, 4)
    panel = count(Panel(window, 16), V4, 3)
    assert panel["panel.store"] == 3 * 2 * 3
    assert panel["flops"] == 0


def test_strided_windows_pick_their_columns() -> None:
    """Every second column: each of the three vectors that a row of 8 outputs sees is picked out of two."""
    window = Window((1, 3), (1, 2), (1, 1), 0, 0, 17, 8, 1)
    terms = count(Pool(window, "max", 8, 12), V4, 5)
    assert (terms["pool.load"], terms["pool.stride"], terms["pool.mask"]) == (15, 15, 0)


def test_what_windows_fetch_by_hand() -> None:
    """Ten channels of one row under nine taps: 22.5 cycles of taps and loads, 3 of masks, a store: 28.75 a channel."""
    window = Window((3, 3), (1, 1), (1, 1), 1, 1, 16, 16, 1)
    spec = Depthwise(window, RELU, 16, 24)
    terms = count(spec, V4, 10)
    issue = 10 * (9 * 0.5 + 9 * 0.25 + 6 * 0.5 + 1)
    rates = {"l2": 32.0, "l3": 8.0, "memory": 4.0}
    far = {"l1": 9e9, "l2": 3200.0, "l3": 1600.0}  # 100 + 200 cycles
    added = fetched(spec, terms, far, Caches(1 << 20, rates, 2.0, 1.0))
    assert added == pytest.approx({"l2": 100, "l3": 200})
    partly = fetched(spec, terms, far, Caches(1 << 20, rates, 3.0, 2.0))
    assert sum(partly.values()) == pytest.approx(np.hypot(issue, 300) - issue)
    assert partly["l3"] == pytest.approx(2 * partly["l2"])
    hidden = fetched(spec, terms, far, Caches(1 << 20, rates))
    assert sum(hidden.values()) == pytest.approx(300 - issue)  # where nothing was measured, the longest alone
    pool = Pool(window, "max", 16, 12)
    measured = Caches(1 << 20, rates, 3.0, 2.0)
    assert fetched(pool, count(pool, V4, 10), far, measured) == {}, "what caches hold is there in time"
    far["memory"] = 400.0  # 100 cycles where it is asked for ahead
    assert fetched(pool, count(pool, V4, 10), far, measured) == pytest.approx({"memory": 550})
    assert fetched(spec, terms, {"l1": 5.0}, Caches(1 << 20, rates, 2.0, 2.0)) == {}


def test_factors_multiply_what_is_priced() -> None:
    graph = network()
    layout = plan(graph, V4)
    made = lowered(graph, layout, place(graph, layout, V4), V4)
    plain = layer_terms(made, graph, layout, V4, Caches())
    shapes = {shape_of(spec) for spec in made.kernels.values()} - {""}
    assert "depthwise 3x3 stride 1x1 to 16" in shapes
    twice = layer_terms(made, graph, layout, V4, Caches(), {"depthwise 3x3 stride 1x1 to 16": 2.0})
    for op, before, after in zip(graph.ops, plain.values(), twice.values(), strict=True):
        by = 2 if op.name == graph.ops[1].name else 1
        for term, value in before.items():
            assert after[term] == pytest.approx(value * (by if term in GROUPS else 1))
    assert shape_of(Spmm(8, 96, 3, 16, False, RELU)) == ""


def test_the_product_of_gathered_windows_goes_by_their_factor() -> None:
    graph = network()
    layout = plan(graph, V4)
    made = lowered(graph, layout, place(graph, layout, V4), V4)
    ((layer, shape),) = gathered_shapes(made).items()
    assert shape.startswith("panel 3x3 stride ")
    plain = layer_terms(made, graph, layout, V4, Caches())
    thrice = layer_terms(made, graph, layout, V4, Caches(), {shape: 3.0})
    assert plain[layer]["product.issue"] > 0
    assert plain[layer]["panel.tap"] > 0
    for name, before in plain.items():
        for term, value in before.items():
            assert thrice[name][term] == pytest.approx(value * (3 if name == layer and term in GROUPS else 1))


def test_the_small_families() -> None:
    point = count(Pointwise("add", "full", 35, RELU, 16), V4, 7)
    assert (point["point.vector"], point["point.single"], point["flops"]) == (14, 21, 7 * 35)
    assert count(GlobalPool("avg", 16), V4, 9)["global.channel"] == 9
    assert count(Largest(5, 100, 1, True, "float32"), V4, 3)["other.unit"] == 3


def test_levels_share_what_they_keep() -> None:
    assert shares(0, V4) == {"l1": 1.0}
    assert shares(V4.l1d, V4) == {"l1": 0.5, "l2": 0.5}
    assert shares(4 * V4.l2, V4) == {"l3": 1.0}
    assert shares(100 << 20, V4, 8 << 20) == {"memory": 1.0}
    for distance in (1 << 10, 40 << 10, 700 << 10, 3 << 20, 9 << 20, 11 << 20):
        assert sum(shares(distance, V4, 8 << 20).values()) == pytest.approx(1)
    assert mixed((10, {"l1": 0.5, "l2": 0.5}), (4, {"l2": 1.0})) == {"l1": 5, "l2": 9}


def test_fetching_hides_behind_computing() -> None:
    caches = Caches(1 << 20, {"l2": 32.0, "l3": 8.0, "memory": 4.0}, 2.0)
    assert caches.cycles(3.0, {"l1": 99.0}) == {"issue": 3.0}
    parts = caches.cycles(3.0, {"l2": 64.0, "l3": 16.0})  # 3 cycles of issue, and 2 + 2 of fetching: 3, 4, 5
    assert parts == pytest.approx({"issue": 9 / 5, "l2": 8 / 5, "l3": 8 / 5})
    assert caches.together(2.0, 3.0, 6.0) == pytest.approx(7.0)
    added = Caches(1 << 20, caches.rates, 1.0).cycles(3.0, {"l2": 64.0})
    assert added == pytest.approx({"issue": 3.0, "l2": 2.0})
    longest = Caches(1 << 20, caches.rates)
    assert longest.together(2.0, 3.0, 6.0) == 6.0
    assert longest.cycles(3.0, {"l2": 64.0, "l3": 16.0}) == {"issue": 3.0}
    assert longest.cycles(1.0, {"l2": 64.0, "l3": 32.0}) == {"l3": 4.0}


@pytest.mark.parametrize("kept", [0.6, 0.2])
def test_sparse_groups_find_inputs_again(kept: float) -> None:
    """Against a simulation: groups that each use a share of 200 lines at random, and the lines used in between."""
    random = np.random.default_rng(1)
    lines = 200
    last = np.full(lines, -1)
    clock, distances = 0, []
    for group in range(400):
        chosen = np.flatnonzero(random.random(lines) < kept)
        for line in chosen:
            if group > 100:
                distances.append(np.count_nonzero(last > last[line]))
            clock += 1
            last[line] = clock
    panel = 2 * V4.l1d
    seen = [shares(panel * distance / lines, V4).get("l1", 0.0) for distance in distances]
    assert reused(panel, kept, V4)["l1"] == pytest.approx(float(np.mean(seen)), abs=0.03)
    # all of a panel that does not fit is swept over again by dense groups: nothing is left of it
    assert reused(panel, 1.0, V4) == {"l2": 1.0}
    assert reused(V4.l1d // 4, kept, V4)["l1"] == pytest.approx(1.0)


def test_prices_are_sums() -> None:
    table = CostTable("ns", "made up", {term: 0.0 for term in GROUPS} | {"call": 3.0, "product.read.l2": 0.5})
    found = price({"a": Terms({"call": 2, "product.read.l2": 10, "flops": 99})}, table)["a"]
    assert found.time == 2 * 3 + 10 * 0.5
    assert found.parts == {"overhead": 6.0, "l2": 5.0}
    assert found.bound == "overhead"
    assert table.price({"call": 2, "flops": 7}) == 6


def network() -> Any:
    net = Net(5)
    x = net.conv(net.input(1, 3, 32, 32), 16, (3, 3), (2, 2), pads=(1, 1, 1, 1))
    x = net.conv(x, 16, (3, 3), pads=(1, 1, 1, 1), groups=16)
    x = net.conv(x, 40, density=0.3)
    net.outputs = [net.node("GlobalAveragePool", x, shape=(1, 40, 1, 1))]
    return recognise(model_from_proto(net.model()))


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_operations_of_a_network_by_hand(target: Target) -> None:
    graph = network()
    layout = plan(graph, target, depth_first=False)
    placements = place(graph, layout, target, dense=True)
    found = layer_terms(lowered(graph, layout, placements, target), graph, layout, target, Caches())
    flops = [terms["flops"] for terms in found.values()]
    # 3x3 over 3 channels, each output pixel of 16x16; depthwise, less the taps beyond the border; 1x1
    inside = (3 * 16 - 2) ** 2
    assert flops[0] == 2 * 16 * 27 * 256
    assert flops[1] >= 2 * 16 * inside  # overlapping vectors compute some pixels twice
    assert flops[1] <= 2.2 * 16 * 9 * 256
    assert flops[2] == 2 * 40 * 16 * 256
    for each in forecast(graph, layout, placements, target, table_for(target)).values():
        assert each.time > 0
        assert sum(each.parts.values()) == pytest.approx(each.time)
        assert set(each.terms) <= set(GROUPS) | {"flops", "moved.l1", "moved.l2", "moved.l3", "moved.memory"}


def test_depth_first_reads_less_from_afar() -> None:
    net = Net(6)
    x = net.conv(net.input(1, 3, 224, 224), 32, (3, 3), (2, 2), pads=(1, 1, 1, 1))
    for _ in range(2):
        x = net.conv(net.conv(x, 32, (3, 3), pads=(1, 1, 1, 1), groups=32), 32)
    net.outputs = [x]
    graph = recognise(model_from_proto(net.model()))
    far = []
    for depth_first in (True, False):
        layout = plan(graph, V4, depth_first=depth_first)
        terms = layer_terms(lowered(graph, layout, place(graph, layout, V4), V4), graph, layout, V4, Caches())
        whole = total(terms.values())
        far.append(whole["moved.l3"] + whole["moved.memory"])
    assert far[0] < 0.5 * far[1]


def test_kernels_are_read_back() -> None:
    graph = network()
    layout = plan(graph, V4)
    placements = place(graph, layout, V4)
    again = placed_as(graph, layout, V4, [each.record() for each in placements.values()])
    assert {name: each.product for name, each in again.items()} == {n: e.product for n, e in placements.items()}
    assert read_product("dense:8 tile 3") == Product(8, 3, True)
    assert read_product("group:16 tile 1") == Product(16, 1, False)
    assert read_product("depthwise") is None


def test_the_table_in_the_package() -> None:
    table = cost_table("x86-64-v4")
    assert table.measured
    assert set(table.prices) == set(GROUPS)
    four = ("mobilenet-v1", "mobilenet-v2", "efficientnet-lite0", "resnet50")
    assert all(table.errors[name]["median"] < 0.05 for name in four)
    assert all(table.errors[name]["over_30"] < 0.02 * table.errors[name]["layers"] for name in four)
    assert not counted().measured
    assert all(np.isfinite(value) for value in table.prices.values())


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "other/1"},
        {"prices": {"call": -1}},
        {"prices": 3},
        {"caches": None},
        {"caches": {"l3": 1, "rates": {"l2": 1, "l3": 0, "memory": 1}, "overlap": 2}},
        {"basis": None, "errors": 4},
        {"factors": {"pool 2x2 stride 2x2 to 8": 0}},
    ],
)
def test_a_table_that_cannot_be_read(change: dict[str, Any]) -> None:
    caches = {"l3": 5, "rates": {"l2": 4, "l3": 2, "memory": 1}, "overlap": 2}
    good = {"schema": "edgesparse.prices/2", "basis": "b", "caches": caches, "errors": {}, "prices": {"call": 1.0}}
    table = parse(json.dumps(good), "t")
    assert table.prices["call"] == 1.0
    assert table.caches == Caches(5, {"l2": 4.0, "l3": 2.0, "memory": 1.0}, 2.0, 2.0)
    assert parse(json.dumps(good | {"factors": {"a": 1.5}}), "t").factors == {"a": 1.5}
    with pytest.raises(CompileError, match="price table of t"):
        parse(json.dumps(good | change), "t")
    with pytest.raises(CompileError, match="fit_cost"):
        parse("{", "t")
