"""The fallback lowering against onnxruntime: op by op, in guarded buffers filled with not-a-number."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from fallback_cases import CASES, QUICK
from native import TARGETS, call, host_target, link, undefined
from onnx import helper, parser

from edgesparse.building.codegen import compile_object
from edgesparse.errors import UnsupportedError
from edgesparse.fallback.relaxed import MAX_POINTERS, Part, lower_subgraph

GUARD = 128


def model_of(text: str, opset: int = 17) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')


def typed(value: onnx.ValueInfoProto) -> tuple[list[int], np.dtype]:
    kind = value.type.tensor_type
    return [dim.dim_value for dim in kind.shape.dim], np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))


def feeds_of(model: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    held = {item.name for item in model.graph.initializer}
    feeds: dict[str, np.ndarray] = {}
    for value in model.graph.input:
        shape, dtype = typed(value)
        if value.name in held:
            continue
        if dtype == np.bool_:
            feeds[value.name] = rng.random(shape) > 0.5
        elif np.issubdtype(dtype, np.integer):
            feeds[value.name] = rng.integers(0, 3, shape).astype(dtype)
        else:
            feeds[value.name] = rng.standard_normal(shape).astype(dtype)
    return feeds


class Guarded:
    """A buffer of 0xff bytes (not-a-number) between two zones that must stay as they are."""

    def __init__(self, nbytes: int) -> None:
        self.whole = np.full(nbytes + 2 * GUARD, 0xA5, np.uint8)
        self.inner = self.whole[GUARD : GUARD + nbytes]
        self.inner[:] = 0xFF

    @property
    def intact(self) -> bool:
        return bool((self.whole[:GUARD] == 0xA5).all() and (self.whole[-GUARD:] == 0xA5).all())


def run(part: Part, library: Any, model: onnx.ModelProto, feeds: dict[str, np.ndarray], pieces: int = 1) -> Any:
    """Call all kernels in order; with `pieces`, each range in that many parts, last part first."""
    guarded = {name: Guarded(size) for name, size in part.buffers.items()}
    for value in model.graph.output:
        shape, dtype = typed(value)
        guarded[value.name] = Guarded(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
    arrays = {**feeds, **{name: np.ascontiguousarray(value) for name, value in part.constants.items()}}
    arrays |= {name: item.inner for name, item in guarded.items()}
    for symbol, names in part.calls:
        edges = [part.extents[symbol] * piece // pieces for piece in range(pieces + 1)]
        for begin, end in reversed(list(itertools.pairwise(edges))):
            if end > begin:
                call(library, symbol, [arrays[name] for name in names], begin, end)
    assert all(item.intact for item in guarded.values())
    results = []
    for value in model.graph.output:
        shape, dtype = typed(value)
        results.append(guarded[value.name].inner.view(dtype).reshape(shape))
    return results


def compare(text: str, opset: int, folder: Path, pieces: int = 1) -> Part:
    model = model_of(text, opset)
    part = lower_subgraph(model, "v_", host_target())
    code = compile_object(part.kernels, host_target())
    assert undefined(code, folder) == []
    feeds = feeds_of(model)
    results = run(part, link([code], folder), model, feeds, pieces)
    expected = ort.InferenceSession(model.SerializeToString()).run(None, feeds)
    for result, wanted in zip(results, expected, strict=True):
        assert result.dtype == wanted.dtype
        # Products here have at most a few hundred terms of size 1: rounding stays under 2e-6 of the largest result.
        exact = wanted.dtype.kind in "biu"
        slack = 0.0 if exact else 2e-6 * max(1.0, float(np.abs(wanted).max()))
        np.testing.assert_allclose(result.astype(np.float64), wanted.astype(np.float64), rtol=0, atol=slack)
    return part


@pytest.mark.parametrize("name", QUICK)
def test_against_onnxruntime(name: str, tmp_path: Path) -> None:
    opset, text = CASES[name]
    compare(text, opset, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in CASES if name not in QUICK])
def test_the_rest_against_onnxruntime(name: str, tmp_path: Path) -> None:
    opset, text = CASES[name]
    compare(text, opset, tmp_path)


@pytest.mark.parametrize(
    "name", ["Softmax -1", "MatMul 19,33 33,61", "Add [6,1,1]", "Pad constant", "LayerNormalization"]
)
def test_ranges_may_be_shared_among_threads(name: str, tmp_path: Path) -> None:
    opset, text = CASES[name]
    part = compare(text, opset, tmp_path, pieces=3)
    assert max(part.extents.values()) > 1


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 15), (3, 16), (5, 17), (4, 31), (4, 33), (7, 100)])
def test_odd_sizes(size: tuple[int, int], tmp_path: Path) -> None:
    rows, columns = size
    shape = f"float[{rows},{columns}]"
    text = (
        f"g ({shape} x, float[{columns},{columns}] w) => ({shape} s, {shape} p) {{ p = MatMul(x, w) s = Softmax(p) }}"
    )
    compare(text, 17, tmp_path)


@pytest.mark.parametrize("level", TARGETS)
def test_no_undefined_symbols_at_any_level(level: str, tmp_path: Path) -> None:
    text = CASES["Gelu"][1].replace("y = Gelu(x)", "a = Gelu(x) b = Tanh(a) c = Round(b) d = Sqrt(x) y = Add(c, d)")
    part = lower_subgraph(model_of(text, 20), "v_", TARGETS[level])
    assert undefined(compile_object(part.kernels, TARGETS[level]), tmp_path) == []


def test_names() -> None:
    text = "g (float[4,8] x) => (float[8,4] y) { a = MatMul(x, w) b = Softmax(a) y = Transpose(b) }"
    model = model_of(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(8, dtype=np.float32), "w"))
    part = lower_subgraph(model, "part7_", host_target())
    assert part.calls[0][1][0] == "x"
    assert part.calls[-1][1][1] == "y"
    assert {*part.buffers, *part.constants} <= {name for _, names in part.calls for name in names}
    assert all(name.startswith("part7_") for name in (*part.buffers, *part.constants))
    assert all(len(names) <= MAX_POINTERS for _, names in part.calls)


def test_equal_kernels_have_one_symbol_and_one_code() -> None:
    texts = [
        "g (float[4,8] x) => (float[4,8] y) { y = Softmax(x) }",
        "g (float[4,8] u) => (float[4,8] v) { v = Softmax(u) }",
    ]
    parts = [lower_subgraph(model_of(text), f"p{i}_", host_target()) for i, text in enumerate(texts)]
    assert list(parts[0].kernels) == list(parts[1].kernels)
    codes = {compile_object(part.kernels, host_target()) for part in parts}
    assert len(codes) == 1


def test_unknown_operator_is_named() -> None:
    head = "(float[5,1,4] x, float[1,12,4] w, float[1,12,3] r) => (float[5,1,1,3] y)"
    text = f"g {head} {{ y = LSTM<hidden_size=3>(x, w, r) }}"
    with pytest.raises(UnsupportedError, match=r"node 'y' \(LSTM\), opset ai.onnx 17"):
        lower_subgraph(model_of(text), "v_", host_target())


def test_operator_left_to_the_runtime_is_named() -> None:
    text = "g (float[4,30] x) => (float[4,5] v, int64[4,5] i) <int64[1] k = {5}> { a = Relu(x) v, i = TopK(a, k) }"
    with pytest.raises(UnsupportedError, match=r"node 'v' \(TopK\).*leaves topk"):
        lower_subgraph(model_of(text), "v_", host_target())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "g (float[8] x) => (uint8[8] y, float s, uint8 z) { y, s, z = DynamicQuantizeLinear(x) }",
            "rounds ties otherwise",
        ),
        (
            "g (float[1,1,8,8] x, float[8] r) => (float[1,1,4,4] y) <float[4] s = {1.0, 1.0, 0.5, 0.5}>"
            ' { y = Resize<coordinate_transformation_mode="tf_crop_and_resize">(x, r, s) }',
            "its roi is not constant",
        ),
        (
            "g (float[1,1,8,8] x) => (float[1,1,8,8] y) <float[8] r = {0, 0, 0, 0, 1, 1, 0.5, 0.5},"
            " int64[4] n = {1, 1, 8, 8}>"
            ' { y = Resize<coordinate_transformation_mode="tf_crop_and_resize">(x, r, , n) }',
            "copied whole by onnxruntime",
        ),
    ],
)
def test_what_would_come_out_wrong_is_refused(text: str, why: str) -> None:
    with pytest.raises(UnsupportedError, match=why):
        lower_subgraph(model_of(text), "v_", host_target())


def test_tvm_does_not_speak(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnsupportedError):
        lower_subgraph(model_of("g (float[4] x, int64[2] p) => (float[6] y) { y = Pad(x, p) }"), "v_", host_target())
    lower_subgraph(model_of(CASES["GatherND"][1]), "v_", host_target())
    assert capfd.readouterr() == ("", "")


def test_open_shape_is_named() -> None:
    with pytest.raises(UnsupportedError, match="value 'x' has no static shape"):
        lower_subgraph(model_of("g (float[N,8] x) => (float[N,8] y) { y = Relu(x) }"), "v_", host_target())
