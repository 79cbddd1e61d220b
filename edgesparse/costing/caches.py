"""What lies between a core and memory: which level bytes come from, and how fetching adds to computing."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgesparse.target import Target

LEVELS = ("l1", "l2", "l3", "memory")

#: Groups after which an input that was skipped so long is taken for read again: little is left of the sum by then.
_PATIENCE = 12


@dataclass(frozen=True)
class Caches:
    """What a cost table says of the levels beyond L1; sizes of L1 and L2 are the target's.

    Attributes
    ----------
    l3:
        Bytes beyond which what a run touches comes from memory: what a core has of the last cache, which it may share
        with other work, and a virtual machine with other machines.
    rates:
        Bytes a cycle from each level.
    overlap:
        How well what a core does at the same time hides behind each other: the exponent p of ``(a^p + b^p + ..)^(1/p)``
        cycles for what takes a, b, .. by itself. 1 is their sum, infinity the longest of them.
    scattered:
        The same for windows, whose rows lie apart, and for what products read and write of memory.
    """

    l3: int = 8 << 20
    rates: Mapping[str, float] = field(default_factory=lambda: {"l2": 32.0, "l3": 10.0, "memory": 5.0})
    overlap: float = math.inf
    scattered: float = math.inf

    def together(self, *parts: float) -> float:
        """Cycles of what takes so many cycles each and is done at the same time."""
        return together(self.overlap, *parts)

    def cycles(self, issue: float, far: Mapping[str, float]) -> dict[str, float]:
        """Cycles of issuing for `issue` cycles while `far` bytes come from each level, by what they are spent on.

        With infinite overlap one level's fetch hides behind another's, too. Keys: "issue", and levels.
        """
        waits = {level: far[level] / rate for level, rate in self.rates.items() if far.get(level)}
        if math.isinf(self.overlap):
            level = max(waits, key=lambda each: waits[each], default="issue")
            return {level: waits[level]} if waits and waits[level] > issue else {"issue": issue}
        fetch = sum(waits.values())
        if not fetch:
            return {"issue": issue}
        both = issue**self.overlap + fetch**self.overlap
        scale = both ** (1 / self.overlap - 1)
        parts = {level: scale * fetch ** (self.overlap - 1) * wait for level, wait in waits.items()}
        return {"issue": scale * issue**self.overlap, **parts}


def together(overlap: float, *parts: float) -> float:
    """Cycles of what takes so many cycles each and is done at the same time, as `Caches.overlap` tells."""
    longest = max(parts)
    if math.isinf(overlap) or not longest:
        return longest
    return longest * float(sum((part / longest) ** overlap for part in parts) ** (1 / overlap))


def shares(distance: float, target: Target, l3: float = math.inf) -> dict[str, float]:
    """Where bytes come from that were last used `distance` bytes of other use ago: shares by level.

    A cache keeps all of what was used within half of its size and nothing beyond one and a half: it is shared with what
    else runs, and replaces not quite the oldest first.
    """
    return _shares(distance, target.l1d, target.l2, l3)


def _shares(distance: float, *sizes: float) -> dict[str, float]:
    found, left = {}, 1.0
    for level, size in zip(LEVELS, sizes, strict=False):
        kept = min(left, max(0.0, 1.5 - distance / size))
        if kept > 0:
            found[level] = kept
        left -= kept
        if left <= 0:
            return found
    return {**found, "memory": left}


def reused(panel: float, kept: float, target: Target, l3: float = math.inf) -> Mapping[str, float]:
    """Where the inputs of a product come from when its groups pass over a panel of `panel` bytes one after another.

    Each group reads the share `kept` of the inputs, at random. An input is read again after k groups with the chance
    ``kept * (1 - kept)^(k - 1)``, when ``1 - (1 - kept)^k`` of the panel has been touched in between: sparse groups
    find some in L1 where dense ones, which sweep over all of a panel that does not fit, find none.
    """
    return _reused(round(panel), round(min(kept, 1.0), 3), target.l1d, target.l2, l3)


@functools.lru_cache(maxsize=1 << 16)
def _reused(panel: int, kept: float, l1d: int, l2: int, l3: float) -> Mapping[str, float]:
    parts, left = [], 1.0
    for groups in range(1, _PATIENCE + 1):
        chance = left if groups == _PATIENCE else left * kept
        parts.append((chance, _shares(panel * (1 - (1 - kept) ** groups), l1d, l2, l3)))
        left -= chance
        if left <= 0:
            break
    return mixed(*parts)


def mixed(*parts: tuple[float, Mapping[str, float]]) -> dict[str, float]:
    """Bytes by level of several (bytes, shares)."""
    found: dict[str, float] = {}
    for nbytes, levels in parts:
        for level, share in levels.items():
            found[level] = found.get(level, 0.0) + nbytes * share
    return found
