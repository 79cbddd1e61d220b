"""From cells to the frontier: what is worth choosing for each model, target and device. Pure functions.

A panel holds the cells that may be compared: one model on one target, device and processor. A point of it is a recipe,
with its speedup over the same model compiled dense (paired, from one run, so points of different runs can be compared)
and its quality: accuracy where there are labels, else agreement with the dense model, else the share of weights kept.
On the frontier are the points that no other beats in one without losing in the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgesparse.errors import Reason
from edgesparse.measuring.session import DENSE, ORT, SPARSE
from edgesparse.sweeping.engine import Done
from edgesparse.sweeping.grid import Cell

SCHEMA = "edgesparse.sweep/1"

QUALITIES = {
    "accuracy": "accuracy (top-1)",
    "agreement": "agreement with the dense model (top-1)",
    "density": "weights kept (quality was not measured)",
}
GAINS = {"speedup": "speedup over dense", "instructions": "times fewer instructions than dense (emulated: no speedup)"}


@dataclass(frozen=True)
class Point:
    """One finished cell.

    Attributes
    ----------
    gain, low, high:
        Ratio over the dense form and its 95 % interval; low and high equal the ratio for instruction counts.
    p50:
        Seconds; None where the device is emulated.
    over_ort, ort_low, ort_high:
        Speedup over onnxruntime (onnxruntime-web in an engine), where it was measured.
    quality, density:
        Shares from 0 to 1.
    best:
        Whether it is on the frontier.
    unstable:
        Why its timing should not be trusted.
    """

    recipe: str
    pattern: str
    gain: float
    low: float
    high: float
    p50: float | None
    over_ort: float | None
    ort_low: float | None
    ort_high: float | None
    quality: float
    density: float
    best: bool = False
    unstable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Panel:
    """The cells of one model on one target, device and processor; `dense_accuracy` where labels told it."""

    model: str
    target: str
    device: str
    cpu: str
    quality: str
    gain: str
    points: tuple[Point, ...]
    dense_accuracy: float | None = None

    @property
    def title(self) -> str:
        place = self.device if self.device != "local" else self.cpu
        return f"{self.model} for {self.target} on {place}"


def panels_of(cells: Sequence[Cell], done: Done) -> tuple[Panel, ...]:
    """All panels in the order of the cells; cells that failed are in none."""
    found: dict[tuple[str, str, str, str], list[tuple[Cell, Mapping[str, Any]]]] = {}
    for cell in cells:
        if cell.key in done.results:
            result = done.results[cell.key]
            found.setdefault((cell.model, cell.target, cell.device, _cpu(result)), []).append((cell, result))
    return tuple(_panel(place, members) for place, members in found.items())


def non_dominated(values: Sequence[tuple[float, float]]) -> list[bool]:
    """For each pair, whether no other is at least as large in both and larger in one."""
    return [
        not any(u >= x and v >= y and (u > x or v > y) for j, (u, v) in enumerate(values) if j != i)
        for i, (x, y) in enumerate(values)
    ]


def as_json(cells: Sequence[Cell], done: Done, left_out: Sequence[Reason]) -> dict[str, Any]:
    """The report as plain values."""
    panels = panels_of(cells, done)
    return {
        "schema": SCHEMA,
        "panels": [{**vars(panel), "points": [_plain(point) for point in panel.points]} for panel in panels],
        "failed": [{**cell.names(), **done.errors[cell.key]} for cell in cells if cell.key in done.errors],
        "left_out": [vars(reason) for reason in left_out],
        "cells": [
            {**cell.names(), "key": cell.key, "result": done.results[cell.key]}
            for cell in cells
            if cell.key in done.results
        ],
    }


def _plain(point: Point) -> dict[str, Any]:
    return {**vars(point), "unstable": list(point.unstable)}


def _panel(place: tuple[str, str, str, str], members: Sequence[tuple[Cell, Mapping[str, Any]]]) -> Panel:
    model, target, device, cpu = place
    told = [result.get("quality") or {} for _, result in members]
    asked = (key for key in ("accuracy", "agreement") if all(one.get(key) is not None for one in told))
    quality = next(asked, "density")
    emulated = "device_bench" in members[0][1]
    points = [_point(cell, result, quality) for cell, result in members]
    best = non_dominated([(point.gain, point.quality) for point in points])
    marked = tuple(Point(**{**vars(point), "best": top}) for point, top in zip(points, best, strict=True))
    dense = next((one["dense_accuracy"] for one in told if one.get("dense_accuracy") is not None), None)
    return Panel(model, target, device, cpu, quality, "instructions" if emulated else "speedup", marked, dense)


def _point(cell: Cell, result: Mapping[str, Any], quality: str) -> Point:
    density = float(result["density"])
    value = density if quality == "density" else float(result["quality"][quality])
    pattern = (cell.job["recipe"] or {}).get("pattern", "dense")
    here = (cell.recipe, pattern)
    if "device_bench" in result:
        told = result["device_bench"]["instructions"]
        ratio = told["dense"] / told["sparse"]
        return Point(*here, ratio, ratio, ratio, None, None, None, None, value, density)
    ratios = {item["other"]: item for item in result["bench"]["comparisons"]}
    sparse = next(item for item in result["bench"]["contenders"] if item["name"] == SPARSE)
    found = ratios[DENSE]
    rival: Mapping[str, Any] = next((item for name, item in ratios.items() if name.startswith(ORT)), {})
    times = (found["ratio"], found["low"], found["high"], sparse["latency"]["p50"])
    over_ort = (rival.get("ratio"), rival.get("low"), rival.get("high"))
    return Point(*here, *times, *over_ort, value, density, unstable=tuple(sparse["unstable"]))


def _cpu(result: Mapping[str, Any]) -> str:
    if "device_bench" in result:
        return str(result["device_bench"]["device"].get("cpu") or "")
    return str(result["bench"]["environment"]["cpu"])
