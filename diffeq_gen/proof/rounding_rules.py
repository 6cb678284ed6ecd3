"""Elementwise rules: if |x - x_true| <= e then |fl(h(x)) - h(x_true)| <= amplification(x, y, e) + ulps(x, y) u |y|.

    fl(x op y) = (x op y)(1 + delta),  |delta| <= u = eps / 2          Higham 2002, Eq. (2.4)
    |z y - x_true y_true| <= |x| e_y + |y| e_x + e_x e_y               Higham 2002, section 3.3 (running error analysis)

The idea is Wilkinson's (1963): carry the bound beside the value.  The first summand is rigorous where h bends: a
supremum of |h'| over [x - e, x + e], never a mere derivative at x.  The second is the library's own error, measured on
XLA's CPU backend in float32 and float64 against forty digits, with a factor of about two in reserve.  XLA flushes
subnormal numbers, so every rounding may also lose the smallest normal number.  It may rewrite exp(a) exp(b) as
exp(a + b) and a / b as a (1 / b): hence the |x| in exp's ulps and the second ulp of div.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax import lax

from diffeq_gen.proof.either import either as jnp
from diffeq_gen.proof.either import is_traced

__all__ = [
    "BINARY", "UNARY", "Ball", "Unary", "absolute", "add", "asin_amplification", "atan2", "atanh_ulps", "below",
    "cosh_amplification", "div", "erf_inv_amplification", "exp2_amplification", "exp_amplification", "few", "grow",
    "is_float", "larger", "lgamma_amplification", "local", "log1p_ulps", "log_ulps", "logistic_amplification",
    "mul", "overlap", "power", "power_of_two", "radius_of", "ratio", "remainder", "settle", "smaller",
    "sqrt_amplification", "successor", "tan_amplification", "tanh_amplification", "tiny", "total", "unary", "unit", "unless",
]  # fmt: skip


class Ball(NamedTuple):
    """|value - exact| <= radius; None is exactly zero.  For integers and booleans it is a mask of undecided ones."""

    value: jax.Array
    radius: jax.Array | None = None


class Unary(NamedTuple):
    """One line of the table: amplification(x, y, e), ulps(x, y), and pole(x) where the function is truly infinite."""

    amplification: Callable
    ulps: Callable
    pole: Callable | None = None


def is_float(x: jax.Array) -> bool:
    """True for arrays that round."""
    return jnp.issubdtype(x.dtype, jnp.floating)


def unit(x: jax.Array) -> float:
    """u = eps / 2, and a hair more that covers the bound's own rounding.  Higham 2002, section 2.1."""
    return float(jnp.finfo(x.dtype).eps) * 0.5 * (1 + 2**-6)


def tiny(x: jax.Array) -> float:
    """The smallest normal number: what a flushed subnormal may lose."""
    return float(jnp.finfo(x.dtype).tiny)


def radius_of(ball: Ball) -> jax.Array:
    """The radius with None written out: zeros for floats, a false mask for integers and booleans."""
    if ball.radius is not None:
        return jnp.asarray(ball.radius)
    return jnp.zeros(np.shape(ball.value), ball.value.dtype if is_float(ball.value) else jnp.bool_)


def local(y: jax.Array, ulps: float | jax.Array) -> jax.Array:
    """ulps u |y| + tiny: the error that one operation commits."""
    return ulps * unit(y) * jnp.abs(y) + tiny(y)


def settle(y: jax.Array, radius: jax.Array, balls: tuple[Ball, ...], pole: jax.Array | bool = False) -> jax.Array:
    """The radius as a number: nan means inf; a result that is infinite because an exact operand says so has radius 0.

    A radius is itself computed with flushed subnormals: an inexact operand leaves at least the smallest normal number.
    """
    truth = jnp.asarray(pole)
    known = jnp.asarray(True)
    for ball in balls:
        truth = truth | jnp.isinf(ball.value)
        known = known if ball.radius is None else known & jnp.isfinite(ball.radius)
        radius = radius if ball.radius is None else jnp.where(ball.radius > 0, jnp.maximum(radius, tiny(y)), radius)
    radius = jnp.where(jnp.isnan(radius) | jnp.isnan(y), jnp.inf, radius * (1 + 32 * unit(y)))
    radius = jnp.where(jnp.isinf(y) & truth & known, 0.0, jnp.where(jnp.isinf(y), jnp.inf, radius))
    return jnp.broadcast_to(radius.astype(y.dtype), y.shape)


