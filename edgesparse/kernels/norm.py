"""Layer norm over feature-major matrices: every lane is a token of its own, so no sum crosses lanes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgesparse.kernels.builder import Body, kernel


@dataclass(frozen=True)
class Norm:
    """``y[c][p] = (x[c][p] - mean[p]) / sqrt(variance[p] + epsilon) * w[c] + b[c]``, mean and variance over c.

    Two passes before the last: the mean, then the squares of what differs from it (1706.03762's norm, 1607.06450).
    Pointers: x, w, b, y; y is not x. Arguments: pitch of x, pitch of y, channels. Range: vectors of pixels, of which
    the last may overlap the one before.
    """

    pixels: int
    lanes: int
    epsilon: float

    @property
    def width(self) -> int:
        """Lanes that are used: halved until a vector fits."""
        lanes = self.lanes
        while lanes > self.pixels:
            lanes //= 2
        return lanes

    @property
    def extent(self) -> int:
        """Vectors of a whole call."""
        return -(-self.pixels // self.width)

    @property
    def symbol(self) -> str:
        epsilon = float(self.epsilon).hex().replace("-", "m").replace("+", "").replace(".", "d")
        return f"es_norm_f32_{self.pixels}px_{self.lanes}_{epsilon}"

    def build(self) -> Any:
        pointers = [("x", "float32"), ("w", "float32"), ("b", "float32"), ("y", "float32")]
        return kernel(self.symbol, pointers, self._body)

    def _body(self, body: Body) -> None:
        lanes = self.width
        sums = body.registers(_STREAMS, lanes)
        channels = body.arg(2)
        with body.loop(body.begin, body.end) as block:
            start = body.let(body.T.min(block * lanes, body.const(self.pixels - lanes)))
            share = body.let(body.spread(body.T.float32(1.0) / body.T.Cast("float32", channels), lanes))

            def x_at(channel: Any) -> Any:
                return body.let(body.load("x", channel * body.arg(0) + start, lanes))

            def total(term: Any) -> Any:
                """The sum of `term(x)` over all channels, in several streams."""
                for s in range(_STREAMS):
                    body.put(sums, s, body.number(0.0, lanes))
                whole = body.let(channels // _STREAMS)
                with body.loop(0, whole) as step:
                    for s in range(_STREAMS):
                        body.put(sums, s, sums[s] + term(x_at(step * _STREAMS + s)))
                with body.loop(whole * _STREAMS, channels) as channel:
                    body.put(sums, 0, sums[0] + term(x_at(channel)))
                return (sums[0] + sums[1]) + (sums[2] + sums[3])

            mean = body.let(total(lambda x: x) * share)
            variance = body.let(total(lambda x: (x - mean) * (x - mean)) * share)
            one = body.number(1.0, lanes)
            factor = body.let(one / body.T.sqrt(variance + body.number(self.epsilon, lanes)))
            with body.loop(0, channels) as channel:
                weight = body.let(body.spread(body["w"][channel], lanes))
                bias = body.let(body.spread(body["b"][channel], lanes))
                value = (x_at(channel) - mean) * factor * weight + bias
                body.store("y", channel * body.arg(1) + start, value, lanes)


#: Independent sums to keep in flight.
_STREAMS = 4
