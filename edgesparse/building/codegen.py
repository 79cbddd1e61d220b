"""From TIR functions to object code: the pass list that ends in a plain C ABI, without TVM's runtime.

Functions take raw handles and 32-bit integers (see `lowering.program`); TVM's own pipeline would wrap them in its
packed calling convention. The list below is that pipeline without the host/device split, the packed API and the
builtins that need a runtime. `import tvm` takes seconds, so it happens inside the functions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgesparse.errors import CompileError


def compile_object(funcs: Mapping[str, Any], target: Mapping[str, Any]) -> bytes:
    """Compile PrimFuncs into one relocatable object.

    Parameters
    ----------
    funcs:
        Symbol to ``tvm.tirx.PrimFunc``. Each has raw parameters (handles, int32) and no buffer map. Functions with
        schedulable blocks are lowered, functions with plain loops are taken as they are. exp, log, tanh, erf, pow,
        sigmoid, sin and cos become inline polynomials (`edgesparse.fallback.polynomials`).
    target:
        TVM's target dict, such as ``{"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v3"}``.

    Returns
    -------
    bytes
        The object file. It has no undefined symbols.

    Raises
    ------
    CompileError
        When a pass or LLVM fails; the message names the functions.
    """
    return Code(funcs, target).object()


def compile_asm(funcs: Mapping[str, Any], target: Mapping[str, Any]) -> str:
    """The assembly of what `compile_object` would make, for inspection."""
    return Code(funcs, target).asm()


def plain(target: Mapping[str, Any]) -> dict[str, Any]:
    """The same machine, for which LLVM does less to loops.

    It holds no constants outside of them, in registers, or on the stack where there are too few, and does not unroll
    them, as it does for some in-order cores of 64 bits.
    """
    core = {"mcpu": "generic"} if str(target["mtriple"]).startswith("aarch64") else {}
    return {**target, **core, "opt-level": 2, "cl-opt": ["-disable-machine-licm:bool=1"]}


class Code:
    """PrimFuncs as `compile_object` takes them, compiled, as an object or to be read. Raises CompileError."""

    def __init__(self, funcs: Mapping[str, Any], target: Mapping[str, Any]) -> None:
        self._module = _build(funcs, target)

    def object(self) -> bytes:
        """The object file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernels.o"
            self._module.write_to_file(str(path), "o")
            return path.read_bytes()

    def asm(self) -> str:
        """The assembly."""
        return str(self._module.inspect_source("asm"))


def lower(funcs: Mapping[str, Any], target: Mapping[str, Any]) -> Any:
    """The ``IRModule`` that goes to LLVM: loops vectorised and unrolled, buffers flat, math inline."""
    import tvm

    bound = tvm.target.Target(dict(target))
    named = {
        name: func.with_attr("global_symbol", name).without_attr("s_tir").with_attr("tirx.noalias", True)
        for name, func in funcs.items()
    }
    blocks = {name: func for name, func in named.items() if _has_blocks(func)}
    loops = {name: func for name, func in named.items() if name not in blocks}
    config = {"tirx.UnrollLoop": {"explicit_unroll": True}}
    with bound, tvm.transform.PassContext(config=config):
        if blocks:
            lowered = tvm.ir.transform.Sequential(_block_passes())(tvm.IRModule(blocks))
            loops |= {var.name_hint: func for var, func in lowered.functions.items()}
        module = tvm.tirx.transform.BindTarget(bound)(tvm.IRModule(loops))
        return tvm.ir.transform.Sequential(_loop_passes())(module)


def _build(funcs: Mapping[str, Any], target: Mapping[str, Any]) -> Any:
    import tvm

    try:
        module = lower(funcs, target)
        return tvm.get_global_func("target.build.llvm")(module, tvm.target.Target(dict(target)))
    except Exception as error:  # TVM raises its own kinds, and Python's, from C++
        names = ", ".join(list(funcs)[:4]) + (", .." if len(funcs) > 4 else "")
        raise CompileError(f"cannot compile {names}", why=brief(error)) from error


def brief(error: BaseException) -> str:
    """The one line of an exception out of TVM that says something."""
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line and not line.startswith(("Traceback", "File ", "at ", "[bt]", "^"))]
    return f"{type(error).__name__}: {lines[-1][:300]}" if lines else type(error).__name__


def _has_blocks(func: Any) -> bool:
    from tvm import s_tir

    body = func.body
    while hasattr(body, "body") and not isinstance(body, s_tir.SBlockRealize):
        body = body.body
    return isinstance(body, s_tir.SBlockRealize)


def _block_passes() -> list[Any]:
    """From schedulable blocks to loops over flat allocations, with 32-bit indices."""
    from tvm import s_tir, tirx

    blocks = s_tir.transform
    return [
        blocks.CanonicalizeLoop(),
        blocks.LowerInitBlock(),
        blocks.PlanAndUpdateBufferAllocationLocation(),
        blocks.ConvertBlocksToOpaque(),
        blocks.CompactBufferAllocation(),
        blocks.LowerMatchBuffer(),
        blocks.StmtSimplify(),
        blocks.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),
        blocks.LoopPartition(),
    ]


def _loop_passes() -> list[Any]:
    """From plain loops to what LLVM takes. The order of the first six was measured on the sparse kernels."""
    from tvm import s_tir, tirx

    from edgesparse.fallback import polynomials

    polynomials.register()
    return [
        tirx.transform.FlattenBuffer(),
        tirx.transform.VectorizeLoop(True),
        tirx.transform.StorageRewrite(),
        tirx.transform.UnrollLoop(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        s_tir.transform.RewriteUnsafeSelect(),
        tirx.transform.LowerIntrin(),
    ]
