"""The way from an ONNX model to an artifact, as one function that can be read aloud.

load -> simplify -> prune           onnx_ir models, valid ONNX after every step
recognise -> plan -> place          operations, layouts and order, kernels and reasons
lower -> build -> link -> write     calls over one arena, objects, library, artifact
"""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import edgesparse
from edgesparse.artifacts import artifact, samples
from edgesparse.artifacts.artifact import Artifact
from edgesparse.artifacts.manifest import Manifest, TensorInfo
from edgesparse.building.build import build_kernels
from edgesparse.building.modules import APART, TWINS, Table, link_module, strip_counts
from edgesparse.errors import CompileError, EdgesparseError, ModelError, UsageError
from edgesparse.graph.ops import Fallback, Graph
from edgesparse.graph.recognise import recognise
from edgesparse.lowering import arena, emit
from edgesparse.lowering.describe import describe_graph, describe_placements, describe_plan, describe_program
from edgesparse.lowering.lower import Lowered, Part, lower
from edgesparse.lowering.program import MOST_STRIPS, Program
from edgesparse.passes.load import data_files
from edgesparse.passes.write import map_weights, model_files
from edgesparse.planning.decide import Choice, decide
from edgesparse.planning.place import Measure, Placement, place
from edgesparse.planning.plan import plan
from edgesparse.portable import Progress, Steps, fingerprint, prepare
from edgesparse.recipe import Recipe
from edgesparse.target import Target

#: The portable form inside an artifact.
PORTABLE = "model.onnx"

#: The packed weights inside an artifact, and those of its dense twin.
WEIGHTS, TWIN_WEIGHTS = "weights.bin", "dense.bin"

#: Steps after the passes, for --stop-after and --dump-after.
COMPILER_STEPS = ("recognise", "plan", "place", "lower")


