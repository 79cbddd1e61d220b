"""From an .onnx file to a checked model with known shapes, and back to a file.

After `load_model` the graph is sorted and valid, functions are inlined, weights are initializers and no
inputs, every node has a name of its own, the opset is `OPSET` or newer, and every input has a static shape.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes.common import (
    InlinePass,
    RemoveInitializersFromInputsPass,
    RemoveUnusedOpsetsPass,
)

from edgesparse.errors import EdgesparseError, ModelError, UnsupportedError, UsageError
from edgesparse.passes.base import check_model, first_line, infer_shapes
from edgesparse.passes.graph import Array
from edgesparse.passes.untrusted import (
    MAX_ELEMENTS,
    Weights,
    check_extent,
    check_numbers,
    check_proto,
    external_files,
    read_external,
    read_proto,
)
from edgesparse.passes.widen import widen

OPSET = 18
"""Older models are converted to this opset: from here on, axes, bounds and pads are inputs everywhere."""
MIN_IR = 8
"""Older IR versions want weights among the inputs."""
MAX_IR = 10
"""Newer IR versions bring nothing that passes `check_proto`, and released tools do not read them."""
SETTLED = 23
"""A newer opset is only kept where an operator needs it: released tools do not read the newest."""

_HEAVY = 2**16
"""Bytes from which on a weight is kept away from the version converter, which looks at small ones only: shapes, axes,
scales.
"""
_GREW = ("Cast", "CastLike", "Range", "SpaceToDepth")
_CLARIFIED = ("Mod", "BitShift")

Shapes = Mapping[str, tuple[int, ...]]
Notice = Callable[[str], None]


def load_model(path: str | Path, shapes: Shapes | None = None, notice: Notice | None = None) -> ir.Model:
    """Read an ONNX file that anybody may have written.

    Parameters
    ----------
    path:
        The file. External weights are read from its own folder only.
    shapes:
        Input name to shape, for inputs with open dimensions. An open first dimension that is not named here
        becomes 1; other open ones are an error.
    notice:
        Called with a sentence for each thing that was decided for the user.

    Raises
    ------
    ModelError: unreadable, damaged, cyclic or invalid model, NaN weights, data outside the folder.
    UnsupportedError: opsets or dtypes beyond what is understood.
    UsageError: `shapes` does not fit, or dimensions are left open.
    """
    path = Path(path)
    proto = read_proto(path)
    try:
        return model_from_proto(proto, shapes, notice, folder=path.parent)
    except EdgesparseError as error:
        raise type(error)(f"{path.name}: {error.what}", why=error.why, fix=error.fix) from error


def data_files(path: Path | str) -> tuple[str, ...]:
    """Names of the files beside a model that hold weights of it. Raises ModelError, as `load_model` does."""
    path = Path(path)
    proto = read_proto(path)
    try:
        check_proto(proto)
        return external_files(proto, path.parent)
    except EdgesparseError as error:
        raise type(error)(f"{path.name}: {error.what}", why=error.why, fix=error.fix) from error


def model_from_proto(
    proto: onnx.ModelProto,
    shapes: Shapes | None = None,
    notice: Notice | None = None,
    *,
    folder: Path | None = None,
) -> ir.Model:
    """`load_model` for a message in memory, which it may change. Without `folder`, external weights are
    refused.
    """
    notice = notice or (lambda _: None)
    check_proto(proto)
    weights: Weights = {}
    if folder is not None:
        weights = read_external(proto, folder)
    elif any(t.data_location == onnx.TensorProto.EXTERNAL for t in proto.graph.initializer):
        raise ModelError("the model's weights are in other files", why="it was given without its folder")
    check_numbers(proto, weights)
    try:
        model = _upgrade(_ordered(_deserialize(proto, weights)), notice)
    except EdgesparseError:
        raise
    except Exception as error:  # whatever the libraries make of a graph that is no graph
        raise ModelError("the model is not valid ONNX", why=first_line(error)) from error
    _unique_node_names(model)
    _fix_inputs(model, shapes or {}, notice)
    widen(model, notice)
    _renew_shapes(model)
    check_model(model)
    _check_inference(model)
    _check_activations(model)
    return model


def _deserialize(proto: onnx.ModelProto, weights: Weights) -> ir.Model:
    """The model of a message, whose initializers get these arrays; the message is changed."""
    for tensor in proto.graph.initializer:
        if tensor.name in weights:
            tensor.ClearField("data_location")
    model = ir.serde.deserialize_model(proto)
    for name, array in weights.items():
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(array, name=name)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type == "MeanVarianceNormalization" and "axes" not in node.attributes:
            # ONNX's own inference does not put the default into the operator's definition, and fails.
            node.attributes.add(ir.AttrInt64s("axes", [0, 2, 3]))
    RemoveInitializersFromInputsPass()(model)
    if model.functions:
        InlinePass()(model)
        model.functions.clear()
        RemoveUnusedOpsetsPass()(model)
    model.ir_version = min(max(model.ir_version, MIN_IR), MAX_IR)
    return model


def _ordered(model: ir.Model) -> ir.Model:
    """The model with its nodes sorted. Nodes may come in any order, but not in a circle."""
    try:
        model.graph.sort()
    except ValueError as error:
        raise ModelError("the graph has a cycle", why="a node needs its own result", fix="export it again") from error
    return model


def _upgrade(model: ir.Model, notice: Notice) -> ir.Model:
    version = model.opset_imports.get("", model.opset_imports.get("ai.onnx", OPSET))
    if version >= OPSET:
        _settle(model, version)
        return model
    try:
        proto, weights = _converted(model)
    except Exception as error:
        raise UnsupportedError(
            f"opset {version} cannot be converted to {OPSET}",
            why=first_line(error),
            fix=f"export the model with opset_version={OPSET}",
        ) from error
    notice(f"converted from opset {version} to {OPSET}")
    upgraded = _deserialize(proto, weights)
    upgraded.metadata_props.update(model.metadata_props)
    return _ordered(upgraded)


def _converted(model: ir.Model) -> tuple[onnx.ModelProto, Weights]:
    """The model's message in `OPSET`, and its large weights, which are taken from both: converting copies all it is
    given.
    """
    weights: dict[str, Array] = {}
    stubs = []
    for name, value in tuple(model.graph.initializers.items()):
        if value.const_value is not None and value.const_value.nbytes > _HEAVY:
            weights[name] = value.const_value.numpy()
            stubs.append(onnx.TensorProto(name=name, dims=weights[name].shape, data_type=value.const_value.dtype.value))
            del model.graph.initializers[name]
            value.const_value = None
            model.graph.inputs.append(value)
    proto = onnx.version_converter.convert_version(ir.serde.serialize_model(model), OPSET)
    kept = [value for value in proto.graph.input if value.name not in weights]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    proto.graph.initializer.extend(stubs)
    return proto, weights


def _settle(model: ir.Model, version: int) -> None:
    """Name the oldest opset from `SETTLED` on in which all operators of the model mean the same, in place."""
    oldest = SETTLED
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain in ("", "ai.onnx") and onnx.defs.has(node.op_type):
            newest = onnx.defs.get_schema(node.op_type, version)
            if newest.since_version > oldest and not _meant(node, newest):
                oldest = newest.since_version
    if oldest < version:
        model.opset_imports[""] = oldest


def _meant(node: ir.Node, newest: onnx.defs.OpSchema) -> bool:
    """Whether a node already means in `SETTLED` what it means in its schema: only types were added since, the words
    made clearer (`_CLARIFIED`), or attributes added (`_GREW`) that it does not use.
    """
    try:
        old = onnx.defs.get_schema(node.op_type, SETTLED)
    except onnx.defs.SchemaError:
        return False
    ports = [[(port.name, port.option) for port in (*s.inputs, *s.outputs)] for s in (old, newest)]
    taken = {each.type_param_str: set(each.allowed_type_strs) for each in old.type_constraints}
    for value, port in zip(node.inputs, old.inputs, strict=False):
        kind = f"tensor({value.dtype.name.lower()})" if value is not None and value.dtype is not None else ""
        if kind and kind not in taken.get(port.type_str, {kind}):
            return False
    same = (old.doc == newest.doc or node.op_type in _CLARIFIED) and old.attributes.keys() == newest.attributes.keys()
    return ports[0] == ports[1] and (
        same or (node.op_type in _GREW and node.attributes.keys() <= old.attributes.keys())
    )


def _unique_node_names(model: ir.Model) -> None:
    """Names are how recipes and reports speak of nodes: give each its own, and keep those that are."""
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    taken = {node.name for node in nodes if node.name}
    seen: set[str] = set()
    for node in nodes:
        if not node.name or node.name in seen:
            base = node.name or node.op_type
            number = 0
            while f"{base}_{number}" in taken:
                number += 1
            node.name = f"{base}_{number}"
            taken.add(node.name)
        seen.add(node.name)


def _fix_inputs(model: ir.Model, shapes: Shapes, notice: Notice) -> None:
    """Make every input's shape static, in place."""
    by_name = {value.name or "": value for value in model.graph.inputs}
    for name in shapes:
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UsageError(f"the model has no input {name!r}", fix=f"{hint}inputs are {', '.join(by_name)}")
    symbols: dict[str, int] = {}
    for name, shape in shapes.items():
        _bind(name, by_name[name], shape, symbols)
    fixed = {name: shapes.get(name) or _closed(name, value, symbols, notice) for name, value in by_name.items()}
    for name, shape in fixed.items():
        by_name[name].shape = ir.Shape(shape)


