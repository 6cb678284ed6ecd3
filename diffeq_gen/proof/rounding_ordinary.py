"""The elementwise rules in their ordinary case: operands known, everything finite, nothing zero.

    mul:  (u |y| + tiny + |b| e_a + (|a| + e_a) e_b) (1 + 32 u)          and so for the others

A rule spends most of its time on exceptions that few entries are.  Here its ordinary formula is evaluated on a whole
batch, and the rule itself on the entries where that formula does not hold: the two agree, and only the time differs.
Numpy keeps subnormal numbers, so a radius needs no floor here; a result below the smallest normal number is an exception.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from diffeq_gen.proof.either import is_traced
from diffeq_gen.proof.rounding_rules import BINARY, UNARY, Ball, power_of_two, tiny, unary, unit

__all__ = [
    "closed",
    "elementwise",
    "image",
    "mended",
    "nought",
    "picked",
    "powers",
    "product",
    "quotient",
    "settled",
    "total",
]

Formula = Callable[..., tuple[np.ndarray, np.ndarray]]

SMALL = 64
"""Fewer entries than this are not worth the trouble."""


def elementwise(name: str, y: jax.Array, *balls: Ball) -> jax.Array:
    """The radius of one of the `UNARY` or `BINARY` results.  Higham 2002, section 3.3."""
    if name in UNARY:
        return mended(lambda y, x: unary(name, y, x), lambda y, x: image(name, y, x), y, *balls)
    return mended(BINARY[name], ORDINARY.get(name), y, *balls)


def mended(rule: Callable, formula: Formula | None, y: jax.Array, *balls: Ball) -> jax.Array:
    """The formula's radius, and the rule's wherever the formula says that it does not hold."""
    if formula is None or np.size(y) < SMALL or is_traced([y, *(part for ball in balls for part in ball)]):
        return rule(y, *balls)
    radius, odd = formula(y, *balls)
    count = np.count_nonzero(odd)
    if 2 * count > y.size:
        return rule(y, *balls)
    if count:
        radius[odd] = rule(y[odd], *(Ball(picked(b.value, odd), picked(b.radius, odd)) for b in balls))
    return radius


def picked(x: Any, where: np.ndarray) -> Any:
    """The entries of a batch; a number stays a number."""
    return x if x is None or np.ndim(x) == 0 else np.broadcast_to(x, where.shape)[where]


def nought(ball: Ball) -> np.ndarray:
    """Where the operand is zero, exactly."""
    zero = ball.value == 0
    return zero if ball.radius is None else zero & (ball.radius == 0)


def settled(zero: np.ndarray, radius: np.ndarray, odd: np.ndarray) -> np.ndarray:
    """An exact zero in, an exact zero out: no exception there, and no radius."""
    zero = zero & odd
    np.putmask(radius, zero, 0)
    return odd & ~zero


def closed(y: np.ndarray, radius: np.ndarray, odd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The radius with the reserve for its own rounding; where it is not finite, something that went into it was not."""
    radius *= 1 + 32 * unit(y)
    odd |= ~(radius < np.inf)
    return radius, odd


def product(y: np.ndarray, a: Ball, b: Ball) -> tuple[np.ndarray, np.ndarray]:
    """u |y| + tiny + |b| e_a + (|a| + e_a) e_b; a power of two does not round."""
    size = np.abs(y)
    odd = size < tiny(y)
    if power_of_two(a.value) or power_of_two(b.value):
        radius = np.zeros_like(size)
    else:
        radius = size
        radius *= unit(y)
        radius += tiny(y)
    if np.any(odd):
        odd = settled((nought(a) | nought(b)) & (y == 0), radius, odd)
    if a.radius is not None:
        radius += np.abs(b.value) * a.radius
    if b.radius is not None:
        radius += (np.abs(a.value) if a.radius is None else np.abs(a.value) + a.radius) * b.radius
    return closed(y, radius, odd)


def quotient(y: np.ndarray, a: Ball, b: Ball) -> tuple[np.ndarray, np.ndarray]:
    """2 u |q| + tiny + (e_a + |q| e_b) / (|b| - e_b)."""
    size, below = np.abs(y), np.abs(b.value)
    odd = size < tiny(y)
    radius = np.zeros_like(size) if power_of_two(b.value) else 2 * unit(y) * size + tiny(y)
    if np.any(odd):
        odd = settled(np.broadcast_to(nought(a), y.shape), radius, odd)
    odd |= below >= 0.125 / tiny(y)
    if b.radius is None:
        return closed(y, radius if a.radius is None else radius + a.radius / below, odd)
    room = below - b.radius
    odd |= ~(room > 0)
    carried = size
    carried *= b.radius
    if a.radius is not None:
        carried += a.radius
    carried /= room
    radius += carried
    return closed(y, radius, odd)


def total(y: np.ndarray, a: Ball, b: Ball) -> tuple[np.ndarray, np.ndarray]:
    """e_a + e_b + u |s| + tiny, without the rounding where s is no larger than either operand."""
    size, small = np.abs(y), np.minimum(np.abs(a.value), np.abs(b.value))
    odd = (size < tiny(y)) & (size > 0)
    exact = ((size <= small) | (small == 0)) & (size < np.inf)
    radius = size
    radius *= unit(y)
    radius += tiny(y)
    np.putmask(radius, exact, 0)
    for ball in (a, b):
        if ball.radius is not None:
            radius += ball.radius
    return closed(y, radius, odd)


def image(name: str, y: np.ndarray, x: Ball) -> tuple[np.ndarray, np.ndarray]:
    """ulps u |y| + tiny + amplification(x, y, e)."""
    rule, radius = UNARY[name], np.abs(y)
    odd = radius < tiny(y)
    odd |= ~np.isfinite(x.value)
    radius *= rule.ulps(x.value, y)
    radius *= unit(y)
    radius += tiny(y)
    if x.radius is not None:
        radius += rule.amplification(x.value, y, x.radius)
    return closed(y, radius, odd)


def powers(n: int) -> Formula | None:
    """(n - 1) (u |y| + tiny) + n e (|x| + e)^(n - 1), for n from 2 on."""

    def formula(y: np.ndarray, x: Ball) -> tuple[np.ndarray, np.ndarray]:
        radius = np.abs(y)
        odd = radius < tiny(y)
        radius *= (n - 1) * unit(y)
        radius += (n - 1) * tiny(y)
        if np.any(odd):
            odd = settled(nought(x), radius, odd)
        if x.radius is not None:
            reach = np.abs(x.value) + x.radius
            radius += n * x.radius * (reach if n == 2 else reach ** (n - 1))
        return closed(y, radius, odd)

    return formula if n >= 2 else None


ORDINARY: dict[str, Formula] = {"add": total, "add_any": total, "sub": total, "mul": product, "div": quotient}
