"""LSTM, GRU and RNN: from the ONNX node to a product over all steps and a recurrence, and that as kernel calls.

The input side of all steps and directions is one `Linear`; a step then is the product of R with the hidden state (the
sparse or dense kernel of one pixel, as placed) and one kernel of gates. Steps, directions and batch are unrolled in
the table of calls: the kernels are the same for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from edgesparse.errors import UnsupportedError
from edgesparse.graph.attributes import constant_of, integer, is_float, name_of, node_name
from edgesparse.graph.ops import Linear, Recurrence, Value
from edgesparse.kernels import Epilogue
from edgesparse.kernels.recurrent import GATES, Gates
from edgesparse.lowering.emitter import Emitter
from edgesparse.lowering.program import Ref

#: Where a vector lies, and the distance between its elements.
Spot = tuple[Ref, int]
_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_PLAIN = {"sigmoid": "sigmoid", "tanh": "tanh", "relu": "relu"}


#: ``product(op, weight, tag, pixels, x, y, residual, first_row)``, as lowering has it for all layers.
Product = Callable[[Recurrence, np.ndarray, str, int, Spot, Spot, None, int], None]


def recurrent(node: ir.Node, values: Mapping[str, Value]) -> tuple[Linear, Recurrence, list[Value]]:
    """The product and the recurrence that an LSTM, GRU or RNN node stands for, and the values that they make.

    Raises
    ------
    UnsupportedError
        Weights that are not constant, sequences of different lengths, clipping, activations beyond the table.
    """
    name = node_name(node)
    x, inputs = node.inputs[0], [*node.inputs, *[None] * 8]
    w, r, b = (constant_of(value) for value in inputs[1:4])
    if w is None or r is None or (inputs[3] is not None and b is None) or not is_float(x):
        raise _unsupported(node, "its weights are not constants of float32")
    directions, gates, hidden = r.shape[0], r.shape[1] // r.shape[2], r.shape[2]
    batch_first = bool(integer(node, "layout", 0))
    shape = values[name_of(x)].shape
    steps, batch = (shape[1], shape[0]) if batch_first else (shape[0], shape[1])
    if inputs[4] is not None:
        lengths = constant_of(inputs[4])
        if lengths is None or np.any(lengths != steps):
            raise _unsupported(node, "sequences shorter than the input are not known before the run")
    if integer(node, "input_forget", 0) or node.attributes.get("clip") is not None:
        raise _unsupported(node, "clip and input_forget have no kernel")
    peephole = constant_of(inputs[7])
    if inputs[7] is not None and peephole is None:
        raise _unsupported(node, "its peephole weights are not constant")
    kind = node.op_type.lower()
    if kind == "gru" and not integer(node, "linear_before_reset", 0):
        kind = "gru0"
    assert gates == GATES[kind]
    bias = np.zeros((directions, 2 * gates * hidden), np.float32) if b is None else np.asarray(b, np.float32)
    middle = Value(f"{name}/projected", (*shape[:2], directions * gates * hidden))
    linear = Linear(
        f"{name}/input",
        (node.name or node.op_type,),
        (name_of(x),),
        (middle.name,),
        np.ascontiguousarray(w.reshape(-1, w.shape[2]))[:, :, None],
        np.ascontiguousarray(bias[:, : gates * hidden].reshape(-1)),
        steps * batch,
        Epilogue(),
    )
    starts = [(mark, inputs[place]) for mark, place in (("h", 5), ("c", 6)) if not _zero(inputs[place])]
    state = (batch, directions, hidden) if batch_first else (directions, batch, hidden)
    whole = (batch, steps, directions, hidden) if batch_first else (steps, directions, batch, hidden)
    given = [value.name or "" for value in node.outputs] + [""] * 3
    made = [
        Value(given[place] or f"{name}/{mark}", form)
        for place, (mark, form) in enumerate([("Y", whole), ("Y_h", state), ("Y_c", state)])
    ]
    if node.op_type != "LSTM":
        made.pop()
    op = Recurrence(
        name,
        (node.name or node.op_type,),
        (middle.name, *(name_of(value) for _, value in starts)),
        tuple(value.name for value in made),
        kind,
        np.ascontiguousarray(r.reshape(-1, hidden))[:, :, None],
        np.ascontiguousarray(bias[:, gates * hidden :].reshape(-1)),
        None if peephole is None else np.ascontiguousarray(peephole, np.float32),
        hidden,
        steps,
        batch,
        _reversed(node, directions),
        batch_first,
        _activations(node, directions),
        "".join(mark for mark, _ in starts),
    )
    return linear, op, [middle, *made]


def _zero(value: ir.Value | None) -> bool:
    """Whether a first state is the one that is assumed where there is none: exporters write it out as zeros."""
    constant = constant_of(value)
    return value is None or (constant is not None and not np.any(constant))


def _unsupported(node: ir.Node, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"cannot lower node {node_name(node)!r} ({node.op_type})", why=why, fix="export it with plain settings"
    )


def _reversed(node: ir.Node, directions: int) -> tuple[bool, ...]:
    attribute = node.attributes.get("direction")
    direction = attribute.as_string() if attribute is not None else "forward"
    return (False, True)[:directions] if direction != "reverse" else (True,)


def _activations(node: ir.Node, directions: int) -> tuple[tuple[Epilogue, ...], ...]:
    attribute = node.attributes.get("activations")
    count = len(_DEFAULTS[node.op_type])
    names = list(attribute.as_strings()) if attribute is not None else list(_DEFAULTS[node.op_type]) * directions
    if any(node.attributes.get(key) is not None for key in ("activation_alpha", "activation_beta")):
        raise _unsupported(node, "activations with constants have no kernel")
    unknown = sorted({text for text in names if text.lower() not in _PLAIN})
    if unknown:
        raise _unsupported(node, f"activation {', '.join(unknown)} has no kernel here")
    made = tuple(Epilogue(_PLAIN[text.lower()]) for text in names)
    return tuple(made[count * d : count * (d + 1)] for d in range(directions))


def lower_recurrence(emitter: Emitter, op: Recurrence, product: Product) -> None:
    """Emit all steps of all directions and sequences."""
    for direction in range(len(op.reverse)):
        for sequence in range(op.batch):
            _Sequence(emitter, op, product, direction, sequence).run()


class _Sequence:
    """One direction of one sequence: where its rows lie, and its steps."""

    def __init__(self, emitter: Emitter, op: Recurrence, product: Product, direction: int, sequence: int) -> None:
        self.emitter, self.op, self.multiply = emitter, op, product
        self.direction, self.sequence = direction, sequence
        self.gates = GATES[op.kind]
        self.rows = self.gates * op.hidden
        self.projected = emitter.plain(op.inputs[0])
        self.given = dict(zip(op.starts, op.inputs[1:], strict=True))
        self.gated = emitter.buffer(f"gates:{op.name}", 4 * self.rows)
        self.acts = op.activations[direction]

    def run(self) -> None:
        """The steps in time, then the last states to where they are wanted."""
        op = self.op
        hidden = self._start("h")
        cell = self._start("c") if op.kind == "lstm" else None
        order = range(op.steps - 1, -1, -1) if op.reverse[self.direction] else range(op.steps)
        for number, time in enumerate(order):
            following = self._output(time)
            self._step(time, number, hidden, cell, following)
            hidden = following
            cell = self._cell(number) if cell is not None else None
        self._finish(1, hidden)
        if cell is not None:
            self._finish(2, cell)

    def _start(self, mark: str) -> Ref:
        if mark in self.given:
            return Ref(self.emitter.plain(self.given[mark]), 4 * self._state())
        return self.emitter.constant(f"{self.op.name}/zeros", lambda: np.zeros(self.op.hidden, np.float32))

    def _state(self) -> int:
        """Element offset of this direction and sequence in a state ``[D, B, H]`` (batch first: ``[B, D, H]``)."""
        op = self.op
        major, minor, inner = self.direction, self.sequence, op.batch
        if op.batch_first:
            major, minor, inner = minor, major, len(op.reverse)
        return (major * inner + minor) * op.hidden

    def _output(self, time: int) -> Ref:
        """Where the hidden state of a step goes."""
        op, count = self.op, len(self.op.reverse)
        if op.batch_first:
            row = (self.sequence * op.steps + time) * count + self.direction
        else:
            row = (time * count + self.direction) * op.batch + self.sequence
        return Ref(self.emitter.place_of(op.output).buffer, 4 * row * op.hidden)

    def _cell(self, number: int) -> Ref:
        return Ref(self.emitter.buffer(f"cell{number % 2}:{self.op.name}", 4 * self.op.hidden))

    def _step(self, time: int, number: int, hidden: Ref, cell: Ref | None, following: Ref) -> None:
        op, emitter = self.op, self.emitter
        row = self.sequence * op.steps + time if op.batch_first else time * op.batch + self.sequence
        p = Ref(self.projected, 4 * (row * len(op.reverse) + self.direction) * self.rows)
        q = Ref(self.gated)
        first = 2 * op.hidden if op.kind == "gru0" else self.rows
        self._multiply(hidden, 0, first)
        if op.kind == "gru0":
            reset = Ref(emitter.buffer(f"reset:{op.name}", 4 * op.hidden))
            self._gates("gru0_reset", [p, q, hidden, reset])
            self._multiply(reset, first, self.rows)
        if cell is None:
            self._gates(op.kind, [p, q, *([] if op.kind == "rnn" else [hidden]), following])
            return
        refs = [p, q, cell, self._cell(number), following]
        if op.peephole is not None:
            whole = op.peephole
            peep = emitter.constant(f"{op.name}/peephole", lambda: whole)
            refs.append(Ref(peep.name, 4 * 3 * op.hidden * self.direction))
        self._gates("lstm", refs)

    def _multiply(self, x: Ref, first: int, last: int) -> None:
        """``q[first:last] = R[first:last] x + Rb[first:last]`` for this direction."""
        at = self.direction * self.rows
        weight = self.op.weight[at + first : at + last, :, 0]
        q = Ref(self.gated, 4 * first)
        self.multiply(self.op, weight, f"r{at + first}", 1, (x, 1), (q, 1), None, at + first)

    def _gates(self, kind: str, refs: list[Ref]) -> None:
        target, peephole = self.emitter.target, self.op.peephole is not None
        spec = Gates(kind, self.op.hidden, self.acts, target.lanes, peephole, target.barrier)
        self.emitter.call(spec, refs, [], spec.extent)

    def _finish(self, output: int, state: Ref) -> None:
        op = self.op
        target = Ref(self.emitter.place_of(op.outputs[output]).buffer, 4 * self._state())
        copy = self.emitter.copy(op.hidden)
        self.emitter.call(copy, [state, target], [op.hidden, 0, op.hidden], 1)
