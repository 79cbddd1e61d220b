"""Rearranging whole networks for every pattern with groups: the function stays, and what is said to be kept is kept."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import ATTENTIVE, BLOCKS, FUSED, network
from onnx.reference import ReferenceEvaluator

from edgesparse.passes import run_passes, sparsify_passes
from edgesparse.passes.balance import even_order
from edgesparse.passes.base import infer_shapes
from edgesparse.passes.couple import couple
from edgesparse.passes.layers import LayerInfo, canonical_weight, weight_layers
from edgesparse.passes.permute import retained, unstructured
from edgesparse.passes.rearrange import rearrange, stakes_of
from edgesparse.passes.sides import group_sizes, kept_sums
from edgesparse.pattern import SparsePattern, best_mask
from edgesparse.recipe import Choice, Recipe

ATTENTION = 11
PATTERNS = ("group:2x1", "group:1x2", "group:2x2", "block:2x2", "nm:2:4", "nm:1:2")


def prepared(blocks: list[int], seed: int) -> ir.Model:
    model = ir.serde.deserialize_model(network(blocks, seed))
    infer_shapes(model)
    return model


def outputs(model: ir.Model) -> np.ndarray:
    proto = ir.serde.serialize_model(model)
    shape = tuple(d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim)
    return ReferenceEvaluator(proto).run(None, {"x": np.random.default_rng(0).normal(size=shape)})[0]


def choices(model: ir.Model, texts: list[str]) -> dict[str, Choice]:
    found = {}
    for number, layer in enumerate(one for one in weight_layers(model) if one.default):
        pattern = SparsePattern.parse(texts[number % len(texts)])
        found[layer.name] = Choice(pattern, None if pattern.fixed else 0.5)
    return found


def kept(model: ir.Model, layer: LayerInfo, choice: Choice) -> float:
    """Share of the squared weights that the pruner keeps."""
    scores = np.square(canonical_weight(model, layer).astype(np.float64))
    return float(scores[best_mask(choice.pattern, scores, choice.density)].sum() / scores.sum())


@given(
    st.lists(st.integers(0, len(BLOCKS) - 1), min_size=1, max_size=3),
    st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3),
    st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_the_function_stays_and_the_report_is_true(blocks: list[int], texts: list[str], seed: int) -> None:
    model = prepared(blocks, seed)
    before, wanted = outputs(model), choices(model, texts)
    layers = {layer.name: layer for layer in weight_layers(model)}
    first = {name: kept(model, layers[name], one) for name, one in wanted.items()}
    reports, reasons = rearrange(model, wanted, {}, seed=seed)
    assert np.abs(before - outputs(model)).max() <= 1e-12 * max(np.abs(before).max(), 1.0)
    last = {name: kept(model, layers[name], one) for name, one in wanted.items()}
    assert sum(last.values()) >= sum(first.values()) - 1e-6
    met = [name for one in reports for name in one.layers]
    for one in reports:
        if all(min(group_sizes(wanted[name])) == 1 for name in one.layers):  # else the order of other sets counts too
            assert one.found >= one.given or any(met.count(name) > 1 for name in one.layers)
            assert one.found == pytest.approx(np.mean([last[name] for name in one.layers]), abs=1e-5)
            assert one.given == pytest.approx(np.mean([first[name] for name in one.layers]), abs=1e-5)
    assert {name for one in reports for name in one.layers} | {reason.node for reason in reasons} == set(wanted)


@pytest.mark.parametrize("text", ["group:2x2", "block:2x2", "group:1x2", "nm:2:4"])
def test_groups_of_inputs_gain(text: str) -> None:
    """A chain of three layers: the inputs of the middle one are the outputs of the first."""
    model = prepared([0, 0, 0], 5)
    reports, _ = rearrange(model, choices(model, [text]), {})
    assert max(one.found - one.given for one in reports) > 0.01


JOINED = """g (double[1,4,3,3] x) => (double[1,4,3,3] y) {
  [first] a = Conv(x, w0)
  [second] b = Conv(x, w1)
  c = Concat <axis = 1> (a, b)
  [last] y = Conv(c, w2)
}"""
PARTED = """g (double[1,4,3,3] x) => (double[1,4,3,3] y) {
  [wide] a = Conv(x, w0)
  b, c = Split <axis = 1, num_outputs = 2> (a)
  d = Sigmoid(b)
  e = Mul(c, d)
  f, h = Split <axis = 1, num_outputs = 2> (e)
  k = Add(f, h)
  [last] y = Conv(k, w2)
}"""


@pytest.mark.parametrize(
    ("text", "shapes", "chosen", "pattern"),
    [
        (FUSED, {"w0": (16, 48), "w2": (16, 16)}, "qkv", "group:2x1"),
        (FUSED, {"w0": (16, 48), "w2": (16, 16)}, "o_proj", "nm:2:4"),
        (JOINED, {"w0": (8, 4, 1, 1), "w1": (8, 4, 1, 1), "w2": (4, 16, 1, 1)}, "last", "nm:2:4"),
        (JOINED, {"w0": (8, 4, 1, 1), "w1": (8, 4, 1, 1), "w2": (4, 16, 1, 1)}, "last", "group:1x4"),
        (PARTED, {"w0": (32, 4, 1, 1), "w2": (4, 8, 1, 1)}, "wide", "group:2x1"),
    ],
)
def test_a_layer_of_several_sets_counts(load, text: str, shapes: dict, chosen: str, pattern: str) -> None:
    """Inputs that are joined, outputs that are cut up: each part has an order, and the layer as a whole gains."""
    rng = np.random.default_rng(3)
    weights = {name: np.sqrt(rng.gamma(0.3, size=shape)) for name, shape in shapes.items()}
    if text == FUSED:
        weights |= {"cut": np.array([1, 5, 2, 8]), "whole": np.array([1, 5, 16])}
    model = load(text, weights)
    infer_shapes(model)
    before = outputs(model)
    (layer,) = [one for one in weight_layers(model) if one.name == chosen]
    one = SparsePattern.parse(pattern)
    wanted = {chosen: Choice(one, None if one.fixed else 0.5)}
    first = kept(model, layer, wanted[chosen])
    reports, reasons = rearrange(model, wanted, {})
    assert not reasons
    assert np.abs(before - outputs(model)).max() <= 1e-12 * max(np.abs(before).max(), 1.0)
    assert kept(model, layer, wanted[chosen]) > first + 0.01
    assert reports[-1].found == pytest.approx(kept(model, layer, wanted[chosen]), abs=1e-5)


@pytest.mark.parametrize("text", ["group:4x4", "block:4x4", "group:8x1", "group:1x4", "block:4x1"])
def test_smaller_last_groups_are_seen_as_they_are_pruned(load, text: str) -> None:
    """Ten inputs and eleven outputs: from either side a layer retains what the pruner's mask of it does."""
    rng = np.random.default_rng(6)
    weights = {"w0": rng.gamma(0.3, size=(10, 7, 1, 1)), "w1": rng.gamma(0.3, size=(11, 10, 3, 3))}
    model = load(
        "g (double[1,7,3,3] x) => (double[1,11,1,1] y){ [first] a = Conv(x, w0)  r = Relu(a)  [last] y = Conv(r, w1) }",
        weights,
    )
    infer_shapes(model)
    wanted = {"last": Choice(SparsePattern.parse(text), 0.4)}
    coupling = couple(model)
    sides = {side.output: side for sides in stakes_of(model, coupling, wanted, {}).seen.values() for side in sides}
    layer = next(one for one in weight_layers(model) if one.name == "last")
    ((space,),) = coupling.axis(layer.weight, 1)
    assert len(sides) == sum(size > 1 for size in group_sizes(wanted["last"]))
    for order in ({}, {space: rng.permutation(10)}):
        scores = np.square(canonical_weight(model, layer))[:, order.get(space, np.arange(10))]
        share = scores[best_mask(wanted["last"].pattern, scores, 0.4)].sum() / scores.sum()
        for side in sides.values():
            view = side.whole(coupling, order)
            assert retained([view], np.arange(len(view.matrix))) == pytest.approx(share, abs=1e-5)
            assert share <= unstructured([view]) + 1e-6
            sums = np.add.reduceat(view.matrix, np.arange(0, len(view.matrix), view.size), axis=0)
            assert sums[kept_sums(view)].sum() / sums.sum() == pytest.approx(share, abs=1e-5)


