"""Peak resident memory of loading and running a model, each measured in a fresh process of its own.

The process imports what it needs, notes what is resident, resets the system's peak counter, then loads
the model and runs it three times. What is reported is the peak above that note: Python and the libraries'
code are not counted, memory-mapped weights are. `python -m edgesparse.measuring.memory artifact|onnx PATH` prints
one measurement as JSON.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesparse.errors import EdgesparseError

RUNS = 3
TIMEOUT = 600.0
"""Seconds after which a measuring process is given up."""


@dataclass(frozen=True)
class Memory:
    """Memory in bytes.

    Attributes
    ----------
    peak_bytes, baseline_bytes:
        Resident: what loading and running added at most, and what the imports took before. None in a JavaScript
        engine, where all models share one process.
    arena_bytes, weights_bytes:
        Of a compiled model: working memory, and mapped weights. None for others, which do not tell.
    """

    peak_bytes: int | None
    baseline_bytes: int | None
    arena_bytes: int | None = None
    weights_bytes: int | None = None


def measure(kind: str, path: Path, *, threads: int = 1) -> Memory:
    """Measure an "artifact" or an "onnx" model (run by onnxruntime) in a process of its own.

    Raises
    ------
    EdgesparseError
        If the process fails or the system does not tell a process's memory.
    """
    command = [sys.executable, "-m", "edgesparse.measuring.memory", kind, str(path), str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EdgesparseError(f"cannot measure the memory of {path}", why=str(error)) from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise EdgesparseError(f"cannot measure the memory of {path}", why=lines[-1][:300])
    values = json.loads(done.stdout)
    return Memory(**values)


def resident(key: str = "VmRSS", status: Path = Path("/proc/self/status")) -> int:
    """Return this process's resident bytes: "VmRSS" now, "VmHWM" at its peak. Raises EdgesparseError."""
    try:
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    raise EdgesparseError("this system does not tell how much memory a process uses")


def reset_peak() -> None:
    """Let VmHWM begin anew at what is resident now. Raises EdgesparseError where that cannot be."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError as error:
        raise EdgesparseError("this system cannot reset a process's peak memory") from error


def _measure_here(kind: str, path: Path, threads: int) -> Memory:
    from edgesparse.measuring import contenders

    make = contenders.prepare(kind)
    gc.collect()
    reset_peak()
    before = resident()
    contender = make(path, threads)
    for _ in range(RUNS):
        contender.run_once()
    peak = max(resident("VmHWM") - before, 0)
    if isinstance(contender, contenders.ArtifactContender):
        return Memory(peak, before, contender.runner.arena_bytes, contender.runner.weights_bytes)
    return Memory(peak, before)


def _main(arguments: list[str]) -> Any:
    kind, path, threads = arguments
    return vars(_measure_here(kind, Path(path), int(threads)))


if __name__ == "__main__":
    try:
        print(json.dumps(_main(sys.argv[1:])))
    except EdgesparseError as problem:
        sys.exit(str(problem))
