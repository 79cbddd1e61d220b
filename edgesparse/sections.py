"""The sections of a recipe that need calibration data: what is repaired, how densities are spread, what is moved.

calibration: {mean: 127, scale: 128, order: rgb, limit: 256}   # pictures become (pixel - mean) / scale
reconstruction: {method: refit, damping: 0.03}                 # or swap, projected, none
recalibration: {layers: all}                                   # all, pruned or none
allocation: {method: sensitivity, budget: latency=0.5x}        # uniform, erk, global or sensitivity; budget: optional
rearrangement: {method: search}                                # search, norm, cluster or none
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from edgesparse.budget import Budget
from edgesparse.errors import RecipeError, UsageError

RECONSTRUCTIONS = ("refit", "swap", "projected", "none")
RECALIBRATIONS = ("all", "pruned", "none")
ALLOCATIONS = ("uniform", "erk", "global", "sensitivity")
REARRANGEMENTS = ("search", "norm", "cluster", "none")
FITTINGS = ("auto", "weights", "channels", "none")
CHANGES = ("auto", "shift", "crop", "none")
ORDERS = ("rgb", "bgr")
MAX_SAMPLES = 100_000


@dataclass(frozen=True)
class Calibration:
    """How pictures become inputs, `(pixel - mean) / scale` per channel in `order`; `limit` samples at most."""

    mean: tuple[float, ...] = (127.0,)
    scale: tuple[float, ...] = (128.0,)
    order: str = "rgb"
    limit: int = 256


@dataclass(frozen=True)
class Reconstruction:
    """How the kept weights and their places are found (`passes.reconstruct.Repair`), and the damping of the moments."""

    method: str = "refit"
    damping: float = 0.03


@dataclass(frozen=True)
class Recalibration:
    """Which layers' output channels get a scale and a shift to the dense network's mean and variance."""

    layers: str = "all"


@dataclass(frozen=True)
class Allocation:
    """How one density is spread over the layers; by sensitivity it may be a budget (`edgesparse.budget`) instead.

    `target` is what a latency or size is for, as `--target` takes it.
    """

    method: str = "uniform"
    budget: str = ""
    target: str = ""


@dataclass(frozen=True)
class Rearrangement:
    """How the order of channels is found: for what is to be pruned ("search", "norm"), or for the zeros that are there
    once all is pruned ("cluster").
    """

    method: str = "search"


@dataclass(frozen=True)
class Fitting:
    """What is fitted by gradient after pruning (`edgesparse.training.fitting`), and how far.

    Method "auto" is "weights" where that is possible, with fewer steps for large networks. `rate` is the relative size
    of a step, `batch` samples make one, changed at random by `augment`; the share `held_back` of all judges.
    """

    method: str = "weights"
    steps: int = 300
    rate: float = 0.003
    batch: int = 16
    held_back: float = 0.15
    augment: str = "auto"


def _refuse(path: str, why: str, fix: str) -> NoReturn:
    raise RecipeError(f"recipe key {path}", why=why, fix=fix)


def _choice(options: tuple[str, ...]) -> Callable[[str, Any], str]:
    def read(path: str, value: Any) -> str:
        # YAML reads a bare `none` as text, `null` as nothing
        if not isinstance(value, str) or value not in options:
            _refuse(path, f"{str(value)[:40]!r} is not known", f"take {', '.join(options)}")
        return value

    return read


def _number(low: float, high: float) -> Callable[[str, Any], float]:
    def read(path: str, value: Any) -> float:
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not low <= value <= high:  # nor is NaN
            _refuse(path, f"it is {str(value)[:40]}", f"it takes a number from {low:g} to {high:g}")
        return float(value)

    return read


def _whole(path: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SAMPLES:
        _refuse(path, f"it is {str(value)[:40]}", f"it takes a whole number from 1 to {MAX_SAMPLES}")
    return value


def _numbers(positive: bool) -> Callable[[str, Any], tuple[float, ...]]:
    def read(path: str, value: Any) -> tuple[float, ...]:
        items = list(value) if isinstance(value, list | tuple) else [value]
        if len(items) not in (1, 3):
            _refuse(path, f"it has {len(items)} entries", "it takes one number, or three, one a channel")
        low = 1e-6 if positive else -1e6
        return tuple(_number(low, 1e6)(path, item) for item in items)

    return read


def _budget(path: str, value: Any) -> str:
    try:
        return str(Budget.parse(value))
    except UsageError as error:
        _refuse(path, error.what, error.fix)


def _word(path: str, value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 200:
        _refuse(path, f"it is {str(value)[:40]!r}", "it takes a name")
    return value


_Readers = Mapping[str, Callable[[str, Any], Any]]
SECTIONS: dict[str, tuple[Callable[..., Any], _Readers]] = {
    "calibration": (
        Calibration,
        {"mean": _numbers(False), "scale": _numbers(True), "order": _choice(ORDERS), "limit": _whole},
    ),
    "reconstruction": (Reconstruction, {"method": _choice(RECONSTRUCTIONS), "damping": _number(1e-9, 10.0)}),
    "recalibration": (Recalibration, {"layers": _choice(RECALIBRATIONS)}),
    "allocation": (Allocation, {"method": _choice(ALLOCATIONS), "budget": _budget, "target": _word}),
    "rearrangement": (Rearrangement, {"method": _choice(REARRANGEMENTS)}),
    "fitting": (
        Fitting,
        {
            "method": _choice(FITTINGS),
            "steps": _whole,
            "rate": _number(1e-9, 1.0),
            "batch": _whole,
            "held_back": _number(0.01, 0.9),
            "augment": _choice(CHANGES),
        },
    ),
}
"""Section name to its type and the readers of its keys."""

NEEDS_DATA = ("reconstruction", "recalibration", "fitting")
"""Sections that mean nothing without calibration data."""


def read_section(name: str, data: Any) -> Any:
    """The section as its type. RecipeError names the path of what is wrong."""
    make, readers = SECTIONS[name]
    if not isinstance(data, Mapping):
        _refuse(name, f"it is {str(data)[:40]!r}", f"it takes a mapping of {', '.join(readers)}")
    values = {}
    for key, value in data.items():
        if key not in readers:
            near = difflib.get_close_matches(str(key)[:100], list(readers), n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            _refuse(f"{name}.{str(key)[:100]}", "there is no such key", f"{hint}keys are {', '.join(readers)}")
        values[key] = readers[key](f"{name}.{key}", value)
    section = make(**values)
    if isinstance(section, Allocation) and section.budget and section.method != "sensitivity":
        _refuse(f"{name}.budget", f"method {section.method} knows no losses to weigh costs against", "take sensitivity")
    return section


def section_dict(section: Any) -> dict[str, Any]:
    """Plain data that `read_section` takes back."""
    found = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(section).items()}
    return {key: value for key, value in found.items() if value != ""}
