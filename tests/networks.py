"""Small networks, named and random, and the comparison of what edgesparse makes of them with onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime

from edgesparse.pipeline import compile_model
from edgesparse.planning.place import Jobs
from edgesparse.runtimes.local import LocalRunner
from edgesparse.target import TARGETS, Target

Shape = tuple[int, ...]

#: x86 targets that this machine runs, narrowest first.
HOST_TARGETS = tuple(target for target in TARGETS if target.runner == "local" and target.runs_here())


class Net:
    """An ONNX graph in the making; values are known by name and shape."""

    def __init__(self, seed: int, opset: int = 18) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.inputs: dict[str, Shape] = {}
        self.shapes: dict[str, Shape] = {}
        self.outputs: list[str] = []

    def input(self, *shape: int) -> str:
        name = f"in{len(self.inputs)}"
        self.inputs[name] = self.shapes[name] = shape
        return name

    def weight(self, *shape: int, density: float = 1.0, scale: float | None = None) -> str:
        name = f"w{len(self.weights)}"
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        value = self.rng.standard_normal(shape) * (scale or (1.0 if fan == 1 else 1.4 / np.sqrt(fan * density)))
        if density < 1:
            value *= self.rng.random(shape) < density
        self.weights[name] = value.astype(np.float32)
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(value, dtype)
        return name

    def node(self, op: str, *inputs: str, shape: Shape | None = None, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(op, list(inputs), [name], name=f"n{len(self.nodes)}", **attributes))
        self.shapes[name] = self.shapes[inputs[0]] if shape is None else shape
        return name

    def conv(
        self,
        x: str,
        out: int,
        kernel: tuple[int, int] = (1, 1),
        stride: tuple[int, int] = (1, 1),
        dilation: tuple[int, int] = (1, 1),
        pads: tuple[int, int, int, int] = (0, 0, 0, 0),
        groups: int = 1,
        bias: bool = True,
        density: float = 1.0,
    ) -> str:
        images, channels, *size = self.shapes[x]
        shape = (images, out, *slide(size, kernel, stride, dilation, pads))
        names = [self.weight(out, channels // groups, *kernel, density=density)]
        if bias:
            names.append(self.weight(out, scale=0.5))
        return self.node(
            "Conv",
            x,
            *names,
            shape=shape,
            kernel_shape=kernel,
            strides=stride,
            dilations=dilation,
            pads=pads,
            group=groups,
        )

    def pool(self, x: str, op: str, kernel: tuple[int, int], stride: tuple[int, int], **attributes: Any) -> str:
        images, channels, *size = self.shapes[x]
        pads = attributes.get("pads", (0, 0, 0, 0))
        dilation = attributes.get("dilations", (1, 1))
        shape = (images, channels, *slide(size, kernel, stride, dilation, pads, bool(attributes.get("ceil_mode"))))
        return self.node(op, x, shape=shape, kernel_shape=kernel, strides=stride, **attributes)

    def model(self) -> onnx.ModelProto:
        info = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            self.nodes,
            "net",
            [info(name, onnx.TensorProto.FLOAT, shape) for name, shape in self.inputs.items()],
            [info(name, onnx.TensorProto.FLOAT, self.shapes[name]) for name in self.outputs],
            [onnx.numpy_helper.from_array(value, name) for name, value in self.weights.items()],
        )
        imports = [onnx.helper.make_opsetid("", self.opset)]
        made = onnx.helper.make_model(graph, opset_imports=imports, ir_version=9)
        onnx.checker.check_model(made, full_check=True)
        return made


def slide(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    pads: Sequence[int],
    ceil: bool = False,
) -> Shape:
    """Output rows and columns of a window that slides over an image."""
    found = []
    for axis in (0, 1):
        room = size[axis] + pads[axis] + pads[axis + 2] - (kernel[axis] - 1) * dilation[axis] - 1
        count = (-(-room // stride[axis]) if ceil else room // stride[axis]) + 1
        if ceil and (count - 1) * stride[axis] >= size[axis] + pads[axis]:
            count -= 1  # a window must start inside of the image or before it
        found.append(count)
    return tuple(found)


def text_model(text: str, weights: dict[str, Any] | None = None, opset: int = 18) -> onnx.ModelProto:
    """ONNX text without its header, and weights by name."""
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]>\n{text}')
    for name, array in (weights or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return proto


def onnx_outputs(model: bytes, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What onnxruntime makes of a model, without its own fusions."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def feeds_of(model: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    """Seeded inputs: normal floats, small integers."""
    rng = np.random.default_rng(seed)
    weights = {each.name for each in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name in weights:
            continue
        shape = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        made = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 3, shape)
        feeds[value.name] = np.asarray(made).astype(dtype)
    return feeds


def compiled_outputs(
    model: onnx.ModelProto, folder: Path, target: Target, feeds: dict[str, np.ndarray], **options: Any
) -> dict[str, np.ndarray]:
    """Compile a model and run it, twice: the second run meets the memory that the first one left."""
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    artifact = compile_model(path, target=target, output=folder / "artifact", **{"tune": False, **options})
    assert artifact is not None
    most = options.get("threads", 1)
    with LocalRunner(artifact, threads=1) as runner:
        first = runner.run(feeds)
        second = runner.run(feeds)
    with LocalRunner(artifact, threads=most) as runner:
        third = runner.run(feeds) if most > 1 else second
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=f"{name} of the second run")
        np.testing.assert_array_equal(value, third[name], err_msg=f"{name} with {most} threads")
    return first


def check_against_onnx(
    model: onnx.ModelProto, folder: Path, target: Target = HOST_TARGETS[-1], bound: float = 1e-5, **options: Any
) -> float:
    """Compile, run, and compare to `bound` of the largest output; gives the largest difference found."""
    feeds = feeds_of(model)
    expected = onnx_outputs(model.SerializeToString(), feeds)
    found = compiled_outputs(model, folder, target, feeds, **options)
    assert list(found) == list(expected)
    worst = 0.0
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert found[name].dtype == value.dtype, name
        if value.dtype.kind != "f":
            np.testing.assert_array_equal(found[name], value, err_msg=name)
            continue
        assert np.isfinite(found[name]).all(), name
        difference = float(np.abs(found[name].astype(np.float64) - value).max() / max(np.abs(value).max(), 1e-30))
        assert difference <= bound, f"{name}: {difference:.3g} of the largest output"
        worst = max(worst, difference)
    return worst


def taking_form(form: str) -> Callable[[Jobs], Mapping[str, list[float]]]:
    """Times by which every layer that has the form takes it."""

    def measure(jobs: Jobs) -> dict[str, list[float]]:
        return {name: [float(each.form != form) for each in products] for name, (_, products) in jobs.items()}

    return measure


def windows_network(seed: int = 0) -> onnx.ModelProto:
    """Strides, dilation, groups, padding on some sides only, a residual; bands of rows, planes, rows narrower than a
    vector.
    """
    net = Net(seed)
    x = net.input(1, 6, 40, 36)
    a = net.conv(x, 24, (3, 3), pads=(1, 1, 1, 1), density=0.15)
    b = net.node("Relu", net.conv(a, 24, (3, 3), pads=(2, 2, 2, 2), dilation=(2, 2), density=0.15))
    c = net.node("Relu", net.node("Add", net.conv(b, 24, (3, 3), pads=(1, 1, 1, 1), density=0.15), a))
    d = net.conv(c, 32, (5, 3), (2, 1), pads=(0, 2, 1, 0), groups=2, density=0.15)
    e = net.node("HardSwish", net.conv(d, 16, (3, 3), (2, 2), pads=(1, 1, 1, 1), density=0.15))
    f = net.conv(e, 16, (3, 5), (1, 3), (2, 2), (1, 4, 2, 3), density=0.15)
    g = net.conv(e, 16, (1, 3), (3, 2), density=0.15)
    net.outputs = [f, g, net.conv(f, 12, (2, 2), density=0.15)]
    return net.model()


# -- random networks ---------------------------------------------------------------------------------------------

ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "HardSwish", "HardSigmoid", "Sigmoid", "Silu", "Tanh")


def activate(net: Net, x: str, kind: str) -> str:
    """An activation after `x`."""
    if kind == "Silu":
        return net.node("Mul", x, net.node("Sigmoid", x))
    if kind == "Clip":
        return net.node("Clip", x, net.constant(-0.5), net.constant(1.5))
    return net.node(kind, x)


def _random_conv(net: Net, x: str) -> str:
    rng = net.rng
    _, channels, height, width = net.shapes[x]
    kernel = (int(rng.integers(1, 6)), int(rng.integers(1, 6)))
    dilation = (int(rng.integers(1, 3)), int(rng.integers(1, 3)))
    stride = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    pads = tuple(int(rng.integers(0, k * d)) for k, d in zip((*kernel, *kernel), (*dilation, *dilation), strict=True))
    if min(slide((height, width), kernel, stride, dilation, pads)) < 1:
        return net.conv(x, int(rng.integers(1, 20)))
    groups = int(rng.choice([g for g in range(1, channels + 1) if channels % g == 0]))
    return net.conv(
        x,
        groups * int(rng.integers(1, 5)),
        kernel,
        stride,
        dilation,
        pads,
        groups,
        bool(rng.integers(2)),
        float(rng.choice([1.0, 0.4, 0.1])),
    )


def _random_pointwise(net: Net, x: str) -> str:
    return net.conv(x, int(net.rng.integers(1, 40)), density=float(net.rng.choice([1.0, 0.3, 0.05])))


def _random_depthwise(net: Net, x: str) -> str:
    rng = net.rng
    channels = net.shapes[x][1]
    k, s, d = int(rng.choice([3, 5])), int(rng.integers(1, 3)), int(rng.integers(1, 3))
    p = (k - 1) * d // 2
    return net.conv(x, channels * int(rng.integers(1, 3)), (k, k), (s, s), (d, d), (p, p, p, p), channels)


def _random_pool(net: Net, x: str) -> str:
    rng = net.rng
    size = net.shapes[x][2:]
    kernel = (int(rng.integers(2, 4)), int(rng.integers(2, 4)))
    stride = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    kind = str(rng.choice(["MaxPool", "AveragePool"]))
    pads = tuple(int(rng.integers(0, k)) for k in (*kernel, *kernel))
    extra: dict[str, Any] = {"pads": pads, "ceil_mode": int(rng.integers(2))}
    if kind == "AveragePool":
        extra["count_include_pad"] = int(rng.integers(2))
    elif rng.integers(2):
        extra["dilations"] = (2, 2)
    dilation = extra.get("dilations", (1, 1))
    floor, ceil = (slide(size, kernel, stride, dilation, pads, up) for up in (False, True))
    naive = [
        -(-(n - (k - 1) * d - 1 + a + b) // s) + 1
        for n, k, d, a, b, s in zip(size, kernel, dilation, pads[:2], pads[2:], stride, strict=True)
    ]
    if list(ceil) != naive:
        extra["ceil_mode"] = 0  # onnx's inference and onnxruntime disagree
    if min(floor) < 1:
        return x
    return net.pool(x, kind, kernel, stride, **extra)


def _random_activation(net: Net, x: str) -> str:
    return activate(net, x, str(net.rng.choice(ACTIVATIONS)))


def _random_residual(net: Net, x: str) -> str:
    channels = net.shapes[x][1]
    y = net.conv(x, channels, (3, 3), pads=(1, 1, 1, 1), density=float(net.rng.choice([1.0, 0.3])))
    if net.rng.integers(2):
        y = activate(net, y, str(net.rng.choice(ACTIVATIONS)))
    y = net.node("Add", *((x, y) if net.rng.integers(2) else (y, x)))
    return activate(net, y, "Relu") if net.rng.integers(2) else y


def _random_concat(net: Net, x: str) -> str:
    y = net.conv(x, int(net.rng.integers(1, 8)))
    parts = [x, y, x][: int(net.rng.integers(2, 4))]
    images, _, *size = net.shapes[x]
    shape = (images, sum(net.shapes[part][1] for part in parts), *size)
    return net.node("Concat", *parts, shape=shape, axis=1)


def _random_gate(net: Net, x: str) -> str:
    images, channels = net.shapes[x][:2]
    if net.rng.integers(2):
        pooled = net.node("GlobalAveragePool", x, shape=(images, channels, 1, 1))
    else:
        pooled = net.node("ReduceMean", x, net.constant([2, 3], np.int64), shape=(images, channels, 1, 1), keepdims=1)
    gate = net.node("Relu", net.conv(pooled, max(channels // 2, 1)))
    gate = net.node(str(net.rng.choice(["Sigmoid", "HardSigmoid"])), net.conv(gate, channels))
    return net.node("Mul", *((x, gate) if net.rng.integers(2) else (gate, x)), shape=net.shapes[x])


def _random_elementwise(net: Net, x: str) -> str:
    rng = net.rng
    channels = net.shapes[x][1]
    op = str(rng.choice(["Add", "Sub", "Mul"]))
    choice = rng.integers(4)
    if choice == 0:
        other = net.weight(1)
    elif choice == 1:
        other = net.weight(channels, 1, 1, scale=1.0)
    elif choice == 2:
        other = net.weight(1, channels, *net.shapes[x][2:], scale=1.0)
    else:
        other = net.conv(x, channels)
    return net.node(op, *((x, other) if rng.integers(2) else (other, x)), shape=net.shapes[x])


STEPS: tuple[Callable[[Net, str], str], ...] = (
    _random_conv,
    _random_pointwise,
    _random_depthwise,
    _random_pool,
    _random_activation,
    _random_residual,
    _random_concat,
    _random_gate,
    _random_elementwise,
)


def _head(net: Net, x: str) -> str:
    """From an image to rows: pooled and flattened, or reshaped as it is; then a product."""
    images, channels, height, width = net.shapes[x]
    if net.rng.integers(2):
        x = net.node("GlobalAveragePool", x, shape=(images, channels, 1, 1))
        x = net.node("Flatten", x, shape=(images, channels))
        weight = net.constant(net.rng.standard_normal((int(net.rng.integers(1, 50)), channels)))
        out = net.weights[weight].shape[0]
        return net.node("Gemm", x, weight, net.weight(out, scale=1.0), shape=(images, out), transB=1)
    x = net.node("Reshape", x, net.constant([images * channels, height * width], np.int64))
    net.shapes[x] = (images * channels, height * width)
    out = int(net.rng.integers(1, 20))
    weight = net.constant(net.rng.standard_normal((height * width, out)) / np.sqrt(height * width))
    return net.node("MatMul", x, weight, shape=(images * channels, out))


def random_network(seed: int, steps: int = 10) -> onnx.ModelProto:
    """A network of random layers: chains and branches over images of odd sizes, several outputs."""
    net = Net(seed)
    rng = net.rng
    images = int(rng.choice([1, 1, 2]))
    x = net.input(images, int(rng.integers(1, 8)), int(rng.integers(7, 40)), int(rng.integers(7, 40)))
    alive = [x]
    for _ in range(steps):
        x = alive[-1] if rng.random() < 0.8 else alive[int(rng.integers(len(alive)))]
        if net.shapes[x][1] > 48:
            x = net.conv(x, 8)
        alive.append(STEPS[int(rng.integers(len(STEPS)))](net, x))
    net.outputs.append(alive[-1])
    if rng.integers(2):
        inside = alive[int(rng.integers(1, len(alive)))]
        net.outputs.append(inside)
    net.outputs.append(_head(net, alive[-1]))
    net.outputs = [name for name in dict.fromkeys(net.outputs) if name not in net.inputs]
    return net.model()