def _renew_shapes(model: ir.Model) -> None:
    """Infer all shapes afresh, in place: the stored ones may be stale or hold symbols that are now numbers."""
    declared = {value: value.shape for value in model.graph.outputs}
    inputs = set(model.graph.inputs)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for output in node.outputs:
            output.shape = None
    for value in model.graph.outputs:
        if value not in inputs and value.const_value is None:
            value.shape = None
    infer_shapes(model)
    for value, shape in declared.items():
        if value.shape is None and shape is not None:
            value.shape = ir.Shape([dim if isinstance(dim, int) else None for dim in shape])


def _bind(name: str, value: ir.Value, shape: tuple[int, ...], symbols: dict[str, int]) -> None:
    """Check a given shape against the declared one, and note what each symbol stands for."""
    for extent in shape:
        try:
            check_extent(extent, f"the shape given for {name}")
        except ModelError as error:
            raise UsageError(error.what, why=error.why) from error
    if value.shape is None:
        return
    fits = len(shape) == len(value.shape)
    for given, declared in zip(shape, value.shape, strict=False):
        if isinstance(declared, int):
            fits = fits and given == declared
        elif symbol := _symbol(declared):
            fits = fits and symbols.setdefault(symbol, given) == given
    if not fits:
        raise UsageError(
            f"the shape given for {name} is {_times(shape)}", why=f"the model declares {_times(value.shape)}"
        )


