"""Reports to read: the JSON against its schema, the page, its charts, masks, node data for Model Explorer."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest

from edgesparse.errors import EdgesparseError, UsageError
from edgesparse.measuring import svg
from edgesparse.measuring.bench import Measured, Plan, conclude
from edgesparse.measuring.conditions import Conditions
from edgesparse.measuring.explorer import layer_nodes, node_data
from edgesparse.measuring.masks import mask_pictures, picture
from edgesparse.measuring.memory import Memory
from edgesparse.measuring.page import bench_page
from edgesparse.measuring.report import LayerTime, Report, as_json, layer_bytes
from edgesparse.measuring.schema import bench_schema, faults, read_report
from edgesparse.measuring.stats import Samples, summarize

NASTY = '<script>alert("x")</script>&\'"'

ENVIRONMENT: dict[str, Any] = {
    "cpu": "Maker X1",
    "architecture": "x86_64",
    "features": ["avx2"],
    "cores": 4,
    "cores_allowed": 2,
    "governor": None,
    "frequency_mhz": 2400.0,
    "temperature_c": None,
    "virtual": False,
    "os": "Linux 6.1",
    "load_1min": 0.5,
    "python": "3.11.2",
    "tools": {"onnxruntime": "1.20.0", "apache-tvm": None},
}


def measured(name: str, seconds: float, seed: int, drift: float = 0.0) -> Measured:
    rng = np.random.default_rng(seed)
    times = seconds * np.exp(0.02 * rng.standard_normal((40, 2, 3))) * np.linspace(1, 1 + drift, 40)[:, None, None]
    samples = Samples(name, tuple(tuple(tuple(map(float, turn)) for turn in block) for block in times))
    return Measured(samples, summarize(samples), 0.01, 2 * seconds, True, 21, 3)


def made(name: str = "edgesparse", *, drift: float = 0.0, sparse: float = 1e-3, seed: int = 0) -> Report:
    """A report of two contenders, five times apart."""
    found = [measured(name, sparse, seed, drift), measured("onnxruntime", 5e-3, seed + 1, drift)]
    layers = (
        LayerTime(f"conv {name}", 4e-4, 2e7, "group:4 tile 3", "group:4x1", 0.25, "because", 40_000),
        LayerTime("pool", 1e-5, 0.0, "pool", reason="has no weights"),
    )
    dense = (
        LayerTime(f"conv {name}", 1.6e-3, 8e7, "dense:8 tile 3", "dense", 1.0),
        LayerTime("pool", 1e-5, 0.0, "pool"),
    )
    weight = np.kron(np.random.default_rng(0).random((16, 64)) < 0.25, np.ones((4, 1)))[:, :, None]
    return Report(
        conclude(Plan(), found, cores=(1,), notes=("ended early",), conditions=Conditions(None, (2400.0, 1700.0))),
        {
            "artifact": name,
            "artifact_sha256": "0" * 64,
            "model_sha256": None,
            "target": "x86-64-v3",
            "recipe": {"pattern": "group:4x1"},
            "info": {},
        },
        ENVIRONMENT,
        {name: Memory(2_000_000, 30_000_000, 500_000, 1_000_000)},
        {name: 3_000_000},
        layers,
        100.0,
        dense_layers=dense,
        bandwidth={"L2": 60.0, "memory": 10.0},
        masks=(picture(weight, name, "group:4x1", 0.25),),
        accuracy={name: 0.712},
    )


def plain(report: Report) -> dict[str, Any]:
    return dict(json.loads(json.dumps(as_json(report), allow_nan=False)))


def test_the_json_keeps_its_schema() -> None:
    data = plain(made())
    jsonschema.Draft202012Validator.check_schema(bench_schema())
    jsonschema.Draft202012Validator(bench_schema()).validate(data)
    assert faults(data, bench_schema()) == []
    known = bench_schema()["properties"]
    assert set(data) == set(known), "every field is described"
    for part, rule in (("contenders", known["contenders"]["items"]), ("layers", bench_schema()["$defs"]["layer"])):
        assert set(data[part][0]) == set(rule["properties"])
    assert set(data["contenders"][0]["memory"]) == set(
        known["contenders"]["items"]["properties"]["memory"]["properties"]
    )


def test_every_field_is_documented() -> None:
    text = (Path(__file__).parent.parent / "docs" / "report-schema.md").read_text(encoding="utf-8")

    def names(schema: dict[str, Any]) -> set[str]:
        found = set(schema.get("properties", ()))
        for part in (*schema.get("properties", {}).values(), *schema.get("$defs", {}).values()):
            found |= names(part)
        return found | (names(schema["items"]) if "items" in schema else set())

    for name in names(bench_schema()):
        assert f"`{name}`" in text or f"`{name}[]`" in text, name


BREAKS: tuple[tuple[tuple[Any, ...], Any, str], ...] = (
    (("schema",), "edgesparse.bench/2", "schema"),
    (("contenders",), [], "contenders has 0 items"),
    (("contenders", 0, "latency", "p50"), 0, "contenders[0].latency.p50 is 0, which is too small"),
    (("contenders", 0, "latency", "p50"), True, "contenders[0].latency.p50 is true, not number"),
    (("contenders", 0, "name"), None, "contenders[0].name is null, not string"),
    (("contenders", 0, "block_seconds", 3), -1.0, "contenders[0].block_seconds[3] is -1.0, which is too small"),
    (("contenders", 0, "memory"), 5, "contenders[0].memory is 5, not object or null"),
    (("comparisons", 0, "verdict"), "great", 'comparisons[0].verdict is "great", not one of'),
    (("layers", 0, "density"), 1.5, "layers[0].density is 1.5, which is too large"),
    (("masks", 0, "corner", 0), "012", "which does not match"),
    (("settings", "threads"), 1.5, "settings.threads is 1.5, not integer"),
    (("accuracy", "edgesparse"), "high", "accuracy.edgesparse"),
)


@pytest.mark.parametrize(("path", "value", "message"), BREAKS)
def test_what_breaks_the_schema_is_named(path: tuple[Any, ...], value: Any, message: str, tmp_path: Path) -> None:
    data = plain(made())
    part = data
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    assert not jsonschema.Draft202012Validator(bench_schema()).is_valid(data), "the public validator agrees"
    [fault] = faults(data, bench_schema())
    assert message in fault
    file = tmp_path / "r.json"
    file.write_text(json.dumps(data))
    with pytest.raises(UsageError, match=r"is damaged|is no bench report"):
        read_report(file)


def test_a_missing_field_is_named() -> None:
    data = plain(made())
    del data["contenders"][0]["latency"]["p90"]
    assert not jsonschema.Draft202012Validator(bench_schema()).is_valid(data)
    assert faults(data, bench_schema()) == ["contenders[0].latency.p90 is missing"]


@pytest.mark.parametrize("text", ["", "[]", "nonsense", '{"schema": "x"}', '{"schema": NaN}', "[" * 100_000, "\x00"])
def test_files_that_are_no_reports(text: str, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"is not JSON|is no bench report"):
        read_report(file)
    with pytest.raises(EdgesparseError, match="cannot read"):
        read_report(tmp_path / "none.json")


class Reader(HTMLParser):
    """Collects what a browser would see: tags, the text, and every attribute."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(key, value or "") for key, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_tells_everything() -> None:
    page = bench_page(plain(made()))
    seen = Reader(page)
    for words in (
        "5.0",
        "faster",
        "over onnxruntime",
        "ended early",
        "group:4 tile 3",
        "4.00x",
        "because",
        "0.712",
        "Maker X1",
        "1.20.0",
        "not known",
        "peak 100 GFLOP/s",
        "memory 10 GB/s",
        "arena MB",
        "density 0.250",
    ):
        assert words in seen.words, words
    assert seen.tags.count("svg") == 6
    assert "@media print" in page


