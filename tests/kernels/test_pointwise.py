"""Elementwise kernels, global pooling and transposition against numpy; what they read and write."""

from __future__ import annotations

import ctypes
import itertools
from functools import cache

import numpy as np
import pytest
from guarded import ACTIVATIONS, EPS, Memory, activate, build
from networks import HOST_TARGETS

from edgesparse.errors import UnsupportedError
from edgesparse.kernels import Epilogue, GlobalPool, KernelSpec, Pointwise, Transpose
from edgesparse.kernels.pointwise import BINARY, OPERANDS
from edgesparse.target import Target

CHANNELS = 4
PIXELS = (1, 5, 16, 37, 64)


@cache
def pointwise(lanes: int) -> tuple[Pointwise, ...]:
    found = []
    pairs = [(op, kind) for op, kind in itertools.product(BINARY, OPERANDS) if (op == "first") == (kind == "none")]
    for index, (op, kind) in enumerate(pairs * 2):
        activation = Epilogue(*ACTIVATIONS[index % len(ACTIVATIONS)])
        swapped = index >= len(pairs) and kind != "none"
        found.append(Pointwise(op, kind, PIXELS[index % len(PIXELS)], activation, lanes, swapped))
    found += [Pointwise("first", "none", 37, Epilogue(*each), lanes) for each in ACTIVATIONS]
    # as for ARM, with a barrier that is nothing on x86: copies, and vectors one by one
    found += [
        Pointwise("first", "none", pixels, Epilogue(), lanes, barrier="llvm.sideeffect") for pixels in (3, 37, 64)
    ]
    found.append(Pointwise("add", "full", 37, Epilogue("relu"), lanes, barrier="llvm.sideeffect", one=True))
    return tuple(dict.fromkeys(found))


def others(lanes: int) -> tuple[KernelSpec, ...]:
    return GlobalPool("avg", lanes), GlobalPool("max", lanes), Transpose(lanes)


@pytest.fixture(scope="module", params=HOST_TARGETS, ids=lambda target: target.name)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Target, ctypes.CDLL]:
    target: Target = request.param
    specs = [*pointwise(target.lanes), *others(target.lanes)]
    return target, build(specs, target, tmp_path_factory.mktemp("pointwise"))


def padded(rng: np.random.Generator, rows: int, columns: int, pitch: int) -> np.ndarray:
    made = np.full((rows, pitch), np.nan, np.float32)
    made[:, :columns] = rng.standard_normal((rows, columns))
    return made


@pytest.mark.parametrize("index", range(len(pointwise(4))))
def test_elementwise(library: tuple[Target, ctypes.CDLL], index: int) -> None:
    target, code = library
    spec, rng = pointwise(target.lanes)[index], np.random.default_rng(index)
    n = spec.pixels
    x = padded(rng, CHANNELS, n, n + 2)
    z = {
        "none": np.zeros((1, 1), np.float32),
        "full": padded(rng, CHANNELS, n, n + 4),
        "channel": padded(rng, CHANNELS, 1, 3),
        "scalar": padded(rng, 1, 1, 2),
    }[spec.operand]
    if spec.op == "div":
        x, z = (np.where(np.isnan(a), a, np.sign(a) + a).astype(np.float32) for a in (x, z))
    memory = Memory({"x": x, "z": z, "y": np.full((CHANNELS, n + 1), np.nan, np.float32)})
    names = ["x", "y"] if spec.operand == "none" else ["x", "z", "y"]
    memory.call(code, spec.symbol, names, [x.shape[1], z.shape[1], n + 1], 1, CHANNELS)
    written = np.zeros((CHANNELS, n + 1), bool)
    written[1:, :n] = True
    memory.check_only("y", written)
    a, b = x[1:, :n].astype(np.float64), z.astype(np.float64)
    b = {"full": lambda: b[1:, :n], "channel": lambda: b[1:, :1]}.get(spec.operand, lambda: b[:1, :1])()
    if spec.swapped:
        a, b = b, a
    with np.errstate(divide="ignore", invalid="ignore"):
        table = {"add": a + b, "sub": a - b, "mul": a * b, "div": a / b, "max": np.maximum(a, b)}
    value = {**table, "min": np.minimum(a, b), "first": a}[spec.op]
    expected = activate(spec.epilogue, value, None)
    error = np.abs(memory["y"][1:, :n] - expected)
    assert (error <= EPS * 10 * (np.abs(value) + np.abs(a) + 1)).all(), spec