# --- one argument --------------------------------------------------------------------------------------------------


def grow(e: jax.Array) -> jax.Array:
    """exp(e) - 1 <= e (1 + e) for 0 <= e <= 1."""
    return e * (1 + e)


def unless(small: jax.Array, radius: jax.Array, large: Callable[[], jax.Array]) -> jax.Array:
    """where(small, radius, large()), without the work of `large` where all is known to be small."""
    return radius if not is_traced([small]) and np.all(small) else jnp.where(small, radius, large())


def exp_amplification(x: jax.Array, y: jax.Array, e: jax.Array) -> jax.Array:
    """e^{x+e} - e^x = e^x (e^e - 1)."""
    return unless(e < 1, y * grow(e), lambda: jnp.exp(x + e))


def exp2_amplification(x: jax.Array, y: jax.Array, e: jax.Array) -> jax.Array:
    """2^{x+e} - 2^x, with 2^e - 1 <= grow(e log 2)."""
    return unless(e < 1, y * grow(0.6932 * e), lambda: jnp.exp2(x + e))


def tan_amplification(x: jax.Array, y: jax.Array, e: jax.Array) -> jax.Array:
    """tan(x + e) - tan x = tan(e) (1 + tan^2 x) / (1 - tan x tan e), and tan e <= e (1 + e^2) for e <= 1/2."""
    rise = e * (1 + e * e)
    gap = 1 - jnp.abs(y) * rise
    return jnp.where((e <= 0.5) & (gap > 0), rise * (1 + y * y) / gap, jnp.inf)


def tanh_amplification(x: jax.Array, y: jax.Array, e: jax.Array) -> jax.Array:
    """tanh(x + e) - tanh x = tanh(e) (1 - y^2) / (1 + y tanh e)."""
    rise = jnp.minimum(e, 1.0)
    gap = 1 - jnp.abs(y) * rise
    return jnp.minimum(rise * (1 - jnp.abs(y) + 16 * unit(y)) * (1 + jnp.abs(y)) / jnp.maximum(gap, unit(y)), 2.0)


def sqrt_amplification(x: jax.Array, y: jax.Array, e: jax.Array) -> jax.Array:
    """sqrt x - sqrt(x - e) = e / (sqrt x + sqrt(x - e)); for e > x both ends lie below sqrt(x + e)."""
    return jnp.where(e < x, e / (y + jnp.sqrt(jnp.maximum(x - e, 0.0))), jnp.sqrt(x + e))


def asin_amplification(x: jax.Array, y: jax.Array, e: jax.Array) -> jax.Array:
    """min(e sup |h'|, pi sqrt(e / 2)): arcsine and arccosine are Hoelder of order one half."""
    m = jnp.abs(x) + e
    steep = jnp.where(m < 1, e / jnp.sqrt((1 - m) * (1 + m)), jnp.inf)
    return jnp.minimum(steep, 2.2215 * jnp.sqrt(e))


def logistic_amplification(x: jax.Array, y: jax.Array, e: jax.Array) -> jax.Array:
    """s' = s (1 - s), and log s' has slope at most one."""
    return unless(e < 1, y * (1 - y + 8 * unit(y)) * grow(e), lambda: lax.logistic(x + e))


def erf_inv_amplification(x: jax.Array, y: jax.Array, e: jax.Array) -> jax.Array:
    """h' = sqrt(pi)/2 exp(h^2), largest at the end nearer to one."""
    edge = lax.erf_inv(jnp.minimum(jnp.abs(x) + e, 1.0))
    return 0.8863 * jnp.exp(edge * edge) * e * 1.01


