"""The measured peak of one core: how fast it does vector multiply-adds, and nothing else, with a target's vectors."""

from __future__ import annotations

import ctypes
import tempfile
import time
from pathlib import Path

import numpy as np

from edgesparse.building.build import build_kernels
from edgesparse.building.link import link_objects
from edgesparse.kernels.probe import SUMS, Probe
from edgesparse.target import Target

#: Repetitions of one timing (some tenths of a millisecond) and timings; the best counts: others only take time away.
_REPEATS, _TIMINGS = 20_000, 200


def peak_gflops(target: Target) -> float:
    """GFLOP/s of one core of this machine with the target's vectors, a multiply-add counting as two.

    Raises
    ------
    CompileError
        The probe cannot be built.
    """
    probe = Probe(target.lanes)
    objects = list(build_kernels({probe.symbol: probe}, target).values())
    x, y = np.full(64, 0.5, np.float32), np.ones(64, np.float32)
    out = np.zeros(SUMS * target.lanes + 64, np.float32)
    with tempfile.TemporaryDirectory(prefix="edgesparse-peak-") as folder:
        path = Path(folder) / "probe.so"
        link_objects(objects, path, target.triple)
        function = getattr(ctypes.CDLL(str(path)), probe.symbol)
        function.restype = None
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (x, y, out, np.zeros(1, np.int32))]
        best = min(_seconds(function, pointers) for _ in range(_TIMINGS))
    return 2 * SUMS * target.lanes * _REPEATS / best / 1e9


def _seconds(function: ctypes._NamedFuncPointer, pointers: list[ctypes.c_void_p]) -> float:
    started = time.perf_counter_ns()
    function(*pointers, ctypes.c_int32(0), ctypes.c_int32(_REPEATS))
    return float((time.perf_counter_ns() - started) * 1e-9)
