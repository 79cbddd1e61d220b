"""Memory that a model asks for: whole, zeroed, at the start of a large page where it fills one, given back whole."""

from __future__ import annotations

import ctypes
import importlib.resources
import subprocess
import sys
from pathlib import Path

import pytest

LARGE = 2 << 20
SIZES = [1, 4096, LARGE // 2 - 1, LARGE // 2, LARGE, 3 * LARGE // 2 - 5, 7 * LARGE // 2 + 12345]
#: The platform's functions are hidden in a model's library.
SHOWN = """
#include "platform_posix.c"
#pragma GCC visibility push(default)
void *take(uint64_t bytes) { return es_allocate(bytes); }
void give(void *address, uint64_t bytes) { es_release(address, bytes); }
"""
SOURCES = Path(str(importlib.resources.files("edgesparse.runtimes"))) / "native"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("memory")
    source, path = folder / "shown.c", folder / "shown.so"
    source.write_text(SHOWN, encoding="utf-8")
    command = ["cc", "-O1", "-shared", "-fPIC", f"-I{SOURCES}", "-o", str(path), str(source)]
    subprocess.run([sys.executable, "-m", "ziglang", *command], check=True)
    library = ctypes.CDLL(str(path))
    library.take.restype = ctypes.c_void_p
    library.take.argtypes = [ctypes.c_uint64]
    library.give.restype = None
    library.give.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
    return library


def mapped(first: int, last: int) -> int:
    """Bytes of [first, last) that are mapped."""
    found = 0
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        start, end = (int(text, 16) for text in line.split(maxsplit=1)[0].split("-"))
        found += max(0, min(end, last) - max(start, first))
    return found


@pytest.mark.parametrize(
    "size", [1, 4096, LARGE // 2 - 1, LARGE // 2, LARGE, 3 * LARGE // 2 - 5, 7 * LARGE // 2 + 12345]
)
def test_an_allocation_is_whole_and_goes_back_whole(platform: ctypes.CDLL, size: int) -> None:
    address = platform.take(size)
    memory = (ctypes.c_uint8 * size).from_address(address)
    assert bytes(memory[:: max(size // 1000, 1)]) == bytes(len(memory[:: max(size // 1000, 1)]))
    ctypes.memset(address, 0x5A, size)
    assert memory[0] == memory[size - 1] == 0x5A
    if size >= LARGE // 2:
        assert address % LARGE == 0
    after = -(-size // 4096) * 4096
    assert mapped(address, address + after) == after
    platform.give(address, size)
    assert mapped(address, address + after) == 0


def test_what_cannot_be_had_is_null(platform: ctypes.CDLL) -> None:
    assert platform.take(1 << 62) is None
    assert platform.take((1 << 64) - 1) is None


def test_only_what_large_pages_half_fill_is_rounded_up(platform: ctypes.CDLL) -> None:
    """Room beyond what was asked for is less than half a large page, and none of the alignment's spare room stays."""
    before = mapped(0, 1 << 47)
    address = platform.take(LARGE + LARGE // 2 + 1)
    assert mapped(0, 1 << 47) - before in (2 * LARGE, 2 * LARGE + 4096)
    platform.give(address, LARGE + LARGE // 2 + 1)
