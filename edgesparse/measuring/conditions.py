"""Why times are unstable: the governor, throttling, or other work. What the machine said, and a verdict from it.

`look` reads, the rest are pure functions. What a system does not tell is None, and is never guessed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from edgesparse import environment
from edgesparse.environment import SYSTEM_ROOT
from edgesparse.measuring import cores

STEADY_GOVERNORS = frozenset(("performance", "userspace"))
"""Governors that leave the frequency alone; all others move it with the load."""

OTHERS = 0.05
"""Share of the pinned cores' time above which other processes are worth a word."""

STOLEN = 0.02
"""The same for a virtual machine's host."""

DISTURBED = 0.10
"""Share of runs that the system interrupted, above which other work is worth a word."""

FELL = 0.05
"""Relative change of the frequency from before to after that counts as one."""

HOT, WARMED = 85.0, 15.0
"""Degrees C, and a rise in degrees, from which slowing down is put down to heat."""

ALIKE = 0.05
"""Drift from which all contenders together count as slowed down."""


@dataclass(frozen=True)
class Look:
    """One look at the cores that are measured on.

    Attributes
    ----------
    seconds:
        When it was, by a clock that only runs forward.
    frequency_mhz:
        Mean over the cores.
    busy, stolen:
        Seconds that the cores have been busy, and that their host has kept them, since they were started.
    own:
        Seconds that this process has run.
    """

    seconds: float
    governor: str | None = None
    frequency_mhz: float | None = None
    temperature_c: float | None = None
    load_1min: float | None = None
    busy: float | None = None
    stolen: float | None = None
    own: float = 0.0


@dataclass(frozen=True)
class Conditions:
    """What the machine did while times were taken: pairs are before and after, shares are of the cores' time."""

    governor: str | None = None
    frequency_mhz: tuple[float | None, float | None] = (None, None)
    temperature_c: tuple[float | None, float | None] = (None, None)
    load_1min: float | None = None
    others_share: float | None = None
    stolen_share: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Cause:
    """Why times are unstable: "governor", "throttling", "load" or "unknown", and a sentence about it."""

    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


def look(pinned: Sequence[int] = (), root: Path = SYSTEM_ROOT) -> Look:
    """Look at the cores that were pinned to (at the first one for the governor), or at all of them."""
    which = tuple(pinned) or tuple(range(os.cpu_count() or 1))
    tick = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
    stat = str(root / "proc/stat")
    busy, stolen = cores.busy_ticks(stat), cores.stolen_ticks(stat)
    speeds = [speed for core in which if (speed := environment.frequency(root, core=core)) is not None]
    load = None
    with contextlib.suppress(OSError, AttributeError):
        load = os.getloadavg()[0]
    return Look(
        time.monotonic(),
        environment.governor(root, which[0]),
        mean(speeds) if speeds else None,
        environment.temperature(root),
        load,
        sum(busy[core] for core in which) / tick if all(core in busy for core in which) else None,
        sum(stolen[core] for core in which) / tick if all(core in stolen for core in which) else None,
        time.process_time(),
    )


def between(before: Look, after: Look, width: int = 1, *, own: bool = True) -> Conditions:
    """Return what happened between two looks at `width` cores; `own` is False if other processes did the work."""
    span = (after.seconds - before.seconds) * max(width, 1)
    stolen = others = None
    if span > 0 and before.stolen is not None and after.stolen is not None:
        stolen = min(max((after.stolen - before.stolen) / span, 0.0), 1.0)
    if own and span > 0 and before.busy is not None and after.busy is not None:
        ours = after.own - before.own + span * (stolen or 0.0)
        others = min(max((after.busy - before.busy - ours) / span, 0.0), 1.0)
    return Conditions(
        after.governor,
        (before.frequency_mhz, after.frequency_mhz),
        (before.temperature_c, after.temperature_c),
        after.load_1min,
        others,
        stolen,
    )


def diagnose(
    drifts: Sequence[float], disturbed: float, seen: Conditions, *, threads: int = 1, cores_allowed: int | None = None
) -> tuple[Cause, ...]:
    """Return why times are unstable, most certain first; to be asked only where they are.

    Parameters
    ----------
    drifts:
        Each contender's change from the first to the last third of its blocks.
    disturbed:
        Share of all runs that the system interrupted.
    """
    load = _load(disturbed, seen, threads, cores_allowed)
    found = [*load, *_throttling(drifts, seen, alone=not load), *_governor(seen)]
    if not found:
        found = [Cause("unknown", "nothing that this machine tells explains it; measure again, and longer")]
    return tuple(found)


def _load(disturbed: float, seen: Conditions, threads: int, allowed: int | None) -> list[Cause]:
    parts = []
    if (seen.others_share or 0.0) > OTHERS:
        parts.append(f"other processes took {100 * (seen.others_share or 0):.0f} % of the measured cores")
    if (seen.stolen_share or 0.0) > STOLEN:
        parts.append(f"the host of this virtual machine took {100 * (seen.stolen_share or 0):.0f} % of them")
    if disturbed > DISTURBED:
        parts.append(f"{100 * disturbed:.0f} % of the runs were interrupted")
    if seen.load_1min is not None and allowed and seen.load_1min > threads + allowed / 2:
        parts.append(f"the load average is {seen.load_1min:.1f} on {allowed} cores")
    return [Cause("load", f"other work is going on: {', '.join(parts)}; measure again when idle")] if parts else []


def _throttling(drifts: Sequence[float], seen: Conditions, *, alone: bool) -> list[Cause]:
    """Heat, if all slowed down and the machine says so, or if it says nothing and nothing else is known."""
    if not drifts or min(drifts) < ALIKE:
        return []
    slowed = f"all became slower alike, by {100 * min(drifts):.0f} to {100 * max(drifts):.0f} %"
    (fast, slow), (cold, hot) = seen.frequency_mhz, seen.temperature_c
    if fast and slow and slow < (1 - FELL) * fast:
        return [Cause("throttling", f"{slowed}, and the cores fell from {fast:.0f} to {slow:.0f} MHz; cool them")]
    if hot is not None and (hot >= HOT or (cold is not None and hot - cold >= WARMED)):
        return [Cause("throttling", f"{slowed}, at {hot:.0f} degrees C; cool the device, or measure in shorter spells")]
    if slow is None and hot is None and alone:
        return [Cause("throttling", f"{slowed}, which is likely heat: neither frequency nor temperature is told here")]
    return []


def _governor(seen: Conditions) -> list[Cause]:
    if seen.governor is None or seen.governor in STEADY_GOVERNORS:
        return []
    first, last = seen.frequency_mhz
    moved = f" (from {first:.0f} to {last:.0f} MHz here)" if first and last and abs(last / first - 1) > FELL else ""
    text = f"`{seen.governor}` changes the frequency with the load{moved}; `cpupower frequency-set -g performance`"
    return [Cause("governor", text)]
