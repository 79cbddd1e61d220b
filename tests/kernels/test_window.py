"""Depthwise, pooling and panels against numpy, over odd geometries; what they read and write."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from guarded import EPILOGUES, EPS, Memory, activate, build
from networks import HOST_TARGETS

from edgesparse.kernels import Depthwise, KernelSpec, Panel, Pool, Window
from edgesparse.kernels.tiles import vector_starts
from edgesparse.planning.products import accumulators
from edgesparse.target import Target

CHANNELS = 3
#: Elements between the rows of an output.
PITCH = 3


@dataclass(frozen=True)
class Case:
    """A window over a band that starts at output row `first` of an image of `height` rows."""

    window: Window
    height: int
    first: int = 0


def same(k: int, s: int, d: int, width: int, height: int, *, flat: bool = False) -> Case:
    """The geometry of a layer with padding that keeps the size (halves it with a stride)."""
    pad = (k - 1) * d // 2
    rows, columns = ((n + 2 * pad - (k - 1) * d - 1) // s + 1 for n in (height, width))
    return Case(Window((k, k), (s, s), (d, d), pad, pad, width, columns, rows, flat), height)


def odd(seed: int) -> Case:
    """Any geometry, and any band of it."""
    rng = np.random.default_rng(seed)
    while True:
        kernel, stride, dilation = ((int(rng.integers(1, n)), int(rng.integers(1, n))) for n in (6, 5, 4))
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        height, width = int(rng.integers(1, 20)), int(rng.integers(1, 60))
        pads = [int(rng.integers(0, k)) for k in (*kernel, *kernel)]
        rows = (height + pads[0] + pads[2] - reach[0]) // stride[0] + 1
        columns = (width + pads[1] + pads[3] - reach[1]) // stride[1] + 1
        if rows >= 1 and columns >= 1 and dilation[0] <= height:
            break
    first = int(rng.integers(0, rows))
    band = int(rng.integers(1, min(rows - first, 4) + 1))
    return Case(Window(kernel, stride, dilation, pads[0], pads[1], width, columns, band), height, first)


CASES = (
    same(3, 1, 1, 28, 4),
    same(3, 2, 1, 28, 9),
    same(5, 1, 1, 14, 14, flat=True),
    same(3, 1, 1, 7, 7, flat=True),
    same(5, 2, 1, 7, 7),
    same(3, 1, 2, 13, 13, flat=True),
    same(3, 1, 1, 3, 3, flat=True),
    same(3, 2, 1, 3, 3),
    same(7, 2, 1, 20, 9),
    same(3, 1, 1, 1, 5),
    same(1, 2, 1, 33, 5),
    same(5, 1, 4, 18, 6),
    # several blocks of rows and a rest, several chunks that are alike
    same(3, 1, 1, 200, 11),
    same(3, 2, 1, 400, 25),
    same(5, 1, 1, 14, 14),
    # patches: more taps than are unrolled
    Case(Window((9, 8), (9, 8), (1, 1), 0, 0, 34, 4, 2), 20),
    Case(Window((17, 4), (2, 1), (1, 2), 3, 0, 24, 18, 3), 20),
    *(odd(seed) for seed in range(8)),
)


#: A barrier that is nothing on x86: kernels are cut and ordered as for ARM, and must give the same.
BARRIER = "llvm.sideeffect"


@cache
def specs(lanes: int, registers: int) -> tuple[tuple[KernelSpec, ...], ...]:
    """For each case: depthwise with a multiplier of 1 or 2 and panels, ordered by LLVM or held to an order by fences,
    depthwise with weights held or not, all for few registers, and three poolings of each kind.
    """
    found: list[tuple[KernelSpec, ...]] = []
    for index, case in enumerate(CASES):
        window = case.window
        epilogue = EPILOGUES[(5 * index) % len(EPILOGUES)]
        kernels: list[KernelSpec] = [
            Depthwise(window, epilogue, lanes, registers, 1 + index % 2),
            Depthwise(window, epilogue, lanes, registers, 1 + index % 2, by_lane=True),
            Depthwise(window, epilogue, lanes, registers, 1 + index % 2, wide=True),
            Depthwise(window, epilogue, lanes, registers, 1 + index % 2, True, barrier=BARRIER),
            Panel(window, lanes, ahead=not window.flat and index % 2 == 0),
            Panel(window, lanes, False, BARRIER, window.rows * window.width_out + PITCH),
            Depthwise(window.by_rows, epilogue, lanes, registers, 1 + index % 2, True, False, BARRIER, True),
            Panel(window.by_rows, lanes, False, BARRIER, window.rows * window.width_out + PITCH, True),
        ]
        if not window.flat:
            modes = ("max", "avg", "avg_valid") if window.dilation == (1, 1) else ("max", "avg")
            forms = [("", False), (BARRIER, False), (BARRIER, True)]
            kernels += [Pool(window, mode, lanes, registers, *form) for mode in modes for form in forms]
        found.append(tuple(kernels))
    return tuple(found)


def of_target(target: Target) -> tuple[tuple[KernelSpec, ...], ...]:
    return specs(target.lanes, accumulators(target))


@pytest.fixture(scope="module", params=HOST_TARGETS, ids=lambda target: target.name)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Target, ctypes.CDLL]:
    target: Target = request.param
    unique = dict.fromkeys(spec for kernels in of_target(target) for spec in kernels)
    return target, build(list(unique), target, tmp_path_factory.mktemp("window"))


class Image:
    """An image in an arena: rows between NaN, and a row of zeros for what lies outside."""

    def __init__(self, case: Case, rng: np.random.Generator) -> None:
        self.case, width = case, case.window.width_in
        self.pixels = rng.standard_normal((CHANNELS, case.height, width)).astype(np.float32)
        self.pitch = case.height * width + 5
        self.zeros, self.start = 70, 70 + width + 70
        self.arena = np.full(self.start + CHANNELS * self.pitch + 64, np.nan, np.float32)
        self.arena[self.zeros : self.zeros + width] = 0
        for channel in range(CHANNELS):
            at = self.start + channel * self.pitch
            self.arena[at : at + case.height * width] = self.pixels[channel].reshape(-1)

    def rows(self, *, nearest: bool = False) -> list[int]:
        """The row tables as the kernels' contracts want them."""
        window, height = self.case.window, self.case.height
        if window.flat:
            return [self.start, self.pitch]
        offsets, pitches = [], []
        for index in range(window.rows_in):
            row = window.first_row(self.case.first) + index
            if nearest:  # any row of the same window will do, and the nearest in steps of the dilation is one
                while row < 0:
                    row += window.dilation[0]
                while row >= height:
                    row -= window.dilation[0]
            inside = 0 <= row < height
            offsets.append(self.start + row * window.width_in if inside else self.zeros)
            pitches.append(self.pitch if inside else 0)
        return [*offsets, *pitches]

    def windows(self) -> tuple[np.ndarray, np.ndarray]:
        """``[C, taps, rows, columns]`` of the image in float64, zero outside, and which of them are inside."""
        window, found, inside = self.case.window, [], []
        for ky, kx in window.taps:
            y = (np.arange(window.rows) + self.case.first) * window.stride[0] - window.top + ky * window.dilation[0]
            x = np.arange(window.width_out) * window.stride[1] - window.left + kx * window.dilation[1]
            valid = ((y >= 0) & (y < self.case.height))[:, None] & ((x >= 0) & (x < window.width_in))[None]
            at = self.pixels[:, y.clip(0, self.case.height - 1)][:, :, x.clip(0, window.width_in - 1)]
            found.append(np.where(valid, at, 0).astype(np.float64))
            inside.append(valid)
        return np.stack(found, axis=1), np.stack(inside)


