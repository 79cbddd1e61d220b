"""Calling kernels on memory that tells what they touch: every array lies between guard zones of NaN."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import erf

from edgesparse.building.codegen import compile_object
from edgesparse.building.link import link_objects
from edgesparse.kernels import Epilogue, KernelSpec
from edgesparse.target import Target

#: float32's unit roundoff.
EPS = 2.0**-24
#: Elements before and after each array; more than any vector.
GUARD = 64

#: An epilogue of every kind, with constants where it has some.
ACTIVATIONS: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("none", ()),
    ("relu", ()),
    ("clip", (-0.5, 0.75)),
    ("leaky", (0.1,)),
    ("hardswish", ()),
    ("hardsigmoid", (0.2, 0.5)),
    ("sigmoid", ()),
    ("silu", ()),
    ("tanh", ()),
    ("gelu", ()),
)
EPILOGUES = tuple(
    Epilogue(name, constants, residual) for residual in ("none", "before", "after") for name, constants in ACTIVATIONS
)


def build(specs: Sequence[KernelSpec], target: Target, folder: Path) -> ctypes.CDLL:
    """All specs as one library."""
    code = compile_object({spec.symbol: spec.build() for spec in specs}, target.tvm_target())
    out = folder / f"{target.name}.so"
    link_objects([code], out, target.triple)
    return ctypes.CDLL(str(out))


class Memory:
    """Arrays of one call in one block, with NaN between them."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        total = sum(GUARD + array.size for array in arrays.values()) + GUARD
        self.block = np.full(total, np.nan, np.float32)
        self.views: dict[str, np.ndarray] = {}
        at = GUARD
        for name, array in arrays.items():
            flat = self.block[at : at + array.size]
            flat[:] = np.ascontiguousarray(array).view(np.float32).reshape(-1)
            self.views[name] = flat.view(array.dtype).reshape(array.shape)
            at += array.size + GUARD
        self.before = self.block.view(np.uint32).copy()

    def __getitem__(self, name: str) -> np.ndarray:
        return self.views[name]

    def call(self, library: ctypes.CDLL, symbol: str, names: Sequence[str], args: Sequence[int], *ends: int) -> None:
        function: Any = library[symbol]
        function.restype = None
        table = np.array([*args, *([-(2**30)] * 4)], np.int32)
        pointers = [ctypes.c_void_p(self.views[name].ctypes.data) for name in names]
        function(*pointers, ctypes.c_void_p(table.ctypes.data), *map(ctypes.c_int32, ends))

    def changed(self) -> np.ndarray:
        """Which words of the block are not what they were."""
        return self.block.view(np.uint32) != self.before

    def check_only(self, name: str, where: np.ndarray) -> None:
        """Assert that in array `name` all of `where` was written and finite, and nothing else anywhere."""
        allowed = np.zeros(self.block.size, bool)
        start = (self.views[name].ctypes.data - self.block.ctypes.data) // 4
        allowed[start : start + where.size] = where.reshape(-1)
        stray = np.nonzero(self.changed() & ~allowed)[0]
        assert stray.size == 0, f"words {stray[:8] - start} around {name} were written"
        assert np.isfinite(self.views[name][where]).all(), f"{name} has values that are not finite"


def activate(epilogue: Epilogue, value: np.ndarray, residual: np.ndarray | None) -> np.ndarray:
    """The epilogue by numpy, in float64."""
    c = epilogue.constants
    if epilogue.residual == "before" and residual is not None:
        value = value + residual
    made = {
        "none": lambda v: v,
        "relu": lambda v: np.maximum(v, 0),
        "clip": lambda v: np.clip(v, *c),
        "leaky": lambda v: np.where(v > 0, v, c[0] * v),
        "hardswish": lambda v: v * np.clip(v / 6 + 0.5, 0, 1),
        "hardsigmoid": lambda v: np.clip(c[0] * v + c[1], 0, 1),
        "sigmoid": lambda v: 1 / (1 + np.exp(-v)),
        "silu": lambda v: v / (1 + np.exp(-v)),
        "tanh": np.tanh,
        "gelu": lambda v: v * 0.5 * (1 + erf(v / 2**0.5)),
    }[epilogue.activation](value)
    return made + residual if epilogue.residual == "after" and residual is not None else made
