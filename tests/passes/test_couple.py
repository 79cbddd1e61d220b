"""Coupling is exact: random legal permutations of random networks change nothing; what must be pinned is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import BLOCKS, network
from onnx.reference import ReferenceEvaluator

from edgesparse.passes.base import infer_shapes
from edgesparse.passes.couple import Coupling, apply_order, couple
from edgesparse.passes.spaces import Clash, Spaces


def shuffled(model: ir.Model, seed: int) -> tuple[ir.Model, Coupling]:
    """A copy with every free set permuted at random, each head in its own way where that is said to be legal."""
    copy = model.clone()
    coupling = couple(copy)
    rng = np.random.default_rng(seed)
    order = {
        one.space: rng.permuted(np.tile(np.arange(one.size), (one.heads, 1)), axis=1)
        if one.heads > 1
        else rng.permutation(one.size)
        for one in coupling.sets
        if one.reason is None
    }
    apply_order(copy, coupling, order)
    return copy, coupling


def outputs(model: ir.Model, seed: int) -> np.ndarray:
    proto = ir.serde.serialize_model(model)
    shape = tuple(d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim)
    return ReferenceEvaluator(proto).run(None, {"x": np.random.default_rng(seed).normal(size=shape)})[0]


def prepared(blocks: list[int], seed: int) -> ir.Model:
    model = ir.serde.deserialize_model(network(blocks, seed))
    infer_shapes(model)
    return model


@pytest.mark.parametrize("part", range(4))  # in parts, so that they run side by side: 520 networks in all
@given(st.lists(st.integers(0, len(BLOCKS) - 1), min_size=1, max_size=5), st.integers(0, 2**31))
@settings(max_examples=130, deadline=None)
def test_any_legal_permutation_changes_nothing(part: int, blocks: list[int], seed: int) -> None:
    seed += part
    model = prepared(blocks, seed)
    before = outputs(model, seed)
    after = outputs(shuffled(model, seed)[0], seed)
    assert np.abs(before - after).max() <= 1e-12 * max(np.abs(before).max(), 1.0)


@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_something_is_free_around_each_block(block: int) -> None:
    model = prepared([0, block, 0], 1)
    moved, coupling = shuffled(model, 3)
    assert any(one.reason is None and one.size > 1 for one in coupling.sets)
    names = list(model.graph.initializers)
    same = [
        np.array_equal(
            model.graph.initializers[n].const_value.numpy(),  # type: ignore[union-attr]
            moved.graph.initializers[n].const_value.numpy(),  # type: ignore[union-attr]
        )
        for n in names
    ]
    assert not all(same)


def test_a_wrong_permutation_is_seen() -> None:
    """The oracle can tell: permuting one member of a set alone changes the outputs."""
    model = prepared([3], 1)
    before = outputs(model, 1)
    value = model.graph.initializers["c1"]
    value.const_value = ir.tensor(value.const_value.numpy()[::-1].copy(), name="c1")
    assert np.abs(before - outputs(model, 1)).max() > 1e-6


def test_heads_of_attention_have_orders_of_their_own() -> None:
    """Queries and keys share one set, values and the output another: two sets of two heads of three channels."""
    coupling = couple(prepared([11], 1))
    own = [one for one in coupling.sets if one.heads > 1 and one.reason is None]
    assert [(one.size, one.heads) for one in own] == [(3, 2), (3, 2)]
    assert sorted(len(one.members) for one in own) == [3, 4]


@pytest.mark.parametrize(("seed", "free"), [(0, False), (1, False), (2, False), (3, False), (4, True)])
def test_heads_that_are_joined_have_not(seed: int, free: bool) -> None:
    """Softmax or product over heads, a scale they share, channels of one head against another's: one order for all."""

    class Chosen(np.random.Generator):
        def integers(self, *args: object, **more: object) -> object:
            return seed if args == (5,) else super().integers(*args, **more)  # type: ignore[call-overload]

    model = ir.serde.deserialize_model(network([13], 1, rng=Chosen(np.random.PCG64(1))))
    infer_shapes(model)
    assert any(one.heads > 1 and one.reason is None for one in couple(model).sets) == free
    before, after = outputs(model, 1), outputs(shuffled(model, 3)[0], 1)
    assert np.abs(before - after).max() <= 1e-12 * max(np.abs(before).max(), 1.0)


TEXT = "g (double[1,4,4,4] x) => (double[1,N,H,W] y) {{ a = Conv(x, w)  {middle}  y = Conv(b, v) }}"


@pytest.mark.parametrize(
    ("middle", "shape", "code"),
    [
        ("b = DepthToSpace <blocksize = 2> (a)", (3, 2, 1, 1), "not-understood"),
        ("b = Conv <group = 2> (a, g)", (3, 8, 1, 1), "convolution-groups"),
        ("b = Pad(a, p)", (3, 9, 1, 1), "fixed-order"),
        ("b = Relu(a)", (3, 8, 1, 1), None),
    ],
)
def test_what_is_pinned_and_why(load, middle: str, shape: tuple[int, ...], code: str | None) -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(8, 4, 1, 1)), "v": rng.normal(size=shape)}
    if "Pad" in middle:
        weights["p"] = np.array([0, 0, 0, 0, 0, 1, 0, 0])
    if "group" in middle:
        weights["g"] = rng.normal(size=(8, 4, 1, 1))
    model = load(TEXT.format(middle=middle), weights)
    infer_shapes(model)
    coupling = couple(model)
    reasons = [coupling.spaces.reason(space) for part in coupling.axis("w", 0) for space in part]
    assert [None if reason is None else reason.code for reason in reasons] == [code]


def test_an_open_dimension_pins_what_it_meets(load) -> None:
    text = "g (double[N] x) => (double[M] y) { y = Add(x, w) }"
    model = load(text, {"w": np.ones(4)})
    assert [one.reason is None for one in couple(model).sets] == [False]


def test_spaces_cut_and_factor() -> None:
    spaces = Spaces()
    whole, left, right = spaces.new(12), spaces.new(4), spaces.new(8)
    spaces.unite(whole, left + right)
    assert [spaces.extent((part,)) for part in spaces.leaves(whole)] == [4, 8]
    heads, inner = spaces.factor(right, (2, 4))
    assert (spaces.extent(heads), spaces.extent(inner)) == (2, 4)
    order = {spaces.leaves(heads)[0][0]: np.array([1, 0]), spaces.leaves(left)[0][0]: np.array([3, 2, 1, 0])}
    assert spaces.indices(whole, order).tolist() == [3, 2, 1, 0, 8, 9, 10, 11, 4, 5, 6, 7]
    with pytest.raises(Clash):
        spaces.unite(spaces.new(3), spaces.new(4))
    with pytest.raises(Clash):
        spaces.cut_at(right, 1)
