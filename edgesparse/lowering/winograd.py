"""Lowering of dense 3x3 convolutions by Winograd's algorithm; see `kernels.winograd`."""

from __future__ import annotations

import numpy as np

from edgesparse.graph.ops import Conv
from edgesparse.kernels import Epilogue, Spmm, WinogradIn, WinogradOut
from edgesparse.kernels.winograd import PLACES, pieces, transformed
from edgesparse.lowering.emitter import Emitter, bits_of
from edgesparse.lowering.program import ARENA, Ref
from edgesparse.planning.order import Step
from edgesparse.planning.packing import pack
from edgesparse.planning.plan import pitch_of
from edgesparse.planning.products import Product, accumulators

Spot = tuple[Ref, int]


def lower_winograd(emitter: Emitter, op: Conv, step: Step, product: Product, y: Spot, residual: Spot | None) -> None:
    """One band: pieces of the input, 16 products, pixels of the output."""
    _, layout = emitter.image(op.output)
    _, source = emitter.image(op.inputs[0])
    outputs, inputs = op.weight.shape[:2]
    rows, target = step.last - step.first, emitter.target
    # The pieces of a band start at its first row, wherever that lies; the tables are those of the 3x3 windows.
    window = pieces(op.pads[0], op.pads[1], source.width, layout.width, rows)
    tiles = window.width_out * window.rows
    pitch = pitch_of(tiles)
    spread = emitter.buffer(f"pieces{emitter.strip}:{op.name}", 4 * PLACES * inputs * pitch)
    made = emitter.buffer(f"places{emitter.strip}:{op.name}", 4 * PLACES * outputs * pitch)
    table = emitter.rows_from(op.inputs[0], step.image, step.first - op.pads[0], window.rows_in)
    emitter.call(WinogradIn(window, target.lanes), [Ref(ARENA), Ref(spread)], [pitch, inputs * pitch, *table], inputs)
    key = f"{op.name}/winograd"
    if key not in emitter.packs:
        packed = [pack(matrix, product.group, dense=True) for matrix in transformed(op.weight)]
        emitter.packs[key] = tuple(part for parts in packed for part in parts)
    nothing = emitter.constant(f"nothing{outputs}", lambda: np.zeros(outputs, np.float32))
    each = len(emitter.packs[key]) // PLACES
    for number, part in enumerate(emitter.packs[key]):
        place = number // each
        vectors = max(1, min(product.vectors, accumulators(target) // part.group))
        spec = Spmm(part.group, tiles, vectors, target.lanes, True, Epilogue(), target.by_lane, few=target.few)
        refs = [
            Ref(spread, 4 * place * inputs * pitch),
            emitter.constant(f"{key}/values{number}", lambda part=part: part.values),  # type: ignore[misc]
            Ref(nothing.name, 4 * part.first),
            Ref(made, 4 * (place * outputs + part.first) * pitch),
        ]
        emitter.call(spec, refs, [pitch, 0, pitch, part.depth], part.groups)
    bias = emitter.constant(f"{op.name}/bias", lambda: np.ascontiguousarray(op.bias, np.float32))
    finish = WinogradOut(window.width_out, window.rows, op.epilogue, target.lanes)
    args: list[int | Ref] = [y[1], residual[1] if residual else 0, pitch, outputs * pitch, *bits_of(op.affine)]
    emitter.call(finish, [Ref(made), bias, *([residual[0]] if residual else []), y[0]], args, outputs)