def run(
    library: ctypes.CDLL, spec: KernelSpec, image: Image, rows: int, arrays: dict[str, np.ndarray], tables: list[int]
) -> np.ndarray:
    """Call a kernel that makes `rows` rows of pixels; checks what it wrote and gives it."""
    window = image.case.window
    pixels = window.rows * window.width_out
    y = np.full((rows, pixels + PITCH), np.nan, np.float32)
    memory = Memory({"x": image.arena, **arrays, "y": y})
    r_pitch = arrays["r"].shape[1] if "r" in arrays else -(2**30)
    end = rows if isinstance(spec, Depthwise) else CHANNELS
    for begin in range(end):  # a range at a time: nothing may depend on the others
        memory.call(library, spec.symbol, ["x", *arrays, "y"], [y.shape[1], r_pitch, *tables], begin, begin + 1)
    written = np.zeros(y.shape, bool)
    written[:, :pixels] = True
    memory.check_only("y", written)
    return memory["y"][:, :pixels]


def check_depthwise(code: ctypes.CDLL, spec: Depthwise, index: int) -> None:
    rng = np.random.default_rng(index)
    image = Image(replace(CASES[index], window=spec.window), rng)
    seen, _ = image.windows()
    rows, taps, pixels = CHANNELS * spec.multiplier, seen.shape[1], seen.shape[2] * seen.shape[3]
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in (("w", (rows, taps)), ("b", rows))}
    beside = rng.standard_normal((rows, pixels + 2)).astype(np.float32)
    if spec.epilogue.residual != "none":
        arrays["r"] = beside
    found = run(code, spec, image, rows, arrays, image.rows())
    inner = np.repeat(seen.reshape(CHANNELS, taps, pixels), spec.multiplier, axis=0)
    weight = arrays["w"].astype(np.float64)
    total = np.einsum("ct,ctp->cp", weight, inner) + arrays["b"][:, None]
    expected = activate(spec.epilogue, total, beside[:, :pixels].astype(np.float64))
    size = np.einsum("ct,ctp->cp", np.abs(weight), np.abs(inner)) + np.abs(arrays["b"][:, None]) + 4
    assert (np.abs(found - expected) <= EPS * (taps + 8) * 1.1 * size).all()


