"""ONNX's own operator tests through the compiler: a few always, all of the claimed operators as a long test."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import HOST_TARGETS

from edgesparse.nodetests import CLAIMED, DISPUTED, OK, WRONG, Case, Outcome, cases, difference, outcome, table

PAGE = Path(__file__).parents[1] / "docs" / "operators.md"

QUICK = (
    "test_averagepool_2d_ceil",
    "test_constant",
    "test_convtranspose_output_shape",
    "test_div_int32_trunc",
    "test_gelu_tanh_1_expanded",
    "test_gru_bidirectional",
    "test_isinf_positive",
    "test_l2normalization_axis_1",
    "test_layer_normalization_3d_axis1_epsilon",
    "test_lstm_with_peepholes",
    "test_maxpool_2d_ceil",
    "test_mod_broadcast",
    "test_mvn",
    "test_not_2d",
    "test_onehot_negative_indices",
    "test_pow_types_float32_int64",
    "test_pow_types_int32_float32",
    "test_range_float_type_positive_delta",
    "test_reduce_max_bool_inputs",
    "test_reduce_min_keepdims_random",
    "test_resize_tf_crop_and_resize_extrapolation_value",
    "test_resize_upsample_sizes_nearest_not_larger",
    "test_top_k_smallest",
)


@cache
def found() -> dict[str, Case]:
    return {case.name: case for case in cases()}


@pytest.mark.parametrize("name", QUICK)
def test_quick(name: str) -> None:
    assert outcome(found()[name], HOST_TARGETS[-1]).status == OK


def test_training_is_refused_by_name() -> None:
    told = outcome(found()["test_training_dropout_default"], HOST_TARGETS[-1])
    assert (told.status, "(Dropout) is set to training_mode" in told.reason) == ("refused", True)


def test_where_onnx_and_onnxruntime_differ_is_told() -> None:
    told = outcome(found()["test_resize_downsample_scales_linear_align_corners"], HOST_TARGETS[-1])
    assert told.status == DISPUTED


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ([1.0, np.nan], [1.0005, np.nan], True),
        ([1.0], [1.01], False),
        ([np.inf], [np.inf], True),
        ([np.inf], [-np.inf], False),
        ([0.0], [np.nan], False),
    ],
)
def test_difference(a: list[float], b: list[float], same: bool) -> None:
    found_one, wanted = np.array(a, np.float32), np.array(b, np.float32)
    assert (difference(found_one, wanted, 1e-3, 1e-7) == "") == same
    assert difference(found_one, wanted[None], 1e-3, 1e-7)
    assert difference(found_one, wanted.astype(np.float64), 1e-3, 1e-7)


def test_the_page_counts_and_gives_reasons() -> None:
    rows = [
        Outcome("a", "Relu", "ok", "", True, False),
        Outcome("b", "Relu", "refused", "input x: its type is STRING (export as float32)", False, False),
        Outcome("c", "Loop", "refused", "node: no", True, False),
    ]
    page = table(rows)
    assert "| Relu | 1 / 1 | 0 / 1 | 1 x the type is not taken |" in page
    assert "**1 of 1 plain tests" in page
    assert "Refused, each by one error that names it: Loop." in page


@pytest.mark.long
def test_all_of_the_claimed_operators() -> None:
    rows = [outcome(case, HOST_TARGETS[-1]) for case in found().values() if case.op in CLAIMED and case.plain]
    counts = Counter(row.status for row in rows)
    assert counts[WRONG] == 0
    assert counts["failed"] == 0
    assert counts[OK] >= 0.95 * len(rows)


def test_the_page_lists_every_test_of_the_claimed_operators() -> None:
    """docs/operators.md as the command writes it: all claimed operators with all of their tests, and how many pass."""
    if f"(onnx {onnx.__version__})" not in PAGE.read_text():
        pytest.skip("the page was made with another version of ONNX and its tests")
    rows = re.findall(r"^\| (\w+) \| (?:(\d+) / (\d+))? ?\| (?:(\d+) / (\d+))? ?\|", PAGE.read_text(), re.MULTILINE)
    mine = [case for case in found().values() if case.op in CLAIMED]
    told = {op: (int(plain or 0), int(others or 0)) for op, _, plain, _, others in rows}
    assert told == {
        op: (sum(case.op == op and case.plain for case in mine), sum(case.op == op and not case.plain for case in mine))
        for op in {case.op for case in mine}
    }
    passed = sum(int(count or 0) for _, count, *_ in rows)
    of = sum(plain for plain, _ in told.values())
    assert f"**{passed} of {of} plain tests of the claimed operators pass" in PAGE.read_text()
    assert passed >= 0.95 * of
