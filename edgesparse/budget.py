"""Budgets: what a pruned network may cost at most. `latency=0.5x`, `flops=300M`, `size=2MB`.

`0.5x` is a share of what the same network costs dense; other amounts carry a unit. A budget is for the whole network,
with the layers that are not pruned.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgesparse.errors import UsageError

UNITS: dict[str, dict[str, float]] = {
    "latency": {"s": 1.0, "ms": 1e-3, "us": 1e-6},
    "flops": {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9},
    "size": {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9},
}
"""Kind of budget to its units: seconds, operations (two for a multiply-add), bytes of weights in the artifact."""

_TEXT = re.compile(r"(latency|flops|size)=([0-9]+(?:\.[0-9]+)?|\.[0-9]+)([a-zA-Z]{0,3})", re.ASCII)
_HOW = "write it as latency=0.5x, latency=8ms, flops=300M or size=2MB"


@dataclass(frozen=True)
class Budget:
    """An amount of one kind: in seconds, operations or bytes, or, where `relative`, as a share of dense."""

    kind: str
    amount: float
    relative: bool
    text: str

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read the grammar above. UsageError for anything else, for nothing at all, and for more than dense."""
        found = _TEXT.fullmatch(text.strip()) if isinstance(text, str) and len(text) <= 40 else None
        if found is None:
            raise UsageError(f"budget {str(text)[:40]!r} cannot be read", fix=_HOW)
        kind, number, unit = found[1], float(found[2]), found[3]
        relative = unit == "x"
        if not relative and unit not in UNITS[kind]:
            units = ", ".join(["x", *(name for name in UNITS[kind] if name)])
            raise UsageError(f"budget {text!r} has no unit of {kind}", why=f"its units are {units}", fix=_HOW)
        amount = number * (1.0 if relative else UNITS[kind][unit])
        if not amount > 0.0 or (relative and amount > 1.0):
            raise UsageError(f"budget {text!r} cannot be meant", why="it is nothing, or more than dense", fix=_HOW)
        return cls(kind, amount, relative, text.strip())

    def __str__(self) -> str:
        return self.text
