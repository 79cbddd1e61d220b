"""Statistics against plain convolutions, least squares against numpy, the surgeon against brute force."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import onnx_ir as ir
import pytest

from edgesparse import pattern as P
from edgesparse.errors import UsageError
from edgesparse.passes import weight_layers
from edgesparse.passes.base import infer_shapes
from edgesparse.passes.calibration import Samples
from edgesparse.passes.layers import canonical_weight
from edgesparse.passes.observe import Moments, Spread, advance, input_moments, output_spread, run_values
from edgesparse.passes.reconstruct import Repair, bias_of, repair_in_order, uniform
from edgesparse.passes.surgeon import DAMPING, damped, obs, output_of, refit, rescale, wanda

RNG = np.random.default_rng(5)
CASES = {
    "plain": ("y = Conv(x, w, b)", (5, 6, 1, 1)),
    "strided": ("y = Conv <strides = [2,1], pads = [1,0,2,1]> (x, w, b)", (5, 6, 3, 2)),
    "dilated": ("y = Conv <dilations = [2,2], pads = [2,2,2,2]> (x, w, b)", (5, 6, 3, 3)),
    "grouped": ("y = Conv <group = 3, pads = [1,1,1,1]> (x, w, b)", (9, 2, 3, 3)),
    "depthwise": ("y = Conv <group = 6> (x, w, b)", (6, 1, 3, 3)),
    "flat": ("f = Flatten(x)  y = Gemm <transB = 1> (f, w, b)", (5, 6 * 49)),
}


def samples(count: int = 8, seed: int = 0, channels: int = 6) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(channels, channels))
    return [
        {"x": np.einsum("dc,nchw->ndhw", mix, rng.normal(size=(1, channels, 7, 7)) + 1).astype(np.float32)}
        for _ in range(count)
    ]


@pytest.fixture(params=CASES)
def single(request, load) -> ir.Model:
    body, shape = CASES[request.param]
    dims = "float[N,M]" if "Gemm" in body else "float[1,N,H,W]"
    weights = {"w": RNG.normal(size=shape).astype(np.float32), "b": RNG.normal(size=shape[0]).astype(np.float32)}
    model = load(f"g (float[1,6,7,7] x) => ({dims} y) {{ {body} }}", weights)
    infer_shapes(model)
    return model


def test_moments_say_what_the_layer_puts_out(single: ir.Model) -> None:
    """Mean and variance of the real outputs follow from the moments of the unrolled inputs."""
    (layer,) = weight_layers(single)
    moments = input_moments(single, [layer], samples())[layer.name]
    told = output_of(canonical_weight(single, layer), bias_of(single, layer), moments)
    seen = np.concatenate([v[0].reshape(layer.shape[0], -1) for v in run_values(single, ["y"], samples())], axis=1)
    assert np.allclose(told.mean, seen.mean(axis=1), rtol=1e-4, atol=1e-4)
    assert np.allclose(told.variance, seen.var(axis=1), rtol=1e-3, atol=1e-4)
    spread = output_spread(single, [layer], samples())[layer.name]
    assert np.allclose(spread.mean, told.mean, rtol=1e-4, atol=1e-4)
    assert np.allclose(spread.variance, told.variance, rtol=1e-3, atol=1e-4)


def moments_of(rows: np.ndarray) -> Moments:
    return Moments(len(rows), rows.mean(axis=0)[None], np.cov(rows.T, bias=True)[None])


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 1.0])
def test_refit_is_least_squares(share: float) -> None:
    """Whether fewer columns are kept or fewer dropped."""
    rows = RNG.normal(size=(200, 8)) @ RNG.normal(size=(8, 8))
    weight = RNG.normal(size=(6, 8, 1))
    mask = P.best_mask(P.SparsePattern("group", 2, 1), RNG.random((6, 8, 1)), share)
    fitted = refit(weight, mask, moments_of(rows), damping=1e-12)
    centred = rows - rows.mean(axis=0)
    for r in range(6):
        kept = mask[r, :, 0]
        best = np.linalg.lstsq(centred[:, kept], centred @ weight[r, :, 0], rcond=None)[0]
        assert np.allclose(fitted[r, kept, 0], best, rtol=1e-6, atol=1e-8)
        assert not fitted[r, ~kept, 0].any()


def test_obs_is_the_cost_of_dropping_one() -> None:
    rows = RNG.normal(size=(100, 5)) @ RNG.normal(size=(5, 5))
    moments, weight = moments_of(rows), RNG.normal(size=(2, 5, 1))
    told = obs(weight, moments, damping=1e-12)
    h = damped(moments.covariance[0], 1e-12)
    for r, j in itertools.product(range(2), range(5)):
        mask = np.ones((2, 5, 1), bool)
        mask[r, j] = False
        change = refit(weight, mask, moments, damping=1e-12)[r, :, 0] - weight[r, :, 0]
        assert told[r, j, 0] == pytest.approx(change @ h @ change, rel=1e-6)


def test_wanda_is_weight_times_input_norm() -> None:
    rows = RNG.normal(size=(50, 4)) + 2
    weight = RNG.normal(size=(3, 4, 1))
    assert np.allclose(wanda(weight, moments_of(rows))[:, :, 0], weight[:, :, 0] ** 2 * (rows**2).mean(axis=0))


def test_singular_and_constant_inputs() -> None:
    rows = np.repeat(
        RNG.normal(size=(30, 1)), 4, axis=1
    )  # all inputs the same: one weight stands for all, but for damping
    weight = RNG.normal(size=(2, 4, 1))
    mask = np.zeros((2, 4, 1), bool)
    mask[:, 0] = True
    fitted = refit(weight, mask, moments_of(rows))
    others = weight[:, 1:].sum(axis=(1, 2)) / (1 + DAMPING)
    assert np.allclose(fitted[:, 0, 0], weight[:, 0, 0] + others, rtol=1e-9)
    for moments in (moments_of(np.ones((5, 4))), moments_of(np.ones((1, 4)))):
        assert np.isfinite(obs(weight, moments)).all()
        assert np.isfinite(refit(weight, mask, moments)).all()


def test_rescale() -> None:
    have, want = Spread(np.array([1.0, 2.0]), np.array([4.0, 0.0])), Spread(np.array([3.0, 5.0]), np.array([1.0, 1.0]))
    scale, shift = rescale(have, want)
    assert scale.tolist() == [0.5, 1.0]
    assert (scale * have.mean + shift).tolist() == [3.0, 5.0]


NET = """g (float[1,6,7,7] x) => (float[1,5] y) {
    a = Conv(x, w1, b1)  r = Relu(a)  d = Conv <group = 12, pads = [1,1,1,1]> (r, w2, b2)
    e = Conv(d, w3, b3)  s = Add(e, x)  p = GlobalAveragePool(s)  f = Flatten(p)  y = Gemm <transB = 1> (f, w4, b4) }"""


@pytest.fixture
def net(load) -> ir.Model:
    shapes = {"w1": (12, 6, 1, 1), "w2": (12, 1, 3, 3), "w3": (6, 12, 1, 1), "w4": (5, 6)}
    weights = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    weights |= {f"b{name[1]}": RNG.normal(size=shape[0]).astype(np.float32) for name, shape in shapes.items()}
    model = load(NET, weights)
    infer_shapes(model)
    return model


def test_advance_changes_nothing(net: ir.Model) -> None:
    late = advance(net, [node.name for node in net.graph][3], samples())
    assert set(next(iter(late))) == {"d", "x"}
    for one, other in zip(run_values(net, ["y", "s"], samples()), run_values(net, ["y", "s"], late), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    given = samples()
    assert advance(net, [node.name for node in net.graph][3], given, limit=10) is given


def test_repair_brings_back_mean_and_variance(net: ir.Model) -> None:
    layers = [one for one in weight_layers(net) if one.kind == "conv1x1"]
    dense = output_spread(net, layers, samples())
    crude, repaired = net.clone(), net.clone()
    choices = uniform(layers, P.SparsePattern("group", 2, 1), 0.5)
    plain = Repair(criterion="magnitude", method="none", recalibrate=False)
    masks, reasons = repair_in_order(crude, choices, samples(), plain)
    assert not reasons
    assert all(P.density(mask) == 0.5 for mask in masks.values())
    repair_in_order(repaired, choices, samples(), Repair())
    after = output_spread(repaired, layers, samples())
    for layer in layers:
        assert np.allclose(after[layer.name].mean, dense[layer.name].mean, atol=1e-2)
        assert np.allclose(after[layer.name].variance, dense[layer.name].variance, rtol=0.02)
        assert P.keeps(P.SparsePattern("group", 2, 1), canonical_weight(repaired, layer))
    want, rough, good = ([v[0] for v in run_values(one, ["y"], samples())] for one in (net, crude, repaired))
    assert np.abs(np.subtract(good, want)).mean() < 0.5 * np.abs(np.subtract(rough, want)).mean()


def test_errors(net: ir.Model) -> None:
    with pytest.raises(UsageError, match="no calibration data"):
        list(run_values(net, ["y"], []))
    with pytest.raises(UsageError, match="sample 0 does not fit"):
        list(run_values(net, ["y"], [{"x": np.zeros((1, 5, 7, 7), np.float32)}]))
    bad = [{"x": np.full((1, 6, 7, 7), np.nan, np.float32)}]
    with pytest.raises(UsageError, match="NaN or infinite"):
        input_moments(net, weight_layers(net)[:1], bad)


def test_memory_does_not_grow_with_the_samples(load) -> None:
    """Three times as many samples, hardly any more memory: they are read one at a time, and only sums are kept."""
    weight = {"w": RNG.normal(size=(6, 6, 1, 1)).astype(np.float32)}
    model = load("g (float[1,6,64,64] x) => (float[1,6,64,64] y) { y = Conv(x, w) }", weight)
    layers = weight_layers(model)

    def peak(count: int) -> int:
        made = Samples(lambda: ({"x": np.full((1, 6, 64, 64), i, np.float32)} for i in range(count)))
        tracemalloc.start()
        try:
            input_moments(model, layers, made)
            output_spread(model, layers, made)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2)  # what is loaded once
    assert peak(60) < peak(20) + 6 * 64 * 64 * 4, "forty samples more take less than one"
