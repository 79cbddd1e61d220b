"""The right to a core, or to a device: one holder on a machine at a time, whoever asks.

A claim is a socket bound to a name in the abstract namespace: the system gives a name to one process only and takes it
back when that process ends, however it ends. Hardware threads of one core count as that core, for two timings on
them would disturb each other as much as on one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from edgesparse.errors import UsageError

SYSTEM_ROOT = Path("/")
_NAME = "\0edgesparse/{}"
_WAIT = 0.1
"""Seconds between two attempts, give or take a half."""


def physical_cores(allowed: set[int], root: Path = SYSTEM_ROOT) -> dict[int, int]:
    """For each physical core among the allowed logical ones, its lowest logical number, and which one to run on.

    Where the system does not tell which belong together, each counts as a core of its own.
    """
    found: dict[int, int] = {}
    for cpu in sorted(allowed):
        path = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        try:
            first = int(path.read_text(encoding="ascii").replace("-", ",").split(",")[0])
        except (OSError, ValueError):
            first = cpu
        found.setdefault(first, cpu)
    return found


@contextlib.contextmanager
def claim_cores(count: int, *, waiting: Callable[[], None] | None = None) -> Iterator[tuple[int, ...]]:
    """Hold `count` physical cores and run on them alone; yields their logical numbers.

    Waits while others hold them; `waiting` is called once if that is so. Children inherit the cores, not the claim.
    UsageError where the machine has fewer cores than that.
    """
    before = os.sched_getaffinity(0)
    cores = physical_cores(before)
    if count > len(cores):
        raise UsageError(f"{count} threads need as many cores", why=f"this process may use {len(cores)}")
    held = _wait_for([f"core/{name}" for name in cores], count, waiting)
    numbers = tuple(sorted(cores[int(name.removeprefix("core/"))] for name in held))
    try:
        os.sched_setaffinity(0, numbers)
        yield numbers
    finally:
        os.sched_setaffinity(0, before)
        for handle in held.values():
            handle.close()


@contextlib.contextmanager
def claim_device(name: str, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a device, among all processes of this machine."""
    key = "device/" + hashlib.sha256(name.encode()).hexdigest()[:32]
    held = _wait_for([key], 1, waiting)
    try:
        yield
    finally:
        for handle in held.values():
            handle.close()


def _wait_for(names: list[str], count: int, waiting: Callable[[], None] | None) -> dict[str, socket.socket]:
    """Bind `count` of the names; all or none, so that two who wait cannot hold what the other wants."""
    told = waiting is None
    while True:
        held: dict[str, socket.socket] = {}
        for name in names:
            if len(held) < count and (handle := _bind(name)) is not None:
                held[name] = handle
        if len(held) == count:
            return held
        for handle in held.values():
            handle.close()
        if not told and waiting is not None:
            waiting()
            told = True
        time.sleep(_WAIT * random.uniform(0.5, 1.5))


def _bind(name: str) -> socket.socket | None:
    handle = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        handle.bind(_NAME.format(name))
    except OSError as error:
        handle.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise UsageError("cannot claim a core", why=error.strerror or str(error)) from error
    return handle
