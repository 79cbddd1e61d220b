"""What a measurement was made on: processor, system, tools. Nothing in it names the machine or its user."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

SYSTEM_ROOT = Path("/")

TOOLS = ("edgesparse", "apache-tvm", "ziglang", "onnx", "onnxruntime", "onnx-ir", "onnxscript", "numpy")

_FEATURES = """
    sse4_2 avx avx2 fma f16c avx512f avx512bw avx512vl avx512_vnni avx_vnni avx512_bf16 amx_int8
    asimd asimddp asimdhp i8mm bf16 sve sve2 neon vfpv4
"""
FEATURES = frozenset(_FEATURES.split())
"""Processor flags that say something about kernels; the others are left out of reports."""


def record(root: Path = SYSTEM_ROOT) -> dict[str, Any]:
    """Return the environment: cpu, features, cores, governor, frequency (MHz), temperature (degrees C),
    load, tools.

    What the system does not tell is None.
    """
    cpu = _cpu_info(root)
    return {
        "cpu": cpu.get("model name") or cpu.get("Model") or platform.machine(),
        "architecture": platform.machine(),
        "features": sorted(FEATURES & set((cpu.get("flags") or cpu.get("Features") or "").split())),
        "cores": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "governor": governor(root),
        "frequency_mhz": frequency(root, cpu),
        "temperature_c": temperature(root),
        "virtual": "hypervisor" in (cpu.get("flags") or "").split(),
        "os": f"{platform.system()} {platform.release().split('-')[0]}",
        "load_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "tools": {name: version(name) for name in TOOLS},
    }


def governor(root: Path = SYSTEM_ROOT, core: int = 0) -> str | None:
    """Return what sets a core's frequency, or None."""
    return _read(root / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor")


def frequency(root: Path = SYSTEM_ROOT, cpu: dict[str, str] | None = None, core: int = 0) -> float | None:
    """Return a core's present frequency in MHz, or None."""
    khz = _read(root / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq")
    if khz and khz.isdigit():
        return int(khz) / 1000
    with contextlib.suppress(ValueError, KeyError):
        return float((cpu or _cpu_info(root))["cpu MHz"])
    return None


def temperature(root: Path = SYSTEM_ROOT) -> float | None:
    """Return the hottest thermal zone in degrees C, or None."""
    found = []
    for path in sorted((root / "sys/class/thermal").glob("thermal_zone*/temp")):
        text = _read(path)
        if text and re.fullmatch(r"-?\d+", text):
            found.append(int(text) / 1000)
    return max(found, default=None)


def version(package: str) -> str | None:
    """Return an installed package's version, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def sha256(path: Path) -> str:
    """Return the digest of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cpu_info(root: Path) -> dict[str, str]:
    """Return the first core's entries of /proc/cpuinfo, and those that follow all cores."""
    info: dict[str, str] = {}
    for line in (_read(root / "proc/cpuinfo") or "").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            info.setdefault(key.strip(), value.strip())
    return info


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
