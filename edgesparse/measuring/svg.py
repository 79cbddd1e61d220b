"""Charts as inline SVG: text out of numbers, nothing else. All names are escaped; shapes differ where colours would.

Lengths are in SVG's user units. Everything is drawn in shades of grey, so that it reads the same in print.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

INK, DARK, MID, LIGHT = "#111", "#444", "#8a8a8a", "#d8d8d8"
WIDTH = 900
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 6", "4 2 1 2")
"""Of lines, in the order of the contenders."""


def number(value: float) -> str:
    """Return a coordinate with two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".") or "0"


def tag(name: str, content: str = "", **attributes: Any) -> str:
    """Return an element; underscores in attributes' names become hyphens, numbers are rounded, texts escaped."""
    parts = []
    for key, value in attributes.items():
        text = number(value) if isinstance(value, int | float) else escape(str(value))
        parts.append(f' {key.rstrip("_").replace("_", "-")}="{text}"')
    return f"<{name}{''.join(parts)}>{content}</{name}>" if content else f"<{name}{''.join(parts)}/>"


def text(
    x: float, y: float, words: str, *, anchor: str = "start", size: float = 12, fill: str = INK, turned: float = 0
) -> str:
    """Return words at a place, `turned` degrees clockwise; what does not fit is the caller's to shorten."""
    more = {"transform": f"rotate({number(turned)} {number(x)} {number(y)})"} if turned else {}
    return tag("text", escape(words), x=x, y=y, text_anchor=anchor, font_size=size, fill=fill, **more)


def line(x1: float, y1: float, x2: float, y2: float, *, stroke: str = DARK, width: float = 1, dash: str = "") -> str:
    """Return a straight line."""
    more = {"stroke_dasharray": dash} if dash else {}
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=stroke, stroke_width=width, **more)


def picture(title: str, height: float, parts: Sequence[str], width: float = WIDTH) -> str:
    """Return a whole drawing with a title for those who cannot see it."""
    head = tag("title", escape(title))
    box = f"0 0 {number(width)} {number(height)}"
    return tag("svg", head + "".join(parts), viewBox=box, role="img", width=width, height=height)


def shorten(words: str, most: int = 30) -> str:
    """Return the words, the middle left out where they are longer than `most` characters."""
    return words if len(words) <= most else f"{words[: most - 12]}..{words[-10:]}"


def log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers (1, 2, 5 times powers of ten) from `low` to `high`, both above 0."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = [step * 10.0**power for power in range(first, last + 1) for step in (1, 2, 5)]
    return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]


class LogScale:
    """Positions of positive values on a logarithmic axis."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high = low, max(high, low * 1.01)
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)


def speedups(rows: Sequence[tuple[str, float, float, float, str]]) -> str:
    """Draw ratios with their intervals on a logarithmic axis: rows of name, ratio, low, high, words."""
    height = 40 + 30 * len(rows)
    low = min(0.9, *(row[2] for row in rows)) / 1.1
    high = max(1.1, *(row[3] for row in rows)) * 1.1
    scale = LogScale(low, high, 200, WIDTH - 230)
    parts = [
        line(scale(1), 8, scale(1), height - 26, width=2),
        text(scale(1), height - 10, "1 = equal", anchor="middle"),
    ]
    for tick in log_ticks(low, high):
        if abs(scale(tick) - scale(1)) > 45:
            parts.append(line(scale(tick), 8, scale(tick), height - 26, stroke=LIGHT))
            parts.append(text(scale(tick), height - 10, f"{tick:g}x", anchor="middle"))
    for index, (name, ratio, least, most, words) in enumerate(rows):
        y = 24 + 30 * index
        parts += [
            text(192, y + 4, shorten(name, 28), anchor="end"),
            line(scale(least), y, scale(most), y, width=2, stroke=INK),
            line(scale(least), y - 6, scale(least), y + 6, width=2, stroke=INK),
            line(scale(most), y - 6, scale(most), y + 6, width=2, stroke=INK),
            tag("circle", cx=scale(ratio), cy=y, r=4, fill=INK),
            text(WIDTH - 220, y + 4, words),
        ]
    return picture("Speedup with 95 % intervals", height, parts)


def distributions(rows: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Draw how many of the runs are at most so slow: rows of name and the percentiles 0 to 100, in seconds."""
    height, top, bottom, left, right = 300.0, 14.0, 260.0, 60.0, WIDTH - 200.0
    low = min(values[0] for _, values in rows) * 1e3 / 1.05
    high = max(values[99] for _, values in rows) * 1e3 * 1.1
    scale = LogScale(low, high, left, right)
    parts = [line(left, bottom, right, bottom), line(left, top, left, bottom)]
    for share in (0, 25, 50, 75, 90, 100):
        y = bottom - (bottom - top) * share / 100
        parts += [line(left, y, right, y, stroke=LIGHT), text(left - 6, y + 4, f"{share} %", anchor="end", size=11)]
    for tick in log_ticks(low, high):
        parts += [
            line(scale(tick), bottom, scale(tick), bottom + 5),
            text(scale(tick), bottom + 18, f"{tick:g}", anchor="middle", size=11),
        ]
    parts.append(text((left + right) / 2, bottom + 34, "latency in ms; runs that are at most so slow", anchor="middle"))
    for index, (name, values) in enumerate(rows):
        dash = DASHES[index % len(DASHES)]
        spots = (
            f"{number(scale(1e3 * value))},{number(bottom - (bottom - top) * share / 100)}"
            for share, value in enumerate(values)
        )
        more = {"stroke_dasharray": dash} if dash else {}
        parts.append(tag("polyline", points=" ".join(spots), fill="none", stroke=INK, stroke_width=1.6, **more))
        y = top + 14 + 22 * index
        parts += [
            line(right + 14, y, right + 54, y, dash=dash, stroke=INK, width=1.6),
            text(right + 60, y + 4, shorten(name, 20)),
        ]
    return picture("Distribution of latencies", height, parts)