def _closed(name: str, value: ir.Value, symbols: dict[str, int], notice: Notice) -> tuple[int, ...]:
    if value.shape is None:
        raise UsageError(f"the shape of input {name} is open", fix=f"give it, e.g. --shape {name}:1x3x224x224")
    dims: list[int] = []
    for axis, dim in enumerate(value.shape):
        symbol = "" if isinstance(dim, int) else _symbol(dim)
        if isinstance(dim, int):
            dims.append(dim)
        elif symbol in symbols:
            dims.append(symbols[symbol])
        elif axis == 0:
            notice(f"input {name}: batch size {symbol or 'open'} fixed to 1")
            dims.append(1)
            if symbol:
                symbols[symbol] = 1
        else:
            raise UsageError(
                f"input {name} has open dimensions: {_times(value.shape)}",
                why="kernels are made for fixed shapes",
                fix=f"give them, e.g. --shape {name}:{_guess(value.shape)}",
            )
    return tuple(dims)


def _symbol(dim: ir.SymbolicDim) -> str:
    """The name of an open dimension; empty where exporters write a name that is none."""
    name = str(dim.value or "")
    return "" if name in ("?", "None") else name


def _guess(shape: ir.Shape) -> str:
    """A likely shape to show in an example: pictures have extents of 224, sequences of 128."""
    usual = (1, 3, 224, 224) if len(shape) == 4 else (1, *[128] * (len(shape) - 1))
    return _times(dim if isinstance(dim, int) else usual[axis] for axis, dim in enumerate(shape))


def _times(dims: object) -> str:
    return "x".join(str(dim) if isinstance(dim, int) else str(dim.value or "?") for dim in dims)  # type: ignore[attr-defined]


def _check_inference(model: ir.Model) -> None:
    """Refuse operators that are set to train: their results are random, or meant for a next step."""
    for node in model.graph:
        mode = node.attributes.get("training_mode")
        given = node.inputs[2] if node.op_type == "Dropout" and len(node.inputs) > 2 else None
        array = given.const_value.numpy() if given is not None and given.const_value is not None else None
        if (mode is not None and mode.as_int()) or (array is not None and array.any()):
            raise UnsupportedError(
                f"node {node.name} ({node.op_type}) is set to training_mode",
                why="its results are not those of inference",
                fix="export the model in evaluation mode, e.g. after model.eval()",
            )


def _check_activations(model: ir.Model) -> None:
    """Refuse tensors without elements, and those that no 32-bit index reaches."""
    for node in model.graph:
        for value in node.outputs:
            if value.shape is None or value.dtype is None or not value.dtype.is_floating_point():
                continue
            count = 1
            for dim in value.shape:
                if isinstance(dim, int):
                    count *= dim
            # empty lists are how exports say "not given"
            if (count == 0 and len(value.shape) > 1) or count > MAX_ELEMENTS:
                raise ModelError(
                    f"node {node.name} ({node.op_type}) makes {value.name!r} of shape {_times(value.shape)}",
                    why="it has no elements" if count == 0 else f"it has more than {MAX_ELEMENTS} elements",
                    fix="check the input shapes",
                )
