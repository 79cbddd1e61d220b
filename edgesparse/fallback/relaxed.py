"""Lowering through Relax: sub-graphs that edgesparse's own kernels do not cover.

ONNX goes through TVM's frontend to Relax, is legalised to TIR and fused there; `edgesparse.fallback` makes the loops
and the vectors. What comes back is a list of kernel calls, as the planner has it for every other kernel.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.inliner

from edgesparse.building import registers
from edgesparse.building.codegen import Code, brief, plain
from edgesparse.errors import CompileError, UnsupportedError

if TYPE_CHECKING:
    from edgesparse.fallback.emit import Kernel

#: Pointers that a kernel may take, results and workspaces among them.
MAX_POINTERS = 15

#: How many operators Relax may fuse; the next smaller number is tried where a kernel got too many pointers.
_DEPTHS = (32, 6, 2, 1)


@dataclass(frozen=True)
class Part:
    """A lowered sub-graph.

    Attributes
    ----------
    kernels:
        Symbol to PrimFunc: ``void symbol(void *p0, .., const int32_t *a, int32_t begin, int32_t end)``; `a` is not
        read. The symbol holds a hash of the content, so that equal kernels of any sub-graphs are one.
    calls:
        ``(symbol, names)`` in order; the names are the values behind p0, p1, ..: inputs, outputs, workspaces.
    buffers:
        Bytes of each value that is neither an input nor an output nor a constant of the model.
    constants:
        Values by name.
    extents:
        The parallel extent of each kernel: a whole call has ``begin = 0, end = extents[symbol]``, and ranges may be
        shared among threads.
    plain:
        Symbols of the kernels that are to be compiled by `codegen.plain`.
    """

    kernels: Mapping[str, Any]
    calls: tuple[tuple[str, tuple[str, ...]], ...]
    buffers: Mapping[str, int]
    constants: Mapping[str, np.ndarray]
    extents: Mapping[str, int]
    plain: frozenset[str] = frozenset()


def lower_subgraph(model: onnx.ModelProto, prefix: str, target: Mapping[str, Any], barrier: str = "") -> Part:
    """Lower a small ONNX model to kernel calls.

    Parameters
    ----------
    model:
        Valid ONNX with static shapes, constants as initializers.
    prefix:
        What the names of intermediate values and constants begin with; inputs and outputs keep their ONNX names.
    target:
        TVM's target dict.
    barrier:
        Where there is one (see `Target.barrier`), each kernel is compiled and its inner loops are read: of its forms
        the first is taken that does not touch the stack, or the one that does so the least. Else only the vector width
        of the target matters here.

    Raises
    ------
    UnsupportedError
        An operator, attribute, dtype or shape that the frontend does not take; names node, operator and opset.
    CompileError
        TVM failed after the import.
    """
    from edgesparse.fallback.prepare import prepared
    from edgesparse.fallback.refuse import refuse

    refuse(model)
    model = prepared(model)
    with _quiet():
        module = _imported(model)
    try:
        with _quiet():
            lowered = _fused(module)
        return _Collector(model, prefix, target, barrier).collect(lowered)
    except (UnsupportedError, CompileError):
        raise
    except Exception as error:  # out of TVM's C++: any kind
        raise CompileError(f"cannot lower {_described(model)}", why=brief(error)) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep TVM's own words (prints, C++ warnings) away from the user's streams; errors come as exceptions."""
    sys.stderr.flush()
    kept = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(sink)
        os.close(kept)


