"""Budgets and prices against counting by hand, and the frontier on a small network."""

from __future__ import annotations

import itertools
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest

from edgesparse.advice.evaluate import evaluate, onnx_model
from edgesparse.advice.frontier import (
    DropError,
    as_json,
    cheapest,
    frontier,
    lowest_share,
    plot,
    prepare,
    prune_to,
    share_of,
)
from edgesparse.budget import Budget
from edgesparse.costing.pricing import price_layers, pricer_for
from edgesparse.errors import RecipeError, UsageError
from edgesparse.passes import SIMPLIFY, load_model, run_passes, weight_layers
from edgesparse.passes.allocate import Prices, Sensitivity, flop_prices, within
from edgesparse.passes.layers import canonical_weight
from edgesparse.pattern import SparsePattern, density
from edgesparse.recipe import Recipe
from edgesparse.target import Target

TARGET = Target.parse("x86-64-v3")
GROUP = SparsePattern("group", 4, 1)


@pytest.mark.parametrize(
    ("text", "kind", "amount", "relative"),
    [
        ("latency=0.5x", "latency", 0.5, True),
        ("latency=8ms", "latency", 0.008, False),
        ("flops=300M", "flops", 3e8, False),
        ("flops=1200", "flops", 1200.0, False),
        (" size=.25MB ", "size", 2.5e5, False),
    ],
)
def test_budgets(text: str, kind: str, amount: float, relative: bool) -> None:
    found = Budget.parse(text)
    assert (found.kind, found.amount, found.relative) == (kind, pytest.approx(amount), relative)
    assert Budget.parse(str(found)) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed=2x", "cannot be read"),
        ("latency", "cannot be read"),
        ("latency=-1ms", "cannot be read"),
        ("latency=1e3ms", "cannot be read"),
        ("latency=5", "has no unit of latency"),
        ("flops=2MB", "has no unit of flops"),
        ("flops=0x", "nothing, or more than dense"),
        ("size=1.5x", "nothing, or more than dense"),
    ],
)
def test_bad_budgets(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Budget.parse(text)
    with pytest.raises(RecipeError, match=r"allocation\.budget"):
        Recipe.from_yaml(f"{{pattern: group:4x1, allocation: {{method: sensitivity, budget: '{text}'}}}}")


def test_a_budget_needs_sensitivities() -> None:
    with pytest.raises(RecipeError, match=r"allocation\.budget.*method erk knows no losses"):
        Recipe.from_yaml("{pattern: group:4x1, allocation: {method: erk, budget: flops=0.5x}}")
    text = "{pattern: group:4x1, allocation: {method: sensitivity, budget: latency=0.5x, target: native}}"
    recipe = Recipe.from_yaml(text)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


# --- a small network


def network(folder: Path) -> Path:
    """Two 1x1 convolutions around a depthwise one, and a classifier."""
    rng = np.random.default_rng(0)
    text = """<ir_version: 9, opset_import: ["" : 18]>
        net (float[1,16,6,6] x) => (float[1,10] y) {
          [one] a = Conv(x, w1, b1)  r = Relu(a)  [deep] d = Conv <group = 32, pads = [1,1,1,1]> (r, w2, b2)
          [two] e = Conv(d, w3, b3)  p = GlobalAveragePool(e)  f = Flatten(p)
          [last] y = Gemm <transB = 1> (f, w4, b4) }"""
    made = onnx.parser.parse_model(text)
    shapes = {"w1": (32, 16, 1, 1), "w2": (32, 1, 3, 3), "w3": (24, 32, 1, 1), "w4": (10, 24)}
    for name, shape in shapes.items():
        weight = (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        bias = rng.normal(size=shape[0]).astype(np.float32)
        made.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
        made.graph.initializer.append(onnx.numpy_helper.from_array(bias, name.replace("w", "b")))
    onnx.save(made, folder / "net.onnx")
    return folder / "net.onnx"


def samples(count: int = 12, seed: int = 1) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(1, 16, 6, 6)).astype(np.float32)} for _ in range(count)]


@pytest.fixture
def model(tmp_path: Path) -> ir.Model:
    return run_passes(load_model(network(tmp_path)), SIMPLIFY).model


def chosen(model: ir.Model):
    return [one for one in weight_layers(model) if one.kind == "conv1x1"]


def test_prices_in_operations(model: ir.Model) -> None:
    names = {one.name for one in chosen(model)}
    prices = flop_prices(chosen(model), [one for one in weight_layers(model) if one.name not in names])
    one, deep, two, last = 36 * 32 * 16, 36 * 32 * 9, 36 * 24 * 32, 240
    assert prices.dense == 2 * (one + deep + two + last)
    assert prices.total({"one": 0.5, "two": 0.25}) == pytest.approx(2 * (one / 2 + deep + two / 4 + last))


