"""Explanations: five prepared models each get their cause, on every kind of target; break-even against brute force."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from networks import Net

from edgesparse.advice.explain import CAUSES, Explanation, explain, padded_share
from edgesparse.costing.costs import cost_table
from edgesparse.costing.virtual import best_sparse, break_even, stored_share, virtual_cost
from edgesparse.graph.ops import Graph
from edgesparse.graph.recognise import recognise
from edgesparse.kernels import Epilogue
from edgesparse.passes import SIMPLIFY, model_from_proto, run_passes
from edgesparse.pattern import SparsePattern, best_mask
from edgesparse.planning.place import Placement
from edgesparse.planning.products import Job, Product, candidates, cost
from edgesparse.target import Target

TARGETS = ("x86-64-v4", "cortex-a76", "wasm-simd")


def bottlenecks() -> onnx.ModelProto:
    """Residual blocks of 1x1, 3x3, 1x1 convolutions on 28x28 maps, then pooling and a classifier."""
    net = Net(0)
    x = net.conv(net.input(1, 3, 56, 56), 256, (3, 3), (2, 2), pads=(1, 1, 1, 1))
    for _ in range(2):
        y = net.node("Relu", net.conv(x, 64))
        y = net.node("Relu", net.conv(y, 64, (3, 3), pads=(1, 1, 1, 1)))
        y = net.conv(y, 256)
        x = net.node("Relu", net.node("Add", x, y))
    x = net.node("GlobalAveragePool", x, shape=(1, 256, 1, 1))
    x = net.node("Flatten", x, shape=(1, 256))
    weight = net.constant(net.rng.standard_normal((100, 256)))
    net.outputs = [net.node("Gemm", x, weight, net.weight(100), shape=(1, 100), transB=1)]
    return net.model()


def separable() -> onnx.ModelProto:
    """Depthwise 3x3 and 1x1 convolutions in turn."""
    net = Net(1)
    x = net.conv(net.input(1, 3, 56, 56), 64, (3, 3), (2, 2), pads=(1, 1, 1, 1))
    for _ in range(3):
        x = net.node("Relu", net.conv(x, 64, (3, 3), pads=(1, 1, 1, 1), groups=64))
        x = net.node("Relu", net.conv(x, 64))
    net.outputs = [x]
    return net.model()


def pruned(model: onnx.ModelProto, pattern: str, density: float, kinds: tuple[str, ...]) -> Graph:
    """The model with random masks on the layers of some kinds: "first", "1x1", "3x3", "depthwise", "fc"."""
    rng = np.random.default_rng(3)
    weights = {each.name: each for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        tensor = weights[node.input[1]]
        array = onnx.numpy_helper.to_array(tensor)
        kind = "fc" if array.ndim == 2 else "1x1" if array.shape[2:] == (1, 1) else "3x3"
        kind = "depthwise" if kind == "3x3" and array.shape[1] == 1 else kind
        kind = "first" if node.input[0] == model.graph.input[0].name else kind
        if kind in kinds:
            flat = array.reshape(*array.shape[:2], -1)
            mask = best_mask(SparsePattern.parse(pattern), rng.random(flat.shape), density)
            tensor.CopyFrom(onnx.numpy_helper.from_array((array * mask.reshape(array.shape)), tensor.name))
    return recognise(run_passes(model_from_proto(model), SIMPLIFY).model)


ALL = ("1x1", "3x3", "fc")


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(
    ("pattern", "density", "kinds", "cause"),
    [
        ("unstructured", 1.0, (), "not-pruned"),
        ("unstructured", 0.4, ALL, "unstructured"),
        ("group:4x1", 0.3, ALL, "as-expected"),
        ("group:4x1", 0.3, ("fc",), "pruned-layers-small"),
        ("group:4x1", 0.3, ("3x3",), "unpruned-layers-remain"),
    ],
)
def test_the_cause_of_five_models(name: str, pattern: str, density: float, kinds: tuple[str, ...], cause: str) -> None:
    found = explain(pruned(bottlenecks(), pattern, density, kinds), Target.parse(name))
    assert found.cause == cause, found
    assert found.why
    assert {layer.cause for layer in found.layers} <= CAUSES.keys()


def test_a_kernel_that_does_less_in_a_cycle_is_named() -> None:
    """A fully connected layer in groups of 4: its kernel fills a quarter of a vector, the dense one all of several."""
    net = Net(8)
    x = net.node("Flatten", net.input(1, 512, 1, 1), shape=(1, 512))
    weight = net.constant(net.rng.standard_normal((1000, 512)))
    net.outputs = [net.node("Gemm", x, weight, net.weight(1000), shape=(1, 1000), transB=1)]
    (layer,) = [
        each
        for each in explain(pruned(net.model(), "group:4x1", 0.3, ("fc",)), Target.parse("x86-64-v4")).layers
        if each.kind == "linear"
    ]
    assert layer.cause == "narrow", layer
    told = re.search(r"(\d+) % of its time", layer.why)
    assert told, layer
    assert 5 <= int(told[1]) <= 95


@pytest.mark.parametrize("name", TARGETS)
def test_zeros_in_depthwise_layers(name: str) -> None:
    found = explain(pruned(separable(), "unstructured", 0.3, ("depthwise",)), Target.parse(name))
    assert found.cause == "depthwise"
    layers = {layer.kind: layer for layer in found.layers}
    assert layers["depthwise"].cause == "depthwise"
    assert layers["depthwise"].predicted == 1.0
    assert layers["conv1x1"].cause == "not-pruned"


def test_the_same_model_is_explained_alike_whatever_the_clock_says() -> None:
    graph, target = pruned(bottlenecks(), "unstructured", 0.4, ALL), Target.parse("x86-64-v3")
    first = explain(graph, target)
    noisy = explain(graph, target, measured={layer.name: 0.01 for layer in first.layers})
    assert [(a.cause, a.why, a.advice) for a in first.layers] == [(b.cause, b.why, b.advice) for b in noisy.layers]
    assert (first.cause, first.why) == (noisy.cause, noisy.why)
    assert {layer.measured for layer in noisy.layers} == {0.01}
    assert isinstance(first, Explanation)
    data = first.as_dict()
    assert data["schema"] == "edgesparse.explain/1"
    assert len(data["layers"]) == len(graph.ops)


def test_what_falls_short_is_told_what_to_do() -> None:
    """Either the pattern that gains, or what twice the weights would cost; the figure is that of the cost model."""
    target, told = Target.parse("x86-64-v4"), []
    found = explain(
        pruned(bottlenecks(), "group:4x1", 0.05, ALL), target, tick=lambda share, text: told.append((share, text))
    )
    short = [layer for layer in found.layers if layer.pruned and layer.cause != "as-expected"]
    assert short
    for layer in short:
        gains = re.fullmatch(r"group:\d+x1 at the same density would be (\d+) % faster", layer.advice)
        other = re.fullmatch(r"no other .* gains 5 %; at density 0.1 it would take (\d+) % longer", layer.advice)
        assert (gains and int(gains[1]) >= 5) or (other and 0 <= int(other[1]) <= 100), layer
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] < 1


def test_kernels_of_an_artifact_are_taken_as_they_are() -> None:
    graph, target = pruned(bottlenecks(), "group:4x1", 0.3, ALL), Target.parse("x86-64-v3")
    records = [{"name": layer.name, "kernel": "dense:4 tile 2"} for layer in explain(graph, target).layers]
    found = explain(graph, target, compiled=records)
    products = [layer for layer in found.layers if layer.prunable]
    assert {layer.kernel for layer in products} == {"dense:4 tile 2"}
    assert {layer.cause for layer in products if layer.pruned} == {"above-break-even"}
    assert found.cause == "above-break-even"


@pytest.mark.parametrize(
    ("pixels", "share"),
    [
        (48, 0.0),
        (49, 0.0),  # three vectors, and a pixel that is done with them
        (56, 8 / 64),  # the fourth vector begins with eight pixels that the third has
        (196, 0.0),  # four pixels are spread over the tiles
        (1, 0.0),
    ],
)
def test_padding_is_what_the_kernels_own_cut_does_twice(pixels: int, share: float) -> None:
    target, job = Target.parse("x86-64-v4"), Job(np.ones((64, 96), np.float32), pixels, 1, Epilogue("relu"))
    product = Product(8, 3, False)
    placement = Placement("a", (), "conv1x1", product=product)
    assert padded_share(job, target, placement) == pytest.approx(share)
    covered = [
        pixel
        for run in job.spec(product, 8, target).cut.runs
        for tile in range(run.repeat)
        for first in run.offsets
        for pixel in range(first + tile * run.step, first + tile * run.step + 16)
    ]
    again = len(covered) - len(set(covered))
    assert again == pytest.approx(share * len(covered))


JOB = Job(np.ones((64, 96), np.float32), 112, 7, Epilogue("relu"))


@pytest.mark.parametrize("pattern", ["unstructured", "group:4x1", "group:16x1"])
@pytest.mark.parametrize("group", [1, 4, 8, 16])
def test_virtual_zeros_cost_what_random_masks_cost(pattern: str, group: int) -> None:
    target, parsed, product = Target.parse("x86-64-v4"), SparsePattern.parse(pattern), Product(group, 1, False)
    found = []
    for seed in range(8):
        mask = best_mask(parsed, np.random.default_rng(seed).random((64, 96, 1)), 0.3)
        found.append(cost(Job(mask[:, :, 0].astype(np.float32), 112, 7, Epilogue("relu")), product, target))
    assert virtual_cost(JOB, product, target, parsed, 0.3) == pytest.approx(np.mean(found), rel=0.02)


def test_the_share_that_unions_store() -> None:
    assert stored_share(SparsePattern.parse("group:8x1"), 0.3, 4) == 0.3
    assert stored_share(SparsePattern.parse("unstructured"), 0.5, 2) == 0.75
    assert stored_share(SparsePattern.parse("group:4x1"), 0.5, 8) == 0.75


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("pattern", ["unstructured", "group:4x1", "group:8x1"])
def test_break_even_against_every_density(name: str, pattern: str) -> None:
    target, parsed = Target.parse(name), SparsePattern.parse(pattern)
    dense = candidates(JOB, target, dense_only=True)[0]
    goal = cost(JOB, dense, target)
    found = break_even(JOB, dense, target, parsed)
    for density in np.arange(1, 100) / 100:
        faster = best_sparse(JOB, target, parsed, float(density))[0] <= goal
        assert faster == (density <= found) or abs(density - found) < 0.011


def test_a_table_that_is_not_there_counts() -> None:
    assert not cost_table("cortex-a76").measured
    assert "nothing was measured" in cost_table("cortex-a76").basis