def test_the_page_holds_nothing_from_elsewhere() -> None:
    page = bench_page(plain(made(NASTY)))
    seen = Reader(page)
    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(seen.tags)
    assert NASTY in seen.words, "escaped, it reads as it is"
    for key, value in seen.attributes:
        assert not key.startswith("on")
        assert not re.search(r"https?:|//|javascript:|url\(", value), (key, value)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in seen.attributes
    assert "@import" not in page
    assert "url(" not in page


def test_the_page_reads_without_colour() -> None:
    """Every shade is a grey."""
    page = bench_page(plain(made()))
    for red, green, blue in re.findall(r"rgb\((\d+),(\d+),(\d+)\)", page):
        assert red == green == blue
    for shade in re.findall(r"#([0-9a-f]{3,6})\b", page):
        parts = list(shade) if len(shade) == 3 else [shade[i : i + 2] for i in (0, 2, 4)]
        assert len(set(parts)) == 1, shade


def test_drawings_are_well_formed_and_inside_of_their_boxes() -> None:
    page = bench_page(plain(made(NASTY)))
    drawings = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(drawings) == 6
    for drawing in drawings:
        root = ET.fromstring(drawing)
        assert root.find("title") is not None
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        for item in root.iter():
            for key in ("x", "x1", "x2", "cx"):
                assert -1 <= float(item.get(key, 0)) <= width + 1, (item.tag, item.attrib)
            for key in ("y", "y1", "y2", "cy"):
                assert -1 <= float(item.get(key, 0)) <= height + 1, (item.tag, item.attrib)


