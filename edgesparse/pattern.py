"""Sparsity patterns: their grammar, the best mask under each, and which one a weight already keeps.

Every function here works on the canonical view of a weight, `[Cout, Cin, taps]`: rows are output channels,
columns are the input channels that the row reads (`Cin / groups` for a grouped convolution), taps are the
kernel positions (`kh * kw`; 1 for 1x1 convolutions, Gemm and MatMul). `to_canonical` and `from_canonical` are
the only places that know how each operator stores its weight.

A density is the share of weights that are not zero; "sparsity 0.7" is density 0.3, everywhere.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesparse.errors import PatternError

Array = NDArray[Any]
Mask = NDArray[np.bool_]
Shape3 = tuple[int, int, int]

MAX_SIZE = 64
"""Largest number that a pattern's grammar takes: no kernel has wider tiles."""

DENSE_FROM = 0.9
"""From this density on, an unstructured weight is called dense: no sparse kernel gains there."""

GROUP_SIZES = (16, 8, 4, 2)
"""Group heights that `find_pattern` looks for, richest first: those that kernels exist for."""


@dataclass(frozen=True)
class PatternKind:
    """One row of the table of patterns: the source of parser, help text and checks.

    `fixed` patterns say their density themselves (2 of 4 is 0.5). What the compiler makes of the zeros is the
    placement's to say: it has kernels of their own for Nx1 groups.
    """

    name: str
    grammar: str
    regex: str
    meaning: str
    fixed: bool


_GROUP = "N output channels in a row keep or drop M input channels together, tap by tap"
_BLOCK = "R output by C input channels are kept or dropped together, all taps"
PATTERNS: tuple[PatternKind, ...] = (
    PatternKind("dense", "dense", "dense", "every weight is kept", True),
    PatternKind("unstructured", "unstructured", "unstructured", "any weight may be zero", False),
    PatternKind("group", "group:NxM", r"group:(\d+)x(\d+)", _GROUP, False),
    PatternKind("nm", "nm:N:M", r"nm:(\d+):(\d+)", "N of M input channels in a row are kept", True),
    PatternKind("fanin", "fanin", "fanin", "every output channel keeps equally many weights", False),
    PatternKind("kernel", "kernel:K", r"kernel:(\d+)", "K taps of every k x k kernel are kept", True),
    PatternKind("block", "block:RxC", r"block:(\d+)x(\d+)", _BLOCK, False),
    PatternKind("channel", "channel", "channel", "whole output channels are kept or dropped", False),
)
_BY_NAME = {kind.name: kind for kind in PATTERNS}


@dataclass(frozen=True)
class SparsePattern:
    """A sparsity pattern without its density; `n` and `m` are the numbers of the grammar, or 0."""

    kind: str = "dense"
    n: int = 0
    m: int = 0

    def __post_init__(self) -> None:
        if self.kind not in _BY_NAME:
            raise _unknown(self.kind)
        wanted = _BY_NAME[self.kind].regex.count("(")
        sizes = (self.n, self.m)[:wanted]
        if (self.n, self.m)[wanted:] != (0,) * (2 - wanted) or not all(1 <= s <= MAX_SIZE for s in sizes):
            raise PatternError(
                f"pattern {self}",
                why=f"{self.grammar} takes {wanted} numbers from 1 to {MAX_SIZE}",
                fix="`edgesparse patterns` lists all patterns",
            )
        if self.kind == "nm" and self.n >= self.m:
            raise PatternError(
                f"pattern {self}",
                why="N of M must leave something out",
                fix="take N smaller than M, or the pattern dense",
            )

    @classmethod
    def parse(cls, text: str) -> SparsePattern:
        """Read the grammar of `PATTERNS`, e.g. `group:8x1`. Raises PatternError on anything else."""
        if isinstance(text, str) and len(text) <= 40:
            for kind in PATTERNS:
                if found := re.fullmatch(kind.regex, text.strip(), re.ASCII):
                    numbers = [int(number) for number in found.groups()]
                    return cls(kind.name, *numbers)
        raise _unknown(text)

    def __str__(self) -> str:
        if self.kind in ("group", "block"):
            return f"{self.kind}:{self.n}x{self.m}"
        if self.kind == "nm":
            return f"nm:{self.n}:{self.m}"
        return f"kernel:{self.n}" if self.kind == "kernel" else self.kind

    @property
    def grammar(self) -> str:
        """The grammar of this kind, e.g. `group:NxM`."""
        return _BY_NAME[self.kind].grammar

    @property
    def fixed(self) -> bool:
        """Whether the pattern itself says the density (`dense`, `nm`, `kernel`)."""
        return _BY_NAME[self.kind].fixed


