"""Lowering of what works on rows of features: matrix products and layer norms over a feature-major copy of a value.

A value ``[.., rows, features]`` is turned once into a matrix ``[features][pitch]`` whose "pixels" are the rows; all
products that read it share the copy. What such an operation makes stays feature-major, and is turned back only when
somebody asks for it in ONNX's order (see `Emitter.plain`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from edgesparse.graph.ops import Attention, LayerNorm, Linear, View
from edgesparse.kernels import Attention as Heads
from edgesparse.kernels import Norm, Transpose
from edgesparse.lowering.emitter import Emitter, Place
from edgesparse.lowering.program import Ref
from edgesparse.planning.plan import pitch_of
from edgesparse.planning.products import accumulators

Spot = tuple[Ref, int]
Product = Callable[[Linear, np.ndarray, str, int, Spot, Spot, Spot | None], None]


def lower_linear(emitter: Emitter, op: Linear, product: Product) -> None:
    """One row: a product with one pixel. More rows are the pixels of a feature-major matrix."""
    weight = op.weight[:, :, 0]
    residual = op.inputs[1] if op.epilogue.residual != "none" else None
    if op.rows == 1:
        x, y = Ref(emitter.plain(op.inputs[0])), Ref(emitter.place_of(op.output).buffer)
        product(op, weight, "w", 1, (x, 1), (y, 1), (Ref(emitter.plain(residual)), 1) if residual else None)
        return
    x_at = columns(emitter, op.inputs[0], op.rows)
    r_at = columns(emitter, residual, op.rows) if residual else None
    product(op, weight, "w", op.rows, x_at, _made(emitter, op.output, op.rows), r_at)
    _settle_images(emitter, op.output)


def lower_norm(emitter: Emitter, op: LayerNorm) -> None:
    """Layer norm from one feature-major matrix to another."""
    x, x_pitch = columns(emitter, op.inputs[0], op.rows)
    y, y_pitch = _made(emitter, op.output, op.rows)
    spec = Norm(op.rows, emitter.target.lanes, op.epsilon)
    scale = emitter.constant(f"{op.name}/scale", lambda: np.ascontiguousarray(op.scale, np.float32))
    shift = emitter.constant(f"{op.name}/shift", lambda: np.ascontiguousarray(op.shift, np.float32))
    emitter.call(spec, [x, scale, shift, y], [x_pitch, y_pitch, op.scale.size], spec.extent)
    _settle_images(emitter, op.output)


def lower_attention(emitter: Emitter, op: Attention) -> None:
    """One call for each image of the batch; every thread has scores of its own."""
    rows = (op.queries, op.keys, op.keys)
    spots = [columns(emitter, name, op.batch * n) for name, n in zip(op.inputs[:3], rows, strict=True)]
    y, y_pitch = _made(emitter, op.output, op.batch * op.queries)
    mask = _mask(emitter, op)
    most, target = accumulators(emitter.target), emitter.target
    block = 8 if most >= 16 else 4
    spec = Heads(
        op.queries,
        op.keys,
        op.width,
        op.depth,
        op.scale,
        op.mask.kind if op.mask else "none",
        block,
        max(1, most // block),
        target.lanes,
        target.barrier,
        target.few,
    )
    parts = emitter.plan.strips if emitter.shared else 1
    scores = emitter.buffer(f"scores:{op.name}", 4 * spec.workspace * parts)
    pitches = [pitch for _, pitch in spots]
    steps = [step * pitch for (_, step), pitch in zip(op.starts, pitches, strict=True)]
    args = [*pitches, y_pitch, *steps, op.depth * y_pitch, op.heads, parts]
    if mask is not None and mask.kind == "queries":
        args += [mask.pitch, mask.head]
    for image in range(op.batch):
        refs = [
            Ref(ref.name, ref.offset + 4 * (first * pitch + image * n))
            for (ref, pitch), (first, _), n in zip(spots, op.starts, rows, strict=True)
        ]
        if mask is not None:
            refs.append(Ref(mask.at.name, 4 * mask.image * image))
        refs += [Ref(scores), Ref(y.name, y.offset + 4 * image * op.queries)]
        emitter.call(spec, refs, list(args), op.heads)
    _settle_images(emitter, op.output)


class _Masks(NamedTuple):
    """Where an attention's mask lies: its pitch, and elements from head to head and from image to image."""

    kind: str
    at: Ref
    pitch: int
    head: int
    image: int


def _mask(emitter: Emitter, op: Attention) -> _Masks | None:
    """The mask, for queries feature-major: turned once for all that add it, at compile time if it is constant."""
    mask = op.mask
    if mask is None:
        return None
    rows, values = mask.batch * mask.heads * mask.queries, mask.values
    if mask.kind == "keys":
        plain = (
            Ref(emitter.plain(mask.name))
            if values is None
            else emitter.constant(f"{mask.name}/mask", lambda: np.ascontiguousarray(values, np.float32))
        )
        return _Masks(mask.kind, plain, 0, 0, op.keys if mask.batch > 1 else 0)
    if values is None:
        at, pitch = columns(emitter, mask.name, rows)
    else:
        pitch = pitch_of(rows)
        at = emitter.constant(f"{mask.name}/mask", lambda: np.pad(values.T, ((0, 0), (0, pitch - rows))))
    per_image = mask.heads * mask.queries
    return _Masks(mask.kind, at, pitch, mask.queries * (mask.heads > 1), per_image * (mask.batch > 1))


def lower_view(emitter: Emitter, op: View) -> bool:
    """Another shape of a feature-major value with the same features; False where it is none."""
    source, value = emitter.graph.values[op.inputs[0]], emitter.graph.values[op.output]
    known = emitter.columns.get(op.inputs[0])
    if known is None or value.image is not None or source.image is not None:
        return False
    if value.shape[-1:] != source.shape[-1:]:
        return False
    emitter.columns[op.output] = known
    emitter.places[op.output] = Place(emitter.place_of(op.inputs[0]).buffer, None)
    return True


def columns(emitter: Emitter, name: str, rows: int) -> Spot:
    """The feature-major copy of a value, made when it is first asked for."""
    if name not in emitter.columns:
        features, pitch = emitter.graph.values[name].elements // rows, pitch_of(rows)
        x = Ref(emitter.plain(name))
        buffer = emitter.buffer(f"columns:{name}", 4 * features * pitch)
        emitter.call(Transpose(emitter.target.lanes), [x, Ref(buffer)], [features, pitch, rows], features)
        emitter.columns[name] = (buffer, pitch)
    buffer, pitch = emitter.columns[name]
    return Ref(buffer), pitch


def _made(emitter: Emitter, name: str, rows: int) -> Spot:
    """Room for a value that is made feature-major; its plain form is owed."""
    features, pitch = emitter.graph.values[name].elements // rows, pitch_of(rows)
    buffer = emitter.buffer(f"columns:{name}", 4 * features * pitch)
    emitter.columns[name] = (buffer, pitch)
    emitter.owed[emitter.place_of(name).buffer] = (buffer, pitch, features, rows)
    return Ref(buffer), pitch


def _settle_images(emitter: Emitter, name: str) -> None:
    """Four dimensions may be read as an image, where it lies: such a value is written at once."""
    if emitter.graph.values[name].image is not None:
        emitter.plain(name)