def test_an_unstable_bench_says_so_on_the_page() -> None:
    page = Reader(bench_page(plain(made(drift=0.4)))).words
    assert "Unstable" in page
    assert "throttling: all became slower alike" in page
    assert "2400 to 1700 MHz" in page
    assert "Unstable" not in Reader(bench_page(plain(made()))).words


def test_a_page_of_little(tmp_path: Path) -> None:
    """A report of version 1 without what was added later."""
    data = plain(made())
    schema = bench_schema()
    optional = set(schema["properties"]) - set(schema["required"])
    assert optional
    for key in optional:
        del data[key]
    rule = schema["properties"]["contenders"]["items"]
    for key in set(rule["properties"]) - set(rule["required"]):
        del data["contenders"][0][key], data["contenders"][1][key]
    data |= {"layers": [], "comparisons": [], "notes": [], "peak_gflops": None}
    (tmp_path / "r.json").write_text(json.dumps(data))
    page = bench_page(read_report(tmp_path / "r.json"))
    assert "<h2>Latency" in page
    assert "<h2>Speedup" not in page


def test_positions_on_a_logarithmic_axis() -> None:
    scale = svg.LogScale(1, 100, 0, 200)
    assert [scale(value) for value in (1, 10, 100, 1000, 0.1)] == pytest.approx([0, 100, 200, 200, 0])
    assert svg.log_ticks(0.5, 20) == pytest.approx([0.5, 1, 2, 5, 10, 20])
    assert svg.shorten("a" * 50, 20) == "a" * 8 + ".." + "a" * 10


def test_layers_that_lie_on_each_other_share_a_label() -> None:
    drawn = svg.roofline([(1, 1.0, 50.0), (2, 1.01, 50.5), (7, 1.0, 5.0), (12, 9.9, 99.0)], 100.0, {"memory": 10.0})
    labels = {
        item.text: item.get("text-anchor")
        for item in ET.fromstring(drawn).iter("text")
        if item.get("font-size") == "10"
    }
    assert labels == {"1 2": "start", "7": "start", "12": "start"}
    crowd = svg.roofline([(index, 10.0, 60.0) for index in range(20, 29)], 100.0, {})
    assert '<text x="' in crowd
    assert 'text-anchor="end" font-size="10"' in crowd, "what would pass the edge stands to the left"


def test_short_bars_stand_stretched_below() -> None:
    root = ET.fromstring(svg.stacked([("sparse", [("a", 1.0), ("b", 1.0)]), ("dense", [("a", 6.0), ("b", 2.0)])]))
    wide = [float(item.get("width", 0)) for item in root.iter("rect")]
    assert wide[0] + wide[1] == pytest.approx((wide[2] + wide[3]) / 4, rel=1e-3)
    assert wide[4] == pytest.approx((wide[2] + wide[3]) / 2, rel=1e-3)
    words = [item.text for item in root.iter("text")]
    assert "sparse, stretched" in words
    assert "4.00 times" in words
    alike = ET.fromstring(svg.stacked([("sparse", [("a", 5.0)]), ("dense", [("a", 6.0)])]))
    assert len(list(alike.iter("rect"))) == 2


def test_reasons_stand_once_below_the_layers() -> None:
    data = plain(made())
    data["layers"] = [{**data["layers"][0], "name": f"l{index}", "reason": "too dense [why]"} for index in range(3)]
    page = Reader(bench_page(data)).words
    assert page.count("too dense") == 1
    assert page.count("why") == 4


def test_a_mask_is_pictured() -> None:
    weight = np.zeros((100, 200, 1))
    weight[:50, :100] = 1
    found = picture(weight, "w", "block:50x100", 0.25)
    assert (len(found["corner"]), set(found["corner"])) == (48, {"1" * 48})
    grid = np.array([[int(cell) for cell in row] for row in found["grid"]])
    assert grid.shape == (32, 32)
    assert (grid[:15, :15] == 9).all()
    assert (grid[17:, :] == 0).all()
    small = picture(np.array([[[1.0, 0.0]], [[0.0, 2.0]]]), "s", "unstructured", 0.5)
    assert (small["corner"], small["grid"], small["inputs"]) == (["10", "01"], ["90", "09"], 2)


