"""Inline math against double precision: the error bounds of the table in `edgesparse.fallback.polynomials`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native import TARGETS, call, host_target, link, undefined

from edgesparse.building.codegen import compile_object
from edgesparse.fallback import rounding

#: Bound in ulp and range of arguments; None takes float32's whole range.
UNARY: dict[str, tuple[float, tuple[float, float] | None]] = {
    "exp": (2, None),
    "log": (2, None),
    "sigmoid": (3, None),
    "tanh": (3, None),
    "erf": (3, None),
    "exp2": (1, (-125, 128)),
    "exp10": (1, (-37, 38.5)),
    "log2": (1, None),
    "log10": (1, (0, 1e38)),
    "log1p": (1, None),
    "sin": (1, (-1e5, 1e5)),
    "cos": (1, (-1e5, 1e5)),
    "tan": (1, (-1e5, 1e5)),
    "atan": (1, None),
    "asin": (1, (-1, 1)),
    "acos": (1, (-1, 1)),
    "sinh": (1, (-86, 88)),
    "cosh": (1, (-86, 88)),
    "asinh": (1, (-1e15, 1e15)),
    "acosh": (1, (1, 1e15)),
    "atanh": (1, (-1, 1)),
}
EXACT = {
    "sigmoid": np.vectorize(lambda x: 1 / (1 + math.exp(-x)) if x > -700 else 0.0),
    "erf": np.vectorize(math.erf),
    "exp10": lambda x: 10.0**x,
    **{f"a{name}": getattr(np, f"arc{name}") for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")},
}


def kernel(name: str, body: Any, lanes: int = 16) -> Any:
    """z[i] = body(x[i], y[i]) over vectors."""
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx.script import builder as T

    with IRBuilder() as build, T.prim_func():
        T.func_name(name)
        handles = [T.arg(letter, T.handle("float32")) for letter in "xyz"]
        T.arg("a", T.handle("int32"))
        begin, end = T.arg("begin", T.int32()), T.arg("end", T.int32())
        x, y, z = (T.decl_buffer((1 << 28,), "float32", data=handle) for handle in handles)
        with T.serial(begin, end) as i:
            place = T.Ramp(i * lanes, 1, lanes) if lanes > 1 else i
            T.buffer_store(z, body(x[place], y[place]), [place])
    return build.get()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from tvm import tirx

    funcs = {name: kernel(name, lambda x, y, name=name: getattr(tirx, name)(x)) for name in UNARY}
    funcs["pow"] = kernel("pow", tirx.pow)
    funcs["fmod"] = kernel("fmod", tirx.fmod)
    folder = tmp_path_factory.mktemp("math")
    code = compile_object(funcs, host_target())
    assert undefined(code, folder) == []
    return link([code], folder)


def apply(library: Any, name: str, x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
    count = len(x)
    padded = np.zeros((2, -(-count // 16) * 16), np.float32)
    padded[0, :count] = x
    padded[1, :count] = x if y is None else y
    z = np.full_like(padded[0], np.nan)
    call(library, name, [padded[0], padded[1], z], 0, len(z) // 16)
    return z[:count]


def ulps(result: np.ndarray, exact: np.ndarray) -> float:
    """Largest error in units of the last place, where float32 has the result as a normal number."""
    with np.errstate(over="ignore"):
        rounded = exact.astype(np.float32)
    usual = np.isfinite(rounded) & (np.abs(rounded) > 2.0**-125)
    error = np.abs(result[usual].astype(np.float64) - exact[usual])
    return float((error / np.spacing(np.abs(rounded[usual]))).max())


@pytest.mark.parametrize("name", UNARY)
def test_error_bound(library: Any, name: str) -> None:
    bound, limits = UNARY[name]
    rng = np.random.default_rng(1)
    x = rng.integers(0, 1 << 32, 1 << 17, dtype=np.uint64).astype(np.uint32).view(np.float32)
    x = x[np.isfinite(x)]
    x = np.concatenate([x, rng.uniform(-1, 1, 1 << 15), rng.uniform(-90, 90, 1 << 16)]).astype(np.float32)
    if limits is not None:
        x = x[(x >= limits[0]) & (x <= limits[1])]
    with np.errstate(all="ignore"):
        exact = np.asarray(EXACT.get(name, getattr(np, name, None))(x.astype(np.float64)))
    result = apply(library, name, x)
    assert ulps(result, exact) <= bound
    assert np.array_equal(np.isnan(result), np.isnan(exact))


def test_power(library: Any) -> None:
    rng = np.random.default_rng(2)
    x, y = (rng.uniform(low, 20, 1 << 16).astype(np.float32) for low in (0, -20))
    with np.errstate(all="ignore"):
        assert ulps(apply(library, "pow", x, y), np.power(x.astype(np.float64), y.astype(np.float64))) <= 1
        a = np.array([0, 0, 1, 2, -2, -2, -2, np.inf, 5, 0, np.nan, 3], np.float32)
        b = np.array([0, 2, 5, 0, 3, 2, 0.5, 2, -np.inf, -1, 0, np.nan], np.float32)
        np.testing.assert_array_equal(apply(library, "pow", a, b), np.power(a, b))


def test_remainder(library: Any) -> None:
    rng = np.random.default_rng(3)
    x, y = (rng.uniform(-50, 50, 1 << 12).astype(np.float32) for _ in range(2))
    np.testing.assert_array_equal(apply(library, "fmod", x, y), np.fmod(x, y))


#: What onnxruntime and numpy compute: ties of `round` away from zero, of `nearbyint` to even.
ROUNDED = {
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "nearbyint": np.rint,
    "round": lambda x: np.copysign(np.trunc(np.abs(x) + (np.abs(x) % 1 == 0.5) * 0.5 + (np.abs(x) % 1 > 0.5)), x),
}


@pytest.mark.parametrize("kind", ["float32", "float64", "float16"])
@pytest.mark.parametrize("name", rounding.NAMES)
def test_rounding_without_an_instruction(name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, zeros of either sign too."""
    from tvm import tirx

    made = []

    def missing() -> bool:
        made.append(name)
        return True

    def body(x: Any, _y: Any) -> Any:
        return tirx.Cast("float32x16", getattr(tirx, name)(tirx.Cast(f"{kind}x16", x)))

    monkeypatch.setattr(rounding, "missing", missing)
    code = compile_object({"k": kernel("k", body)}, host_target())
    assert made, "the rule was asked"
    library = link([code], tmp_path)
    rng = np.random.default_rng(4)
    x = rng.integers(0, 1 << 32, 1 << 14, dtype=np.uint64).astype(np.uint32).view(np.float32)
    ties = np.arange(-9, 9.5, 0.5)
    edges = [0.49999997, 0.5, 1.5, 8388607.5, 8388608.0, 8388609.0, 16777216.0, 1e-40, 0.0, np.inf, 2.0**31, 3e38]
    parts = [x[np.isfinite(x)], rng.uniform(-3, 3, 1 << 12), ties, edges, np.negative(edges)]
    x = np.concatenate(parts).astype(np.float32)
    with np.errstate(all="ignore"):
        given = x.astype(kind).astype(np.float64)
        wanted = given.copy()  # infinities stay
        wanted[np.isfinite(given)] = ROUNDED[name](given[np.isfinite(given)])
    found = apply(library, "k", x)
    np.testing.assert_array_equal(found.view(np.uint32), wanted.astype(np.float32).view(np.uint32))
    assert np.isnan(apply(library, "k", np.array([np.nan], np.float32))).all()


def test_ends(library: Any) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0.0], np.float32)
    expected = {
        "exp": [np.nan, np.inf, 0, 1],
        "log": [np.nan, np.inf, np.nan, -np.inf],
        "sigmoid": [np.nan, 1, 0, 0.5],
        "tanh": [np.nan, 1, -1, 0],
        "erf": [np.nan, 1, -1, 0],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(apply(library, name, x), np.array(values, np.float32))


@pytest.mark.parametrize("level", TARGETS)
@pytest.mark.parametrize("lanes", [1, 3, 8])
def test_no_undefined_symbols(level: str, lanes: int, tmp_path: Path) -> None:
    from tvm import tirx

    def body(x: Any, y: Any) -> Any:
        return tirx.exp(tirx.tanh(x)) + tirx.erf(tirx.sigmoid(y)) + tirx.pow(x, tirx.log(y))

    def scalar(x: Any, y: Any) -> Any:
        return tirx.round(tirx.floor(tirx.sqrt(body(x, y)))) + tirx.ceil(x)

    assert undefined(compile_object({"k": kernel("k", scalar, lanes)}, TARGETS[level]), tmp_path) == []
