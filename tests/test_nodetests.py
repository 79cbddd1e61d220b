"""ONNX's own operator tests through the compiler: a few always, all of the claimed operators as a long test."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest
from networks import HOST_TARGETS

from edgesparse.nodetests import CLAIMED, DISPUTED, OK, WRONG, Case, Outcome, cases, difference, outcome, table

QUICK = (
    "test_averagepool_2d_ceil",
    "test_constant",
    "test_gelu_tanh_1_expanded",
    "test_gru_bidirectional",
    "test_isinf_positive",
    "test_l2normalization_axis_1",
    "test_layer_normalization_3d_axis1_epsilon",
    "test_lstm_with_peepholes",
    "test_maxpool_2d_ceil",
    "test_mod_broadcast",
    "test_onehot_negative_indices",
    "test_pow_types_float32_int64",
    "test_reduce_max_bool_inputs",
    "test_reduce_min_keepdims_random",
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
