"""Prices of the cost model's terms, by target.

A target that was measured has a table in `prices/`, fitted from whole networks by `benchmarks/fit_cost.py`:
nanoseconds a term, with the machine it stands on and its errors. Every other target has prices in cycles of a core that
issues its declared vector operations and does nothing else: good for ratios between kernels, no latency.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from edgesparse.costing.caches import LEVELS, Caches
from edgesparse.costing.counts import GROUPS
from edgesparse.errors import CompileError
from edgesparse.target import Target

SCHEMA = "edgesparse.prices/2"

#: Cycles of a term on a core that nobody measured; all others are counted as nothing.
_COUNTED: Mapping[str, float] = {
    "product.issue": 1.0,
    "tail.issue": 1.0,
    "sparse.pair": 0.05,
    "product.tile": 12.0,
    "tail.group": 12.0,
    "product.store": 1.5,
    "product.residual": 1.0,
    "product.special": 1.0,
    "tail.store": 3.0,
    "depthwise.tap": 0.5,
    "depthwise.load": 0.5,
    "depthwise.mask": 1.0,
    "depthwise.stride": 1.0,
    "depthwise.store": 1.5,
    "depthwise.channel": 12.0,
    "panel.load": 0.5,
    "panel.mask": 1.0,
    "panel.stride": 1.0,
    "panel.store": 1.0,
    "pool.tap": 0.5,
    "pool.load": 0.5,
    "pool.mask": 1.0,
    "pool.stride": 1.0,
    "pool.store": 1.5,
    "point.vector": 2.0,
    "point.single": 2.0,
    "global.vector": 1.0,
    "transpose.value": 1.0,
    "relax.value": 4.0,
    "other.unit": 100.0,
    "stream.l2": 1.0,
    "stream.l3": 1.0,
    "stream.memory": 1.0,
    **{f"product.{way}.l2": 1 / 64 for way in ("read", "write")},
    **{f"product.{way}.l3": 1 / 32 for way in ("read", "write")},
    "call": 20.0,
}


@dataclass(frozen=True)
class CostTable:
    """Prices of all terms.

    Attributes
    ----------
    unit:
        "ns" where fitted, "cycles" where counted.
    basis:
        What the prices stand on, in words.
    prices:
        By term, in the unit.
    caches:
        The levels beyond L1, and how well fetching from them hides behind computing.
    errors:
        Of a fitted table, by network: "median", "p90" and "worst" share by which a layer's time was missed by prices
        fitted to the other networks, of how many "layers", and how many "over_30" per cent.
    factors:
        What the counts of a class of window kernels (`counts.shape_of`), and of the product of what they gather, are to
        be multiplied by, as measured: for what they do not tell, such as sums that wait for each other and rows that
        share the sets of a cache. 1 for others.
    """

    unit: str
    basis: str
    prices: Mapping[str, float]
    caches: Caches = field(default_factory=Caches)
    errors: Mapping[str, Any] = field(default_factory=dict)
    factors: Mapping[str, float] = field(default_factory=dict)

    @property
    def measured(self) -> bool:
        """Whether the table tells time, not only counts."""
        return self.unit == "ns"

    def price(self, terms: Mapping[str, float]) -> float:
        """The sum of counts times prices, in the unit; terms without a price cost nothing."""
        return sum(value * self.prices[term] for term, value in terms.items() if term in self.prices)

    def as_dict(self) -> dict[str, Any]:
        """What reports say of the table: its unit, what it stands on, and how far it was off."""
        return {"unit": self.unit, "basis": self.basis, "errors": dict(self.errors)}


@functools.cache
def cost_table(name: str) -> CostTable:
    """The table of the target called `name`, fitted where there is one.

    Raises
    ------
    CompileError
        The table that is there cannot be read.
    """
    path = resources.files("edgesparse.costing") / "prices" / f"{name}.json"
    if not path.is_file():
        return counted()
    return parse(path.read_text(encoding="utf-8"), name)


def table_for(target: Target) -> CostTable:
    """The table of a target."""
    return cost_table(target.name)


def counted() -> CostTable:
    """Prices of a core that was not measured."""
    prices = {term: _COUNTED.get(term, 0.0) for term in GROUPS}
    return CostTable("cycles", "counted instructions; nothing was measured on this target", prices)


def parse(text: str, name: str) -> CostTable:
    """Read a table as `fit_cost.py` writes it. Raises CompileError."""
    try:
        data = json.loads(text)
        if data["schema"] != SCHEMA:
            raise ValueError(f"its schema is {data['schema']!r}")
        prices = {term: float(data["prices"].get(term, 0.0)) for term in GROUPS}
        if not all(0 <= price < float("inf") for price in prices.values()):
            raise ValueError("a price is negative or infinite")
        told = data["caches"]
        rates = {level: float(told["rates"][level]) for level in LEVELS[1:]}
        overlap = float(told["overlap"])
        caches = Caches(int(told["l3"]), rates, overlap, float(told.get("scattered", overlap)))
        factors = {str(shape): float(factor) for shape, factor in data.get("factors", {}).items()}
        if not all(value > 0 for value in (caches.l3, overlap, caches.scattered, *rates.values(), *factors.values())):
            raise ValueError("a size or rate of a cache, or a factor, is not positive")
        return CostTable("ns", str(data["basis"]), prices, caches, dict(data["errors"]), factors)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CompileError(
            f"the price table of {name} cannot be read", why=str(error), fix="run benchmarks/fit_cost.py again"
        ) from error
