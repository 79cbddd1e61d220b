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
from typing import Any

import numpy as np

from edgesparse import cache
from edgesparse.building.build import build_kernels, toolchain
from edgesparse.building.link import link_objects
from edgesparse.environment import record
from edgesparse.errors import CompileError
from edgesparse.kernels import KernelSpec, Panel, Spmm, StrassenIn
from edgesparse.kernels.strassen import PARTS, PRODUCTS
from edgesparse.planning.algorithms import split_name
from edgesparse.planning.packing import Packed, pack
from edgesparse.planning.place import Jobs
from edgesparse.planning.plan import pitch_of
from edgesparse.planning.products import Job, Product, near
from edgesparse.target import Target

#: Seconds to spend on one candidate at most, and rounds to make at least.
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
    ways: dict[str, list[str]] = {}
    for name in jobs:
        ways.setdefault(split_name(name)[0], []).append(name)
    same: dict[str, list[list[str]]] = {}
    for names in ways.values():
        keys = [job_key("tune", *jobs[name], target, machine) for name in names]
        same.setdefault(cache.key_of("ways", *keys), []).append(names)
    known = {key: data for key in same if (data := cache.get(key)) is not None}
    for key, data in known.items():
        for names in same[key]:
            found |= {
                name: [float(value) for value in times] for name, times in zip(names, json.loads(data), strict=True)
            }
    unknown = {key: layers for key, layers in same.items() if key not in known}
    if not unknown:
        return found
    with tempfile.TemporaryDirectory(prefix="edgesparse-tune-") as folder:
        library = _library(
            {name: jobs[name] for (first, *_) in unknown.values() for name in first}, target, Path(folder), tick
        )
        for index, (key, layers) in enumerate(unknown.items()):
            if tick:
                tick(0.5 + 0.5 * index / len(unknown), f"measuring {layers[0][0]}")
            times = _measure(library, [jobs[name] for name in layers[0]], target)
            for names in layers:
                found |= dict(zip(names, times, strict=True))
            cache.put(key, json.dumps(times).encode())
    return found


def job_key(kind: str, job: Job, products: list[Product], target: Target, machine: str) -> str:
    """Key of the times of a layer's candidates: where its non-zeros lie, target, machine, and the tools' versions."""
    used = np.packbits(job.used).tobytes()
    about = (job.weight.shape, job.pixels, job.bands, job.epilogue, job.window, job.levels, target, machine)
    return cache.key_of(kind, *map(str, about), *map(str, products), toolchain(), used)


def _specs(job: Job, product: Product, target: Target) -> list[tuple[Spmm, Packed]]:
    found = []
    held = near(job.pixels, target)
    for part in pack(job.weight, product.group, dense=product.dense, near=held):
        found.append((job.spec(product, part.group, target), part))
    return found


def _library(jobs: Jobs, target: Target, folder: Path, tick: Callable[[float, str], None] | None) -> ctypes.CDLL:
    kernels: dict[str, tuple[KernelSpec, str]] = {}
    for name, (job, products) in jobs.items():
        for product in products:
            specs: list[KernelSpec] = [spec for spec, _ in _specs(job, product, target)]
            if job.window is not None:
                specs.append(Panel(job.gathering(product.form).copied, target.lanes))
            specs += [spec for spec, _ in job.differences(target)]
            for spec in specs:
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


def _measure(library: ctypes.CDLL, ways: list[tuple[Job, list[Product]]], target: Target) -> list[list[float]]:
    """Seconds of all candidates of one layer, by way: all in turn, as only what was measured side by side compares."""
    runs = [_runner(library, job, product, target) for job, products in ways for product in products]
    best = [run() for run in runs]
    deadline = time.perf_counter() + _BUDGET * len(runs)
    rounds = 0
    while rounds < _ROUNDS or time.perf_counter() < deadline:
        best = [min(least, run()) for least, run in zip(best, runs, strict=True)]
        rounds += 1
        if rounds >= 400:
            break
    times = iter(best)
    return [[next(times) for _ in products] for _, products in ways]


Pointers = list[ctypes.c_void_p]
Calls = list[tuple[Any, Pointers, int]]