def vector_lanes(target: Mapping[str, Any]) -> int:
    """float32 values in a vector register of a target, as LLVM tells."""
    import tvm

    with tvm.target.Target(dict(target)) as bound:
        bits = int(tvm.get_global_func("target.llvm_get_vector_width")(bound))
    return max(4, min(16, bits // 32))


def _described(model: onnx.ModelProto, hint: str = "") -> str:
    """The nodes of a model by name and operator; those that a message speaks of if there are any."""
    named = [node for node in model.graph.node if node.op_type.lower() in hint.replace("_", "").lower()]
    nodes = [f"node {(node.name or node.output[0])!r} ({node.op_type})" for node in named or model.graph.node]
    return ", ".join(nodes[:3]) + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")


def _opset(model: onnx.ModelProto) -> str:
    return ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import)


def _imported(model: onnx.ModelProto) -> Any:
    """The Relax module of a model."""
    from tvm.relax.frontend.onnx import from_onnx

    from edgesparse.fallback.prepare import constants_held

    fix = "rewrite the model without it (for instance by exporting with another opset), or open an issue"
    for value in (*model.graph.input, *model.graph.output):
        shape = value.type.tensor_type.shape
        if not value.type.HasField("tensor_type") or any(not dim.HasField("dim_value") for dim in shape.dim):
            raise UnsupportedError(
                f"{_described(model)}, opset {_opset(model)}",
                why=f"value {value.name!r} has no static shape",
                fix="fix dynamic dimensions with --shape",
            )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return from_onnx(model, keep_params_in_input=False)
            except Exception:
                # ONNX defines many operators by others: once more with those definitions in their place.
                plain = onnx.inliner.inline_selected_functions(model, [], exclude=True, inline_schema_functions=True)
                if len(plain.graph.node) == len(model.graph.node):
                    raise
                return from_onnx(constants_held(plain), keep_params_in_input=False)
    except Exception as error:  # the frontend raises what it likes
        traceback.clear_frames(error.__traceback__)  # half-built Relax complains when it goes: let it go here
        raise UnsupportedError(
            f"cannot lower {_described(model, brief(error))}, opset {_opset(model)}", why=brief(error), fix=fix
        ) from error


def _fused(module: Any) -> Any:
    """Legalised and fused, with at most `MAX_POINTERS` parameters in each function if fusion is the reason."""
    import tvm
    from tvm import relax

    passes = relax.transform
    legalize = passes.LegalizeOps({"relax.cumsum": _cumsum})
    first = [passes.DecomposeOpsForInference(), passes.FoldConstant(), legalize, passes.FoldConstant()]
    legal = tvm.ir.transform.Sequential([*first, passes.AnnotateTIROpPattern()])(module)
    for depth in _DEPTHS:
        with tvm.transform.PassContext(config={"relax.FuseOps.max_depth": depth}):
            fusion = [passes.FuseOps(), passes.FuseTIR(), passes.DeadCodeElimination()]
            fused = tvm.ir.transform.Sequential(fusion)(legal)
        if all(len(func.params) <= MAX_POINTERS - 3 for _, func in _functions(fused)):
            break
    return fused


def _cumsum(builder: Any, call: Any) -> Any:
    """Relax has no lowering of its own for a running sum on a CPU; TVM's operator library has."""
    from tvm import topi

    attrs = call.attrs
    axis = None if attrs.axis is None else int(attrs.axis)
    dtype = str(attrs.dtype) if attrs.dtype else None
    return builder.call_te(topi.cumsum, call.args[0], axis, dtype, bool(attrs.exclusive))


def _functions(module: Any) -> Iterator[tuple[str, Any]]:
    from tvm import tirx

    for var, func in module.functions.items():
        if isinstance(func, tirx.PrimFunc):
            yield str(var.name_hint), func


class _Collector:
    """Reads a straight-line Relax function: bindings in order, each a kernel call or another name for a value."""

    def __init__(self, model: onnx.ModelProto, prefix: str, target: Mapping[str, Any], barrier: str) -> None:
        self.model, self.prefix, self.target, self.barrier = model, prefix, target, barrier
        self.lanes = vector_lanes(target)
        self.kernels: dict[str, Any] = {}
        self.extents: dict[str, int] = {}
        self.plain: set[str] = set()
        self.calls: list[tuple[str, tuple[str, ...]]] = []
        self.buffers: dict[str, int] = {}
        self.constants: dict[str, np.ndarray] = {}
        #: Relax variable to the names of the values it stands for: one, or those of a tuple.
        self.names: dict[Any, tuple[str, ...]] = {}
        self.made: dict[str, tuple[str, tuple[int, ...]]] = {}

    def collect(self, module: Any) -> Part:
        main = module["main"]
        held = {item.name for item in self.model.graph.initializer}
        inputs = [value.name for value in self.model.graph.input if value.name not in held]
        if len(inputs) != len(main.params):
            raise self._unsupported(f"Relax takes {len(main.params)} inputs, ONNX has {len(inputs)}")
        for name, param in zip(inputs, main.params, strict=True):
            self.names[param] = (name,)
        results = self._results(main.body)
        for block in main.body.blocks:
            for binding in block.bindings:
                self._bind(module, binding.var, binding.value)
        made = [name for expr in results for name in self._values(expr)]
        outputs = [value.name for value in self.model.graph.output]
        if len(made) != len(outputs):
            raise self._unsupported(f"Relax gives {len(made)} outputs, ONNX has {len(outputs)}")
        for name, output in zip(made, outputs, strict=True):
            have = int(np.prod(self.made[name][1], dtype=np.int64)) if name in self.made else None
            if have not in (None, self._declared(output)[1]):
                raise self._unsupported(f"Relax gives {output!r} another shape than ONNX does")
        self._rename(made, outputs)
        return Part(self.kernels, tuple(self.calls), self.buffers, self.constants, self.extents, frozenset(self.plain))

    def _results(self, body: Any) -> list[Any]:
        return list(body.body.fields) if hasattr(body.body, "fields") else [body.body]

    def _unsupported(self, why: str, kind: str = "") -> UnsupportedError:
        return UnsupportedError(
            f"cannot lower {_described(self.model, kind)}, opset {_opset(self.model)}",
            why=why,
            fix="fix all shapes with --shape, or rewrite the model without it",
        )

    def _bind(self, module: Any, var: Any, value: Any) -> None:
        from tvm import relax

        if isinstance(value, relax.Call) and value.op.name == "relax.call_tir":
            self._call(module, var, value)
        elif isinstance(value, relax.TupleGetItem):
            self.names[var] = (self._values(value.tuple_value)[int(value.index)],)
        elif isinstance(value, relax.Call):
            kind = str(value.op.name).removeprefix("relax.")
            raise self._unsupported(f"Relax leaves {kind} to its runtime", kind)
        else:
            self.names[var] = self._values(value)

    def _values(self, expr: Any) -> tuple[str, ...]:
        """The names of the values an expression stands for."""
        from tvm import ir, relax

        if isinstance(expr, ir.GenericConst):
            return (self._constant(expr.value.numpy()),)
        if isinstance(expr, relax.Tuple):
            return tuple(name for field in expr.fields for name in self._values(field))
        if isinstance(expr, relax.TupleGetItem):
            return (self._values(expr.tuple_value)[int(expr.index)],)
        if expr in self.names:
            return self.names[expr]
        raise self._unsupported(f"Relax leaves a {type(expr).__name__} as value")

    def _constant(self, array: np.ndarray) -> str:
        content = np.ascontiguousarray(array)
        digest = hashlib.sha256(repr((content.dtype.str, content.shape)).encode() + content.tobytes()).hexdigest()
        name = f"{self.prefix}c_{digest[:16]}"
        self.constants[name] = content.reshape(array.shape)
        return name

    def _call(self, module: Any, var: Any, value: Any) -> None:
        from tvm import relax

        callee, arguments = value.args[0], value.args[1]
        given = [name for field in arguments.fields for name in self._values(field)]
        types = value.ty_args[0]
        fields = list(types.fields) if isinstance(types, relax.TupleType) else [types]
        made = []
        for item in fields:
            name = f"{self.prefix}t{len(self.made)}"
            shape = tuple(int(dim) for dim in item.shape)
            self.made[name] = (str(item.dtype), shape)
            self.buffers[name] = _nbytes(*self.made[name])
            made.append(name)
        self.names[var] = tuple(made)
        self._add(str(callee.name_hint), module[callee], [*given, *made])

    def _add(self, hint: str, func: Any, names: list[str]) -> None:
        from edgesparse.fallback.nests import NotSimple

        try:
            kernel = self._kernel(hint, func)
        except NotSimple as error:
            raise self._unsupported(f"{hint} has {error}, which is not foreseen") from error
        digest = hashlib.sha256(f"{self.lanes} {kernel.plain} {kernel.func.script()}".encode()).hexdigest()
        symbol = f"es_relax_{hint[:40]}_{digest[:16]}"
        for size in kernel.workspaces:
            name = f"{self.prefix}w{len(self.buffers)}"
            self.buffers[name] = size
            names.append(name)
        if len(names) > MAX_POINTERS:
            raise self._unsupported(f"{hint} needs {len(names)} pointers, {MAX_POINTERS} are possible")
        self.kernels[symbol] = kernel.func.with_attr("global_symbol", symbol)
        self.extents[symbol] = kernel.extent
        if kernel.plain:
            self.plain.add(symbol)
        self.calls.append((symbol, tuple(names)))

    def _kernel(self, hint: str, func: Any) -> Kernel:
        from edgesparse.fallback.apart import apart
        from edgesparse.fallback.emit import Form, emit
        from edgesparse.fallback.nests import optimise, parse

        function, form = optimise(parse(func)), Form(self.lanes)
        if not self.barrier:
            return emit(function, form)

        def made() -> Iterator[Kernel]:
            for each in form.modest(self.barrier):
                cut = apart(function, MAX_POINTERS - len(function.params)) if each.apart else function
                kernel = None if cut is None else emit(cut, each)
                if kernel and (each == form or len(function.params) + len(kernel.workspaces) <= MAX_POINTERS):
                    yield kernel

        def compiled(kernel: Kernel) -> Code:
            return Code({"kernel": kernel.func}, plain(self.target) if kernel.plain else self.target)

        return registers.least(hint, made(), compiled).form

    def _rename(self, made: list[str], outputs: list[str]) -> None:
        """Give the results their ONNX names; what is not a fresh value (an input, a constant, a double) is copied."""
        fresh: dict[str, str] = {}
        for name, output in zip(made, outputs, strict=True):
            if name in self.made and name not in fresh and self.made[name][0] == self._declared(output)[0]:
                fresh[name] = output
        self.calls = [(symbol, tuple(fresh.get(name, name) for name in names)) for symbol, names in self.calls]
        for name in fresh:
            del self.buffers[name]
        for name, output in zip(made, outputs, strict=True):
            if fresh.get(name) != output:
                self._copy(name, fresh.get(name, name), output)

    def _declared(self, name: str) -> tuple[str, int]:
        """Dtype and elements of an input or output, as ONNX declares it."""
        graph = self.model.graph
        value = next(value for value in (*graph.output, *graph.input) if value.name == name)
        shape = [int(dim.dim_value) for dim in value.type.tensor_type.shape.dim]
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)).name
        return dtype, int(np.prod(shape, dtype=np.int64))

    def _copy(self, name: str, source: str, output: str) -> None:
        """Copy a value to an output, to its dtype (Relax's operators sometimes differ from ONNX in it)."""
        from tvm import te

        dtype, count = self._declared(output)
        held = self.constants.get(name)
        if name in self.made:
            kind = self.made[name][0]
        else:
            kind = held.dtype.name if held is not None else self._declared(name)[0]
        given = te.placeholder((count,), kind)
        copied = te.compute((count,), lambda i: given[i].astype(dtype))
        self._add("copy", te.create_prim_func([given, copied]), [source, output])


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    return int(np.dtype(dtype).itemsize * np.prod(shape, dtype=np.int64))
