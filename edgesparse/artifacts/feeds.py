"""Inputs for a model that nobody gave inputs for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgesparse.artifacts.manifest import TensorInfo


def random_feeds(inputs: Sequence[TensorInfo], seed: int = 0) -> dict[str, np.ndarray]:
    """Return arrays for a signature: normal for floats, 0 and 1 for the rest; the same for the same seed."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for info in inputs:
        if info.dtype.startswith("float"):
            feeds[info.name] = rng.standard_normal(info.shape).astype(info.dtype)
        else:
            feeds[info.name] = rng.integers(0, 2, info.shape).astype(info.dtype)
    return feeds