def test_prices_between_what_is_known() -> None:
    prices = Prices("s", 1.0, (0.2, 0.5, 1.0), {"a": (2.0, 5.0, 7.0)})
    assert [prices.at("a", d) for d in (0.2, 0.35, 0.5, 0.75, 1.0)] == pytest.approx([2.0, 3.5, 5.0, 6.0, 7.0])
    assert prices.at("a", 0.1) == pytest.approx(1.0)
    assert prices.dense == 8.0


def test_the_knapsack_by_prices_is_exact(model: ir.Model) -> None:
    layers, grid = chosen(model), (0.2, 0.5, 0.9, 1.0)
    losses = [
        Sensitivity(one.name, (0.2, 0.5), loss) for one, loss in zip(layers, ((3.0, 1.0), (0.5, 0.2)), strict=True)
    ]
    prices = Prices("s", 2.0, (0.2, 1.0), {layers[0].name: (1.0, 4.0), layers[1].name: (3.0, 9.0)})
    found = within(layers, losses, prices, 9.5, grid=grid)
    options = {
        shares: sum(one.at(share) for one, share in zip(losses, shares, strict=True))
        for shares in itertools.product(grid, repeat=2)
        if prices.total({one.name: share for one, share in zip(layers, shares, strict=True)}) <= 9.5
    }
    assert tuple(found[one.name] for one in layers) == min(options, key=lambda shares: options[shares])
    with pytest.raises(UsageError, match=r"cannot be met.*what is not pruned takes 0\.13"):
        within(layers, losses, prices, 1.9)
    with pytest.raises(UsageError, match="even the sparsest choices"):
        within(layers, losses, prices, 5.5, grid=grid)


def test_predicted_prices(model: ir.Model) -> None:
    for kind, unit in (("latency", None), ("size", "bytes")):
        prices = price_layers(model, chosen(model), GROUP, TARGET, kind=kind)
        assert unit is None or prices.unit == unit
        assert prices.fixed > 0
        for row in prices.layers.values():
            assert list(row) == sorted(row), "fewer weights are never dearer"
            assert row[0] < row[-1]
    # dense float32 weights and biases of both layers, of the depthwise one and of the classifier
    assert prices.dense == pytest.approx(4 * (32 * 16 + 32 + 32 * 9 + 32 + 24 * 32 + 24 + 10 * 24 + 10))


def test_measured_prices_come_from_the_timer(model: ir.Model) -> None:
    def timer(pruned: ir.Model) -> dict[str, float]:
        kept = {one.name: density(canonical_weight(pruned, one)) for one in chosen(pruned)}
        return {"one": kept["one"], "two": 0.3 + kept["two"] if kept["two"] < 1 else 0.9, "deep": 0.25, "rest": 0.5}

    prices = price_layers(model, chosen(model), GROUP, TARGET, timer=timer, densities=(0.25, 0.5, 0.75, 1.0))
    assert (prices.unit, prices.fixed) == ("s", 0.75)
    assert prices.layers["one"] == (0.25, 0.5, 0.75, 1.0)
    assert prices.layers["two"] == pytest.approx((0.55, 0.8, 0.9, 0.9)), "sparse kernels that are slower are not taken"
    with pytest.raises(UsageError, match="layer 'two' has no price of its own"):
        price_layers(model, chosen(model), GROUP, TARGET, timer=lambda _: {"one": 1.0})


# --- pruning to a budget

RECIPE = """
pattern: group:4x1
targets: [conv1x1]
criterion: obs
reconstruction: {method: refit}
recalibration: {layers: all}
allocation: {method: sensitivity, budget: flops=0.6x}
rearrangement: {method: search}
"""


def judge_of(dense: ir.Model):
    held = [(one, None) for one in samples(20, seed=9)]
    return lambda model: evaluate(onnx_model(model), held, against=onnx_model(dense))


def used(model: ir.Model) -> float:
    layers = weight_layers(model)
    return sum(one.macs * density(canonical_weight(model, one)) for one in layers) / sum(one.macs for one in layers)


