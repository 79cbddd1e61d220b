"""Helpers of the tests that link objects and call them through ctypes."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

TARGETS = {
    level: {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": level}
    for level in ("x86-64-v2", "x86-64-v3", "x86-64-v4")
}


def host_target() -> dict[str, str]:
    """The widest target of the table that this machine can run."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if "avx512vl" in flags:
        return dict(TARGETS["x86-64-v4"])
    return dict(TARGETS["x86-64-v3" if "avx2" in flags and "fma" in flags else "x86-64-v2"])


def link(objects: Sequence[bytes], folder: Path, name: str = "kernels") -> ctypes.CDLL:
    """Link relocatable objects to a shared library without libc, and load it."""
    paths = []
    for index, data in enumerate(objects):
        path = folder / f"{name}{index}.o"
        path.write_bytes(data)
        paths.append(str(path))
    library = folder / f"{name}.so"
    command = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-gnu.2.17", "-shared", "-nostdlib"]
    subprocess.run([*command, "-o", str(library), *paths], check=True, capture_output=True)
    return ctypes.CDLL(str(library))


def undefined(data: bytes, folder: Path) -> list[str]:
    """Undefined symbols of an object, as ``nm`` lists them."""
    nm = shutil.which("nm")
    assert nm, "the tests need binutils' nm"
    path = folder / "undefined.o"
    path.write_bytes(data)
    text = subprocess.run([nm, "-u", str(path)], check=True, capture_output=True, text=True).stdout
    return text.split()


def call(library: ctypes.CDLL, symbol: str, arrays: Sequence[np.ndarray], begin: int = 0, end: int = 1) -> None:
    """Call a kernel on numpy arrays (raw pointers, a null table, a range)."""
    function: Any = library[symbol]
    function.restype = None
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
    function(*pointers, ctypes.c_void_p(None), ctypes.c_int32(begin), ctypes.c_int32(end))
