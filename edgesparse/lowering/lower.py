"""Lowering: every step of the plan becomes kernel calls, every weight a packed constant.

A method per family of operations. Kernels are collected as specs (equal specs are one kernel); what goes through Relax
comes as ready parts (`fallback.relaxed`) whose calls are taken over.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgesparse.errors import CompileError
from edgesparse.graph.ops import (
    Attention,
    Concat,
    Conv,
    Elementwise,
    Fallback,
    GlobalPooling,
    Graph,
    Interleave,
    LayerNorm,
    Linear,
    Op,
    Pooling,
    Recurrence,
    TopK,
    View,
)
from edgesparse.kernels import (
    Depthwise,
    GlobalPool,
    KernelSpec,
    Largest,
    Panel,
    Pointwise,
    Pool,
    Window,
)
from edgesparse.kernels.spmm import AFFINE_AT
from edgesparse.lowering.columns import lower_attention, lower_linear, lower_norm, lower_view
from edgesparse.lowering.emitter import Emitter, Place, bits_of
from edgesparse.lowering.program import ARENA, Layout, Port, Program, Ref
from edgesparse.lowering.recurrent import lower_recurrence
from edgesparse.lowering.strassen import lower_strassen, strassen_levels
from edgesparse.lowering.upsample import lower_interleave
from edgesparse.lowering.winograd import lower_winograd
from edgesparse.planning.algorithms import WINOGRAD
from edgesparse.planning.gathering import PANEL, Gathering, window_of
from edgesparse.planning.order import Step
from edgesparse.planning.packing import pack
from edgesparse.planning.place import Placement
from edgesparse.planning.plan import Plan
from edgesparse.planning.products import accumulators, kernel_of, near
from edgesparse.target import Target

#: Where weights are held in registers, or a vector holds a row, rows that share their loads pay up to this many times
#: the vectors of a plane that is run through across row ends (elsewhere, where an operand may come from memory, not).
_ROWS_PAY = 1.2


@dataclass(frozen=True)
class Part:
    """A fallback part (see `relaxed`): calls (symbol, value names, extent), its own buffers, constants, code."""

    calls: tuple[tuple[str, tuple[str, ...], int], ...]
    buffers: Mapping[str, int]
    constants: Mapping[str, np.ndarray]
    objects: tuple[bytes, ...]


@dataclass(frozen=True)
class Lowered:
    """A program before its buffers have places, and the kernels it calls."""

    program: Program
    kernels: Mapping[str, KernelSpec]
    objects: tuple[bytes, ...]


class _Lowering(Emitter):
    """A method per family of operations."""

    @functools.cached_property
    def consumers(self) -> dict[str, list[Op]]:
        """The operations that read each value."""
        return self.graph.consumers()

    @functools.cached_property
    def shared_places(self) -> frozenset[str]:
        """Values that are another's elements under another shape, and those others."""
        views = [op for op in self.graph.ops if isinstance(op, View)]
        return frozenset(name for op in views for name in (*op.inputs, *op.outputs))

    @functools.cached_property
    def times(self) -> dict[str, tuple[int, int]]:
        """When each operation begins and ends: by steps, or by stages where threads share them."""
        found: dict[str, tuple[int, int]] = {}
        step = 0
        for number, stage in enumerate(self.plan.stages):
            for each in (each for steps in stage.strips for each in steps):
                step += 1
                time = step if self.plan.strips == 1 else number
                name = self.graph.ops[each.op].name
                found[name] = (found.get(name, (time, time))[0], time)
        return found

    def product(
        self,
        op: Conv | Linear | Recurrence,
        weight: np.ndarray,
        tag: str,
        pixels: int,
        x: tuple[Ref, int],
        y: tuple[Ref, int],
        residual: tuple[Ref, int] | None,
        first_row: int = 0,
        where: Gathering | None = None,
    ) -> None:
        """``y = epilogue(weight x + bias)`` over one call's pixels, as placed; `first_row` is its place in the bias."""
        placement = self.placements[op.name]
        chosen = placement.product
        assert chosen is not None
        levels = strassen_levels(self.plan, op, placement, pixels) if where is None else 0
        if levels:
            lower_strassen(self, op, chosen, levels, pixels, x, y, residual)
            return
        key = f"{op.name}/{tag}"
        if key not in self.packs:
            held = near(pixels, self.target)
            self.packs[key] = pack(weight, chosen.group, dense=chosen.dense, near=held)
        bias = self.constant(f"{op.name}/bias", lambda: np.ascontiguousarray(op.bias, np.float32))
        for number, part in enumerate(self.packs[key]):
            spec = kernel_of(chosen, part.group, pixels, weight.shape[1], op.epilogue, self.target, where)
            refs = [x[0], self.constant(f"{key}/values{number}", lambda part=part: part.values)]  # type: ignore[misc]
            args: list[int | Ref] = [y[1], residual[1] if residual else 0]
            if part.start is None or part.column is None:
                args += [x[1], part.depth]
            else:
                refs.append(self.constant(f"{key}/start{number}", lambda part=part: part.start))  # type: ignore[misc]
                try:
                    columns = where.offsets(part) if where else part.offsets(x[1])
                except OverflowError as error:
                    raise CompileError(f"layer {op.name!r} is too large", why=str(error)) from error
                of = f"{where.form}{where.window.rows}x{x[1]}" if where else f"x{x[1]}"
                refs.append(self.constant(f"{key}/column{number}{of}", lambda columns=columns: columns))  # type: ignore[misc]
            refs.append(Ref(bias.name, 4 * (first_row + part.first)))
            if isinstance(op, Conv) and op.epilogue.affine:
                args += [*[0] * (AFFINE_AT - len(args)), *bits_of(op.affine)]
            if residual:
                refs.append(Ref(residual[0].name, residual[0].offset + 4 * part.first * residual[1]))
            refs.append(Ref(y[0].name, y[0].offset + 4 * part.first * y[1]))
            self.call(spec, refs, args, part.groups, part.start)
        whole = isinstance(op, Conv) and len(self.packs[key]) == 1 and weight.shape[0] == op.weight.shape[0]
        if whole and self.plan.layouts[op.output].images == 1:
            self.made(op.output, self.packs[key][0].group)

    def conv(self, op: Conv, step: Step) -> None:
        y = self.span(op.output, step.image, step.first, step.last)
        assert y is not None
        residual = (
            self.span(op.inputs[1], step.image, step.first, step.last) if op.epilogue.residual != "none" else None
        )
        if op.epilogue.residual != "none" and residual is None:
            raise CompileError(
                f"layer {op.name!r}: its residual lies in other bands", fix="this is a bug in edgesparse"
            )
        if op.depthwise:
            self._depthwise(op, step, y, residual)
            return
        _, layout = self.image(op.output)
        pixels = (step.last - step.first) * layout.width
        x = self.span(op.inputs[0], step.image, step.first, step.last) if op.pointwise else None
        if x is not None:
            self.product(op, op.weight[:, :, 0], "w", pixels, x, y, residual)
            return
        placement = self.placements[op.name]
        # A thread's share may begin or end within a band: a row without its partner goes the usual way.
        if placement.algorithm == WINOGRAD.name and placement.product is not None and (step.last - step.first) % 2 == 0:
            lower_winograd(self, op, step, placement.product, y, residual)
            return
        assert placement.product is not None
        where = Gathering(self._window(op, step.last - step.first), placement.product.form)
        self._convolve(op, where, self._gather(op, step, where), y, residual)

    def _convolve(
        self, op: Conv, where: Gathering, block: str, y: tuple[Ref, int], residual: tuple[Ref, int] | None
    ) -> None:
        """The products of a k x k convolution, group by group of channels, on what was gathered of one band."""
        matrix = op.weight.reshape(op.weight.shape[0], -1)
        rows = matrix.shape[0] // op.groups
        channels = matrix.shape[1] // len(where.window.taps)
        for group in range(op.groups):
            at = rows * group
            first = group * channels * len(where.copied.taps) * where.pitch
            for call in range(where.calls):
                shifted = [
                    (Ref(ref.name, ref.offset + 4 * (at * pitch + call * where.pixels)), pitch)
                    for ref, pitch in (y, *([residual] if residual else []))
                ]
                self.product(
                    op,
                    matrix[at : at + rows],
                    f"w{group}",
                    where.pixels,
                    (Ref(block, 4 * (first + where.start(call))), where.pitch),
                    shifted[0],
                    shifted[1] if residual else None,
                    at,
                    where,
                )

    def _window(self, op: Conv | Pooling, rows: int) -> Window:
        return window_of(op, self.image(op.inputs[0])[1], self.image(op.output)[1], rows)

    def _gather(self, op: Conv, step: Step, where: Gathering) -> str:
        """Gather what the products of a band read into a scratch block; gives its buffer."""
        window, copied = where.window, where.copied
        _, source = self.image(op.inputs[0])
        block = self.buffer(f"panel{self.strip}:{op.name}", 4 * source.channels * len(copied.taps) * where.pitch)
        if self.target.few:
            window, copied = window.by_rows, copied.by_rows
        if where.form == PANEL:
            table = self.rows(op.inputs[0], step.image, window, step.first)
        else:
            found = self.rows_from(op.inputs[0], step.image, window.first_row(step.first), window.rows_in)
            table = [found[at + row] for at in (0, window.rows_in) for row in where.order]
        ahead = self.target.ahead > 0 and op.inputs[0] in self.graph.inputs and copied is window and not window.flat
        barrier, few = self.target.barrier, self.target.few
        spec = Panel(copied, self.target.lanes, ahead, barrier, where.pitch if barrier else 0, few)
        self.call(spec, [Ref(ARENA), Ref(block)], [where.pitch, 0, *table], source.channels)
        return block

    def _depthwise(self, op: Conv, step: Step, y: tuple[Ref, int], residual: tuple[Ref, int] | None) -> None:
        window = self._window(op, step.last - step.first)
        rows, lanes, wide = window.by_rows, self.target.lanes, self.target.wide
        alike = (self.target.by_lane or wide) and rows.vectors(lanes, wide=wide) <= window.vectors(lanes) * _ROWS_PAY
        if alike or self.target.few:
            window = rows
        spec = Depthwise(
            window,
            op.epilogue,
            self.target.lanes,
            accumulators(self.target),
            op.weight.shape[0] // op.groups,
            self.target.by_lane,
            wide,
            self.target.barrier,
            self.target.few,
        )
        weight = self.constant(f"{op.name}/w", lambda: np.ascontiguousarray(op.weight.reshape(-1), np.float32))
        bias = self.constant(f"{op.name}/bias", lambda: np.ascontiguousarray(op.bias, np.float32))
        refs = [Ref(ARENA), weight, bias, *([residual[0]] if residual else []), y[0]]
        args = [y[1], residual[1] if residual else 0, *self.rows(op.inputs[0], step.image, window, step.first)]
        args += bits_of(op.affine) if op.epilogue.affine else []
        along = op.inputs[0] if op.weight.shape[0] == op.groups and self.plan.layouts[op.output].images == 1 else ""
        self.call(spec, refs, args, op.weight.shape[0], along=along)
        if along:
            self.made(op.output, 1)

    def pooling(self, op: Pooling, step: Step) -> None:
        y = self.span(op.output, step.image, step.first, step.last)
        assert y is not None
        window = self._window(op, step.last - step.first)
        _, source = self.image(op.inputs[0])
        args = [y[1], 0, *self.rows(op.inputs[0], step.image, window, step.first, clamp=op.mode == "max")]
        if op.mode == "avg_valid":
            for row in range(step.first, step.last):
                top = window.first_row(row)
                taps = [top + tap * window.dilation[0] for tap in range(window.kernel[0])]
                args.append(sum(0 <= at < source.height for at in taps))
        target = self.target
        spec = Pool(window, op.mode, target.lanes, accumulators(target), target.barrier, target.few)
        self.call(spec, [Ref(ARENA), y[0]], args, source.channels)

    def elementwise(self, op: Elementwise, step: Step) -> None:
        if self.own(op.output) not in self.places and self._last_reader(op):
            self.places[op.output] = self.place_of(op.inputs[0])
        _, layout = self.image(op.output)
        pixels = (step.last - step.first) * layout.width
        spots = [self.span(name, step.image, step.first, step.last) for name in (op.inputs[0], op.output)]
        x, y = spots
        if x is None or y is None:
            raise CompileError(f"layer {op.name!r}: its input lies in other bands", fix="this is a bug in edgesparse")
        spec = Pointwise(op.op, op.operand, pixels, op.epilogue, self.target.lanes, op.swapped, self.target.barrier)
        refs, z_pitch = [x[0]], 0
        if op.operand == "full":
            z = self.span(op.inputs[1], step.image, step.first, step.last)
            if z is None:
                raise CompileError(
                    f"layer {op.name!r}: its inputs lie in other bands", fix="this is a bug in edgesparse"
                )
            refs.append(z[0])
            z_pitch = z[1]
        elif op.constant is not None:
            constant = op.constant
            refs.append(
                self.constant(f"{op.name}/operand", lambda: np.ascontiguousarray(constant, np.float32).reshape(-1))
            )
            z_pitch = 1
        elif op.operand != "none":
            name = op.inputs[1]
            buffer, at = self.image(name)
            refs.append(Ref(buffer, at.band_offset((step.image if at.images > 1 else 0) * at.bands)))
            z_pitch = at.pitch
        along = op.inputs[0] if layout.images == 1 else ""
        self.call(spec, [*refs, y[0]], [x[1], z_pitch, y[1]], layout.channels, along=along)
        if along:
            self.made(op.output, 1)

    def _last_reader(self, op: Elementwise) -> bool:
        """Whether the output may take the place of the first input: all have read that, and both lie alike."""
        x, y = op.inputs[0], op.output
        if {x, y} & self.plan.waiting or x in (*op.inputs[1:], *self.graph.inputs, *self.graph.outputs):
            return False
        if x in self.shared_places or self.plan.layouts[x] != self.plan.layouts[y]:
            return False
        begins, _ = self.times[op.name]
        return all(other is op or self.times[other.name][1] < begins for other in self.consumers[x])

    def concat(self, op: Concat, step: Step) -> None:
        y = self.span(op.output, step.image, step.first, step.last)
        assert y is not None
        channel = 0
        for name in op.inputs:
            _, layout = self.image(name)
            x = self.span(name, step.image, step.first, step.last)
            if x is None:
                raise CompileError(
                    f"layer {op.name!r}: its inputs lie in other bands", fix="this is a bug in edgesparse"
                )
            spec = self.copy((step.last - step.first) * layout.width)
            self.call(spec, [x[0], Ref(y[0].name, y[0].offset + 4 * channel * y[1])], [x[1], 0, y[1]], layout.channels)
            channel += layout.channels

    def global_pooling(self, op: GlobalPooling) -> None:
        buffer, layout = self.image(op.inputs[0])
        out = self.place_of(op.output)
        for image in range(layout.images):
            args: list[int | Ref] = [layout.height * layout.width, layout.bands]
            for band in range(layout.bands):
                first, last = layout.rows_of(band)
                offset = layout.band_offset(image * layout.bands + band)
                args += [Ref(buffer, offset), layout.pitch, (last - first) * layout.width]
            refs = [Ref(ARENA), Ref(out.buffer, 4 * image * layout.channels)]
            along = op.inputs[0] if layout.images == 1 else ""
            self.call(GlobalPool(op.mode, self.target.lanes), refs, args, layout.channels, along=along)

    def topk(self, op: TopK) -> None:
        spec = Largest(op.count, op.size, op.inner, op.largest, op.dtype)
        refs = [Ref(self.plain(op.inputs[0])), *(Ref(self.place_of(name).buffer) for name in op.outputs)]
        self.call(spec, refs, [], op.rows * op.inner)

    def view(self, op: View) -> None:
        if lower_view(self, op):
            return
        value = self.graph.values[op.output]
        layout = Layout.plain(value.image) if value.image is not None else None
        self.places[op.output] = Place(self.plain(op.inputs[0]), layout)

    def fallback(self, op: Fallback, part: Part) -> None:
        names = {name: self.plain(name) for name in op.inputs}
        names |= {name: self.place_of(name).buffer for name in op.outputs}
        for name, nbytes in part.buffers.items():
            names[name] = self.buffer(name, max(nbytes, 4))
        for name, array in part.constants.items():
            names[name] = self.constant(name, lambda array=array: array).name  # type: ignore[misc]
        for symbol, pointers, extent in part.calls:
            self.emit(symbol, tuple(Ref(names[name]) for name in pointers), (), extent)