def test_layers_that_cannot_be_searched_for_are_heeded(load) -> None:
    """The first layer alone would gain by an order of which the last, whose groups lie across two sets, loses more."""
    rng = np.random.default_rng(1)
    text = JOINED.replace("[1,4,3,3] y", "[1,8,3,3] y").replace("Conv(x, w1)", "Relu(x)").replace("[second] ", "")
    first = np.ones((6, 4))
    for feature, pair in enumerate([(0, 4), (1, 2), (3, 5)]):
        first[pair, feature] = 1.5
    last = np.full((8, 10), 1e-3)  # six channels of the first layer, and the inputs: groups of four lie across
    last[:, [0, 4, 8]] = 1.0
    weights = {"w0": first * rng.uniform(0.99, 1.01, first.shape), "w2": last * rng.uniform(0.9, 1.1, last.shape)}
    chosen = {
        "first": Choice(SparsePattern.parse("group:2x1"), 0.25),
        "last": Choice(SparsePattern.parse("nm:1:4"), None),
    }
    for names in (("first",), ("first", "last")):
        model = load(text, {name: array[:, :, None, None] for name, array in weights.items()})
        infer_shapes(model)
        layers = {one.name: one for one in weight_layers(model)}
        before = {name: kept(model, layers[name], one) for name, one in chosen.items()}
        rearrange(model, {name: chosen[name] for name in names}, {})
        gain = {name: kept(model, layers[name], one) - before[name] for name, one in chosen.items()}
        if names == ("first",):
            assert gain["first"] > 0.02
            assert gain["first"] + gain["last"] < -0.1
        else:
            assert gain["first"] + gain["last"] >= -1e-9


