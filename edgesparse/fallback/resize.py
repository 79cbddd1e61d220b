"""Resize as gathers and weighted sums along one axis after another, with tables made here.

Shapes are static, so that the source places and weights of every result row are constants: computed in double
precision after ONNX's reference, they are right at ties and for scales that do not divide, where Relax's own Resize
(which knows the sizes, not the given scales) is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgesparse.errors import UnsupportedError

#: Taps along one axis beyond which a table is refused (antialiased shrinking by large factors).
_MOST_TAPS = 16

#: Place in the source of element `x`. Align_corners takes the whole size of the result, as onnxruntime does; ONNX's
#: reference takes scale * size there, which differs where that is no integer.
_FRAMES: dict[str, Callable[[float, float, int, int], float]] = {
    "half_pixel": lambda x, scale, size, out: (x + 0.5) / scale - 0.5,
    "asymmetric": lambda x, scale, size, out: x / scale,
    "align_corners": lambda x, scale, size, out: x * (size - 1) / (out - 1) if out > 1 else 0.0,
    "pytorch_half_pixel": lambda x, scale, size, out: (x + 0.5) / scale - 0.5 if out > 1 else 0.0,
    "half_pixel_symmetric": lambda x, scale, size, out: size / 2 * (1 - out / (scale * size)) + (x + 0.5) / scale - 0.5,
}

#: The mode that reads a window of the source, `roi`, and fills what lies outside of the source.
_CROP = "tf_crop_and_resize"

#: A window's first and last place, as shares of the last index.
_WHOLE = (0.0, 1.0)

_NEAREST: dict[str, Callable[[float], int]] = {
    "round_prefer_floor": lambda x: math.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: math.floor(x + 0.5),
    "floor": math.floor,
    "ceil": math.ceil,
}


def _cropped(window: tuple[float, float], size: int, out: int) -> list[float]:
    """Places in the source of the elements of a window, which may lie outside of it.

    float32 at every step, in onnxruntime's order: the last bit decides whether the edge of the source is outside.
    """
    first, last, most = np.float32(window[0]), np.float32(window[1]), np.float32(size - 1)
    if out == 1:
        return [float(np.float32(0.5 * float(first + last) * float(most)))]
    steps = np.arange(out, dtype=np.float32) * (last - first) * most / np.float32(out - 1)
    return [float(place) for place in first * most + steps]


def table(
    options: dict[str, Any], size: int, out: int, scale: float, window: tuple[float, float] = _WHOLE
) -> tuple[np.ndarray, np.ndarray]:
    """Source places ``[out, taps]`` and weights ``[out, taps]`` along one axis of `size` elements."""
    mode = options.get("mode", "nearest")
    frame = options.get("coordinate_transformation_mode", "half_pixel")
    rows: list[list[tuple[int, float]]] = []
    # float32, as onnxruntime has it: at ties the last bit decides.
    if frame == _CROP:
        found = _cropped(window, size, out)
    else:
        found = [float(np.float32(_FRAMES[frame](x, scale, size, out))) for x in range(out)]
    for place in found:
        if mode == "nearest":
            choose = _NEAREST[options.get("nearest_mode", "round_prefer_floor")]
            rows.append([(min(max(choose(place), 0), size - 1), 1.0)])
        else:
            rows.append(_taps(options, place, size, scale))
    taps = max(len(row) for row in rows)
    padded = [row + [(row[-1][0], 0.0)] * (taps - len(row)) for row in rows]
    places = np.array([[place for place, _ in row] for row in padded], np.int64)
    return places, np.array([[weight for _, weight in row] for row in padded], np.float32)


def _taps(options: dict[str, Any], place: float, size: int, scale: float) -> list[tuple[int, float]]:
    cubic = options["mode"] == "cubic"
    slope = float(options.get("cubic_coeff_a", -0.75))
    shrink = min(scale, 1.0) if options.get("antialias", 0) else 1.0
    reach = (2 if cubic else 1) / shrink
    first, last = math.floor(place - reach) + 1, math.ceil(place + reach) - 1
    if shrink == 1.0:
        first = math.floor(place) - (1 if cubic else 0)
        last = first + (3 if cubic else 1)
    found: dict[int, float] = {}
    outside = bool(options.get("exclude_outside", 0))
    for source in range(first, last + 1):
        weight = _weight((source - place) * shrink, slope if cubic else None)
        if outside and not 0 <= source < size:
            continue
        inside = min(max(source, 0), size - 1)
        found[inside] = found.get(inside, 0.0) + weight
    total = sum(found.values())
    if outside or shrink != 1.0:
        found = {source: weight / total for source, weight in found.items()}
    return sorted(found.items())


def _weight(distance: float, slope: float | None) -> float:
    """The triangle, or Keys' cubic with the given slope."""
    x = abs(distance)
    if slope is None:
        return max(0.0, 1.0 - x)
    if x <= 1:
        return ((slope + 2) * x - (slope + 3)) * x * x + 1
    return ((slope * x - 5 * slope) * x + 8 * slope) * x - 4 * slope if x < 2 else 0.0


