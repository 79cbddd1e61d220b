"""Tuning: time a layer's candidate kernels on this machine, on the layer's own packed weights.

Candidates of a layer are timed in turn, round after round, so that a machine that slows down slows all of them; the
least of the rounds counts, since noise only adds. Results are kept in the cache, keyed by all that they depend on.
"""

from __future__ import annotations

import ctypes
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgesparse import cache
from edgesparse.building.build import build_kernels, toolchain
from edgesparse.building.link import link_objects
from edgesparse.environment import record
from edgesparse.errors import CompileError
from edgesparse.kernels import Spmm
from edgesparse.planning.packing import Packed, pack
from edgesparse.planning.place import Job, Jobs, Product, kernel_of
from edgesparse.planning.plan import pitch_of
from edgesparse.target import Target

#: Seconds to spend on one layer at most, and rounds to make at least.
_BUDGET, _ROUNDS = 0.06, 5


def measure_products(
    jobs: Jobs, target: Target, *, tick: Callable[[float, str], None] | None = None
) -> dict[str, list[float]]:
    """Seconds that one whole layer takes with each of its candidates, by layer.

    Raises
    ------
    CompileError
        A candidate cannot be built.
    """
    found: dict[str, list[float]] = {}
    machine = str(record()["cpu"])
    open_jobs: dict[str, tuple[Job, list[Product]]] = {}
    for name, (job, products) in jobs.items():
        known = cache.get(job_key("tune", job, products, target, machine))
        if known is not None:
            found[name] = [float(value) for value in json.loads(known)]
        else:
            open_jobs[name] = (job, products)
    if not open_jobs:
        return found
    with tempfile.TemporaryDirectory(prefix="edgesparse-tune-") as folder:
        library = _library(open_jobs, target, Path(folder), tick)
        for index, (name, (job, products)) in enumerate(open_jobs.items()):
            if tick:
                tick(0.5 + 0.5 * index / len(open_jobs), f"measuring {name}")
            found[name] = _measure(library, job, products, target)
            cache.put(job_key("tune", job, products, target, machine), json.dumps(found[name]).encode())
    return found


def job_key(kind: str, job: Job, products: list[Product], target: Target, machine: str) -> str:
    """Key of the times of a layer's candidates: where its non-zeros lie, target, machine, and the tools' versions."""
    used = np.packbits(job.used).tobytes()
    about = (job.weight.shape, job.pixels, job.bands, job.epilogue, target, machine)
    return cache.key_of(kind, *map(str, about), *map(str, products), toolchain(), used)


def _specs(job: Job, product: Product, target: Target) -> list[tuple[Spmm, Packed]]:
    found = []
    for part in pack(job.weight, product.group, dense=product.dense):
        spec = kernel_of(product, part.group, job.pixels, job.weight.shape[1], job.epilogue, target)
        found.append((spec, part))
    return found


def _library(jobs: Jobs, target: Target, folder: Path, tick: Callable[[float, str], None] | None) -> ctypes.CDLL:
    kernels: dict[str, tuple[Spmm, str]] = {}
    for name, (job, products) in jobs.items():
        for product in products:
            for spec, _ in _specs(job, product, target):
                kernels.setdefault(spec.symbol, (spec, name))

    def step(done: int, of: int, symbol: str) -> None:
        if tick:
            tick(0.5 * done / of, f"building {symbol}")

    objects: list[bytes] = []
    for symbol, (spec, layer) in kernels.items():
        step(len(objects), len(kernels), symbol)
        try:
            objects += build_kernels({symbol: spec}, target).values()
        except CompileError as error:
            raise CompileError(f"layer {layer!r}: {error.what}", why=error.why, fix=error.fix) from error
    out = folder / "candidates.so"
    link_objects(objects, out, target.triple)
    return ctypes.CDLL(str(out))


def _measure(library: ctypes.CDLL, job: Job, products: list[Product], target: Target) -> list[float]:
    runs = [_runner(library, job, product, target) for product in products]
    best = [run() for run in runs]
    deadline = time.perf_counter() + _BUDGET * len(runs)
    rounds = 0
    while rounds < _ROUNDS or time.perf_counter() < deadline:
        best = [min(least, run()) for least, run in zip(best, runs, strict=True)]
        rounds += 1
        if rounds >= 400:
            break
    return best


def _runner(library: ctypes.CDLL, job: Job, product: Product, target: Target) -> Callable[[], float]:
    """A function that runs the layer once over all of its bands, and gives the seconds."""
    rng = np.random.default_rng(0)
    pitch = pitch_of(job.pixels)
    rows, depth = job.weight.shape
    bands = min(job.bands, max(1, (64 << 20) // (4 * pitch * (rows + depth))))
    x = _aligned((bands, depth, pitch))
    x[:] = rng.random((1, depth, pitch), dtype=np.float32)
    y = _aligned((bands, rows, pitch))
    residual = _aligned((bands, rows, pitch))
    bias = np.zeros(rows, np.float32)
    plans = []
    for spec, part in _specs(job, product, target):
        tables: list[np.ndarray] = [np.ascontiguousarray(part.values)]
        args = [pitch, pitch]
        if part.start is None or part.column is None:
            args += [pitch, part.depth]
        else:
            tables += [part.start, part.offsets(pitch)]
        function = getattr(library, spec.symbol)
        function.restype = None
        plans.append((function, part, tables, np.array([*args, *[0] * 4], np.int32), spec.epilogue.residual != "none"))

    calls = []
    for band in range(bands):
        for function, part, tables, table, residual_too in plans:
            pointers = [x[band].ctypes.data, *(each.ctypes.data for each in tables), bias.ctypes.data + 4 * part.first]
            if residual_too:
                pointers.append(residual[band].ctypes.data + 4 * part.first * pitch)
            pointers.append(y[band].ctypes.data + 4 * part.first * pitch)
            arguments = [ctypes.c_void_p(pointer) for pointer in (*pointers, table.ctypes.data)]
            calls.append((function, (*arguments, ctypes.c_int32(0), ctypes.c_int32(part.groups))))
    keep = (plans, x, y, residual, bias)

    def run() -> float:
        assert keep
        started = time.perf_counter_ns()
        for function, arguments in calls:
            function(*arguments)
        return float((time.perf_counter_ns() - started) * 1e-9 * job.bands / bands)

    return run


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Zeroed floats that start on a page."""
    size = 4 * int(np.prod(shape))
    raw = np.zeros(size + 8192, np.uint8)
    start = -raw.ctypes.data % 4096
    return raw[start : start + size].view(np.float32).reshape(shape)