DENSE = SparsePattern("dense")
UNSTRUCTURED = SparsePattern("unstructured")


def _unknown(text: object) -> PatternError:
    shown = str(text)[:40]
    near = difflib.get_close_matches(shown.split(":")[0], [kind.name for kind in PATTERNS], n=1)
    grammars = ", ".join(kind.grammar for kind in PATTERNS)
    hint = f"did you mean {_BY_NAME[near[0]].grammar}? " if near else ""
    return PatternError(
        f"unknown pattern {shown!r}", why="it fits no pattern's grammar", fix=f"{hint}patterns are {grammars}"
    )


# --- masks


def misfit(pattern: SparsePattern, shape: Shape3) -> str:
    """Why `pattern` makes no sense for a weight of canonical `shape`, or an empty string if it does."""
    cout, cin, taps = shape
    if pattern.kind == "kernel" and pattern.n >= taps:
        return f"{pattern} needs kernels of more than {pattern.n} taps, this layer has {taps}"
    if pattern.kind == "nm" and pattern.m > cin:
        return f"{pattern} needs at least {pattern.m} input channels, this layer has {cin}"
    if pattern.kind in ("group", "block") and (pattern.n > cout or pattern.m > cin):
        return f"{pattern} needs {pattern.n} output and {pattern.m} input channels, this layer has {cout}, {cin}"
    return ""