@pytest.mark.parametrize("name", ["sigmoid", "silu", "tanh", "hardswish", "hardsigmoid", "gelu"])
def test_activations_far_from_zero(library: tuple[Target, ctypes.CDLL], name: str) -> None:
    target, code = library
    spec = next(each for each in pointwise(target.lanes) if each.op == "first" and each.epilogue.activation == name)
    values = [0.0, -0.0, 1e-30, -1e-30, 10, -10, 60, -60, 89, -89, 104, -104, 1e4, -1e4, 1e30, -1e30]
    x = np.resize(np.array(values, np.float32), (1, spec.pixels))
    memory = Memory({"x": x, "y": np.full_like(x, np.nan)})
    memory.call(code, spec.symbol, ["x", "y"], [spec.pixels, 0, spec.pixels], 0, 1)
    with np.errstate(over="ignore"):
        expected = activate(spec.epilogue, x.astype(np.float64), None)
    np.testing.assert_allclose(memory["y"], expected, rtol=2e-6, atol=1e-30 if name not in ("silu", "gelu") else 1e-6)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("bands", [(1,), (3,), (49,), (150, 200), (64, 64, 1), (7, 300)])
def test_global_pooling(library: tuple[Target, ctypes.CDLL], mode: str, bands: tuple[int, ...]) -> None:
    target, code = library
    rng = np.random.default_rng(sum(bands))
    pieces, args, at = [], [sum(bands), len(bands)], 0
    parts = []
    for index, count in enumerate(bands):
        part = padded(rng, CHANNELS, count, count + index + 1) - 3  # all negative: no zero may slip into a maximum
        args += [at, part.shape[1], count]
        at += part.size
        pieces.append(part.reshape(-1))
        parts.append(part[:, :count])
    memory = Memory({"x": np.concatenate(pieces), "y": np.full(CHANNELS, np.nan, np.float32)})
    memory.call(code, GlobalPool(mode, target.lanes).symbol, ["x", "y"], args, 1, CHANNELS)
    memory.check_only("y", np.arange(CHANNELS) >= 1)
    every = np.concatenate(parts, axis=1).astype(np.float64)[1:]
    expected = every.mean(axis=1) if mode == "avg" else every.max(axis=1)
    bound = EPS * (every.shape[1] + 4) * np.abs(every).mean(axis=1) if mode == "avg" else 0
    assert (np.abs(memory["y"][1:] - expected) <= bound).all()


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 40), (5, 33), (16, 32), (19, 7), (40, 3), (35, 70)])
def test_transposition(library: tuple[Target, ctypes.CDLL], rows: int, columns: int) -> None:
    target, code = library
    x = padded(np.random.default_rng(0), rows, columns, columns + 2)
    memory = Memory({"x": x, "y": np.full((columns, rows + 3), np.nan, np.float32)})
    middle = columns // 2
    for begin, end in ((0, middle), (middle, columns)):
        memory.call(code, Transpose(target.lanes).symbol, ["x", "y"], [columns + 2, rows + 3, rows], begin, end)
    written = np.zeros((columns, rows + 3), bool)
    written[:, :rows] = True
    memory.check_only("y", written)
    np.testing.assert_array_equal(memory["y"][:, :rows], x[:, :columns].T)


def test_what_no_kernel_is() -> None:
    for wrong in (
        lambda: Epilogue("softsign"),
        lambda: Epilogue("clip"),
        lambda: Epilogue("relu", (1.0,)),
        lambda: Epilogue("relu", (), "beside"),
        lambda: Pointwise("pow", "full", 1, Epilogue(), 4),
        lambda: Pointwise("add", "row", 1, Epilogue(), 4),
        lambda: Pointwise("add", "full", 1, Epilogue("relu", (), "before"), 4),
    ):
        with pytest.raises(UnsupportedError, match=r"no (kernel|epilogue)"):
            wrong()


def test_symbols_are_unique() -> None:
    every = [*pointwise(16), *others(16), *pointwise(4), *others(4)]
    assert len({spec.symbol for spec in every}) == len(every)
