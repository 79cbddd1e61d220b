"""The forms in which a sparse k x k convolution finds its pixels: their offsets, their numbers, and who chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import HOST_TARGETS, check_against_onnx, slide, taking_form, windows_network

from edgesparse.artifacts.artifact import open_artifact
from edgesparse.costing.costs import counted
from edgesparse.costing.forecast import forecast, placed_as, read_product
from edgesparse.graph.recognise import recognise
from edgesparse.kernels.window import Window
from edgesparse.passes import model_from_proto
from edgesparse.planning import tune
from edgesparse.planning.gathering import PADDED, PANEL, SHIFTED, Gathering
from edgesparse.planning.packing import pack
from edgesparse.planning.place import Jobs, place
from edgesparse.planning.plan import plan
from edgesparse.planning.products import Product, job_of
from edgesparse.target import Target

V4 = Target.parse("x86-64-v4")
FORMS = (PANEL, SHIFTED, PADDED)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_tap_is_found_where_its_offset_says(data: st.DataObject) -> None:
    def pair(low: int, high: int) -> tuple[int, int]:
        return data.draw(st.integers(low, high)), data.draw(st.integers(low, high))

    kernel, stride, dilation = pair(1, 4), pair(1, 3), pair(1, 3)
    size = pair(max(kernel[0], kernel[1]) * 3, 20)
    pads = tuple(data.draw(st.integers(0, 3)) for _ in range(4))
    height, width = slide(size, kernel, stride, dilation, pads)
    rows = data.draw(st.integers(1, height))
    first = data.draw(st.integers(0, height - rows))
    channels = 3
    window = Window(kernel, stride, dilation, pads[0], pads[1], size[1], width, rows)
    where = Gathering(window, data.draw(st.sampled_from(FORMS)))

    rng = np.random.default_rng(0)
    image = rng.standard_normal((channels, *size)).astype(np.float32)
    # The gathering kernel by its definition: a row of the block for each (channel, tap) of the copied window.
    top = window.first_row(first)
    taken = np.zeros((channels, window.rows_in, size[1]), np.float32)
    for at in range(window.rows_in):
        if 0 <= top + at < size[0]:
            taken[:, at] = image[:, top + at]
    taken = taken[:, list(where.order)]
    copied = where.copied
    far = [(0, 0), (0, 0), (copied.left, copied.width_out * copied.stride[1] + 20)]
    wide = np.pad(taken, far)
    block = np.full((channels * len(copied.taps), where.pitch), np.nan, np.float32)
    for row in range(copied.rows):
        for tap, (ky, kx) in enumerate(copied.taps):
            begin = kx * copied.dilation[1]
            line = wide[:, row * copied.stride[0] + ky * copied.dilation[0], begin:][:, :: copied.stride[1]]
            place = slice(row * copied.width_out, (row + 1) * copied.width_out)
            block[tap :: len(copied.taps), place] = line[:, : copied.width_out]

    (part,) = pack(np.ones((1, channels * len(window.taps)), np.float32), 1)
    offsets = where.offsets(part)[: part.nnz].reshape(channels, *kernel)
    padded = np.pad(image, [(0, 0), (pads[0] + 40, 40), (pads[1], pads[3] + 40)])
    flat = block.reshape(-1)
    for ky in range(kernel[0]):
        for kx in range(kernel[1]):
            wanted = padded[:, 40 + first * stride[0] + ky * dilation[0] :][:, :: stride[0]][:, :rows]
            wanted = wanted[:, :, kx * dilation[1] :][:, :, :: stride[1]][:, :, :width].reshape(channels, -1)
            for channel in range(channels):
                begins = [int(offsets[channel, ky, kx]) + where.start(call) for call in range(where.calls)]
                found = np.concatenate([flat[begin : begin + where.pixels] for begin in begins])
                np.testing.assert_array_equal(found, wanted[channel])
    # what the taps of a channel read, against the places themselves
    pixels = data.draw(st.integers(1, where.pixels))
    places = {int(at) + pixel for at in offsets[0].reshape(-1) for pixel in range(pixels)}
    assert where.inputs(len(window.taps), pixels) == -(-len(places) // pixels)


@pytest.mark.parametrize("target", [HOST_TARGETS[0], HOST_TARGETS[-1]], ids=lambda target: target.name)
@pytest.mark.parametrize(("form", "threads"), [(PANEL, 1), (SHIFTED, 1), (SHIFTED, 2), (PADDED, 1), (PADDED, 3)])
def test_a_network_in_each_form(form: str, threads: int, target: Target, tmp_path: Path) -> None:
    check_against_onnx(windows_network(), tmp_path, target, 2e-6, measure=taking_form(form), threads=threads)
    layers = open_artifact(tmp_path / "artifact").manifest.layers
    products = [read_product(str(layer["kernel"])) for layer in layers]
    assert [product.form for product in products if product] == [form] * 8


def test_the_cost_model_prices_the_forms_and_measuring_meets_all_of_them() -> None:
    graph = recognise(model_from_proto(windows_network()))
    layout = plan(graph, V4)
    met: dict[str, set[str]] = {}

    def measure(jobs: Jobs) -> dict[str, list[float]]:
        met.update({name: {each.form for each in products} for name, (_, products) in jobs.items()})
        return {name: [1.0] * len(products) for name, (_, products) in jobs.items()}

    place(graph, layout, V4, measure=measure)
    assert list(met.values()) == [set(FORMS)] * 8
    placed = place(graph, layout, V4)
    told = {}
    for form in FORMS:
        ways = place(graph, layout, V4, measure=taking_form(form))
        told[form] = forecast(graph, layout, ways, V4, counted())
        records = [ways[op.name].record() for op in graph.ops]
        assert all(placed_as(graph, layout, V4, records)[op.name].product == ways[op.name].product for op in graph.ops)
    for op in graph.ops[:3]:  # 3x3 with stride 1: each pixel lies in a panel nine times, three times or once
        gathered = [told[form][op.name].parts["gather"] for form in FORMS]
        assert gathered[0] > gathered[1] > gathered[2] > 0
        assert told[SHIFTED][op.name].time < told[PANEL][op.name].time
        product = placed[op.name].product
        assert product is not None
        assert product.form == SHIFTED, "rows of 36 pixels fill three vectors badly one by one"


def test_dense_layers_read_panels() -> None:
    graph = recognise(model_from_proto(windows_network()))
    placed = place(graph, plan(graph, V4), V4, dense=True)
    assert {each.product.form for each in placed.values() if each.product} == {PANEL}


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_is_timed_with_its_gathering(form: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = recognise(model_from_proto(windows_network()))
    job = job_of(graph.ops[0], plan(graph, HOST_TARGETS[-1]))
    assert job is not None
    called: list[str] = []
    seconds = tune._seconds

    def watched(calls: tune.Calls, share: int = 1) -> float:
        called.extend(function.__name__ for function, _, _ in calls)
        return seconds(calls, share)

    monkeypatch.setattr(tune, "_seconds", watched)
    found = tune.measure_products({"layer": (job, [Product(4, 2, False, form)])}, HOST_TARGETS[-1])
    assert found["layer"][0] > 0
    where = job.gathering(form)
    gathered = called.count(f"es_panel_f32_{where.copied.name}_{HOST_TARGETS[-1].lanes}")
    assert gathered
    assert len(called) == gathered * (1 + 1 * where.calls * (24 // 4 > 0))


def test_words_of_the_forms_are_read_back() -> None:
    for form in FORMS:
        product = Product(8, 3, False, form)
        assert read_product(str(product)) == product
    assert str(Product(8, 3, False, PADDED)) == "padded group:8 tile 3"
    assert read_product("folded group:8 tile 3") is None


def test_offsets_beyond_32_bits_are_refused() -> None:
    weight: Any = np.zeros((1, 9 * 3000000), np.float32)
    weight[0, -1] = 1
    (part,) = pack(weight, 1)
    with pytest.raises(OverflowError, match="32 bits"):
        Gathering(Window((3, 3), (1, 1), (1, 1), 1, 1, 512, 512, 4)).offsets(part)
