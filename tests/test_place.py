"""Placement: candidates, a cost that grows with the work, the choice by model and by measurement, and the reasons."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import text_model

from edgesparse.costing.costs import table_for
from edgesparse.costing.counts import shape_of
from edgesparse.graph.ops import Graph
from edgesparse.graph.recognise import recognise
from edgesparse.kernels import Epilogue, Panel, Window
from edgesparse.passes import model_from_proto
from edgesparse.planning import products
from edgesparse.planning.place import Placement, place
from edgesparse.planning.plan import plan
from edgesparse.planning.products import Job, Product, accumulators, candidates, cost
from edgesparse.target import TARGETS, Target

V4 = Target.parse("x86-64-v4")
targets = st.sampled_from(TARGETS)


def matrix(rows: int, columns: int, density: float, group: int = 1, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = np.repeat(rng.random((-(-rows // group), columns)) < density, group, axis=0)[:rows]
    return (rng.standard_normal((rows, columns)) * mask).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(targets, st.integers(1, 200), st.integers(1, 70), st.sampled_from([1, 4, 49, 112]), st.floats(0, 1))
def test_candidates(target: Target, rows: int, columns: int, pixels: int, density: float) -> None:
    job = Job(matrix(rows, columns, density), pixels, 2, Epilogue())
    found = candidates(job, target, dense_only=False)
    assert found
    assert len(set(found)) == len(found)
    costs = [cost(job, product, target) for product in found]
    assert all(value > 0 for value in costs)
    assert costs == sorted(costs)
    for product in found:
        assert product.vectors >= 1
        assert pixels == 1 or product.group * product.vectors <= accumulators(target)
    assert all(product.dense for product in candidates(job, target, dense_only=True))


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("group", [1, 2, 4, 8])
@pytest.mark.parametrize("pixels", [1, 20, 49, 112])
def test_cost_grows_with_density_bands_and_rows(target: Target, group: int, pixels: int) -> None:
    product = Product(group, 1, False)
    full = matrix(32, 64, 1.0)
    by_density = [
        cost(Job(full * (np.arange(64) < kept), pixels, 1, Epilogue()), product, target) for kept in (4, 16, 32, 64)
    ]
    assert all(a < b for a, b in pairwise(by_density))
    by_bands = [cost(Job(full, pixels, bands, Epilogue()), product, target) for bands in (1, 2, 5)]
    next_band = by_bands[1] - by_bands[0]
    assert 0 < next_band <= by_bands[0] * (1 + 1e-9)  # the first one fetches the weights from farther away
    assert by_bands[2] == pytest.approx(by_bands[0] + 4 * next_band)
    assert cost(Job(full[:16], pixels, 1, Epilogue()), product, target) < by_bands[0]


@pytest.mark.parametrize("form", ["", "shifted", "padded"])
def test_measured_factors_of_windows_price_their_products(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(matrix(32, 27, 0.3), 448, 4, Epilogue(), Window((3, 3), (2, 2), (1, 1), 1, 1, 224, 112, 4))
    product, plain = Product(8, 3, False, form), replace(table_for(V4), factors={})
    shape = shape_of(Panel(job.gathering(form).copied, V4.lanes))
    found = []
    for factors in ({}, {shape: 2.0}):
        monkeypatch.setattr(products, "table_for", lambda target, told=factors: replace(plain, factors=told))
        found.append((cost(job, product, V4), products.gather_cost(job, form, V4)))
    assert found[1] == pytest.approx([2 * value for value in found[0]])


def graph_of(weight: np.ndarray) -> Graph:
    out, depth = weight.shape
    text = f"""g (float[1,{depth},28,28] x) => (float[1,{out},28,28] y)
        {{ [first] a = Conv(x, w) [spread] d = Conv<pads=[1,1,1,1], group={out}>(a, k) [last] y = Elu(d) }}"""
    weights = {"w": weight[:, :, None, None], "k": np.ones((out, 1, 3, 3), np.float32)}
    return recognise(model_from_proto(text_model(text, weights)))


def placed(weight: np.ndarray, **options: Any) -> dict[str, Placement]:
    graph = graph_of(weight)
    return place(graph, plan(graph, V4), V4, **options)


def code(placement: Placement) -> str:
    return placement.reason.code if placement.reason else ""


def test_reasons() -> None:
    sparse = placed(matrix(64, 64, 0.1, 8))
    assert sparse["first"].product is not None
    assert not sparse["first"].product.dense
    assert code(sparse["first"]) == ""
    assert code(sparse["spread"]) == "depthwise"
    assert code(sparse["last"]) == "relax"
    assert "Elu" in str(sparse["last"].reason)
    assert code(placed(matrix(64, 64, 1.0))["first"]) == "weights-dense"
    assert code(placed(matrix(64, 64, 0.1, 8), dense=True)["first"]) == "dense-asked"
    assert code(placed(matrix(64, 64, 0.93, 1))["first"]) in ("dense-faster", "weights-dense")
    unstructured = placed(matrix(64, 64, 0.05, 1))["first"]
    assert code(unstructured) in ("row-union", "")
    for placement in sparse.values():
        assert placement.record()["name"] == placement.op


def test_every_group_size_of_a_single_row_is_measured() -> None:
    """Constant fan-in on one row: the cost model puts unions of eight rows first, the clock single rows."""
    rng = np.random.default_rng(0)
    weight = np.zeros((256, 256), np.float32)
    for row in weight:
        row[rng.choice(256, 26, replace=False)] = 1.0
    text = "g (float[1,256] x) => (float[1,256] y) { y = MatMul(x, w) }"
    graph = recognise(model_from_proto(text_model(text, {"w": weight.T.copy()})))
    met: list[Product] = []

    def measure(jobs: Any) -> dict[str, list[float]]:
        ((name, (_, products)),) = jobs.items()
        met.extend(products)
        return {name: [float(product.dense or product.group != 1) for product in products]}

    (placement,) = place(graph, plan(graph, V4), V4, measure=measure).values()
    assert {product.group for product in met if not product.dense} == {1, 2, 4, 8, 16}
    assert placement.product is not None
    assert (placement.product.group, placement.product.dense) == (1, False)
    assert placement.density == pytest.approx(26 / 256)


def test_measured_times_decide_and_the_same_times_decide_alike() -> None:
    weight = matrix(64, 64, 0.1, 8)

    def measure(jobs: Any) -> dict[str, list[float]]:
        return {
            name: [1e-6 * (len(ranked) - index) for index in range(len(ranked))] for name, (_, ranked) in jobs.items()
        }

    by_model, first, again = placed(weight), placed(weight, measure=measure), placed(weight, measure=measure)
    assert first == again
    chosen = first["first"]
    assert chosen.product is not None
    assert chosen.product != by_model["first"].product, "the slowest by the model was the fastest by the clock"
    assert chosen.measured_us == pytest.approx(1.0)
    assert chosen.runner_up_us == pytest.approx(2.0)
    assert by_model["first"].measured_us is None
    assert chosen.macs == 64 * 64 * 28 * 28
