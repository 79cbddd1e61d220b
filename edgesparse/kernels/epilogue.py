"""What a kernel does to a value before it stores it: bias is in the accumulator, then residual and activation.

One table of activations, each an expression over a vector of any number of lanes. `exp` in it becomes an inline
polynomial in `edgesparse.building.codegen`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgesparse.errors import UnsupportedError
from edgesparse.kernels.builder import Body

#: Activations an epilogue can hold, and how many constants each takes.
ACTIVATIONS = {
    "none": 0,
    "relu": 0,
    "clip": 2,
    "leaky": 1,
    "hardswish": 0,
    "hardsigmoid": 2,
    "sigmoid": 0,
    "silu": 0,
    "tanh": 0,
    "gelu": 0,
}


@dataclass(frozen=True)
class Epilogue:
    """Activation with its constants, and whether (and on which side of it) a residual is added.

    `constants` are: clip (low, high); leaky (slope below zero); hardsigmoid (alpha, beta). `affine` scales and shifts
    what the activation gives, by two numbers out of the call's arguments: networks have others in every layer.
    """

    activation: str = "none"
    constants: tuple[float, ...] = ()
    residual: str = "none"
    affine: bool = False

    def __post_init__(self) -> None:
        if len(self.constants) != ACTIVATIONS.get(self.activation, -1) or self.residual not in (
            "none",
            "before",
            "after",
        ):
            raise UnsupportedError(f"no epilogue {self}")

    @property
    def long(self) -> bool:
        """Whether the activation is a polynomial, of a dozen instructions and more."""
        return self.activation in ("sigmoid", "silu", "tanh", "gelu")

    @property
    def numbers(self) -> int:
        """Constants that a short activation keeps in registers."""
        return {"hardswish": 5, "hardsigmoid": 4}.get(self.activation, len(self.constants))

    @property
    def name(self) -> str:
        """Part of a kernel's symbol: the activation with its constants, then the residual's place."""
        text = self.activation + "".join(f"_{_plain(value)}" for value in self.constants)
        text += "_affine" if self.affine else ""
        return text + {"none": "", "before": "_resact", "after": "_actres"}[self.residual]

    def apply(self, body: Body, value: Any, lanes: int, residual: Any = None, affine_at: int = 0) -> Any:
        """The stored value for an accumulated one.

        `residual` is its vector where the epilogue has one, `affine_at` the argument that holds the scale; the shift
        follows it.
        """
        if self.residual == "before":
            value = value + residual
        value = _activate(body, self.activation, self.constants, value, lanes)
        if self.affine:
            scale, shift = (body.let(body.spread(body.real(affine_at + i), lanes)) for i in (0, 1))
            value = value * scale + shift
        return value + residual if self.residual == "after" else value


def _plain(value: float) -> str:
    """A number as letters and digits, unique for each float32."""
    return float(value).hex().replace("-", "m").replace("+", "").replace(".", "d")


def _activate(body: Body, name: str, constants: tuple[float, ...], value: Any, lanes: int) -> Any:
    T = body.T
    zero = body.number(0.0, lanes)
    one = body.number(1.0, lanes)
    if name == "none":
        return value
    if name == "relu":
        return T.max(value, zero)
    if name == "clip":
        return T.min(T.max(value, body.number(constants[0], lanes)), body.number(constants[1], lanes))
    if name == "leaky":
        value = body.let(value)
        return T.max(value, zero) + T.min(value, zero) * body.number(constants[0], lanes)
    if name == "hardsigmoid":
        return _hardsigmoid(body, value, constants[0], constants[1], lanes)
    value = body.let(value)
    if name == "hardswish":
        return value * _hardsigmoid(body, value, 1.0 / 6.0, 0.5, lanes)
    if name == "tanh":
        return T.tanh(value)
    if name == "gelu":
        half = value * body.number(0.5, lanes)
        return half + half * T.erf(value * body.number(0.5**0.5, lanes))
    gate = one / (one + T.exp(zero - value))
    return gate if name == "sigmoid" else value * gate


def _hardsigmoid(body: Body, value: Any, alpha: float, beta: float, lanes: int) -> Any:
    inner = value * body.number(alpha, lanes) + body.number(beta, lanes)
    return body.T.min(body.T.max(inner, body.number(0.0, lanes)), body.number(1.0, lanes))
