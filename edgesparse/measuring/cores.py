"""The cores that a bench runs on: which are quiet, keeping to them, and who else takes them meanwhile."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def pinned(count: int, *, watch: float = 0.1) -> Iterator[tuple[int, ...]]:
    """Keep this process on its `count` quietest cores; yields them, or () where the system does not pin.

    `watch`: seconds of looking for them; what works in spells is only seen by one that outlasts its rests.

    Threads and processes that are made inside inherit the cores. With fewer cores than wanted, all are taken.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield ()
        return
    before = os.sched_getaffinity(0)
    cores = quietest_cores(before, count, watch=watch)
    try:
        os.sched_setaffinity(0, cores)
    except OSError:
        yield ()
        return
    try:
        yield cores
    finally:
        os.sched_setaffinity(0, before)


def quietest_cores(allowed: set[int], count: int, *, watch: float = 0.1) -> tuple[int, ...]:
    """Return up to `count` of the allowed cores: those that were least busy during `watch` seconds."""
    before = busy_ticks()
    if before and count < len(allowed):
        time.sleep(watch)
    after = busy_ticks()
    busy = {core: after.get(core, 0) - before.get(core, 0) for core in allowed}
    # of equally quiet cores the last: the system's own work prefers the first
    return tuple(sorted(sorted(allowed, key=lambda core: (busy[core], -core))[:count]))


def busy_ticks(path: str = "/proc/stat") -> dict[int, int]:
    """Return how long each core has been busy, in ticks, with what its host took; {} where that is not told."""
    return {core: sum(spent) for core, spent in _ticks(path).items()}


def stolen_ticks(path: str = "/proc/stat") -> dict[int, int]:
    """Return for how many ticks each core's host has run something else; {} where that is not told."""
    return {core: spent[-1] for core, spent in _ticks(path).items()}


def _ticks(path: str) -> dict[int, tuple[int, ...]]:
    """Return the ticks of each core: user, nice, system, interrupts (two kinds), stolen."""
    found = {}
    with contextlib.suppress(OSError, ValueError):
        for line in Path(path).read_text(encoding="ascii").splitlines():
            name, *values = line.split()
            if name.startswith("cpu") and name != "cpu":
                user, nice, system, _idle, _wait, *rest = map(int, values)
                found[int(name[3:])] = (user, nice, system, *[*rest, 0, 0, 0][:3])
    return found


def preemptions(threads: int) -> int:
    """Return how often the system has taken a core away from this thread (of all threads, if runs use several)."""
    who = resource.RUSAGE_THREAD if threads == 1 else resource.RUSAGE_SELF
    return resource.getrusage(who).ru_nivcsw


def preemptions_of(process: int) -> int:
    """Return how often the system has taken a core away from another process's main thread; 0 if that is not told."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
        return int(text.rpartition("nonvoluntary_ctxt_switches:")[2].split()[0])
    return 0
