"""Tuning: measured once and remembered, the same choice for the same times, failures told with the layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import HOST_TARGETS

from edgesparse.errors import CompileError
from edgesparse.kernels import Epilogue, Spmm
from edgesparse.planning import tune
from edgesparse.planning.products import Job, Product

TARGET = HOST_TARGETS[-1]


def job(residual: str = "none", seed: int = 0) -> tuple[Job, list[Product]]:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((19, 12)) * (rng.random((19, 12)) < 0.3)).astype(np.float32)
    return Job(weight, 20, 3, Epilogue("relu", (), residual)), [Product(4, 1, False), Product(8, 1, True)]


def test_the_second_time_comes_from_the_cache(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = {"first": job(), "second": job("after")}
    found = tune.measure_products(jobs, TARGET)
    assert list(found) == ["first", "second"]
    assert all(len(times) == 2 and min(times) > 0 for times in found.values())

    def never(*arguments: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(tune, "_library", never)
    assert tune.measure_products(jobs, TARGET) == found
    renamed = tune.measure_products({"other": jobs["first"]}, TARGET)
    assert renamed == {"other": found["first"]}, "the key is what was measured, not its name"
    for changed in (job(seed=1), (jobs["first"][0], [Product(4, 2, False), Product(8, 1, True)])):
        with pytest.raises(AssertionError, match="measured again"):
            tune.measure_products({"first": changed}, TARGET)


def test_a_kernel_that_cannot_be_built_is_told_with_its_layer(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Spmm) -> Any:
        raise ValueError("boom")

    monkeypatch.setattr(Spmm, "build", broken)
    with pytest.raises(CompileError, match=r"layer 'first': cannot build kernel es_spmm.*boom"):
        tune.measure_products({"first": job()}, TARGET)
