"""Layer norm over feature-major matrices against numpy in float64; what it reads and writes."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from guarded import EPS, Memory, build
from networks import HOST_TARGETS

from edgesparse.kernels import Norm
from edgesparse.target import Target

PIXELS = (1, 3, 16, 37, 128)
EPSILON = 1e-5


@pytest.fixture(scope="module", params=HOST_TARGETS, ids=lambda target: target.name)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Target, ctypes.CDLL]:
    target: Target = request.param
    return target, build([Norm(n, target.lanes, EPSILON) for n in PIXELS], target, tmp_path_factory.mktemp("norm"))


@pytest.mark.parametrize("pixels", PIXELS)
@pytest.mark.parametrize("channels", [1, 6, 48])
def test_layer_norm(library: tuple[Target, ctypes.CDLL], pixels: int, channels: int) -> None:
    target, code = library
    spec, rng = Norm(pixels, target.lanes, EPSILON), np.random.default_rng(pixels)
    x = np.full((channels, pixels + 3), np.nan, np.float32)
    x[:, :pixels] = rng.standard_normal((channels, pixels)) * 3 + 10  # a mean far from zero
    w, b = (rng.standard_normal(channels).astype(np.float32) for _ in range(2))
    y = np.full((channels, pixels + 1), np.nan, np.float32)
    memory = Memory({"x": x, "w": w, "b": b, "y": y})
    half = spec.extent // 2
    for begin, end in ((0, half), (half, spec.extent)):
        memory.call(code, spec.symbol, ["x", "w", "b", "y"], [pixels + 3, pixels + 1, channels], begin, end)
    written = np.zeros(y.shape, bool)
    written[:, :pixels] = True
    memory.check_only("y", written)
    exact = x[:, :pixels].astype(np.float64)
    centred = exact - exact.mean(axis=0)
    expected = centred / np.sqrt((centred**2).mean(axis=0) + EPSILON) * w[:, None] + b[:, None]
    # the mean's rounding, against the spread that it is divided by
    deviation = np.sqrt((centred**2).mean(axis=0) + EPSILON)
    bound = (
        EPS
        * ((channels / 4 + 8) * np.abs(exact).max(axis=0) / deviation + 8)
        * (np.abs(w)[:, None] + np.abs(b)[:, None])
    )
    assert (np.abs(memory["y"][:, :pixels] - expected) <= bound).all()
