"""The layer list, scores and pruning by recipe."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from judge import run, same

from edgesparse import pattern as P
from edgesparse.errors import RecipeError, UsageError
from edgesparse.passes import LayerInfo, run_passes, weight_layers
from edgesparse.passes.layers import canonical_weight, set_canonical_weight
from edgesparse.passes.prune import LAYERS_KEY, RECIPE_KEY, VERSION_KEY, prune_pass
from edgesparse.passes.score import saliency
from edgesparse.recipe import Recipe

RNG = np.random.default_rng(3)
NET = """g (float[1,8,6,6] x) => (float[1,6] y) {
    a = Conv <pads = [1,1,1,1]> (x, w_stem)
    b = Conv <group = 16> (a, w_dw)
    c = Conv <group = 2, strides = [2,2]> (b, w_grouped)
    d = Conv(c, w_pw, b_pw)
    e = ConvTranspose(d, w_up)
    f = Flatten(e)
    h = MatMul(f, w_mm)
    y = Gemm <transB = 1> (h, w_fc)
}"""
SHAPES = {
    "w_stem": (16, 8, 3, 3),
    "w_dw": (16, 1, 3, 3),
    "w_grouped": (16, 8, 1, 1),
    "w_pw": (20, 16, 1, 1),
    "w_up": (20, 3, 2, 2),
    "w_mm": (27, 12),
    "w_fc": (6, 12),
    "b_pw": (20,),
}


@pytest.fixture
def net(load) -> ir.Model:
    model = load(NET, {name: RNG.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()})
    for node, name in zip(model.graph, ["stem", "dw", "grouped", "pw", "up", "flat", "mm", "fc"], strict=True):
        node.name = name
    return model


def pruned(model: ir.Model, text: str):
    return run_passes(model, [prune_pass(Recipe.from_yaml(text))])


def densities(model: ir.Model) -> dict[str, float]:
    return {layer.name: round(P.density(canonical_weight(model, layer)), 6) for layer in weight_layers(model)}


def test_layer_list(net: ir.Model) -> None:
    rows = [(one.name, one.kind, one.shape, one.groups, one.macs, one.default) for one in weight_layers(net)]
    assert rows == [
        ("stem", "conv", (16, 8, 9), 1, 36 * 16 * 72, True),
        ("dw", "depthwise", (16, 1, 9), 16, 16 * 16 * 9, False),
        ("grouped", "conv", (16, 8, 1), 2, 4 * 16 * 8, False),
        ("pw", "conv1x1", (20, 16, 1), 1, 4 * 20 * 16, True),
        ("up", "conv_transpose", (3, 20, 4), 1, 4 * 240, False),
        ("mm", "matmul", (12, 27, 1), 1, 12 * 27, True),
        ("fc", "gemm", (6, 12, 1), 1, 72, True),
    ]
    by_name: dict[str, LayerInfo] = {one.name: one for one in weight_layers(net)}
    assert (by_name["pw"].weight, by_name["pw"].bias, by_name["stem"].bias) == ("w_pw", "b_pw", None)
    assert (by_name["grouped"].strides, by_name["fc"].trans_b, by_name["fc"].params) == ((2, 2), True, 72)


def test_canonical_weights_are_stored_back(net: ir.Model) -> None:
    before = net.clone()
    for layer in weight_layers(net):
        set_canonical_weight(net, layer, canonical_weight(net, layer).copy())
    same(before, net, 0.0)


def test_prune_by_default_targets(net: ir.Model) -> None:
    result = pruned(net, "{pattern: group:4x1, density: 0.25}")
    assert densities(net) == dict.fromkeys(densities(net), 1.0), "the given model is untouched"
    got = densities(result.model)
    assert (got["stem"], got["pw"], got["dw"], got["grouped"], got["up"]) == (0.25, 0.25, 1.0, 1.0, 1.0)
    assert {(reason.node, reason.code) for reason in result.reasons} == {
        ("dw", "not-selected"),
        ("grouped", "not-selected"),
        ("up", "not-selected"),
    }
    for layer in weight_layers(result.model):
        if layer.name in ("stem", "pw", "mm", "fc"):
            assert P.keeps(P.SparsePattern("group", 4, 1), canonical_weight(result.model, layer))
    assert np.isfinite(run(result.model)[0]).all()


def test_exact_density_and_largest_weights_kept(net: ir.Model) -> None:
    result = pruned(net, "{pattern: unstructured, sparsity: 0.7}")
    layer = next(one for one in weight_layers(result.model) if one.name == "stem")
    before, after = canonical_weight(net, layer), canonical_weight(result.model, layer)
    kept = after != 0
    assert kept.sum() == int(np.floor(0.3 * kept.size + 0.5))
    assert np.abs(before[kept]).min() >= np.abs(before[~kept]).max()
    assert np.array_equal(before[kept], after[kept])
    assert not np.signbit(after[~kept]).any()


def test_named_layers_and_reasons(net: ir.Model) -> None:
    result = pruned(
        net,
        """
        targets: [dw, grouped, up, pw, fc, mm]
        pattern: group:8x1
        density: 0.5
        layers:
          - {targets: [pw], pattern: group:4x1, density: 0.001}
          - {targets: [mm], pattern: dense}
          - {targets: [grouped], pattern: group:16x1}
        """,
    )
    assert densities(result.model)["dw"] == pytest.approx(5 / 9, abs=0.1)
    assert {(reason.node, reason.code) for reason in result.reasons} == {
        ("stem", "not-selected"),
        ("pw", "rounds-to-zero"),
        ("mm", "dense-by-recipe"),
        ("grouped", "pattern-misfit"),
        ("up", "pattern-misfit"),
        ("fc", "pattern-misfit"),
    }


@pytest.mark.parametrize(("criterion", "power"), [("magnitude", 2), ("l1", 1)])
def test_groups_by_their_norm(net: ir.Model, criterion: str, power: int) -> None:
    """The groups kept are those with the largest sums of |w| to a power: L2 and L1 norm."""
    result = pruned(net, f"{{targets: [pw], pattern: group:4x1, density: 0.5, criterion: {criterion}}}")
    layer = next(one for one in weight_layers(net) if one.name == "pw")
    before, after = canonical_weight(net, layer)[..., 0], canonical_weight(result.model, layer)[..., 0]
    whole = len(before) // 4 * 4
    norms = (np.abs(before[:whole].astype(np.float64)) ** power).reshape(-1, 4, before.shape[1]).sum(1)
    kept = after[:whole].reshape(-1, 4, before.shape[1]).any(axis=1)
    assert norms[kept].min() > norms[~kept].max()


def test_metadata_says_what_was_done(net: ir.Model) -> None:
    text = "{pattern: group:4x1, density: 0.5, targets: [pw]}"
    result = pruned(net, text)
    props = result.model.metadata_props
    assert Recipe.from_yaml(props[RECIPE_KEY]) == Recipe.from_yaml(text)
    assert props[VERSION_KEY]
    assert json.loads(props[LAYERS_KEY]) == {"pw": {"pattern": "group:4x1", "density": 0.5}}


def test_same_recipe_same_bytes(net: ir.Model) -> None:
    first, second = (
        ir.serde.serialize_model(pruned(net, "{pattern: group:4x1, density: 0.3}").model) for _ in range(2)
    )
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_shared_weight_is_pruned_for_one_layer_only(load) -> None:
    text = "g (float[2,8] x) => (float[2,8] y) { a = MatMul(x, w)  y = MatMul(a, w) }"
    model = load(text, {"w": RNG.normal(size=(8, 8)).astype(np.float32)})
    result = pruned(model, "{targets: [MatMul_0], pattern: unstructured, density: 0.5}")
    assert densities(result.model) == {"MatMul_0": 0.5, "MatMul_1": 1.0}


@pytest.mark.parametrize("text", ["group:4x2", "nm:2:4", "fanin", "block:4x2", "channel", "kernel:4"])
def test_every_pattern_can_be_pruned_to(net: ir.Model, text: str) -> None:
    pattern = P.SparsePattern.parse(text)
    share = "" if pattern.fixed else ", density: 0.5"
    result = pruned(net, f"{{pattern: {text}{share}, targets: [stem, pw]}}")
    left = {reason.node for reason in result.reasons}
    for layer in weight_layers(result.model):
        if layer.name in ("stem", "pw") and layer.name not in left:
            weight = canonical_weight(result.model, layer)
            assert P.keeps(pattern, weight)
            assert P.density(weight) == pytest.approx(4 / 9 if text == "kernel:4" else 0.5, abs=0.05)
    assert np.isfinite(run(result.model)[0]).all()


def test_errors(net: ir.Model) -> None:
    with pytest.raises(RecipeError, match=r"targets\[0\]: 'stemm' matches no layer.*did you mean 'stem'"):
        pruned(net, "{targets: [stemm], pattern: group:4x1, density: 0.5}")
    with pytest.raises(UsageError, match="unknown criterion 'luck'"):
        saliency("luck", np.ones((1, 1, 1)))


def test_what_is_no_weight_layer(load) -> None:
    text = "g (float[2,3] x, float[3,4] z) => (float[2,4] y, float[5,3,4] v) { y = MatMul(x, z)  v = MatMul(w, z) }"
    assert weight_layers(load(text, {"w": RNG.normal(size=(5, 3, 3)).astype(np.float32)})) == []
