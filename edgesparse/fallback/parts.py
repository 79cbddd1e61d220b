"""A fallback operation as the lowering takes it: Relax's calls, constants and object code, through the cache."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np

from edgesparse import cache
from edgesparse.building import codegen
from edgesparse.building.build import toolchain
from edgesparse.graph.ops import Fallback
from edgesparse.lowering.lower import Part
from edgesparse.target import Target


def part_of(op: Fallback, number: int, target: Target) -> Part:
    """Lower one fallback operation; `number` keeps its names apart from those of others.

    Raises
    ------
    UnsupportedError
        Relax does not take one of its operators; names node, operator and opset.
    CompileError
        TVM fails inside.
    """
    model = op.model.SerializeToString(deterministic=True)
    wanted = json.dumps(target.tvm_target(), sort_keys=True)
    key = cache.key_of("part", model, str(number), wanted, toolchain())
    found = cache.get(key)
    if found is None:
        part = _lowered(op, number, target)
        cache.put(key, _dump(part))
        return part
    return _load(found)


def _lowered(op: Fallback, number: int, target: Target) -> Part:
    from edgesparse.fallback.relaxed import lower_subgraph

    llvm = target.tvm_target()
    made = lower_subgraph(op.model, f"relax{number}", llvm, target.barrier if target.checked else "")
    # One object for each kernel: parts that share a kernel then share the object.
    code = [
        codegen.compile_object({symbol: func}, codegen.plain(llvm) if symbol in made.plain else llvm)
        for symbol, func in made.kernels.items()
    ]
    calls = tuple((symbol, tuple(names), made.extents[symbol]) for symbol, names in made.calls)
    constants = {name: np.ascontiguousarray(array) for name, array in made.constants.items()}
    return Part(calls, dict(made.buffers), constants, tuple(code))


def _dump(part: Part) -> bytes:
    sink = io.BytesIO()
    names = list(part.constants)
    head = {"calls": part.calls, "buffers": part.buffers, "constants": names}
    arrays: dict[str, Any] = {f"c{index}": part.constants[name] for index, name in enumerate(names)}
    arrays |= {f"o{index}": np.frombuffer(code, np.uint8) for index, code in enumerate(part.objects)}
    np.savez(sink, head=np.frombuffer(json.dumps(head).encode(), np.uint8), **arrays)
    return sink.getvalue()


def _load(data: bytes) -> Part:
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        head = json.loads(stored["head"].tobytes())
        constants = {name: stored[f"c{index}"] for index, name in enumerate(head["constants"])}
        objects = tuple(stored[name].tobytes() for name in stored.files if name.startswith("o"))
    calls = tuple((symbol, tuple(names), int(extent)) for symbol, names, extent in head["calls"])
    return Part(calls, head["buffers"], constants, objects)