def test_masks_of_a_model(model: Path) -> None:
    [found] = mask_pictures(model)
    assert (found["name"], found["outputs"], found["inputs"]) == ("first", 8, 16)
    assert found["density"] == pytest.approx(0.3, abs=0.02)
    assert "".join(found["corner"]).count("1") == round(found["density"] * 128)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    rows = ", ".join("1" if i % 10 < 3 else "0" for i in range(16 * 8))
    text = f"""<ir_version: 9, opset_import: ["" : 18]>
        net (float[4,16] x) => (float[4,8] y) <float[16,8] w = {{{rows}}}> {{
            [first] h = MatMul(x, w)
            [second] y = Relu(h) }}"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_node_data_names_the_nodes(model: Path) -> None:
    records = [{"name": "first", "nodes": ["first", "second"]}, {"name": "both", "nodes": ["second"]}, {"name": "gone"}]
    nodes, graph = layer_nodes(records, model)
    assert (nodes, graph) == ({"first": "first", "both": "second"}, "net")
    layers = [LayerTime("first", 1.5e-6, 0.0, "k"), LayerTime("both", 2e-6, 0.0, "k"), LayerTime("gone", 1.0, 0.0, "k")]
    data = node_data(layers, nodes, graph)
    assert data == {
        "net": {
            "results": {"first": {"value": 1.5}, "second": {"value": 2.0}},
            "gradient": [{"stop": 0, "bgColor": "#ffffff"}, {"stop": 1, "bgColor": "#e8710a"}],
        }
    }


#: The fields of Model Explorer's files of node data and their types, as `node_data_builder.py` of its package
#: ai-edge-model-explorer 0.1.34 declares them. Other fields make its classes fail.
NODE_DATA = {
    "graph": {
        "results": dict,
        "name": str,
        "thresholds": list,
        "gradient": list,
        "hideInAggregatedStatsTable": bool,
        "hideInChildrenStatsTable": bool,
        "hideAggregatedStats": list,
        "showExpandedSummaryOnGroupNode": bool,
        "showLabelCountColumnsInChildrenStatsTable": bool,
    },
    "result": {"value": (int, float), "bgColor": str, "textColor": str},
    "gradient": {"stop": (int, float), "bgColor": str, "textColor": str},
}


def test_node_data_is_of_the_documented_format(model: Path) -> None:
    """Every field is one that Model Explorer knows, of its type; those without a default are there."""

    def check(kind: str, value: dict[str, Any], needed: str) -> None:
        assert needed in value
        for key, each in value.items():
            assert isinstance(each, NODE_DATA[kind][key]), key  # type: ignore[arg-type]
            assert not isinstance(each, bool) or NODE_DATA[kind][key] is bool

    nodes, graph = layer_nodes([{"name": "first"}, {"name": "second"}], model)
    layers = [LayerTime(name, seconds, 0.0, "k") for name, seconds in (("first", 1.5e-6), ("second", 1e-3))]
    data = json.loads(json.dumps(node_data(layers, nodes, graph), allow_nan=False))
    assert list(data) == [onnx.load(model).graph.name]
    ids = {node.name for node in onnx.load(model).graph.node}
    for found in data.values():
        check("graph", found, "results")
        assert found["results"].keys() <= ids
        for result in found["results"].values():
            check("result", result, "value")
        for stop in found["gradient"]:
            check("gradient", stop, "stop")
        stops = [stop["stop"] for stop in found["gradient"]]
        assert (stops[0], stops[-1]) == (0, 1), "those for 0 and 1 should always be provided"
        assert stops == sorted(stops)


def test_the_least_bytes_of_a_layer() -> None:
    """By hand: 64 outputs, 32 inputs, 100 pixels: 1,000 bytes packed, 96 planes of 100 floats."""
    record = {"macs": 64 * 32 * 100, "shape": [64, 32, 1], "bytes": 1000, "kind": "conv1x1"}
    assert layer_bytes(record) == 1000 + 4 * 96 * 100
    depthwise = {"macs": 8 * 9 * 100, "shape": [8, 1, 9], "bytes": 288, "kind": "depthwise"}
    assert layer_bytes(depthwise) == 288 + 4 * 16 * 100
    assert layer_bytes({"macs": 0, "shape": None}) is None