def _runner(library: ctypes.CDLL, job: Job, product: Product, target: Target) -> Callable[[], float]:
    """A function that runs the layer once over all of its bands, and gives the seconds."""
    rng = np.random.default_rng(0)
    pitch = pitch_of(job.pixels)
    rows, depth = job.weight.shape
    bands = min(job.bands, max(1, (64 << 20) // (4 * pitch * (rows + depth))))
    # Of seven products that are made of one, each reads a fourth of its input and is added to a fourth of its output.
    products, parts = PRODUCTS**job.levels, 4**job.levels
    rooms = -(-bands // products) * parts
    y, residual = _aligned((rooms, rows, pitch)), _aligned((rooms, rows, pitch))
    bias = np.zeros(rows, np.float32)
    x = _aligned((rooms, depth, pitch) if job.window is None else (1, 1, 1))
    if job.window is None:
        x[:] = rng.random((1, depth, pitch), dtype=np.float32)
        sources = [(x[room].ctypes.data, 0) for room in range(rooms)]
        gather = None
    else:
        gather = _Gather(job, product, target, bands, rng)
        where = gather.where
        sources = [
            (gather.block.ctypes.data + 4 * where.start(call), call * where.pixels) for call in range(where.calls)
        ]
    plans = []
    for spec, part in _specs(job, product, target):
        # Each of those products has weights of its own, as far away as the layer's.
        tables: list[np.ndarray] = [np.tile(part.values, (products, 1))]
        args = [pitch, pitch]
        if part.start is None or part.column is None:
            args += [gather.where.pitch if gather else pitch, part.depth]
            args += [0, 0, pitch, pitch] if job.levels else []
        else:
            tables += [part.start, gather.where.offsets(part) if gather else part.offsets(pitch)]
        function = getattr(library, spec.symbol)
        function.restype = None
        plans.append((function, part, tables, np.array([*args, *[0] * 4], np.int32), spec.residuals > 0))

    differences = [_Differences(library, *each) for each in job.differences(target)]
    calls: Calls = []
    for band in range(bands):
        calls += [each.call for level, each in enumerate(differences, 1) if band % PRODUCTS**level == 0]
        if gather:
            calls.append(gather.call(library, band))
        room = band // products * parts + band % products % parts
        for x_at, pixel in sources if gather else sources[room : room + 1]:
            for function, part, tables, table, residual_too in plans:
                at = 4 * (part.first * pitch + pixel)
                own = band % products * part.values.nbytes
                pointers = [x_at, tables[0].ctypes.data + own, *(each.ctypes.data for each in tables[1:])]
                pointers.append(bias.ctypes.data + 4 * part.first)
                if residual_too:
                    pointers.append(residual[room].ctypes.data + at)
                pointers += [y[room].ctypes.data + at, table.ctypes.data]
                calls.append((function, [ctypes.c_void_p(pointer) for pointer in pointers], part.groups))
    kept = (plans, x, y, residual, bias, gather, differences)
    nothing = min(_seconds(calls, share=0) for _ in range(_ROUNDS))  # what calling from here takes by itself

    def run() -> float:
        assert kept
        return float(max(_seconds(calls) - nothing, 1e-9) * job.bands / bands)

    return run


def _seconds(calls: Calls, share: int = 1) -> float:
    """Seconds of all calls, each over its extent or over nothing."""
    ready = [
        (function, (*pointers, ctypes.c_int32(0), ctypes.c_int32(share * end))) for function, pointers, end in calls
    ]
    started = time.perf_counter_ns()
    for function, arguments in ready:
        function(*arguments)
    return float((time.perf_counter_ns() - started) * 1e-9)


class _Gather:
    """The gathering of what a k x k convolution's product reads, out of an image of `bands` bands."""

    def __init__(self, job: Job, product: Product, target: Target, bands: int, rng: np.random.Generator) -> None:
        self.where = job.gathering(product.form)
        window = self.where.window
        self.channels = job.weight.shape[1] // len(window.taps)
        self.spec = Panel(self.where.copied, target.lanes)
        self.block = _aligned((self.channels * len(self.where.copied.taps), self.where.pitch))
        plane = window.rows_in * window.width_in
        self.image = _aligned((bands + 2, self.channels, plane))  # what lies outside of the image is read and masked
        self.image[:] = rng.random((1, self.channels, plane), dtype=np.float32)
        rows = [row * window.width_in for row in self.where.order]
        table = [0, plane] if self.spec.window.flat else [*rows, *[plane] * len(rows)]
        self.table = np.array([self.where.pitch, 0, *table], np.int32)

    def call(self, library: ctypes.CDLL, band: int) -> tuple[Any, Pointers, int]:
        """The call that gathers for one band."""
        function = getattr(library, self.spec.symbol)
        function.restype = None
        arrays = (self.image[band + 1], self.block, self.table)
        return function, [ctypes.c_void_p(array.ctypes.data) for array in arrays], self.channels


class _Differences:
    """The call that makes the differences of an input's parts, of so many channels each."""

    def __init__(self, library: ctypes.CDLL, spec: StrassenIn, channels: int) -> None:
        wide, pitch = pitch_of(2 * spec.pixels), pitch_of(spec.pixels)
        self.input, self.made = _aligned((2 * channels, wide)), _aligned((PARTS * channels, pitch))
        self.factors = np.ones(channels, np.float32)
        self.table = np.array([wide, pitch, channels * pitch], np.int32)
        parts = [self.input[row:, pixel:] for row in (0, channels) for pixel in (0, spec.pixels)]
        function = getattr(library, spec.symbol)
        function.restype = None
        arrays = (*parts, self.factors, self.made, self.table)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        self.call = (function, pointers, channels)


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Zeroed floats that start on a page."""
    size = 4 * int(np.prod(shape))
    raw = np.zeros(size + 8192, np.uint8)
    start = -raw.ctypes.data % 4096
    return raw[start : start + size].view(np.float32).reshape(shape)
