"""A bench's JSON as one page of HTML: no script, nothing from elsewhere, readable in print and without colour.

Pure: data in, text out. The data is `edgesparse.bench/1`; what it lacks is left out of the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from edgesparse.measuring import svg
from edgesparse.measuring.report import LATENCY_COLUMNS

Data = Mapping[str, Any]

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #111; background: #fff; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: .2rem }
h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #8a8a8a }
p { margin: .5rem 0 } table { border-collapse: collapse; font-size: .85rem; width: 100% }
th, td { padding: .2rem .5rem; border-bottom: 1px solid #d8d8d8; text-align: right; vertical-align: top }
th { border-bottom: 1px solid #111 } .words { text-align: left; overflow-wrap: anywhere }
.label { text-align: left; white-space: nowrap }
svg { max-width: 100%; height: auto; display: block; margin: .5rem 0 } svg text { font-family: system-ui, sans-serif }
.warning { border: 2px solid #111; padding: .5rem .8rem } .warning b { text-transform: uppercase }
.masks { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0; width: 13rem }
figcaption { font-size: .78rem; overflow-wrap: anywhere }
.scroll { overflow-x: auto } .quiet { color: #444; font-size: .85rem }
@media print { body { margin: 0; max-width: none; font-size: 10pt } section, figure, tr, svg { break-inside: avoid }
  .scroll { overflow: visible } }
"""

POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def bench_page(data: Data) -> str:
    """Return the page of a bench report.

    Parameters
    ----------
    data:
        A report as `report.as_json` gives it and `schema.read_report` reads it.
    """
    subject, here = data["subject"], data["environment"]
    title = f"{subject['artifact']} for {subject['target']}"
    sections = [
        _head(data, title),
        _section("Speedup", _speedup(data)),
        _section("Latency", _latency(data)),
        _section("Layers", _layers(data)),
        _section("Roofline", _roofline(data)),
        _section("Where weights are left", _masks(data)),
        _section("Accuracy", _accuracy(data)),
        _section("Environment", _environment(here, data)),
    ]
    return document(title, "".join(sections))


