"""Coordinates: a curve in the plane of (alpha, sigma) that each ray of its quadrant meets once, and the parameter k of it.

    (alpha, sigma) = m (a(k), b(k)),        d(z/m)/dk = a'(k) x0_hat + b'(k) eps_hat = o

    coordinate      m                         k                    (a, b)                                  o
    line(c)         alpha + c sigma           sigma/m              (1 - c k, k)                            eps - c x0
    NOISE           alpha                     sigma/alpha          (1, k)                                  eps
    STRAIGHT        alpha + sigma             sigma/m              (1 - k, k)                              eps - x0
    DATA            sigma                     alpha/sigma          (k, 1)                                  x0
    ANGLE           sqrt(alpha^2 + sigma^2)   arctan(sigma/alpha)  (cos k, sin k)                          v
    LOG_SNR         sqrt(alpha^2 + sigma^2)   lambda               (sigmoid(k)^{1/2}, sigmoid(-k)^{1/2})

A curve is itself a schedule, whose time is k; the probability flow of z is that of z/m along it.  Where the curve is a
straight line its slope o is the same linear form in x0 and eps at every k, and Euler's rule in k is DDIM.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffeq_gen.clocks import time_at
from diffeq_gen.schedules import variance_preserving
from diffeq_gen.types import Schedule, Time, require

__all__ = ["ANGLE", "DATA", "LOG_SNR", "NOISE", "STRAIGHT", "Coordinate", "line", "time_on"]


class Coordinate(NamedTuple):
    """One row of the table: (alpha, sigma) -> m, (alpha, sigma) -> k, k -> (a, b).

    k is infinite where the ray of pure noise, or that of pure data, does not meet the curve.
    Theorems: coordinates-cover-the-quadrant.
    """

    unit: Callable[[jax.Array, jax.Array], jax.Array]
    clock: Callable[[jax.Array, jax.Array], jax.Array]
    curve: Callable[[jax.Array], tuple[jax.Array, jax.Array]]


def line(c: float) -> Coordinate:
    """z/(alpha + c sigma) in sigma/(alpha + c sigma), with slope eps - c x0: each linear form whose m does not vanish, but x0.

    At c = 0 k is infinite in pure noise; above, it ends there in 1/c.
    Raises: ValueError where c is negative: alpha + c sigma is zero somewhere.
    Theorems: coordinates-cover-the-quadrant, euler-along-a-line-is-ddim.
    """
    require(lambda c: c >= 0, "c must not be negative", c=c)
    return Coordinate(
        lambda alpha, sigma: alpha + c * sigma,
        lambda alpha, sigma: sigma / (alpha + c * sigma),
        lambda k: (1 - c * k, k),
    )


def _hypot(alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    return jnp.sqrt(alpha**2 + sigma**2)


NOISE = line(0.0)
STRAIGHT = line(1.0)
DATA = Coordinate(lambda alpha, sigma: sigma, lambda alpha, sigma: alpha / sigma, lambda k: (k, jnp.ones_like(k)))
ANGLE = Coordinate(_hypot, lambda alpha, sigma: jnp.arctan2(sigma, alpha), lambda k: (jnp.cos(k), jnp.sin(k)))
LOG_SNR = Coordinate(_hypot, lambda alpha, sigma: 2 * (jnp.log(alpha) - jnp.log(sigma)), variance_preserving)


def time_on(schedule: Schedule, coordinate: Coordinate, k: jax.Array) -> Time:
    """The time t at which k(alpha_t, sigma_t) = k, by way of log-SNR: as dear as the schedule's `time_at`.

    Theorems: coordinates-cover-the-quadrant.
    """
    a, b = coordinate.curve(k)
    return time_at(schedule, 2 * (jnp.log(a) - jnp.log(b)))