def check_panel(code: ctypes.CDLL, spec: Panel, index: int) -> None:
    image = Image(replace(CASES[index], window=spec.window), np.random.default_rng(index))
    seen, _ = image.windows()
    found = run(code, spec, image, CHANNELS * seen.shape[1], {}, image.rows())
    np.testing.assert_array_equal(found, seen.reshape(found.shape).astype(np.float32))


def check_pool(code: ctypes.CDLL, spec: Pool, index: int) -> None:
    image, window = Image(CASES[index], np.random.default_rng(index)), CASES[index].window
    seen, inside = image.windows()
    tables = image.rows(nearest=spec.mode == "max")
    if spec.mode == "max":
        expected = np.where(inside, seen, -np.inf).max(axis=1)
        expected = np.maximum(expected, np.finfo(np.float32).min)  # windows without any pixel
    elif spec.mode == "avg":
        expected = seen.mean(axis=1)
    else:
        if (inside.sum(axis=0) == 0).any():
            return  # no such model: a window without pixels has no mean
        expected = seen.sum(axis=1) / inside.sum(axis=0)
        tables += list(inside.reshape(*window.kernel, *inside.shape[1:])[:, :, :, :].any(axis=(1, 3)).sum(axis=0))
    found = run(code, spec, image, CHANNELS, {}, tables).reshape(expected.shape)
    bound = 0 if spec.mode == "max" else EPS * (len(window.taps) + 4) * 4
    assert np.abs(found - expected).max() <= bound, spec


@pytest.mark.parametrize("form", [0, 1, 2, 3, 6], ids=["plain", "by lane", "wide", "fenced", "few"])
@pytest.mark.parametrize("index", range(len(CASES)))
def test_depthwise(library: tuple[Target, ctypes.CDLL], index: int, form: int) -> None:
    target, code = library
    spec = of_target(target)[index][form]
    assert isinstance(spec, Depthwise)
    check_depthwise(code, spec, index)


@pytest.mark.parametrize("kind", [4, 5, 7], ids=["panel", "fenced", "few"])
@pytest.mark.parametrize("index", range(len(CASES)))
def test_panels_are_exact(library: tuple[Target, ctypes.CDLL], index: int, kind: int) -> None:
    target, code = library
    spec = of_target(target)[index][kind]
    assert isinstance(spec, Panel)
    check_panel(code, spec, index)


@pytest.mark.parametrize("index", [index for index, case in enumerate(CASES) if not case.window.flat])
def test_pooling(library: tuple[Target, ctypes.CDLL], index: int) -> None:
    target, code = library
    for spec in of_target(target)[index][8:]:
        assert isinstance(spec, Pool)
        check_pool(code, spec, index)


#: Cases whose modest forms are run.
MODEST = (4, 11, 17, 20, 22)


@pytest.mark.parametrize("index", MODEST)
def test_modest_forms_are_right(index: int, tmp_path: Path) -> None:
    """What is compiled for ARM where the first form touches the stack; here with the lanes and registers of ARM."""
    forms: dict[str, KernelSpec] = {}
    for spec in specs(4, 24)[index][3:]:
        if isinstance(spec, Depthwise | Panel | Pool) and spec.barrier and not spec.few:
            forms |= {form.symbol: form for form in spec.modest}
    assert len(forms) >= 4
    code = build(list(forms.values()), HOST_TARGETS[0], tmp_path)
    for form in forms.values():
        if isinstance(form, Depthwise):
            check_depthwise(code, form, index)
        elif isinstance(form, Panel):
            check_panel(code, form, index)
        else:
            assert isinstance(form, Pool)
            check_pool(code, form, index)


def test_cases_have_every_kind_of_cut() -> None:
    """Loops over blocks, a rest of rows, loops over chunks: none of it may go untested on any target."""
    for target in HOST_TARGETS:
        cuts = [spec.cut for kernels in of_target(target) for spec in kernels if isinstance(spec, (Depthwise, Panel))]
        assert any(block.repeat > 1 for cut in cuts for block in cut)
        assert any(len(cut) > 1 for cut in cuts)
        assert any(run.repeat > 1 and block.rows > 1 for cut in cuts for block in cut for run in block.runs)


@pytest.mark.parametrize(("lanes", "sums"), [(4, 24), (4, 8), (8, 12), (16, 24)])
def test_a_cut_has_every_output_once(lanes: int, sums: int) -> None:
    for window in (case.window for case in CASES):
        width = window.lanes(lanes)
        flat = window.rows * window.width_out if window.flat else window.width_out
        found = [
            (block.first + row + block.rows * at, start + run.step * again)
            for block in window.blocks(width, sums)
            for at in range(block.repeat)
            for row in range(block.rows)
            for run in block.runs
            for again in range(run.repeat)
            for start in run.offsets
        ]
        rows = 1 if window.flat else window.rows
        assert sorted(found) == [(row, start) for row in range(rows) for start in vector_starts(flat, width)]
        assert all(block.rows * len(run.offsets) <= sums for block in window.blocks(width, sums) for run in block.runs)


def test_symbols_are_unique() -> None:
    every = [spec for kernels in specs(16, 24) for spec in kernels]
    assert len({spec.symbol for spec in every}) == len(set(every))