def compile_model(
    path: Path | str,
    *,
    target: Target,
    output: Path,
    recipe: Recipe | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    force: bool = False,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
    stop_after: str | None = None,
    dump_after: Sequence[str] = (),
    seed: int = 0,
    dense: bool = False,
    tune: bool | None = None,
    measure: Measure | None = None,
    depth_first: bool | None = None,
    band_pixels: int | None = None,
    threads: int = 1,
    strassen: bool = False,
) -> Artifact | None:
    """Compile an ONNX model.

    Parameters
    ----------
    path:
        The model.
    target, output:
        What for, and where the artifact goes: a folder or a file that ends in `.esp`.
    recipe:
        What to prune; None leaves the weights as they are, with whatever zeros they have.
    shapes:
        Input name to shape, for inputs with open dimensions.
    stop_after, dump_after:
        Names of steps: stop there (no artifact; returns None), or also write what they made beside the output: a
        model for the passes, JSON for recognise, plan, place and lower.
    seed:
        Of the sample inputs in the artifact.
    dense:
        Run every layer with the dense kernels, as a baseline.
    tune:
        Choose tiles by measuring; by default where the target is this host.
    measure:
        Gives the seconds of each layer's candidates instead (`trials` measures them inside whole programs).
    depth_first, band_pixels:
        Run chains of wide maps band by band, or layer by layer; pixels of a band. None: by the cost model.
    threads:
        The most threads that the compiled model can use; the results are the same for any number.
    strassen:
        Dense 1x1 and linear layers by Strassen's algorithm where it is measured to be faster; its rounding is coarser.

    Raises
    ------
    EdgesparseError
        One of its kinds, whatever goes wrong; nothing half-written stays.
    """
    tick = progress or (lambda share, text: None)
    if not 1 <= threads <= MOST_STRIPS:
        raise UsageError(f"a program of {threads} threads", why=f"it may have 1 to {MOST_STRIPS}")
    measured = target.runs_here() if tune is None else tune
    if strassen and measure is None and not measured:
        raise UsageError(
            f"Strassen's algorithm for target {target.name}",
            why="it is taken only where it is measured to be faster, and nothing is measured here",
            fix="measure on a device with --tune and --tune-on, or leave it out",
        )
    # Weights lie in mapped files from the model to the artifact, so that memory need not hold them all.
    with artifact.claim(output, force=force) as slot:
        record = Steps(output, stop_after, tuple(dump_after), COMPILER_STEPS)
        beside = data_files(path)
        model = prepare(path, recipe, shapes, tick, notice, record)
        source = fingerprint(Path(path), beside)
        if stop_after is not None and stop_after not in COMPILER_STEPS:
            return None
        room = slot.scratch()
        mapped = map_weights(model, room)
        graph = recognise(model)
        if record.done("recognise", lambda: describe_graph(graph)):
            return None
        apart = threads > 1 and target.runner in APART
        asked = Choice(depth_first, band_pixels)
        decision = decide(graph, target, asked, dense=dense, strips=1 if apart else threads)
        layout = decision.plan
        if record.done("plan", lambda: describe_plan(graph, layout)):
            return None
        parts = _fallback_parts(graph, target, tick)
        tick(0.3, "sample outputs")
        sampled = _samples(mapped, _infos(graph, graph.inputs), _infos(graph, graph.outputs), seed)
        if measure is None and measured:
            measure = _measured_here(target, tick)
        placements = place(graph, layout, target, dense=dense, measure=measure, strassen=strassen)
        if record.done("place", lambda: describe_placements(placements)):
            return None
        lowered = lower(graph, layout, placements, parts, target)
        program = arena.assign(lowered.program)
        if record.done("lower", lambda: describe_program(program)):
            return None
        program = emit.map_constants(program, room / WEIGHTS)
        lowered = replace(lowered, program=program)
        programs = [program]
        if target.runner in TWINS:
            twin = lower(graph, layout, place(graph, layout, target, dense=True), parts, target)
            lowered = replace(lowered, kernels={**lowered.kernels, **twin.kernels})
            programs.append(emit.map_constants(arena.assign(twin.program), room / TWIN_WEIGHTS))
        for strips in strip_counts(threads) if apart else ():
            cut = plan(graph, target, depth_first=layout.depth_first, strips=strips, band_pixels=layout.band_pixels)
            wide = lower(graph, cut, placements, parts, target)
            lowered = replace(lowered, kernels={**lowered.kernels, **wide.kernels})
            # One weights file serves all; only what others had not is kept of this one's.
            known, more = program.constants, wide.program.constants
            fresh = {name: array for name, array in more.items() if name not in known}
            program = replace(program, constants={**known, **fresh})
            programs.append(replace(arena.assign(wide.program), constants={}))
            del wide, more
        if apart:
            program = emit.map_constants(program, room / WEIGHTS)
            programs = [replace(each, constants=program.constants) for each in programs]
        objects = _objects(lowered, target, tick)
        manifest = _manifest(source, target, recipe, program, [placements[op.name] for op in graph.ops])
        manifest = replace(
            manifest,
            info={
                **manifest.info,
                "dense": dense,
                "plan": decision.as_dict(),
                "threads": threads,
                "strassen": strassen,
                "arena_bytes": max(each.arena_bytes for each in programs),
            },
        )
        return _write(slot, manifest, model, objects, programs, target, sampled, tick)


def _manifest(
    source: tuple[str, int], target: Target, recipe: Recipe | None, program: Program, placements: list[Placement]
) -> Manifest:
    """All that the artifact says of itself, but for its files; `source` is the model's fingerprint."""
    return Manifest(
        target=describe_target(target),
        inputs=tuple(TensorInfo(port.name, port.dtype, port.shape) for port in program.inputs),
        outputs=tuple(TensorInfo(port.name, port.dtype, port.shape) for port in program.outputs),
        layers=tuple(placement.record() for placement in placements),
        recipe=recipe.to_dict() if recipe else None,
        tools=tool_versions(),
        info={
            "model_sha256": source[0],
            "model_bytes": source[1],
            "calls": len(program.calls),
            "arena_bytes": program.arena_bytes,
        },
    )


