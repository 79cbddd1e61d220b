"""One step of a recurrence behind its matrix product: the gates, the new state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgesparse.kernels.builder import Body, kernel
from edgesparse.kernels.epilogue import Epilogue

#: Kind of step to the pointers behind p and q, the last of them written.
_POINTERS = {
    "lstm": ("c", "next", "h"),
    "gru": ("h", "next"),
    "gru0_reset": ("h", "next"),
    "gru0": ("h", "next"),
    "rnn": ("next",),
}
#: Kind to the number of its gates.
GATES = {"lstm": 4, "gru": 3, "gru0": 3, "rnn": 1}


@dataclass(frozen=True)
class Gates:
    """The gates of one step, after ONNX's definitions of LSTM, GRU and RNN.

    Pointers: p, the projected input ``[G * H]``; q, the product with the hidden state and its bias ``[G * H]``; then
    "lstm" c, next (the new cell state), h (the new hidden state) and, with a `peephole`, its weights ``[3 * H]``;
    "gru" and "gru0" h, next; "gru0_reset" h, next (the hidden state times the reset gate, for the second product);
    "rnn" next. No arguments. Range: vectors of hidden units; the last one may overlap its neighbour.
    """

    kind: str
    hidden: int
    activations: tuple[Epilogue, ...]
    widest: int
    peephole: bool = False
    barrier: str = ""

    @property
    def lanes(self) -> int:
        lanes = self.widest
        while lanes > self.hidden:
            lanes //= 2
        return lanes

    @property
    def extent(self) -> int:
        return -(-self.hidden // self.lanes)

    @property
    def symbol(self) -> str:
        names = "_".join(each.name for each in self.activations)
        fenced = "b" if self.barrier else ""
        return f"es_{self.kind}{fenced}{'_peephole' if self.peephole else ''}_f32_{self.hidden}h_{self.widest}_{names}"

    def build(self) -> Any:
        names = ("p", "q", *_POINTERS[self.kind], *(("peep",) if self.peephole else ()))
        return kernel(self.symbol, [(name, "float32") for name in names], self._body, self.barrier)

    def _body(self, body: Body) -> None:
        step: Callable[[Body, Any], None] = getattr(self, f"_{self.kind}")
        with body.loop(body.begin, body.end) as block:
            step(body, body.let(body.T.min(block * self.lanes, body.const(self.hidden - self.lanes))))

    def _at(self, body: Body, name: str, gate: int, unit: Any) -> Any:
        return body.load(name, unit + gate * self.hidden, self.lanes)

    def _sum(self, body: Body, gate: int, unit: Any) -> Any:
        return body.let(self._at(body, "p", gate, unit) + self._at(body, "q", gate, unit))

    def _act(self, body: Body, which: int, value: Any) -> Any:
        made = body.let(self.activations[which].apply(body, value, self.lanes))
        body.fence()
        return made

    def _rnn(self, body: Body, unit: Any) -> None:
        body.store("next", unit, self._act(body, 0, self._sum(body, 0, unit)), self.lanes)

    def _lstm(self, body: Body, unit: Any) -> None:
        old = body.let(self._at(body, "c", 0, unit))

        def gate(number: int, peep: int, state: Any) -> Any:
            total = self._sum(body, number, unit)
            return self._act(body, 0, total + self._at(body, "peep", peep, unit) * state if self.peephole else total)

        keep = gate(2, 2, old)
        new = body.let(keep * old + gate(0, 0, old) * self._act(body, 1, self._sum(body, 3, unit)))
        body.store("next", unit, new, self.lanes)
        body.store("h", unit, gate(1, 1, new) * self._act(body, 2, new), self.lanes)

    def _mixed(self, body: Body, unit: Any, proposal: Any) -> None:
        update = self._act(body, 0, self._sum(body, 0, unit))
        old = self._at(body, "h", 0, unit)
        value = (body.number(1.0, self.lanes) - update) * self._act(body, 1, proposal) + update * old
        body.store("next", unit, value, self.lanes)

    def _gru(self, body: Body, unit: Any) -> None:
        reset = self._act(body, 0, self._sum(body, 1, unit))
        self._mixed(body, unit, self._at(body, "p", 2, unit) + reset * self._at(body, "q", 2, unit))

    def _gru0(self, body: Body, unit: Any) -> None:
        self._mixed(body, unit, self._sum(body, 2, unit))

    def _gru0_reset(self, body: Body, unit: Any) -> None:
        reset = self._act(body, 0, self._sum(body, 1, unit))
        body.store("next", unit, reset * self._at(body, "h", 0, unit), self.lanes)