def stacked(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> str:
    """Draw bars of layers, one after the other: rows of name and (layer, seconds).

    Bars are of one scale; those of less than two thirds of the longest stand once more below, stretched to its length.
    Layers are numbered in the order of the first row; wide ones carry their number.
    """
    totals = [sum(seconds for _, seconds in layers) for _, layers in rows]
    longest = max(totals, default=0.0) or 1.0
    names = dict.fromkeys(name for _, layers in rows for name, _ in layers)
    numbers = {name: index for index, name in enumerate(names, 1)}
    room = WIDTH - 230.0
    bars = [
        (title, f"{1e3 * total:.3g} ms", room / longest, layers)
        for (title, layers), total in zip(rows, totals, strict=True)
    ]
    bars += [
        (f"{title}, stretched", f"{longest / total:.2f} times", room / total, layers)
        for (title, layers), total in zip(rows, totals, strict=True)
        if 0 < total < longest * 2 / 3
    ]
    parts = []
    for index, (title, told, scale, layers) in enumerate(bars):
        y, x = 12 + 48 * index, 140.0
        parts.append(text(132, y + 22, shorten(title, 20), anchor="end"))
        for name, seconds in layers:
            wide, place = scale * seconds, numbers[name]
            mark = tag("title", escape(f"{place} {name}: {1e6 * seconds:.1f} us"))
            box = {"x": x, "y": y, "width": wide, "height": 34, "stroke": INK, "stroke_width": 0.6}
            parts.append(tag("rect", mark, **box, fill=MID if place % 2 else LIGHT))
            if wide > 16:
                parts.append(text(x + wide / 2, y + 22, str(place), anchor="middle", size=11))
            x += wide
        parts.append(text(x + 6, y + 22, told))
    return picture("Time of each layer, stacked", 10 + 48 * len(bars), parts)


def roofline(points: Sequence[tuple[int, float, float]], peak: float, bandwidth: Mapping[str, float]) -> str:
    """Draw layers under the machine's limits: points of number, operations per byte and GFLOP/s; peak in GFLOP/s,
    bandwidths in GB/s by level.
    """
    height, top, bottom, left, right = 380.0, 16.0, 330.0, 60.0, WIDTH - 40.0
    speeds = [gflops for _, _, gflops in points] + [peak]
    intensities = [intensity for _, intensity, _ in points] + [peak / value for value in bandwidth.values()]
    x = LogScale(min([0.25, *intensities]) / 1.5, max([10.0, *intensities]) * 1.5, left, right)
    y = LogScale(min(speeds) / 2, peak * 1.6, bottom, top)
    parts = [line(left, bottom, right, bottom), line(left, top, left, bottom)]
    for tick in log_ticks(x.low, x.high):
        parts += [
            line(x(tick), top, x(tick), bottom, stroke=LIGHT),
            text(x(tick), bottom + 16, f"{tick:g}", anchor="middle", size=11),
        ]
    for tick in log_ticks(y.low, y.high):
        parts += [
            line(left, y(tick), right, y(tick), stroke=LIGHT),
            text(left - 6, y(tick) + 4, f"{tick:g}", anchor="end", size=11),
        ]
    parts += [
        line(left, y(peak), right, y(peak), width=2, stroke=INK),
        text(right, y(peak) - 5, f"peak {peak:.0f} GFLOP/s", anchor="end"),
    ]
    for index, (level, value) in enumerate(sorted(bandwidth.items(), key=lambda item: -item[1])):
        corner, start = peak / value, max(x.low, y.low / value)
        parts.append(
            line(x(start), y(start * value), x(corner), y(peak), width=1.5, dash=DASHES[(index + 1) % len(DASHES)])
        )
        rise = math.degrees(math.atan2(y(start * value) - y(peak), x(corner) - x(start)))
        far = min(30.0, (x(corner) - x(start)) / 4)  # along the line, clear of the axis
        spot = (x(start) + far, y(start * value) - far * math.tan(math.radians(rise)) - 5)
        parts.append(text(*spot, f"{level} {value:.0f} GB/s", size=11, turned=-rise))
    placed = [(index, x(intensity), y(gflops)) for index, intensity, gflops in points]
    parts += [tag("circle", cx=across, cy=down, r=3.5, fill=DARK) for _, across, down in placed]
    for numbers, first, last, down in _together(placed):
        fits = last + 6 + 6 * len(numbers) < right
        parts.append(text(last + 6 if fits else first - 6, down, numbers, anchor="start" if fits else "end", size=10))
    parts += [
        text((left + right) / 2, bottom + 36, "operations per byte (at most)", anchor="middle"),
        text(16, (top + bottom) / 2, "GFLOP/s", anchor="middle", turned=-90),
    ]
    return picture("Roofline: layers under the limits of the machine", height, parts)


def _together(points: Sequence[tuple[int, float, float]]) -> list[tuple[str, float, float, float]]:
    """Labels of numbered points: words, first and last x, and y. Points whose labels would overlap share one."""
    groups: list[list[tuple[int, float, float]]] = []
    for point in points:
        near = [mine for mine in groups if any(abs(point[1] - x) < 24 and abs(point[2] - y) < 10 for _, x, y in mine)]
        groups = [mine for mine in groups if mine not in near]
        groups.append([each for mine in near for each in mine] + [point])
    return [
        (
            shorten(" ".join(str(index) for index, _, _ in sorted(mine)), 40),
            min(x for _, x, _ in mine),
            max(x for _, x, _ in mine),
            sum(y for _, _, y in mine) / len(mine) + 4,
        )
        for mine in groups
    ]


def grid(rows: Sequence[str], levels: int, title: str, side: float = 190) -> str:
    """Draw a picture of digits: 0 is white, `levels` is black; rows from top to bottom."""
    columns = max((len(row) for row in rows), default=0) or 1
    cell = side / max(columns, len(rows), 1)
    parts = [tag("rect", x=0.5, y=0.5, width=cell * columns, height=cell * len(rows), fill="#fff", stroke=MID)]
    shades: dict[int, list[str]] = {}
    for number_of_row, row in enumerate(rows):
        start = 0
        while start < len(row):
            end = start
            while end < len(row) and row[end] == row[start]:
                end += 1
            shade = int(row[start])
            if shade:
                box = (0.5 + start * cell, 0.5 + number_of_row * cell, (end - start) * cell, cell)
                left, top, wide, high = map(number, box)
                shades.setdefault(shade, []).append(f"M{left} {top}h{wide}v{high}h-{wide}z")
            start = end
    for shade, paths in sorted(shades.items()):
        grey = round(255 * (1 - shade / levels))
        parts.append(tag("path", d="".join(paths), fill=f"rgb({grey},{grey},{grey})"))
    return picture(title, cell * len(rows) + 1, parts, cell * columns + 1)
