"""Random networks for the tests of coupling: chains with residuals, concats, splits, groups, attention and more."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 4
_HEADS = """
  a2 = Reshape(a, cut)
  b2 = Reshape(b, cut)
  c2 = Reshape(c, cut)
  a3 = Transpose <perm = [0, 2, 1, 3]> (a2)
  b3 = Transpose <perm = [0, 2, 3, 1]> (b2)
  c3 = Transpose <perm = [0, 2, 1, 3]> (c2)
  s = MatMul(a3, b3)
  p = Softmax <axis = -1> (s)
  m = MatMul(p, c3)
  m2 = Transpose <perm = [0, 2, 1, 3]> (m)
  m3 = Reshape(m2, whole)"""
ATTENTIVE = f"""g (double[1,5,16] x) => (double[1,5,16] y) {{
  [q_proj] a = MatMul(x, q)
  [k_proj] b = MatMul(x, k)
  [v_proj] c = MatMul(x, v){_HEADS}
  [o_proj] y = MatMul(m3, o)
}}"""
"""Self-attention of two heads of eight channels; weights q, k, v, o and shapes cut, whole."""
FUSED = f"""g (double[1,5,16] x) => (double[1,5,16] y) {{
  [qkv] j = MatMul(x, w0)
  a, b, c = Split <axis = 2, num_outputs = 3> (j){_HEADS}
  [o_proj] y = MatMul(m3, w2)
}}"""
"""The same with one projection, `qkv`, that is cut up; weights w0 and w2."""


class Net:
    """A graph under construction; every value is float64 `[1, channels, SIDE, SIDE]`."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def const(self, array: np.ndarray) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def normal(self, *shape: int) -> str:
        return self.const(self.rng.normal(size=shape) / np.sqrt(max(shape[-3:], default=1)))

    def ints(self, *values: int) -> str:
        return self.const(np.asarray(values, np.int64))

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"n{len(self.nodes)}", **attributes))
        return names[0]

    def conv(self, x: str, cin: int, cout: int, *, k: int = 1, group: int = 1, bias: bool = True) -> str:
        more = [self.normal(cout)] if bias else []
        w = self.normal(cout, cin // group, k, k)
        return self.op("Conv", x, w, *more, group=group, pads=[k // 2] * 4)


Block = Callable[[Net, str, int], tuple[str, int]]


def _pointwise(net: Net, x: str, c: int) -> tuple[str, int]:
    cout = int(net.rng.integers(2, 9))
    return net.op(str(net.rng.choice(["Relu", "Sigmoid", "HardSwish"])), net.conv(x, c, cout)), cout


def _depthwise(net: Net, x: str, c: int) -> tuple[str, int]:
    return net.conv(x, c, c, k=3, group=c), c


def _grouped(net: Net, x: str, c: int) -> tuple[str, int]:
    return net.conv(net.conv(x, c, 6), 6, 4, k=3, group=2), 4


def _residual(net: Net, x: str, c: int) -> tuple[str, int]:
    inner = net.conv(net.op("Relu", net.conv(x, c, 5)), 5, c, bias=False)
    return net.op("Add", x, inner), c


def _excite(net: Net, x: str, c: int) -> tuple[str, int]:
    pooled = net.op("GlobalAveragePool", x)
    scale = net.op("HardSigmoid", net.conv(net.op("Relu", net.conv(pooled, c, 3)), 3, c))
    return net.op("Mul", x, scale), c


def _concat(net: Net, x: str, c: int) -> tuple[str, int]:
    other = net.conv(x, c, 3)
    return net.op("Concat", x, other, axis=1), c + 3


def _split(net: Net, x: str, c: int) -> tuple[str, int]:
    wide = net.conv(x, c, 7)
    net.nodes.append(
        helper.make_node("Split", [wide, net.ints(3, 4)], [f"{wide}_a", f"{wide}_b"], name=f"{wide}_s", axis=1)
    )
    return net.op("Concat", net.op("Relu", f"{wide}_b"), net.op("Neg", f"{wide}_a"), axis=1), 7


def _slice(net: Net, x: str, c: int) -> tuple[str, int]:
    wide = net.conv(x, c, 6)
    part = net.op("Slice", wide, net.ints(2), net.ints(6), net.ints(1))
    return net.op("Add", part, net.conv(x, c, 4)), 4


def _norm(net: Net, x: str, c: int) -> tuple[str, int]:
    variance = net.const(net.rng.uniform(0.5, 2, c))
    return net.op("BatchNormalization", x, net.normal(c), net.normal(c), net.normal(c), variance), c


def _prelu(net: Net, x: str, c: int) -> tuple[str, int]:
    return net.op("PRelu", x, net.normal(c, 1, 1)), c


def _flat(net: Net, x: str, c: int) -> tuple[str, int]:
    """Flatten, two products, and back to an image."""
    flat = net.op("Flatten", x)
    hidden = net.op("Gemm", flat, net.normal(5, c * SIDE * SIDE), net.normal(5), transB=1)
    out = net.op("Gemm", net.op("Relu", hidden), net.normal(5, 2 * SIDE * SIDE))
    return net.op("Reshape", out, net.ints(1, 2, SIDE, SIDE)), 2


def _attention(net: Net, x: str, c: int) -> tuple[str, int]:
    """Pixels attend to each other with two heads of three channels."""
    tokens = net.op("Transpose", net.op("Reshape", x, net.ints(1, c, SIDE * SIDE)), perm=[0, 2, 1])
    tokens = net.op("LayerNormalization", tokens, net.normal(c), net.normal(c))
    heads = []
    for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
        made = net.op("Add", net.op("MatMul", tokens, net.normal(c, 6)), net.normal(6))
        heads.append(net.op("Transpose", net.op("Reshape", made, net.ints(1, SIDE * SIDE, 2, 3)), perm=perm))
    weights = net.op("Softmax", net.op("MatMul", heads[0], heads[1]), axis=-1)
    mixed = net.op("Transpose", net.op("MatMul", weights, heads[2]), perm=[0, 2, 1, 3])
    out = net.op("MatMul", net.op("Reshape", mixed, net.ints(1, SIDE * SIDE, 6)), net.normal(6, c))
    back = net.op("Reshape", net.op("Transpose", out, perm=[0, 2, 1]), net.ints(1, c, SIDE, SIDE))
    return net.op("Add", x, back), c


def _heads(net: Net, x: str, c: int) -> tuple[str, int]:
    """Heads that something joins, or does not: a softmax or a product over heads, a scale that all heads share."""
    tokens = net.op("Transpose", net.op("Reshape", x, net.ints(1, c, SIDE * SIDE)), perm=[0, 2, 1])
    y = net.op("Reshape", net.op("MatMul", tokens, net.normal(c, 6)), net.ints(1, SIDE * SIDE, 2, 3))
    match int(net.rng.integers(5)):
        case 0:
            y = net.op("Softmax", y, axis=2)
        case 1:
            turned = net.op("Transpose", y, perm=[0, 1, 3, 2])
            mixed = net.op("Add", net.op("MatMul", turned, net.normal(2, 2)), turned)
            y = net.op("Transpose", mixed, perm=[0, 1, 3, 2])
        case 2:
            y = net.op("Mul", y, net.normal(3))
        case 3:  # each head with each: channels of one head meet those of another
            scores = net.op("MatMul", y, net.op("Transpose", y, perm=[0, 1, 3, 2]))
            y = net.op("MatMul", scores, net.op("Reshape", net.op("MatMul", tokens, net.normal(c, 6)),
                                                net.ints(1, SIDE * SIDE, 2, 3)))  # fmt: skip
        case _:
            y = net.op("Softmax", y, axis=3)
    out = net.op("MatMul", net.op("Reshape", y, net.ints(1, SIDE * SIDE, 6)), net.normal(6, c))
    return net.op("Reshape", net.op("Transpose", out, perm=[0, 2, 1]), net.ints(1, c, SIDE, SIDE)), c


def _lookup(net: Net, x: str, c: int) -> tuple[str, int]:
    """Rows of the image in another order, and rows of a table added, as embeddings are."""
    rows = net.op("Gather", x, net.ints(2, 0, 3, 1), axis=2)
    table = net.op("Gather", net.normal(9, c), net.ints(*range(4, 8)), axis=0)
    turned = net.op("Reshape", net.op("Transpose", table, perm=[1, 0]), net.ints(1, c, SIDE, 1))
    return net.op("Add", rows, turned), c


def _shuffle(net: Net, x: str, c: int) -> tuple[str, int]:
    return net.op("DepthToSpace", net.op("SpaceToDepth", x, blocksize=2), blocksize=2), c


BLOCKS: tuple[Block, ...] = (
    _pointwise, _depthwise, _grouped, _residual, _excite, _concat, _split, _slice, _norm, _prelu, _flat, _attention,
    _shuffle, _heads, _lookup,
)  # fmt: skip


def network(blocks: list[int], seed: int, rng: np.random.Generator | None = None) -> onnx.ModelProto:
    """A network of these blocks between two convolutions; `rng` takes the place of the one that the seed makes."""
    net = Net(seed)
    net.rng = rng or net.rng
    x, c = net.conv("x", 2, 6), 6
    for block in blocks:
        x, c = BLOCKS[block](net, x, c)
    last = net.conv(x, c, 3)
    kind = TensorProto.DOUBLE
    graph = helper.make_graph(
        net.nodes,
        "net",
        [helper.make_tensor_value_info("x", kind, [1, 2, SIDE, SIDE])],
        [helper.make_tensor_value_info(last, kind, [1, 3, SIDE, SIDE])],
        net.weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
