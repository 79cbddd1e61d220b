"""A sweep's report as one HTML file that needs nothing else: a plot and a table for each panel.

Drawn as SVG by hand: a plot is axes, marks and a line. Patterns differ by the mark's shape, not by colour alone, and
what is on the frontier is filled, so that a print without colour says the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from edgesparse.errors import Reason
from edgesparse.sweeping.engine import Done
from edgesparse.sweeping.frontier import GAINS, QUALITIES, Panel, Point
from edgesparse.sweeping.grid import Cell

WIDTH, HEIGHT = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 20, 55
_INKS = ("#1b6ca8", "#b8480e", "#2e7d32", "#6a3d9a", "#8a6d00", "#a3195b", "#444444")
_SHAPES = (
    "M-5 0A5 5 0 1 1 5 0A5 5 0 1 1 -5 0Z",
    "M-5 -5H5V5H-5Z",
    "M0 -6L6 5H-6Z",
    "M0 -7L7 0L0 7L-7 0Z",
    "M0 6L6 -5H-6Z",
    "M-6 -2H6V2H-6Z",
    "M-2 -6H2V6H-2Z",
)

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #111; }
table { border-collapse: collapse; margin: .5rem 0 2rem; } th, td { padding: .2rem .7rem; text-align: right; }
th { border-bottom: 1px solid #111; font-weight: 600; } td:first-child, th:first-child { text-align: left; }
tr.best td { font-weight: 600; } svg { max-width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; }
section { break-inside: avoid; } .note { color: #444; }
"""

Columns = tuple[str, ...]


def page(title: str, panels: Sequence[Panel], cells: Sequence[Cell], done: Done, left_out: Sequence[Reason]) -> str:
    """The whole page."""
    parts = [_section(panel) for panel in panels]
    failed = [(cell.name, done.errors[cell.key]) for cell in cells if cell.key in done.errors]
    if failed:
        rows = "".join(
            f"<li>{escape(name)}: {escape(error['what'])}{': ' if error['why'] else ''}{escape(error['why'])}</li>"
            for name, error in failed
        )
        parts.append(f"<section><h2>Failed</h2><ul>{rows}</ul></section>")
    if left_out:
        rows = "".join(f"<li>{escape(str(reason))}</li>" for reason in left_out)
        parts.append(f"<section><h2>Left out</h2><ul>{rows}</ul></section>")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<h1>{escape(title)}</h1>{''.join(parts)}</html>\n"
    )


def table(panel: Panel) -> tuple[Columns, list[tuple[str, ...]]]:
    """Columns and rows of a panel, as the command line and the page show them."""
    gain = "speed over dense [95 %]" if panel.gain == "speedup" else "fewer instructions than dense"
    quality = () if panel.quality == "density" else (panel.quality,)
    columns = ("recipe", "on the frontier", *quality, "weights kept", gain, "p50 ms", "over onnxruntime [95 %]")
    rows: list[tuple[str, ...]] = [
        (
            point.recipe + (" (unstable)" if point.unstable else ""),
            "yes" if point.best else "",
            *(f"{100 * point.quality:.1f} %" for _ in quality),
            f"{100 * point.density:.1f} %",
            _ratio(point.gain, point.low, point.high),
            "" if point.p50 is None else f"{1e3 * point.p50:.3g}",
            _ratio(point.over_ort, point.ort_low, point.ort_high),
        )
        for point in panel.points
    ]
    return columns, rows


def svg(panel: Panel) -> str:
    """The panel's plot: gain across, quality up, the frontier as steps."""
    xs = [value for point in panel.points for value in (point.low, point.high)] + [1.0]
    ys = [100 * point.quality for point in panel.points]
    if panel.quality == "accuracy" and panel.dense_accuracy is not None:
        ys.append(100 * panel.dense_accuracy)
    across, up = _Scale(xs, _LEFT, WIDTH - _RIGHT), _Scale(ys, HEIGHT - _BOTTOM, _TOP)
    patterns = list(dict.fromkeys(point.pattern for point in panel.points))
    parts = [_axes(across, up, GAINS[panel.gain], f"{QUALITIES[panel.quality]}, %"), _steps(panel.points, across, up)]
    for point in panel.points:
        parts.append(_mark(point, patterns.index(point.pattern), across, up))
    for number, pattern in enumerate(patterns):
        y = _TOP + 14 + 18 * number
        parts.append(_shape(number, WIDTH - 150, y - 4, filled=True))
        parts.append(f'<text x="{WIDTH - 138}" y="{y}">{escape(pattern)}</text>')
    words = f"{panel.title}: {QUALITIES[panel.quality]} against {GAINS[panel.gain]}"
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(words)}">{"".join(parts)}</svg>'


def ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """Round numbers from at most `low` to at least `high`, about `wanted` of them."""
    span = max(high - low, 1e-3)
    step = 10 ** math.floor(math.log10(span / wanted))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= wanted)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


class _Scale:
    """Maps a range of values, widened to round numbers, onto pixels."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self.ticks = ticks(min(values), max(values))
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)


def _section(panel: Panel) -> str:
    columns, rows = table(panel)
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        f"<tr{' class=best' if point.best else ''}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
        for point, row in zip(panel.points, rows, strict=True)
    )
    notes = "".join(
        f'<p class="note">{escape(point.recipe)} is unstable: {escape("; ".join(point.unstable))}</p>'
        for point in panel.points
        if point.unstable
    )
    if panel.dense_accuracy is not None:
        notes = f'<p class="note">Accuracy of the dense model: {100 * panel.dense_accuracy:.1f} %</p>{notes}'
    where = f'<p class="note">{escape(panel.cpu)}</p>' if panel.device != "local" else ""
    return (
        f"<section><h2>{escape(panel.title)}</h2>{where}{svg(panel)}"
        f"<table><tr>{head}</tr>{body}</table>{notes}</section>"
    )


def _axes(across: _Scale, up: _Scale, x_title: str, y_title: str) -> str:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = [f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="#111"/>']
    for value in across.ticks:
        x = across(value)
        parts.append(f'<path d="M{x} {bottom}v5" stroke="#111"/><path d="M{x} {_TOP}V{bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{value:g}</text>')
    for value in up.ticks:
        y = up(value)
        parts.append(f'<path d="M{_LEFT} {y}h-5" stroke="#111"/><path d="M{_LEFT} {y}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 9}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    middle = (_TOP + bottom) / 2
    parts.append(f'<text x="{(_LEFT + right) / 2}" y="{HEIGHT - 12}" text-anchor="middle">{escape(x_title)}</text>')
    parts.append(f'<text transform="translate(18 {middle}) rotate(-90)" text-anchor="middle">{escape(y_title)}</text>')
    return "".join(parts)


def _steps(points: Sequence[Point], across: _Scale, up: _Scale) -> str:
    """The frontier: from each of its points to the next by what the faster one still reaches."""
    best = sorted({(point.gain, point.quality) for point in points if point.best})
    if not best:
        return ""
    path = f"M{across(best[0][0])} {up(100 * best[0][1])}"
    path += "".join(f"V{up(100 * quality)}H{across(gain)}" for gain, quality in best[1:])
    return f'<path d="{path}" fill="none" stroke="#555" stroke-dasharray="5 4"/>'


def _mark(point: Point, number: int, across: _Scale, up: _Scale) -> str:
    x, y = across(point.gain), up(100 * point.quality)
    ink = _INKS[number % len(_INKS)]
    text = f"{point.recipe}: {point.gain:.2f}x, {100 * point.quality:.1f} %"
    return (
        f'<g><title>{escape(text)}</title><path d="M{across(point.low)} {y}H{across(point.high)}" stroke="{ink}"/>'
        f'{_shape(number, x, y, filled=point.best)}<text x="{x + 8}" y="{y - 7}">{escape(point.recipe)}</text></g>'
    )


def _shape(number: int, x: float, y: float, *, filled: bool) -> str:
    """A mark of its own for each pattern; open where a point is not on the frontier."""
    ink = _INKS[number % len(_INKS)]
    style = f'stroke="{ink}" stroke-width="1.5" fill="{ink if filled else "#fff"}"'
    paths = (
        "M-5 -5H5V5H-5Z",
        "M0 -6L6 5H-6Z",
        "M0 -7L7 0L0 7L-7 0Z",
        "M0 6L6 -5H-6Z",
        "M-6 -2H6V2H-6Z",
        "M-2 -6H2V6H-2Z",
    )
    if number % 7 == 0:
        return f'<circle cx="{x}" cy="{y}" r="5" {style}/>'
    return f'<path transform="translate({x} {y})" d="{paths[number % 7 - 1]}" {style}/>'


def _ratio(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None:
        return ""
    return f"{value:.2f}x" if low == high else f"{value:.2f}x [{low:.2f}, {high:.2f}]"
