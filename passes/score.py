"""Criteria: how much a weight matters. Scores are per weight; a pattern's unit is worth the sum over its
weights.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgesparse.errors import UsageError
from edgesparse.passes.graph import Array


def magnitude(weight: Array) -> Array:
    """Squared weights, float64: summed over a unit they order units by their L2 norm (single weights by |w|)."""
    return np.square(weight.astype(np.float64))


def absolute(weight: Array) -> Array:
    """Absolute weights, float64: summed over a unit they order units by their L1 norm."""
    return np.abs(weight.astype(np.float64))


CRITERIA: dict[str, Callable[[Array], Array]] = {"magnitude": magnitude, "l1": absolute}
"""Criteria that look at weights alone, by the names that recipes use."""


def saliency(criterion: str, weight: Array) -> Array:
    """Scores of the same shape as a canonical weight `[Cout, Cin, taps]`. UsageError for an unknown
    criterion.
    """
    if criterion not in CRITERIA:
        raise UsageError(f"unknown criterion {criterion!r}", fix=f"take {', '.join(CRITERIA)}")
    return CRITERIA[criterion](weight)
