"""Functions that are not simple blocks (sorting, scattering, scans): their own loops, with raw pointers."""

from __future__ import annotations

from typing import Any

from edgesparse.fallback.emit import Kernel
from edgesparse.fallback.nests import size_of


def emit_raw(func: Any) -> Kernel:
    """Give a function the plain C ABI and keep its loops; intermediates of its root block become workspaces."""
    from tvm import s_tir, tirx

    root = func.body.block
    temps = list(root.alloc_buffers)
    buffers = [*func.params, *temps]
    handles = [tirx.Var(f"p{i}", _pointer(buffer)) for i, buffer in enumerate(buffers)]
    outer = s_tir.SBlock([], [], [], "root", root.body)
    declared = [tirx.DeclBuffer(buffer, data=handle) for buffer, handle in zip(buffers, handles, strict=True)]
    body = tirx.SeqStmt([*declared, s_tir.SBlockRealize([], True, outer)])
    scalars = [tirx.Var("a", _pointer_to("int32")), tirx.Var("begin", "int32"), tirx.Var("end", "int32")]
    return Kernel(tirx.PrimFunc([*handles, *scalars], body), tuple(size_of(temp) for temp in temps), 1)


def _pointer(buffer: Any) -> Any:
    return _pointer_to(str(buffer.dtype))


def _pointer_to(dtype: str) -> Any:
    from tvm import ir

    return ir.PointerType(ir.PrimType(dtype))