def _write(
    slot: artifact.Claim,
    manifest: Manifest,
    model: ir.Model,
    objects: Sequence[bytes],
    programs: Sequence[Program],
    target: Target,
    sampled: list[samples.Sample],
    tick: Progress,
) -> Artifact:
    """Link, and put all files in their place at once; a second program is the dense twin."""
    tick(0.93, "linking")
    with tempfile.TemporaryDirectory(prefix="edgesparse-") as folder:
        tables = [Table(emit.emit(each).program_c, each.strips) for each in programs]
        module, files = link_module(objects, tables, Path(folder), target)
        tick(0.97, "writing")
        weights = [WEIGHTS, *([TWIN_WEIGHTS] if target.runner in TWINS else [])]
        content: dict[str, artifact.Content] = {**files, **{name: slot.scratch() / name for name in weights}}
        content |= model_files(model, PORTABLE)
        content[samples.NAME] = samples.dump(sampled, manifest.inputs, manifest.outputs)
        return slot.write(replace(manifest, module=module), content)


def _fallback_parts(graph: Graph, target: Target, tick: Progress) -> dict[str, Part]:
    ops = [op for op in graph.ops if isinstance(op, Fallback)]
    if not ops:
        return {}
    from edgesparse.fallback.parts import part_of

    parts = {}
    for index, op in enumerate(ops):
        tick(0.15 + 0.15 * index / len(ops), f"lowering {op.name} through Relax")
        parts[op.name] = part_of(op, index, target)
    return parts


def _measured_here(target: Target, tick: Progress) -> Measure:
    """Measures products on this machine."""
    from edgesparse.planning.tune import measure_products

    return lambda jobs: measure_products(jobs, target, tick=lambda share, text: tick(0.3 + 0.4 * share, text))


def _objects(lowered: Lowered, target: Target, tick: Progress) -> list[bytes]:
    """Code of all kernels; a failure is told with the layers that use the kernel."""

    def step(done: int, of: int, symbol: str) -> None:
        tick(0.7 + 0.22 * done / of, f"building {symbol}")

    users: dict[str, str] = {}
    for call in lowered.program.calls:
        users.setdefault(call.kernel, lowered.program.layers[call.layer])
    found: list[bytes] = []
    for symbol, spec in lowered.kernels.items():
        step(len(found), len(lowered.kernels), symbol)
        try:
            found += build_kernels({symbol: spec}, target).values()
        except EdgesparseError as error:
            what = f"layer {users.get(symbol, '?')!r}: {error.what}"
            raise CompileError(what, why=error.why, fix=error.fix) from error
    return [*found, *lowered.objects]


def _infos(graph: Graph, names: Sequence[str]) -> tuple[TensorInfo, ...]:
    values = [graph.values[name] for name in names]
    return tuple(TensorInfo(value.name, value.dtype, value.shape) for value in values)


def _samples(
    portable: Path, inputs: tuple[TensorInfo, ...], outputs: tuple[TensorInfo, ...], seed: int
) -> list[samples.Sample]:
    """One sample: seeded inputs, and what onnxruntime makes of them."""
    import onnxruntime

    from edgesparse.artifacts.feeds import random_feeds

    feeds = random_feeds(inputs, seed)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors are raised
    try:
        session = onnxruntime.InferenceSession(str(portable), options, providers=["CPUExecutionProvider"])
        names = [info.name for info in outputs]
        try:
            results: list[Any] = session.run(names, feeds)
        except Exception as error:
            if "division by zero" not in str(error):
                raise
            feeds = {name: each if each.dtype.kind == "f" else np.ones_like(each) for name, each in feeds.items()}
            results = session.run(names, feeds)
    except Exception as error:  # onnxruntime has a class of its own for each kind of failure
        raise ModelError("onnxruntime cannot run the portable model", why=str(error).splitlines()[0]) from error
    given = {info.name: np.asarray(result, info.dtype) for info, result in zip(outputs, results, strict=True)}
    return [samples.Sample(feeds, given)]


def describe_target(target: Target) -> dict[str, Any]:
    """The target's fields as JSON values, as runners and `bench` read them."""
    return {
        "name": target.name,
        "triple": target.triple,
        "cpu": target.cpu,
        "features": list(target.features),
        "lanes": target.lanes,
        "registers": target.registers,
        "l1d": target.l1d,
        "l2": target.l2,
        "runner": target.runner,
        "machine": target.machine,
        "needs": sorted(target.needs),
    }


def tool_versions() -> dict[str, str]:
    """Versions of what made an artifact."""
    names = ("apache-tvm", "ziglang", "onnx", "onnxruntime", "numpy")
    return {"edgesparse": edgesparse.__version__, **{name: importlib.metadata.version(name) for name in names}}
