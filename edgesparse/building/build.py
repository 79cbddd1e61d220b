"""Kernels to objects, through the cache: a kernel is compiled once per target and toolchain, whatever the model."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.resources
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import edgesparse
from edgesparse import cache
from edgesparse.building import codegen, registers
from edgesparse.errors import CompileError
from edgesparse.kernels import KernelSpec
from edgesparse.target import Target


def build_kernels(
    kernels: Mapping[str, KernelSpec], target: Target, *, tick: Callable[[int, int, str], None] | None = None
) -> dict[str, bytes]:
    """Object code of each kernel by symbol; those that the cache has not are compiled (this is when TVM loads).

    Parameters
    ----------
    tick:
        Called with how many of how many are done and the symbol, for progress.

    Raises
    ------
    CompileError
        TVM or LLVM fails; names the kernel.
    """
    found: dict[str, bytes] = {}
    for index, (symbol, spec) in enumerate(kernels.items()):
        if tick:
            tick(index, len(kernels), symbol)
        key = kernel_key(symbol, target)
        code = cache.get(key)
        if code is None:
            try:
                code = _object(symbol, spec, target)
            except CompileError:
                raise
            except Exception as error:  # whatever TVM's builder raises
                raise CompileError(f"cannot build kernel {symbol}", why=codegen.brief(error)) from error
            cache.put(key, code)
        found[symbol] = code
    return found


def _object(symbol: str, spec: KernelSpec, target: Target) -> bytes:
    if target.checked:
        return registers.held(symbol, spec, target).code.object()
    return codegen.compile_object({symbol: spec.build()}, target.tvm_target())


def kernel_key(symbol: str, target: Target) -> str:
    """What a kernel's code depends on: its name (which holds all of its spec), target, sources and TVM."""
    return cache.key_of("kernel", symbol, json.dumps(target.tvm_target(), sort_keys=True), toolchain())


@functools.cache
def toolchain() -> str:
    """Versions and sources that shape a kernel's code."""
    parts = [edgesparse.__version__, importlib.metadata.version("apache-tvm")]
    return cache.key_of(*parts, *_sources())


def _sources() -> Iterable[bytes]:
    root = Path(str(importlib.resources.files("edgesparse")))
    files = [
        *(root / "building" / f"{name}.py" for name in ("codegen", "assembly", "registers")),
        *sorted((root / "kernels").glob("*.py")),
        *sorted((root / "fallback").glob("*.py")),
    ]
    return [path.read_bytes() for path in files]