@pytest.mark.parametrize("budget", ["flops=0.6x", "size=0.6x", "latency=0.8x"])
def test_a_recipe_with_a_budget(tmp_path: Path, budget: str) -> None:
    from edgesparse.passes import sparsify_passes

    recipe = Recipe.from_yaml(RECIPE.replace("flops=0.6x", budget))
    loaded = load_model(network(tmp_path))
    pricer = pricer_for(TARGET)
    made = [run_passes(loaded, sparsify_passes(recipe, samples(), pricer=pricer)).model for _ in range(2)]
    texts = [ir.serde.serialize_model(one).SerializeToString(deterministic=True) for one in made]
    assert texts[0] == texts[1], "same inputs and seed, same bytes"
    base = run_passes(loaded, SIMPLIFY).model
    prices = pricer(base, chosen(base), GROUP, Budget.parse(budget))
    kept = {one.name: density(canonical_weight(made[0], one)) for one in chosen(made[0])}
    # densities are rounded to whole groups: 2 % of a layer of 8 x 16 of them
    assert prices.total(kept) <= (Budget.parse(budget).amount + 0.02) * prices.dense
    assert prices.total(kept) >= (Budget.parse(budget).amount - 0.08) * prices.dense


def test_budgets_that_cannot_be_meant(model: ir.Model) -> None:
    from edgesparse.passes import sparsify_passes

    def run(text: str, pricer=None) -> None:
        run_passes(model, sparsify_passes(Recipe.from_yaml(text), samples(4), pricer=pricer))

    with pytest.raises(UsageError, match="needs a target"):
        run(RECIPE.replace("flops=0.6x", "latency=0.6x"))
    with pytest.raises(UsageError, match="needs a target"):
        run(RECIPE.replace("flops=0.6x", "size=0.6x"), pricer_for(None))
    with pytest.raises(UsageError, match=r"pattern nm:2:4.*its density is fixed"):
        run(RECIPE.replace("group:4x1", "nm:2:4"))
    with pytest.raises(UsageError, match=r"cannot be met.*what is not pruned takes"):
        run(RECIPE.replace("0.6x", "0.05x"))
    counted = pricer_for(Target.parse("armv7"))
    with pytest.raises(UsageError, match=r"latency=1ms needs measured times.*cycles are counted"):
        run(RECIPE.replace("flops=0.6x", "latency=1ms"), counted)


def test_the_frontier(tmp_path: Path) -> None:
    loaded = load_model(network(tmp_path))
    ground = prepare(loaded, Recipe.from_yaml(RECIPE), samples(), kind="flops")
    judge = judge_of(ground.model)
    lowest = lowest_share(ground)
    assert lowest < 0.4
    points = frontier(ground, judge, (lowest / 2, 0.5, 1.0))
    assert [one.share for one in points] == [0.5, 1.0], "what cannot be met is left out"
    assert points[1].evaluation.drop == 0.0
    assert points[0].cost <= 0.5 * ground.measured.prices.dense * (1 + 1e-6)
    data = json.loads(json.dumps(as_json(ground, points)))
    assert [point["cost"] for point in data["points"]] == [one.cost for one in points]
    root = ElementTree.fromstring(plot(data))
    assert sum(node.tag.endswith("circle") for node in root.iter()) == 2
    with pytest.raises(UsageError, match="no budget of the frontier can be met"):
        frontier(ground, judge, (lowest / 2,))
    assert share_of(ground, Budget.parse("flops=1G")) == 1.0


def test_the_cheapest_that_keeps_the_accuracy(tmp_path: Path) -> None:
    loaded = load_model(network(tmp_path))
    ground = prepare(loaded, Recipe.from_yaml(RECIPE), samples(), kind="flops")
    judge = judge_of(ground.model)
    found = cheapest(ground, judge, 20.0, rounds=4)
    assert judge(found.model).drop == found.point.evaluation.drop <= 20.0
    assert used(found.model) <= found.point.share + 0.02
    step = (1.0 - lowest_share(ground)) / 2**4
    below = found.point.share - step
    if below > lowest_share(ground):
        assert prune_to(ground, below, judge).point.evaluation.drop > 20.0, "the next cheaper one loses too much"
    with pytest.raises(DropError, match=r"no pruned model loses at most 0 points.*already"):
        cheapest(
            ground,
            lambda model: evaluate(onnx_model(model), [(samples()[0], None)], against=_other(ground)),
            0.0,
            rounds=1,
        )


def _other(ground):
    """A dense model that always says something else."""
    run = onnx_model(ground.model)
    return lambda feeds: {name: -value for name, value in run(feeds).items()}


def test_measured_in_place(model: ir.Model) -> None:
    from edgesparse.measuring.insitu import layer_seconds

    found = layer_seconds(Target.parse("native"), runs=3)(model)
    assert {"one", "two", "deep", "last"} <= found.keys()
    assert all(0 < found[name] < 1 for name in ("one", "two", "deep", "last"))
    with pytest.raises(UsageError, match="armv7 cannot be measured here"):
        layer_seconds(Target.parse("armv7"))
