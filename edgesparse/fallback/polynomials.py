"""Inline math: exp, log, tanh, erf, pow and their kin as polynomials, so that objects need no libm.

The functions become TVM lowering rules of the ``LowerIntrin`` pass, for scalars and for vectors of any lanes.
Coefficients are Chebyshev interpolants, made here in double precision on first use. Error bounds, over all finite
float32 arguments unless said otherwise, held by ``tests/test_polynomials.py``:

========= ================================================================================
exp       2 ulp; results under 2^-125.5 become zero
log       2 ulp
sigmoid   3 ulp; results under 2^-125 become zero
tanh      3 ulp
erf       3 ulp
pow       1 ulp (computed in double precision; powers 2, 3, 0.5, 1 and -1 are products, roots and quotients)
the rest  1 ulp where well-conditioned (computed in double precision to about 1e-12)
========= ================================================================================
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from edgesparse.fallback import rounding
from edgesparse.fallback.bits import absolute, bits_as, kind_of, lanes_of, same, signed

_LN2 = math.log(2.0)
#: ln 2 in two float32 parts; products of the first with integers under 2^8 are exact.
_LN2_HIGH = float(np.float32(round(_LN2 * 2**15) / 2**15))
_LN2_LOW = _LN2 - _LN2_HIGH
#: Adding it rounds to the nearest integer and leaves that integer in the low bits.
_MAGIC = float(3 << 22)
_MAGIC64 = float(3 << 51)
#: Highest priority of a lowering rule: in front of TVM's own.
_LEVEL = 120


@functools.cache
def register() -> None:
    """Make the polynomials TVM's lowering rules for the ``llvm`` targets of this process."""
    from tvm import tirx

    for name, op in rounding.NAMES.items():
        tirx.register_intrin_lowering(op, target="llvm", f=rounding.rule(name), level=_LEVEL)
    for name, rule in _RULES.items():
        op = "prim.log2" if name == "log2" else f"tirx.{name}"
        tirx.register_intrin_lowering(op, target="llvm", f=_lowering(rule), level=_LEVEL)


def _lowering(rule: Callable[..., Any]) -> Callable[[Any], Any]:
    def lower(call: Any) -> Any:
        kind = kind_of(call)
        if kind in ("float32", "float64"):
            return _let_all(list(call.args), lambda *args: rule(*args))
        if kind.startswith(("float16", "bfloat16")):
            wide = [_cast(arg, "float32") for arg in call.args]
            return _cast(_let_all(wide, lambda *args: rule(*args)), kind)
        return call

    return lower


@functools.cache
def _fit(name: str, low: float, high: float, degree: int) -> tuple[float, ...]:
    """Coefficients, lowest first, of the Chebyshev interpolant of a named function on an interval."""
    function = np.vectorize(_FITTED[name])
    poly = np.polynomial.Chebyshev.interpolate(function, degree, domain=[low, high])
    return tuple(float(c) for c in poly.convert(kind=np.polynomial.Polynomial).coef)


#: What is interpolated.
_FITTED: dict[str, Callable[[float], float]] = {
    "exp": math.exp,
    # log(1 + f) = f - f^2 / 2 + f^3 * log3(f)
    "log3": lambda f: sum((-f) ** i / (i + 3) for i in range(100)),
    # tanh(x) = x + x^3 * tanh3(x^2); erf(x) = x + x * erf1(x^2)
    "tanh3": lambda s: (math.tanh(math.sqrt(s)) / math.sqrt(s) - 1) / s if s > 1e-3 else -1 / 3 + s * 2 / 15,
    "erf1": lambda s: math.erf(math.sqrt(s)) / math.sqrt(s) - 1 if s > 0 else 2 / math.sqrt(math.pi) - 1,
    "logerfc": lambda x: math.log(math.erfc(x)),
    "atan": lambda s: math.atan(math.sqrt(s)) / math.sqrt(s) if s > 0 else 1.0,
}


def _cast(expr: Any, kind: str) -> Any:
    from tvm import tirx

    held = _held(expr)
    if held is not None:
        return same(held.value, expr, kind)
    return tirx.Cast(kind + lanes_of(expr), expr) if kind_of(expr) != kind else expr


