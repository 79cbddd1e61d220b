"""What the compiler's steps made, as JSON values: for `--dump-after` and `inspect --plan`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgesparse.graph.ops import Graph
from edgesparse.lowering.program import Program
from edgesparse.planning.place import Placement, kind_of
from edgesparse.planning.plan import Plan


def describe_graph(graph: Graph) -> dict[str, Any]:
    """The operations in order, with the ONNX nodes that are fused in each."""
    ops = [
        {
            "name": op.name,
            "kind": kind_of(op),
            "nodes": list(op.nodes),
            "inputs": list(op.inputs),
            "outputs": {name: list(graph.values[name].shape) for name in op.outputs},
        }
        for op in graph.ops
    ]
    return {"inputs": list(graph.inputs), "outputs": list(graph.outputs), "ops": ops}


def describe_plan(graph: Graph, plan: Plan) -> dict[str, Any]:
    """Layouts of the images and the stages: what each makes, what is made inside of it, in how many steps."""
    values = {
        name: {
            "shape": list(graph.values[name].shape),
            "rows_per_band": layout.rows,
            "bands": layout.bands * layout.images,
            "resident_bands": layout.ring,
            "pitch": layout.pitch,
            "bytes": layout.nbytes,
            "waits": name in plan.waiting,
        }
        for name, layout in plan.layouts.items()
    }
    stages = []
    for stage in plan.stages:
        steps = [step for strip in stage.strips for step in strip]
        made = list(dict.fromkeys(graph.ops[step.op].name for step in reversed(steps)))
        stages.append({"makes": made[0], "inside": made[:0:-1], "strips": len(stage.strips), "steps": len(steps)})
    return {"depth_first": plan.depth_first, "strips": plan.strips, "values": values, "stages": stages}


def describe_placements(placements: Mapping[str, Placement]) -> list[dict[str, Any]]:
    """One record a layer: kernel, runner-up, times and reason."""
    return [placement.record() for placement in placements.values()]


def describe_program(program: Program) -> dict[str, Any]:
    """The calls with their kernels, and where buffers lie in the arena."""
    calls = [
        {
            "kernel": call.kernel,
            "layer": program.layers[call.layer],
            "pointers": [f"{ref.name}+{ref.offset}" for ref in call.refs],
            "range": [call.begin, call.end],
        }
        for call in program.calls
    ]
    buffers = {buffer.name: [program.offsets[buffer.name], buffer.nbytes] for buffer in program.buffers}
    constants = {name: [str(array.dtype), list(array.shape)] for name, array in program.constants.items()}
    return {"arena_bytes": program.arena_bytes, "buffers": buffers, "constants": constants, "calls": calls}