def document(title: str, body: str) -> str:
    """Return a whole page around sections that are HTML already."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>{body}</body></html>\n"
    )


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[str] = (), labels: Sequence[str] = ()
) -> str:
    """Return a table. Everything is escaped.

    Columns named in `words` are set to the left and break where they must, those in `labels` are set to the left and
    never break; the others are numbers.
    """
    kinds = [
        ' class="words"' if column in words else ' class="label"' if column in labels else "" for column in columns
    ]
    head = "".join(f"<th{kind}>{escape(column)}</th>" for kind, column in zip(kinds, columns, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>\n" if content else ""


def _paragraph(words: str, kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return f"<p{mark}>{escape(words)}</p>"


def _head(data: Data, title: str) -> str:
    settings, here = data["settings"], data["environment"]
    threads = settings["threads"]
    where = f"On {here['cpu']}, {threads} thread{'s' if threads > 1 else ''}, {here['os']}."
    parts = [f"<h1>{escape(title)}</h1>", _paragraph(where, "quiet")]
    shaky = [f"{item['name']}: {'; '.join(item['unstable'])}" for item in data["contenders"] if item["unstable"]]
    if shaky:
        causes = [f"{item['code']}: {item['message']}" for item in data.get("causes", ())]
        lines = "".join(f"<li>{escape(text)}</li>" for text in [*shaky, *causes])
        parts.append(f'<div class="warning"><b>Unstable</b>: these times should not be trusted.<ul>{lines}</ul></div>')
    parts += [_paragraph(f"Note: {text}") for text in data["notes"]]
    return "".join(parts)


def _speedup(data: Data) -> str:
    rows = [
        (
            f"over {item['other']}",
            item["ratio"],
            item["low"],
            item["high"],
            f"{item['ratio']:.2f}x [{item['low']:.2f}, {item['high']:.2f}] {item['verdict']}",
        )
        for item in data["comparisons"]
    ]
    if not rows:
        return ""
    first = data["comparisons"][0]
    loads = len(first.get("load_ratios", ()))
    told = (
        f"How many times as fast {first['base']} is: the median of ratios measured in pairs, block by block "
        f"({first.get('calm', first['blocks'])} of {first['blocks']} blocks: those in which the machine was calm), "
        f"{f'of each of {loads} loads, and the mean of these, ' if loads > 1 else ''}"
        f"with its {100 * first['confidence']:.0f} % interval."
    )
    return svg.speedups(rows) + _paragraph(told, "quiet")


def _latency(data: Data) -> str:
    drawn = [(item["name"], item["quantile_seconds"]) for item in data["contenders"] if "quantile_seconds" in item]
    columns = (*LATENCY_COLUMNS, "weights MB", "disk MB")
    rows = []
    for item in data["contenders"]:
        latency, memory = item["latency"], item.get("memory") or {}
        rows.append(
            (
                item["name"],
                *(f"{1e3 * latency[key]:.4g}" for key in ("p50", "p90", "p99", "min")),
                str(latency["n"]),
                f"{1e3 * item['load_seconds']:.3g}",
                f"{1e3 * item['first_seconds']:.3g}",
                *(_megabytes(memory.get(key)) for key in ("peak_bytes", "arena_bytes", "weights_bytes")),
                _megabytes(item["size_bytes"]),
            )
        )
    return (svg.distributions(drawn) if drawn else "") + table(columns, rows, labels=("",))


def _layers(data: Data) -> str:
    layers, dense = data["layers"], data.get("dense_layers") or []
    if not layers:
        return ""
    bars = [("sparse", [(item["name"], item["seconds"]) for item in layers])]
    if dense:
        bars.append(("dense", [(item["name"], item["seconds"]) for item in dense]))
    before = {item["name"]: item["seconds"] for item in dense}
    codes = {item["reason"]: _code(item["reason"]) for item in layers if item["reason"]}
    legend = "".join(f"<li>{escape(reason)}</li>" for reason in codes)
    columns = ("", "layer", "us", "dense us", "gain", "pattern", "density", "GFLOP/s", "of peak", "kernel", "reason")
    rows = []
    for index, item in enumerate(layers, 1):
        was = before.get(item["name"])
        rows.append(
            (
                str(index),
                item["name"],
                f"{1e6 * item['seconds']:.1f}",
                "" if was is None else f"{1e6 * was:.1f}",
                "" if was is None or not item["seconds"] else f"{was / item['seconds']:.2f}x",
                item["pattern"],
                "" if item["density"] is None else f"{item['density']:.2f}",
                "" if item["gflops"] is None else f"{item['gflops']:.1f}",
                "" if item["peak_share"] is None else f"{100 * item['peak_share']:.0f} %",
                item["kernel"],
                codes.get(item["reason"], ""),
            )
        )
    told = "A run of its own, whose clock calls cost time: the sum may exceed the latency."
    return (
        svg.stacked(bars)
        + table(columns, rows, ("layer", "reason"), ("pattern", "kernel"))
        + _paragraph(told, "quiet")
        + (f'<p class="quiet">Reasons for dense kernels:</p><ul class="quiet">{legend}</ul>' if legend else "")
    )


def _code(reason: str) -> str:
    """The code at the end of a reason, `words [code]`; reasons without one stand as they are."""
    return reason.rpartition("[")[2].removesuffix("]") if reason.endswith("]") else reason


def _roofline(data: Data) -> str:
    points = [
        (index, item["flops"] / item["nbytes"], item["gflops"])
        for index, item in enumerate(data["layers"], 1)
        if item.get("nbytes") and item["gflops"]
    ]
    if not points or not data["peak_gflops"]:
        return ""
    told = (
        "Numbers are those of the layers above. Bytes are the least that a layer must move: its packed weights and "
        "each activation once; operations are those that its kernel really does."
    )
    return svg.roofline(points, data["peak_gflops"], data.get("bandwidth_gbps") or {}) + _paragraph(told, "quiet")


def _masks(data: Data) -> str:
    figures = []
    for item in data.get("masks") or ():
        name = svg.shorten(item["name"], 60)
        words = f"{name}: {item['pattern']}, density {item['density']:.3f}, {item['outputs']} x {item['inputs']}"
        figures.append(
            f"<figure>{svg.grid(item['corner'], 1, f'corner of {name}')}{svg.grid(item['grid'], 9, f'all of {name}')}"
            f"<figcaption>{escape(words)}</figcaption></figure>"
        )
    if not figures:
        return ""
    told = (
        "Outputs downwards, inputs and taps to the right. Above: the first corner, black is a weight that is left. "
        "Below: the whole, the darker the denser."
    )
    return _paragraph(told, "quiet") + f'<div class="masks">{"".join(figures)}</div>'


def _accuracy(data: Data) -> str:
    rows = [(name, f"{value:.4g}") for name, value in (data.get("accuracy") or {}).items()]
    return table(("", "value"), rows, labels=("", "value")) if rows else ""


def _environment(here: Data, data: Data) -> str:
    rows = [(key.replace("_", " "), _plain(value)) for key, value in here.items() if key != "tools"]
    rows += [(f"version of {name}", _plain(value)) for name, value in here["tools"].items()]
    rows += [(f"setting {key.replace('_', ' ')}", _plain(value)) for key, value in data["settings"].items()]
    rows += [
        (f"while measuring: {key.replace('_', ' ')}", _plain(value))
        for key, value in (data.get("conditions") or {}).items()
    ]
    rows += [(f"device {key.replace('_', ' ')}", _plain(value)) for key, value in (data.get("device") or {}).items()]
    rows += [
        (key.replace("_", " "), _plain(data["subject"][key])) for key in ("artifact_sha256", "model_sha256", "recipe")
    ]
    return table(("", "value"), rows, ("", "value")) + _paragraph(f"Schema {data['schema']}.", "quiet")


def _plain(value: Any) -> str:
    if value is None:
        return "not known"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(one)}" for key, one in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.1f}"