def cosh_amplification(x: jax.Array, y: jax.Array, e: jax.Array) -> jax.Array:
    """e sup |sinh| and e sup |cosh| are both below e cosh(|x| + e)."""
    return jnp.where(e == jnp.inf, jnp.inf, e * jnp.cosh(jnp.abs(x) + e))


def lgamma_amplification(x: jax.Array, y: jax.Array, e: jax.Array) -> jax.Array:
    """The digamma function rises: its largest modulus on an interval of positive numbers is at an end."""
    slope = jnp.maximum(jnp.abs(lax.digamma(x - e)), jnp.abs(lax.digamma(x + e)))
    return jnp.where(e < x, e * slope * 1.01, jnp.inf)


def log_ulps(x: jax.Array, y: jax.Array) -> jax.Array | float:
    """The logarithm's own error."""
    return 4.0


def log1p_ulps(x: jax.Array, y: jax.Array) -> jax.Array | float:
    """jax 0.10's float64 log1p loses 245 ulps on (sqrt(1/2) - 1, -0.3)."""
    return 7.0 if x.dtype != jnp.float64 else jnp.where((x < -0.2) & (x > -0.4143), 500.0, 7.0).astype(x.dtype)


def atanh_ulps(x: jax.Array, y: jax.Array) -> jax.Array | float:
    """Inherits the defect of log1p."""
    return 6.0 if x.dtype != jnp.float64 else jnp.where(abs(abs(x) - 0.365) < 0.065, 300.0, 6.0).astype(x.dtype)


def absolute(ulps: Callable) -> Callable:
    """Ulps of y that amount to ulps(x, y) units of one: for functions that lose relative accuracy at their zeros."""
    return lambda x, y: ulps(x, y) / jnp.maximum(jnp.abs(y), tiny(y))


def below(x: jax.Array, e: jax.Array) -> jax.Array:
    """max(|x| - e, 0): the point of [x - e, x + e] nearest to zero."""
    return jnp.maximum(jnp.abs(x) - e, 0.0)


def ratio(e: jax.Array, room: jax.Array) -> jax.Array:
    """e / room where there is room, infinite where the interval reaches the singularity."""
    return jnp.where(room > 0, e / jnp.where(room > 0, room, 1.0), jnp.inf)


def few(ulps: float) -> Callable:
    """A constant number of ulps."""
    return lambda x, y: ulps


