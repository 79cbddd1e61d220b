"""Small networks of random shapes, one layer of interest each: windows, products, recurrences, attention and copies.

A number makes a network, the same on any machine.
"""

from __future__ import annotations

import random

import onnx
from networks import Net, slide
from recurrences import recurrent_model

#: What the networks hold, in turn.
KINDS = ("depthwise", "conv", "pool", "conv1x1", "linear", "depthwise", "conv", "pool", "other")

_ACTIVATIONS = (
    "",
    "Relu",
    "Clip",
    "LeakyRelu",
    "HardSwish",
    "HardSigmoid",
    "Silu",
    "Sigmoid",
    "Tanh",
    "Add",
    "AddRelu",
)
#: Widths that networks have; as many others are taken.
_WIDTHS = (7, 8, 10, 12, 14, 16, 20, 28, 32, 40, 56, 64, 112, 160)


def random_network(number: int) -> onnx.ModelProto:
    """The network of a number."""
    rng, net, kind = random.Random(number), Net(number), KINDS[number % len(KINDS)]
    if kind == "other":
        what = rng.choice(("norm", "attention", "LSTM", "GRU", "image"))
        if what in ("LSTM", "GRU"):
            return recurrent_model(what, rng.randint(1, 70), density=rng.choice([0.2, 1.0]))
        net.outputs.append({"norm": _norm, "attention": _attention, "image": _image}[what](net, rng))
    elif kind == "linear":
        net.outputs.append(_linear(net, rng))
    elif kind == "conv1x1":
        channels = rng.randint(1, 40)
        x = net.conv(net.input(1, channels, rng.randint(1, 40), _width(rng, 64)), channels, density=_density(rng))
        y = net.conv(x, rng.choice([channels, rng.randint(1, 70)]), density=_density(rng))
        net.outputs.append(_activated(net, rng, y, x))
    else:
        net.outputs.append(_windowed(net, rng, kind))
    return net.model()


def _width(rng: random.Random, most: int) -> int:
    return rng.choice([rng.randint(1, most), rng.choice(_WIDTHS)])


def _density(rng: random.Random) -> float:
    return rng.choice([0.1, 0.3, 0.6])


def _activated(net: Net, rng: random.Random, x: str, residual: str) -> str:
    kind = rng.choice(_ACTIVATIONS)
    if kind == "":
        return x
    if kind == "Clip":
        return net.node("Clip", x, net.constant(0.0), net.constant(6.0))
    if kind == "Silu":
        return net.node("Mul", x, net.node("Sigmoid", x))
    if kind.startswith("Add"):
        y = net.node("Add", x, residual if net.shapes[residual] == net.shapes[x] else x)
        return net.node("Relu", y) if kind == "AddRelu" else y
    return net.node(kind, x)