def units(pattern: SparsePattern, shape: Shape3) -> int:
    """Number of units (weights, groups, blocks or channels), kept or dropped as one, in a weight."""
    height, width, depth = _unit(pattern, shape)
    cout, cin, taps = shape
    return -(-cout // height) * -(-cin // width) * -(-taps // depth)


def kept_units(pattern: SparsePattern, shape: Shape3, density: float) -> int:
    """Units that `best_mask` keeps at `density`: rounded half up; `fanin` rounds per output channel.

    For the fixed patterns `density` must be their own: PatternError otherwise. Where the channels are no
    multiple of the group, the last groups are smaller; units of each extent are rounded by themselves.
    """
    if not 0.0 <= density <= 1.0:
        raise PatternError(f"density {density}", why="it is not within 0 and 1", fix="give a share like 0.5")
    rows, per_row = _rows(pattern, shape)
    if pattern.fixed:
        quota = _fixed_quota(pattern, shape)
        own = float(quota.sum()) / units(pattern, shape)
        if abs(own - density) > 1e-9 and abs(_nominal(pattern, shape) - density) > 1e-9:
            raise PatternError(
                f"density {density} with pattern {pattern}",
                why=f"the pattern's own density is {_nominal(pattern, shape):g}",
                fix="leave the density out",
            )
        return int(quota.sum())
    if rows > 1:
        return rows * rounded(density * per_row)
    deep = -(-shape[2] // _unit(pattern, shape)[2])
    sizes = [(high.stop - high.start) * (wide.stop - wide.start) * deep for high, wide in _contests(pattern, shape)]
    return sum(rounded(density * size) for size in sizes)


def rounded(amount: float) -> int:
    """The nearest whole number, halves up: how many a share of units is."""
    return int(np.floor(amount + 0.5))


def equal_spans(length: int, extent: int) -> list[slice]:
    """Units of `extent` along an axis of `length`: those that are whole, then the smaller last one, if there is one."""
    whole = length // extent
    spans = slice(0, whole), slice(whole, -(-length // extent))
    return [span for span in spans if span.stop > span.start]


def fixed_density(pattern: SparsePattern, shape: Shape3) -> float | None:
    """The density that a fixed pattern has by itself on a weight of `shape`; None where it is free."""
    return _nominal(pattern, shape) if pattern.fixed else None


def best_mask(pattern: SparsePattern, saliency: Array, density: float | None = None) -> Mask:
    """The mask that keeps the pattern and the number of units of `density`, and most of the summed saliency.

    Where channels are no multiple of a group's, the smaller last groups compete among themselves: by their sums, the
    last two of ten classes in groups of eight would be given up before all others.

    Parameters
    ----------
    pattern:
        Any pattern. A unit's saliency is the sum over its weights: squared weights give groups by L2 norm.
    saliency:
        `[Cout, Cin, taps]`, any real dtype, finite; added up in float64.
    density:
        Share of units to keep; `kept_units` has the rounding. May be None for fixed patterns only.

    Returns
    -------
    bool `[Cout, Cin, taps]`, True where a weight is kept. It is an exact projection: no other mask with
    this pattern and as many units of each extent has a larger sum. Among equals the lower index is kept: deterministic.

    Raises
    ------
    PatternError: saliency of another rank or not finite, no density, or one that the pattern cannot have.
    """
    scores = np.asarray(saliency, dtype=np.float64)
    shape = _shape3(scores)
    if not np.isfinite(scores).all():
        raise PatternError("saliency is not finite", why="it has NaN or infinite entries")
    if density is None:
        density = fixed_density(pattern, shape)
        if density is None:
            raise PatternError(f"pattern {pattern} needs a density", fix="give a share such as 0.5")
    kept = kept_units(pattern, shape, density)
    if pattern.kind == "nm":
        return _best_nm(pattern, scores)
    rows, per_row = _rows(pattern, shape)
    unit = _unit(pattern, shape)
    table = _pool(scores, unit)
    if rows > 1:
        chosen = _top(table.reshape(rows, per_row), kept // rows).reshape(table.shape)
        return _spread(chosen, unit, shape)
    chosen = np.zeros(table.shape, np.bool_)
    for contest in _contests(pattern, shape):
        sums = table[contest]
        chosen[contest] = _top(sums.reshape(1, -1), rounded(density * sums.size)).reshape(sums.shape)
    return _spread(chosen, unit, shape)


def keeps(pattern: SparsePattern, mask: Array) -> bool:
    """Whether a mask or weight `[Cout, Cin, taps]` (non-zero is kept) has the pattern, at whatever density.

    `nm` and `kernel` allow fewer than N (K) entries; `dense` allows no zero at all.
    """
    kept = np.asarray(mask) != 0
    shape = _shape3(kept)
    if pattern.kind == "dense":
        return bool(kept.all())
    if pattern.kind == "kernel":
        return bool((kept.sum(axis=2) <= pattern.n).all())
    if pattern.kind == "nm":
        counts = np.add.reduceat(kept.astype(np.int64), np.arange(0, shape[1], pattern.m), axis=1)
        return bool((counts <= pattern.n).all())
    if pattern.kind == "fanin":
        counts = kept.reshape(shape[0], -1).sum(axis=1)
        return bool((counts == counts[0]).all())
    unit = _unit(pattern, shape)
    counts = _pool(kept.astype(np.int64), unit)
    return bool(((counts == 0) | (counts == _pool(np.ones(shape, np.int64), unit))).all())


def density(mask: Array) -> float:
    """Share of non-zero entries of a mask or weight of any shape; 1.0 for an empty one."""
    array = np.asarray(mask)
    return float(np.count_nonzero(array)) / array.size if array.size else 1.0


def find_pattern(weight: Array) -> tuple[SparsePattern, float]:
    """The richest pattern that an already sparse weight `[Cout, Cin, taps]` keeps, and its density.

    `dense` from density `DENSE_FROM` on; else `group:Nx1` with the largest N of `GROUP_SIZES` for which the
    zeros are the same in every N consecutive output channels (the last group may be smaller); else
    `unstructured`.
    """
    kept = np.asarray(weight) != 0
    shape = _shape3(kept)
    share = density(kept)
    if share >= DENSE_FROM:
        return DENSE, share
    for size in GROUP_SIZES:
        pattern = SparsePattern("group", size, 1)
        if size <= shape[0] and keeps(pattern, kept):
            return pattern, share
    return UNSTRUCTURED, share


def _shape3(array: Array) -> Shape3:
    if array.ndim != 3 or 0 in array.shape:
        raise PatternError(f"array of shape {array.shape}", why="a canonical weight is [Cout, Cin, taps] and not empty")
    return (array.shape[0], array.shape[1], array.shape[2])


def _unit(pattern: SparsePattern, shape: Shape3) -> Shape3:
    """Extent of one unit over (output channels, input channels, taps)."""
    if pattern.kind == "group":
        return (pattern.n, pattern.m, 1)
    if pattern.kind == "block":
        return (pattern.n, pattern.m, shape[2])
    return (1, shape[1], shape[2]) if pattern.kind == "channel" else (1, 1, 1)


def _rows(pattern: SparsePattern, shape: Shape3) -> tuple[int, int]:
    """(rows, units per row): the units of a row compete with each other; each row keeps equally many."""
    if pattern.kind == "kernel":
        return shape[0] * shape[1], shape[2]
    if pattern.kind == "fanin":
        return shape[0], shape[1] * shape[2]
    return 1, units(pattern, shape)


def _contests(pattern: SparsePattern, shape: Shape3) -> list[tuple[slice, slice]]:
    """Where in the table of units `[rows, columns, taps]` those are that compete: all of equal extent."""
    high, wide, _ = _unit(pattern, shape)
    return [(rows, columns) for rows in equal_spans(shape[0], high) for columns in equal_spans(shape[1], wide)]


def _nominal(pattern: SparsePattern, shape: Shape3) -> float:
    if pattern.kind == "nm":
        return pattern.n / pattern.m
    return min(pattern.n, shape[2]) / shape[2] if pattern.kind == "kernel" else 1.0


def _fixed_quota(pattern: SparsePattern, shape: Shape3) -> NDArray[np.int64]:
    """Units kept in each competing row of a fixed pattern; a shorter last row of nm rounds up."""
    if pattern.kind == "nm":
        widths = np.diff(np.append(np.arange(0, shape[1], pattern.m), shape[1]))
        return np.tile(-(-widths * pattern.n // pattern.m), shape[0] * shape[2])
    if pattern.kind == "kernel":
        return np.full(shape[0] * shape[1], min(pattern.n, shape[2]), dtype=np.int64)
    return np.array([shape[0] * shape[1] * shape[2]], dtype=np.int64)


def _pool(values: Array, unit: Shape3) -> Array:
    """Sum over each unit; the last units of an axis may be smaller."""
    for axis, extent in enumerate(unit):
        if extent > 1:
            values = np.add.reduceat(values, np.arange(0, values.shape[axis], extent), axis=axis)
    return values


def _spread(chosen: Mask, unit: Shape3, shape: Shape3) -> Mask:
    """Each unit's choice over its weights: the inverse of `_pool`'s shape change."""
    for axis, extent in enumerate(unit):
        if extent > 1:
            chosen = np.repeat(chosen, extent, axis=axis).take(np.arange(shape[axis]), axis=axis)
    return chosen


def _top(table: Array, count: int) -> Mask:
    """True at the `count` largest entries of each row; the lower index wins a tie."""
    chosen = np.zeros(table.shape, dtype=np.bool_)
    order = np.argsort(-table, axis=1, kind="stable")[:, :count]
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen


def _best_nm(pattern: SparsePattern, scores: Array) -> Mask:
    chosen = np.zeros(scores.shape, dtype=np.bool_)
    for start in range(0, scores.shape[1], pattern.m):
        part = np.moveaxis(scores[:, start : start + pattern.m], 1, 2)
        width = part.shape[2]
        best = _top(part.reshape(-1, width), -(-width * pattern.n // pattern.m))
        chosen[:, start : start + width] = np.moveaxis(best.reshape(part.shape), 2, 1)
    return chosen


# --- the canonical view

CONV_KINDS = ("conv1x1", "conv", "depthwise")
KINDS = (*CONV_KINDS, "conv_transpose", "gemm", "matmul")
"""The operator kinds that have a canonical view."""


def to_canonical(weight: Array, kind: str, *, groups: int = 1, trans_b: bool = False) -> Array:
    """The weight of an operator as `[Cout, Cin / groups, taps]`, a view where numpy can.

    Parameters
    ----------
    weight:
        As ONNX stores it: Conv `[Cout, Cin/groups, *kernel]`, ConvTranspose `[Cin, Cout/groups, *kernel]`,
        Gemm `[Cin, Cout]` (`[Cout, Cin]` with `trans_b`), MatMul `[Cin, Cout]`.
    kind:
        One of `KINDS`.

    Raises PatternError for another kind or rank.
    """
    _check_kind(weight.shape, kind, groups)
    if kind in CONV_KINDS:
        return weight.reshape(weight.shape[0], weight.shape[1], -1)
    if kind == "conv_transpose":
        cin, per_group = weight.shape[:2]
        split = weight.reshape(groups, cin // groups, per_group, -1)
        return split.swapaxes(1, 2).reshape(groups * per_group, cin // groups, -1)
    return (weight if trans_b and kind == "gemm" else weight.T)[:, :, None]


def from_canonical(view: Array, kind: str, shape: tuple[int, ...], *, groups: int = 1, trans_b: bool = False) -> Array:
    """The exact inverse of `to_canonical`: back to the stored `shape`, as a contiguous array."""
    _check_kind(shape, kind, groups)
    if kind in CONV_KINDS:
        stored = view.reshape(shape)
    elif kind == "conv_transpose":
        split = view.reshape(groups, shape[1], shape[0] // groups, -1)
        stored = split.swapaxes(1, 2).reshape(shape)
    else:
        flat = view.reshape(view.shape[0], view.shape[1])
        stored = flat if trans_b and kind == "gemm" else flat.T
    return np.ascontiguousarray(stored)


def _check_kind(shape: tuple[int, ...], kind: str, groups: int) -> None:
    right_rank = len(shape) >= 3 if kind in (*CONV_KINDS, "conv_transpose") else len(shape) == 2
    if kind not in KINDS or not right_rank or groups < 1 or shape[0] % groups:
        raise PatternError(
            f"no canonical view of a {kind} weight of shape {shape} in {groups} groups",
            why=f"kinds are {', '.join(KINDS)}; convolutions have rank 3 or more, products rank 2",
        )