@given(st.lists(st.integers(0, 400), min_size=1, max_size=60), st.integers(1, 8))
def test_groups_in_an_even_order(work: list[int], threads: int) -> None:
    """The sums grow along a line, as near to it as the group furthest from the mean; so shares are equal, too."""
    counts = np.asarray(work, float)
    order = even_order(counts[:, None])
    assert sorted(order) == list(range(len(work)))
    sums, off = np.concatenate([[0], np.cumsum(counts[order])]), np.abs(counts - counts.mean()).max()
    assert np.abs(sums - counts.mean() * np.arange(len(work) + 1)).max() <= off + 1e-6
    if len(work) % threads == 0:
        shares = np.diff(sums[:: len(work) // threads])
        assert np.abs(shares - counts.sum() / threads).max() <= 2 * off + 1e-6


def test_balance_costs_nothing(load) -> None:
    """Groups of very different lengths: two halves have equal work, as many weights are kept, the function stays."""
    rng = np.random.default_rng(8)
    scale = np.repeat(2.0 ** np.arange(8), 4)[:, None]
    weights = {"w0": rng.normal(size=(32, 16)) * scale, "w2": rng.normal(size=(4, 32))}
    text = (
        "g (double[1,16,3,3] x) => (double[1,4,3,3] y) { [first] a = Conv(x, w0)  r = Relu(a)  [last] y = Conv(r, w2) }"
    )
    wanted = {"first": Choice(SparsePattern.parse("group:4x1"), 0.5)}
    found, uneven = {}, {}
    for balance in (False, True):
        model = load(text, {name: array[:, :, None, None] for name, array in weights.items()})
        infer_shapes(model)
        before = outputs(model)
        rearrange(model, wanted, {}, balance=balance)
        assert np.abs(before - outputs(model)).max() <= 1e-11 * np.abs(before).max()
        layer = next(one for one in weight_layers(model) if one.name == "first")
        found[balance] = kept(model, layer, wanted["first"])
        mask = best_mask(wanted["first"].pattern, np.square(canonical_weight(model, layer)), 0.5)
        halves = mask.reshape(2, -1).sum(axis=1)
        uneven[balance] = abs(int(halves[0]) - int(halves[1])) / mask.sum()
    assert found[True] == pytest.approx(found[False], rel=1e-6)
    assert uneven[False] > 0.5
    assert uneven[True] < 0.15


def test_heads_are_searched_each_on_its_own(load) -> None:
    """Planted: in each head the channels that belong together are others; one order for all could not join them."""
    rng = np.random.default_rng(4)
    width, heads, size = 16, 2, 8
    weights = {"o": rng.normal(size=(width, width))}
    for name in ("q", "k", "v"):
        columns = [np.repeat(np.eye(width)[:, 4 * h : 4 * h + 4], 2, axis=1)[:, rng.permutation(size)] for h in (0, 1)]
        weights[name] = np.concatenate(columns, axis=1) + 1e-3
    weights |= {"cut": np.array([1, 5, heads, size]), "whole": np.array([1, 5, width])}
    model = load(ATTENTIVE, weights)
    infer_shapes(model)
    before = outputs(model)
    wanted = {name: Choice(SparsePattern.parse("group:2x1"), 1 / width) for name in ("q_proj", "k_proj", "v_proj")}
    reports, reasons = rearrange(model, wanted, {})
    assert not reasons
    assert np.abs(before - outputs(model)).max() <= 1e-12
    value_set = next(one for one in reports if one.layers == ("v_proj",))
    assert value_set.given < 0.95
    assert value_set.found == pytest.approx(value_set.free, abs=1e-3)


def test_no_step_is_added() -> None:
    """Constants are reordered; operators, names and shapes stay."""
    model = prepared([3, 4, ATTENTION, 5], 2)
    names = [(node.op_type, node.name, str([value.shape for value in node.outputs])) for node in model.graph]
    shapes = {name: value.const_value.shape for name, value in model.graph.initializers.items()}  # type: ignore[union-attr]
    weights = {layer.weight: canonical_weight(model, layer).copy() for layer in weight_layers(model)}
    rearrange(model, choices(model, ["group:2x1"]), {})
    assert [(node.op_type, node.name, str([value.shape for value in node.outputs])) for node in model.graph] == names
    assert {n: v.const_value.shape for n, v in model.graph.initializers.items()} == shapes  # type: ignore[union-attr]
    moved = [
        layer.name
        for layer in weight_layers(model)
        if not np.array_equal(canonical_weight(model, layer), weights[layer.weight])
    ]
    assert len(moved) > 3


def test_by_recipe_for_n_of_m() -> None:
    model = prepared([0, 0, 0], 7)
    recipe = Recipe.from_yaml("{pattern: 'nm:2:4', rearrangement: {method: search}}")
    props = run_passes(model, sparsify_passes(recipe)).model.metadata_props
    told = json.loads(props["edgesparse.rearrangement"])
    assert told
    assert all(one["found"] >= one["given"] for one in told)