def _windowed(net: Net, rng: random.Random, kind: str) -> str:
    """A window of any shape, mostly behind a 1x1 convolution, and often before one."""
    channels, both = rng.randint(1, 40), (0, 1)
    while True:
        one = rng.choice([rng.randint(1, 7), rng.randint(1, 7), 3, 5])
        kernel = (one, one) if rng.random() < 0.7 else (rng.randint(1, 7), rng.randint(1, 7))
        step, reach = rng.choice([1, 1, 1, 2, 2, 3]), 1 if kind == "pool" else rng.choice([1, 1, 1, 1, 2, 3])
        stride = (step, step) if rng.random() < 0.8 else (rng.randint(1, 3), rng.randint(1, 3))
        high, wide = rng.randint(1, 40), _width(rng, 64)
        if rng.random() < 0.6:
            top, left = ((kernel[axis] - 1) * reach // 2 for axis in both)
            pads = (top, left, top, left)
        else:
            top, left, bottom, right = (rng.randint(0, kernel[axis] // 2) for axis in (*both, *both))
            pads = (top, left, bottom, right)
        if kind == "pool" and any(pad >= kernel[axis % 2] for axis, pad in enumerate(pads)):
            continue
        if min(slide((high, wide), kernel, stride, (reach, reach), pads)) >= 1:
            break
    x = net.input(1, channels, high, wide)
    if rng.random() < 0.7:
        x = net.conv(x, channels, density=_density(rng))
    if kind == "pool":
        op = rng.choice(["MaxPool", "AveragePool", "AveragePool"])
        more = {"count_include_pad": rng.randint(0, 1)} if op == "AveragePool" else {}
        y = net.pool(x, op, kernel, stride, pads=pads, **more)
    elif kind == "depthwise":
        more_channels = channels * rng.choice([1, 1, 1, 2])
        y = net.conv(x, more_channels, kernel, stride, (reach, reach), pads, groups=channels)
    else:
        y = net.conv(x, rng.randint(1, 40), kernel, stride, (reach, reach), pads, density=_density(rng))
    if kind != "pool":
        y = _activated(net, rng, y, x)
    return net.conv(y, rng.randint(1, 40), density=_density(rng)) if rng.random() < 0.5 else y


def _linear(net: Net, rng: random.Random) -> str:
    inputs, outputs = rng.randint(1, 130), rng.randint(1, 130)
    x = net.input(rng.choice([1, 1, rng.randint(1, 70)]), inputs)
    weight = net.weight(outputs, inputs, density=_density(rng))
    y = net.node("Gemm", x, weight, net.weight(outputs), shape=(net.shapes[x][0], outputs), transB=1)
    return _activated(net, rng, y, y)


def _norm(net: Net, rng: random.Random) -> str:
    features = rng.randint(1, 130)
    x = net.input(1, rng.randint(1, 70), features)
    return net.node("LayerNormalization", x, net.weight(features), net.weight(features), axis=-1)


def _attention(net: Net, rng: random.Random) -> str:
    """Heads of odd sizes between fully connected layers."""
    heads, width, rows = rng.randint(1, 3), rng.choice([4, 8, 16, 20, 32]), rng.randint(2, 70)
    features = heads * width
    x = net.input(1, rows, features)
    parts = []
    for turned in ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)):
        y = net.node("MatMul", x, net.weight(features, features), shape=(1, rows, features))
        y = net.node("Reshape", y, net.constant([1, rows, heads, width], "int64"), shape=(1, rows, heads, width))
        shape = (1, heads, width, rows) if turned[3] == 1 else (1, heads, rows, width)
        parts.append(net.node("Transpose", y, perm=turned, shape=shape))
    scores = net.node("MatMul", parts[0], parts[1], shape=(1, heads, rows, rows))
    scores = net.node("Mul", scores, net.constant(width**-0.5))
    y = net.node("MatMul", net.node("Softmax", scores, axis=-1), parts[2], shape=(1, heads, rows, width))
    y = net.node("Transpose", y, perm=(0, 2, 1, 3), shape=(1, rows, heads, width))
    y = net.node("Reshape", y, net.constant([1, rows, features], "int64"), shape=(1, rows, features))
    return net.node("MatMul", y, net.weight(features, features), shape=(1, rows, features))


def _image(net: Net, rng: random.Random) -> str:
    """What joins, copies, scales or enlarges an image."""
    channels = rng.randint(1, 40)
    x = net.conv(net.input(1, channels, rng.randint(1, 30), _width(rng, 40)), channels, density=_density(rng))
    _, _, high, wide = net.shapes[x]
    what = rng.choice(("scale", "enlarge", "add", "join"))
    if what == "scale":
        gate = net.node("GlobalAveragePool", x, shape=(1, channels, 1, 1))
        return net.node("Mul", x, net.node("Sigmoid", net.conv(gate, channels)))
    if what == "enlarge":
        by = rng.choice([2, 2, 3])
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        scales = net.constant([1.0, 1.0, by, by])
        return net.node("Resize", x, "", scales, shape=(1, channels, high * by, wide * by), **how)
    if what == "add":
        y = net.conv(x, channels, (3, 3), pads=(1, 1, 1, 1), density=_density(rng))
        return _activated(net, rng, net.node("Add", x, y), x)
    return net.node("Concat", x, net.node("Relu", x), axis=1, shape=(1, 2 * channels, high, wide))
