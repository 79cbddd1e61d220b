"""The product kernel against numpy: groups, tiles, tails, epilogues; what it reads and writes; its inner loop."""

from __future__ import annotations

import ctypes
import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from guarded import EPILOGUES, EPS, Memory, activate, build
from networks import HOST_TARGETS

from edgesparse.building.codegen import compile_asm
from edgesparse.kernels import Epilogue, Spmm
from edgesparse.planning.packing import COLUMNS_AHEAD
from edgesparse.target import Target

#: (group, vectors of a tile): what the placement may choose, and groups that are no power of two (rests of rows).
TILES = ((1, 6), (2, 4), (3, 2), (4, 3), (8, 1), (16, 1))
PIXELS = (1, 3, 7, 20, 49, 112)
DEPTH, GROUPS = 37, 3


@cache
def specs(lanes: int) -> tuple[Spmm, ...]:
    """The table of instances: every tile at every width, epilogues in turn."""
    shapes = [*itertools.product(TILES, PIXELS), *(((64, 1), 1), ((64, 1), 7), ((10, 1), 1))]
    found = []
    for index, ((group, vectors), pixels) in enumerate(shapes):
        for dense in (False, True):
            epilogue = EPILOGUES[(2 * index + dense) % len(EPILOGUES)]
            found.append(Spmm(group, pixels, vectors, lanes, dense, epilogue))
    by_lane = [Spmm(2 * lanes, 2 * lanes + 1, 1, lanes, dense, Epilogue("relu"), True) for dense in (False, True)]
    others = [replace(each, groups_outer=True, ahead=4096) for each in found if each.group in (4, 64)]
    others += [replace(each, columns_ahead=COLUMNS_AHEAD) for each in found if each.group in (4, 8) and not each.dense]
    joined = [replace(each, joined=True) for each in [*found, *others] if each.group in (2, 4, 8, 10)]
    joined += [replace(each, joined=True) for each in by_lane]
    return tuple(dict.fromkeys([*found, *by_lane, *others, *joined]))


@pytest.fixture(scope="module", params=HOST_TARGETS, ids=lambda target: target.name)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Target, ctypes.CDLL]:
    target: Target = request.param
    return target, build(specs(target.lanes), target, tmp_path_factory.mktemp("spmm"))


def problem(spec: Spmm, rng: np.random.Generator) -> tuple[Memory, list[str], list[int], np.ndarray, np.ndarray]:
    """Memory, pointers and arguments of a call; the result in float64 and the bound of its error."""
    rows = GROUPS * spec.group
    x_pitch, y_pitch, r_pitch = spec.pixels + 3, spec.pixels + 5, spec.pixels + 2
    x = np.full((DEPTH, x_pitch), np.nan, np.float32)
    x[:, : spec.pixels] = rng.standard_normal((DEPTH, spec.pixels))
    weight = rng.standard_normal((GROUPS, DEPTH, spec.group)).astype(np.float32)
    bias = rng.standard_normal(rows).astype(np.float32)
    residual = np.full((rows, r_pitch), np.nan, np.float32)
    residual[:, : spec.pixels] = rng.standard_normal((rows, spec.pixels))
    arrays = {"x": x, "b": bias, "r": residual, "y": np.full((rows, y_pitch), np.nan, np.float32)}
    names, args = ["x", "w"], [y_pitch, r_pitch]
    if spec.dense:
        arrays["w"] = weight
        args += [x_pitch, DEPTH]
    else:
        keep = rng.random((GROUPS, DEPTH)) < 0.4
        keep[0] = False  # a group without any non-zero
        weight *= keep[:, :, None]
        arrays["w"] = weight[keep]
        arrays["start"] = np.concatenate([[0], np.cumsum(keep.sum(1))]).astype(np.int32)
        arrays["column"] = np.pad(np.nonzero(keep)[1] * x_pitch, (0, spec.columns_ahead)).astype(np.int32)
        names += ["start", "column"]
    names += ["b", *(["r"] if spec.epilogue.residual != "none" else []), "y"]
    full = weight.transpose(0, 2, 1).reshape(rows, DEPTH).astype(np.float64)
    inner, beside = x[:, : spec.pixels].astype(np.float64), residual[:, : spec.pixels].astype(np.float64)
    expected = activate(spec.epilogue, full @ inner + bias[:, None], beside)
    size = np.abs(full) @ np.abs(inner) + np.abs(bias[:, None]) + np.abs(beside) + 1
    # No activation has a slope above 1.1; the inline polynomials are right to a few units in the last place.
    return Memory(arrays), names, args, expected, EPS * (DEPTH + 8) * 1.1 * size


@pytest.mark.parametrize("index", range(len(specs(4))))
def test_products(library: tuple[Target, ctypes.CDLL], index: int) -> None:
    target, code = library
    spec = specs(target.lanes)[index]
    memory, names, args, expected, bound = problem(spec, np.random.default_rng(index))
    memory.call(code, spec.symbol, names, args, 0, GROUPS)
    written = np.zeros(memory["y"].shape, bool)
    written[:, : spec.pixels] = True
    memory.check_only("y", written)
    error = np.abs(memory["y"][:, : spec.pixels] - expected)
    assert (error <= bound).all(), f"{spec}: {(error / bound).max():.3g} of the bound"


def test_a_range_of_groups_leaves_the_others_alone(library: tuple[Target, ctypes.CDLL]) -> None:
    target, code = library
    for spec in [each for each in specs(target.lanes) if each.group in (1, 4, 64) and each.pixels in (1, 7, 49)]:
        memory, names, args, expected, bound = problem(spec, np.random.default_rng(1))
        memory.call(code, spec.symbol, names, args, 1, 2)
        own = slice(spec.group, 2 * spec.group)
        written = np.zeros(memory["y"].shape, bool)
        written[own, : spec.pixels] = True
        memory.check_only("y", written)
        assert (np.abs(memory["y"][own, : spec.pixels] - expected[own]) <= bound[own]).all()
        memory.call(code, spec.symbol, names, args, 2, 2)
        memory.check_only("y", written)