UNARY: dict[str, Unary] = {
    "exp": Unary(exp_amplification, lambda x, y: 2.5 + jnp.abs(x)),
    "exp2": Unary(exp2_amplification, lambda x, y: 2.5 + 1.5 * jnp.abs(x)),
    "expm1": Unary(lambda x, y, e: unless(e < 1, (y + 1) * grow(e), lambda: jnp.exp(x + e)), few(12.0)),
    "log": Unary(lambda x, y, e: ratio(e, x - e), few(4.0), lambda x: x == 0),
    "log2": Unary(lambda x, y, e: 1.4427 * ratio(e, x - e), few(6.0), lambda x: x == 0),
    "log1p": Unary(lambda x, y, e: ratio(e, 1 + x - e), log1p_ulps, lambda x: x == -1),
    "sin": Unary(lambda x, y, e: jnp.minimum(e, 2.0), few(2.5)),
    "cos": Unary(lambda x, y, e: jnp.minimum(e, 2.0), few(2.5)),
    "tan": Unary(tan_amplification, few(3.0)),
    "asin": Unary(asin_amplification, few(5.0)),
    "acos": Unary(asin_amplification, few(5.0)),
    "atan": Unary(lambda x, y, e: jnp.minimum(e / (1 + below(x, e) ** 2), 4.0), few(8.0)),
    "sinh": Unary(cosh_amplification, lambda x, y: 14 + jnp.abs(x)),
    "cosh": Unary(cosh_amplification, lambda x, y: 14 + jnp.abs(x)),
    "tanh": Unary(tanh_amplification, few(14.0)),
    "asinh": Unary(lambda x, y, e: e / jnp.sqrt(1 + below(x, e) ** 2), few(8.0)),
    "acosh": Unary(lambda x, y, e: ratio(e, jnp.sqrt(jnp.maximum((x - e - 1) * (x - e + 1), 0.0))), few(10.0)),
    "atanh": Unary(
        lambda x, y, e: ratio(e, (1 - jnp.abs(x) - e) * (1 + jnp.abs(x))), atanh_ulps, lambda x: jnp.abs(x) == 1
    ),
    "logistic": Unary(logistic_amplification, few(5.0)),
    "erf": Unary(lambda x, y, e: jnp.minimum(1.1285 * e * jnp.exp(-(below(x, e) ** 2)), 2.0), few(10.0)),
    "erfc": Unary(
        lambda x, y, e: jnp.minimum(1.1285 * e * jnp.exp(-(jnp.where(e < jnp.abs(x), below(x, e), 0.0) ** 2)), 2.0),
        lambda x, y: 24 + 2 * x * x,
    ),
    "erf_inv": Unary(
        erf_inv_amplification,
        lambda x, y: 60 + 1.8 * jnp.abs(x) * jnp.exp(y * y) / jnp.maximum(jnp.abs(y), tiny(y)),
        lambda x: jnp.abs(x) == 1,
    ),
    "sqrt": Unary(sqrt_amplification, few(2.0)),
    "rsqrt": Unary(lambda x, y, e: y * ratio(e, 2 * (x - e)), few(3.0), lambda x: x == 0),
    "cbrt": Unary(
        lambda x, y, e: jnp.where(
            3 * e < jnp.abs(x), jnp.abs(y) * ratio(e, 3 * (jnp.abs(x) - e)), 1.5875 * jnp.cbrt(e)
        ),
        few(9.0),
    ),
    "square": Unary(lambda x, y, e: (2 * jnp.abs(x) + e) * e, few(1.0)),
    "one_minus_square": Unary(lambda x, y, e: (2 * jnp.abs(x) + e) * e, few(4.0)),
    "lgamma": Unary(
        lgamma_amplification, absolute(lambda x, y: 40 * (1 + jnp.abs(x * jnp.log(x)) + jnp.abs(jnp.log(x))))
    ),
    "digamma": Unary(
        lambda x, y, e: ratio(e, x - e) * (1 + ratio(jnp.ones_like(x), x - e)),
        absolute(lambda x, y: 20 * (1 + 1 / x + jnp.abs(jnp.log(x)))),
    ),
}


def unary(name: str, y: jax.Array, ball: Ball) -> jax.Array:
    """amplification(x, y, e) + ulps u |y|, without the second where the value is certainly exact."""
    x, e = ball
    rule = UNARY[name]
    saturated = jnp.isinf(x) & ((y == 0) | (jnp.abs(y) == 1))
    exact = ((x == 0) & (y == 0)) | saturated
    radius = jnp.where(exact, 0.0, local(y, rule.ulps(x, y)))
    if e is not None:
        radius = radius + jnp.where(e == 0, 0.0, rule.amplification(x, y, e))
    pole = False if rule.pole is None else rule.pole(x) & (True if e is None else e == 0)
    return settle(y, radius, (ball,), pole)


# --- two arguments -------------------------------------------------------------------------------------------------


def total(*radii: jax.Array | None) -> jax.Array | float:
    """The sum of the radii that are not None."""
    return sum((r for r in radii if r is not None), 0.0)


def power_of_two(x: jax.Array) -> bool:
    """True for a constant known while tracing whose product with anything is exact."""
    if isinstance(x, jax.core.Tracer) or np.size(x) != 1:
        return False
    mantissa, _ = np.frexp(np.asarray(x, np.float64).reshape(()))
    return abs(mantissa) == 0.5