def _held(expr: Any) -> Any | None:
    """The number in every lane of a constant."""
    held = expr.value if type(expr).__name__ == "Broadcast" else expr
    return held if type(held).__name__ in ("IntImm", "FloatImm") else None


def _let(value: Any, body: Callable[[Any], Any]) -> Any:
    from tvm import tirx

    # A constant is not bound: TVM folds what is made of it later, and then sees a name bound twice, to other values.
    if isinstance(value, tirx.Var) or _held(value) is not None:
        return body(value)
    var = tirx.Var("t", str(value.ty.dtype))
    return tirx.Let(var, value, body(var))


def _let_all(values: list[Any], body: Callable[..., Any], *bound: Any) -> Any:
    if not values:
        return body(*bound)
    return _let(values[0], lambda var: _let_all(values[1:], body, *bound, var))


def _horner(x: Any, coefficients: tuple[float, ...]) -> Any:
    total = same(coefficients[-1], x)
    for c in reversed(coefficients[:-1]):
        total = total * x + same(c, x)
    return total


def _select(condition: Any, yes: Any, no: Any) -> Any:
    from tvm import tirx

    return tirx.Select(condition, yes, no)


def _sqrt(x: Any) -> Any:
    from tvm import tirx

    return tirx.sqrt(x)


def _exp(x: Any, degree: int = 6, clamped: bool = True) -> Any:
    """2^n * e^r with n = round(x / ln 2).

    n - 1 goes in the exponent and the factor 2 in the polynomial, so that the top of the range does not wrap; at the
    bottom the exponent becomes that of zero. The constant comes first in min and max: that passes not-a-number on.
    `clamped` may be left out for arguments that are known to be in range.
    """
    from tvm import tirx

    double = kind_of(x) == "float64"
    magic, low, high, kind, shift, bias = (
        (_MAGIC64, -708.3, 709.8, "int64", 52, 1022) if double else (_MAGIC, -87.6, 89.0, "int32", 23, 126)
    )
    poly = tuple(2 * c for c in _fit("exp", -0.347, 0.347, 11 if double else degree))

    def with_top(top: Any) -> Any:
        return _let(top * same(1 / _LN2, x) + same(magic, x), lambda t: with_t(top, t))

    def with_t(top: Any, t: Any) -> Any:
        n = t - same(magic, x)
        rest = _let(n, lambda n: (top - n * same(_LN2_HIGH, x)) - n * same(_LN2_LOW, x))
        scale = bits_as((bits_as(t, kind) << same(shift, x, kind)) + same(bias << shift, x, kind), kind_of(x))
        return _let(rest, lambda r: _horner(r, poly) * scale)

    return _let(tirx.max(same(low, x), tirx.min(same(high, x), x)) if clamped else x, with_top)


def _log(x: Any) -> Any:
    """e * ln 2 + log(m), m in [sqrt(1/2), sqrt 2)."""
    if kind_of(x) == "float64":
        return _log64(x)
    tiny = x < same(2.0**-126, x)

    def with_bits(bits: Any) -> Any:
        e = (bits - same(0x3F3504F3, x, "int32")) >> same(23, x, "int32")
        return _let(e, lambda e: with_e(bits, e))

    def with_e(bits: Any, e: Any) -> Any:
        f = bits_as(bits - (e << same(23, x, "int32")), "float32") - same(1.0, x)
        n = _cast(e, "float32") - _select(tiny, same(23.0, x), same(0.0, x))
        return _let_all([f, n], with_f)

    def with_f(f: Any, n: Any) -> Any:
        poly = _horner(f, _fit("log3", math.sqrt(0.5) - 1, math.sqrt(2) - 1, 8))
        small = f * f * (f * poly) + n * same(_LN2_LOW, x) - f * f * same(0.5, x)
        return _log_ends(x, (f + small) + n * same(_LN2_HIGH, x))

    return _let(bits_as(_select(tiny, x * same(2.0**23, x), x), "int32"), with_bits)


def _log_ends(x: Any, value: Any) -> Any:
    inf = same(math.inf, x)
    bad = _select(x == same(0.0, x), same(-math.inf, x), same(math.nan, x))
    return _select(x > same(0.0, x), _select(x < inf, value, inf), bad)