def lower(
    graph: Graph, plan: Plan, placements: Mapping[str, Placement], parts: Mapping[str, Part], target: Target
) -> Lowered:
    """Turn a planned and placed graph into a program; `parts` holds the fallback parts by operation name."""
    emitter = _Lowering(graph, plan, target, placements)
    for name in graph.inputs:
        emitter.buffer(emitter.place_of(name).buffer, 0, pinned=True)

    def lower_step(step: Step) -> None:
        emitter.layer = step.op
        _step(emitter, graph.ops[step.op], step, parts)

    for stage in plan.stages:
        emitter.run(stage, lower_step)
    emitter.layer = max(len(graph.ops) - 1, 0)
    inputs = tuple(_port(emitter, name) for name in graph.inputs)
    outputs = tuple(_port(emitter, name) for name in graph.outputs)
    program = Program(
        tuple(emitter.calls),
        tuple(emitter.buffers.values()),
        emitter.constants,
        inputs,
        outputs,
        tuple(op.name for op in graph.ops) or ("nothing",),
        tuple(emitter.stages) if plan.strips > 1 else (),
        strips=plan.strips,
    )
    objects = tuple(dict.fromkeys(code for part in parts.values() for code in part.objects))
    return Lowered(program, emitter.kernels, objects)


def _step(emitter: _Lowering, op: Op, step: Step, parts: Mapping[str, Part]) -> None:
    if isinstance(op, Conv):
        emitter.conv(op, step)
    elif isinstance(op, Pooling):
        emitter.pooling(op, step)
    elif isinstance(op, Elementwise):
        emitter.elementwise(op, step)
    elif isinstance(op, Concat):
        emitter.concat(op, step)
    elif isinstance(op, GlobalPooling):
        emitter.global_pooling(op)
    elif isinstance(op, Linear):
        lower_linear(emitter, op, emitter.product)
    elif isinstance(op, LayerNorm):
        lower_norm(emitter, op)
    elif isinstance(op, Attention):
        lower_attention(emitter, op)
    elif isinstance(op, Recurrence):
        lower_recurrence(emitter, op, emitter.product)
    elif isinstance(op, Interleave):
        lower_interleave(emitter, op)
    elif isinstance(op, TopK):
        emitter.topk(op)
    elif isinstance(op, View):
        emitter.view(op)
    elif isinstance(op, Fallback):
        emitter.fallback(op, parts[op.name])


def _port(emitter: _Lowering, name: str) -> Port:
    """An input or output in ONNX's layout, in a buffer that lives through the whole run."""
    value = emitter.graph.values[name]
    buffer = emitter.plain(name)
    known = emitter.buffers[buffer]
    emitter.buffers[buffer] = replace(known, pinned=True)
    return Port(name, value.dtype, value.shape, buffer)