def add(y: jax.Array, a: Ball, b: Ball) -> jax.Array:
    """e_a + e_b + u |s|; no rounding where s is no larger than either operand (Sterbenz; Higham 2002, Theorem 2.5)."""
    small, large = jnp.minimum(jnp.abs(a.value), jnp.abs(b.value)), jnp.maximum(jnp.abs(a.value), jnp.abs(b.value))
    flushed = (jnp.abs(y) < tiny(y)) & (small != large)
    exact = (jnp.abs(y) <= small) | (small == 0)
    own = jnp.where(flushed, tiny(y), jnp.where(exact, 0.0, local(y, 1.0)))
    return settle(y, own + total(a.radius, b.radius), (a, b))


def mul(y: jax.Array, a: Ball, b: Ball) -> jax.Array:
    """|a| e_b + |b| e_a + e_a e_b + u |a b|."""
    x, z = jnp.abs(a.value), jnp.abs(b.value)
    shift = power_of_two(a.value) or power_of_two(b.value)
    own = jnp.where(jnp.abs(y) >= tiny(y), 0.0, tiny(y)).astype(y.dtype) if shift else local(y, 1.0)
    radius = jnp.where((x == 0) | (z == 0), 0.0, own)
    if a.radius is not None:
        radius = radius + jnp.where(a.radius == 0, 0.0, z * a.radius)
    if b.radius is not None:
        radius = radius + jnp.where(b.radius == 0, 0.0, (x if a.radius is None else x + a.radius) * b.radius)
    if a.radius is None and b.radius is None:
        return settle(y, radius, (a, b))
    e, f = radius_of(a), radius_of(b)
    lost = jnp.where((jnp.isinf(x) & (f >= z)) | (jnp.isinf(z) & (e >= x)), jnp.inf, 0.0).astype(y.dtype)
    radius = settle(y, jnp.where(jnp.isinf(y), 0.0, radius) + lost, (a, b, Ball(jnp.zeros_like(y), lost)))
    zero = ((x == 0) & (e == 0)) | ((z == 0) & (f == 0))
    return jnp.where(zero & (y == 0), 0.0, radius)


def div(y: jax.Array, a: Ball, b: Ball) -> jax.Array:
    """(e_a + |q| e_b) / (|b| - e_b) + 2 u |q|: XLA may multiply by a rounded, or flushed, reciprocal instead."""
    e = radius_of(a) if b.radius is None else radius_of(a) + jnp.where(b.radius == 0, 0.0, jnp.abs(y) * b.radius)
    room = jnp.abs(b.value) - total(b.radius)
    shift = power_of_two(b.value)
    own = jnp.where(jnp.abs(y) >= tiny(y), 0.0, tiny(y)).astype(y.dtype) if shift else local(y, 2.0)
    own = own + jnp.where(jnp.abs(b.value) >= 0.125 / tiny(y), jnp.abs(a.value) * tiny(y), 0.0)
    own = jnp.where((a.value == 0) | jnp.isinf(b.value), 0.0, own)
    pole = b.value == 0
    lost = jnp.where(pole & (jnp.abs(a.value) <= radius_of(a)), jnp.inf, 0.0).astype(y.dtype)
    if b.radius is not None:
        lost = jnp.where((jnp.abs(b.value) <= b.radius) & (b.radius > 0), jnp.inf, lost)
    radius = own + jnp.where(e == 0, 0.0, ratio(e, room))
    radius = settle(y, jnp.where(pole, 0.0, radius) + lost, (a, b, Ball(jnp.zeros_like(y), lost)), pole)
    return jnp.where((a.value == 0) & (radius_of(a) == 0) & (room > 0), 0.0, radius)


def larger(y: jax.Array, a: Ball, b: Ball, sign: float = 1.0) -> jax.Array:
    """The winner's radius when the intervals are apart, else the larger radius: the maximum is Lipschitz."""
    if a.radius is None and b.radius is None:
        return jnp.zeros_like(y)
    e, f = radius_of(a), radius_of(b)
    x, z = sign * a.value, sign * b.value
    gap = 2 * (e + f)
    radius = jnp.where(x > z + gap, e, jnp.where(z > x + gap, f, jnp.maximum(e, f)))
    return jnp.broadcast_to(jnp.where(jnp.isnan(y) | jnp.isnan(radius), jnp.inf, radius), y.shape)


