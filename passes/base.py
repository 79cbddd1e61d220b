"""The contract of a pass, and the driver that runs them one after another and checks each one's work.

A pass takes an `onnx_ir.Model`, edits it in place or makes another one, and says honestly whether anything
changed and, with a `Reason` each, what it left alone. The driver works on a copy of the caller's model, so
that a pass that fails half-way harms nobody.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import CheckerPass, ShapeInferencePass

from edgesparse.errors import EdgesparseError, ModelError, Reason, UsageError


@dataclass(frozen=True)
class PassResult:
    """What a pass did: the model, whether it differs from the one given, and why things were left as they
    are.
    """

    model: ir.Model
    modified: bool
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True)
class Pass:
    """A named step from model to model. `run` may raise any EdgesparseError; others count as bugs of the
    pass.
    """

    name: str
    run: Callable[[ir.Model], PassResult]


@dataclass(frozen=True)
class RunResult:
    """What a sequence of passes did; `ran` names them in order."""

    model: ir.Model
    modified: bool
    reasons: tuple[Reason, ...]
    ran: tuple[str, ...]


def run_passes(
    model: ir.Model,
    passes: Sequence[Pass],
    *,
    on_step: Callable[[str, PassResult], None] | None = None,
    stop_after: str | None = None,
    dump: Callable[[str, ir.Model], None] | None = None,
    keep: bool = True,
) -> RunResult:
    """Run `passes` in order on a copy of `model`; after each the model must be valid and keep its signature.

    Parameters
    ----------
    on_step:
        Called with each pass's name and result, once it is checked: for progress.
    stop_after:
        Name of the last pass to run. UsageError if there is none of this name.
    dump:
        Called with each pass's name and model: for `--dump-after`.
    keep:
        False for a model that the caller has no more use for: it is changed itself, so that weights can be freed as
        soon as others take their place.

    Raises ------ ModelError: a pass made an invalid model, changed its inputs or outputs, or crashed; it is
    named, with those that ran before. Errors that passes raise on purpose keep their class and are told with
    the pass's name.
    """
    names = [step.name for step in passes]
    if stop_after is not None and stop_after not in names:
        near = difflib.get_close_matches(stop_after, names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"unknown step {stop_after!r}", fix=f"{hint}steps are {', '.join(names)}")
    if keep:
        model = model.clone()
    before = signature(model)
    modified = False
    reasons: list[Reason] = []
    ran: list[str] = []
    for step in passes:
        result = _run_one(step, model, before, ran)
        model = result.model
        modified = modified or result.modified
        reasons.extend(result.reasons)
        ran.append(step.name)
        if on_step:
            on_step(step.name, result)
        if dump:
            dump(step.name, model)
        if step.name == stop_after:
            break
    return RunResult(model, modified, tuple(reasons), tuple(ran))


Signature = tuple[tuple[str, str, str | None, tuple[int | None, ...] | None], ...]


def signature(model: ir.Model) -> Signature:
    """Inputs and outputs in order: ("input" or "output", name, dtype, dims), None for what is open."""
    rows = []
    for side, values in (("input", model.graph.inputs), ("output", model.graph.outputs)):
        for value in values:
            dims = None
            if value.shape is not None:
                dims = tuple(dim if isinstance(dim, int) else None for dim in value.shape)
            rows.append((side, value.name or "", str(value.dtype) if value.dtype else None, dims))
    return tuple(rows)


def check_model(model: ir.Model) -> None:
    """Raise ModelError if the model is not valid ONNX: checker and strict shape inference on the whole graph."""
    try:
        CheckerPass(full_check=True)(model)
    except Exception as error:  # of a dozen classes, some from C++
        raise ModelError("the model is not valid ONNX", why=first_line(error)) from error


def infer_shapes(model: ir.Model) -> None:
    """Fill in the shapes and dtypes of all values, in place, as far as ONNX's inference knows them.

    Without data propagation: it holds every element of a ConstantOfShape as an object of its own, so that a file of
    100 bytes can fill the memory. Folding computes shapes that are data, with bounds.
    """
    logger = logging.getLogger(ShapeInferencePass.__module__)
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # a model that is refused in words later would be a traceback in the log first
    try:
        ShapeInferencePass(check_type=True, strict_mode=False, data_prop=False)(model)
    finally:
        logger.setLevel(level)


def first_line(error: BaseException) -> str:
    """The first telling line of a foreign exception, bounded in length, for the `why` of ours."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _run_one(step: Pass, model: ir.Model, before: Signature, ran: Sequence[str]) -> PassResult:
    history = f"it ran after {', '.join(ran)}" if ran else "it was the first to run"
    try:
        result = step.run(model)
    except EdgesparseError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {first_line(error)}; {history}"
        raise ModelError(f"pass {step.name} crashed", why=why, fix="please report it with the model") from error
    if not result.modified:
        return result
    infer_shapes(result.model)
    try:
        check_model(result.model)
    except ModelError as error:
        why = f"{error.why}; {history}"
        raise ModelError(f"pass {step.name} made an invalid model", why=why, fix="please report it") from error
    if not _same(before, signature(result.model)):
        why = f"{before} became {signature(result.model)}; {history}"
        raise ModelError(f"pass {step.name} changed the inputs or outputs", why=why, fix="please report it")
    return result


def _same(before: Signature, after: Signature) -> bool:
    """Equal names, dtypes and dims; what was open before may be known after."""
    if len(before) != len(after):
        return False
    for (side, name, dtype, dims), (new_side, new_name, new_dtype, new_dims) in zip(before, after, strict=True):
        if (side, name) != (new_side, new_name) or (dtype and dtype != new_dtype):
            return False
        if dims is None:
            continue
        if new_dims is None or len(dims) != len(new_dims):
            return False
        if any(a is not None and a != b for a, b in zip(dims, new_dims, strict=True)):
            return False
    return True