def _log64(x: Any) -> Any:
    """The same in double precision, by the series of atanh((m - 1) / (m + 1)); takes normal numbers."""

    def with_bits(bits: Any) -> Any:
        e = (bits - same(0x3FE6A09E667F3BCD, x, "int64")) >> same(52, x, "int64")
        return _let(e, lambda e: with_e(bits, e))

    def with_e(bits: Any, e: Any) -> Any:
        m = bits_as(bits - (e << same(52, x, "int64")), "float64")
        s = _let(m, lambda m: (m - same(1.0, x)) / (m + same(1.0, x)))
        return _let(s, lambda s: with_s(s, _cast(e, "float64")))

    def with_s(s: Any, n: Any) -> Any:
        terms = tuple(2.0 / (2 * i + 1) for i in range(10))
        return _log_ends(x, s * _let(s * s, lambda q: _horner(q, terms)) + n * same(_LN2, x))

    return _let(bits_as(x, "int64"), with_bits)


def _sigmoid(x: Any) -> Any:
    return same(1.0, x) / (same(1.0, x) + _let(same(0.0, x) - x, _exp))


def _tanh(x: Any) -> Any:
    if kind_of(x) == "float64":
        return same(1.0, x) - same(2.0, x) / (_let(x + x, _exp) + same(1.0, x))
    poly = _fit("tanh3", 0.0, 0.3907, 5)
    near = x + x * _let(x * x, lambda s: s * _horner(s, poly))

    def with_size(a: Any) -> Any:
        far = same(1.0, x) - same(2.0, x) / (_let(a + a, _exp) + same(1.0, x))
        return _select(a < same(0.625, x), near, signed(x, far))

    return _let(absolute(x), with_size)


def _erf(x: Any) -> Any:
    if kind_of(x) == "float64":
        return _cast(_let(_cast(x, "float32"), _erf), "float64")
    from tvm import tirx

    poly = _fit("erf1", 0.0, 1.0, 5)
    near = x + x * _let(x * x, lambda s: _horner(s, poly))

    def with_size(a: Any) -> Any:
        tail = _let(tirx.min(a, same(4.0, x)), lambda b: _horner(b, _fit("logerfc", 0.99, 4.0, 7)))
        far = same(1.0, x) - _let(tail, lambda t: _exp(t, 5, clamped=False))
        return _select(a >= same(1.0, x), signed(x, far), near)

    return _let(absolute(x), with_size)


def _pow(x: Any, y: Any) -> Any:
    """e^(y log |x|) in double precision, then the cases of IEEE 754: signs, zeros, infinities, not-a-numbers."""
    from tvm import tirx

    if kind_of(x) == "float32":
        return _cast(_let_all([_cast(x, "float64"), _cast(y, "float64")], _pow), "float32")
    zero, one, half = same(0.0, x), same(1.0, x), same(0.5, x)
    whole = tirx.trunc(y) == y

    def with_size(a: Any) -> Any:
        return _let(_let(y * _let(a, _log64), _exp), lambda power: with_power(a, power))

    def with_power(a: Any, power: Any) -> Any:
        odd_sign = _select(tirx.trunc(y * half) == y * half, power, zero - power)
        negative = _select(whole, odd_sign, same(math.nan, x))
        finite = _select(x < zero, negative, power)
        at_zero = _select(y > zero, zero, same(math.inf, x))
        value = _select(a == zero, at_zero, finite)
        return _select(y == zero, one, _select(x == one, one, value))

    return _let(absolute(x), with_size)


