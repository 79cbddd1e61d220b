"""What a model is made of once it is understood: operations with their weights, and the values between them.

`recognise` makes a `Graph` out of ONNX; the planner gives its values layouts and its operations an order; lowering
turns each operation into kernel calls. Weights are in canonical form: one row per output channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgesparse.kernels import Epilogue

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """An activation: ONNX name, static shape, numpy dtype name."""

    name: str
    shape: Shape
    dtype: str = "float32"

    @property
    def image(self) -> tuple[int, int, int, int] | None:
        """``(N, C, H, W)`` of a float image; other values have none."""
        if self.dtype != "float32" or len(self.shape) != 4:
            return None
        images, channels, height, width = self.shape
        return images, channels, height, width

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.elements * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Op:
    """One step of the network: a name (the ONNX node it comes from), what it reads, what it makes.

    `nodes` are all ONNX nodes that are fused in it.
    """

    name: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def output(self) -> str:
        return self.outputs[0]


@dataclass(frozen=True)
class Conv(Op):
    """Convolution. `weight` is ``[Cout, Cin/groups, kh*kw]``, `pads` (top, left, bottom, right).

    With a residual in the epilogue it is the second input. `affine` is the scale and the shift of an epilogue that has
    them.
    """

    weight: np.ndarray
    bias: np.ndarray
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    groups: int
    epilogue: Epilogue
    affine: tuple[float, float] = (1.0, 0.0)

    @property
    def pointwise(self) -> bool:
        """A 1x1 convolution that reads each pixel once."""
        return self.kernel == (1, 1) and self.strides == (1, 1) and self.groups == 1 and not any(self.pads)

    @property
    def depthwise(self) -> bool:
        """One input channel per group."""
        return self.groups > 1 and self.weight.shape[1] == 1


@dataclass(frozen=True)
class Linear(Op):
    """``y[m] = epilogue(W x[m] + b)`` for every row m of the input; `weight` is ``[N, K, 1]``.

    With a residual in the epilogue it is the second input.
    """

    weight: np.ndarray
    bias: np.ndarray
    rows: int
    epilogue: Epilogue


@dataclass(frozen=True)
class LayerNorm(Op):
    """Layer norm over the last axis, of `rows` rows; `scale` and `shift` are ``[features]``."""

    scale: np.ndarray
    shift: np.ndarray
    epsilon: float
    rows: int


@dataclass(frozen=True)
class Mask:
    """What is added to attention's scores: ``[batch, heads, queries, keys]``, each of the first three 1 or all.

    `values` ``[batch * heads * queries, keys]`` for a constant; else it is the attention's fourth input.
    """

    name: str
    batch: int
    heads: int
    queries: int
    values: np.ndarray | None

    @property
    def kind(self) -> str:
        """As in `kernels.Attention`."""
        return "keys" if self.heads == self.queries == 1 else "queries"


@dataclass(frozen=True)
class Attention(Op):
    """``softmax(scale * q k^T + mask) v`` of every head, over rows of features.

    Inputs: the matrices ``[batch * rows, features]`` that hold q, k and v, and the mask where it is computed. Output:
    ``[batch * queries, heads * depth]``.

    Attributes
    ----------
    starts:
        For q, k and v: the first feature of the first head, and features from head to head.
    queries, keys:
        Rows of an image in q, and in k and v.
    width, depth:
        Features of a head in q and k, and in v.
    """

    starts: tuple[tuple[int, int], ...]
    batch: int
    heads: int
    queries: int
    keys: int
    width: int
    depth: int
    scale: float
    mask: Mask | None = None

    @property
    def macs(self) -> int:
        """Multiply-adds of both products."""
        return self.batch * self.heads * self.queries * self.keys * (self.width + self.depth)


@dataclass(frozen=True)
class Pooling(Op):
    """Max or average pooling; `mode` as in `kernels.Pool`."""

    mode: str
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]


@dataclass(frozen=True)
class GlobalPooling(Op):
    """Mean ("avg") or maximum ("max") over the image."""

    mode: str


@dataclass(frozen=True)
class Elementwise(Op):
    """``epilogue(x op operand)`` on an image; the operand is the second input or a constant.

    `operand` is how it meets the image: "none", "full", "channel" or "scalar"; see `kernels.Pointwise`.
    """

    op: str
    operand: str
    constant: np.ndarray | None
    swapped: bool
    epilogue: Epilogue


@dataclass(frozen=True)
class Concat(Op):
    """Images put together along the channels."""


@dataclass(frozen=True)
class View(Op):
    """The same elements in the same order under another shape."""


@dataclass(frozen=True)
class Interleave(Op):
    """Images put together pixel by pixel: ``blocks`` (rows, columns) of pixels come from as many `phases`.

    A phase is an index into the inputs and the first channel there; channel c of the output is `step` * c further on.
    """

    blocks: tuple[int, int]
    phases: tuple[tuple[int, int], ...]
    step: int


@dataclass(frozen=True)
class Recurrence(Op):
    """The steps of an LSTM, GRU or RNN over inputs that are already multiplied by their weights.

    Inputs: the projected rows ``[rows, D * G * H]`` (bias of the input side in them), then the initial hidden and cell
    state where `starts` names them ("h", "c"). Outputs: Y, Y_h, Y_c as ONNX has them; those that nobody wants are
    empty names. `weight` is R of all directions, ``[D * G * H, H, 1]``, `bias` Rb, `peephole` P ``[D, 3 * H]`` or None.

    Attributes
    ----------
    kind:
        "lstm", "gru" (the reset gate multiplies the product), "gru0" (it multiplies the state before), "rnn".
    activations:
        By direction, in ONNX's order.
    reverse:
        By direction, whether time runs backwards.
    batch_first:
        ONNX's `layout` attribute.
    """

    kind: str
    weight: np.ndarray
    bias: np.ndarray
    peephole: np.ndarray | None
    hidden: int
    steps: int
    batch: int
    reverse: tuple[bool, ...]
    batch_first: bool
    activations: tuple[tuple[Epilogue, ...], ...]
    starts: str
    epilogue: Epilogue = field(default_factory=Epilogue)


@dataclass(frozen=True)
class TopK(Op):
    """The `count` largest (or smallest) elements along an axis of `size`, and their indices (int64), sorted.

    `rows` counts what lies before the axis, `inner` what lies behind it.
    """

    count: int
    size: int
    rows: int
    inner: int
    largest: bool
    dtype: str


@dataclass(frozen=True)
class Fallback(Op):
    """A part of the graph that goes through Relax, as an ONNX model of its own."""

    model: Any


@dataclass(frozen=True)
class Graph:
    """Operations in an order in which every input comes before its use."""

    ops: tuple[Op, ...]
    values: Mapping[str, Value]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)

    def consumers(self) -> dict[str, list[Op]]:
        """The operations that read each value."""
        found: dict[str, list[Op]] = {name: [] for name in self.values}
        for op in self.ops:
            for name in dict.fromkeys(op.inputs):
                found[name].append(op)
        return found