def test_results_do_not_depend_on_the_tile(library: tuple[Target, ctypes.CDLL]) -> None:
    """Threads and bands cut ranges and pixels as they like: each output is the same sum in the same order."""
    target, code = library
    spec = next(each for each in specs(target.lanes) if each.group == 4 and each.pixels == 49 and not each.dense)
    whole, names, args, *_ = problem(spec, np.random.default_rng(5))
    whole.call(code, spec.symbol, names, args, 0, GROUPS)
    parts, *_ = problem(spec, np.random.default_rng(5))
    for group in range(GROUPS):
        parts.call(code, spec.symbol, names, args, group, group + 1)
    np.testing.assert_array_equal(whole["y"], parts["y"])


def test_results_do_not_depend_on_the_order_of_loops(library: tuple[Target, ctypes.CDLL]) -> None:
    target, code = library
    for spec in [each for each in specs(target.lanes) if each.groups_outer]:
        one, names, args, *_ = problem(spec, np.random.default_rng(6))
        other, *_ = problem(spec, np.random.default_rng(6))
        one.call(code, spec.symbol, names, args, 0, GROUPS)
        other.call(code, replace(spec, groups_outer=False, ahead=0).symbol, names, args, 0, GROUPS)
        np.testing.assert_array_equal(one["y"], other["y"])


def test_symbols_are_unique() -> None:
    base = dict(group=4, pixels=49, vectors=3, lanes=8, dense=False, epilogue=Epilogue("clip", (0.0, 6.0)))
    changes = {
        "group": 8,
        "pixels": 48,
        "vectors": 2,
        "lanes": 4,
        "dense": True,
        "epilogue": Epilogue("clip", (-0.0, 6.0), "after"),
        "by_lane": True,
        "groups_outer": True,
        "ahead": 4096,
        "columns_ahead": 8,
        "joined": True,
    }
    made = [Spmm(**base), *(Spmm(**{**base, key: value}) for key, value in changes.items())]  # type: ignore[arg-type]
    made.append(Spmm(**{**base, "epilogue": Epilogue("clip", (0.0, np.nextafter(np.float32(6), np.float32(7))))}))  # type: ignore[arg-type]
    assert len({spec.symbol for spec in made}) == len(made)
    assert all(re.fullmatch(r"\w+", spec.symbol) for spec in made)


# -- golden: the loop that all of the time goes into ---------------------------------------------------------------


def innermost_loop(asm: str, count: Callable[[str], int]) -> list[str]:
    """The instructions of the basic block that jumps to its own start and has the most of what `count` counts."""
    blocks: dict[str, list[str]] = {}
    label = ""
    for line in asm.splitlines():
        text = line.split("#")[0].strip()
        if re.match(r"\.LBB\w+:", text):
            label = text.rstrip(":")
            blocks[label] = []
        elif text and not text.startswith(".") and label:
            blocks[label].append(re.sub(r"\s+", " ", text))
            label = "" if text.startswith("j") else label
    loops = [body for label, body in blocks.items() if body and body[-1].startswith("j") and body[-1].endswith(label)]
    assert loops, asm
    return max(loops, key=lambda body: sum(map(count, body)))


def is_fma(line: str) -> int:
    return int(bool(re.match(r"vfn?m(add|sub)\w+ ", line)))


@pytest.mark.parametrize(
    ("target", "group", "vectors", "register", "single"),
    [
        ("x86-64-v4", 8, 3, "zmm", 0),
        ("x86-64-v4", 8, 3, "zmm", 1),
        ("x86-64-v3", 4, 3, "ymm", 0),
        ("x86-64-v4", 4, 6, "zmm", 0),
        ("x86-64-v4", 4, 5, "zmm", 1),
    ],
)
@pytest.mark.parametrize("dense", [False, True])
def test_the_inner_loop_is_multiply_adds_and_no_spills(
    target: str, group: int, vectors: int, register: str, single: int, dense: bool
) -> None:
    """Per non-zero: `vectors` loads, `group` weights, group x vectors multiply-adds in registers, a few integers.

    Each `single` pixel that is joined adds a multiply-add that takes it from memory, for all of the group's rows.
    """
    chosen = Target.parse(target)
    pixels = vectors * chosen.lanes + single
    spec = Spmm(group, pixels, vectors, chosen.lanes, dense, Epilogue("relu"), joined=single > 0)
    loop = innermost_loop(compile_asm({spec.symbol: spec.build()}, chosen.tvm_target()), is_fma)
    multiplies = [line for line in loop if is_fma(line)]
    unrolled, rest = divmod(len(multiplies), group * vectors + single)
    assert multiplies, loop
    assert rest == 0, loop
    narrow = [line for line in multiplies if register not in line]
    assert len(narrow) == unrolled * single
    assert all("(" in line for line in narrow), "a single pixel takes no instruction of its own"
    assert not [line for line in loop if "%rsp" in line], "the loop spills"
    stores = [line for line in loop if re.match(r"v?mov\S* [%\w]+, .*\(", line) and line.rstrip().endswith(")")]
    assert not stores, stores
    moved = [line for line in loop if re.match(r"vmov(aps|ups|dqa)\S* %.mm\d+, %.mm\d+", line)]
    assert not moved, "registers are copied"
    weights = group + (single > 0)  # each spread, and the group in one vector
    assert len(loop) <= unrolled * (group * vectors + single + weights + vectors + 6), "\n".join(loop)