def resized(model: onnx.ModelProto, node: onnx.NodeProto, shapes: dict[str, list[int]]) -> list[onnx.NodeProto]:
    """The nodes that stand for a Resize; their tables go to the model's initializers.

    Raises
    ------
    UnsupportedError
        The node crops, shrinks by much, or its sizes are not known.
    """
    options = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    options = {name: value.decode() if isinstance(value, bytes) else value for name, value in options.items()}
    given, made = shapes.get(node.input[0]), shapes.get(node.output[0])
    frame = options.get("coordinate_transformation_mode", "half_pixel")
    if frame not in (*_FRAMES, _CROP) or not given or not made or 0 in (*given, *made):
        raise _unsupported(node, f"coordinate_transformation_mode {frame}, {given} to {made}")
    scales = _scales(model, node, options, given, made)
    windows = _windows(model, node, options, len(given)) if frame == _CROP else [_WHOLE] * len(given)
    if given == made and windows != [_WHOLE] * len(given):
        raise _unsupported(node, "a window as large as its source is copied whole by onnxruntime")
    outside = np.zeros([1] * len(given), bool)
    nodes: list[onnx.NodeProto] = []
    value = node.input[0]
    for axis in sorted(range(len(given)), key=lambda axis: made[axis] / given[axis]):
        if made[axis] == given[axis] and scales[axis] == 1.0 and windows[axis] == _WHOLE:
            continue
        places, weights = table(options, given[axis], made[axis], scales[axis], windows[axis])
        if frame == _CROP:
            beyond = [not 0 <= place <= given[axis] - 1 for place in _cropped(windows[axis], given[axis], made[axis])]
            outside = outside | np.reshape(beyond, [-1 if each == axis else 1 for each in range(len(given))])
        if places.shape[1] > _MOST_TAPS:
            raise _unsupported(node, f"{places.shape[1]} elements make one; at most {_MOST_TAPS} can")
        value = _along(model, nodes, value, (axis, len(given)), places, weights)
    if not outside.any():
        nodes.append(helper.make_node("Identity", [value], [node.output[0]], node.name))
        return nodes
    where, fill = f"{node.output[0]}/outside", f"{node.output[0]}/fill"
    number = np.array(options.get("extrapolation_value", 0.0), np.float32)
    model.graph.initializer.extend([numpy_helper.from_array(outside, where), numpy_helper.from_array(number, fill)])
    nodes.append(helper.make_node("Where", [where, fill, value], [node.output[0]], node.name))
    return nodes


def _windows(
    model: onnx.ModelProto, node: onnx.NodeProto, options: dict[str, Any], rank: int
) -> list[tuple[float, float]]:
    """The window along each axis: `roi` holds the first places of all axes, then the last ones."""
    known = {item.name: item for item in model.graph.initializer}
    if len(node.input) < 2 or node.input[1] not in known:
        raise _unsupported(node, "its roi is not constant")
    values = [float(value) for value in numpy_helper.to_array(known[node.input[1]]).reshape(-1)]
    axes = [int(axis) % rank for axis in options.get("axes", range(rank))]
    if len(values) != 2 * len(axes):
        raise _unsupported(node, f"its roi has {len(values)} numbers for {len(axes)} axes")
    windows = [_WHOLE] * rank
    for number, axis in enumerate(axes):
        windows[axis] = (values[number], values[len(axes) + number])
    return windows


def _unsupported(node: onnx.NodeProto, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"cannot lower node {(node.name or node.output[0])!r} (Resize)",
        why=why,
        fix="export it with half_pixel, asymmetric or align_corners and fixed sizes",
    )


def _scales(
    model: onnx.ModelProto, node: onnx.NodeProto, options: dict[str, Any], given: Sequence[int], made: Sequence[int]
) -> list[float]:
    scales = [b / a for a, b in zip(given, made, strict=True)]
    known = {item.name: item for item in model.graph.initializer}
    if len(node.input) > 2 and node.input[2]:
        if node.input[2] not in known:
            raise _unsupported(node, "its scales are not constant")
        values = numpy_helper.to_array(known[node.input[2]])
        axes = [int(axis) % len(given) for axis in options.get("axes", range(len(given)))]
        if values.size:
            for axis, scale in zip(axes, values, strict=True):
                scales[axis] = float(scale)
    policy = options.get("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch" and len(node.input) > 3 and node.input[3] in known:
        # Sizes are what is asked for; one scale for all axes comes closest, and gives the sizes there are.
        wanted = numpy_helper.to_array(known[node.input[3]])
        axes = [int(axis) % len(given) for axis in options.get("axes", range(len(given)))]
        choose = min if policy == "not_larger" else max
        one = choose(float(size) / given[axis] for axis, size in zip(axes, wanted, strict=True))
        for axis in axes:
            scales[axis] = one
    return scales


def _along(
    model: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    value: str,
    where: tuple[int, int],
    places: np.ndarray,
    weights: np.ndarray,
) -> str:
    """Append the nodes of one axis; returns the name of their result."""
    axis, rank = where
    terms = []
    for tap in range(places.shape[1]):
        base = f"{value}/axis{axis}/tap{tap}"
        model.graph.initializer.append(numpy_helper.from_array(places[:, tap], f"{base}/from"))
        nodes.append(helper.make_node("Gather", [value, f"{base}/from"], [base], base, axis=axis))
        if np.all(weights[:, tap] == 1.0) and places.shape[1] == 1:
            return base
        shape = [-1 if dim == axis else 1 for dim in range(rank)]
        column = np.ascontiguousarray(weights[:, tap].reshape(shape))
        model.graph.initializer.append(numpy_helper.from_array(column, f"{base}/weight"))
        nodes.append(helper.make_node("Mul", [base, f"{base}/weight"], [f"{base}/part"], f"{base}/part"))
        terms.append(f"{base}/part")
    while len(terms) > 1:
        total = f"{terms[0]}+"
        nodes.append(helper.make_node("Add", terms[:2], [total], total))
        terms = [total, *terms[2:]]
    return terms[0]
