"""The roofline of this machine's core: how fast it multiplies and adds, and how fast it loads from each cache level.

Above the line nothing can be; how far a layer lies below, and under which part of it, says what bounds the layer
(Williams, Waterman, Patterson: Roofline, CACM 2009).
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgesparse.building.build import build_kernels
from edgesparse.building.link import link_objects
from edgesparse.kernels.probe import SUMS, LoadProbe
from edgesparse.measuring.peak import peak_gflops
from edgesparse.target import Target, host_cache

LEVELS = ("l1", "l2", "l3", "memory")

#: Seconds of one timing at least, and timings of each level; the best counts: others only take time away.
_SECONDS, _TIMINGS = 0.0005, 60
#: Share of the bounding resource's speed below which a layer is bound by none of them.
_OVERHEAD = 0.35
#: Bytes of L3 to assume where the system does not tell, and most bytes to walk through.
_L3, _MOST = 8 << 20, 256 << 20


@dataclass(frozen=True)
class Roofline:
    """`gflops` of one core, a multiply-add counting as two, and `gbytes` (10^9 bytes) a second from each level."""

    gflops: float
    gbytes: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        """JSON values: `peak_gflops`, and `bandwidth_gbytes` by level."""
        return {"peak_gflops": self.gflops, "bandwidth_gbytes": dict(self.gbytes)}

    def floor(self, flops: float, moved: Mapping[str, float]) -> dict[str, float]:
        """The least seconds that each resource needs: "compute", and each level for the bytes that come from it."""
        times = {"compute": flops / self.gflops / 1e9}
        for level, nbytes in moved.items():
            times[level] = nbytes / self.gbytes[level] / 1e9
        return times

    def bound(self, seconds: float, flops: float, moved: Mapping[str, float]) -> str:
        """What a layer is bound by: the resource that is busiest, or "overhead" where none is busy for a third."""
        times = self.floor(flops, moved)
        most = max(times, key=lambda name: times[name])
        return most if times[most] >= _OVERHEAD * seconds else "overhead"


def measure_roofline(target: Target, tick: Callable[[float, str], None] | None = None) -> Roofline:
    """Measure one core of this machine with the target's vectors; `tick` is told the share done, and the level.

    Raises
    ------
    CompileError
        A probe cannot be built.
    """
    probe = LoadProbe(target.lanes)
    objects = list(build_kernels({probe.symbol: probe}, target).values())
    with tempfile.TemporaryDirectory(prefix="edgesparse-roofline-") as folder:
        path = Path(folder) / "probe.so"
        link_objects(objects, path, target.triple)
        function = getattr(ctypes.CDLL(str(path)), probe.symbol)
        function.restype = None
        gbytes = {}
        for done, (level, size) in enumerate(level_sizes(target).items(), 1):
            if tick is not None:
                tick(done / 6, f"loads from {level}")
            gbytes[level] = _load_rate(function, size, target.lanes)
    if tick is not None:
        tick(5 / 6, "multiply-adds")
    return Roofline(peak_gflops(target), gbytes)


def level_sizes(target: Target) -> dict[str, int]:
    """Bytes of a stretch that lies in each level and not in the one before."""
    l3 = host_l3()
    return {
        "l1": target.l1d // 2,
        "l2": (target.l1d + target.l2) // 2,
        "l3": min((target.l2 + l3) // 2, 4 * target.l2),
        "memory": min(4 * l3, _MOST),
    }


def host_l3() -> int:
    """Bytes of this machine's last cache level, or a usual size where the system does not tell."""
    return host_cache("3") or _L3


def _load_rate(function: ctypes._NamedFuncPointer, size: int, lanes: int) -> float:
    """10^9 bytes a second out of a stretch of `size` bytes."""
    block = 4 * SUMS * lanes
    blocks = max(size // block, 1)
    raw = np.empty(blocks * block + 4096, np.uint8)
    raw.fill(0)  # memory that nobody wrote is one page of zeros, which lies in L1
    x = raw[-raw.ctypes.data % 4096 :]
    out = np.zeros(SUMS * lanes, np.float32)
    args = np.array([blocks], np.int32)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (x, out, args)]

    def seconds(repeats: int) -> float:
        started = time.perf_counter_ns()
        function(*pointers, ctypes.c_int32(0), ctypes.c_int32(repeats))
        return float(time.perf_counter_ns() - started) * 1e-9

    repeats = 1
    while seconds(repeats) < _SECONDS:
        repeats *= 2
    timings = _TIMINGS if repeats > 1 else 8
    return repeats * blocks * block / min(seconds(repeats) for _ in range(timings)) / 1e9
