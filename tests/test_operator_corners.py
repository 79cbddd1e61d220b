"""Corners of operators: powers of integers, windows beyond a picture, sizes that set the pads, old opsets."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from networks import HOST_TARGETS
from onnx import parser

from edgesparse.errors import UnsupportedError
from edgesparse.nodetests import OK, Case, outcome
from edgesparse.passes.untrusted import check_proto


def status(text: str, inputs: list[np.ndarray], wanted: np.ndarray | None = None, opset: int = 18) -> tuple[str, str]:
    """Compile and run a graph against `wanted`, or else onnxruntime."""
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    if wanted is None:
        import onnxruntime

        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        names = [value.name for value in model.graph.input]
        wanted = np.asarray(session.run(None, dict(zip(names, inputs, strict=True)))[0])
    told = outcome(Case("it", "it", model, tuple(inputs), (wanted,), 1e-5, 1e-5, True, False), HOST_TARGETS[-1])
    return told.status, told.reason


BASES = [2, 3, -3, 7, 0, -1, 1, -1, 5, 0, -2, 2, 9, -7, 1, -1, 2]
EXPONENTS = [10, 5, 3, 11, 0, 64, 200, -3, -1, 3, 31, -2, 0, 1, -64, 101, 62]


def test_whole_powers_are_exact() -> None:
    def power(base: int, exponent: int) -> int:
        return int(base**exponent) if exponent >= 0 else {1: 1, -1: (-1) ** (exponent % 2)}.get(base, 0)

    x, y = np.array(BASES, np.int64), np.array(EXPONENTS, np.int64)
    wanted = np.array([power(base, exponent) for base, exponent in zip(BASES, EXPONENTS, strict=True)], np.int64)
    assert status("g (int64[17] x, int64[17] y) => (int64[17] z) { z = Pow(x, y) }", [x, y], wanted) == (OK, "")


def test_powers_of_integers_with_fractions_are_truncated() -> None:
    x = np.array([4, 9, 100, 16, 3, 1001, 7, 3, 5, 81, 5, -5], np.int32)
    y = np.array([0.5, 0.5, 1.5, 2.5, 10, 1 / 3, 2.7, 19, 13, 0.25, -1, 3], np.float32)
    wanted = np.array([2, 3, 1000, 1024, 59049, 10, 191, 3**19, 5**13, 3, 0, -125], np.int64)
    kept = wanted < 2**31
    x, y, wanted = x[kept], y[kept], wanted[kept].astype(np.int32)
    text = f"g (int32[{len(x)}] x, float[{len(x)}] y) => (int32[{len(x)}] z) {{ z = Pow(x, y) }}"
    assert status(text, [x, y], wanted) == (OK, "")


@pytest.mark.parametrize(("mode", "size"), [("linear", "3,4"), ("nearest", "1,9")])
def test_windows_that_leave_the_picture(mode: str, size: str) -> None:
    x = np.random.default_rng(0).standard_normal((1, 2, 5, 7)).astype(np.float32)
    held = f"<float[8] r = {{0, 0, 0.8, -0.1, 1, 1, 0.1, 0.7}}, int64[4] n = {{1, 2, {size}}}>"
    options = f'mode="{mode}", coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=2.5'
    assert status(
        f"g (float[1,2,5,7] x) => (float[1,2,{size}] y) {held} {{ y = Resize<{options}>(x, r, , n) }}", [x]
    ) == (
        OK,
        "",
    )


@pytest.mark.parametrize(("size", "pads"), [("10,11", ""), ("8,9", ', auto_pad="SAME_UPPER"'), ("8,9", "")])
def test_transposed_convolution_of_a_given_size(size: str, pads: str) -> None:
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 2, 4, 5), (2, 3, 3, 4)))
    op = f"ConvTranspose<strides=[2,2], output_shape=[{size}]{pads}>"
    assert status(f"g (float[1,2,4,5] x, float[2,3,3,4] w) => (float[1,3,{size}] y) {{ y = {op}(x, w) }}", [x, w]) == (
        OK,
        "",
    )


def old(text: str, opset: int) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 3, opset_import: ["" : {opset}]> {text}')


def test_old_opsets_are_read_where_they_say_the_same() -> None:
    same = old("g (float[4] x) => (float[4] y) { y = Relu(x) }", 6)
    check_proto(same)
    assert same.opset_import[0].version == 7
    with pytest.raises(UnsupportedError, match="opset 6"):
        check_proto(old("g (float[4] x, float[4] z) => (float[4] y) { y = Add(x, z) }", 6))
    with pytest.raises(UnsupportedError, match="opset 5"):
        check_proto(old("g (float[4] x) => (float[4] y) { y = Relu(x) }", 5))
