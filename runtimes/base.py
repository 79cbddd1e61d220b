"""What every runner offers, and the checks that all of them make before a model runs."""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from edgesparse.artifacts.artifact import Artifact
from edgesparse.artifacts.manifest import TensorInfo, tensor_list
from edgesparse.errors import DeviceError, UsageError

_CPUINFO = Path("/proc/cpuinfo")

#: Spellings of one machine: LLVM's, Linux's.
_MACHINES = {"arm64": "aarch64", "amd64": "x86_64", "armv7": "armv7l", "arm": "armv7l"}


class Runner(Protocol):
    """Something that runs one artifact, here or on a device. Not to be used from two threads at once."""

    @property
    def inputs(self) -> tuple[TensorInfo, ...]: ...

    @property
    def outputs(self) -> tuple[TensorInfo, ...]: ...

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name for inputs by name. UsageError for wrong names, shapes or dtypes."""
        ...

    def profile(self) -> list[tuple[str, int]]:
        """Name and nanoseconds of each layer in one run of its own, on the inputs of the last run."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Closing(ABC):
    """Something to be closed, by `with` or by hand."""

    @abstractmethod
    def close(self) -> None:
        """Give back what it holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_feeds(infos: Sequence[TensorInfo], feeds: Mapping[str, Any]) -> list[np.ndarray]:
    """The input arrays in the model's order.

    Raises
    ------
    UsageError
        A name is missing or unknown, a value is no array, or its dtype or shape is not the model's; the
        message says what was expected. Nothing is cast: float64 for float32 is an error.
    """
    expected = {info.name for info in infos}
    unknown, missing = sorted(feeds.keys() - expected), sorted(expected - feeds.keys())
    if unknown or missing:
        parts = [f"unknown: {', '.join(map(str, unknown))}"] if unknown else []
        parts += [f"missing: {', '.join(missing)}"] if missing else []
        raise UsageError(
            "the inputs are not those of the model",
            why="; ".join(parts),
            fix=f"it takes {tensor_list(infos)}",
        )
    return [_checked(info, feeds[info.name]) for info in infos]


def _checked(info: TensorInfo, value: Any) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        raise UsageError(f"the input '{info.name}' is a {type(value).__name__}", fix=f"give a numpy array, {info}")
    if value.dtype.newbyteorder("=") != np.dtype(info.dtype):
        raise UsageError(
            f"the input '{info.name}' has the dtype {value.dtype}",
            why=f"the model takes {info.dtype}",
            fix=f"convert it: array.astype('{info.dtype}')",
        )
    if value.shape != info.shape:
        raise UsageError(
            f"the input '{info.name}' has the shape {value.shape}",
            why=f"the model was compiled for {info.shape}",
            fix="reshape it, or compile the model with --shape for another shape",
        )
    return value


def host_flags() -> frozenset[str]:
    """Processor features of this machine as Linux names them; empty where that cannot be found out."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def check_host(artifact: Artifact) -> None:
    """Make sure that this machine can run an artifact's code, before any of it is loaded.

    Reads `machine` (else the first part of `triple`) and `needs` of the manifest's target.

    Raises
    ------
    DeviceError
        Another kind of processor, or one that lacks instructions the code uses.
    """
    target = artifact.manifest.target
    name = str(target.get("name", "another target"))
    machine = _machine(str(target.get("machine") or str(target.get("triple", "")).partition("-")[0]))
    here = _machine(platform.machine())
    if machine and machine != here:
        raise DeviceError(
            f"{artifact.path} cannot run here",
            why=f"it was compiled for {name} ({machine}), this machine is {here}",
            fix="compile it with --target native, or run it on a device of that kind",
        )
    needs = target.get("needs", ())
    flags = host_flags()
    lacking = sorted({str(flag) for flag in needs} - flags) if flags else []
    if lacking:
        raise DeviceError(
            f"{artifact.path} cannot run here",
            why=f"it was compiled for {name}, and this processor lacks {', '.join(lacking[:8])}",
            fix="compile it with --target native",
        )


def _machine(name: str) -> str:
    return _MACHINES.get(name.lower(), name.lower())