def _wide(rule: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Compute a rare function in double precision, whatever it is asked in."""

    def wrapped(x: Any) -> Any:
        return _cast(_let(_cast(x, "float64"), rule), kind_of(x))

    return wrapped


def _turned(x: Any, quarter: int) -> Any:
    """sin(x + quarter * pi / 2): reduced by multiples of pi / 2 in two parts, good to |x| = 1e6."""
    high = 1.5707963267341256  # pi / 2 to 33 bits: its products with integers under 2^20 are exact
    low = 6.077100506506192e-11

    def with_t(t: Any) -> Any:
        n = t - same(_MAGIC64, x)
        rest = _let(n, lambda n: (x - n * same(high, x)) - n * same(low, x))
        turn = bits_as(t, "int64") + same(quarter, x, "int64")
        return _let_all([rest, turn], with_rest)

    def with_rest(r: Any, turn: Any) -> Any:
        sine = tuple((-1) ** i / math.factorial(2 * i + 1) for i in range(8))
        cosine = tuple((-1) ** i / math.factorial(2 * i) for i in range(9))
        value = _let(
            r * r,
            lambda s: _select(_odd(turn), _horner(s, cosine), r * _horner(s, sine)),
        )
        flip = _odd(turn >> same(1, x, "int64"))
        return _let(value, lambda v: _select(flip, same(0.0, x) - v, v))

    def _odd(turn: Any) -> Any:
        return (turn & same(1, x, "int64")) == same(1, x, "int64")

    return _let(x * same(2 / math.pi, x) + same(_MAGIC64, x), with_t)


def _atan(x: Any) -> Any:
    """Twice halved: atan x = 2 atan(x / (1 + sqrt(1 + x^2)))."""
    big = absolute(x) > same(1.0, x)

    def with_y(y: Any) -> Any:
        z = y / (same(1.0, x) + _sqrt(same(1.0, x) + y * y))
        poly = _fit("atan", 0.0, 0.1717, 9)
        half = _let(z, lambda z: z * _let(z * z, lambda s: _horner(s, poly)))
        return _let(half + half, lambda a: _select(big, signed(x, same(math.pi / 2, x)) - a, a))

    return _let(_select(big, same(1.0, x) / x, x), with_y)


def _asin(x: Any) -> Any:
    one = same(1.0, x)
    return _let(x / _sqrt((one - x) * (one + x)), _atan)


def _half_sum(x: Any, sign: float) -> Any:
    e = _let_all([_let(x, _exp)], lambda e: e + same(sign, x) / e)
    return same(0.5, x) * e


def _sinh(x: Any) -> Any:
    terms = tuple(1.0 / math.factorial(2 * i + 1) for i in range(9))
    near = x * _let(x * x, lambda s: _horner(s, terms))
    return _select(absolute(x) < same(1.0, x), near, _half_sum(x, -1.0))


def _log1p(x: Any) -> Any:
    """In double precision log(1 + x) is exact enough for float32 from 1e-5 on; below, the series."""
    near = x - x * x * (same(0.5, x) - x * same(1 / 3, x))
    return _select(absolute(x) < same(1e-5, x), near, _let(same(1.0, x) + x, _log64))


def _asinh(x: Any) -> Any:
    def with_size(a: Any) -> Any:
        return _log1p(a + a * a / (same(1.0, x) + _sqrt(a * a + same(1.0, x))))

    return signed(x, _let(absolute(x), with_size))


def _fmod(x: Any, y: Any) -> Any:
    from tvm import tirx

    def rest(a: Any, b: Any) -> Any:
        whole = a - tirx.trunc(a / b) * b
        # Nothing is left out of a finite number by an infinite one.
        return _select(absolute(b) == same(math.inf, b), _select(absolute(a) == absolute(b), b - b, a), whole)

    return _cast(_let_all([_cast(x, "float64"), _cast(y, "float64")], rest), kind_of(x))


_RULES: dict[str, Callable[..., Any]] = {
    "exp": _exp,
    "log": _log,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "erf": _erf,
    "pow": _pow,
    "exp2": _wide(lambda x: _let(x * same(_LN2, x), _exp)),
    "exp10": _wide(lambda x: _let(x * same(math.log(10), x), _exp)),
    "log2": _wide(lambda x: _let(x, _log64) * same(1 / _LN2, x)),
    "log10": _wide(lambda x: _let(x, _log64) * same(1 / math.log(10), x)),
    "log1p": _wide(_log1p),
    "sin": _wide(lambda x: _turned(x, 0)),
    "cos": _wide(lambda x: _turned(x, 1)),
    "tan": _wide(lambda x: _turned(x, 0) / _turned(x, 1)),
    "atan": _wide(_atan),
    "asin": _wide(_asin),
    "acos": _wide(lambda x: same(math.pi / 2, x) - _asin(x)),
    "sinh": _wide(_sinh),
    "cosh": _wide(lambda x: _half_sum(x, 1.0)),
    "asinh": _wide(_asinh),
    "acosh": _wide(lambda x: _let(x + _sqrt(x * x - same(1.0, x)), _log64)),
    "atanh": _wide(lambda x: same(0.5, x) * (_log1p(x) - _log1p(same(0.0, x) - x))),
    "fmod": _fmod,
}
