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
#: What is done to the vector of units from one on.
_Stage = Callable[[Any], None]
#: Kind to the number of its gates.
GATES = {"lstm": 4, "gru": 3, "gru0": 3, "rnn": 1}


class _Passed:
    """What stages hand on and leave behind: in memory, or in registers until all are through."""

    def __init__(self, body: Body, lanes: int, in_memory: bool) -> None:
        self.body, self.lanes, self.in_memory = body, lanes, in_memory
        self.values: dict[str, Any] = {}

    def put(self, name: str, unit: Any, value: Any) -> None:
        self.values[name] = self.body.let(value)
        if self.in_memory:
            self.finish(unit)

    def get(self, name: str, unit: Any) -> Any:
        return self.values[name] if name in self.values else self.body.load(name, unit, self.lanes)

    def finish(self, unit: Any) -> None:
        """Write what is held."""
        for name, value in self.values.items():
            self.body.store(name, unit, value, self.lanes)
        self.values.clear()


@dataclass(frozen=True)
class Gates:
    """The gates of one step, after ONNX's definitions of LSTM, GRU and RNN.

    Pointers: p, the projected input ``[G * H]``; q, the product with the hidden state and its bias ``[G * H]``; then
    "lstm" c, next (the new cell state), h (the new hidden state) and, with a `peephole`, its weights ``[3 * H]``;
    "gru" and "gru0" h, next; "gru0_reset" h, next (the hidden state times the reset gate, for the second product);
    "rnn" next. No arguments. Range: vectors of hidden units; the last may overlap its neighbour (see `extent`).
    A step is cut into stages. With a `barrier` each is a loop of its own, and what it hands on waits where the results
    will be: the constants of two activations, kept over one loop, would take more registers than ARM has.
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
        """Units of the call: vectors, or all of them as one where they may not be shared among threads."""
        return 1 if self.barrier and self._ragged else self._vectors

    @property
    def _vectors(self) -> int:
        return -(-self.hidden // self.lanes)

    @property
    def _ragged(self) -> bool:
        """Whether the last vector overlaps its neighbour."""
        return self.hidden % self.lanes > 0

    @property
    def symbol(self) -> str:
        names = "_".join(each.name for each in self.activations)
        fenced = "b" if self.barrier else ""
        return f"es_{self.kind}{fenced}{'_peephole' if self.peephole else ''}_f32_{self.hidden}h_{self.widest}_{names}"

    def build(self) -> Any:
        names = ("p", "q", *_POINTERS[self.kind], *(("peep",) if self.peephole else ()))
        return kernel(self.symbol, [(name, "float32") for name in names], self._body, self.barrier)

    def _body(self, body: Body) -> None:
        passed = _Passed(body, self.lanes, bool(self.barrier))
        stages: tuple[_Stage, ...] = getattr(self, f"_{self.kind}")(body, passed)

        def over(begin: Any, end: Any, *steps: _Stage) -> None:
            with body.loop(begin, end) as block:
                unit = body.let(body.T.min(block * self.lanes, body.const(self.hidden - self.lanes)))
                body.fence()  # LLVM unrolls such loops for some cores
                for step in steps:
                    step(unit)
                passed.finish(unit)

        if not self.barrier:
            over(body.begin, body.end, *stages)
        elif not self._ragged:
            for stage in stages:
                over(body.begin, body.end, stage)
        else:  # the last vector begins where its neighbour is through all stages, and does all of its own again
            before = self._vectors - 1
            with body.loop(0, body.unknown(2)) as last:
                for stage in stages:
                    over(body.let(last * before), body.let(last + before), stage)

    def _at(self, body: Body, name: str, gate: int, unit: Any) -> Any:
        return body.load(name, unit + gate * self.hidden, self.lanes)

    def _sum(self, body: Body, gate: int, unit: Any) -> Any:
        return body.let(self._at(body, "p", gate, unit) + self._at(body, "q", gate, unit))

    def _act(self, body: Body, which: int, value: Any) -> Any:
        return body.let(self.activations[which].apply(body, value, self.lanes))

    def _rnn(self, body: Body, passed: _Passed) -> tuple[_Stage, ...]:
        return (lambda unit: passed.put("next", unit, self._act(body, 0, self._sum(body, 0, unit))),)

    def _lstm(self, body: Body, passed: _Passed) -> tuple[_Stage, ...]:
        def gate(number: int, peep: int, unit: Any, state: Any) -> Any:
            total = self._sum(body, number, unit)
            return self._act(body, 0, total + self._at(body, "peep", peep, unit) * state if self.peephole else total)

        def keep(unit: Any) -> None:
            old = body.let(self._at(body, "c", 0, unit))
            passed.put("next", unit, gate(2, 2, unit, old) * old)

        def take(unit: Any) -> None:
            passed.put("h", unit, gate(0, 0, unit, self._at(body, "c", 0, unit)))

        def add(unit: Any) -> None:
            proposal = self._act(body, 1, self._sum(body, 3, unit))
            passed.put("next", unit, passed.get("next", unit) + passed.get("h", unit) * proposal)

        def squash(unit: Any) -> None:
            passed.put("h", unit, self._act(body, 2, passed.get("next", unit)))

        def show(unit: Any) -> None:
            opened = gate(1, 1, unit, passed.get("next", unit))
            passed.put("h", unit, opened * passed.get("h", unit))

        return keep, take, add, squash, show

    def _mix(self, body: Body, passed: _Passed) -> _Stage:
        def mix(unit: Any) -> None:
            update = self._act(body, 0, self._sum(body, 0, unit))
            proposal, old = passed.get("next", unit), self._at(body, "h", 0, unit)
            passed.put("next", unit, (body.number(1.0, self.lanes) - update) * proposal + update * old)

        return mix

    def _gru(self, body: Body, passed: _Passed) -> tuple[_Stage, ...]:
        def reset(unit: Any) -> None:
            passed.put("next", unit, self._act(body, 0, self._sum(body, 1, unit)))

        def propose(unit: Any) -> None:
            inner = self._at(body, "p", 2, unit) + passed.get("next", unit) * self._at(body, "q", 2, unit)
            passed.put("next", unit, self._act(body, 1, inner))

        return reset, propose, self._mix(body, passed)

    def _gru0(self, body: Body, passed: _Passed) -> tuple[_Stage, ...]:
        def propose(unit: Any) -> None:
            passed.put("next", unit, self._act(body, 1, self._sum(body, 2, unit)))

        return propose, self._mix(body, passed)

    def _gru0_reset(self, body: Body, passed: _Passed) -> tuple[_Stage, ...]:
        def reset(unit: Any) -> None:
            opened = self._act(body, 0, self._sum(body, 1, unit))
            passed.put("next", unit, opened * self._at(body, "h", 0, unit))

        return (reset,)