def smaller(y: jax.Array, a: Ball, b: Ball) -> jax.Array:
    """min(a, b) = -max(-a, -b)."""
    return larger(y, a, b, -1.0)


def power(y: jax.Array, a: Ball, b: Ball) -> jax.Array:
    """|a|^b (exp(|log a| e_b + |b| e_a / (|a| - e_a)) - 1); near zero the largest power that the intervals allow."""
    x, e, p, f = jnp.abs(a.value), radius_of(a), b.value, radius_of(b)
    log_x = jnp.abs(jnp.log(jnp.where(x == 0, 1.0, x)))
    exponent = jnp.where(f == 0, 0.0, log_x * f) + jnp.where(e == 0, 0.0, (jnp.abs(p) + f) * ratio(e, x - e))
    reach = x + e
    at_zero = jnp.where(p > f, reach ** jnp.where(reach < 1, p - f, p + f) + jnp.abs(y), jnp.inf)
    spread = jnp.where(x > e, jnp.abs(y) * jnp.expm1(exponent), at_zero)
    fixed = ((e == 0) & (f == 0)) | ((x == 0) & (e == 0) & (p > f)) | ((x == 1) & (e == 0))
    own = jnp.where((x == 0) | (x == 1) | (p == 0), 0.0, local(y, 2.5))
    return settle(y, own + jnp.where(fixed, 0.0, spread), (a, b), (x == 0) & (e == 0) & (p + f < 0))


def atan2(y: jax.Array, a: Ball, b: Ball) -> jax.Array:
    """(|a| e_b + |b| e_a + 2 e_a e_b) / r^2 with r the nearest distance to the origin; 2 pi across the branch cut."""
    x, e, z, f = jnp.abs(a.value), radius_of(a), jnp.abs(b.value), radius_of(b)
    near = jnp.maximum(x - e, z - f)
    r = jnp.where(near > 0, near, 1.0)
    turn = jnp.where(near > 0, (x / r * f + z / r * e + 2 * e * (f / r)) / r, 7.0)
    cut = (b.value - f < 0) & (x <= e) & (e > 0)
    radius = jnp.where((e == 0) & (f == 0), 0.0, jnp.where(cut, 7.0, jnp.minimum(turn, 7.0)))
    return settle(y, radius + local(y, 4.0), (a, b))


def remainder(y: jax.Array, a: Ball, b: Ball) -> jax.Array:
    """Exact; the quotient is decided when the result keeps its distance from 0 and from |b|, else |b| is lost."""
    if a.radius is None and b.radius is None:
        return jnp.zeros_like(y)
    e = radius_of(a) + (jnp.abs(a.value / b.value) + 1) * radius_of(b)
    decided = (jnp.abs(y) > 2 * e) & (jnp.abs(b.value) - jnp.abs(y) > 2 * e)
    return settle(y, jnp.where((e == 0) | decided, e, jnp.abs(b.value) + e), (a, b))


def successor(y: jax.Array, a: Ball, b: Ball) -> jax.Array:
    """Exact on exact input; otherwise the neighbour may differ by an ulp on either side."""
    if a.radius is None and b.radius is None:
        return jnp.zeros_like(y)
    return settle(y, radius_of(a) + local(y, 4.0), (a, b))


BINARY: dict[str, Callable] = {
    "add": add,
    "add_any": add,
    "sub": lambda y, a, b: add(y, a, b),
    "mul": mul,
    "div": div,
    "max": larger,
    "min": smaller,
    "pow": power,
    "atan2": atan2,
    "rem": remainder,
    "nextafter": successor,
}


def overlap(a: Ball, b: Ball) -> jax.Array | None:
    """|a - b| <= 2 (e_a + e_b): a comparison that rounding leaves undecided; twice, for XLA may compute an operand again."""
    if a.radius is None and b.radius is None:
        return None
    if not is_float(a.value):
        return radius_of(a) | radius_of(b)
    reach = 2 * total(a.radius, b.radius)
    return (reach > 0) & ~(jnp.abs(a.value - b.value) > reach)
