"""Clustering a sparse model's channels: planted groups are found again, nothing gets worse, nothing else changes."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import ATTENTIVE, BLOCKS, FUSED, network
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgesparse.passes import run_passes, sparsify_passes
from edgesparse.passes.base import infer_shapes
from edgesparse.passes.cluster import cluster_model, gather, union_work
from edgesparse.passes.layers import canonical_weight, weight_layers
from edgesparse.passes.sparsify import ORDER_KEY
from edgesparse.recipe import Recipe


def planted(seed: int, groups: int, size: int, features: int) -> np.ndarray:
    """Rows in groups of equal zeros, shuffled."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(rng.random((groups, features)) < 0.3, size, axis=0)
    return rows[rng.permutation(len(rows))]


def by_hand(rows: np.ndarray, prices: np.ndarray, order: np.ndarray, size: int) -> float:
    total = 0.0
    for first in range(0, len(order), size):
        members = rows[order[first : first + size]]
        total += len(members) * sum(price for column, price in zip(members.T, prices, strict=True) if column.any())
    return total


def test_planted_groups_are_found_again() -> None:
    prices = np.ones(40)
    for size, seed in ((8, 1), (16, 2)):
        rows = planted(seed, 6, size, 40)
        found = gather(rows, prices, seed=0)
        assert sorted(found) == list(range(len(rows)))
        for used in (2, 4, 8, 16):
            assert used > size or union_work(rows, prices, found, used) == rows.sum()
        assert union_work(rows, prices, np.arange(len(rows)), 8) > 2 * rows.sum()


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 20), st.floats(0.05, 0.95))
@settings(max_examples=40, deadline=None)
def test_never_worse_than_given(seed: int, channels: int, features: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    rows, prices = rng.random((channels, features)) < share, rng.integers(1, 9, features).astype(float)
    found, plain = gather(rows, prices, seed=1), np.arange(channels)
    assert sorted(found) == list(plain)
    assert np.array_equal(found, gather(rows, prices, seed=1))
    for size in (2, 4):
        assert union_work(rows, prices, found, size) <= union_work(rows, prices, plain, size)
        assert np.isclose(union_work(rows, prices, found, size), by_hand(rows, prices, found, size))


def outputs(model: ir.Model) -> np.ndarray:
    proto = ir.serde.serialize_model(model)
    shape = tuple(d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim)
    return ReferenceEvaluator(proto).run(None, {"x": np.random.default_rng(0).normal(size=shape)})[0]


@given(st.lists(st.integers(0, len(BLOCKS) - 1), min_size=1, max_size=5), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_the_function_stays(blocks: list[int], seed: int) -> None:
    model = ir.serde.deserialize_model(network(blocks, seed))
    infer_shapes(model)
    rng = np.random.default_rng(seed)
    for layer in weight_layers(model):
        value = model.graph.initializers[layer.weight]
        array = value.const_value.numpy()  # type: ignore[union-attr]
        value.const_value = ir.tensor(array * (rng.random(array.shape) < 0.4), name=layer.weight)
    before = outputs(model)
    weights = {layer.weight: np.sort(canonical_weight(model, layer), axis=None) for layer in weight_layers(model)}
    cluster_model(model, seed=seed)
    assert np.abs(before - outputs(model)).max() <= 1e-12 * max(np.abs(before).max(), 1.0)
    for layer in weight_layers(model):
        assert np.array_equal(np.sort(canonical_weight(model, layer), axis=None), weights[layer.weight])


def test_each_head_is_clustered_on_its_own(load) -> None:
    """Planted: groups of equal zeros in every head, shuffled in another way in each; queries and keys move together."""
    rng = np.random.default_rng(6)
    width, heads, size = 16, 2, 8
    places = [rng.permutation(size) for _ in range(heads)]
    weights = {"o": rng.normal(size=(width, width)), "cut": np.array([1, 5, heads, size])}
    weights["whole"] = np.array([1, 5, width])
    for name in ("q", "k", "v"):
        groups = rng.random((heads, 2, width)) < 0.3
        rows = np.concatenate([np.repeat(groups[h], 4, axis=0)[places[h]] for h in range(heads)])
        weights[name] = np.where(rows, rng.normal(size=rows.shape), 0.0).T.copy()
    model = load(ATTENTIVE, weights)
    infer_shapes(model)
    before = outputs(model)
    reports, reasons = cluster_model(model)
    assert not reasons
    assert {one.layers for one in reports} == {("q_proj", "k_proj"), ("v_proj",)}
    for one in reports:
        assert one.channels == size
        assert one.given > 1.5 * one.density
        assert np.isclose(one.found, one.density)
    assert np.abs(before - outputs(model)).max() <= 1e-12


def test_heads_that_share_an_order_are_clustered_in_one(load) -> None:
    """A scale that all heads have in common leaves one order: groups are found over the zeros of all heads."""
    rng = np.random.default_rng(7)
    width, heads, size = 16, 2, 8
    place = rng.permutation(size)
    text = ATTENTIVE.replace("s = MatMul(a3, b3)", "a4 = Mul(a3, scale)\n  s = MatMul(a4, b3)")
    weights = {name: rng.normal(size=(width, width)) for name in ("q", "k", "v", "o")}
    weights |= {"cut": np.array([1, 5, heads, size]), "whole": np.array([1, 5, width]), "scale": rng.normal(size=size)}
    rows = np.repeat(rng.random((heads, 2, width)) < 0.3, 4, axis=1)[:, place].reshape(width, width)
    weights["q"] = np.where(rows, weights["q"].T, 0.0).T.copy()
    model = load(text, weights)
    infer_shapes(model)
    before = outputs(model)
    ((one,), reasons) = cluster_model(model)
    assert not reasons
    assert one.layers == ("q_proj",)
    assert one.given > 1.5 * one.density
    assert np.isclose(one.found, one.density)
    assert np.abs(before - outputs(model)).max() <= 1e-12


def test_a_fused_projection_is_clustered_in_its_parts(load) -> None:
    rng = np.random.default_rng(9)
    width, heads, size = 16, 2, 8
    orders = [rng.permutation(size) for _ in range(2)]  # queries and keys together, values
    rows = [np.repeat(rng.random((heads, 2, width)) < 0.3, 4, axis=1)[:, orders[i]] for i in (0, 0, 1)]
    kept = np.concatenate(rows).reshape(3 * width, width)
    weights = {"w0": np.where(kept, rng.normal(size=kept.shape), 0.0).T.copy(), "w2": rng.normal(size=(width, width))}
    model = load(FUSED, weights | {"cut": np.array([1, 5, heads, size]), "whole": np.array([1, 5, width])})
    infer_shapes(model)
    before = outputs(model)
    reports, reasons = cluster_model(model)
    assert not reasons
    assert [one.layers for one in reports] == [("qkv",), ("qkv",)]
    for one in reports:
        assert one.given > 1.5 * one.density
        assert np.isclose(one.found, one.density)
    assert np.abs(before - outputs(model)).max() <= 1e-12


def test_by_recipe() -> None:
    """Zeros that are there stay what they are; with a pattern, the pruned model is clustered."""
    rows = planted(3, 4, 8, 24)
    first = np.where(rows, 1.0, 0.0).astype(np.float32)
    weights = {"w0": first.T, "w1": np.ones((32, 5), np.float32)}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w0"], ["h"], name="first"),
            helper.make_node("Relu", ["h"], ["r"], name="relu"),
            helper.make_node("MatMul", ["r", "w1"], ["y"], name="second"),
        ],
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 24])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 5])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    for text in ("{rearrangement: {method: cluster}}", "{ignore: [MatMul], rearrangement: {method: cluster}}"):
        model = ir.serde.deserialize_model(proto)
        made = run_passes(model, sparsify_passes(Recipe.from_yaml(text))).model
        (told,) = json.loads(made.metadata_props[ORDER_KEY])
        share = float(rows.mean())
        assert told["layers"] == ["first"]
        assert np.isclose(told["density"], share)
        assert np.isclose(told["found"], share)
        assert told["given"] > 2 * share
    recipe = Recipe.from_yaml(
        "{targets: [first], pattern: unstructured, density: 0.2, rearrangement: {method: cluster}}"
    )
    names = [step.name for step in sparsify_passes(recipe)]
    assert names[-2:] == ["prune", "cluster"]
